"""Opening and shutting down: in order, under fire, against all odds, and with the books in balance."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import anyio
import pytest
from bus_lab import Blocked, Lab, check_identity, lab, until

import netcore
from netcore import (
    AdapterRefusedError,
    BatchConfig,
    ClosedError,
    ConsumeRequest,
    EventBus,
    EventBusConfig,
    TransientAdapterError,
)
from netcore.lifecycle import State

pytestmark = pytest.mark.anyio


async def test_shutdown_dispatches_everything_then_flushes_then_closes() -> None:
    """In this order; the report balances; nothing is lossy."""
    it = Lab(shards=3, batch=BatchConfig(max_events=10, max_delay_ms=3_600_000))
    order: list[str] = []
    for name in ("append", "flush", "close"):
        inner = getattr(it.keeper, name)

        def noted(*args: Any, inner: Any = inner, name: str = name) -> Any:
            order.append(name)
            return inner(*args)

        setattr(it.keeper, name, noted)
    async with it.bus:
        it.bus.ingest_raw_many([b"%d" % n for n in range(95)])
    assert set(order[:-2]) == {"append"}
    assert order[-2:] == ["flush", "close"]
    report = await it.bus.shutdown()
    assert (report.ingested, report.dispatched, report.lost) == (95, 95, 0)
    assert (report.lossy, report.stuck_shards, report.unreplicated) == (False, (), 0)
    check_identity(report)


@pytest.mark.parametrize("policy", ["drop_oldest", "drop_newest", "block", "sample"])
async def test_shutdown_under_fire_accounts_for_every_ingest_that_returned(policy: str) -> None:
    """Threads ingest flat out, singly and by the hundred: each returned pair is stored or counted evicted."""
    it = Lab(
        shards=3, ring_capacity=200, backpressure=policy, batch=BatchConfig(max_events=50, max_delay_ms=0)
    )
    it.faulty.slow("append", 1)
    returned: list[tuple[int, int]] = []
    counted: list[int] = []
    go = threading.Event()

    def singly(thread: int) -> None:
        n = 0
        while True:
            try:
                pair = it.bus.ingest_raw(b"%d:%d" % (thread, n := n + 1))
            except ClosedError:
                return
            except netcore.BackpressureError:
                continue
            if pair is not None:
                returned.append(pair)
            if n > 100:
                go.set()

    def many(thread: int) -> None:
        n = 0
        while True:
            summary = it.bus.ingest_raw_many([b"%d:%d" % (thread, n := n + 1) for _ in range(100)])
            counted.append(summary.accepted)
            if isinstance(summary.error, ClosedError) or it.bus._lifecycle.state is not State.OPEN:
                return

    threads = [threading.Thread(target=singly, args=(n,)) for n in range(3)]
    threads.append(threading.Thread(target=many, args=(9,)))
    async with it.bus:
        for thread in threads:
            thread.start()
        await until(go.is_set)
        await anyio.sleep(0.05)
        report = await it.bus.shutdown(20)
        for thread in threads:
            await anyio.to_thread.run_sync(thread.join, 10)
    check_identity(report)
    assert report.lost == 0
    assert report.ingested == len(returned) + sum(counted)
    assert len(set(returned)) == len(returned)
    assert report.dispatched == len(it.keeper.pairs)
    gone = set(returned) - it.keeper.pairs
    assert len(gone) <= report.evicted
    if policy in ("drop_newest", "block"):
        assert not gone
    check_identity(it.stats)


async def test_shutdown_twice_at_once_gives_one_report() -> None:
    """The adapter is flushed and closed once; both callers get the same."""
    async with lab() as it:
        it.bus.ingest_raw(b"x")
        reports: list[Any] = []

        async def stop() -> None:
            reports.append(await it.bus.shutdown())

        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(stop)
        assert reports[0] is reports[1] is reports[2]
        assert (it.faulty.calls["flush"], it.faulty.calls["close"]) == (1, 1)
        assert await it.bus.shutdown() is reports[0]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_shutdown_under_gather_and_wait_for() -> None:
    """The usual ways of calling it in asyncio."""
    async with lab() as it:
        first, second = await asyncio.gather(it.bus.shutdown(), it.bus.shutdown())
        assert first is second
    async with lab() as other:
        report = await asyncio.wait_for(other.bus.shutdown(), 10)
        assert report.lost == 0


@pytest.mark.parametrize("call", ["append", "flush", "close"])
async def test_shutdown_cancelled_can_be_called_again_and_finishes(call: Any) -> None:
    """Cancelled while the last batches, the flush or the close are under way: the next call joins in."""
    async with lab(shards=1) as it:
        held = it.faulty.hold(call)
        it.bus.ingest_raw(b"x")
        async with anyio.create_task_group() as group:
            group.start_soon(it.bus.shutdown)
            await held.reached()
            group.cancel_scope.cancel()
        with pytest.raises(ClosedError, match="shutting down"):
            it.bus.ingest_raw(b"y")
        held.release()
        report = await it.bus.shutdown()
        assert (report.ingested, report.dispatched) == (1, 1)
        assert it.faulty.calls["close"] == 1


@pytest.mark.parametrize("call", ["append", "flush", "close"])
@pytest.mark.parametrize("how", ["hold", "hang_uncancellable"])
async def test_shutdown_with_a_wedged_adapter_ends_in_time_and_counts_lost(call: Any, how: str) -> None:
    """By its time-out plus a second, whatever the adapter does."""
    async with lab(shards=2) as it:
        fault = getattr(it.faulty, how)(call, times=None)
        for n in range(20):
            it.bus.ingest_raw(b"%d" % n)
        begun = time.monotonic()
        if call == "append":
            report = await it.bus.shutdown(0.3)
            assert (report.lost, report.dispatched, report.lossy) == (20, 0, True)
            assert report.stuck_shards == (0, 1)
        else:
            with pytest.raises(TimeoutError, match=f"the adapter's {call} did not return"):
                await it.bus.shutdown(0.3)
            report = await it.bus.shutdown()
            assert (report.lost, report.dispatched) == (0, 20)
        assert time.monotonic() - begun < 1.3 + 0.2  # the last for a busy machine
        check_identity(report)
        check_identity(it.stats)
        fault.end()


async def test_shutdown_with_no_time_still_ends_and_counts() -> None:
    """Zero seconds lose what a sick adapter holds; a healthy one's events need not be lost."""
    async with lab(shards=1) as it:
        it.faulty.fail("append", TransientAdapterError("x"), times=None)
        it.bus.ingest_raw(b"x")
        begun = time.monotonic()
        report = await it.bus.shutdown(0)
        assert time.monotonic() - begun < 1.2
        assert report.lost == 1
        check_identity(report)


