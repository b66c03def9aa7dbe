"""Who is in the mesh: member records, spread hop by hop, and what follows from them.

Each node describes itself (address, key, links, lanes) under a rising version. A link between two
nodes exists where both list it, so the record of a node that died connects nobody: its neighbours
no longer list it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import msgspec

from net_adapter_mesh.frames import INFINITY, LaneRow, Record

__all__ = ["Members"]

_FORGET_NS = 600 * 10**9
_GREATEST = INFINITY - (1 << 32)  # of versions that leave room for later ones


class Members:
    """The table of records, this node's own among them.

    I/O thread only, except `head`, `snapshot` and `reached`.

    Args:
        own: this node.
        address: under which others may dial it, or "".
        key: its public key, or "".
    """

    def __init__(self, own: str, address: str, key: str) -> None:
        self.own = own
        self.address = address
        self._key = key
        self.records: dict[str, Record] = {}
        self.revision = 0
        """Grows whenever a record says something new."""
        self._reach: dict[str, int] | None = None
        self._around: dict[str, dict[str, int]] = {}
        self._rows: dict[str, tuple[int, dict[str, LaneRow]]] = {}
        self.update([], [])

    def update(self, links: Iterable[str], lanes: list[LaneRow]) -> bool:
        """Renew the own record; tell whether it says anything new."""
        old = self.records.get(self.own)
        names = sorted(set(links))
        lanes = sorted(lanes, key=lambda row: row.origin)
        if old is not None and old.links == names and old.lanes == lanes and old.address == self.address:
            return False
        version = max(time.time_ns(), old.version + 1 if old else 0)
        self.records[self.own] = Record(self.own, version, self.address, self._key, names, lanes)
        self.revision += 1
        if old is None or old.links != names:
            self._reach = None
        return True

    def learn(self, record: Record) -> bool:
        """Take a record heard from somebody; tell whether it is news."""
        if record.node == self.own:
            # From a former life, whose clock was ahead: nobody would listen to this one.
            mine = self.records[self.own]
            if mine.version < record.version < _GREATEST:
                self.records[self.own] = msgspec.structs.replace(mine, version=record.version + 1)
                self.revision += 1
            return False
        old = self.records.get(record.node)
        if old is not None and old.version >= record.version:
            return False
        self.records[record.node] = record
        self.revision += 1
        if old is None or old.links != record.links:
            self._reach = None
        return True

    def lacking(self, known: dict[str, int]) -> list[Record]:
        """Return the records of which the holder of `known` (node -> version) has not the newest."""
        return [record for node, record in self.records.items() if known.get(node, -1) < record.version]

    def distances(self) -> dict[str, int]:
        """Return the hops to each node that can be reached over links both ends list; own is 0."""
        if self._reach is None:
            self._around.clear()
            self._reach = self._spread(self.own, set())
        return self._reach

    def reached(self) -> dict[str, int]:
        """Return what `distances` does; from any thread."""
        return self._spread(self.own, set())

    def hops(self, start: str, target: str) -> int | None:
        """Return the hops between two nodes without passing this one, or None."""
        self.distances()  # renews the caches if links changed
        around = self._around.get(start)
        if around is None:
            around = self._around[start] = self._spread(start, {self.own})
        return around.get(target)

    def _spread(self, start: str, avoid: set[str]) -> dict[str, int]:
        """Return the hops from `start` to whatever is connected with it."""
        links = {node: set(record.links) for node, record in list(self.records.items())}
        reach, edge = {start: 0}, [start]
        while edge:
            following = []
            for node in edge:
                for other in links.get(node, ()):
                    if other not in reach and other not in avoid and node in links.get(other, ()):
                        reach[other] = reach[node] + 1
                        following.append(other)
            edge = following
        return reach

    def lane_rows(self, node: str) -> dict[str, LaneRow]:
        """Return what a node said it holds."""
        record = self.records.get(node)
        if record is None:
            return {}
        known = self._rows.get(node)
        if known is None or known[0] != record.version:
            known = self._rows[node] = (record.version, {row.origin: row for row in record.lanes})
        return known[1]

    def lanes(self) -> set[str]:
        """Return every lane that any reachable node holds."""
        return {
            row.origin
            for node in self.distances()
            if (record := self.records.get(node)) is not None
            for row in record.lanes
        }

    def can_grow(self, origin: str, head: int) -> bool:
        """Tell whether more of a lane than `head` may still come: its origin or a holder is reachable."""
        reach = self.distances()
        if origin in reach and origin != self.own:
            return True
        return any(
            node != self.own and (row := self.lane_rows(node).get(origin)) is not None and row.head > head
            for node in reach
        )

    def stored_by(self, origin: str) -> dict[str, int]:
        """Return, per other node, how far it said to hold a lane."""
        return {
            node: row.head
            for node in self.records
            if node != self.own and (row := self.lane_rows(node).get(origin)) is not None
        }

    def forget(self, now_ns: int) -> None:
        """Drop the records of nodes that have been out of reach for long."""
        reach = self.distances()
        for node in list(self.records):
            if node not in reach and self.records[node].version < now_ns - _FORGET_NS:
                del self.records[node]
                self._rows.pop(node, None)
                self._reach = None

    def head(self, origin: str) -> int:
        """Return how far members are said to hold a lane; from any thread."""
        lanes = (row for record in self.snapshot() for row in record.lanes if row.origin == origin)
        return max((row.head for row in lanes), default=0)

    def snapshot(self) -> list[Record]:
        """Return the records; from any thread."""
        return list(self.records.copy().values())
