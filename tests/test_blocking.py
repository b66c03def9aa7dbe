"""The bus for code with no event loop."""

from __future__ import annotations

import inspect
import threading
import time
from typing import Any

import pytest

from netcore import (
    BatchConfig,
    ClosedError,
    ConsumeRequest,
    EventBusConfig,
    FlushTimeoutError,
    NoChange,
    TransientAdapterError,
)
from netcore import EventBus as AsyncEventBus
from netcore.blocking import EventBus
from netcore.testing.faults import FaultyAdapter, FaultyConfig, plugin_for


def faulty() -> tuple[FaultyAdapter, EventBus]:
    """Return a bus on an adapter that fails as told."""
    adapter = FaultyAdapter(FaultyConfig())
    config = EventBusConfig(shards=1, ring_capacity=2, adapter="faulty", backpressure="block")
    return adapter, EventBus(config, plugins=[plugin_for(adapter)])


def until(condition: Any) -> None:
    """Wait until it holds, ten seconds at most."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_blocking_bus_does_what_the_other_does() -> None:
    """Ingest, flush, poll, subscribe, scale, watch, shut down, from a plain thread."""
    with EventBus(EventBusConfig(shards=2)) as bus:
        assert bus.config.shards == 2
        pairs = {bus.ingest({"n": 0}), bus.ingest_raw(b"1", "key")}
        assert bus.ingest_many([{"n": 2}]).accepted == bus.ingest_raw_many([b"3"]).accepted == 1
        bus.flush(10)
        page = bus.poll(ConsumeRequest(10, start="earliest"))
        assert len(page.events) == 4
        assert pairs <= {(event.shard, event.ts) for event in page.events}
        with bus.subscribe(ConsumeRequest(10, start="earliest")) as events:
            assert [next(events).raw for _ in range(4)] == [event.raw for event in page.events]
        (added,) = bus.add_shards(1)
        assert bus.remove_shards([added]) == [added]
        assert isinstance(bus.suggest_scaling(), NoChange)
        assert bus.apply(NoChange()) == []
        assert bus.health().ok
        assert bus.stats().dispatched == 4
    report = bus.shutdown()
    assert (report.ingested, report.lost) == (4, 0)


def test_blocking_calls_take_what_the_other_bus_takes() -> None:
    """The same names with the same arguments, but for `put` and the ways to open."""
    for name in sorted(set(dir(AsyncEventBus)) | set(dir(EventBus))):
        if name.startswith("_") or name in ("put", "open"):
            continue
        there, here = getattr(AsyncEventBus, name, None), getattr(EventBus, name, None)
        assert (there is None, here is None) == (False, False), name
        if callable(there) and callable(here):
            ours, theirs = inspect.signature(here).parameters, inspect.signature(there).parameters
            assert list(ours.values()) == list(theirs.values()), name


def test_blocking_shutdown_again_returns_the_report_and_ends_the_thread() -> None:
    """Idempotent, also from several threads at once; no thread is left behind."""
    bus = EventBus(EventBusConfig(shards=1)).open()
    reports: list[Any] = []
    threads = [threading.Thread(target=lambda: reports.append(bus.shutdown())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(reports) == 3
    assert reports[0] == reports[1] == reports[2] == bus.shutdown()
    until(lambda: not any(t.name == "netcore loop" for t in threading.enumerate()))


def test_blocking_calls_before_open_and_after_shutdown_raise_closed() -> None:
    """Each says what the bus is."""
    bus = EventBus(EventBusConfig(shards=1))
    for said in ("not open yet", "is shut down"):
        for call in (
            lambda: bus.ingest({"a": 1}),
            bus.flush,
            bus.suggest_scaling,
            lambda: bus.add_shards(1),
            lambda: bus.poll(ConsumeRequest(1)),
            lambda: bus.subscribe(ConsumeRequest(1)).__enter__(),
        ):
            with pytest.raises(ClosedError, match=said):
                call()
        if said == "not open yet":
            bus.open()
            bus.shutdown()
    with pytest.raises(ClosedError, match="open already, or was"):
        bus.open()
    assert bus.stats().ingested == 0


def test_blocking_shutdown_before_open_closes_for_good() -> None:
    """As the other bus: an empty report, and no opening after it."""
    bus = EventBus(EventBusConfig(shards=1))
    assert bus.shutdown().ingested == 0
    with pytest.raises(ClosedError, match="is shut down"):
        bus.open()


def test_blocking_open_that_fails_raises_and_ends_the_thread() -> None:
    """The adapter's error reaches the caller as it is."""
    adapter, bus = faulty()
    adapter.fail("open", TransientAdapterError("nobody there"))
    with pytest.raises(TransientAdapterError, match="nobody there"):
        bus.open()
    until(lambda: not any(t.name == "netcore loop" for t in threading.enumerate()))


def test_blocking_ingest_under_block_waits_for_room() -> None:
    """This thread is not the loop's: it waits like any other; flush gives up when told to."""
    adapter, bus = faulty()
    with bus:
        fault = adapter.fail("append", TransientAdapterError("away"), times=None)
        done = threading.Event()

        def produce() -> None:
            for n in range(20):
                bus.ingest_raw(b"%d" % n)
            done.set()

        thread = threading.Thread(target=produce)
        thread.start()
        until(lambda: bus.stats().retries >= 1)
        with pytest.raises(FlushTimeoutError, match="shards 0;"):
            bus.flush(0.05)
        assert not done.is_set()
        fault.end()
        thread.join(10)
        assert done.is_set()
    assert bus.shutdown().dispatched == 20


def test_blocking_shutdown_with_an_adapter_that_ignores_cancellation_ends_in_time() -> None:
    """Its thread cannot be ended; the caller and the process are not held up by that."""
    adapter = FaultyAdapter(FaultyConfig())
    bus = EventBus(
        EventBusConfig(shards=1, adapter="faulty", batch=BatchConfig(max_delay_ms=0)),
        plugins=[plugin_for(adapter)],
    ).open()
    stuck = adapter.hang_uncancellable("append", times=None)
    bus.ingest_raw(b"x")
    until(lambda: stuck.hits)
    begun = time.monotonic()
    report = bus.shutdown(0.2)
    assert time.monotonic() - begun < 1.4
    assert report.lost == 1
    bus._bus._runtime.call_soon_threadsafe(stuck.release)  # type: ignore[union-attr]
    until(lambda: not any(t.name == "netcore loop" for t in threading.enumerate()))


def test_blocking_poll_waiting_ends_with_the_shutdown() -> None:
    """A long poll in another thread gets `ClosedError`."""
    bus = EventBus(EventBusConfig(shards=1)).open()
    errors: list[BaseException] = []
    begun = threading.Event()

    def wait() -> None:
        begun.set()
        try:
            bus.poll(ConsumeRequest(1), wait=60)
        except ClosedError as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    begun.wait(5)
    bus.shutdown()
    thread.join(10)
    assert len(errors) == 1


def test_blocking_bus_dropped_warns_and_ends_its_thread() -> None:
    """Nothing is left behind but the warning."""
    bus = EventBus(EventBusConfig(shards=1)).open()
    bus.ingest({"a": 1})
    with pytest.warns(ResourceWarning, match="dropped without shutdown"):
        del bus
    until(lambda: not any(t.name == "netcore loop" for t in threading.enumerate()))
