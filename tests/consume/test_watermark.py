"""What is held back: by the watermark, by `settle_ms`; for how long, and what says so."""

from __future__ import annotations

import anyio
import pytest
from consume_lab import Lab, Store, WatermarkStore, lab

from netcore.contracts.adapter import Stream

pytestmark = pytest.mark.anyio

DAY_NS = 86_400 * 10**9


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def stamps(page: object) -> list[int]:
    return [event.ts for event in page.events]  # type: ignore[attr-defined]


async def test_watermark_cuts_the_page_and_has_more_tells(anyio_backend: str) -> None:
    """Keys from the watermark on stay behind; they count as more, and come once it has moved."""
    store = WatermarkStore()
    store.put(0, 10, 30)
    store.put(1, 20, 40)
    async with lab(store) as bench:
        bench.view.low = 30
        page = await bench.poll()
        assert (stamps(page), page.has_more) == ([10, 20], True)
        bench.view.low = 41
        page = await bench.poll(cursor=page.cursor)
        assert (stamps(page), page.has_more) == ([30, 40], False)


async def test_watermark_is_asked_before_the_snapshot(anyio_backend: str) -> None:
    """An event stored between the two is in the page or above the cut, never between pages."""
    store = WatermarkStore()
    store.put(0, 10)
    async with lab(store) as bench:
        seen: list[str] = []
        bench.view.on_watermark = lambda: seen.append("watermark")
        store.faults["snapshot"] = lambda: seen.append("snapshot")
        store.faults["streams"] = lambda: seen.append("streams")
        store.before_read = lambda: seen.append("read")
        first = await bench.poll()
        del seen[:]
        await bench.poll(cursor=first.cursor)
        assert seen == ["watermark", "snapshot", "streams", "read"]


async def test_watermark_that_would_empty_the_page_is_waited_for_even_without_wait(
    anyio_backend: str,
) -> None:
    """A held page waits for progress, not for its bound."""
    store = WatermarkStore()
    store.put(0, 30)
    async with lab(store, causal_wait_s=30) as bench:
        bench.view.low = 30

        async def settle() -> None:
            while not bench.view.progress._waiters:
                await anyio.lowlevel.checkpoint()
            bench.view.low = 31
            bench.view.progress.notify()

        async with anyio.create_task_group() as group:
            group.start_soon(settle)
            with anyio.fail_after(5):
                page = await bench.poll()
        assert (stamps(page), page.has_more) == ([30], False)


async def test_watermark_held_for_good_ends_after_causal_wait_with_has_more(anyio_backend: str) -> None:
    """The wait is bounded, and what is held is still announced."""
    store = WatermarkStore()
    store.put(0, 30)
    async with lab(store, causal_wait_s=0.1) as bench:
        bench.view.low = 30
        began = anyio.current_time()
        page = await bench.poll()
        assert 0.1 <= anyio.current_time() - began < 2
        assert (stamps(page), page.has_more) == ([], True)


async def test_watermark_of_a_lagging_shard_is_reported_and_holds_nobody(anyio_backend: str) -> None:
    """A shard leaves the watermark by time alone; the poll notices without being notified."""
    store = WatermarkStore()
    store.put(0, 30)
    store.put(1)
    async with lab(store, causal_wait_s=0.2) as bench:
        bench.view.low = 10
        end = anyio.current_time() + 0.15

        def drop_out() -> None:
            if anyio.current_time() >= end:
                bench.view.low, bench.view.lagging = 1 << 60, frozenset({1})

        bench.view.on_watermark = drop_out
        page = await bench.poll()
        assert (stamps(page), page.lagging_shards) == ([30], {1})
        again = await bench.poll(cursor=page.cursor, shards=[0])
        assert again.lagging_shards == set()


async def test_watermark_does_not_hold_events_of_a_broken_clock(anyio_backend: str) -> None:
    """A timestamp years ahead is delivered and counted, not waited for, and not observed."""
    store = WatermarkStore()
    store.put(0, 1 << 62)
    store.put(1, -5, 7)
    async with lab(store) as bench:
        bench.view.low = 100
        page = await bench.poll()
        assert stamps(page) == [-5, 7, 1 << 62]
        assert bench.clock.anomalies == 2
        assert bench.clock.tick() < 1 << 62


