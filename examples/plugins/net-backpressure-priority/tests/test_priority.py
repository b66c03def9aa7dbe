"""The policy's verdicts, and the policy at work on a bus."""

from __future__ import annotations

import pytest
from net_backpressure_priority import PriorityPolicy

from netcore import (
    BackpressureError,
    ConfigError,
    ConsumeRequest,
    EventBus,
    EventBusConfig,
    FullShard,
    Verdict,
)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.parametrize(
    ("payload", "verdict"),
    [
        (b'{"priority": 5}', Verdict.EVICT),
        (b'{"priority": 1.0, "x": [1, {"priority": 0}]}', Verdict.EVICT),
        (b'{"priority": 0}', Verdict.REFUSE),
        (b'{"priority": "5"}', Verdict.REFUSE),
        (b'{"priority": true}', Verdict.REFUSE),
        (b'{"other": 5}', Verdict.REFUSE),
        (b"[5]", Verdict.REFUSE),
        (b"\xff not json", Verdict.REFUSE),
        (b"", Verdict.REFUSE),
    ],
)
def test_priority_of_a_newcomer_decides(payload: bytes, verdict: Verdict) -> None:
    """Only a number at or over the threshold evicts; anything else counts as 0."""
    assert PriorityPolicy().on_full(FullShard(0, 8, 8, payload)) is verdict


def test_priority_reads_the_field_it_is_told() -> None:
    """Field and threshold are settings."""
    policy = PriorityPolicy(field="level", threshold=3)
    assert policy.on_full(FullShard(0, 8, 8, b'{"level": 3}')) is Verdict.EVICT
    assert policy.on_full(FullShard(0, 8, 8, b'{"level": 2, "priority": 9}')) is Verdict.REFUSE


@pytest.mark.parametrize("options", [{"field": ""}, {"threshold": "high"}, {"threshold": True}])
def test_priority_malformed_is_a_config_error(options: dict[str, object]) -> None:
    """Wrong settings are refused when the policy is built."""
    with pytest.raises(ConfigError, match="priority"):
        PriorityPolicy(**options)  # type: ignore[arg-type]


@pytest.mark.anyio
async def test_priority_by_name_guards_a_full_ring() -> None:
    """Found through its entry point: low is refused, high evicts the oldest, nothing else is lost."""
    config = EventBusConfig(shards=1, ring_capacity=3, backpressure="priority")
    async with EventBus(config) as bus:
        for number in range(3):  # no await in between: the worker cannot drain
            bus.ingest({"n": number})
        with pytest.raises(BackpressureError, match="full"):
            bus.ingest({"n": 3, "priority": 0})
        bus.ingest({"n": 4, "priority": 9})
        await bus.flush(timeout=10)
        page = await bus.poll(ConsumeRequest(10, start="earliest"))
        assert [event.decode()["n"] for event in page.events] == [1, 2, 4]
        stats = bus.stats()
        assert (stats.ingested, stats.evicted, stats.rejected) == (4, 1, 1)
