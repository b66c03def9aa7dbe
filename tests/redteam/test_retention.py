"""What retention takes from a chain of polls is told, to the event."""

from __future__ import annotations

import pytest

from netcore import BatchConfig, ConsumeRequest, EventBus, EventBusConfig
from netcore.builtin.memory import MemoryConfig

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("ordering", ["causal", "shard"])
@pytest.mark.parametrize("start", ["earliest", "tail", 0])
async def test_stream_that_began_after_the_chain_and_lost_events_already_is_a_gap(
    start: str | int, ordering: str
) -> None:
    """A chain that was there first must not lose a stream's beginning in silence."""
    config = EventBusConfig(shards=1, adapter=MemoryConfig(max_events=5))
    async with EventBus(config) as bus:
        request = ConsumeRequest(3, start=start, ordering=ordering)
        request = request.after((await bus.poll(request)).cursor)
        for number in range(100):
            bus.ingest_raw(b"%d" % number)
        await bus.flush(10)
        page = await bus.poll(request)
        assert [event.raw for event in page.events] == [b"95", b"96", b"97"]
        assert [(gap.shard, gap.missed) for gap in page.gaps] == [(0, 95)]
        page = await bus.poll(request.after(page.cursor))
        assert [event.raw for event in page.events] == [b"98", b"99"]
        assert page.gaps == []


@pytest.mark.parametrize("kept", [1, 5, 50])
@pytest.mark.parametrize("ordering", ["causal", "shard"])
async def test_returned_and_missed_add_up_to_what_was_stored_while_it_was_trimmed(
    kept: int, ordering: str
) -> None:
    """Nothing is returned twice, and nothing is gone that no gap counts."""
    config = EventBusConfig(
        shards=3, adapter=MemoryConfig(max_events=kept), batch=BatchConfig(max_events=7, max_delay_ms=0)
    )
    async with EventBus(config) as bus:
        returned: set[bytes] = set()
        missed = count = 0
        request = ConsumeRequest(4, start="earliest", ordering=ordering)
        for turn in range(200):
            bus.ingest_raw_many([b"%d" % number for number in range(count, count + turn % 23)])
            count += turn % 23
            if turn % 3 == 0:
                await bus.flush(10)
            page = await bus.poll(request)
            request = request.after(page.cursor)
            fresh = {event.raw for event in page.events}
            assert len(fresh) == len(page.events)
            assert not fresh & returned
            returned |= fresh
            missed += sum(gap.missed or 0 for gap in page.gaps)
        await bus.flush(10)
        while True:
            page = await bus.poll(request)
            request = request.after(page.cursor)
            returned |= {event.raw for event in page.events}
            missed += sum(gap.missed or 0 for gap in page.gaps)
            if not page.has_more:
                break
        assert missed > 0
        assert len(returned) + missed == bus.stats().dispatched == count
