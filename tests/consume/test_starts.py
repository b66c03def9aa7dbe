"""Where chains begin; streams that come late, go, or lost events."""

from __future__ import annotations

import datetime as dt
import itertools
import time

import anyio
import pytest
from consume_lab import AsyncStore, Store, lab, names

from netcore.contracts.adapter import Capabilities, Gap, Stream
from netcore.errors import AdapterError, ConfigError, CursorError, TransientAdapterError
from netcore.ingest.clock import REBASE_MARGIN_NS

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_tail_begins_behind_what_is_stored_in_every_stream(anyio_backend: str) -> None:
    """From now on, also in shards that the first request did not want."""
    store = Store()
    store.put(0, 1, 2)
    store.put(1, 3)
    async with lab(store) as bench:
        first = await bench.poll(start="tail", shards=[0])
        assert (first.events, first.has_more) == ([], False)
        store.put(0, 4)
        store.put(1, 5)
        page = await bench.poll(cursor=first.cursor)
        assert [event.ts for event in page.events] == [4, 5]


async def test_earliest_pins_so_that_trimming_before_the_first_read_is_a_gap(anyio_backend: str) -> None:
    """What a chain could have had and lost is told, even if it had read nothing of that shard yet."""
    store = Store()
    store.put(0, 1)
    store.put(1, 2, 3, 4)
    async with lab(store) as bench:
        first = await bench.poll(shards=[0])
        store.trimmed[Stream(1)] = 2
        page = await bench.poll(cursor=first.cursor)
        assert page.gaps == [Gap(shard=1, missed=2, resumed_at="2")]
        assert [event.ts for event in page.events] == [4]
        assert (await bench.poll(cursor=page.cursor)).gaps == []


@pytest.mark.parametrize("wait", [0.0, 20.0])
async def test_gap_without_events_is_told_at_once(anyio_backend: str, wait: float) -> None:
    """A gap ends a wait: the consumer should know."""
    store = Store()
    store.put(0, 1, 2, 3)
    async with lab(store) as bench:
        first = await bench.poll(1)
        store.trimmed[Stream(0)] = 3
        with anyio.fail_after(5):
            page = await bench.poll(cursor=first.cursor, wait=wait)
        assert page.events == []
        assert page.gaps == [Gap(shard=0, missed=2, resumed_at="3")]
        assert page.cursor != first.cursor


