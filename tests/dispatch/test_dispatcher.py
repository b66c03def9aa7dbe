"""Getting batches stored: retries, time-outs, late answers, poison, refusals, and who suffers from whom."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import msgspec
import pytest
from bus_lab import Lab, check_identity, lab, until

import netcore
from netcore import (
    AdapterRefusedError,
    BatchConfig,
    FatalAdapterError,
    FlushTimeoutError,
    TransientAdapterError,
)
from netcore._runtime_asyncio import AsyncioRuntime
from netcore.dispatch.batcher import Batcher
from netcore.dispatch.dispatcher import Backoff, Dispatcher

pytestmark = pytest.mark.anyio
SECONDS = Backoff.seconds
ONE: dict[str, Any] = {"shards": 1, "batch": BatchConfig(max_events=10, max_delay_ms=0)}


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry at once: how long the pauses are is tested by itself."""
    monkeypatch.setattr(Backoff, "seconds", lambda self, attempt, longest=False: 0.001)


@pytest.fixture
def real_backoff(quick_retries: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pause as the bus does."""
    monkeypatch.setattr(Backoff, "seconds", SECONDS)


class Poison:
    """Makes an adapter refuse batches that hold certain payloads, as fatal."""

    def __init__(self, it: Lab, *payloads: bytes) -> None:
        self.it, self.payloads = it, set(payloads)
        self.inner = it.keeper.append
        it.keeper.append = self.append  # type: ignore[method-assign]

    async def append(self, batch: Any) -> None:
        """Refuse, or store."""
        if bad := self.payloads & {event.raw for event in batch.events}:
            raise FatalAdapterError(f"cannot store {sorted(bad)}")
        await self.inner(batch)


@pytest.mark.usefixtures("real_backoff")
def test_backoff_any_attempt_lies_in_the_upper_half_of_its_ceiling() -> None:
    """20 ms * 2^k, at most 2 s; a refusal waits as long as the longest at once; never overflows."""
    for attempt in (0, 1, 2, 5, 6, 7, 50, 10**9):
        ceiling = min(2.0, 0.02 * 2 ** min(attempt, 40))
        drawn = [Backoff(random.Random(seed)).seconds(attempt) for seed in range(300)]
        assert ceiling / 2 <= min(drawn) < ceiling * 0.55
        assert ceiling * 0.95 < max(drawn) <= ceiling
    drawn = [Backoff(random.Random(seed)).seconds(0, longest=True) for seed in range(300)]
    assert 1.0 <= min(drawn) < max(drawn) <= 2.0


async def test_transient_outage_loses_nothing_and_shows() -> None:
    """As long as it lasts the batch is tried again; stats tell why; then everything is stored, once."""
    async with lab(**ONE) as it:
        fault = it.faulty.fail("append", TransientAdapterError("the backend is away"), times=None)
        for n in range(25):
            it.bus.ingest_raw(b"%d" % n)
        await fault.reached(5)
        shard = it.shard()
        assert "TransientAdapterError: the backend is away" in shard.last_error
        assert shard.in_flight == 10
        assert shard.retries >= 3
        assert not shard.wedged
        health = await it.bus.health()
        assert "the backend is away" in health.reason
        fault.end()
        await it.bus.flush(10)
        assert it.shard().last_error == ""
        assert it.stats.errors == {}
        assert (await it.bus.health()).ok
    assert [e.raw for e in it.keeper.kept[0]] == [b"%d" % n for n in range(25)]


@pytest.mark.parametrize(
    "error",
    [ValueError("odd"), ConnectionResetError("gone"), netcore.AdapterClosedError("x"), StopAsyncIteration()],
)
async def test_unexpected_exception_is_retried_logged_once_and_counted(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """What no adapter should raise counts as transient; one traceback a kind, all in `stats().errors`."""
    async with lab(**ONE) as it:
        it.faulty.fail("append", error, times=3)
        it.faulty.fail("append", type(error)("another message"), times=2)
        it.bus.ingest_raw(b"x")
        await it.bus.flush(10)
        kind = type(error).__name__
        assert it.stats.errors == {f"{kind}: {error}" if str(error) else kind: 5}
        tracebacks = [r for r in caplog.records if r.exc_info and kind in r.getMessage()]
        assert len(tracebacks) == 1
        assert it.stats.retries == 5
    assert it.keeper.payloads == {b"x": 1}


class UnspeakableError(Exception):
    """An exception that cannot be shown."""

    def __str__(self) -> str:
        raise RuntimeError("nor this")


@pytest.mark.parametrize(
    "error", [UnspeakableError(), ValueError("\ud800"), ExceptionGroup("g", [ValueError("in it")])]
)
async def test_exception_that_cannot_be_shown_does_not_end_the_worker(error: Exception) -> None:
    """Neither a broken `__str__` nor a lone surrogate costs the shard its worker."""
    async with lab(**ONE) as it:
        it.faulty.fail("append", error)
        it.bus.ingest_raw(b"x")
        await it.bus.flush(10)
        assert sum(it.stats.errors.values()) == 1
        msgspec.json.encode(it.stats.errors)
    assert it.keeper.payloads == {b"x": 1}


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_adapter_that_cancels_itself_does_not_end_the_worker() -> None:
    """A `CancelledError` that nobody asked for is one more unexpected exception."""
    async with lab(**ONE) as it:
        inner, calls = it.keeper.append, []

        async def append(batch: Any) -> None:
            calls.append(batch)
            if len(calls) == 1:
                raise asyncio.CancelledError
            if len(calls) == 2:
                task = asyncio.ensure_future(asyncio.sleep(10))
                task.cancel()
                await task
            await inner(batch)

        it.keeper.append = append  # type: ignore[method-assign]
        it.bus.ingest_raw(b"x")
        await it.bus.flush(10)
        assert len(calls) == 3
        assert sum(it.stats.errors.values()) == 2
    assert it.keeper.payloads == {b"x": 1}


async def test_worker_that_fails_is_logged_and_closes_the_bus(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug in the worker itself is never silent: the bus says so and takes no more."""

    def broken(self: Batcher) -> Any:
        raise ZeroDivisionError("a bug")

    async with lab(**ONE) as it:
        monkeypatch.setattr(Batcher, "_cut", broken)
        it.bus.ingest_raw(b"x")
        await until(lambda: it.bus._engine.workers[0].done)
        assert any("a worker failed" in r.getMessage() and r.exc_info for r in caplog.records)
        with pytest.raises(netcore.ClosedError):
            it.bus.ingest_raw(b"y")
        with pytest.raises(netcore.ClosedError):
            await it.bus.flush(10)
        monkeypatch.undo()
        report = await it.bus.shutdown(5)
        check_identity(report)
        assert report.dispatched == 1


async def test_timeout_cancels_the_call_and_the_batch_is_tried_again() -> None:
    """`adapter_timeout_ms` bounds each attempt; the error says so."""
    async with lab(adapter_timeout_ms=30, **ONE) as it:
        hold = it.faulty.hold("append", times=1)
        it.bus.ingest_raw(b"x")
        await hold.abandoned()
        await it.bus.flush(10)
        assert it.stats.retries == 1
        assert it.faulty.overlaps == 0
    assert it.keeper.payloads == {b"x": 1}


async def test_timed_out_append_that_lands_late_is_stored_once() -> None:
    """It may land after a later attempt, and after the next batches: the store recognises it."""
    async with lab(adapter_timeout_ms=30, **ONE) as it:
        late = it.faulty.delay_past_cancellation("append", times=2)
        for n in range(10):
            it.bus.ingest_raw(b"%d" % n)
        await late.abandoned(2)
        await it.bus.flush(10)
        it.bus.ingest_raw(b"next")
        await it.bus.flush(10)
        assert await late.deliver() == 2
        it.bus.ingest_raw(b"last")
    raws = [e.raw for e in it.keeper.kept[0]]
    assert raws == [b"%d" % n for n in range(10)] + [b"next", b"last"]


async def test_answer_lost_after_storing_is_stored_once() -> None:
    """Stored, then an error: the repetition is recognised."""
    async with lab(**ONE) as it:
        it.faulty.store_and_fail("append", TransientAdapterError("lost the answer"), times=3)
        for n in range(15):
            it.bus.ingest_raw(b"%d" % n)
        await it.bus.flush(10)
    assert [e.raw for e in it.keeper.kept[0]] == [b"%d" % n for n in range(15)]


async def test_next_batch_is_not_started_before_the_one_before_it_is_settled() -> None:
    """First sequence numbers follow each other; no two appends of a shard overlap."""
    async with lab(**ONE) as it:
        it.faulty.fail("append", TransientAdapterError("x"), times=4)
        it.faulty.slow("append", 3)
        for n in range(45):
            it.bus.ingest_raw(b"%d" % n)
        await it.bus.flush(10)
        assert it.faulty.overlaps == 0
        assert [b[1:] for b in it.keeper.batches] == [(0, 10), (10, 10), (20, 10), (30, 10), (40, 5)]
        attempts = [(first, count) for _, _, first, count in it.faulty.attempts]
        assert attempts[:5] == [(0, 10)] * 5
        producers = {producer for producer, *_ in it.faulty.attempts}
        assert len(producers) == 1
        assert len(bytes.fromhex(producers.pop())) == 16


async def test_adapter_that_swallows_cancellation_wedges_its_shard_only() -> None:
    """Nothing is started on it until the call returns; the others go on; stats and health name it."""
    async with lab(shards=2, batch=BatchConfig(max_delay_ms=0), adapter_timeout_ms=30) as it:
        stuck = it.faulty.hang_uncancellable("append", shard=0)
        sick, well = it.key_for(0), it.key_for(1)
        it.bus.ingest_raw(b"stuck", sick)
        await stuck.reached()
        for n in range(20):
            it.bus.ingest_raw(b"sick%d" % n, sick)
            it.bus.ingest_raw(b"well%d" % n, well)
        with pytest.raises(FlushTimeoutError, match="shards 0;") as caught:
            await it.bus.flush(0.2)
        assert caught.value.shards == [0]
        assert it.shard(1).dispatched == 20
        await until(lambda: it.shard(0).wedged)
        assert not it.shard(1).wedged
        assert "shard 0: an adapter call outlived" in (await it.bus.health()).reason
        assert len([a for a in it.faulty.attempts if a[1] == 0]) == 1
        stuck.release()
        await it.bus.flush(10)
        assert not it.shard(0).wedged
        assert it.faulty.overlaps == 0
    assert [e.raw for e in it.keeper.kept[0]] == [b"stuck"] + [b"sick%d" % n for n in range(20)]


@pytest.mark.parametrize("poison", [[0], [9], [3, 4], [0, 5, 9], list(range(10))])
async def test_fatal_batch_dead_letters_exactly_the_poison(poison: list[int], tmp_path: Path) -> None:
    """Bisected: the rest is stored once, in order; numbers of dead letters are skipped; lines tell all."""
    path = tmp_path / "dead.ndjson"
    async with lab(dead_letters=str(path), shards=1, batch=BatchConfig(max_events=10, max_delay_ms=50)) as it:
        Poison(it, *(b"\xff%d" % n for n in poison))
        pairs = [it.bus.ingest_raw((b"\xff%d" if n in poison else b"%d") % n) for n in range(10)]
        await it.bus.flush(10)
        it.bus.ingest_raw(b"after")
        await it.bus.flush(10)
        stats = it.stats
        assert (stats.dead_lettered, stats.dispatched, stats.lost) == (len(poison), 11 - len(poison), 0)
        assert (stats.dead_letter_failures, stats.errors) == (0, {})
        assert it.keeper.batches[-1] == (0, 10, 1)
        producer = it.bus._engine.producer
    check_identity(it.stats)
    stored = [e.raw for e in it.keeper.kept[0]]
    assert stored == [b"%d" % n for n in range(10) if n not in poison] + [b"after"]
    covered = [first + n for _, first, count in it.keeper.batches for n in range(count)]
    assert covered == [n for n in range(11) if n not in poison]
    lines = [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]
    assert [line["seq"] for line in lines] == poison
    for line, n in zip(lines, poison, strict=True):
        assert set(line) == {"ts", "shard", "producer", "seq", "error", "payload_base64"}
        assert (line["shard"], line["ts"]) == pairs[n]
        assert line["producer"] == producer
        assert f"xff{n}" in line["error"]
        assert msgspec.convert(line["payload_base64"], bytes) == b"\xff%d" % n


async def test_fatal_after_part_of_the_batch_landed_stores_nothing_twice() -> None:
    """An ambiguous failure, then a fatal verdict: halves that are stored already are recognised."""
    async with lab(shards=1, batch=BatchConfig(max_events=8, max_delay_ms=50)) as it:
        it.faulty.fail("append", FatalAdapterError("whole"), times=1)
        it.faulty.store_and_fail("append", TransientAdapterError("answer lost"), times=1)
        it.faulty.fail("append", FatalAdapterError("second half"), times=1)
        for n in range(8):
            it.bus.ingest_raw(b"%d" % n)
        await it.bus.flush(10)
    stored = [e.raw for e in it.keeper.kept[0]]
    assert len(stored) == len(set(stored))
    assert it.stats.dispatched + it.stats.dead_lettered == 8
    assert len(stored) == it.stats.dispatched


async def test_dead_letter_sink_that_fails_is_counted_and_blocks_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that cannot be written, a plugin that raises: counted, logged, and the next batch goes on."""

    class Sink:
        @netcore.hookimpl
        def netcore_dead_letter(self, payload: bytes) -> None:
            raise OSError("disk on fire")

    path = tmp_path / "folder" / "dead.ndjson"
    path.parent.mkdir()
    async with lab(dead_letters=str(path), plugins=(Sink(),), **ONE) as it:
        path.unlink()
        path.parent.rmdir()
        Poison(it, b"bad0", b"bad1")
        for raw in (b"bad0", b"good", b"bad1"):
            it.bus.ingest_raw(raw)
        await it.bus.flush(10)
        assert (it.stats.dead_lettered, it.stats.dead_letter_failures) == (2, 4)
    assert it.keeper.payloads == {b"good": 1}
    assert len([r for r in caplog.records if "failed in netcore_dead_letter" in r.getMessage()]) == 1
    assert len([r for r in caplog.records if "cannot be written" in r.getMessage()]) == 1


async def test_dead_letter_error_that_cannot_be_encoded_is_written(tmp_path: Path) -> None:
    """A lone surrogate in the adapter's words costs neither the line nor the worker."""
    path = tmp_path / "dead.ndjson"
    async with lab(dead_letters=str(path), **ONE) as it:
        it.faulty.fail("append", FatalAdapterError("bad \ud800"))
        it.bus.ingest_raw(b"x")
        await it.bus.flush(10)
        it.bus.ingest_raw(b"y")
        await it.bus.flush(10)
    assert msgspec.json.decode(path.read_bytes())["error"] == "bad \\ud800"
    assert it.keeper.payloads == {b"y": 1}


async def test_dead_letter_without_a_sink_is_an_error_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """An event that is gone for good is never gone in silence; a flood of them is no flood of lines."""
    async with lab(**ONE) as it:
        Poison(it, *(b"%d" % n for n in range(40)))
        for n in range(40):
            it.bus.ingest_raw(b"%d" % n)
        await it.bus.flush(10)
    said = [r for r in caplog.records if "it is gone" in r.getMessage() and r.levelno == logging.ERROR]
    assert 1 <= len(said) <= 8


async def test_refused_keeps_the_batch_and_loses_nothing_once_mended() -> None:
    """Nothing is dead-lettered; stats and health show the cause."""
    async with lab(**ONE) as it:
        fault = it.faulty.fail("append", AdapterRefusedError("NOPERM: grant XADD"), times=None)
        for n in range(12):
            it.bus.ingest_raw(b"%d" % n)
        await fault.reached(3)
        assert "NOPERM: grant XADD" in it.shard().last_error
        assert "NOPERM" in (await it.bus.health()).reason
        assert it.stats.dead_lettered == 0
        assert it.stats.errors == {}
        fault.end()
        await it.bus.flush(10)
    assert [e.raw for e in it.keeper.kept[0]] == [b"%d" % n for n in range(12)]


@pytest.mark.usefixtures("real_backoff")
async def test_refused_waits_for_the_longest_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refusal is not retried every 20 ms: somebody has to mend something first."""
    async with lab(**ONE) as it:
        slept: list[float] = []

        async def noted(self: Dispatcher, seconds: float) -> None:
            slept.append(seconds)

        monkeypatch.setattr(Dispatcher, "_pause", noted)
        it.faulty.fail("append", AdapterRefusedError("no"), times=2)
        it.faulty.fail("append", TransientAdapterError("no"), times=1)
        it.bus.ingest_raw(b"x")
        await it.bus.flush(10)
        assert len(slept) == 3
        assert all(1.0 <= seconds <= 2.0 for seconds in slept[:2])
        assert 0.04 <= slept[2] <= 0.08


@pytest.mark.parametrize("answer", ["stored", "closed"])
async def test_late_return_after_giving_up_changes_no_counter(answer: str) -> None:
    """A call that comes back after shutdown gave its events up is void, and nothing else is started."""
    it = Lab(adapter_timeout_ms=30, **ONE)
    async with it.bus:
        stuck = it.faulty.hang_uncancellable("append", store=answer == "closed")
        for n in range(25):
            it.bus.ingest_raw(b"%d" % n)
        await stuck.reached()
        report = await it.bus.shutdown(0.2)
        assert (report.ingested, report.lost, report.dispatched) == (25, 25, 0)
        check_identity(report)
        stuck.release()
        await until(lambda: it.bus._engine.workers[0].done)
        check_identity(it.stats)
        assert (it.stats.lost, it.stats.retries, it.stats.dispatched) == (25, 0, 0)
        assert len(it.faulty.attempts) == 1


async def test_one_slow_shard_never_stalls_the_others() -> None:
    """While one shard's adapter hangs, a thousand events of another are stored."""
    async with lab(shards=2, batch=BatchConfig(max_events=10, max_delay_ms=0)) as it:
        held = it.faulty.hold("append", shard=0)
        it.bus.ingest_raw(b"x", it.key_for(0))
        await held.reached()
        for n in range(1000):
            it.bus.ingest_raw(b"%d" % n, it.key_for(1))
        await until(lambda: it.shard(1).dispatched == 1000)
        assert it.shard(0).dispatched == 0
        held.release()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_worker_whose_adapter_suspends_yields_no_second_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """An append that let others run has been the worker's turn, however long it took."""
    yielded = 0

    async with lab(shards=1, batch=BatchConfig(max_events=10, max_delay_ms=1000)) as it:
        append = it.faulty.append

        async def slow(batch: Any) -> None:
            await anyio.lowlevel.checkpoint()
            time.sleep(0.002)  # noqa: ASYNC251 # longer than a turn, and blocking: a busy loop
            await append(batch)

        monkeypatch.setattr(it.faulty, "append", slow)

        async def counted(self: Any) -> None:
            nonlocal yielded
            yielded += 1
            await anyio.lowlevel.checkpoint()

        monkeypatch.setattr(AsyncioRuntime, "checkpoint", counted)
        it.bus.ingest_raw_many([b"%d" % n for n in range(200)])
        await it.bus.flush(20)
        assert it.shard(0).batches == 20
        assert yielded == 0


async def test_worker_whose_adapter_never_suspends_yields_to_the_loop() -> None:
    """A backlog of many batches does not keep other tasks from running."""
    async with lab(
        shards=1, ring_capacity=1 << 17, batch=BatchConfig(max_events=100, max_delay_ms=1000)
    ) as it:
        turns = 0

        async def tick() -> None:
            nonlocal turns
            while True:
                await anyio.lowlevel.checkpoint()
                turns += 1

        it.bus.ingest_raw_many([b"%d" % n for n in range(100_000)])
        async with anyio.create_task_group() as group:
            group.start_soon(tick)
            await it.bus.flush(20)
            group.cancel_scope.cancel()
        assert turns >= 10
