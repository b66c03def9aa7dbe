"""A store in memory that can be told to fail, hang, trim and grow; a bus's view; an oracle."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from itertools import accumulate
from typing import Any

import anyio
import anyio.lowlevel

from netcore.config import AdapterConfig
from netcore.consume.poller import Poller
from netcore.consume.request import ConsumeRequest, ConsumeResponse
from netcore.contracts.adapter import Adapter, Batch, Capabilities, Gap, ShardPage, Stream
from netcore.errors import CursorError
from netcore.events import StoredEvent
from netcore.ingest.clock import Clock
from netcore.runtime import Progress, current_runtime

BACKENDS = ["asyncio", "trio"]


class LabConfig(AdapterConfig, tag="lab"):
    """Nothing to set."""


class Store(Adapter[LabConfig]):
    """Positions are decimal counts of entries; None entries are undecodable."""

    kind = "lab"
    Config = LabConfig
    capabilities = Capabilities(inline=True)

    def __init__(self) -> None:
        super().__init__(LabConfig())
        self.logs: dict[Stream, list[StoredEvent | None]] = {}
        self.trimmed: dict[Stream, int] = {}
        self.faults: dict[Stream | str, Callable[[], Any]] = {}
        self.calls: list[str] = []
        self.reads: list[tuple[Stream, str | None, int]] = []
        self.gone: set[Stream] = set()
        self.entered: dict[Stream, str] = {}
        self.before_read: Callable[[], None] = lambda: None
        self.early_wakes = False
        self._grown = anyio.Event()

    def put(self, shard: int, *stamps: int | None, origin: str = "") -> None:
        """Store events with these timestamps; None: an entry that is no event."""
        log = self.logs.setdefault(Stream(shard, origin), [])
        for ts in stamps:
            number = len(log) + 1
            raw = b'{"n":%d,"s":%d}' % (number, shard)
            log.append(
                None
                if ts is None
                else StoredEvent(id=str(number), shard=shard, ts=ts, raw=raw, origin=origin)
            )
        self._grown.set()
        self._grown = anyio.Event()

    async def _fault(self, *keys: Stream | str) -> None:
        for key in keys:
            if key in self.faults:
                outcome = self.faults[key]()
                if outcome is not None:
                    await outcome

    def _index(self, stream: Stream, position: str | None) -> int:
        if position is None:
            return 0
        if not position.isdigit() or int(position) > len(self.logs.get(stream, [])):
            raise CursorError(f"{position!r} is not a position of the lab adapter")
        return int(position)

    async def open(self, context: Any) -> None:
        """Do nothing."""

    async def append(self, batch: Batch) -> None:
        """Do nothing."""

    async def close(self) -> None:
        """Do nothing."""

    async def snapshot(self) -> object:
        await self._fault("snapshot")
        return {stream: len(log) for stream, log in self.logs.items()}

    async def streams(self) -> list[Stream]:
        self.calls.append("streams")
        await self._fault("streams")
        return [stream for stream in self.logs if stream not in self.gone]

    async def read(self, stream: Stream, after: str | None, limit: int, snapshot: object = None) -> ShardPage:
        self.reads.append((stream, after, limit))
        self.before_read()
        await self._fault(stream)
        log = self.logs.get(stream, [])
        end = snapshot.get(stream, 0) if isinstance(snapshot, dict) else len(log)
        begin, gap = self._index(stream, after), None
        trimmed = self.trimmed.get(stream, 0)
        if begin < trimmed:
            if after is not None:
                gap = Gap(
                    shard=stream.shard, missed=trimmed - begin, resumed_at=str(trimmed), origin=stream.origin
                )
            begin = trimmed
        end = max(begin, end)
        events: list[StoredEvent] = []
        at = begin
        while at < end and len(events) < limit:
            entry = log[at]
            if entry is not None:
                events.append(entry)
            at += 1
        return ShardPage(
            events=events,
            position=str(at),
            has_more=at < end,
            gap=gap,
            undecodable=at - begin - len(events),
        )

    async def bounds(self, stream: Stream) -> tuple[str, str]:
        await self._fault("bounds")
        return str(self.trimmed.get(stream, 0)), str(len(self.logs.get(stream, [])))

    async def seek(self, stream: Stream, ts: int) -> str | None:
        for index, entry in enumerate(self.logs.get(stream, [])):
            if entry is not None and entry.ts >= ts:
                return str(max(0, index - 1))
        return str(len(self.logs.get(stream, [])))

    async def enter(self, stream: Stream, since: int) -> str | None:
        await self._fault("enter")
        return self.entered.get(stream)

    async def retired(self, streams: Iterable[Stream]) -> set[Stream]:
        await self._fault("retired")
        return self.gone & set(streams)

    async def wait(self, positions: Mapping[Stream, str | None], timeout: float) -> None:
        self.calls.append("wait")
        await self._fault("wait")
        with anyio.move_on_after(timeout):
            while not self.early_wakes and all(
                stream in positions and int(positions[stream] or "0") >= len(log)
                for stream, log in self.logs.items()
            ):
                await self._grown.wait()


class AsyncStore(Store):
    """The same, but its calls suspend."""

    capabilities = Capabilities()

    async def _fault(self, *keys: Stream | str) -> None:
        await anyio.lowlevel.checkpoint()
        await super()._fault(*keys)


class WatermarkStore(Store):
    """The same, for a bus that knows its watermark."""

    capabilities = Capabilities(inline=True, watermark=True)


class View:
    """What the poller needs of a bus."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.low = 1 << 62
        self.lagging: frozenset[int] = frozenset()
        self.shards: set[int] = set()
        self.on_watermark: Callable[[], None] = lambda: None

    def watermark(self) -> tuple[int, frozenset[int]]:
        self.on_watermark()
        return self.low, self.lagging

    def had_shard(self, shard: int) -> bool:
        return shard in self.shards


