"""Calls from another event loop than the bus's, while that lives and when it is gone."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import warnings
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import pytest
from bus_lab import Blocked, Lab, in_thread, until

from netcore import ClosedError, ConsumeRequest, EventBus, NoChange


async def follow(bus: EventBus) -> None:
    """Enter a subscription."""
    async with bus.subscribe(ConsumeRequest(10)):
        pass


CALLS: dict[str, Callable[[EventBus], Awaitable[object]]] = {
    "poll": lambda bus: bus.poll(ConsumeRequest(10)),
    "subscribe": follow,
    "flush": lambda bus: bus.flush(),
    "add_shards": lambda bus: bus.add_shards(1),
    "remove_shards": lambda bus: bus.remove_shards([0]),
    "suggest_scaling": lambda bus: bus.suggest_scaling(),
    "apply": lambda bus: bus.apply(NoChange()),
}


@contextmanager
def left_behind(it: Lab) -> Iterator[Callable[[], None]]:
    """Fill a bus's rings while its loop stands still; yield what closes that loop without a word."""
    loop = asyncio.new_event_loop()
    loop.run_until_complete(it.bus.__aenter__())
    loop.run_until_complete(until(lambda: it.bus._engine.shards[0].ring.asleep))
    for number in range(it.bus.config.ring_capacity):
        it.bus.ingest_raw(b"%d" % number)

    def close() -> None:
        for task in asyncio.all_tasks(loop):
            # They are left behind on purpose, and asyncio would say so whenever the collector comes.
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        loop.close()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # asyncio's own complaints about what it leaves behind
        yield close
        it.bus = None  # type: ignore[assignment]
        gc.collect()


def waiting(it: Lab, count: int) -> None:
    """Wait until so many producers wait for room."""
    deadline = time.monotonic() + 5
    while len(it.bus._engine.shards[0].ring.waiters) < count:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_loop_closed_under_the_bus_frees_every_producer_that_waits_for_room() -> None:
    """Nobody pushes any more, so nobody wakes a worker: those who wait find out by themselves."""
    it = Lab(shards=1, ring_capacity=2, backpressure="block")
    with left_behind(it) as close:
        bus = it.bus
        blocked = [Blocked(bus.ingest_raw, b"waits") for _ in range(3)]
        blocked.append(Blocked(asyncio.run, bus.put(b"waits on a loop of its own")))
        waiting(it, 4)
        close()
        for producer in blocked:
            producer.thread.join(5)
            assert isinstance(producer.error, ClosedError)
            assert "lost its event loop" in str(producer.error)
        report = asyncio.run(bus.shutdown())
        assert (report.ingested, report.lost, report.lossy) == (2, 2, True)
        del bus, blocked, producer


@pytest.mark.parametrize("policy", ["block", "drop_oldest", "drop_newest", "sample"])
def test_loop_closed_under_the_bus_is_noticed_at_a_full_ring(policy: str) -> None:
    """A producer that is never made to wait learns soon that nobody stores its events."""
    it = Lab(shards=1, ring_capacity=2, backpressure=policy)
    with left_behind(it) as close:
        close()
        summary = it.bus.ingest_raw_many([b"x"] * 1000)
        assert len(summary.rejected) >= 700
        with pytest.raises(ClosedError, match="lost its event loop"):
            it.bus.ingest_raw(b"y")
        del summary


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_call_on_another_loop_when_the_bus_lost_its_own_raises_closed(
    call: Callable[[EventBus], Awaitable[object]],
) -> None:
    """Also if it is this call that finds it out."""
    it = Lab(shards=1, ring_capacity=2)
    with left_behind(it) as close:
        close()

        async def main() -> None:
            with pytest.raises(ClosedError, match="lost its event loop"):
                await call(it.bus)
            assert not (await it.bus.health()).ok

        asyncio.run(main())


def test_shutdown_on_another_loop_when_the_bus_lost_its_own_accounts_for_it() -> None:
    """Nobody had noticed before: the shutdown itself does."""
    it = Lab(shards=1, ring_capacity=2)
    with left_behind(it) as close:
        close()
        assert asyncio.run(it.bus.shutdown()).lost == 2


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_call_on_another_loop_is_refused_and_begins_nothing(
    call: Callable[[EventBus], Awaitable[object]],
) -> None:
    """Half of it would run on either loop: it is refused in words, before anything is begun."""
    it = Lab(shards=2)

    async def main() -> None:
        async with it.bus:
            elsewhere = Blocked(lambda: asyncio.run(_awaited(call(it.bus))))
            await until(lambda: elsewhere.done)
            assert isinstance(elsewhere.error, ClosedError)
            assert "the event loop that opened" in str(elsewhere.error)
            assert [shard.id for shard in it.stats.shards] == [0, 1]
            assert (await it.bus.health()).ok

    asyncio.run(main())


async def _awaited(call: Awaitable[object]) -> object:
    return await call


@pytest.mark.anyio
async def test_put_on_another_loop_waits_for_room_there() -> None:
    """A web server's loop feeds a bus that lives on another: waiting stops neither."""
    it = Lab(shards=1, ring_capacity=1, backpressure="block")
    async with it.bus:
        held = it.faulty.hold("append", times=None)
        it.bus.ingest_raw(b"at the adapter")
        await held.reached()
        it.bus.ingest_raw(b"fills the ring")
        turned = threading.Event()

        async def put() -> object:
            asyncio.get_running_loop().call_later(0.01, turned.set)
            return await it.bus.put(b"waits")

        elsewhere = Blocked(lambda: asyncio.run(put()))
        await until(lambda: it.bus._engine.shards[0].ring.waiters)
        assert await in_thread(turned.wait, 5)
        it.faulty.release_all()
        await until(lambda: elsewhere.done)
        assert elsewhere.error is None
        await it.bus.flush()
        assert it.keeper.payloads.total() == 3