async def test_shutdown_during_an_outage_that_ends_loses_nothing() -> None:
    """It keeps trying until its time is up."""
    async with lab(shards=1) as it:
        fault = it.faulty.fail("append", TransientAdapterError("x"), times=None)
        it.bus.ingest_raw(b"x")
        async with anyio.create_task_group() as group:

            async def mend() -> None:
                await fault.reached(3)
                fault.end()

            group.start_soon(mend)
            report = await it.bus.shutdown(10)
        assert (report.lost, report.dispatched) == (0, 1)


async def test_errors_of_flush_and_close_reach_the_caller_after_the_accounting() -> None:
    """One is raised as it is, with a note; both as a group; then the report can be had."""
    for faults, expected in (
        ({"flush": OSError("no space")}, OSError),
        ({"close": LookupError("lost it")}, LookupError),
        ({"flush": OSError("no space"), "close": LookupError("lost it")}, ExceptionGroup),
    ):
        async with lab(shards=1) as it:
            for call, error in faults.items():
                it.faulty.fail(call, error)  # type: ignore[arg-type]
            it.bus.ingest_raw(b"x")
            with pytest.raises(expected) as caught:
                await it.bus.shutdown()
            if expected is ExceptionGroup:
                assert [type(error) for error in caught.value.exceptions] == [OSError, LookupError]  # type: ignore[attr-defined]
            else:
                (call,) = faults
                assert f"was asked to {call}" in caught.value.__notes__[0]
            report = await it.bus.shutdown()
            assert (report.dispatched, report.lost) == (1, 0)
            assert it.faulty.calls["close"] == 1
            assert it.bus._lifecycle.state is State.CLOSED


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("call", ["flush", "close"])
async def test_flush_or_close_that_cancels_itself_is_an_error_not_a_cancellation(call: str) -> None:
    """The caller is not cancelled, and the bus is shut down for good."""
    async with lab(shards=1) as it:

        async def cancels_itself() -> None:
            raise asyncio.CancelledError

        setattr(it.keeper, call, cancels_itself)
        with pytest.raises(RuntimeError, match="the call was cancelled"):
            await it.bus.shutdown()
        assert (await it.bus.shutdown()).lost == 0


