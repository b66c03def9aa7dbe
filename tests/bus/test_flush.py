"""Flush: a barrier for exactly what was accepted before the call."""

from __future__ import annotations

import threading
import time
from typing import Any

import anyio
import pytest
from bus_lab import lab, until

from netcore import (
    BackpressureError,
    BatchConfig,
    ClosedError,
    EventBusStats,
    FatalAdapterError,
    FlushTimeoutError,
    TransientAdapterError,
)

pytestmark = pytest.mark.anyio
FIFTY: dict[str, Any] = {"shards": 1, "batch": BatchConfig(max_events=50, max_delay_ms=0)}


class Flush:
    """A flush in a task of its own."""

    def __init__(self, bus: Any, timeout: float | None = None) -> None:
        self.bus, self.timeout = bus, timeout
        self.done = False
        self.error: BaseException | None = None
        self.stats: EventBusStats | None = None

    async def run(self) -> None:
        """Flush, and note when it is done."""
        try:
            await self.bus.flush(self.timeout)
        except Exception as error:
            self.error = error
        self.stats = self.bus.stats()
        self.done = True


async def test_flush_evicted_behind_and_in_flight_waits_for_what_is_in_flight() -> None:
    """Fifty in flight, fifty ringed, a hundred newcomers that evict: not done, the fifty in flight remain."""
    async with lab(ring_capacity=50, **FIFTY) as it, anyio.create_task_group() as group:
        held = it.faulty.hold("append")
        for n in range(50):
            it.bus.ingest_raw(b"flight%d" % n)
        await held.reached()
        for n in range(50):
            it.bus.ingest_raw(b"ring%d" % n)
        assert it.stats.in_flight == 100
        flush = Flush(it.bus)
        group.start_soon(flush.run)
        await until(lambda: it.bus._engine.shards[0].ring.marks)
        again = it.faulty.hold("append")
        for n in range(100):
            it.bus.ingest_raw(b"new%d" % n)
        assert it.stats.evicted == 100
        await anyio.wait_all_tasks_blocked()
        assert not flush.done
        held.release()
        await until(lambda: flush.done)
        assert flush.error is None
        assert flush.stats is not None
        assert (flush.stats.dispatched, flush.stats.in_flight) == (50, 50)  # later traffic is not waited for
        again.release()


async def test_flush_later_traffic_neither_hastens_nor_delays_it() -> None:
    """With producers that never stop it returns, and what came before it is stored by then."""
    async with lab(shards=2, batch=BatchConfig(max_events=20, max_delay_ms=0)) as it:
        it.faulty.slow("append", 2)
        stop = threading.Event()

        def produce() -> None:
            n = 0
            while not stop.is_set():
                it.bus.ingest_raw(b"%d" % (n := n + 1))
                if n % 200 == 0:
                    time.sleep(0.001)

        thread = threading.Thread(target=produce)
        thread.start()
        try:
            await until(lambda: it.stats.ingested > 500)
            for _ in range(5):
                before = [it.bus.ingest_raw(b"mine%d" % n) for n in range(20)]
                await it.bus.flush(10)
                assert set(before) <= it.keeper.pairs
        finally:
            stop.set()
            thread.join()


async def test_flush_of_earlier_refusals_is_not_short() -> None:
    """What was rejected before does not count towards what must leave."""
    async with lab(ring_capacity=5, backpressure="drop_newest", **FIFTY) as it:
        held = it.faulty.hold("append")
        it.bus.ingest_raw(b"x")
        await held.reached()
        for n in range(5):
            it.bus.ingest_raw(b"%d" % n)
        for _ in range(20):
            with pytest.raises(BackpressureError):
                it.bus.ingest_raw(b"refused")
        with pytest.raises(FlushTimeoutError, match="shards 0;"):
            await it.bus.flush(0.05)
        held.release()
        await it.bus.flush(10)
        assert it.stats.dispatched == 6


