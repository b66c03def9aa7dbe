"""The blocking front: interrupted, shut down under waiting calls, and left with an ended loop."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from netcore import ClosedError, ConsumeRequest, EventBusConfig, FlushTimeoutError
from netcore.blocking import EventBus

CONFIG = EventBusConfig(shards=2)


@pytest.fixture
def bus() -> Iterator[EventBus]:
    """Return an open bus."""
    with EventBus(CONFIG) as opened:
        yield opened


def interrupt_in(function: Callable[[], object], ready: Callable[[], bool]) -> None:
    """Press Ctrl-C while `function` waits."""

    def press() -> None:
        deadline = time.monotonic() + 10
        while not ready() and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            function()
    finally:
        thread.join()


def waiting(bus: EventBus) -> Callable[[], bool]:
    """Tell whether the adapter is being waited on."""
    started = time.monotonic()
    return lambda: bus._bus._engine.adapter._changed is not None or time.monotonic() > started + 5


def test_interrupted_poll_ends_at_the_loop_too(bus: EventBus) -> None:
    """What nobody waits for any more does not go on."""
    interrupt_in(lambda: bus.poll(ConsumeRequest(1), wait=60), waiting(bus))

    async def tasks() -> int:
        import asyncio

        return sum("netcore wait" in task.get_name() for task in asyncio.all_tasks())

    deadline = time.monotonic() + 10
    while bus._call(tasks):
        assert time.monotonic() < deadline, "the poll still waits"
        time.sleep(0.01)


def test_interrupted_subscription_loses_nothing_and_goes_on(bus: EventBus) -> None:
    """The event that arrives after the interruption is the next one, and the cursor stands before it."""
    with bus.subscribe(ConsumeRequest(10, start="earliest")) as events:
        bus.ingest({"n": 0})
        assert next(events).decode() == {"n": 0}
        interrupt_in(lambda: next(events), lambda: events._turning is not None)
        bus.ingest({"n": 1})
        bus.flush(10)
        deadline = time.monotonic() + 10
        while not events._turning.done():  # type: ignore[union-attr]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        page = bus.poll(ConsumeRequest(10, cursor=events.cursor))
        assert [event.decode() for event in page.events] == [{"n": 1}]
        assert next(events).decode() == {"n": 1}


def test_subscription_cursor_covers_exactly_what_was_yielded(bus: EventBus) -> None:
    """At-least-once resumption works without an event loop too."""
    for number in range(25):
        bus.ingest({"n": number})
    bus.flush(10)
    seen = []
    cursor: str | None = None
    while len(seen) < 25:
        with bus.subscribe(ConsumeRequest(10, start="earliest", cursor=cursor)) as events:
            for event, _ in zip(events, range(7), strict=False):
                seen.append(event.decode()["n"])
                cursor = events.cursor
                if len(seen) == 25:
                    break
    assert sorted(seen) == list(range(25))


def test_subscription_outside_its_with_block_says_so(bus: EventBus) -> None:
    """Neither before nor after."""
    events = bus.subscribe(ConsumeRequest(10))
    with pytest.raises(ClosedError, match="inside `with`"):
        next(events)
    with events:
        pass
    with pytest.raises(ClosedError, match="inside `with`"):
        next(events)


def test_shutdown_under_waiting_threads_ends_them_all(bus: EventBus) -> None:
    """Long polls and subscriptions end at once, several shutdowns agree, later calls are refused."""
    outcome: list[object] = []

    def poll() -> None:
        try:
            outcome.append(bus.poll(ConsumeRequest(1), wait=60))
        except ClosedError:
            outcome.append("closed")

    def follow() -> None:
        with bus.subscribe(ConsumeRequest(10)) as events:
            outcome.append(list(events))

    threads = [threading.Thread(target=target) for target in (poll, poll, follow, follow)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 10
    while not waiting(bus)():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    reports: list[object] = []
    closers = [threading.Thread(target=lambda: reports.append(bus.shutdown())) for _ in range(8)]
    for thread in closers:
        thread.start()
    for thread in threads + closers:
        thread.join(20)
        assert not thread.is_alive()
    assert len(reports) == 8
    assert all(report == reports[0] for report in reports)
    assert sorted(map(str, outcome)) == ["[]", "[]", "closed", "closed"]
    for call in (bus.flush, bus.health, lambda: bus.poll(ConsumeRequest(1)), lambda: bus.add_shards(1)):
        with pytest.raises(ClosedError, match="shut down"):
            call()


def test_call_whose_loop_ended_before_looking_at_it_is_refused(
    bus: EventBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call that was handed over in the last moment of the loop must not wait for ever."""
    from concurrent.futures import Future

    bus.shutdown()
    assert bus._loop is not None
    monkeypatch.setattr(bus._loop.portal, "start_task_soon", lambda *_: Future())
    with pytest.raises(ClosedError):
        bus.flush()


def test_time_out_of_the_call_itself_reaches_the_caller(bus: EventBus) -> None:
    """It is told from the facade's own looks at the clock, also when it takes longer than one."""
    adapter = bus._bus._engine.adapter

    async def hang(batch: object) -> None:
        import asyncio

        await asyncio.sleep(1.6)

    original, adapter.append = adapter.append, hang  # type: ignore[method-assign]
    bus.ingest({})
    with pytest.raises(FlushTimeoutError):
        bus.flush(1.2)
    adapter.append = original  # type: ignore[method-assign]
