"""A bus on an adapter that fails as it is told, and keeps what it stored after it was closed."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.to_thread

from netcore import (
    BatchConfig,
    Capabilities,
    EventBus,
    EventBusConfig,
    EventBusStats,
    ShutdownReport,
    StoredEvent,
)
from netcore.builtin.memory import MemoryAdapter, MemoryConfig
from netcore.contracts.adapter import Batch
from netcore.testing.faults import FaultyAdapter, plugin_for

SECOND = 1_000_000_000


class Keeper(MemoryAdapter):
    """A memory adapter whose logs, and whose batches, may still be looked at after `close`."""

    capabilities = Capabilities(watermark=True, inline=False)

    def __init__(self, **limits: Any) -> None:
        super().__init__(MemoryConfig())
        self.kept: dict[int, list[StoredEvent]] = {}
        self.batches: list[tuple[int, int, int]] = []
        self.capabilities = Capabilities(watermark=True, **limits)  # type: ignore[misc]

    async def append(self, batch: Batch) -> None:
        """Store, and remember the batch as (shard, first sequence number, events)."""
        before = 0 if batch.shard not in self._logs else self._logs[batch.shard].stored
        await super().append(batch)
        log = self._logs[batch.shard]
        self.kept.setdefault(batch.shard, []).extend(log.slice(before, log.stored))
        self.batches.append((batch.shard, batch.first_seq, len(batch.events)))

    @property
    def payloads(self) -> Counter[bytes]:
        """Count each stored payload."""
        return Counter(event.raw for log in self.kept.values() for event in log)

    @property
    def pairs(self) -> set[tuple[int, int]]:
        """List what `ingest` returned for each stored event."""
        return {(event.shard, event.ts) for log in self.kept.values() for event in log}


class Lab:
    """A bus, its faults and its store."""

    def __init__(
        self, limits: dict[str, Any] | None = None, plugins: tuple[object, ...] = (), **settings: Any
    ) -> None:
        self.keeper = Keeper(**(limits or {}))
        self.faulty = FaultyAdapter(self.keeper)
        settings.setdefault("shards", 2)
        settings.setdefault("batch", BatchConfig(max_events=100, max_delay_ms=1))
        config = EventBusConfig(adapter="faulty", **settings)
        self.bus = EventBus(config, plugins=[plugin_for(self.faulty), *plugins])

    @property
    def stats(self) -> EventBusStats:
        """The bus's stats."""
        return self.bus.stats()

    def shard(self, number: int = 0) -> Any:
        """Return one shard's stats."""
        return next(shard for shard in self.stats.shards if shard.id == number)

    def key_for(self, shard: int) -> str:
        """Find a key that leads to a shard now."""
        from netcore.ingest.payloads import key_hash
        from netcore.ingest.router import MASK

        owners = self.bus._engine.router.table[1]
        return next(f"key{n}" for n in range(100_000) if owners[key_hash(f"key{n}") & MASK] == shard)


def check_identity(report: ShutdownReport | EventBusStats) -> None:
    """Whatever was accepted is accounted for, once."""
    assert report.ingested == report.dispatched + report.evicted + report.dead_lettered + report.lost
    assert report.lossy == (report.lost > 0)


@asynccontextmanager
async def lab(**settings: Any) -> AsyncIterator[Lab]:
    """Open a bus; at the end let go of everything and shut it down."""
    it = Lab(**settings)
    async with it.bus:
        try:
            yield it
        finally:
            it.faulty.release_all()


async def until(condition: Callable[[], object], timeout: float = 10.0) -> None:
    """Wait until it holds; look at it often, give up after `timeout` seconds."""
    with anyio.fail_after(timeout):
        while not condition():
            await anyio.sleep(0.001)


async def in_thread(function: Callable[..., Any], *args: Any) -> Any:
    """Run in another thread, and wait for it; abandoned if cancelled."""
    return await anyio.to_thread.run_sync(function, *args, abandon_on_cancel=True)


class Blocked:
    """A thread that calls a function, and what came of it."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.result: Any = None
        self.error: BaseException | None = None
        self._function, self._args = function, args
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.result = self._function(*self._args)
        except BaseException as error:
            self.error = error

    @property
    def done(self) -> bool:
        """Whether it returned or raised."""
        return not self.thread.is_alive()
