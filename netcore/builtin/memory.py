"""The default adapter: streams in this process' memory, the newest events of each shard."""

from __future__ import annotations

import operator
import re
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import anyio

from netcore.config import AdapterConfig, check_int, check_number
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
    position_error,
)
from netcore.errors import AdapterClosedError, AdapterError, CursorError
from netcore.events import IndexedEvent, StoredEvent, set_index

__all__ = ["MemoryAdapter", "MemoryConfig"]

MAX_PRODUCERS: Final = 1024
_MAX_SHIFT: Final = 10
_POSITION: Final = re.compile(r"0|[1-9][0-9]{0,18}")
_MAX_POSITION: Final = 1 << 62
_get_ts: Final = operator.attrgetter("ts")


class MemoryConfig(AdapterConfig, frozen=True, kw_only=True, tag="memory"):
    """Settings of the memory adapter.

    Attributes:
        max_events: newest events kept a shard, 1..1,000,000,000.
        max_age_s: events whose `ts` is older are dropped, 0.001..1e9 s; None: no limit.
    """

    max_events: int = 100_000
    max_age_s: float | None = None

    def __post_init__(self) -> None:
        check_int("adapter.max_events", self.max_events, 1, 1_000_000_000)
        if self.max_age_s is not None:
            check_number("adapter.max_age_s", self.max_age_s, 0.001, 1e9)


