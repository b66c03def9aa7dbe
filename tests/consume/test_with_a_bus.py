"""Polls of a real bus: the watermark, rings and batches are the real ones."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter

import anyio
import msgspec
import pytest

from netcore import Batch, ConsumeRequest, EventBus, EventBusConfig, FilterError, StoredEvent

pytestmark = pytest.mark.anyio

SECOND = 1_000_000_000


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_filter_that_raises_ends_the_poll_with_what_it_raised(anyio_backend: str) -> None:
    """Its author is told that it was the filter; the chain goes on where it was with another."""

    class Careless:
        def matches(self, raw: bytes, /) -> bool:
            return bool(msgspec.json.decode(raw)["n"])

        def to_json(self) -> str:
            return "{}"

        @classmethod
        def from_json(cls, data: object, /) -> Careless:
            return cls()

    async with EventBus(EventBusConfig(shards=1)) as bus:
        bus.ingest_raw_many([b'{"n": 1}', b"not JSON"])
        await bus.flush()
        for ordering in ("causal", "shard"):
            careless = ConsumeRequest(10, start="earliest", filter=Careless(), ordering=ordering)
            with pytest.raises(FilterError, match=r"filter failed on an event \(DecodeError: .*any payload"):
                await bus.poll(careless)
        with pytest.raises(FilterError, match="filter failed"):
            async with bus.subscribe(ConsumeRequest(10, start="earliest", filter=Careless())):
                pass
        assert len((await bus.poll(ConsumeRequest(10, start="earliest"))).events) == 2


async def test_causal_pages_of_a_bus_under_fire_are_complete_and_in_order(anyio_backend: str) -> None:
    """Threads ingest, batches leave when they like: keys rise over all pages, nothing is lost or doubled."""
    threads, each = 3, 4000
    config = EventBusConfig(shards=5, ring_capacity=threads * each, adapter={"kind": "memory"})
    async with EventBus(config) as bus:

        def produce(number: int) -> None:
            for index in range(each):
                bus.ingest_raw(b"%d:%d" % (number, index))

        producers = [threading.Thread(target=produce, args=(number,)) for number in range(threads)]
        for producer in producers:
            producer.start()
        events: list[StoredEvent] = []
        cursor = None
        with anyio.fail_after(60):
            while len(events) < threads * each:
                request = ConsumeRequest(700, cursor=cursor, start="earliest")
                page = await bus.poll(request, wait=1.0)
                cursor = page.cursor
                events += page.events
        for producer in producers:
            producer.join()
        assert set(Counter(event.raw for event in events).values()) == {1}
        keys: list[int] = []
        last: dict[int, int] = {}
        for event in events:
            last[event.shard] = max(last.get(event.shard, 0), event.ts)
            keys.append(last[event.shard])
        # Threads that are between drawing a timestamp and pushing are concurrent with the page.
        late = sum(1 for before, after in itertools.pairwise(keys) if after < before)
        assert late <= threads * len(events) // 700
        page = await bus.poll(ConsumeRequest(10, cursor=cursor), wait=0.05)
        assert (page.events, page.cursor) == ([], cursor)


async def test_causal_pages_of_one_producer_are_in_the_order_it_ingested(anyio_backend: str) -> None:
    """Across shards, although each shard's batches leave on their own."""
    config = EventBusConfig(shards=7, adapter={"kind": "memory"})
    async with EventBus(config) as bus:
        got: list[bytes] = []
        async with bus.subscribe(ConsumeRequest(50)) as events:

            async def produce() -> None:
                for index in range(3000):
                    bus.ingest_raw(b"%d" % index)
                    if index % 37 == 0:
                        await anyio.lowlevel.checkpoint()

            with anyio.fail_after(60):
                async with anyio.create_task_group() as group:
                    group.start_soon(produce)
                    async for event in events:
                        got.append(event.raw)
                        if len(got) == 3000:
                            break
        assert got == [b"%d" % index for index in range(3000)]


async def test_polls_of_a_bus_end_when_it_shuts_down(anyio_backend: str) -> None:
    """A subscription ends by itself, with everything that was stored before it."""
    async with EventBus(EventBusConfig(shards=2, adapter={"kind": "memory"})) as bus:
        got: list[bytes] = []
        ready, received = anyio.Event(), anyio.Event()

        async def consume() -> None:
            async with bus.subscribe(ConsumeRequest(10)) as events:
                ready.set()
                async for event in events:
                    got.append(event.raw)
                    received.set()

        async with anyio.create_task_group() as group:
            group.start_soon(consume)
            await ready.wait()
            bus.ingest_raw(b"last words")
            with anyio.fail_after(10):
                await received.wait()
                await bus.shutdown()
        assert got == [b"last words"]


async def test_stats_count_polled_events_whose_clock_is_out_of_bounds(anyio_backend: str) -> None:
    """Each is delivered, none moves the bus's clock; what is in bounds does."""
    async with EventBus(EventBusConfig(shards=1, max_clock_drift_ms=30_000)) as bus:
        now = time.time_ns()
        ahead = now + 20 * SECOND
        stamps = [-1, ahead, now + 3600 * SECOND, 2**62 + 1]
        events = [StoredEvent(id="", shard=0, ts=ts, raw=b"%d" % ts) for ts in stamps]
        await bus._engine.adapter.append(Batch(producer="f" * 32, shard=0, first_seq=0, events=events))
        request = ConsumeRequest(10, start="earliest")
        polled: list[int] = []
        while len(polled) < len(stamps):
            page = await bus.poll(request, wait=5)
            polled += [event.ts for event in page.events]
            request = request.after(page.cursor)
        assert polled == stamps
        assert bus.stats().clock_anomalies == 3
        accepted = bus.ingest_raw(b"effect")
        assert accepted is not None
        assert ahead < accepted[1] < ahead + SECOND
        page = await bus.poll(request, wait=5)
        assert [event.raw for event in page.events] == [b"effect"]
        assert bus.stats().clock_anomalies == 3  # what was counted is not counted again
