"""Backpressure in a whole bus: who waits, who is refused, and what a cancelled `put` leaves behind."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.to_thread
import pytest
from bus_lab import Blocked, Lab, check_identity, in_thread, lab, until

from netcore import (
    BackpressureError,
    BackpressurePolicy,
    BatchConfig,
    ConfigError,
    FullShard,
    Verdict,
    hookimpl,
)

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def full(capacity: int = 2, **settings: Any) -> AsyncIterator[tuple[Lab, Any]]:
    """A bus with one event in flight, held, and one full ring; with the fault that holds it."""
    settings.setdefault("backpressure", "block")
    async with lab(
        shards=1, ring_capacity=capacity, batch=BatchConfig(max_events=1, max_delay_ms=0), **settings
    ) as it:
        held = it.faulty.hold("append", times=None)
        it.bus.ingest_raw(b"first")
        await held.reached()
        for n in range(capacity):
            it.bus.ingest_raw(b"%d" % n)
        yield it, held


async def test_block_on_the_loops_own_thread_raises_and_names_put() -> None:
    """It would wait for itself."""
    async with full() as (it, held):
        with pytest.raises(BackpressureError, match=r"await bus\.put"):
            it.bus.ingest_raw(b"x")
        summary = it.bus.ingest_raw_many([b"x", b"y"])
        assert (summary.accepted, summary.rejected) == (0, [0, 1])
        assert it.stats.rejected == 3
        held.end()
    assert b"x" not in it.keeper.payloads


async def test_block_from_a_thread_waits_for_room() -> None:
    """Until the adapter takes what is before it; no event is lost."""
    async with full() as (it, held):
        blocked = Blocked(it.bus.ingest_raw, b"waited")
        await until(lambda: it.bus._engine.shards[0].ring.waiters)
        assert not blocked.done
        held.end()
        await until(lambda: blocked.done)
        assert blocked.result is not None
        await it.bus.flush(10)
        assert blocked.result in it.keeper.pairs
        assert it.stats.dropped == 0


async def test_put_waits_in_turn_together_with_threads() -> None:
    """First come, first served, whoever they are."""
    async with full(capacity=1) as (it, held), anyio.create_task_group() as group:
        ring = it.bus._engine.shards[0].ring
        blocked = []
        for n in range(6):
            if n % 2:
                blocked.append(Blocked(it.bus.ingest_raw, b"w%d" % n))
            else:
                group.start_soon(it.bus.put, b"w%d" % n)
            await until(lambda: len(ring.waiters) == n + 1)  # noqa: B023
        held.end()
        await until(lambda: all(b.done for b in blocked))
        await until(lambda: it.stats.ingested == 8)
        await it.bus.flush(10)
    assert [e.raw for e in it.keeper.kept[0]] == [b"first", b"0"] + [b"w%d" % n for n in range(6)]


async def test_put_cancelled_while_it_waits_has_not_accepted() -> None:
    """It leaves the queue; those behind it are served."""
    async with full(capacity=1) as (it, held), anyio.create_task_group() as group:
        ring = it.bus._engine.shards[0].ring
        scopes = []

        async def put(raw: bytes) -> None:
            with anyio.CancelScope() as scope:
                scopes.append(scope)
                await it.bus.put(raw)

        for n in range(3):
            group.start_soon(put, b"p%d" % n)
            await until(lambda: len(ring.waiters) == n + 1)  # noqa: B023
        scopes[1].cancel()
        await until(lambda: len(ring.waiters) == 2)
        held.end()
        await until(lambda: it.stats.ingested == 4)
        await it.bus.flush(10)
    assert it.keeper.payloads == {b"first": 1, b"0": 1, b"p0": 1, b"p2": 1}
    check_identity(it.stats)


async def test_put_cancelled_when_room_was_granted_already_passes_it_on() -> None:
    """The awkward moment: the room is set aside, the task has not run yet, and is cancelled."""
    async with full(capacity=1) as (it, held), anyio.create_task_group() as group:
        ring = it.bus._engine.shards[0].ring
        scope = anyio.CancelScope()

        async def put() -> None:
            with scope:
                await it.bus.put(b"cancelled")

        group.start_soon(put)
        await until(lambda: len(ring.waiters) == 1)
        behind = Blocked(it.bus.ingest_raw, b"behind")
        await until(lambda: len(ring.waiters) == 2)
        ring.take(1)  # the room appears, and is granted to the first in the queue
        assert ring.reserved == 1
        scope.cancel()  # before the task had its turn
        await until(lambda: behind.done)
        assert behind.result is not None
        assert ring.entries[ring.start + 1 :: 2] == [b"behind"]
        assert (ring.reserved, len(ring.waiters)) == (0, 0)
        # What was taken by hand counts as in flight for good: give it back to the books.
        it.bus._engine.shards[0].lost += 1
        held.end()
        await it.bus.flush(10)
    assert it.keeper.payloads == {b"first": 1, b"behind": 1}


async def test_put_cancelled_before_it_starts_has_not_accepted_under_a_full_ring() -> None:
    """In a scope that is cancelled already it does not get past its first wait."""
    async with full(capacity=1) as (it, held):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await it.bus.put(b"x")
        assert scope.cancelled_caught
        assert not it.bus._engine.shards[0].ring.waiters
        held.end()
    assert it.keeper.payloads == {b"first": 1, b"0": 1}


@pytest.mark.parametrize("policy", ["drop_oldest", "drop_newest", "sample"])
async def test_put_under_other_policies_acts_as_ingest(policy: str) -> None:
    """It does not wait: it evicts, raises, or is discarded."""
    async with full(backpressure=policy) as (it, held):
        outcomes: list[Any] = []
        for n in range(3):
            try:
                outcomes.append(await it.bus.put(b"new%d" % n))
            except BackpressureError as error:
                outcomes.append(type(error))
        stats = it.stats
        if policy == "drop_oldest":
            assert None not in outcomes
            assert stats.evicted == 3
        elif policy == "drop_newest":
            assert outcomes == [BackpressureError] * 3
            assert stats.rejected == 3
        else:
            assert [outcome is None for outcome in outcomes] == [False, True, True]
            assert (stats.evicted, stats.discarded) == (1, 2)
        assert stats.pressure == 1.0
        assert stats.shards[0].full_hits == 3
        held.end()
    check_identity(it.stats)


async def test_put_moved_to_another_shard_while_it_waits_enters_there() -> None:
    """Its shard leaves; its key's new home takes it."""
    async with lab(
        shards=2, ring_capacity=1, backpressure="block", batch=BatchConfig(max_events=1, max_delay_ms=0)
    ) as it:
        held = it.faulty.hold("append", shard=0, times=None)
        key = it.key_for(0)
        it.bus.ingest_raw(b"flight", key)
        await held.reached()
        it.bus.ingest_raw(b"ringed", key)
        results: list[Any] = []

        async def put() -> None:
            results.append(await it.bus.put(b"moved", key))

        async with anyio.create_task_group() as group:
            group.start_soon(put)
            await until(lambda: it.bus._engine.shards[0].ring.waiters)
            group.start_soon(it.bus.remove_shards, [0])
            await until(lambda: results)
            assert results[0][0] == 1
            held.end()
        await it.bus.flush(10)
    assert it.keeper.payloads == {b"flight": 1, b"ringed": 1, b"moved": 1}