class MemoryAdapter(Adapter[MemoryConfig]):
    """Keeps exactly the newest `max_events` of each shard; nothing survives the process.

    A position is the count of events stored up to and including an event, as decimal text: "0" is
    the beginning, and event number n, from 1, has the id `str(n)`. `Gap.missed` is exact.

    Appending costs amortised O(batch), reading O(page), `seek` O(log retained); nothing depends on
    how much is retained. Events of the bus are kept as the objects they are, and numbered in place.
    Retries are recognised for the 1,024 producers that appended last to a shard: of older ones a
    late copy would be stored again.

    No call suspends but `wait`, which costs nothing while idle. Calls come from one event loop.

    Args:
        config: the settings.
        now: wall clock, ns since the epoch; for `max_age_s`.
    """

    kind = "memory"
    Config = MemoryConfig
    capabilities = Capabilities(watermark=True, inline=True)

    def __init__(self, config: MemoryConfig, *, now: Callable[[], int] = time.time_ns) -> None:
        super().__init__(config)
        self._now = now
        self._logs: dict[int, _Log] = {}
        self._open = False
        self._closed = False
        self._changed: anyio.Event | None = None

    async def open(self, context: AdapterContext) -> None:
        """Begin with no streams.

        Raises:
            AdapterClosedError: it was closed.
            AdapterError: it is open already.
        """
        if self._closed or self._open:
            raise AdapterClosedError(_CLOSED) if self._closed else AdapterError("open is called once")
        self._open = True

    async def append(self, batch: Batch) -> None:
        """Store a batch in one step; see `Adapter.append`."""
        self._check()
        log = self._logs.get(batch.shard)
        if log is None:
            log = self._logs[batch.shard] = _Log(self.config.max_events)
        fresh = log.unseen(batch)
        if fresh:
            log.extend(fresh)
            self._notify()

    async def streams(self) -> list[Stream]:
        """List every shard ever appended to."""
        self._check()
        return [Stream(shard) for shard in self._logs]

    async def read(self, stream: Stream, after: str | None, limit: int, snapshot: object = None) -> ShardPage:
        """Return a page; see `Adapter.read`."""
        self._check()
        return self._page(stream, after, limit, snapshot)

    async def read_many(
        self, requests: Sequence[ReadRequest], snapshot: object = None
    ) -> list[ShardPage | Exception]:
        """Read several streams in one pass."""
        self._check()
        pages: list[ShardPage | Exception] = []
        for request in requests:
            try:
                pages.append(self._page(request.stream, request.after, request.limit, snapshot))
            except CursorError as error:
                pages.append(error)
        return pages

    async def bounds(self, stream: Stream) -> tuple[str, str]:
        """Return the positions before the earliest retained event and after the newest."""
        self._check()
        log = self._log(stream)
        return ("0", "0") if log is None else (str(log.first), str(log.stored))

    async def snapshot(self) -> object:
        """Return how many events each stream has stored."""
        self._check()
        return {shard: log.stored for shard, log in self._logs.items()}

    async def seek(self, stream: Stream, ts: int) -> str | None:
        """Return the position before the first retained event at or after `ts`; exact."""
        self._check()
        log = self._log(stream)
        return "0" if log is None else str(log.index_of(ts))

    async def enter(self, stream: Stream, since: int) -> str | None:
        """Return "0": the stream is new, and what it lost since is to be reported as a gap."""
        self._check()
        return "0"

    async def wait(self, positions: Mapping[Stream, str | None], timeout: float) -> None:
        """Return once an append made something newer, or `timeout` seconds have passed."""
        known = {
            stream: None if position is None else _parse(position) for stream, position in positions.items()
        }
        with anyio.move_on_after(timeout):
            while not self._news(known):
                if self._changed is None:
                    self._changed = anyio.Event()
                await self._changed.wait()

    async def close(self) -> None:
        """Forget everything; who waits is told."""
        self._closed, self._open = True, False
        self._logs = {}
        self._notify()

    async def health(self) -> Health:
        """Tell whether it is open."""
        return Health(ok=True) if self._open else Health(ok=False, reason=_CLOSED)

    def stats(self) -> dict[str, Any]:
        """Return `streams`, and events `stored` ever, `retained` now, `trimmed` since."""
        logs = list(self._logs.values())
        stored, retained = 0, 0
        for log in logs:
            stored += log.stored
            retained += log.stored - log.first
        return {"streams": len(logs), "stored": stored, "retained": retained, "trimmed": stored - retained}

    def _check(self) -> None:
        if not self._open:
            raise AdapterClosedError(_CLOSED if self._closed else "the memory adapter is not open yet")

    def _notify(self) -> None:
        """Have those who wait look again."""
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    def _log(self, stream: Stream) -> _Log | None:
        """Find a stream's log, with what grew too old trimmed."""
        log = self._logs.get(stream.shard)
        if log is None or stream.origin:
            return None
        if self.config.max_age_s is not None:
            log.expire(self._now() - int(self.config.max_age_s * 1e9))
        return log

    def _page(self, stream: Stream, after: str | None, limit: int, snapshot: object) -> ShardPage:
        log = self._log(stream)
        start = 0 if after is None else _parse(after)
        stored = 0 if log is None else log.stored
        if start > stored:
            raise CursorError(
                f"position {after} of shard {stream.shard} was never issued: {stored} events were stored; "
                "start a new chain of polls"
            )
        if log is None:
            return ShardPage(events=[], position="0", has_more=False)
        end = stored if snapshot is None else snapshot.get(stream.shard, 0)  # type: ignore[attr-defined]
        first, gap = log.first, None
        if start < first:
            if after is not None:
                gap = Gap(shard=stream.shard, missed=first - start, resumed_at=str(first))
            start = first
        stop = max(start, min(start + limit, end))
        return ShardPage(events=log.slice(start, stop), position=str(stop), has_more=stop < end, gap=gap)

    def _news(self, known: Mapping[Stream, int | None]) -> bool:
        """Tell whether a stream went on past its known position, or is not among them."""
        self._check()
        for shard, log in self._logs.items():
            position = known.get(Stream(shard), -1)
            if log.stored > (log.first if position is None else position):
                return True
        return False


_CLOSED: Final = "the memory adapter is closed"


