"""The log of a node: all lanes it holds, behind one lock, shared by the loop and the I/O thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from heapq import nlargest
from typing import Final, NamedTuple, Protocol

from net_adapter_mesh.causal import Visibility
from net_adapter_mesh.frames import MOST, Body, LaneRow, WireEntry
from net_adapter_mesh.lane import Entry, Lane, Limits, StreamView, Vector

__all__ = ["Kept", "Log", "Put", "Store"]

_EMPTY: Final[Vector] = {}


class Kept(NamedTuple):
    """What a durable store held of one lane when it was opened."""

    origin: str
    entries: list[Entry]
    ends: dict[int, tuple[int, int]]  # shard -> position after its last event, that event's key
    head: int
    w: int
    floor: int


class Put(NamedTuple):
    """Entries to be kept, all or none, and whom to tell."""

    origin: str
    entries: Sequence[Entry]
    done: Callable[[], None]


class Store(Protocol):
    """Where entries are kept beside memory. `put` answers through callbacks, maybe at once."""

    failure: str
    """Why nothing can be kept at present, or ""."""

    @property
    def unsynced(self) -> str:
        """Why what is kept is not synced as promised, or ""."""

    @property
    def gathers(self) -> bool:
        """Whether what comes in one turn of a thread had better be put together, at its end."""

    def put(self, group: Sequence[Put]) -> None:
        """Keep what is put, then call each `done` (any thread); of one origin in order.

        Own entries come from the loop's thread, those of others from the I/O thread, never both at once.
        """

    def drop(self, origin: str, entries: Sequence[Entry]) -> None:
        """Let go of trimmed entries."""

    def body(self, entry: Entry) -> Body | None:
        """Return a body that memory no longer has.

        Raises:
            TransientAdapterError: it cannot be read now.
        """

    def cached(self, entry: Entry) -> None:
        """Take note of an entry whose body is in memory, to bound how many are."""

    def close(self, timeout: float) -> None:
        """Finish what was asked for and release everything, within `timeout` seconds."""


def _newest(lane: Lane) -> int:
    """Return the key of a lane's newest event."""
    return max((view.key for view in lane.streams.values()), default=0)