async def test_shutdown_wakes_blocked_producers_whose_events_are_not_accepted() -> None:
    """A blocked thread and a waiting `put` both get `ClosedError`."""
    async with lab(shards=1, ring_capacity=2, backpressure="block") as it:
        held = it.faulty.hold("append")
        it.bus.ingest_raw(b"1")
        await held.reached()
        it.bus.ingest_raw(b"2")
        it.bus.ingest_raw(b"3")
        ring = it.bus._engine.shards[0].ring
        blocked = Blocked(it.bus.ingest_raw, b"thread")
        await until(lambda: len(ring.waiters) == 1)
        errors: list[BaseException] = []

        async def put() -> None:
            try:
                await it.bus.put(b"put")
            except ClosedError as error:
                errors.append(error)

        async with anyio.create_task_group() as group:
            group.start_soon(put)
            await until(lambda: len(ring.waiters) == 2)
            group.start_soon(it.bus.shutdown)
            await until(lambda: errors)
            await until(lambda: blocked.done)
            held.release()
        assert isinstance(blocked.error, ClosedError)
        report = await it.bus.shutdown()
        assert (report.ingested, report.dispatched) == (3, 3)
    assert it.keeper.payloads == {b"1": 1, b"2": 1, b"3": 1}


async def test_polls_and_subscriptions_end_with_the_shutdown() -> None:
    """A poll that waits ends with `ClosedError`; a subscription ends cleanly."""
    async with lab() as it:
        outcomes: list[str] = []

        async def poll() -> None:
            with pytest.raises(ClosedError):
                await it.bus.poll(ConsumeRequest(1), wait=60)
            outcomes.append("poll")

        async def follow() -> None:
            async with it.bus.subscribe(ConsumeRequest(1, start="earliest")) as events:
                async for _ in events:
                    outcomes.append("event")
            outcomes.append("subscription")

        async with anyio.create_task_group() as group:
            it.bus.ingest_raw(b"x")
            await it.bus.flush(10)
            group.start_soon(poll)
            group.start_soon(follow)
            await until(lambda: "event" in outcomes)
            await it.bus.shutdown()
        assert sorted(outcomes) == ["event", "poll", "subscription"]


async def test_shutdown_before_open_closes_for_good() -> None:
    """An empty report; opening it afterwards is refused."""
    bus = EventBus(EventBusConfig(shards=1))
    report = await bus.shutdown()
    assert (report.ingested, report.lossy) == (0, False)
    with pytest.raises(ClosedError, match="is shut down"):
        await bus.__aenter__()


@pytest.mark.parametrize(
    "error", [TransientAdapterError("nobody there"), AdapterRefusedError("no"), OSError("x")]
)
async def test_open_that_fails_raises_as_it_is_and_leaves_nothing(error: Exception) -> None:
    """The adapter is closed again; the bus refuses; a shutdown has nothing to say."""
    it = Lab()
    it.faulty.fail("open", error)
    with pytest.raises(type(error), match=str(error)):
        await it.bus.__aenter__()
    assert it.faulty.calls["close"] == 1
    assert it.bus._lifecycle.state is State.CLOSED
    with pytest.raises(ClosedError):
        it.bus.ingest_raw(b"x")
    assert (await it.bus.shutdown()).ingested == 0