async def test_watermark_behind_an_event_from_a_clock_ahead_moves_past_it(anyio_backend: str) -> None:
    """Where the watermark is the bus's own clock, an event seen from ahead does not wait for time to pass."""
    store = WatermarkStore()
    async with lab(store, causal_wait_s=30) as bench:
        ahead = bench.clock.tick() + 20 * 10**9
        store.put(0, ahead)

        def tick() -> None:
            bench.view.low = bench.clock.tick()

        bench.view.on_watermark = tick
        with anyio.fail_after(5):
            assert stamps(await bench.poll()) == [ahead]
        assert bench.clock.anomalies == 0


async def test_watermark_is_not_asked_of_a_store_without_it(anyio_backend: str) -> None:
    """A broker's page is cut by nothing."""
    store = Store()
    store.put(0, 30)
    async with lab(store) as bench:
        bench.view.low = 0
        assert stamps(await bench.poll()) == [30]


async def test_watermark_does_not_concern_shard_order(anyio_backend: str) -> None:
    """Without an order across shards there is nothing to hold back."""
    store = WatermarkStore()
    store.put(0, 30)
    async with lab(store) as bench:
        bench.view.low = 0
        assert stamps(await bench.poll(ordering="shard")) == [30]


async def settled(bench: Lab, ordering: str, **options: object) -> list[int]:
    return stamps(await bench.poll(ordering=ordering, settle_ms=1000, **options))


@pytest.mark.parametrize("ordering", ["causal", "shard"])
async def test_settle_serves_only_events_old_enough(anyio_backend: str, ordering: str) -> None:
    """An event is served when it is `settle_ms` old, in its stream's order, on any store."""
    store = Store()
    now = [DAY_NS]
    store.put(0, DAY_NS - 2 * 10**9, DAY_NS - 10**9, DAY_NS - 5 * 10**8, DAY_NS - 3 * 10**9)
    async with lab(store, now=lambda: now[0]) as bench:
        page = await bench.poll(ordering=ordering, settle_ms=1000)
        assert stamps(page) == [DAY_NS - 2 * 10**9, DAY_NS - 10**9]
        assert page.has_more
        idle = await bench.poll(ordering=ordering, settle_ms=1000, cursor=page.cursor)
        assert (idle.events, idle.cursor, idle.has_more) == ([], page.cursor, True)
        now[0] += 5 * 10**8
        page = await bench.poll(ordering=ordering, settle_ms=1000, cursor=page.cursor)
        assert stamps(page) == [DAY_NS - 5 * 10**8, DAY_NS - 3 * 10**9]
        assert not page.has_more


async def test_settle_with_wait_returns_once_the_oldest_is_old_enough(anyio_backend: str) -> None:
    """A waiting poll sleeps until then, without asking the store over and over."""
    store = Store()
    origin = anyio.current_time()

    def now() -> int:
        return DAY_NS + int((anyio.current_time() - origin) * 1e9)

    store.put(0, DAY_NS - 8 * 10**8)
    async with lab(store, now=now) as bench:
        page = await bench.poll(settle_ms=1000, wait=10)
        assert stamps(page) == [DAY_NS - 8 * 10**8]
        assert 0.15 < anyio.current_time() - origin < 5
        assert len(store.reads) < 10


async def test_polled_events_move_the_clock_past_them(anyio_backend: str) -> None:
    """What is ingested after reading an event has the larger timestamp."""
    store = Store()
    async with lab(store) as bench:
        ahead = bench.clock.tick() + 10**9
        store.put(0, ahead)
        store.put(1, ahead - 5)
        await bench.poll()
        assert bench.clock.tick() > ahead
        assert bench.clock.anomalies == 0


async def test_returned_tells_the_adapter_the_latest_of_each_origin(anyio_backend: str) -> None:
    """The optional hook gets origin -> greatest ts of what was returned, and only then."""
    told: list[dict[str, int]] = []

    class Listening(Store):
        def returned(self, latest: dict[str, int]) -> None:
            told.append(latest)

    store = Listening()
    store.put(0, 10, 30, 20, origin="a")
    store.put(1, 25, origin="b")
    async with lab(store) as bench:
        page = await bench.poll(3)
        await bench.poll(cursor=page.cursor)
        await bench.poll(cursor=page.cursor, shards=[1])
        assert told == [{"a": 30, "b": 25}, {"a": 20}]
        assert Stream(0, "a") in store.logs
