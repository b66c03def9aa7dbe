"""An adapter that keeps the whole contract, from which the broken ones are made."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import anyio
import anyio.lowlevel

from netcore.config import AdapterConfig
from netcore.contracts.adapter import (
    Adapter,
    AdapterContext,
    Batch,
    Capabilities,
    Gap,
    Health,
    ReadRequest,
    ShardPage,
    Stream,
)
from netcore.errors import (
    AdapterClosedError,
    AdapterRefusedError,
    CursorError,
    FatalAdapterError,
    TransientAdapterError,
)
from netcore.events import StoredEvent

POISON = b"POISON"
PAYLOAD = "payload_comes_back_identical"
ANY = "any_batches_of_any_bytes_come_back"


class StoreConfig(AdapterConfig, frozen=True, kw_only=True, tag="store"):
    """Settings of `StoreAdapter`."""

    url: str = "store://user:s3cret@10.1.2.3:999/0"
    max_events: int = 1_000_000


class Store:
    """What a backend would hold: it outlives its adapters, and can be away."""

    _names = itertools.count()

    def __init__(self) -> None:
        self.events: dict[int, list[StoredEvent]] = {}
        self.trimmed: dict[int, int] = {}
        self.marks: dict[Any, int] = {}
        self.away = self.owned = False
        self.waiting: list[anyio.Event] = []
        self.name = f"store:{next(self._names)}"


class StoreAdapter(Adapter[StoreConfig]):
    """Keeps the whole contract, as one of a shared durable backend would: no clause is skipped."""

    kind = "store"
    Config = StoreConfig
    capabilities = Capabilities(durable=True, shared=True, inline=True, max_batch_events=5000)
    fails: ClassVar[frozenset[str]] = frozenset()
    broad: ClassVar[bool] = False
    exclusive: ClassVar[bool] = False

    def __init__(self, config: StoreConfig, store: Store) -> None:
        super().__init__(config)
        self.store = store
        self.closed = False

    def identity(self) -> str:
        return self.store.name

    async def open(self, context: AdapterContext) -> None:
        self.check()

    async def append(self, batch: Batch) -> None:
        self.check()
        expected = self.store.marks.get(self.mark(batch), 0)
        fresh = self.fresh(batch, expected)
        if not fresh:
            return
        self.judge(fresh)
        self.store.marks[self.mark(batch)] = batch.first_seq + len(batch.events)
        self.keep(batch.shard, fresh)
        self.wake()

    def mark(self, batch: Batch) -> Any:
        """Under which key the next expected number is kept."""
        return batch.producer, batch.shard

    def fresh(self, batch: Batch, expected: int) -> list[StoredEvent]:
        """What is not stored yet."""
        return batch.events[max(0, expected - batch.first_seq) :]

    def judge(self, events: list[StoredEvent]) -> None:
        """Refuse what can't be stored."""
        if any(event.raw == POISON for event in events):
            raise FatalAdapterError("poison")

    def keep(self, shard: int, events: Sequence[StoredEvent]) -> None:
        """Store events and trim."""
        log = self.store.events.setdefault(shard, [])
        base = self.store.trimmed.setdefault(shard, 0) + len(log)
        for number, event in enumerate(events, base + 1):
            log.append(
                StoredEvent(id=f"{number}", shard=shard, ts=self.stamp(event.ts), raw=self.code(event))
            )
        if (over := len(log) - self.config.max_events) > 0:
            del log[:over]
            self.store.trimmed[shard] += over

    def code(self, event: StoredEvent) -> bytes:
        """What encoding and decoding make of a payload."""
        return event.raw

    def stamp(self, ts: int) -> int:
        """What encoding and decoding make of a timestamp."""
        return ts

    def wake(self) -> None:
        """Wake everyone who waits."""
        waiting, self.store.waiting = self.store.waiting, []
        for event in waiting:
            event.set()

    async def streams(self) -> list[Stream]:
        self.check()
        return [Stream(shard) for shard in self.store.events]

    async def read(self, stream: Stream, after: str | None, limit: int, snapshot: object = None) -> ShardPage:
        self.check()
        start = 0 if after is None else self.parse(stream, after)
        log = self.store.events.get(stream.shard, [])
        trimmed = self.store.trimmed.get(stream.shard, 0)
        end = trimmed + len(log)
        if isinstance(snapshot, dict):
            end = snapshot.get(stream.shard, 0)
        gap = None
        if start < trimmed:
            if after is not None:
                gap = Gap(shard=stream.shard, missed=trimmed - start, resumed_at=str(trimmed))
            start = trimmed
        stop = max(start, min(start + limit, end))
        events = log[start - trimmed : stop - trimmed]
        return ShardPage(events=events, position=str(stop), has_more=stop < end, gap=gap)

    def parse(self, stream: Stream, position: str) -> int:
        """Read a position."""
        number = int(position) if position.isascii() and position.isdigit() and len(position) < 19 else -1
        stored = self.store.trimmed.get(stream.shard, 0) + len(self.store.events.get(stream.shard, []))
        if not 0 <= number <= stored or str(number) != position:
            raise CursorError(f"not a position: {position[:40]!r}")
        return number

    async def bounds(self, stream: Stream) -> tuple[str, str]:
        self.check()
        trimmed = self.store.trimmed.get(stream.shard, 0)
        return str(trimmed), str(trimmed + len(self.store.events.get(stream.shard, [])))

    async def snapshot(self) -> object:
        return {shard: self.store.trimmed[shard] + len(events) for shard, events in self.store.events.items()}

    async def seek(self, stream: Stream, ts: int) -> str | None:
        trimmed = self.store.trimmed.get(stream.shard, 0)
        for index, event in enumerate(self.store.events.get(stream.shard, [])):
            if event.ts >= ts:
                return str(trimmed + index)
        return (await self.bounds(stream))[1]

    async def wait(self, positions: Mapping[Stream, str | None], timeout: float) -> None:
        with anyio.move_on_after(timeout):
            while not await self.news(positions):
                event = anyio.Event()
                self.store.waiting.append(event)
                await event.wait()

    async def news(self, positions: Mapping[Stream, str | None]) -> bool:
        """Whether there is something newer."""
        for stream in await self.streams():
            earliest, tail = await self.bounds(stream)
            if stream not in positions or (positions[stream] or earliest) != tail:
                return True
        return False

    async def close(self) -> None:
        self.closed = True
        self.wake()

    async def health(self) -> Health:
        return Health(ok=not self.store.away, reason="away" if self.store.away else "")

    def stats(self) -> dict[str, Any]:
        return {"shards": len(self.store.events)}

    def check(self) -> None:
        """Refuse calls of a closed adapter, or while the backend is away."""
        if self.closed:
            raise AdapterClosedError("closed")
        if self.store.away:
            raise TransientAdapterError("away")