async def test_flush_of_nothing_returns_at_once() -> None:
    """Also with no time at all, and also after everything was evicted or dead-lettered."""
    async with lab(ring_capacity=1, **FIFTY) as it:
        await it.bus.flush(0)
        it.faulty.fail("append", FatalAdapterError("bad"))
        it.bus.ingest_raw(b"bad")
        await it.bus.flush(10)
        assert it.stats.dead_lettered == 1
        await it.bus.flush(0)


async def test_flush_that_gives_up_names_its_shards_and_loses_nothing() -> None:
    """Only those that are behind; a further flush succeeds; no barrier is left behind."""
    async with lab(shards=3, batch=BatchConfig(max_delay_ms=0)) as it:
        faults = [it.faulty.fail("append", TransientAdapterError("x"), times=None, shard=n) for n in (0, 2)]
        for n in range(3):
            it.bus.ingest_raw(b"x", it.key_for(n))
        begun = time.monotonic()
        with pytest.raises(FlushTimeoutError, match=r"not flushed after 0\.1 s: shards 0, 2;") as caught:
            await it.bus.flush(0.1)
        assert time.monotonic() - begun < 5
        assert (caught.value.shards, caught.value.timeout) == ([0, 2], 0.1)
        assert isinstance(caught.value, TimeoutError)
        assert not any(shard.ring.marks for shard in it.bus._engine.shards.values())
        for fault in faults:
            fault.end()
        await it.bus.flush(10)
        assert it.stats.dispatched == 3


async def test_flush_cancelled_leaves_no_barrier() -> None:
    """And harms nothing."""
    async with lab(**FIFTY) as it:
        held = it.faulty.hold("append")
        it.bus.ingest_raw(b"x")
        with anyio.move_on_after(0.05) as scope:
            await it.bus.flush()
        assert scope.cancelled_caught
        assert not it.bus._engine.shards[0].ring.marks
        held.release()
        await it.bus.flush(10)


async def test_flush_several_at_once_each_ends_with_its_own() -> None:
    """The earlier barrier is passed first."""
    async with lab(**FIFTY) as it, anyio.create_task_group() as group:
        first, second = it.faulty.hold("append"), it.faulty.hold("append")
        it.bus.ingest_raw(b"1")
        await first.reached()
        early, late = Flush(it.bus), Flush(it.bus)
        group.start_soon(early.run)
        await until(lambda: len(it.bus._engine.shards[0].ring.marks) == 1)
        it.bus.ingest_raw(b"2")
        group.start_soon(late.run)
        await until(lambda: len(it.bus._engine.shards[0].ring.marks) == 2)
        first.release()
        await until(lambda: early.done)
        await second.reached()
        assert not late.done
        second.release()
        await until(lambda: late.done)
        assert early.error is late.error is None


async def test_flush_during_a_shutdown_that_gives_up_ends() -> None:
    """What is lost is settled: nobody waits for it."""
    async with lab(adapter_timeout_ms=50, **FIFTY) as it, anyio.create_task_group() as group:
        it.faulty.fail("append", TransientAdapterError("x"), times=None)
        it.bus.ingest_raw(b"x")
        flush = Flush(it.bus)
        group.start_soon(flush.run)
        await until(lambda: it.bus._engine.shards[0].ring.marks)
        report = await it.bus.shutdown(0.1)
        assert report.lost == 1
        await until(lambda: flush.done)
        assert flush.error is None or isinstance(flush.error, ClosedError)


async def test_flush_covers_a_shard_that_is_being_removed() -> None:
    """The barrier holds for what a leaving shard still has to store."""
    async with lab(shards=2, batch=BatchConfig(max_delay_ms=0)) as it, anyio.create_task_group() as group:
        held = it.faulty.hold("append", shard=0)
        it.bus.ingest_raw(b"x", it.key_for(0))
        await held.reached()
        flush = Flush(it.bus)
        group.start_soon(flush.run)
        group.start_soon(it.bus.remove_shards, [0])
        await until(lambda: it.shard(0).leaving)
        assert not flush.done
        held.release()
        await until(lambda: flush.done)
        assert flush.error is None
        assert it.keeper.payloads == {b"x": 1}
