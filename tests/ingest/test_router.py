"""The slot table: balance, stability, affinity."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from netcore.ingest.clock import Clock
from netcore.ingest.payloads import key_hash, route_hash
from netcore.ingest.ring import Ring
from netcore.ingest.router import MASK, SLOTS, Router, add_shards, remove_shards, spread

SIZES = st.integers(1, 64)


def is_even(owners: list[int], shards: list[int]) -> bool:
    """Whether the shards own all slots, and as many as each other, give or take one."""
    counts = Counter(owners)
    return set(counts) == set(shards) and max(counts.values()) - min(counts.values()) <= 1


def moves(before: list[int], after: list[int]) -> list[tuple[int, int]]:
    """List (old owner, new owner) of each slot that changed hands."""
    return [(old, new) for old, new in zip(before, after, strict=True) if old != new]


@given(SIZES)
def test_spread_any_count_is_balanced(count: int) -> None:
    """A new bus's shards own equal numbers of slots."""
    assert is_even(spread(list(range(count))), list(range(count)))


@given(SIZES, st.integers(1, 16))
def test_add_shards_moves_only_their_share_to_the_new_ones(count: int, added: int) -> None:
    """Added shards get 1/n each, taken evenly; no slot moves between the old ones."""
    before = spread(list(range(count)))
    new = list(range(count, count + added))
    after = add_shards(before, new)
    assert is_even(after, list(range(count + added)))
    moved = moves(before, after)
    assert all(owner in new for _, owner in moved)
    assert abs(len(moved) - SLOTS * added / (count + added)) <= added
    given_away = Counter(old for old, _ in moved)
    assert max(given_away.values()) - min(given_away.get(shard, 0) for shard in range(count)) <= 2


@given(st.integers(2, 64), st.data())
def test_remove_shards_moves_only_what_they_owned(count: int, data: st.DataObject) -> None:
    """Survivors keep every slot and share the others evenly."""
    gone = data.draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=count - 1))
    before = spread(list(range(count)))
    after = remove_shards(before, gone)
    left = [shard for shard in range(count) if shard not in gone]
    assert is_even(after, left)
    assert all(old in gone for old, _ in moves(before, after))


@given(st.lists(st.booleans(), max_size=12), st.data())
def test_any_series_of_steps_stays_balanced_and_stable(steps: list[bool], data: st.DataObject) -> None:
    """Balance does not wear off, and each step moves only slots of those who come or go."""
    shards = [0, 1, 2]
    owners = spread(shards)
    fresh = 3
    for grow in steps:
        if grow or len(shards) == 1:
            after = add_shards(owners, [fresh])
            assert {new for _, new in moves(owners, after)} == {fresh}
            shards.append(fresh)
            fresh += 1
        else:
            gone = data.draw(st.sampled_from(shards))
            after = remove_shards(owners, [gone])
            assert {old for old, _ in moves(owners, after)} == {gone}
            shards.remove(gone)
        owners = after
        assert is_even(owners, shards)


def test_add_shards_many_keys_moves_about_one_nth_of_them() -> None:
    """Of 20,000 keys a ninth shard gets a ninth, and the others' keys stay where they are."""
    before = spread(list(range(8)))
    after = add_shards(before, [8])
    slots = [key_hash(f"user-{n}") & MASK for n in range(20_000)]
    moved = [slot for slot in slots if before[slot] != after[slot]]
    assert all(after[slot] == 8 for slot in moved)
    assert 0.095 < len(moved) / len(slots) < 0.127


def test_route_hash_is_the_same_in_another_process() -> None:
    """Routes depend on the bytes alone, not on the process' hash seed; text routes as its UTF-8."""
    code = (
        "from netcore.ingest.payloads import key_hash, route_hash\n"
        "print(key_hash('caf\\xe9'), route_hash(b'x' * 500))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.split() == [str(key_hash("café".encode())), str(route_hash(b"x" * 500))]
    assert route_hash(b"") == 0x2D06800538D394C2  # the published test vector of XXH3_64bits


def test_router_installed_leads_each_slot_to_its_owners_gate() -> None:
    """The two tables agree with each other and with the rings."""
    rings = {shard: Ring(shard, 8, wake=int, moved=int) for shard in (3, 5)}
    router = Router(Clock())
    router.install(spread([3, 5]), rings)
    gates, owners = router.table
    for slot, (gate, entries, shard) in enumerate(router.routes):
        assert shard == owners[slot]
        assert gate is rings[shard].gate is gates[shard]
        assert entries is rings[shard].entries


def test_router_closed_leads_to_a_sealed_ring() -> None:
    """Before open and after shutdown every slot refuses at its gate."""
    router = Router(Clock())
    assert len(router.routes) == SLOTS
    assert all(gate.limit == 0 and gate.ring.sealed for gate, *_ in router.routes)
