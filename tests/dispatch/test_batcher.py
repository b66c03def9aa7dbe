"""When a batch leaves its shard, and what is in it."""

from __future__ import annotations

import time
from typing import Any

import pytest
from bus_lab import lab, until
from hypothesis import given
from hypothesis import strategies as st

from netcore import BatchConfig
from netcore.dispatch.batcher import Batcher
from netcore.ingest.shard import Shard
from netcore.runtime import Progress, Signal

pytestmark = pytest.mark.anyio


class FakeSignal(Signal):
    """Stands for the worker's latch: each wait is answered by the script."""

    def __init__(self) -> None:
        self.waits: list[float | None] = []
        self.on_wait: Any = lambda timeout: None

    def set(self) -> None:
        """Nobody sleeps here."""

    async def wait(self, timeout: float | None = None) -> bool:
        """Let the script act, as others would while the worker sleeps."""
        self.waits.append(timeout)
        self.on_wait(timeout)
        return True


class Desk:
    """A batcher over a shard, with a clock of its own."""

    def __init__(self, **settings: Any) -> None:
        self.now = 1000.0
        self.signal = FakeSignal()
        self.shard = Shard(0, 1000, self.signal, wake=int, moved=int)
        settings.setdefault("max_events", 10)
        settings.setdefault("max_bytes", None)
        settings.setdefault("delay_s", 1.0)
        progress = Progress(None)  # type: ignore[arg-type]
        self.batcher = Batcher(self.shard, progress=progress, now=lambda: self.now, **settings)
        self.count = 0

    def push(self, count: int = 1, size: int = 1) -> None:
        """Accept events."""
        with self.shard.ring.lock:
            for _ in range(count):
                self.shard.ring.push(self.count, b"x" * size)
                self.count += 1

    async def next(self) -> list[int]:
        """Take a batch, and settle it."""
        columns = await self.batcher.next()
        assert len(columns.stamps) == len(columns.payloads)
        self.shard.held = self.shard.held.part(len(columns.stamps))
        return columns.stamps


async def test_batch_full_leaves_at_once() -> None:
    """`max_events` ends the wait; it is a ceiling."""
    desk = Desk()
    desk.push(25)
    assert await desk.next() == list(range(10))
    assert await desk.next() == list(range(10, 20))
    assert desk.signal.waits == []


async def test_delay_begins_at_the_first_event_and_later_ones_do_not_reset_it() -> None:
    """Events that trickle in every half second do not hold the first one back."""
    desk = Desk()

    def trickle(timeout: float | None) -> None:
        desk.push()
        if timeout is not None:
            desk.now += min(timeout, 0.4)

    desk.signal.on_wait = trickle
    begun = desk.now
    batch = await desk.next()
    assert desk.now - begun == pytest.approx(1.0)
    assert len(batch) == 1 + 3


async def test_delay_of_what_a_full_batch_left_behind_began_before() -> None:
    """What came while the last batch was away, and did not fit into the next, is not delayed anew."""
    desk = Desk()
    desk.push(1)
    desk.now += 5
    desk.signal.on_wait = lambda timeout: setattr(desk, "now", desk.now + (timeout or 0))
    assert await desk.next() == [0]
    desk.push(14)
    desk.now += 5  # the dispatch took that long
    assert await desk.next() == list(range(1, 11))
    before = desk.now
    assert await desk.next() == list(range(11, 15))
    assert desk.now == before


async def test_delay_of_what_comes_during_a_dispatch_begins_before_the_dispatch_ends() -> None:
    """A dispatch longer than the delay is followed at once by what came meanwhile."""
    desk = Desk()
    desk.push(10)
    assert len(await desk.next()) == 10
    desk.push(3)
    desk.now += 1.5
    assert len(await desk.next()) == 3
    assert desk.signal.waits == []


async def test_idle_shard_sleeps_without_a_deadline() -> None:
    """Nothing wakes the worker of an empty ring but an event."""
    desk = Desk(delay_s=0)
    desk.signal.on_wait = lambda timeout: desk.push()
    assert await desk.next() == [0]
    assert desk.signal.waits == [None]


@pytest.mark.parametrize("why", ["seal", "mark", "stopping"])
async def test_delay_is_cut_by_flush_shutdown_and_removal(why: str) -> None:
    """Who waits for the batch need not wait for its delay."""
    desk = Desk(delay_s=3600)
    desk.push(2)
    if why == "seal":
        desk.shard.ring.seal()
    elif why == "mark":
        desk.shard.ring.mark()
    else:
        desk.shard.stopping = True
    assert await desk.next() == [0, 1]
    assert desk.signal.waits == []


async def test_ring_smaller_than_a_batch_leaves_when_it_is_full() -> None:
    """It will never hold `max_events`: its worker neither waits out the delay nor spins."""
    desk = Desk(delay_s=3600, max_events=5000)
    desk.push(999)

    def fill_up(timeout: float | None) -> None:
        assert timeout == 3600
        desk.push(1)

    desk.signal.on_wait = fill_up
    assert len(await desk.next()) == 1000
    assert desk.signal.waits == [3600]


