"""What of the lanes may be shown: effects never before their causes.

Every lane has a *visible key* V: each of its events with a merge key below V is visible here. An
entry may be shown once its dependencies are met (for each origin `o` it names, the key it gives is
below `V[o]`) and once its lane's watermark W has passed it (nothing smaller is still to come).
Entries behind one whose dependencies are not met are held with it, since dependencies only grow;
and V stays at or below the smallest key among them.

Source: causal broadcast by dependency vectors (Birman, Schiper, Stephenson 1991), with keys of a
hybrid logical clock (Kulkarni et al. 2014) in place of message counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from net_adapter_mesh.lane import Entry, Lane, Vector

__all__ = ["Visibility"]


class Visibility:
    """The walk over all lanes. Under the log's lock.

    Args:
        lanes: the lanes, by origin.
        own: this node's origin: its events are visible as soon as they are stored.
        show: called for each entry that becomes visible, in an order that is right.
    """

    def __init__(self, lanes: Mapping[str, Lane], own: str, show: Callable[[Lane, Entry], None]) -> None:
        self._lanes = lanes
        self._own = own
        self._show = show
        self._forced: dict[str, int] = {}
        self._holding: set[str] = set()

    @property
    def stalled(self) -> list[Lane]:
        """Lanes with entries that are stored and not visible."""
        return [lane for lane in self._lanes.values() if lane.held or lane.ready]

    def enqueue(self, lane: Lane, entry: Entry) -> None:
        """Take a stored entry of another origin into the walk."""
        lane.held.append(entry)
        while lane.mins and lane.mins[-1][1] >= entry.lo:
            lane.mins.pop()
        lane.mins.append((entry.lsn, entry.lo))
        self._holding.add(lane.origin)

    def settle(self, lane: Lane) -> None:
        """Show what may be shown after something was stored in `lane`, anywhere."""
        if not self._walk(lane):
            return
        moved = True
        while moved:
            moved = False
            for origin in list(self._holding):
                moved |= self._walk(self._lanes[origin])

    def blocker(self, deps: Vector) -> tuple[str, int] | None:
        """Return a dependency that is not met, or None."""
        for origin, key in deps.items():
            if origin == self._own:
                continue
            lane = self._lanes.get(origin)
            if (lane.v if lane is not None else 0) <= key and self._forced.get(origin, -1) < key:
                return origin, key
        return None

    def assume(self, lane: Lane, key: int) -> None:
        """Take it that `lane` was visible up to `key`: if by `force`, nothing stored tells it."""
        lane.w = max(lane.w, key + 1)
        for entry in lane.held:
            if entry.lo > key:
                break
            for origin, needed in entry.deps.items():
                self._forced[origin] = max(self._forced.get(origin, -1), needed)

    def force(self, lane: Lane) -> int:
        """Show what `lane` holds back although its causes or its watermark are not to be had.

        Returns:
            How many streams got a gap mark: one each, on their first entry shown by this.
        """
        marked: dict[int, Entry] = {}
        if lane.held and (missing := self.blocker(lane.held[0].deps)):
            self._forced[missing[0]] = missing[1]
            marked[lane.held[0].shard] = lane.held[0]
        elif lane.ready:
            lane.w = max(lane.w, 1 + max(entry.hi for entry in lane.ready))
            for entry in lane.ready:
                marked.setdefault(entry.shard, entry)
        for entry in marked.values():
            entry.gap = entry.count > 0
        lane.gaps += len(marked)
        self.settle(lane)
        return len(marked)

    def _walk(self, lane: Lane) -> bool:
        """Move entries from held to ready to shown; tell whether V moved."""
        met: Vector | None = None
        fresh: list[Entry] = []
        while lane.held:
            entry = lane.held[0]
            if entry.deps is not met:
                if self.blocker(entry.deps) is not None:
                    break
                met = entry.deps
            lane.held.popleft()
            if lane.mins[0][0] == entry.lsn:
                lane.mins.popleft()
            if entry.count:
                fresh.append(entry)
        if not lane.held:
            self._holding.discard(lane.origin)
        w = min(lane.w, lane.mins[0][1]) if lane.held else lane.w
        moved = w > lane.v
        if moved:
            lane.v = w
            fresh, lane.ready = lane.ready + fresh, []
        for entry in fresh:
            if entry.hi < lane.v:
                self._show(lane, entry)
            else:
                lane.ready.append(entry)
        return moved
