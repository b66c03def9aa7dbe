"""From which link each lane is taken. I/O thread only."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from net_adapter_mesh.config import MeshConfig
from net_adapter_mesh.gossip import Members
from net_adapter_mesh.lane import Entry
from net_adapter_mesh.link import Link
from net_adapter_mesh.log import Log

__all__ = ["Routing"]

_STALL_BEATS: Final = 0.75
_GAP_WAIT_S: Final = 1.0
_PENALTY_BEATS: Final = 4


class Routing:
    """Chooses one source a lane.

    That is the origin itself if it is linked, else the neighbour nearest to it, else (the origin
    gone) the one that is ahead. A source that makes no progress is left for a while.

    Args:
        log: what is stored.
        members: who holds what, and who is how far.
        links: the live links, by node.
        config: the heartbeat.

    Attributes:
        sources: lane -> link.
        pending: lane -> number up to which entries were handed to the store.
    """

    def __init__(self, log: Log, members: Members, links: dict[str, Link], config: MeshConfig) -> None:
        self._log = log
        self._members = members
        self._links = links
        self._beat = config.heartbeat_ms / 1000
        self._patience = config.discover
        self.sources: dict[str, Link] = {}
        self.pending: dict[str, int] = {}
        self._ends: dict[str, dict[int, int]] = {}  # the same by shard, as positions
        self._moved: dict[str, float] = {}
        self._penalty: dict[tuple[str, str], float] = {}
        self._gap_since: dict[str, float] = {}

    @property
    def restless(self) -> bool:
        """Whether a choice may change by the passing of time alone."""
        return bool(self._moved or self._penalty or self._gap_since)

    def reached(self, origin: str) -> int:
        """Return up to which number a lane is stored, or about to be."""
        return max(self._log.heads(origin)[0], self.pending.get(origin, 0))

    def lost(self, link: Link) -> None:
        """Forget a link."""
        for origin in [origin for origin, source in self.sources.items() if source is link]:
            del self.sources[origin]
        for key in [key for key in self._penalty if key[1] == link.peer]:
            del self._penalty[key]

    def progress(self, origin: str, upto: int) -> None:
        """Take note that entries up to `upto` are on their way into the store."""
        if upto > self.pending.get(origin, 0):
            self.pending[origin] = upto
            self._moved.pop(origin, None)

    def decide(self, now: float) -> list[tuple[str, Link | None, Link | None]]:
        """Return the changes that are due: `(lane, old source, new source)`, and make them."""
        changes: list[tuple[str, Link | None, Link | None]] = []
        for origin in self._members.lanes():
            if origin == self._log.own:
                continue
            old = self.sources.get(origin)
            self._judge(origin, old, now)
            new = self._best(origin, now)
            if new is not None and new is not old:
                self.sources[origin] = new
                self._moved.pop(origin, None)
                changes.append((origin, old, new))
        return changes

    def acceptable(self, origin: str, link: Link, fresh: Sequence[Entry]) -> bool:
        """Tell whether a run may be stored: a hole is not taken while somebody near can fill it."""
        under_way = self._ends.setdefault(origin, {})
        if link.peer != origin:
            _, ends = self._log.heads(origin)
            for shard, end in under_way.items():
                ends[shard] = max(end, ends.get(shard, 0))
            for entry in fresh:
                if entry.count:
                    if entry.start > ends.get(entry.shard, 0) and self._filler(origin, link):
                        self._penalty[origin, link.peer] = time.monotonic() + _PENALTY_BEATS * self._beat
                        self.sources.pop(origin, None)
                        return False
                    ends[entry.shard] = entry.end
        under_way.update((entry.shard, entry.end) for entry in fresh if entry.count)
        return True

    def _filler(self, origin: str, link: Link) -> bool:
        reached = self.reached(origin)
        return any(
            row.floor <= reached < row.head
            for node in self._links
            if node != link.peer and (row := self._members.lane_rows(node).get(origin)) is not None
        )

    def _judge(self, origin: str, source: Link | None, now: float) -> None:
        """Punish a source that delivers nothing for most of a heartbeat though others are ahead."""
        if source is None:
            return
        reached = self.reached(origin)
        ahead = any(
            row.head > reached
            for node in self._links
            if node != source.peer and (row := self._members.lane_rows(node).get(origin)) is not None
        )
        if not ahead:
            self._moved.pop(origin, None)
        elif now - self._moved.setdefault(origin, now) > _STALL_BEATS * self._beat:
            self._penalty[origin, source.peer] = now + _PENALTY_BEATS * self._beat
            self._moved.pop(origin, None)

    def _best(self, origin: str, now: float) -> Link | None:
        reached = self.reached(origin)
        best: tuple[bool, bool, int, bool, int, int, str] | None = None
        for peer in self._links:
            row = self._members.lane_rows(peer).get(origin)
            if row is None and peer != origin:
                continue
            floor, head = (row.floor, row.head) if row else (0, 0)
            until = self._penalty.get((origin, peer), 0.0)
            if 0.0 < until <= now:
                del self._penalty[origin, peer]
            hops = self._members.hops(peer, origin)
            whole = floor <= reached
            rank = (
                until <= now,
                whole,
                0 if whole else -floor,
                hops is not None,
                -(hops or 0),
                head if hops is None else 0,
                peer,
            )
            if best is None or rank > best:
                best = rank
        if best is None or (not best[1] and self._wait_for_better(origin, reached, now)):
            return self.sources.get(origin) if best is not None else None
        self._gap_since.pop(origin, None) if best[1] else None
        if not best[3] and best[5] <= reached:
            return self.sources.get(origin) or self._links[best[6]]
        return self._links[best[6]]

    def _wait_for_better(self, origin: str, reached: int, now: float) -> bool:
        """Whether to wait for a link to somebody who can go on without a hole, for a second at most."""
        if not self._patience:
            return False
        holders = any(
            row.floor <= reached < row.head
            for node in self._members.distances()
            if node not in self._links and node != self._log.own
            and (row := self._members.lane_rows(node).get(origin)) is not None
        )  # fmt: skip
        if not holders:
            return False
        return now - self._gap_since.setdefault(origin, now) < _GAP_WAIT_S
