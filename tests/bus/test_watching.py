"""Stats, health, observers, and a bus that does nothing."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from typing import Any

import anyio
import pytest
from bus_lab import Blocked, Lab, check_identity, in_thread, lab

import netcore
from netcore import BatchConfig, EventBus, FatalAdapterError, TransientAdapterError, hookimpl

pytestmark = pytest.mark.anyio


class Observer:
    """Notes every hook's arguments, and the thread it was called on."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.threads: set[int] = set()

    def note(self, *args: Any) -> None:
        """Note a call under its caller's name."""
        self.calls.append((inspect.stack()[1].function, args))
        self.threads.add(threading.get_ident())

    def of(self, hook: str) -> list[tuple[Any, ...]]:
        """List the arguments of one hook's calls."""
        return [args for name, args in self.calls if name == hook]

    @hookimpl
    def netcore_bus_opened(self, bus: Any) -> None:
        self.note(bus)

    @hookimpl
    def netcore_batch_dispatched(self, bus: Any, shard: int, count: int, seconds: float) -> None:
        self.note(bus, shard, count, seconds)

    @hookimpl
    def netcore_dead_letter(self, bus: Any, shard: int, ts: int, payload: bytes, error: Exception) -> None:
        self.note(bus, shard, ts, payload, error)

    @hookimpl
    def netcore_shards_changed(self, bus: Any, added: list[int], removed: list[int], reason: str) -> None:
        self.note(bus, list(added), list(removed), reason)

    @hookimpl
    def netcore_bus_closed(self, bus: Any, report: Any) -> None:
        self.note(bus, report)


async def test_observers_are_told_everything_once_with_the_bus() -> None:
    """Each hook with the arguments of its specification, on the loop's thread, in order."""
    observer = Observer()
    error = FatalAdapterError("poison")
    async with lab(shards=2, batch=BatchConfig(max_events=3, max_delay_ms=0), plugins=(observer,)) as it:
        bus = it.bus
        for n in range(10):
            await in_thread(it.bus.ingest_raw, b"%d" % n)
        await it.bus.flush(10)
        it.faulty.fail("append", error)
        shard, ts = it.bus.ingest_raw(b"bad")  # type: ignore[misc]
        await it.bus.flush(10)
        await it.bus.add_shards(1, reason="more")
        await it.bus.remove_shards([0], reason="less")
    report = await it.bus.shutdown()
    assert observer.of("netcore_bus_opened") == [(bus,)]
    batches = observer.of("netcore_batch_dispatched")
    assert sum(count for _, _, count, _ in batches) == 10
    assert {(of, count) for _, of, count, _ in batches} == {(of, count) for of, _, count in it.keeper.batches}
    assert all(seconds >= 0 for *_, seconds in batches)
    assert observer.of("netcore_dead_letter") == [(bus, shard, ts, b"bad", error)]
    assert observer.of("netcore_shards_changed") == [(bus, [2], [], "more"), (bus, [], [0], "less")]
    assert observer.of("netcore_bus_closed") == [(bus, report)]
    assert observer.threads == {threading.get_ident()}
    assert observer.calls[0][0] == "netcore_bus_opened"
    assert observer.calls[-1][0] == "netcore_bus_closed"


async def test_observer_that_raises_is_logged_once_and_harms_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Every hook raises; the bus works, and each hook of the plugin is complained of once."""

    class Sulky:
        @hookimpl
        def netcore_bus_opened(self) -> None:
            raise RuntimeError("not now")

        @hookimpl
        def netcore_batch_dispatched(self) -> None:
            raise RuntimeError("not now")

        @hookimpl
        def netcore_bus_closed(self) -> None:
            raise RuntimeError("not now")

    async with lab(shards=1, batch=BatchConfig(max_events=1, max_delay_ms=0), plugins=(Sulky(),)) as it:
        for n in range(5):
            it.bus.ingest_raw(b"%d" % n)
        await it.bus.flush(10)
    said = [r.getMessage() for r in caplog.records if "failed in netcore_" in r.getMessage()]
    assert len(said) == 3
    assert it.keeper.payloads.total() == 5


async def test_nobody_listens_costs_nothing() -> None:
    """Without an observer of batches the dispatcher has nobody to call."""
    async with lab() as it:
        assert not it.bus._engine.observers.wants_batches


async def test_stats_tell_age_pressure_and_depth() -> None:
    """How full, how old, how many are under way; asking twice changes nothing."""
    async with lab(shards=2, ring_capacity=10, batch=BatchConfig(max_events=2, max_delay_ms=0)) as it:
        held = it.faulty.hold("append", shard=0)
        key = it.key_for(0)
        for n in range(2):
            it.bus.ingest_raw(b"%d" % n, key)
        await held.reached()
        for n in range(5):
            it.bus.ingest_raw(b"ringed%d" % n, key)
        await anyio.sleep(0.03)
        shard = it.shard(0)
        assert (shard.depth, shard.capacity, shard.utilisation, shard.in_flight) == (5, 10, 0.5, 2)
        assert shard.accepted == 7
        assert 25 <= shard.oldest_age_ms < 5000
        assert it.shard(1).oldest_age_ms == 0
        assert it.stats.pressure == 0.5
        assert it.stats.in_flight == 7
        assert it.stats.ingested == it.stats.ingested == 7
        held.release()
        await it.bus.flush(10)
        assert it.shard(0).oldest_age_ms == 0
        assert it.shard(0).batches == it.stats.batches_dispatched == 4
        assert it.stats.pressure == 0


async def test_stats_callable_from_a_thread_and_at_any_time_of_life() -> None:
    """Before open, while it runs, after shutdown; a sick adapter's stats are reported, not raised."""
    it = Lab(shards=1)
    assert it.stats.ingested == 0
    assert not it.stats.lossy
    async with it.bus:
        it.bus.ingest_raw(b"x")
        assert (await in_thread(it.bus.stats)).ingested == 1

        def broken() -> Any:
            raise LookupError("no stats today")

        it.keeper.stats = broken  # type: ignore[method-assign]
        assert it.stats.adapter == {"error": "LookupError: no stats today"}
    assert (await in_thread(it.bus.stats)).dispatched == 1
    check_identity(it.stats)


