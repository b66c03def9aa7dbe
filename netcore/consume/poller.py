"""One poll: from a request to a response.

    request ─> cursor (pinned, or decoded) ─> watermark ─> snapshot, streams ─> reads ─> merge ─> filter ─> response

The only state of a consumer is its cursor. What the poller itself remembers is a cache of decoded
cursors and which streams hang.
"""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from netcore.consume.attempt import Attempt, Matching
from netcore.consume.chain import Chains
from netcore.consume.cursor import Cursor, decode_cursor
from netcore.consume.merger import Cut, ts_of
from netcore.consume.pages import Collector, opening
from netcore.consume.reader import Reader, describe
from netcore.consume.request import ConsumeRequest, ConsumeResponse
from netcore.consume.subscription import Subscription
from netcore.consume.waiting import Patience, Waiting
from netcore.contracts.adapter import Adapter, ReadRequest, Stream
from netcore.contracts.answers import FaultyAdapterError, identity_of
from netcore.contracts.filters import EventFilter
from netcore.errors import AdapterError, ClosedError, ConfigError, TransientAdapterError
from netcore.events import StoredEvent
from netcore.ingest.clock import Clock
from netcore.runtime import Progress, Runtime

__all__ = ["BusView", "Poller"]

_CACHED_CURSORS: Final = 8
_HOLD_SLACK_S: Final = 0.1
_MAX_SHARDS_NAMED: Final = 64
_origin_of: Final = operator.attrgetter("origin")


class BusView(Protocol):
    """What a poller needs to know of its bus. Loop thread only."""

    progress: Progress
    """Notified on the loop whenever a batch settled (stored, dead-lettered, lost) or rings were drained."""

    def watermark(self) -> tuple[int, frozenset[int]]:
        """Return the low watermark and the lagging shards.

        Every event stored from now on has a merge key not below the watermark, except those of
        lagging shards. Asked before the snapshot is taken.
        """
        ...

    def had_shard(self, shard: int) -> bool:
        """Tell whether the bus has, or ever had, this shard."""
        ...


