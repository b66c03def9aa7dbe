"""Long runs of whole buses: a large backlog, mixed load while scaling, shutdowns under fire."""

from __future__ import annotations

import gc
import os
import random
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from netcore import (
    AdapterConfig,
    BackpressureError,
    Batch,
    BatchConfig,
    ClosedError,
    ConsumeRequest,
    EventBus,
    EventBusConfig,
    blocking,
    hookimpl,
)
from netcore.builtin.memory import MemoryAdapter, MemoryConfig

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]


class KeepingConfig(AdapterConfig, frozen=True, kw_only=True, tag="keeping"):
    """No settings."""


class Keeping(MemoryAdapter):
    """The memory adapter; what it stored outlives its close."""

    kind = "keeping"
    Config: Any = KeepingConfig
    stored: list[bytes]

    def __init__(self, config: Any) -> None:
        super().__init__(MemoryConfig())
        self.stored = []

    async def append(self, batch: Batch) -> None:
        await super().append(batch)
        self.stored += [event.raw for event in batch.events]


def resident_bytes() -> int:
    """Return the process's resident memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.anyio
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_backlog_of_ten_million_passes_bounded_retention(anyio_backend: str) -> None:
    """Memory stays bounded, and what was returned and what gaps count add up to what came in."""
    total, step = 10_000_000, 1000
    memory = MemoryConfig(max_events=50_000)
    async with EventBus(EventBusConfig(shards=4, backpressure="block", adapter=memory)) as bus:

        def produce() -> None:
            for first in range(0, total, step):
                bus.ingest_raw_many([b"%d" % number for number in range(first, first + step)])

        request = ConsumeRequest(10_000, start="earliest")
        request = request.after((await bus.poll(request)).cursor)
        before = peak = resident_bytes()
        returned = missed = 0
        producer = threading.Thread(target=produce)
        producer.start()
        while True:
            over = not producer.is_alive()
            if over:
                await bus.flush(60)
            page = await bus.poll(request)
            request = request.after(page.cursor)
            returned += len(page.events)
            missed += sum(gap.missed or 0 for gap in page.gaps)
            peak = max(peak, resident_bytes())
            if over and not page.has_more:
                break
            await anyio.lowlevel.checkpoint()
        stats = bus.stats()
        assert stats.ingested == stats.dispatched == total
        assert returned + missed == total
        assert peak - before < 400_000_000


async def mixed_load(seconds: float, seed: int) -> None:
    """Ingest from threads and tasks while shards come and go; one chain of polls sees each event once."""
    rng = random.Random(seed)
    config = EventBusConfig(
        shards=3,
        ring_capacity=5000,
        backpressure="block",
        batch=BatchConfig(max_events=256, max_delay_ms=2),
        adapter=MemoryConfig(max_events=100_000_000),
    )
    ends = time.monotonic() + seconds
    newest: list[dict[int, int]] = []

    async with EventBus(config) as bus:

        def produce(thread: int) -> None:
            number = 0
            while time.monotonic() < ends:
                for _ in range(200):
                    bus.ingest_raw(b"%d:%d" % (thread, number), key=str(number % 97))
                    number += 1
                time.sleep(0.01)

        async def scale() -> None:
            while time.monotonic() < ends:
                await anyio.sleep(0.05)
                present = [shard.id for shard in bus.stats().shards if not shard.leaving]
                if len(present) < 3 or (len(present) < 8 and rng.random() < 0.5):
                    await bus.add_shards(rng.randint(1, 2))
                else:
                    await bus.remove_shards(rng.sample(present, rng.randint(1, 2)))

        async def consume() -> None:
            request = ConsumeRequest(5000, start="earliest")
            last: dict[bytes, int] = {}
            seen = 0
            while True:
                over = not any(thread.is_alive() for thread in threads)
                if over:
                    await bus.flush(60)
                with anyio.move_on_after(rng.choice([0.0005, 5, 5, 5])):
                    page = await bus.poll(request, wait=0.01)
                    request = request.after(page.cursor)
                    assert not page.failed_shards
                    assert not page.gaps
                    for event in page.events:
                        thread, _, number = event.raw.partition(b":")
                        assert int(number) == last.get(thread, -1) + 1, "out of a producer's order"
                        last[thread] = int(number)
                    seen += len(page.events)
                    if over and not page.has_more:
                        break
            newest.append({int(thread): number for thread, number in last.items()})
            stats = bus.stats()
            assert seen == stats.ingested == stats.dispatched

        threads = [threading.Thread(target=produce, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        async with anyio.create_task_group() as group:
            group.start_soon(scale)
            group.start_soon(consume)
            group.start_soon(consume)
        assert newest[0] == newest[1]


@pytest.mark.anyio
async def test_mixed_load_with_shards_coming_and_going_keeps_every_producers_order() -> None:
    """Half a minute on each loop: complete, once, in causal order, for two chains at a time."""
    await mixed_load(30.0, seed=1)


@pytest.mark.anyio
@pytest.mark.parametrize("policy", ["drop_oldest", "drop_newest", "block"])
async def test_shutdowns_under_fire_account_for_every_event(policy: str) -> None:
    """Twenty times: what `ingest` accepted is stored or evicted, and what it refused is neither."""
    for turn in range(20):
        plugin = SimpleNamespace(netcore_adapters=hookimpl(lambda: [Keeping]))
        config = EventBusConfig(
            shards=1 + turn % 4, ring_capacity=500, backpressure=policy, adapter={"kind": "keeping"}
        )
        bus = await EventBus.open(config, plugins=[plugin])
        accepted: list[list[bytes]] = [[] for _ in range(4)]

        def fire(mine: list[bytes], name: int, bus: EventBus = bus) -> None:
            number = 0
            while True:
                raw = b"%d:%d" % (name, number)
                number += 1
                try:
                    bus.ingest_raw(raw)
                except ClosedError:
                    return
                except BackpressureError:
                    continue
                mine.append(raw)

        threads = [threading.Thread(target=fire, args=(mine, n)) for n, mine in enumerate(accepted)]
        for thread in threads:
            thread.start()
        await anyio.sleep(0.02)
        report = await bus.shutdown(20)
        for thread in threads:
            await anyio.to_thread.run_sync(thread.join)
        stored = Counter(bus._engine.adapter.stored)
        told = Counter(raw for mine in accepted for raw in mine)
        assert max(stored.values()) == 1
        assert not stored - told
        assert report.ingested == told.total()
        assert (stored.total(), report.lost) == (report.dispatched, 0)
        assert report.ingested == report.dispatched + report.evicted
        if policy != "drop_oldest":
            assert not told - stored


def test_buses_opened_and_shut_down_many_times_leave_nothing_behind() -> None:
    """No thread, file descriptor, bus or task stays, on either loop and behind the blocking front."""

    async def cycles(count: int) -> None:
        for _ in range(count):
            async with EventBus(EventBusConfig(shards=2)) as bus:
                bus.ingest({"n": 1})
                await bus.poll(ConsumeRequest(1), wait=0.001)
                async with bus.subscribe(ConsumeRequest(1, start="earliest")) as events:
                    await events.__anext__()
                await bus.add_shards(1)

    def fronts(count: int) -> None:
        for _ in range(count):
            with blocking.EventBus(EventBusConfig(shards=2)) as bus:
                bus.ingest({"n": 1})
                with bus.subscribe(ConsumeRequest(1, start="earliest")) as events:
                    next(events)

    def held() -> tuple[int, int, int]:
        gc.collect()
        buses = sum(isinstance(thing, EventBus) for thing in gc.get_objects())
        return threading.active_count(), len(os.listdir("/proc/self/fd")), buses

    for run in (
        lambda count: anyio.run(cycles, count),
        lambda count: anyio.run(cycles, count, backend="trio"),
        fronts,
    ):
        run(3)
        before = held()
        run(200)
        after = held()  # fewer is fine: other tests' worker threads end when they like
        assert all(now <= then for now, then in zip(after, before, strict=True)), (before, after)