class Custom(BackpressurePolicy):
    """Takes what is marked as urgent, and drops the rest."""

    name = "custom"

    def __init__(self) -> None:
        self.seen: list[FullShard] = []

    def on_full(self, shard: FullShard, /) -> Verdict:
        self.seen.append(shard)
        return Verdict.EVICT if shard.newcomer.startswith(b"urgent") else Verdict.DISCARD


@hookimpl
def offers(self: Any) -> list[type[BackpressurePolicy]]:
    """Offer it by name."""
    return [Custom]


Plugin = type("Plugin", (), {"netcore_backpressure_policies": offers})


@pytest.mark.parametrize("by_name", [True, False])
async def test_custom_policy_by_name_and_as_an_object_decides(by_name: bool) -> None:
    """A team's own rule, on the same contract as the built-in ones."""
    setting: Any = "custom" if by_name else Custom()
    async with full(backpressure=setting, plugins=(Plugin(),)) as (it, held):
        assert it.bus.ingest_raw(b"dull") is None
        assert await in_thread(it.bus.ingest_raw, b"urgent") is not None
        assert (it.stats.evicted, it.stats.discarded) == (1, 1)
        held.end()
    assert it.keeper.payloads == {b"first": 1, b"1": 1, b"urgent": 1}


@pytest.mark.parametrize("setting", [5, None, Custom, object()])
async def test_backpressure_setting_that_is_neither_is_refused(setting: Any) -> None:
    """When the bus is built, naming what was given."""
    with pytest.raises(ConfigError, match="backpressure must be"):
        Lab(backpressure=setting)


async def test_capacity_with_several_threads_is_never_exceeded() -> None:
    """Eight threads at a ring of 100: what is stored and what is evicted add up, and depth stays in bounds."""
    async with lab(shards=1, ring_capacity=100, batch=BatchConfig(max_events=30, max_delay_ms=0)) as it:
        it.faulty.slow("append", 1)
        depths: list[int] = []

        def produce(thread: int) -> int:
            for n in range(1500):
                it.bus.ingest_raw(b"%d:%d" % (thread, n))
                if n % 10 == 0:
                    depths.append(it.shard().depth)
            return 1500

        async with anyio.create_task_group() as group:
            for thread in range(8):
                group.start_soon(in_thread, produce, thread)
        await it.bus.flush(10)
        assert it.stats.ingested == 12_000
        assert max(depths) <= 100
    check_identity(it.stats)
    assert it.keeper.payloads.total() == it.stats.dispatched == len(it.keeper.payloads)