async def test_time_start_includes_events_at_that_time_and_drops_older_for_the_whole_chain(
    anyio_backend: str,
) -> None:
    """Seeking may be early; older events never show, not even ones stored later, nor in new streams."""
    store = Store()
    second = 10**9
    store.put(0, 1 * second, 2 * second, 3 * second)
    async with lab(store) as bench:
        start = dt.datetime.fromtimestamp(2, tz=dt.UTC)
        page = await bench.poll(1, start=start)
        assert [event.ts for event in page.events] == [2 * second]
        store.put(0, 1 * second, 4 * second)
        store.put(1, second // 2, 5 * second)
        pages = await bench.drain(1, cursor=page.cursor)
        assert [event.ts for page in pages for event in page.events] == [3 * second, 4 * second, 5 * second]


async def test_time_start_far_behind_many_old_events_is_bounded_work_a_poll(anyio_backend: str) -> None:
    """A store that can only seek to its beginning costs several polls, none of them without end."""

    class Seekless(Store):
        async def seek(self, stream: Stream, ts: int) -> str | None:
            return None

    store = Seekless()
    store.put(0, *range(30_000))
    async with lab(store) as bench:
        page = await bench.poll(1, start=29_999)
        assert (page.events, page.has_more) == ([], True)
        assert len(store.reads) < 40
        waited = await bench.poll(1, cursor=page.cursor, wait=5)
        assert [event.ts for event in waited.events] == [29_999]


async def test_late_streams_enter_at_tail_where_the_adapter_says_and_else_at_their_beginning(
    anyio_backend: str,
) -> None:
    """A stream merely not heard of is entered where it stood; a new one is read whole."""
    store = Store()
    since: list[int] = []

    class Late(Store):
        capabilities = Capabilities(inline=True, shared=True)  # so a stream may be old

        async def enter(self, stream: Stream, since_: int) -> str | None:
            since.append(since_)
            return await super().enter(stream, since_)

    store = Late()
    store.put(0, 1)
    async with lab(store) as bench:
        before = bench.clock.tick()
        tail = await bench.poll(start="tail")
        earliest = await bench.poll(start="earliest")
        after = bench.clock.tick()
        store.put(1, 2, 3, 4)
        store.put(2, 5)
        store.entered[Stream(1)] = "2"
        page = await bench.poll(cursor=tail.cursor)
        assert [event.ts for event in page.events] == [4, 5]
        assert since
        assert all(before < ts < after for ts in since)
        page = await bench.poll(cursor=earliest.cursor)
        assert [event.ts for event in page.events] == [2, 3, 4, 5]


async def test_tail_begins_at_the_wall_clock_though_the_bus_clock_lags(anyio_backend: str) -> None:
    """Else history that is heard of later counts as new, as far back as the clock lagged."""
    since: list[int] = []

    class Late(Store):
        async def enter(self, stream: Stream, since_: int) -> str | None:
            since.append(since_)
            return None

    store = Late()
    async with lab(store) as bench:
        wall = time.time_ns()
        bench.clock.counter = itertools.count(wall - 150_000_000)
        tail = await bench.poll(start="tail")
        store.put(0, 1)
        await bench.poll(cursor=tail.cursor)
    assert since
    assert min(since) >= wall - REBASE_MARGIN_NS


async def test_late_stream_that_cannot_be_entered_is_named_and_entered_later(anyio_backend: str) -> None:
    """Nothing of it is skipped."""
    store = Store()
    async with lab(store) as bench:
        first = await bench.poll(start="tail")
        store.put(1, 2)

        def away() -> None:
            raise TransientAdapterError("away")

        store.faults["enter"] = away
        page = await bench.poll(cursor=first.cursor)
        assert (page.events, page.failed_shards) == ([], {1: "away"})
        store.faults.clear()
        page = await bench.poll(cursor=page.cursor)
        assert [event.ts for event in page.events] == [2]


async def test_late_stream_whose_entering_hangs_costs_one_poll_and_is_entered_later(
    anyio_backend: str,
) -> None:
    """Like a read that hangs: named at once afterwards, probed, and then read whole."""
    store = AsyncStore()
    async with lab(store, timeout_s=0.8) as bench:
        page = await bench.poll(start="tail")
        store.put(1, 2)
        store.faults["enter"] = anyio.sleep_forever
        page = await bench.poll(cursor=page.cursor)
        assert set(page.failed_shards) == {1}
        with anyio.fail_after(0.75):
            page = await bench.poll(cursor=page.cursor)
        assert set(page.failed_shards) == {1}
        store.faults.clear()
        with anyio.fail_after(10):
            while page.failed_shards:
                await anyio.lowlevel.checkpoint()
                page = await bench.poll(cursor=page.cursor)
        assert [event.ts for event in page.events] == [2]


async def test_retired_that_hangs_costs_one_poll(anyio_backend: str) -> None:
    """Not knowing whether a stream is gone harms nobody; the entry stays."""
    store = AsyncStore()
    store.put(0, 1)
    store.put(1, 2)
    async with lab(store, timeout_s=0.8) as bench:
        page = await bench.poll()
        del store.logs[Stream(1)]
        store.faults["retired"] = anyio.sleep_forever
        store.put(0, 3)
        page = await bench.poll(cursor=page.cursor)
        assert [event.ts for event in page.events] == [3]
        with anyio.fail_after(0.75):
            again = await bench.poll(cursor=page.cursor)
        assert again.cursor == page.cursor


async def test_retired_streams_leave_the_cursor_and_unheard_of_ones_stay(anyio_backend: str) -> None:
    """Only what the adapter says will never hold data again is dropped."""
    store = Store()
    store.put(0, 1)
    store.put(1, 2)
    store.put(2, 3)
    async with lab(store) as bench:
        page = (await bench.drain())[-1]
        del store.logs[Stream(1)]
        kept = await bench.poll(cursor=page.cursor)
        assert kept.cursor == page.cursor
        store.gone = {Stream(2)}
        smaller = await bench.poll(cursor=page.cursor)
        assert len(smaller.cursor) < len(page.cursor)


@pytest.mark.parametrize("hanging", [False, True])
@pytest.mark.parametrize("start", ["tail", "earliest"])
async def test_first_poll_that_cannot_pin_every_stream_raises(
    anyio_backend: str, start: str, hanging: bool
) -> None:
    """A chain begins whole or not at all, within the time-out."""
    store = AsyncStore()
    store.put(0, 1)

    def broken() -> object:
        if hanging:
            return anyio.sleep_forever()
        raise TransientAdapterError("away")

    store.faults["bounds"] = broken
    async with lab(store, timeout_s=0.1) as bench:
        with anyio.fail_after(5), pytest.raises(AdapterError, match="shard 0"):
            await bench.poll(start=start)


async def test_position_that_the_store_refuses_raises_cursor_error(anyio_backend: str) -> None:
    """A position never issued is no failing shard: it would never get better."""
    store = Store()
    store.put(0, 1, 2, 3)
    async with lab(store) as bench:
        page = await bench.poll()
        del store.logs[Stream(0)][1:]
        with pytest.raises(CursorError, match="not a position"):
            await bench.poll(cursor=page.cursor)


async def test_cursor_of_another_store_is_refused(anyio_backend: str) -> None:
    """Two private stores of one kind are two stores."""
    async with lab(Store()) as one, lab(Store()) as other:
        page = await one.poll()
        with pytest.raises(CursorError, match="another 'lab' store"):
            await other.poll(cursor=page.cursor)


async def test_shards_unknown_to_a_private_store_are_an_error_naming_the_known(anyio_backend: str) -> None:
    """Neither listed, nor the bus's, nor in the cursor: a typing mistake."""
    store = Store()
    store.put(3, 1)
    async with lab(store) as bench:
        bench.view.shards = {0, 1}
        with pytest.raises(ConfigError, match=r"\[7\].*known: 0, 1, 3"):
            await bench.poll(shards=[0, 3, 7])
        page = await bench.poll(shards=[0, 3])
        assert names(page.events) == [(3, "", "1")]


async def test_shards_unknown_to_a_shared_store_are_simply_empty(anyio_backend: str) -> None:
    """Another process may write them any moment."""

    class Shared(Store):
        capabilities = Capabilities(inline=True, shared=True)

    async with lab(Shared()) as bench:
        page = await bench.poll(shards=[7])
        assert (page.events, page.failed_shards) == ([], {})


@pytest.mark.parametrize("wait", [-1, float("nan"), float("inf"), True, "1"])
async def test_wait_that_is_no_number_of_seconds_is_refused(anyio_backend: str, wait: object) -> None:
    """Waiting has a deadline."""
    async with lab() as bench:
        with pytest.raises(ConfigError, match="wait must be"):
            await bench.poll(wait=wait)  # type: ignore[arg-type]


async def test_chain_enters_streams_of_an_inline_store_side_by_side(anyio_backend: str) -> None:
    """Reads of such a store do not suspend; entering a stream may, and no stream waits for another's."""
    store = Store()
    store.put(0, 1)
    async with lab(store) as bench:
        page = await bench.poll(start="tail")
        store.put(1, 2)
        store.put(2, 3)
        both, waiting = anyio.Event(), 0

        async def meet() -> None:
            nonlocal waiting
            waiting += 1
            if waiting == 2:
                both.set()
            await both.wait()

        store.faults["enter"] = meet
        with anyio.fail_after(10):
            page = await bench.poll(cursor=page.cursor)
        assert not page.failed_shards
        assert [event.ts for event in page.events] == [2, 3]
