"""Subscriptions: every event once, an exact cursor, nothing left behind."""

from __future__ import annotations

import asyncio

import anyio
import pytest
from consume_lab import AsyncStore, ByNumber, Lab, Store, WatermarkStore, lab, names
from hypothesis import given, settings
from hypothesis import strategies as st

from netcore.consume.request import ConsumeRequest
from netcore.consume.subscription import Subscription
from netcore.contracts.adapter import Gap, Stream
from netcore.errors import ClosedError, CursorError, TransientAdapterError

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def request(limit: int = 10, **options: object) -> ConsumeRequest:
    options.setdefault("start", "earliest")
    return ConsumeRequest(limit, **options)  # type: ignore[arg-type]


def assert_no_tasks_left() -> None:
    left = [task for task in asyncio.all_tasks() if task.get_name().startswith("netcore")]
    assert left == []


@pytest.mark.parametrize("make", [Store, AsyncStore])
async def test_subscription_yields_everything_stored_and_to_come_in_order(
    anyio_backend: str, make: type[Store]
) -> None:
    """Backlog first, then events as they are stored, through many pages."""
    store = make()
    for shard in range(3):
        store.put(shard, *range(shard, 60, 3))
    got: list[int] = []
    async with lab(store) as bench:
        with anyio.fail_after(10):
            async with bench.poller.subscribe(request(7)) as events:
                async for event in events:
                    got.append(event.ts)
                    if event.ts % 30 == 29 and event.ts < 200:
                        store.put(event.ts % 3, *range(event.ts + 31, event.ts + 61))
                    if len(got) == 150:
                        break
    assert len(set(got)) == 150


async def test_subscription_at_tail_is_pinned_when_entered(anyio_backend: str) -> None:
    """From entering on, not from the first iteration on."""
    store = Store()
    store.put(0, 1)
    async with lab(store) as bench, bench.poller.subscribe(request(start="tail")) as events:
        store.put(0, 2)
        store.put(1, 3)
        with anyio.fail_after(5):
            assert [(await anext(events)).ts for _ in range(2)] == [2, 3]


@given(
    many=st.lists(st.lists(st.integers(0, 30), max_size=12), min_size=1, max_size=4),
    limit=st.integers(1, 9),
    stops=st.lists(st.integers(0, 6), min_size=1, max_size=8),
    divisor=st.integers(1, 3),
    ordering=st.sampled_from(["causal", "shard"]),
)
@settings(max_examples=80, deadline=None)
def test_subscription_resumed_at_its_cursor_anywhere_repeats_and_loses_nothing(
    many: list[list[int]], limit: int, stops: list[int], divisor: int, ordering: str
) -> None:
    """Leaving in the middle of a page, again and again, the cursor covers exactly what was yielded."""
    store = Store()
    for shard, stamps in enumerate(many):
        store.put(shard, *stamps)

    async def main() -> None:
        async with lab(store) as bench:
            options = {"ordering": ordering, "filter": ByNumber(divisor)}
            whole = [name for page in await bench.drain(limit, **options) for name in names(page.events)]
            got = []
            cursor = None
            while len(got) < len(whole):
                for stop in [*stops, 1]:
                    count = min(stop, len(whole) - len(got))
                    asked = request(limit, cursor=cursor, **options)
                    async with bench.poller.subscribe(asked) as events:
                        for _ in range(count):
                            with anyio.fail_after(5):
                                got += names([await anext(events)])
                        cursor = events.cursor
            if ordering == "causal":
                assert got == whole
            else:
                assert sorted(got) == sorted(whole)

    anyio.run(main)


async def test_subscription_cursor_is_the_pages_own_at_its_ends(anyio_backend: str) -> None:
    """Before the first event it is where the chain began, after the last what a poll would give."""
    store = Store()
    store.put(0, 1, 2)
    async with lab(store) as bench:
        page = await bench.poll(2)
        async with bench.poller.subscribe(request(2)) as events:
            begin = events.cursor
            await anext(events)
            middle = events.cursor
            assert events.cursor is middle
            await anext(events)
            assert events.cursor == page.cursor
        again = await bench.poll(cursor=begin)
        assert [event.ts for event in again.events] == [1, 2]
        again = await bench.poll(cursor=middle)
        assert [event.ts for event in again.events] == [2]


async def test_subscription_fetches_one_page_ahead_and_never_more(anyio_backend: str) -> None:
    """A consumer that stops stops the reads."""
    store = Store()
    store.put(0, *range(1000))
    async with lab(store) as bench, bench.poller.subscribe(request(10)) as events:
        await anext(events)
        for _ in range(50):
            await anyio.lowlevel.checkpoint()
        assert len(store.reads) == 2
        for _ in range(10):
            await anext(events)
        for _ in range(50):
            await anyio.lowlevel.checkpoint()
        assert len(store.reads) == 3


async def test_subscription_with_a_long_backlog_lets_other_tasks_run(anyio_backend: str) -> None:
    """At every page's end, even where no call ever suspends."""
    store = Store()
    store.put(0, *range(500))
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    async with lab(store) as bench, anyio.create_task_group() as group:
        group.start_soon(other)
        async with bench.poller.subscribe(request(10)) as events:
            for _ in range(500):
                await anext(events)
        assert turns >= 49
        group.cancel_scope.cancel()