async def test_sealed_and_empty_ends() -> None:
    """The last batch is followed by an empty one, which is no batch: the worker's end."""
    desk = Desk()
    desk.push(12)
    desk.shard.ring.seal()
    assert [len(await desk.next()) for _ in range(3)] == [10, 2, 0]


@given(st.lists(st.integers(0, 40), max_size=60), st.integers(1, 100), st.integers(1, 20))
async def test_batches_respect_all_limits_and_conserve_events(
    sizes: list[int], max_bytes: int, max_events: int
) -> None:
    """In order, none lost, none empty, none over a limit unless it is a single event."""
    desk = Desk(max_bytes=max_bytes, max_events=max_events)
    for size in sizes:
        desk.push(1, size)
    desk.shard.ring.seal()
    batches: list[list[int]] = []
    while batch := await desk.next():
        batches.append(batch)
    assert [ts for batch in batches for ts in batch] == list(range(len(sizes)))
    for batch in batches:
        assert len(batch) <= max_events
        assert len(batch) == 1 or sum(sizes[ts] for ts in batch) <= max_bytes


# -- in a whole bus ------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [None, 7])
async def test_max_events_is_a_ceiling_also_in_the_last_sweep(limit: int | None) -> None:
    """Whichever is lower, the bus's or the adapter's; while it runs, at a flush and at the shutdown."""
    most = limit or 10
    batch = BatchConfig(max_events=10, max_delay_ms=3_600_000)
    async with lab(shards=1, batch=batch, limits={"max_batch_events": limit}) as it:
        it.bus.ingest_raw_many([b"%d" % n for n in range(35)])
        await it.bus.flush(10)
        it.bus.ingest_raw_many([b"%d" % n for n in range(35)])
    counts = [count for _, _, count in it.keeper.batches]
    assert sum(counts) == 70
    assert min(counts) > 0
    assert max(counts) == most


async def test_max_batch_bytes_of_the_adapter_is_respected() -> None:
    """Batches are cut to fit; an event larger than the limit goes alone; numbers follow each other."""
    async with lab(shards=1, limits={"max_batch_bytes": 100}) as it:
        raws = [b"x" * size for size in (30, 30, 30, 30, 250, 10, 100, 1)]
        it.bus.ingest_raw_many(raws)
        await it.bus.flush(10)
    assert [e.raw for e in it.keeper.kept[0]] == raws
    expected = 0
    for _, first, count in it.keeper.batches:
        assert first == expected
        size = sum(map(len, raws[first : first + count]))
        assert size <= 100 or count == 1
        expected += count


async def test_first_seq_counts_each_shard_from_zero() -> None:
    """Per shard, without a hole where nothing was dead-lettered, also for a shard added later."""
    async with lab(shards=2, batch=BatchConfig(max_events=5, max_delay_ms=0)) as it:
        for n in range(100):
            it.bus.ingest_raw(b"%d" % n)
        await it.bus.flush(10)
        await it.bus.add_shards(1)
        for n in range(100):
            it.bus.ingest_raw(b"later%d" % n)
    for shard in (0, 1, 2):
        batches = [(first, count) for of, first, count in it.keeper.batches if of == shard]
        assert batches
        assert [first for first, _ in batches] == [
            sum(c for _, c in batches[:n]) for n in range(len(batches))
        ]


async def test_batch_of_a_quiet_shard_leaves_after_its_delay() -> None:
    """Without a flush and far from full: not before the delay, and soon after."""
    async with lab(shards=1, batch=BatchConfig(max_events=1000, max_delay_ms=150)) as it:
        begun = time.monotonic()
        for n in range(3):
            it.bus.ingest_raw(b"%d" % n)
        await until(lambda: it.keeper.batches)
        assert time.monotonic() - begun >= 0.149
        assert it.keeper.batches == [(0, 0, 3)]


@pytest.mark.parametrize("call", ["flush", "shutdown"])
async def test_flush_and_shutdown_do_not_wait_for_the_delay(call: str) -> None:
    """An hour's delay costs them nothing."""
    async with lab(shards=3, batch=BatchConfig(max_events=1000, max_delay_ms=3_600_000)) as it:
        for n in range(30):
            it.bus.ingest_raw(b"%d" % n)
        await getattr(it.bus, call)(timeout=10)
        assert it.stats.dispatched == 30


async def test_batch_without_a_delay_leaves_without_a_timer() -> None:
    """A lone event is handed out as soon as the worker wakes: no wait but the one for it."""
    desk = Desk(delay_s=0.0)
    desk.signal.on_wait = lambda timeout: desk.push()
    assert await desk.next() == [0]
    assert desk.signal.waits == [None]
    desk.push()
    assert await desk.next() == [1]
    assert desk.signal.waits == [None]
