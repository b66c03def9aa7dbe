"""Long polls: what wakes them, when they give up, what ends them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

import anyio
import pytest
from consume_lab import AsyncStore, ByNumber, Lab, Store, WatermarkStore, lab

from netcore.contracts.adapter import Stream
from netcore.errors import ClosedError, TransientAdapterError

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def until_waiting(store: Store, times: int = 1) -> None:
    with anyio.fail_after(5):
        while store.calls.count("wait") < times:
            await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("make", [Store, AsyncStore])
@pytest.mark.parametrize("ordering", ["causal", "shard"])
async def test_waiting_poll_returns_with_the_first_event(
    anyio_backend: str, make: type[Store], ordering: str
) -> None:
    """Stored is seen at once, in a known stream and in a new one."""
    store = make()
    store.put(0, 1)
    async with lab(store) as bench:
        cursor = (await bench.poll(ordering=ordering)).cursor
        for shard in (0, 5):
            calls = store.calls.count("wait")

            async def later(shard: int = shard, calls: int = calls) -> None:
                await until_waiting(store, calls + 1)
                store.put(shard, 7)

            async with anyio.create_task_group() as group:
                group.start_soon(later)
                with anyio.fail_after(5):
                    page = await bench.poll(cursor=cursor, wait=60, ordering=ordering)
            assert [(event.shard, event.ts) for event in page.events] == [(shard, 7)]
            cursor = page.cursor


@pytest.mark.parametrize("make", [Store, AsyncStore])
async def test_waiting_poll_gives_up_at_its_deadline_with_the_same_cursor(
    anyio_backend: str, make: type[Store]
) -> None:
    """Neither early nor noticeably late; an idle poll changes nothing."""
    store = make()
    store.put(0, 1)
    async with lab(store) as bench:
        first = await bench.poll()
        began = time.monotonic()
        page = await bench.poll(cursor=first.cursor, wait=0.2)
        assert 0.2 <= time.monotonic() - began < 1.5
        assert (page.events, page.cursor, page.has_more) == ([], first.cursor, False)
        assert len(store.reads) < 6


async def test_waiting_poll_meets_its_deadline_though_the_adapter_waits_for_ever(anyio_backend: str) -> None:
    """The bus keeps the time, not the adapter."""
    store = AsyncStore()
    store.put(0, 1)
    store.faults["wait"] = anyio.sleep_forever
    async with lab(store) as bench:
        first = await bench.poll()
        began = time.monotonic()
        await bench.poll(cursor=first.cursor, wait=0.2)
        assert 0.2 <= time.monotonic() - began < 1.5


async def test_waiting_subset_poll_meets_its_deadline_though_other_shards_hang(anyio_backend: str) -> None:
    """What is of no interest may not keep it."""
    store = AsyncStore()
    store.put(0, 1)
    store.put(1, 2)
    async with lab(store) as bench:
        first = await bench.poll(shards=[1])
        store.faults["bounds"] = anyio.sleep_forever
        began = time.monotonic()
        await bench.poll(cursor=first.cursor, shards=[1], wait=0.2)
        assert 0.2 <= time.monotonic() - began < 1.5


async def test_waiting_poll_woken_early_again_and_again_does_not_spin(anyio_backend: str) -> None:
    """Early wakes are allowed to adapters, and cost little."""
    store = Store()
    store.put(0, 1)
    store.early_wakes = True
    async with lab(store) as bench:
        first = await bench.poll()
        before = len(store.reads)
        await bench.poll(cursor=first.cursor, wait=0.5)
        assert len(store.reads) - before < 40


async def test_waiting_poll_whose_adapter_cannot_wait_does_not_spin(anyio_backend: str) -> None:
    """A failing `wait` is retried at a distance; what comes meanwhile is found."""
    store = Store()
    store.put(0, 1)

    def away() -> None:
        raise TransientAdapterError("away")

    store.faults["wait"] = away
    async with lab(store) as bench:
        first = await bench.poll()
        await bench.poll(cursor=first.cursor, wait=0.3)
        assert store.calls.count("wait") < 40

        async def later() -> None:
            await until_waiting(store, 5)
            store.put(0, 2)

        async with anyio.create_task_group() as group:
            group.start_soon(later)
            with anyio.fail_after(5):
                page = await bench.poll(cursor=first.cursor, wait=60)
        assert [event.ts for event in page.events] == [2]


async def test_waiting_subset_poll_sleeps_while_other_shards_hold_unread_events(anyio_backend: str) -> None:
    """What a chain left unread elsewhere is no news; what comes to the wanted shard is."""
    store = Store()
    store.put(0, 1, 2, 3)
    store.put(1)
    async with lab(store) as bench:
        first = await bench.poll(shards=[1])
        before = len(store.reads)

        async def later() -> None:
            await until_waiting(store)
            store.put(0, 4)
            await anyio.sleep(0.1)
            store.put(1, 5)

        async with anyio.create_task_group() as group:
            group.start_soon(later)
            with anyio.fail_after(5):
                page = await bench.poll(cursor=first.cursor, shards=[1], wait=60)
        assert [event.ts for event in page.events] == [5]
        assert len(store.reads) - before < 8


async def test_waiting_filtered_poll_scans_on_until_a_match(anyio_backend: str) -> None:
    """Neither the scan's bound nor a page without matches ends the wait."""
    store = Store()
    store.put(0, *range(25_000))
    chosen = ByNumber(24_999)
    async with lab(store) as bench:
        quick = await bench.poll(10, filter=chosen)
        assert (quick.events, quick.has_more) == ([], True)
        assert 9_000 < len(chosen.shown) <= 10_000
        page = await bench.poll(10, cursor=quick.cursor, filter=chosen, wait=30)
        assert [event.id for event in page.events] == ["24999"]
        page = await bench.poll(10, cursor=page.cursor, filter=chosen)
        assert (page.events, page.has_more) == ([], False)
        assert len(chosen.shown) == 25_000


