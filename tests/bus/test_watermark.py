"""The low watermark: below it nothing is still to be stored."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from bus_lab import lab, until

from netcore import BatchConfig, ConsumeRequest
from netcore.contracts.adapter import Batch

pytestmark = pytest.mark.anyio
ONE_BY_ONE: dict[str, Any] = {"batch": BatchConfig(max_events=1, max_delay_ms=0)}


async def test_watermark_idle_lies_between_what_was_and_what_comes() -> None:
    """Above all that is stored, below all that is ingested after it was asked for."""
    async with lab() as it:
        _, before = it.bus.ingest_raw(b"before")  # type: ignore[misc]
        await it.bus.flush(10)
        low, lagging = it.bus._engine.watermark()
        _, after = it.bus.ingest_raw(b"after")  # type: ignore[misc]
        assert before < low < after
        assert not lagging


async def test_watermark_is_held_by_the_oldest_event_in_a_ring_or_in_flight() -> None:
    """First by what a worker holds, then by what waits behind it, then by nothing."""
    async with lab(shards=1, **ONE_BY_ONE) as it:
        engine = it.bus._engine
        holds = [it.faulty.hold("append") for _ in range(2)]
        stamps = [it.bus.ingest_raw(b"%d" % n)[1] for n in range(2)]  # type: ignore[index]
        for hold, ts in zip(holds, stamps, strict=True):
            await hold.reached()
            assert engine.watermark()[0] == ts
            hold.release()
            await until(lambda ts=ts: engine.watermark()[0] > ts)  # type: ignore[misc]


async def test_watermark_after_a_batch_counts_it_as_stored() -> None:
    """What an adapter is told while it stores: the mark as it will be then."""
    async with lab(shards=2, **ONE_BY_ONE) as it:
        engine = it.bus._engine
        told: list[tuple[int, int]] = []
        inner = it.keeper.append

        async def append(batch: Batch) -> None:
            told.append((engine.watermark_after(batch), engine.watermark()[0]))
            await inner(batch)

        it.keeper.append = append  # type: ignore[method-assign]
        key = it.key_for(0)
        pairs = [it.bus.ingest_raw(b"%d" % n, key) for n in range(2)]
        await it.bus.flush(10)
        first, second = (ts for _, ts in pairs)  # type: ignore[misc]
        assert told[0] == (second, first)
        assert told[1][0] > second == told[1][1]


async def test_watermark_leaves_out_a_shard_that_stores_nothing_for_too_long() -> None:
    """After `causal_wait_ms`, and named; back in as soon as it stores again."""
    async with lab(shards=2, causal_wait_ms=30, **ONE_BY_ONE) as it:
        engine = it.bus._engine
        held = it.faulty.hold("append", shard=0)
        _, stuck = it.bus.ingest_raw(b"stuck", it.key_for(0))  # type: ignore[misc]
        await held.reached()
        assert engine.watermark() == (stuck, frozenset())
        await until(lambda: engine.watermark()[1] == {0})
        assert engine.watermark()[0] > stuck
        page = await it.bus.poll(ConsumeRequest(10, start="earliest"))
        assert page.lagging_shards == {0}
        held.release()
        await it.bus.flush(10)
        assert engine.watermark()[1] == frozenset()


async def test_watermark_of_an_idle_shard_that_just_woke_is_not_lagging() -> None:
    """Long idleness is no lag: patience begins with the event, not with the last store."""
    async with lab(shards=1, causal_wait_ms=50, **ONE_BY_ONE) as it:
        it.bus.ingest_raw(b"first")
        await it.bus.flush(10)
        await until(lambda: it.bus._engine.shards[0].ring.asleep)
        await anyio.sleep(0.1)
        held = it.faulty.hold("append")
        it.bus.ingest_raw(b"second")
        assert it.bus._engine.watermark()[1] == frozenset()
        held.release()