class _Log:
    """One shard's events, numbered from 0 without a hole, the oldest trimmed.

    They lie in chunks of equal size, so the chunk that holds an event is found by a shift. Chunks
    wholly before `first` are dropped; the rest of a chunk is out of reach until it goes with it.
    """

    __slots__ = (
        "_chunks",
        "_expected",
        "_latest",
        "_lowest",
        "_max_events",
        "_shift",
        "_size",
        "_tops",
        "first",
        "stored",
    )

    def __init__(self, max_events: int) -> None:
        # What is out of reach and not yet dropped stays below an eighth of what is kept.
        self._shift = min(_MAX_SHIFT, max(0, (max_events // 8).bit_length() - 1))
        self._size = 1 << self._shift
        self._max_events = max_events
        self._chunks: dict[int, list[StoredEvent]] = {}
        self._tops: dict[int, tuple[int, int]] = {}  # chunk -> largest ts in it, and up to its end
        self._latest = 0
        self._lowest = 0  # the oldest chunk that is still there
        self._expected: OrderedDict[str, int] = OrderedDict()
        self.first = 0
        self.stored = 0

    def unseen(self, batch: Batch) -> list[StoredEvent]:
        """Return the part of a batch that is not stored yet, and expect what follows it."""
        expected = self._expected.get(batch.producer, 0)
        end = batch.first_seq + len(batch)
        if end <= expected:
            return []
        self._expected[batch.producer] = end
        self._expected.move_to_end(batch.producer)
        if len(self._expected) > MAX_PRODUCERS:
            self._expected.popitem(last=False)
        return batch.events if batch.first_seq >= expected else batch.events[expected - batch.first_seq :]

    def extend(self, events: list[StoredEvent]) -> None:
        """Store events behind the others."""
        if list(map(type, events)).count(IndexedEvent) != len(events):
            events = [IndexedEvent("", e.shard, e.ts, e.raw, e.origin) for e in events]
        stored = self.stored
        deque(map(set_index, events, range(stored + 1, stored + 1 + len(events))), 0)
        begin = 0
        while begin < len(events):
            at = stored + begin
            number = at >> self._shift
            part = events[begin : begin + self._size - (at & (self._size - 1))]
            top = max(map(_get_ts, part))
            if (chunk := self._chunks.get(number)) is not None:
                chunk += part
                top = max(top, self._tops[number][0])
            else:
                self._chunks[number] = part
            self._latest = max(top, self._latest)
            self._tops[number] = top, self._latest
            begin += len(part)
        self.stored += len(events)
        self._trim(self.stored - self._max_events)

    def slice(self, start: int, stop: int) -> list[StoredEvent]:
        """Return events by number; all must be retained."""
        found: list[StoredEvent] = []
        while start < stop:
            offset = start & (self._size - 1)
            part = self._chunks[start >> self._shift][offset : offset + stop - start]
            found += part
            start += len(part)
        return found

    def index_of(self, ts: int) -> int:
        """Return the number of the first retained event at or after `ts`, or `stored`."""
        low, end = self.first >> self._shift, (self.stored - 1 >> self._shift) + 1
        high = end
        while low < high:
            middle = (low + high) // 2
            if self._tops[middle][1] < ts:
                low = middle + 1
            else:
                high = middle
        # The largest so far may be of an event that is trimmed: then the search stopped too early.
        for number in range(low, end):
            if self._tops[number][0] >= ts:
                start = max(self.first, number << self._shift)
                stop = min(self.stored, number + 1 << self._shift)
                for at, event in enumerate(self.slice(start, stop), start):
                    if event.ts >= ts:
                        return at
        return self.stored

    def expire(self, oldest: int) -> None:
        """Trim the events before the first one at or after `oldest`."""
        if self.first < self.stored and self.slice(self.first, self.first + 1)[0].ts < oldest:
            self._trim(self.index_of(oldest))

    def _trim(self, first: int) -> None:
        """Let nothing before `first` be seen again."""
        if first > self.first:
            self.first = first
            while self._lowest < first >> self._shift:
                del self._chunks[self._lowest], self._tops[self._lowest]
                self._lowest += 1


def _parse(position: str) -> int:
    """Read a position strictly: ASCII digits, no leading zero, at most 2**62."""
    if isinstance(position, str) and _POSITION.fullmatch(position) and (n := int(position)) <= _MAX_POSITION:
        return n
    raise CursorError(position_error("memory", position))
