"""Buses that nobody shut down: dropped, outlived their loop, or forked away from it."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import textwrap
import threading
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bus_lab import Blocked, Lab, lab, until

from netcore import BatchConfig, ClosedError, ConsumeRequest, EventBus, EventBusConfig
from netcore.lifecycle import State


def run(code: str, *flags: str) -> subprocess.CompletedProcess[str]:
    """Run a program of its own; it must end by itself within half a minute."""
    return subprocess.run(
        [sys.executable, *flags, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.anyio
async def test_bus_dropped_without_shutdown_warns_is_lossy_and_lets_go() -> None:
    """The warning counts what is lost; workers and clock end; the adapter is closed."""
    it = Lab(shards=1)
    bus = await it.bus.__aenter__()
    held = it.faulty.hold("append", times=None)
    bus.ingest_raw(b"1")
    await held.reached()
    bus.ingest_raw(b"2")
    engine, alive = bus._engine, weakref.ref(bus)
    it.bus = None  # type: ignore[assignment]
    with pytest.warns(ResourceWarning, match="dropped without shutdown; 2 events are lost"):
        del bus
    gc.collect()
    assert alive() is None
    assert engine.lifecycle.state is State.ABANDONED
    assert engine.stats().lossy
    await until(lambda: all(worker.done for worker in engine.workers.values()))
    await until(lambda: it.faulty.calls["close"] == 1)


@pytest.mark.anyio
async def test_bus_collected_while_a_ring_is_locked_does_not_deadlock() -> None:
    """The collector may run anywhere: also in the middle of a drain."""
    it = Lab(shards=1)
    bus = await it.bus.__aenter__()
    engine = bus._engine
    it.bus = None  # type: ignore[assignment]
    cycle: dict[str, Any] = {"bus": bus}
    cycle["itself"] = cycle
    del bus, cycle
    with pytest.warns(ResourceWarning, match="dropped without shutdown"), engine.shards[0].ring.lock:
        gc.collect()
    await until(lambda: engine.shards[0].ring.sealed)
    await until(lambda: it.faulty.calls["close"] == 1)


def test_loop_that_ends_without_shutdown_closes_the_bus_and_frees_who_waits() -> None:
    """`asyncio.run` returns; a producer blocked in a thread gets `ClosedError`, and so do later calls."""
    it = Lab(shards=1, ring_capacity=2, backpressure="block")
    blocked: list[Blocked] = []

    async def main() -> None:
        await it.bus.__aenter__()
        held = it.faulty.hold("append", times=None)
        it.bus.ingest_raw(b"1")
        await held.reached()
        for raw in (b"2", b"3"):
            it.bus.ingest_raw(raw)
        blocked.append(Blocked(it.bus.ingest_raw, b"4"))
        await until(lambda: it.bus._engine.shards[0].ring.waiters)

    asyncio.run(main())
    blocked[0].thread.join(5)
    assert isinstance(blocked[0].error, ClosedError)
    with pytest.raises(ClosedError, match="lost its event loop"):
        it.bus.ingest_raw(b"5")
    assert it.stats.lossy
    assert it.stats.ingested == 3
    report = asyncio.run(it.bus.shutdown())
    assert (report.ingested, report.dispatched, report.lost, report.lossy) == (3, 0, 3, True)


def test_loop_closed_under_the_bus_ingest_raises_closed() -> None:
    """A loop that was closed without ending its tasks is noticed when a worker cannot be woken."""
    loop = asyncio.new_event_loop()
    it = Lab(shards=1)
    loop.run_until_complete(it.bus.__aenter__())
    loop.run_until_complete(until(lambda: it.bus._engine.shards[0].ring.asleep))
    for task in asyncio.all_tasks(loop):
        # They are left behind on purpose, and asyncio would say so whenever the collector comes.
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # asyncio's own complaints about what it leaves behind
        it.bus.ingest_raw(b"the last to get in")
        with pytest.raises(ClosedError, match="lost its event loop"):
            it.bus.ingest_raw(b"x")
        in_thread = Blocked(it.bus.ingest_raw, b"y")
        in_thread.thread.join(5)
        assert isinstance(in_thread.error, ClosedError)
        assert it.stats.lossy
        report = asyncio.run(it.bus.shutdown())
        assert (report.ingested, report.lost) == (1, 1)
        it.bus = None  # type: ignore[assignment]
        gc.collect()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.anyio
async def test_bus_in_a_forked_child_raises_closed_on_every_call() -> None:
    """The child has no loop of the parent's: nothing hangs, and nothing is taken to be lost; the parent goes on."""
    async with lab(shards=1) as it:
        it.bus.ingest_raw(b"before")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # 3.12 warns of forking with threads; this is about that
            child = os.fork()
        if child == 0:
            os._exit(_in_child(it.bus))
        ended: list[int] = []

        def has_ended() -> bool:
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                ended.append(os.waitstatus_to_exitcode(status))
            return bool(found)

        await until(has_ended, timeout=20)
        assert ended == [0]
        it.bus.ingest_raw(b"after")
        await it.bus.flush(10)
        assert it.stats.dispatched == 2


