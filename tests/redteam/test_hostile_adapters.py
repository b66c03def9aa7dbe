"""Adapters that raise what no contract allows must cost retries, not the bus."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from netcore import AdapterConfig, Batch, ConsumeRequest, EventBus, EventBusConfig, hookimpl
from netcore.builtin.memory import MemoryAdapter, MemoryConfig
from netcore.contracts.adapter import Capabilities


class HostileConfig(AdapterConfig, frozen=True, kw_only=True, tag="hostile"):
    """No settings."""


class CancelsItself(MemoryAdapter):
    """Awaits a future that something cancelled long ago, as a driver does whose connection is gone."""

    kind = "hostile"
    Config: Any = HostileConfig
    capabilities = Capabilities(watermark=True)
    before_the_first_await = True

    def __init__(self, config: Any) -> None:
        super().__init__(MemoryConfig())
        self.calls = 0

    async def append(self, batch: Batch) -> None:
        self.calls += 1
        if self.calls <= 2:
            gone = asyncio.get_running_loop().create_future()
            gone.cancel()
            if not self.before_the_first_await:
                await asyncio.sleep(0)
            await gone
        await super().append(batch)


class CancelsItselfLater(CancelsItself):
    before_the_first_await = False


@pytest.mark.parametrize("adapter", [CancelsItself, CancelsItselfLater])
def test_append_that_cancels_itself_is_retried(adapter: type[CancelsItself]) -> None:
    """A cancellation that nobody asked for is an adapter's error, wherever in its call it escapes."""

    async def main() -> None:
        plugin = SimpleNamespace(netcore_adapters=hookimpl(lambda: [adapter]))
        config = EventBusConfig(shards=1, adapter={"kind": "hostile"})
        async with EventBus(config, plugins=[plugin]) as bus:
            for number in range(3):
                bus.ingest({"n": number})
            await bus.flush(10)
            page = await bus.poll(ConsumeRequest(10, start="earliest"))
            assert [event.decode()["n"] for event in page.events] == [0, 1, 2]
            assert bus.stats().retries == 2

    asyncio.run(main())