async def test_subscription_survives_a_failing_shard_and_a_failing_listing(anyio_backend: str) -> None:
    """The others go on; the shard is named, and read when it can be again."""
    store = Store()
    store.put(0, 1, 4)
    store.put(1, 2)

    def away() -> None:
        raise TransientAdapterError("away")

    store.faults[Stream(1)] = away
    async with lab(store) as bench:
        with anyio.fail_after(10):
            async with bench.poller.subscribe(request()) as events:
                assert [(await anext(events)).ts for _ in range(2)] == [1, 4]
                assert events.failed_shards == {1: "away"}
                store.faults = {"streams": away}
                store.put(0, 5)

                async def mend() -> None:
                    await anyio.sleep(0.1)
                    store.faults.clear()

                async with anyio.create_task_group() as group:
                    group.start_soon(mend)
                    assert sorted([(await anext(events)).ts for _ in range(2)]) == [2, 5]
                assert events.failed_shards == {}


async def test_subscription_survives_when_not_a_single_shard_is_known(anyio_backend: str) -> None:
    """A store that is empty and away at once is tried again."""
    store = Store()

    def away() -> None:
        raise TransientAdapterError("away")

    async with lab(store) as bench, bench.poller.subscribe(request()) as events:
        store.faults["streams"] = away

        async def mend() -> None:
            await anyio.sleep(0.1)
            store.faults.clear()
            store.put(0, 1)

        with anyio.fail_after(10):
            async with anyio.create_task_group() as group:
                group.start_soon(mend)
                assert (await anext(events)).ts == 1


async def test_subscription_collects_gaps_and_undecodable_counts(anyio_backend: str) -> None:
    """They are kept for whoever asks, in order."""
    store = Store()
    store.put(0, 1, 2, 3, None, 5)
    async with lab(store) as bench, bench.poller.subscribe(request(1)) as events:
        store.trimmed[Stream(0)] = 2
        with anyio.fail_after(5):
            got = [(await anext(events)).ts for _ in range(3)]
        assert got == [1, 3, 5]
        assert events.gaps == [Gap(shard=0, missed=1, resumed_at="2")]
        assert events.undecodable == 1


@pytest.mark.parametrize("make", [Store, WatermarkStore])
async def test_subscription_ends_cleanly_when_the_bus_closes(anyio_backend: str, make: type[Store]) -> None:
    """What was fetched is yielded, then the iteration ends; again and again."""
    store = make()
    store.put(0, 1, 2)
    got: list[int] = []
    async with lab(store) as bench:

        async def consume() -> None:
            async with bench.poller.subscribe(request()) as events:
                async for event in events:
                    got.append(event.ts)
                with pytest.raises(StopAsyncIteration):
                    await anext(events)

        async with anyio.create_task_group() as group:
            group.start_soon(consume)
            with anyio.fail_after(5):
                while "wait" not in store.calls:
                    await anyio.lowlevel.checkpoint()
            bench.poller.close()
    assert got == [1, 2]


async def leave(bench: Lab, how: str) -> None:
    async with bench.poller.subscribe(request(1)) as events:
        if how == "break":
            async for _ in events:
                break
        elif how == "raise":
            async for _ in events:
                raise LookupError
        else:
            async for _ in events:
                pass


@pytest.mark.parametrize("make", [Store, AsyncStore])
@pytest.mark.parametrize("how", ["break", "raise", "cancel"])
async def test_subscription_left_in_any_way_leaves_nothing_behind(
    anyio_backend: str, make: type[Store], how: str
) -> None:
    """Break, exception, cancellation while it waits: no task survives."""
    store = make()
    store.put(0, 1, 2, 3)
    async with lab(store) as bench:
        with anyio.fail_after(5):
            if how == "cancel":
                with anyio.move_on_after(0.1):
                    await leave(bench, how)
            elif how == "raise":
                with pytest.raises(LookupError):
                    await leave(bench, how)
            else:
                await leave(bench, how)
        if anyio_backend == "asyncio":
            for _ in range(3):
                await asyncio.sleep(0)
            assert_no_tasks_left()


async def test_subscription_iteration_cancelled_loses_nothing(anyio_backend: str) -> None:
    """A time-out around `anext` may be tried again."""
    store = Store()
    store.put(0, 1)
    async with lab(store) as bench, bench.poller.subscribe(request()) as events:
        assert (await anext(events)).ts == 1
        with anyio.move_on_after(0.05):
            await anext(events)
        store.put(0, 2)
        with anyio.fail_after(5):
            assert (await anext(events)).ts == 2


async def test_subscription_outside_async_with_is_refused(anyio_backend: str) -> None:
    """Not before, not after, and not twice."""
    store = Store()
    store.put(0, 1)
    async with lab(store) as bench:
        events = bench.poller.subscribe(request())
        with pytest.raises(ClosedError, match="async with"):
            await anext(events)
        with pytest.raises(ClosedError, match="async with"):
            _ = events.cursor
        async with events:
            pass
        page = await bench.poll(cursor=events.cursor)
        assert [event.ts for event in page.events] == [1]
        with pytest.raises(ClosedError, match="async with"):
            await anext(events)
        with pytest.raises(ClosedError, match="only once"):
            await events.__aenter__()


async def test_subscription_iterated_by_two_tasks_is_refused(anyio_backend: str) -> None:
    """One consumer; the other is told how."""
    store = Store()

    async def first(events: Subscription) -> None:
        await anext(events)

    async with (
        lab(store) as bench,
        bench.poller.subscribe(request()) as events,
        anyio.create_task_group() as group,
    ):
        group.start_soon(first, events)
        while "wait" not in store.calls:
            await anyio.lowlevel.checkpoint()
        with pytest.raises(RuntimeError, match="one consumer"):
            await anext(events)
        group.cancel_scope.cancel()


async def test_subscription_with_a_bad_cursor_raises_on_entering(anyio_backend: str) -> None:
    """As a poll would."""
    async with lab() as bench:
        with pytest.raises(CursorError, match="begin a new chain"):
            async with bench.poller.subscribe(request(cursor="nonsense")):
                pass