@pytest.mark.parametrize("wait", [0.0, 20.0])
async def test_undecodable_entries_without_events_are_told_at_once(anyio_backend: str, wait: float) -> None:
    """The consumer learns of them now, once."""
    store = Store()
    store.put(0, None, None)
    async with lab(store) as bench:
        with anyio.fail_after(5):
            page = await bench.poll(wait=wait)
        assert (page.events, page.undecodable) == ([], 2)
        again = await bench.poll(cursor=page.cursor)
        assert (again.undecodable, again.cursor) == (0, page.cursor)


async def close_while(bench: Lab, ready: object) -> None:
    with anyio.fail_after(5):
        while not ready():  # type: ignore[operator]
            await anyio.lowlevel.checkpoint()
    bench.poller.close()


@pytest.mark.parametrize("held", ["events", "watermark", "settle"])
async def test_close_ends_a_waiting_poll_with_closed_error(anyio_backend: str, held: str) -> None:
    """Whatever it waits for."""
    store: Store = WatermarkStore() if held == "watermark" else Store()
    if held != "events":
        store.put(0, time.time_ns())
    async with lab(store, causal_wait_s=60) as bench:
        if held == "watermark":
            bench.view.low = 1

        def ready() -> bool:
            if held == "watermark":
                return bool(bench.view.progress._waiters)
            return bool(bench.poller._waiting._sleepers)

        async with anyio.create_task_group() as group:
            group.start_soon(close_while, bench, ready)
            with anyio.fail_after(5), pytest.raises(ClosedError, match="shut down"):
                await bench.poll(wait=60, settle_ms=60_000 if held == "settle" else 0)
        with pytest.raises(ClosedError, match="shut down"):
            await bench.poll()
        with pytest.raises(ClosedError, match="shut down"):
            bench.poller.subscribe(None)  # type: ignore[arg-type]