class Lab:
    """A poller over a store."""

    def __init__(self, store: Store, poller: Poller, view: View, clock: Clock) -> None:
        self.store = store
        self.poller = poller
        self.view = view
        self.clock = clock

    async def poll(self, limit: int = 100, wait: float = 0.0, **options: Any) -> ConsumeResponse:
        options.setdefault("start", "earliest")
        return await self.poller.poll(ConsumeRequest(limit, **options), wait)

    async def drain(self, limit: int = 100, pages: int = 10_000, **options: Any) -> list[ConsumeResponse]:
        """Poll until `has_more` is false."""
        answers = [await self.poll(limit, **options)]
        while answers[-1].has_more and len(answers) < pages:
            answers.append(await self.poll(limit, **{**options, "cursor": answers[-1].cursor}))
        return answers


class ByNumber:
    """A filter: payload's `n` divisible by a number. Counts what it is shown."""

    def __init__(self, divisor: int) -> None:
        self.divisor = divisor
        self.shown: list[bytes] = []

    def matches(self, raw: bytes) -> bool:
        self.shown.append(raw)
        return int(raw.split(b":")[1].split(b",")[0]) % self.divisor == 0

    def to_json(self) -> str:
        return str(self.divisor)


@asynccontextmanager
async def lab(
    store: Store | None = None,
    *,
    timeout_s: float = 5.0,
    causal_wait_s: float = 0.3,
    now: Callable[[], int] = time.time_ns,
) -> AsyncIterator[Lab]:
    """Open a poller over a store, and close it."""
    runtime = current_runtime()
    view = View(Progress(runtime))
    clock = Clock()
    store = store or Store()
    poller = Poller(
        adapter=store,
        runtime=runtime,
        clock=clock,
        view=view,
        resolve_filter=lambda given: given,  # type: ignore[arg-type, return-value]
        timeout_s=timeout_s,
        causal_wait_s=causal_wait_s,
        now=now,
    )
    try:
        yield Lab(store, poller, view, clock)
    finally:
        with anyio.CancelScope(shield=True):
            await poller.aclose()


def oracle(store: Store, shards: Iterable[int] | None = None) -> list[tuple[int, int, str, str]]:
    """Everything stored as (key, shard, origin, id), in merge order."""
    rows: list[tuple[int, int, str, int]] = []
    for stream, log in store.logs.items():
        if shards is not None and stream.shard not in shards:
            continue
        events = [event for event in log if event is not None]
        keys = accumulate((event.ts for event in events), max)
        rows += [
            (key, stream.shard, stream.origin, int(event.id)) for key, event in zip(keys, events, strict=True)
        ]
    return [(key, shard, origin, str(number)) for key, shard, origin, number in sorted(rows)]


def names(events: Iterable[StoredEvent]) -> list[tuple[int, str, str]]:
    """Name events by (shard, origin, id)."""
    return [(event.shard, event.origin, event.id) for event in events]