class Poller:
    """Serves polls of one open bus. Loop thread only; polls may overlap, each is its own chain.

    Args:
        adapter: open.
        runtime: the loop.
        clock: the bus's; polled timestamps are observed.
        view: the bus, as far as polls need it.
        resolve_filter: turns any accepted form of a filter into an `EventFilter`.
        timeout_s: bound on each adapter call, seconds.
        causal_wait_s: how long a page may be held back by events not stored yet, seconds.
        now: the wall clock, ns since the epoch (for `settle_ms`).
    """

    def __init__(
        self,
        *,
        adapter: Adapter[Any],
        runtime: Runtime,
        clock: Clock,
        view: BusView,
        resolve_filter: Callable[[EventFilter | dict[str, Any] | str | bytes], EventFilter],
        timeout_s: float,
        causal_wait_s: float,
        now: Callable[[], int] = time.time_ns,
    ) -> None:
        self._adapter = adapter
        self._runtime = runtime
        self._clock = clock
        self._view = view
        self._resolve = resolve_filter
        self._causal_wait_s = causal_wait_s
        self._now = now
        self._reader = Reader(adapter, runtime, timeout_s)
        self._chains = Chains(self._reader, clock.tick_now)
        self._waiting = Waiting(self._reader, runtime, view.progress)
        self._cursors: dict[str, Cursor] = {}
        self._returned: Callable[[Mapping[str, int]], None] | None = getattr(adapter, "returned", None)

    async def poll(self, request: ConsumeRequest, wait: float = 0.0) -> ConsumeResponse:
        """Return the next page of a chain.

        Looks at no more than `max(10_000, 20 * limit)` events; then it returns what it has found
        (`has_more` tells to go on) or, with `wait`, goes on by itself. Where the adapter knows a
        watermark a page that it would leave empty waits until events may go out, for little
        longer than `causal_wait_ms`. A cancelled poll has no effect.

        Args:
            request: what is wanted.
            wait: seconds to wait for a first event; 0: return at once. Gaps and undecodable
                entries end the wait too.

        Raises:
            ClosedError: the bus is shut down, or was while this poll waited.
            ConfigError: `request` is none, `wait` no such number, or a shard of `request.shards` does not exist.
            CursorError: the cursor, or a position in it, is none of this store.
            FilterError: the filter is malformed, or raised something at an event.
            AdapterError: a first poll could not pin every stream, or none can be listed or is known.
        """
        response, _ = await self.page(request, wait)
        return response

    async def page(self, request: ConsumeRequest, wait: float = 0.0) -> tuple[ConsumeResponse, Cursor]:
        """Poll; return also the cursor that the page begins at."""
        self._waiting.check_open()
        if not self._runtime.here:  # elsewhere its waits and locks would fail in the middle, or worse
            raise ClosedError("a bus is polled on the event loop that opened it; see netcore.blocking")
        _check_request(request)
        if isinstance(wait, bool) or not isinstance(wait, int | float) or not 0 <= wait < math.inf:
            raise ConfigError(f"wait must be a number of seconds, 0 or more, not {wait!r}")
        matching = Matching(None if request.filter is None else self._resolve(request.filter))
        try:
            return await self._page(request, wait, matching)
        except AdapterError:
            self._waiting.check_open()  # it closed under this poll: say that instead
            raise

    async def _page(
        self, request: ConsumeRequest, wait: float, matching: Matching
    ) -> tuple[ConsumeResponse, Cursor]:
        asked = self._runtime.now()
        patience = Patience()
        base = chain = await self._chain(request)
        while True:
            attempt = await self._attempt(request, chain, matching)
            chain = attempt.chain
            if attempt.events or attempt.tells or matching.undecodable:
                break
            if not await self._wait(request, attempt, asked, wait, patience):
                break
        await self._waiting.breathe()
        if attempt.failed and not attempt.events:
            self._waiting.check_open()
        response = attempt.response(matching.undecodable, request.shards)
        self._remember(chain)
        self._learn(response.events, rising=attempt.rising)
        return response, base

    def subscribe(self, request: ConsumeRequest) -> Subscription:
        """Follow a chain event by event: an async context manager and iterator."""
        self._waiting.check_open()
        _check_request(request)
        return Subscription(self.page, self._runtime, request)

    def close(self) -> None:
        """Refuse polls from now on; waiting ones end with `ClosedError`, subscriptions cleanly."""
        self._waiting.close()

    async def aclose(self) -> None:
        """Close, and end the background probes within about a second."""
        self.close()
        await self._waiting.aclose()
        await self._reader.aclose()

    async def _chain(self, request: ConsumeRequest) -> Cursor:
        if request.cursor is None:
            return await self._chains.begin(request.start)
        known = self._cursors.get(request.cursor)
        if known is None:
            known = decode_cursor(request.cursor, identity_of(self._adapter))
            self._remember(known)
        return known

    def _remember(self, cursor: Cursor) -> None:
        """Keep the last few cursors decoded: the next poll mostly comes with one of them."""
        self._cursors.pop(cursor.text, None)
        self._cursors[cursor.text] = cursor
        if len(self._cursors) > _CACHED_CURSORS:
            del self._cursors[next(iter(self._cursors))]

    def _learn(self, events: list[StoredEvent], *, rising: bool) -> None:
        """Move the clock past what the consumer now knows, and tell the adapter."""
        if not events:
            return
        stamps = [events[0].ts, events[-1].ts]
        if not rising or stamps[0] < 0 or stamps[1] > self._clock.horizon():
            stamps = list(map(ts_of, events))
        self._clock.observe_all(stamps)
        if self._returned is not None:
            if not rising:  # the greatest of an origin must come last
                events = sorted(events, key=ts_of)
            self._returned(dict(zip(map(_origin_of, events), map(ts_of, events), strict=True)))

    async def _attempt(self, request: ConsumeRequest, chain: Cursor, matching: Matching) -> Attempt:
        """Read one page. The order of the first three steps is what makes it causal.

        An event stored before the snapshot is in it; one stored after it has a key not below the
        watermark drawn before it; a stream that appears after it is not needed for this page.
        """
        attempt = Attempt(chain)
        causal = request.ordering == "causal"
        if causal and self._adapter.capabilities.watermark:
            attempt.watermark, attempt.lagging = self._view.watermark()
        cut = self._cut(attempt.watermark, request.settle_ms)
        try:
            snapshot, streams, primed = await self._chains.look(self._openings(request, chain))
        except AdapterError as error:
            self._all_failed(attempt, request, error)
            return attempt
        attempt.streams = streams
        self._check_shards(request, streams, chain)
        chain, failed = await self._chains.follow(chain, streams)
        attempt.chain = chain
        attempt.failed = {
            stream: describe(error) for stream, error in failed.items() if _wanted(request, stream)
        }
        readable: list[Stream] = []
        for stream in streams:
            if stream in failed or not _wanted(request, stream):
                continue
            if (known := self._reader.suspect(stream)) is not None:
                attempt.failed[stream] = describe(known)
            else:
                readable.append(stream)
        attempt.collector = collector = Collector(
            reader=self._reader,
            cursor=chain,
            streams=readable,
            limit=request.limit,
            cut=cut,
            snapshot=snapshot,
            match=matching.match,
            rest=self._runtime.checkpoint,
            primed=primed,
        )
        await (collector.causal() if causal else collector.sharded())
        for run in collector.runs:
            if run.failed is not None:
                attempt.failed[run.stream] = describe(run.failed)
        attempt.chain = chain.moved({run.stream: run.entry for run in collector.runs}, collector.turn)
        return attempt

    def _openings(self, request: ConsumeRequest, chain: Cursor) -> list[ReadRequest]:
        """Return the reads that may be made while listing. With `settle_ms` none: the list must be new."""
        if request.ordering != "causal" or request.settle_ms or not self._reader.lists_with_reads:
            return []
        known = [stream for stream in chain.entries if _wanted(request, stream)]
        quota = opening(request.limit, len(known), filtered=request.filter is not None)
        return [ReadRequest(stream, chain.entries[stream][0], quota) for stream in known]

    def _cut(self, watermark: int | None, settle_ms: float) -> Cut:
        ceiling = watermark
        if settle_ms:
            settled = self._now() - int(settle_ms * 1_000_000) + 1
            ceiling = settled if ceiling is None else min(ceiling, settled)
        return Cut() if ceiling is None else Cut(ceiling, self._clock.horizon())

    def _all_failed(self, attempt: Attempt, request: ConsumeRequest, error: AdapterError) -> None:
        """Blame every shard that is known; a failure must not look like an idle bus."""
        text = describe(error)
        named = [stream for stream in attempt.chain.entries if _wanted(request, stream)]
        if not named and request.shards is not None:
            named = [Stream(shard) for shard in request.shards]
        if not named and isinstance(error, FaultyAdapterError):
            raise error
        if not named:
            raise TransientAdapterError(f"cannot list the streams: {text}; try again") from error
        attempt.failed = dict.fromkeys(named, text)

    def _check_shards(self, request: ConsumeRequest, streams: Sequence[Stream], chain: Cursor) -> None:
        if request.shards is None or self._adapter.capabilities.shared:
            return
        known = {stream.shard for stream in streams} | {stream.shard for stream in chain.entries}
        if not (wrong := [s for s in request.shards if s not in known and not self._view.had_shard(s)]):
            return
        known.update(filter(self._view.had_shard, range(1024)))
        names = ", ".join(map(str, sorted(known)[:_MAX_SHARDS_NAMED])) or "none yet"
        more = ", ..." if len(known) > _MAX_SHARDS_NAMED else ""
        raise ConfigError(f"shards={wrong} hold nothing and never belonged to this bus; known: {names}{more}")

    async def _wait(
        self, request: ConsumeRequest, attempt: Attempt, asked: float, wait: float, patience: Patience
    ) -> bool:
        """Wait until another attempt may find something; False if time is up."""
        now = self._runtime.now()
        deadline = asked + wait
        collector = attempt.collector
        if collector is not None and collector.exhausted and now < deadline:
            await self._waiting.pause(0.0)  # there is more to scan: go on at once
            return True
        held = None if collector is None or collector.exhausted else collector.oldest_held
        if held is not None and attempt.watermark is not None and held >= attempt.watermark:
            end = max(deadline, asked + self._causal_wait_s + _HOLD_SLACK_S)
            if now < end:
                # Seen is seen: a later draw of the clock is larger, so that an event from a store
                # whose clock is ahead of ours is not held back by a clock that stands still.
                self._clock.observe(held)
                moved = self._view.watermark() != (attempt.watermark, attempt.lagging)
                await self._waiting.for_progress(0.0 if moved else end - now)
                return True
        if now >= deadline:
            return False
        if held is not None:
            ready = (held - self._now()) / 1e9 + request.settle_ms / 1e3
            await self._waiting.pause(min(deadline - now, max(0.001, ready)))
        else:
            await self._waiting.for_events(
                attempt.seen,
                [stream for stream in attempt.streams if not _wanted(request, stream)],
                deadline - now,
                patience,
            )
            patience.woken(self._runtime.now() - now, failing=bool(attempt.failed))
        return True


def _wanted(request: ConsumeRequest, stream: Stream) -> bool:
    return request.shards is None or stream.shard in request.shards


def _check_request(request: object) -> None:
    if not isinstance(request, ConsumeRequest):
        raise ConfigError(f"a poll takes a ConsumeRequest, e.g. ConsumeRequest(100), not {request!r:.80}")
