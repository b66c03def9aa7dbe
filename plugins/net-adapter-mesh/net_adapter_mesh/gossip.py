"""Who is in the mesh: member records, spread hop by hop, and what follows from them.

Each node describes itself (address, key, links, lanes) under a rising version. A link between two
nodes exists where both list it, so the record of a node that died connects nobody: its neighbours
no longer list it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

from net_adapter_mesh.frames import LaneRow, Record

__all__ = ["Members"]

_FORGET_NS = 600 * 10**9


class Members:
    """The table of records, this node's own among them. I/O thread only, except `snapshot`.

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
        self._reach: dict[str, int] | None = None
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
        if old is None or old.links != names:
            self._reach = None
        return True

    def learn(self, record: Record) -> bool:
        """Take a record heard from somebody; tell whether it is news."""
        if record.node == self.own:
            return False
        old = self.records.get(record.node)
        if old is not None and old.version >= record.version:
            return False
        self.records[record.node] = record
        if old is None or old.links != record.links:
            self._reach = None
        return True

    def lacking(self, known: dict[str, int]) -> list[Record]:
        """Return the records of which the holder of `known` (node -> version) has not the newest."""
        return [record for node, record in self.records.items() if known.get(node, -1) < record.version]

    def distances(self) -> dict[str, int]:
        """Return the hops to each node that can be reached over links both ends list; own is 0."""
        if self._reach is None:
            links = {node: set(record.links) for node, record in self.records.items()}
            reach = {self.own: 0}
            edge = [self.own]
            while edge:
                following = []
                for node in edge:
                    for other in links.get(node, ()):
                        if other not in reach and node in links.get(other, ()):
                            reach[other] = reach[node] + 1
                            following.append(other)
                edge = following
            self._reach = reach
        return self._reach

    def hops(self, start: str, target: str) -> int | None:
        """Return the hops between two nodes without passing this one, or None."""
        if start == target:
            return 0
        links = {node: set(record.links) for node, record in self.records.items()}
        seen, edge, count = {self.own, start}, [start], 0
        while edge:
            count += 1
            following = []
            for node in edge:
                for other in links.get(node, ()):
                    if other not in seen and node in links.get(other, ()):
                        if other == target:
                            return count
                        seen.add(other)
                        following.append(other)
            edge = following
        return None

    def lane_rows(self, node: str) -> dict[str, LaneRow]:
        """Return what a node said it holds."""
        record = self.records.get(node)
        return {row.origin: row for row in record.lanes} if record else {}

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
            row.origin == origin and row.head > head
            for node in reach
            if node != self.own and (record := self.records.get(node)) is not None
            for row in record.lanes
        )

    def stored_by(self, origin: str) -> dict[str, int]:
        """Return, per other node, how far it said to hold a lane."""
        return {
            node: row.head
            for node, record in self.records.items()
            if node != self.own
            for row in record.lanes
            if row.origin == origin
        }

    def forget(self, now_ns: int) -> None:
        """Drop the records of nodes that have been out of reach for long."""
        reach = self.distances()
        for node in list(self.records):
            if node not in reach and self.records[node].version < now_ns - _FORGET_NS:
                del self.records[node]

    def snapshot(self) -> list[Record]:
        """Return the records; from any thread."""
        return list(self.records.copy().values())
