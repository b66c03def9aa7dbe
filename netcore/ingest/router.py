"""Which shard an event goes to: a fixed table of 16,384 slots, assigned explicitly.

Source: the hash slots of Redis Cluster. Balancing by count keeps shards within one slot of each
other; assigning slots at random would leave them 25 % apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, TypeAlias

from netcore.ingest.clock import Clock
from netcore.ingest.ring import Gate, Ring

__all__ = ["SLOTS", "Router", "add_shards", "remove_shards", "spread"]

SLOTS: Final = 16_384
MASK: Final = SLOTS - 1
STRIDE: Final = 10_127
"""Odd, so that its multiples visit every slot once; near the golden section of the table, so that
slots taken one after the other lie far apart."""

Owners: TypeAlias = list[int]
"""The shard id that owns each slot."""

Route: TypeAlias = tuple[Gate, list[Any], int]
"""What a push needs of its slot, resolved beforehand: gate, entries, shard id."""


def spread(shards: list[int]) -> Owners:
    """Assign the slots of a new bus: neighbours alternate, counts differ by at most one."""
    return [shards[slot % len(shards)] for slot in range(SLOTS)]


def _quotas(owners: Owners, survivors: list[int]) -> dict[int, int]:
    """How many slots each survivor should have; who has most now keeps the odd ones."""
    held = dict.fromkeys(survivors, 0)
    for owner in owners:
        if owner in held:
            held[owner] += 1
    share, odd = divmod(SLOTS, len(survivors))
    largest_first = sorted(survivors, key=lambda shard: (-held[shard], shard))
    return {shard: share + (rank < odd) for rank, shard in enumerate(largest_first)}


def add_shards(owners: Owners, added: Iterable[int]) -> Owners:
    """Move the fewest slots that give each added shard its even share; taken evenly from all."""
    present = sorted(set(owners))
    new = list(added)
    quotas = _quotas(owners, present + new)
    return _reassign(owners, quotas, movable=lambda owner, excess: excess > 0)


def remove_shards(owners: Owners, removed: Iterable[int]) -> Owners:
    """Move the slots of the removed shards, and only those, evenly to the others."""
    gone = set(removed)
    quotas = _quotas(owners, sorted(set(owners) - gone))
    return _reassign(owners, quotas, movable=lambda owner, excess: owner in gone)


def _reassign(owners: Owners, quotas: dict[int, int], movable: Callable[[int, int], bool]) -> Owners:
    """Give every slot that its owner must part with to the shard furthest below its quota."""
    held = dict.fromkeys([*quotas, *owners], 0)
    for owner in owners:
        held[owner] += 1
    excess = {shard: count - quotas.get(shard, 0) for shard, count in held.items()}
    loose: list[int] = []
    for step in range(SLOTS):
        slot = step * STRIDE & MASK
        owner = owners[slot]
        if movable(owner, excess[owner]):
            excess[owner] -= 1
            loose.append(slot)
    result = list(owners)
    needy = [(shard, -left) for shard, left in sorted(excess.items()) if left < 0 and shard in quotas]
    takers = [shard for shard, need in needy for _ in range(need)]
    for slot, shard in zip(loose, takers, strict=True):
        result[slot] = shard
    return result


class Router:
    """The slot table as producers use it. Its tables are replaced as a whole, never changed.

    Args:
        clock: draws the timestamps.

    Attributes:
        routes: what a push needs, by slot.
        table: (present gate by shard id, owning shard's id by slot), of one moment.
        moved_late: called, with no lock held, when a worker drained an event from a
            ring that its key had already left (`scaling.resharding` keeps its order).
    """

    __slots__ = ("clock", "moved_late", "routes", "table")

    def __init__(self, clock: Clock) -> None:
        self.clock: Final = clock
        self.moved_late: Callable[[Ring, int], None] = _ignore
        self.routes: list[Route] = []
        self.table: tuple[dict[int, Gate], Owners] = ({}, [])
        self.close()

    def close(self) -> None:
        """Lead every slot to a sealed ring, so that producers learn that the bus is not open."""
        nowhere = Ring(-1, 1, wake=int, moved=int)
        nowhere.seal()
        self.install([-1] * SLOTS, {-1: nowhere})

    def install(self, owners: Owners, rings: dict[int, Ring]) -> None:
        """Lead every slot to its owner's present gate."""
        by_shard = {shard: (ring.gate, ring.entries, shard) for shard, ring in rings.items()}
        routes = [by_shard[owner] for owner in owners]
        self.table = ({shard: ring.gate for shard, ring in rings.items()}, owners)
        self.routes = routes


def _ignore(donor: Ring, route: int) -> None:
    """Nothing depends on the order yet: the bus has never been resharded."""