class Suspending(StoreAdapter):
    """As good, but its calls suspend, as those of a network adapter do."""

    capabilities = Capabilities(durable=True, shared=True, max_batch_events=5000)

    async def append(self, batch: Batch) -> None:
        await anyio.lowlevel.checkpoint()
        await super().append(batch)
        await anyio.lowlevel.checkpoint()

    async def read(self, stream: Stream, after: str | None, limit: int, snapshot: object = None) -> ShardPage:
        await anyio.lowlevel.checkpoint()
        return await super().read(stream, after, limit, snapshot)


class OneAtATime(StoreAdapter):
    """A correct one: whoever has the store open keeps it for itself, and leaves a name in it."""

    capabilities = Capabilities(durable=True, inline=True, max_batch_events=5000)
    exclusive = True
    mine = False

    async def open(self, context: AdapterContext) -> None:
        self.check()
        if self.store.owned:
            raise AdapterRefusedError("the store is open already")
        self.mine = self.store.owned = True

    async def close(self) -> None:
        if self.mine:
            self.mine = self.store.owned = False
        await super().close()


def clauses(*names: str) -> frozenset[str]:
    """Name clauses without their common prefix."""
    return frozenset(f"test_{name}" for name in names)


class ListsWhileReading(StoreAdapter):
    """A correct one: answers reads and the list in one call."""

    async def read_listed(
        self, requests: Sequence[ReadRequest]
    ) -> tuple[list[ShardPage | Exception], list[Stream]]:
        return await self.read_many(requests), await self.streams()