class Log:
    """Lanes, what of them is visible, and the writer's end of the own lane.

    Own entries are *staged* (numbered, not yet readable) on the loop thread, handed to the store,
    and *published* once that has them: what a crash could take back is never read or sent.

    Args:
        own: this node's origin.
        limits: retention.
        store: where entries are kept.
    """

    def __init__(self, own: str, limits: Limits, store: Store) -> None:
        self.own = own
        self.lock = threading.RLock()
        self.version = 1
        self.lanes: dict[str, Lane] = {own: Lane(own)}
        self.greatest = 0  # merge key seen from elsewhere
        self._limits = limits
        self._store = store
        self._visibility = Visibility(self.lanes, own, self._show)
        self._touched: set[tuple[str, int]] = set()
        self._next_lsn = 1
        self._w = 0  # watermark of the last staged entry
        self._ends: dict[int, tuple[int, int]] = {}  # shard -> next position, last key

    @property
    def lane(self) -> Lane:
        """The own lane."""
        return self.lanes[self.own]

    def restore(self, kept: Kept) -> None:
        """Take what a durable store held of a lane; `settle` comes after the last one."""
        lane = self.lanes.setdefault(kept.origin, Lane(kept.origin))
        for entry in kept.entries:
            lane.store(entry)
            if kept.origin == self.own:
                self._show(lane, entry)
            elif entry.count:
                self._visibility.enqueue(lane, entry)
        lane.floor, lane.head, lane.w = kept.floor, kept.head, max(lane.w, kept.w)
        for shard, (position, key) in kept.ends.items():
            view = lane.stream(shard)
            view.next, view.key = position, key
            view.visible = max(view.visible, view.earliest)
        if kept.origin == self.own:
            self._next_lsn, self._w = lane.head + 1, lane.w
            self._ends = dict(kept.ends)
        self.greatest = max([self.greatest, *(view.key for view in lane.streams.values())])

    def settle(self) -> None:
        """Walk every lane once, after `restore`. What own entries depend on was visible here before."""
        for origin, key in self.lane.deps.items():
            if origin in self.lanes:
                self._visibility.assume(self.lanes[origin], key)
        for lane in list(self.lanes.values()):
            self._visibility.settle(lane)
        self._trim()

    def stage(self, shard: int, stamps: Sequence[int], w: int, deps: Vector, body: Body) -> Entry:
        """Give a batch (or, with no stamps, a bare watermark) its numbers. Loop thread only."""
        start, key = self._ends.get(shard, (0, 0))
        lo = hi = 0
        if stamps:  # keys rise in a shard, and never fall below a watermark that was given out
            lo = max(key, self._w, stamps[0])
            hi = max(lo, max(stamps))
        self._w = max(w, self._w)
        entry = Entry(self._next_lsn, shard, start, len(stamps), self._w, lo, hi, deps, body)
        self._next_lsn += 1
        if stamps:
            self._ends[shard] = (entry.end, hi)
        return entry

    def staged(self) -> bool:
        """Whether there are staged entries that are not published yet. Loop thread only."""
        return self._next_lsn > self.lane.head + 1

    def publish(self, entries: Sequence[Entry]) -> None:
        """Make staged entries readable and fit to be sent. Any thread; in order."""
        with self.lock:
            self.version += 1
            for entry in entries:
                self.lane.store(entry)
                self._show(self.lane, entry)
                self._store.cached(entry)
            self._trim()

    def wants(
        self, origin: str, entries: Sequence[WireEntry], bodies: Sequence[Body], pending: int
    ) -> list[Entry]:
        """Turn received entries into those that are new here, given that `pending` is under way."""
        found: list[Entry] = []
        with self.lock:
            lane = self.lanes.get(origin)
            head = max(lane.head if lane else 0, pending)
            deps = lane.deps if lane else _EMPTY
        for wire, body in zip(entries, bodies, strict=True):
            deps = deps if wire.deps is None else wire.deps
            if wire.lsn > head:
                found.append(
                    Entry(
                        wire.lsn,
                        wire.shard,
                        wire.start,
                        wire.count,
                        wire.w,
                        wire.lo,
                        wire.hi,
                        deps,
                        body,
                    )
                )
                head = wire.lsn
        return found

    def receive(self, origin: str, entries: Sequence[Entry], upto: int) -> None:
        """Store entries of another origin and show what may be shown. Any thread; in order."""
        with self.lock:
            lane = self._lane(origin)
            self.version += 1
            for entry in entries:
                if entry.lsn <= lane.head:
                    continue
                if entry.count:
                    view = lane.stream(entry.shard)
                    if entry.start < view.next or entry.lo < view.key or entry.hi < entry.lo:
                        continue  # no honest origin writes this: not ahead of its stream
                    if entry.start > view.next:
                        lane.floor = max(lane.floor, entry.lsn - 1)
                    self._visibility.enqueue(lane, entry)
                    self.greatest = max(self.greatest, entry.hi)
                lane.store(entry)
                self._store.cached(entry)
            lane.head = max(lane.head, upto)
            self._visibility.settle(lane)
            self._trim()

    def _show(self, lane: Lane, entry: Entry) -> None:
        entry.seen = self.version
        if entry.count:
            view = lane.stream(entry.shard)
            view.visible = max(view.visible, entry.end)
            self._touched.add((lane.origin, entry.shard))

    def _trim(self) -> None:
        now = time.time_ns()
        for origin, shard in self._touched:
            gone = self.lanes[origin].trim(shard, self._limits, now)
            if gone:
                self._store.drop(origin, gone)
        self._touched.clear()

    def expire(self) -> None:
        """Apply the age limit to streams that nothing is written to."""
        with self.lock:
            for origin, lane in self.lanes.items():
                self._touched.update((origin, shard) for shard in lane.streams)
            self._trim()

    def release(self, reachable: Callable[[str, int], bool], now: float, wait: float) -> bool:
        """Show what has been held for `wait` seconds while nobody reachable could have resolved it.

        Args:
            reachable: whether the lane `origin` can still grow beyond its head here.
            now: monotonic seconds.
            wait: seconds.

        Returns:
            Whether anything is still held.
        """
        with self.lock:
            for lane in self._visibility.stalled:
                missing = self._visibility.blocker(lane.held[0].deps) if lane.held else None
                source = missing[0] if missing else lane.origin
                known = self.lanes.get(source)
                if reachable(source, known.head if known else 0):
                    lane.stalled_since = None
                elif lane.stalled_since is None:
                    lane.stalled_since = now
                elif now - lane.stalled_since >= wait:
                    self.version += 1
                    self._visibility.force(lane)
                    self._trim()
                    lane.stalled_since = None
            for lane in self.lanes.values():
                if not lane.held and not lane.ready:
                    lane.stalled_since = None
            return bool(self._visibility.stalled)

    def uncovered(self) -> bool:
        """Whether the own watermark is not yet past all that the own lane holds. Any thread, no lock."""
        lane = self.lane
        return any(view.key >= lane.w for view in list(lane.streams.values()))  # another may grow meanwhile

    def rows(self) -> list[LaneRow]:
        """Return what this node holds of each lane; of the newest, if they are more than a record may have."""
        with self.lock:
            lanes = list(self.lanes.values())
            if len(lanes) > MOST:
                lanes = [self.lane, *nlargest(MOST - 1, lanes[1:], key=_newest)]
            return [LaneRow(lane.origin, min(lane.floor, lane.head), lane.head) for lane in lanes]

    def heads(self, origin: str) -> tuple[int, dict[int, int]]:
        """Return a lane's head and its shards' positions."""
        with self.lock:
            lane = self.lanes.get(origin)
            if lane is None:
                return 0, {}
            return lane.head, {shard: view.next for shard, view in lane.streams.items()}

    def spans(self, origin: str) -> dict[int, tuple[int, int]]:
        """Return where each shard of a lane begins and ends here."""
        with self.lock:
            lane = self.lanes.get(origin)
            return {shard: (view.earliest, view.next) for shard, view in lane.streams.items()} if lane else {}

    def advertise(self, origin: str, shards: dict[int, tuple[int, int]]) -> None:
        """Take note that a peer knows of these beginnings and ends."""
        with self.lock:
            lane = self._lane(origin)
            for shard, (earliest, position) in shards.items():
                view = lane.stream(shard)
                view.born = max(view.born, earliest)
                view.advertised = max(view.advertised, position)

    def _lane(self, origin: str) -> Lane:
        """Return a lane, made if it is heard of for the first time."""
        lane = self.lanes.get(origin)
        if lane is None:
            lane = self.lanes[origin] = Lane(origin)
            lane.heard = time.time_ns()
        return lane

    def outgoing(self, origin: str, after: int, max_bytes: int) -> tuple[list[Entry], int]:
        """Return entries to send, and up to where the lane is covered by them."""
        with self.lock:
            lane = self.lanes.get(origin)
            return lane.after(after, max_bytes) if lane else ([], 0)

    def body_of(self, entry: Entry) -> Body | None:
        """Return an entry's body, from disk if need be; None once it was trimmed."""
        body = entry.body
        return body if body is not None or not entry.live else self._store.body(entry)

    def newer(self, known: Mapping[tuple[str, int], int]) -> bool:
        """Tell whether a stream (origin, shard) has visible events past its known position."""
        with self.lock:
            for origin, lane in self.lanes.items():
                for shard, view in lane.streams.items():
                    if view.visible > known.get((origin, shard), 0):
                        return True
        return False

    def view(self, origin: str, shard: int) -> StreamView | None:
        """Return a stream's view, or None. Hold the lock while looking at it."""
        lane = self.lanes.get(origin)
        return lane.streams.get(shard) if lane else None