def _in_child(bus: EventBus) -> int:
    """Call everything; return 0 if all of it refuses."""

    def drive(coroutine: Any) -> None:
        try:
            coroutine.send(None)
        finally:
            coroutine.close()

    calls: list[Callable[[], object]] = [
        lambda: bus.ingest({"a": 1}),
        lambda: bus.ingest_raw(b"x", key="k"),
        lambda: bus.subscribe(ConsumeRequest(1)),
        lambda: drive(bus.put(b"x")),
        lambda: drive(bus.poll(ConsumeRequest(1))),
        lambda: drive(bus.flush()),
        lambda: drive(bus.shutdown()),
        lambda: drive(bus.add_shards(1)),
        lambda: drive(bus.remove_shards([0])),
        lambda: drive(bus.suggest_scaling()),
    ]
    for number, call in enumerate(calls, 1):
        try:
            call()
        except ClosedError as error:
            if "forked child" not in str(error):
                return 100 + number
        except BaseException:
            return 50 + number
        else:
            return number
    summary = bus.ingest_raw_many([b"1"])
    return 0 if summary.rejected == [0] and not bus.stats().lossy else 99


@pytest.mark.parametrize("front", ["netcore", "netcore.blocking"])
def test_process_that_forgets_the_shutdown_ends_all_the_same(front: str) -> None:
    """A script may end with a bus open: it hangs nothing, and is told."""
    asynchronous = """
        import asyncio
        from netcore import EventBus
        async def main():
            global bus
            bus = await EventBus.open()
            bus.ingest({"a": 1})
        asyncio.run(main())
    """
    blocking = """
        from netcore.blocking import EventBus
        bus = EventBus().open()
        bus.ingest({"a": 1})
    """
    ended = run(asynchronous if front == "netcore" else blocking, "-W", "always")
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    if front == "netcore":
        assert "ResourceWarning: an EventBus was dropped without shutdown" in ended.stderr


def test_plugin_that_fails_to_load_keeps_no_bus_alive(tmp_path: Path) -> None:
    """The failure is remembered for good, but not the frames that led to it."""
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[netcore]\nbroken = broken_plugin\n")
    (tmp_path / "broken_plugin.py").write_text("raise LookupError('no such thing')\n")
    ended = run(
        f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        import gc, weakref
        from netcore import EventBus
        def make():
            return weakref.ref(EventBus())
        bus = make()
        gc.collect()
        assert bus() is None, gc.get_referrers(bus())
        """
    )
    assert ended.returncode == 0, ended.stderr
    assert "LookupError: no such thing" in ended.stderr


def test_open_on_one_thread_shutdown_on_another_loop_is_refused() -> None:
    """A bus belongs to its loop while that lives."""
    it = Lab(shards=1, batch=BatchConfig(max_delay_ms=0))

    async def main() -> None:
        async with it.bus:
            errors: list[BaseException] = []

            def elsewhere() -> None:
                try:
                    asyncio.run(it.bus.shutdown())
                except BaseException as error:
                    errors.append(error)

            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join(5)
            assert isinstance(errors[0], ClosedError)
            assert "on the event loop that opened the bus" in str(errors[0])
            assert it.bus.ingest_raw(b"x") is not None

    asyncio.run(main())
    assert it.keeper.payloads.total() == 1


def test_open_without_an_event_loop_says_what_to_use() -> None:
    """`netcore.blocking` is for code that has none."""
    coroutine = EventBus.open(EventBusConfig(shards=1))
    with pytest.raises(RuntimeError, match=r"netcore\.blocking"):
        coroutine.send(None)