@pytest.mark.parametrize("how", ["hold", "hang_uncancellable"])
async def test_open_that_hangs_times_out(how: str) -> None:
    """After `adapter_timeout_ms`, and a second for a call that ignores its cancellation."""
    it = Lab(adapter_timeout_ms=50)
    fault = getattr(it.faulty, how)("open")
    begun = time.monotonic()
    with pytest.raises(TransientAdapterError, match=r"did not open within 0\.05 s \(adapter_timeout_ms\)"):
        await it.bus.__aenter__()
    assert time.monotonic() - begun < 2.5
    assert it.faulty.calls["close"] == 1
    fault.end()


async def test_open_cancelled_closes_the_adapter() -> None:
    """And the bus with it."""
    it = Lab()
    fault = it.faulty.hold("open")
    async with anyio.create_task_group() as group:
        group.start_soon(it.bus.__aenter__)
        await fault.reached()
        with pytest.raises(ClosedError, match="still opening"):
            it.bus.ingest_raw(b"x")
        with pytest.raises(ClosedError, match="still opening"):
            await it.bus.shutdown()
        group.cancel_scope.cancel()
    await until(lambda: it.faulty.calls["close"] == 1)
    assert it.bus._lifecycle.state is State.CLOSED


async def test_open_in_one_task_shutdown_in_another() -> None:
    """Background work belongs to the loop, not to the task that opened the bus."""
    it = Lab(shards=2)
    opened = anyio.Event()

    async def opener() -> None:
        await it.bus.__aenter__()
        opened.set()

    async def closer() -> None:
        await opened.wait()
        it.bus.ingest_raw(b"x")
        report = await it.bus.shutdown()
        assert report.dispatched == 1

    async with anyio.create_task_group() as group:
        group.start_soon(closer)
        group.start_soon(opener)
    assert it.keeper.payloads == {b"x": 1}


async def test_exit_of_the_block_by_an_error_shuts_down_and_passes_it_on() -> None:
    """What was accepted before the error is stored."""
    it = Lab()

    async def fail() -> None:
        async with it.bus:
            it.bus.ingest_raw(b"x")
            raise LookupError("the user's own")

    with pytest.raises(LookupError, match="the user's own"):
        await fail()
    assert it.keeper.payloads == {b"x": 1}


async def test_producer_name_is_new_for_each_opened_bus() -> None:
    """Never shared, never derived."""
    names = set()
    for _ in range(3):
        async with lab() as it:
            names.add(it.bus._engine.producer)
    assert len(names) == 3
    assert all(len(bytes.fromhex(name)) == 16 for name in names)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_workers_cancelled_from_outside_close_the_bus_and_a_shutdown_still_stores() -> None:
    """Somebody cancels all tasks of the loop: ingest refuses, and what was accepted is stored at shutdown."""
    async with lab(shards=2, batch=BatchConfig(max_delay_ms=3_600_000)) as it:
        for n in range(20):
            it.bus.ingest_raw(b"%d" % n)
        await anyio.wait_all_tasks_blocked()
        for task in asyncio.all_tasks():
            if task is not asyncio.current_task() and task.get_name().startswith("netcore shard"):
                task.cancel()
        await until(lambda: it.bus._lifecycle.state is State.ABANDONED)
        with pytest.raises(ClosedError):
            it.bus.ingest_raw(b"x")
        assert it.stats.lossy
        report = await it.bus.shutdown()
        assert (report.dispatched, report.lost, report.lossy) == (20, 0, False)
        check_identity(report)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("step", ["open", "add"])
async def test_worker_cancelled_before_its_first_step_closes_the_bus_too(step: str) -> None:
    """Nothing of a task that never began runs, not even its `finally`; the bus notices all the same."""
    async with lab(shards=2) as it:
        if step == "add":
            await anyio.wait_all_tasks_blocked()
            it.bus._engine.start_shard()  # a new worker, which had no turn yet
        for task in asyncio.all_tasks():
            if task.get_name() == f"netcore shard {0 if step == 'open' else 2}":
                task.cancel()
        it.bus.ingest_raw(b"accepted")
        await until(lambda: it.bus._lifecycle.state is State.ABANDONED)
        with pytest.raises(ClosedError, match="without shutdown"):
            it.bus.ingest_raw(b"refused")
        report = await it.bus.shutdown()
        assert (report.dispatched, report.lost) == (1, 0)
        check_identity(report)
