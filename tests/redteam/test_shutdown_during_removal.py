"""A shutdown that runs out of time while a shard is being removed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from netcore import AdapterConfig, Batch, EventBus, EventBusConfig, hookimpl
from netcore.builtin.memory import MemoryAdapter, MemoryConfig
from netcore.contracts.adapter import Capabilities


class StuckConfig(AdapterConfig, frozen=True, kw_only=True, tag="stuck"):
    """No settings."""


class Stuck(MemoryAdapter):
    """Stores nothing of shard 0, and takes its time about it."""

    kind = "stuck"
    Config: Any = StuckConfig
    capabilities = Capabilities(watermark=True)

    def __init__(self, config: Any) -> None:
        super().__init__(MemoryConfig())

    async def append(self, batch: Batch) -> None:
        if batch.shard == 0:
            await anyio.sleep_forever()
        await super().append(batch)


@pytest.mark.anyio
async def test_events_of_a_leaving_shard_that_shutdown_gives_up_are_counted_as_lost(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whichever of the two finds the worker ended: nothing vanishes, a flush ends, and the log is true."""
    plugin = SimpleNamespace(netcore_adapters=hookimpl(lambda: [Stuck]))
    bus = await EventBus.open(EventBusConfig(shards=2, adapter={"kind": "stuck"}), plugins=[plugin])
    for number in range(20):
        bus.ingest_raw(b"%d" % number)
    held = sum(shard.accepted for shard in bus.stats().shards if shard.id == 0)
    assert held
    flushing, removing = anyio.Event(), anyio.Event()

    async def flush() -> None:
        await bus.flush()
        flushing.set()

    async def remove() -> None:
        await bus.remove_shards([0], timeout=20)
        removing.set()

    with anyio.fail_after(15):
        async with anyio.create_task_group() as group:
            group.start_soon(flush)
            group.start_soon(remove)
            while not any(shard.leaving and shard.in_flight for shard in bus.stats().shards):
                await anyio.sleep(0.005)
            report = await bus.shutdown(0.3)
    assert flushing.is_set()
    assert removing.is_set()
    assert (report.ingested, report.lost, report.lossy) == (20, held, True)
    assert report.stuck_shards == (0,)
    said = [record.getMessage() for record in caplog.records if "are lost" in record.getMessage()]
    assert len(said) == 1  # one loss, told once
    assert "shutdown" in said[0]
    assert "20 s" not in said[0]  # the removal had time left
    assert report.ingested == report.dispatched + report.evicted + report.dead_lettered + report.lost
