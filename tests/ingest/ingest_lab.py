"""Rings, router and producer without a bus; and a way to interrupt a producer in mid-push."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from netcore.builtin.backpressure import DropNewestPolicy
from netcore.contracts.policies import BackpressurePolicy
from netcore.errors import ClosedError
from netcore.events import IndexedEvent, new_indexed
from netcore.ingest.clock import Clock
from netcore.ingest.producer import Producer
from netcore.ingest.ring import Columns, Ring
from netcore.ingest.router import Router, add_shards, remove_shards, spread


def events_of(ring: Ring, columns: Columns | None = None) -> list[IndexedEvent]:
    """Return what is in a ring, or what left it as `columns`, as events."""
    if columns is None:
        items = ring.entries[ring.start :]
        columns = Columns(items[::2], items[1::2])
    return [
        new_indexed(0, ring.shard, ts, raw) for ts, raw in zip(columns.stamps, columns.payloads, strict=True)
    ]


class Interruptible(list[Any]):
    """Lets somebody else run before and after a producer's push: what another thread could do.

    Not while the ring's lock is held: whoever else wanted something would wait then.
    """

    ring: Ring
    interrupt: Callable[[str], None] = staticmethod(lambda where: None)

    def __iadd__(self, pair: Iterable[Any]) -> Interruptible:  # type: ignore[override, misc]
        self.extend(pair)
        return self

    def extend(self, pair: Iterable[Any]) -> None:
        """Push, with an interruption on either side."""
        alone = not self.ring.lock.locked()
        if alone:
            self.interrupt("before append")
        super().extend(pair)
        if alone:
            self.interrupt("after append")


class Watched(Ring):
    """A ring that remembers what it drained and evicted, and its wake-ups."""

    __slots__ = ("asleep_for", "gone", "wakes", "went")

    def __init__(self, shard: int, capacity: int) -> None:
        self.wakes = 0
        self.went: list[IndexedEvent] = []
        self.gone: list[IndexedEvent] = []
        self.asleep_for: int | None = None
        super().__init__(shard, capacity, wake=self.note_wake, moved=int)
        entries = Interruptible()
        entries.ring = self
        self.entries = entries  # type: ignore[misc]

    def note_wake(self) -> None:
        """Stand for the worker's signal."""
        self.wakes += 1
        self.asleep_for = None

    def evict(self) -> None:
        """Remember what is thrown out."""
        self.gone.append(events_of(self)[0])
        super().evict()

    def drain(self, most: int) -> None:
        """Take as a worker does, and remember it."""
        self.awake()
        self.asleep_for = None
        self.went += events_of(self, self.take(most))

    def sleep(self, fill: int | None) -> None:
        """Doze as a worker does."""
        if self.asleep_for is None and self.doze(fill):
            self.asleep_for = 0 if fill is None else min(fill, self.capacity - 1)


class Bench:
    """A producer in front of watched rings."""

    def __init__(self, rings: int, capacity: int, policy: BackpressurePolicy | None = None) -> None:
        self.capacity = capacity
        self.router = Router(Clock())
        self.producer = Producer(self.router, policy or DropNewestPolicy(), self.refusal)
        self.rings = {shard: Watched(shard, capacity) for shard in range(rings)}
        self.left: list[Watched] = []
        self.router.install(spread(list(self.rings)), dict(self.rings))

    @staticmethod
    def refusal() -> ClosedError:
        """Word the refusal."""
        return ClosedError("this bench is closed")

    @property
    def all_rings(self) -> list[Watched]:
        """Every ring there ever was."""
        return [*self.rings.values(), *self.left]

    def close(self) -> None:
        """Refuse from now on, as a shutdown does."""
        self.router.close()
        for ring in self.rings.values():
            ring.seal()

    def add(self) -> None:
        """Add a ring, as `add_shards` does."""
        shard = len(self.rings) + len(self.left)
        fresh = Watched(shard, self.capacity)
        for ring in self.rings.values():
            ring.renew_gate()
        self.rings[shard] = fresh
        self.router.install(add_shards(self.router.table[1], [shard]), dict(self.rings))

    def remove(self, shard: int) -> None:
        """Remove a ring, as `remove_shards` does, but for its drain."""
        ring = self.rings.pop(shard)
        self.left.append(ring)
        self.router.install(remove_shards(self.router.table[1], [shard]), dict(self.rings))
        ring.seal()

    def ring_of(self, key: str) -> Any:
        """Return the ring that a key leads to now."""
        from netcore.ingest.payloads import key_hash
        from netcore.ingest.router import MASK

        return self.router.routes[key_hash(key) & MASK][0].ring