async def test_stats_of_removed_shards_stay_in_the_totals_under_threads() -> None:
    """Removing shards while another thread reads: totals never shrink."""
    async with lab(shards=4, batch=BatchConfig(max_delay_ms=0)) as it:
        it.bus.ingest_raw_many([b"%d" % n for n in range(1000)])
        await it.bus.flush(10)
        stop = threading.Event()
        seen: list[int] = []

        def watch() -> None:
            while not stop.is_set():
                stats = it.bus.stats()
                seen.append(stats.ingested)

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            for _ in range(30):
                (shard,) = await it.bus.add_shards(1)
                await it.bus.remove_shards([shard])
        finally:
            stop.set()
            thread.join()
        assert set(seen) == {1000}
        assert it.stats.dispatched == 1000


async def test_stats_in_the_middle_of_a_removal_count_the_shard_once() -> None:
    """Between being counted as retired and being gone a shard is in both places."""

    class Watched(dict[int, Any]):
        def pop(self, *args: Any) -> Any:
            seen.append(it.stats)
            gone = super().pop(*args)
            seen.append(it.stats)
            return gone

    seen: list[Any] = []
    async with lab(shards=2) as it:
        it.bus.ingest_raw_many([b"%d" % n for n in range(100)])
        await it.bus.flush(10)
        it.bus._engine.shards = Watched(it.bus._engine.shards)
        await it.bus.remove_shards([0])
        assert [stats.ingested for stats in seen] == [100, 100]
        assert [stats.dispatched for stats in seen] == [100, 100]


async def test_stats_in_the_middle_of_a_drain_wait_for_its_end() -> None:
    """An event that has left the ring and is not yet counted as drained is never missing."""
    async with lab(shards=1, batch=BatchConfig(max_delay_ms=3_600_000)) as it:
        for n in range(3):
            it.bus.ingest_raw(b"%d" % n)
        ring = it.bus._engine.shards[0].ring
        with ring.lock:
            event, ring.entries[:2] = ring.entries[:2], []
            reader = Blocked(it.bus.stats)
            time.sleep(0.03)  # noqa: ASYNC251  # long enough to read, were nothing in the way
            ring.entries[:0] = event
        reader.thread.join(5)
        assert reader.result.ingested == 3


async def test_lossy_only_when_something_is_lost() -> None:
    """Evictions, refusals and dead letters are not losses: each has its own counter."""
    async with lab(shards=1, ring_capacity=1) as it:
        it.faulty.fail("append", FatalAdapterError("x"))
        for n in range(5):
            it.bus.ingest_raw(b"%d" % n)
        await it.bus.flush(10)
    report = await it.bus.shutdown()
    assert report.evicted == 4
    assert report.dead_lettered == 1
    assert not report.lossy
    check_identity(report)


async def test_health_of_a_sick_adapter_is_an_answer() -> None:
    """It raises for nothing, and waits for nobody longer than the time-out."""
    async with lab(adapter_timeout_ms=50) as it:
        assert (await it.bus.health()).ok
        it.faulty.fail("health", TransientAdapterError("away"))
        assert (await it.bus.health()).reason == "TransientAdapterError: away"
        held = it.faulty.hold("health")
        begun = time.monotonic()
        health = await it.bus.health()
        assert not health.ok
        assert time.monotonic() - begun < 2
        held.release()


async def test_closed_error_says_what_the_bus_is() -> None:
    """The same words in health, and in what calls raise."""
    it = Lab()
    assert not (await it.bus.health()).ok
    async with it.bus:
        pass
    with pytest.raises(netcore.ClosedError, match="build another"):
        it.bus.ingest_raw(b"x")


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_idle_bus_wakes_the_loop_for_the_clock_alone() -> None:
    """Eight idle shards for a second and a half: only the clock's looks, one every 150 ms."""
    async with EventBus(netcore.EventBusConfig(shards=8)) as bus:
        bus.ingest_raw(b"x")
        await bus.flush(10)
        loop: Any = asyncio.get_running_loop()
        turns = 0
        run_once = loop._run_once

        def counted() -> None:
            nonlocal turns
            turns += 1
            run_once()

        loop._run_once = counted
        try:
            await asyncio.sleep(1.5)
        finally:
            del loop._run_once
        assert 5 <= turns <= 10 + 6  # the timer; its callback runs in the turn that it ends


@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_idle_bus_on_trio_schedules_tasks_for_the_clock_alone() -> None:
    """The same, counted by trio's own instrument."""
    import trio

    class Count(trio.abc.Instrument):
        steps = 0

        def before_task_step(self, task: Any) -> None:
            self.steps += 1

    async with EventBus(netcore.EventBusConfig(shards=8)) as bus:
        bus.ingest_raw(b"x")
        await bus.flush(10)
        count = Count()
        trio.lowlevel.add_instrument(count)
        await trio.sleep(1.5)
        trio.lowlevel.remove_instrument(count)
        assert 5 <= count.steps <= 10 + 6