async def test_cancelled_poll_has_no_effect_and_leaves_no_task(anyio_backend: str) -> None:
    """Cancelled while reading and while waiting; the same cursor still gives everything."""
    store = AsyncStore()
    store.put(0, 1)
    async with lab(store) as bench:
        first = await bench.poll()
        with anyio.move_on_after(0.05):
            await bench.poll(cursor=first.cursor, wait=60)
        store.put(0, 2)
        store.faults[Stream(0)] = anyio.sleep_forever
        with anyio.move_on_after(0.05):
            await bench.poll(cursor=first.cursor)
        store.faults.clear()
        page = await bench.poll(cursor=first.cursor)
        assert [event.ts for event in page.events] == [2]
        assert page.failed_shards == {}
        if anyio_backend == "asyncio":
            await asyncio.sleep(0)
            assert asyncio.all_tasks() == {asyncio.current_task()} or not [
                task for task in asyncio.all_tasks() if task.get_name().startswith("netcore")
            ]


@pytest.mark.parametrize("wait", [0.0, 60.0])
async def test_poll_cancelled_at_any_of_its_awaits_has_no_effect(anyio_backend: str, wait: float) -> None:
    """However far it came: the same cursor gives the same page, and no read is left hanging about."""
    store = AsyncStore()
    store.put(0, 1, 3)
    store.put(1, 2, 4)
    async with lab(store) as bench:
        first = await bench.poll(1)
        behind = (await bench.poll(cursor=first.cursor)).cursor
        for steps in range(40):
            async with anyio.create_task_group() as group:
                cursor = behind if wait else first.cursor
                group.start_soon(lambda cursor=cursor: bench.poll(cursor=cursor, wait=wait))
                for _ in range(steps):
                    await anyio.lowlevel.checkpoint()
                group.cancel_scope.cancel()
            page = await bench.poll(cursor=first.cursor)
            assert [event.ts for event in page.events] == [2, 3, 4]
            assert (page.cursor, page.failed_shards) == (behind, {})


async def test_polls_side_by_side_are_independent_chains(anyio_backend: str) -> None:
    """Many consumers at once, each gets everything."""
    store = AsyncStore()
    for shard in range(4):
        store.put(shard, *range(shard, 200, 4))
    got: dict[int, list[int]] = {}

    async with lab(store) as bench:

        async def consume(number: int) -> None:
            pages = await bench.drain(7 + number, ordering="causal")
            got[number] = [event.ts for page in pages for event in page.events]

        async with anyio.create_task_group() as group:
            for number in range(8):
                group.start_soon(consume, number)
    assert got == {number: list(range(200)) for number in range(8)}


async def test_waiting_poll_with_a_failing_shard_waits_for_the_others(anyio_backend: str) -> None:
    """A shard that cannot be read neither ends the wait nor makes it spin."""
    store = Store()
    store.put(0, 1)
    store.put(1)

    def away() -> None:
        raise TransientAdapterError("away")

    store.faults[Stream(0)] = away
    async with lab(store) as bench:

        async def later() -> None:
            await until_waiting(store, 3)
            store.put(1, 9)

        async with anyio.create_task_group() as group:
            group.start_soon(later)
            with anyio.fail_after(10):
                page = await bench.poll(wait=60)
        assert [event.ts for event in page.events] == [9]
        assert page.failed_shards == {0: "away"}
        assert len(store.reads) < 40


async def test_wait_is_given_where_each_stream_was_looked_at(anyio_backend: str) -> None:
    """Wanted streams as far as they were read, others at their tails: nothing old wakes a poll."""
    asked: list[dict[Stream, str | None]] = []

    class Watching(Store):
        async def wait(self, positions: Mapping[Stream, str | None], timeout: float) -> None:
            asked.append(dict(positions))
            await super().wait(positions, timeout)

    store = Watching()
    store.put(0, 1, 2)
    store.put(1, 3, 4, 5)
    async with lab(store) as bench:
        first = await bench.poll(shards=[0])
        await bench.poll(cursor=first.cursor, shards=[0], wait=0.05)
        assert asked == [{Stream(0): "2", Stream(1): "3"}]
