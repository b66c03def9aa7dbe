"""What a bus consists of, tied together: shards and their workers, adapter, clock.

The engine does not know its `EventBus`: background tasks hold the engine, so that a bus which is
dropped without shutdown can be noticed. All of it belongs to the loop's thread, but for `stats`.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import random
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from netcore.config import EventBusConfig
from netcore.contracts.adapter import Adapter, AdapterContext, Batch
from netcore.contracts.answers import ask
from netcore.dispatch.batcher import Batcher
from netcore.dispatch.dead_letters import DeadLetterFile
from netcore.dispatch.dispatcher import Dispatcher, DispatchEvents
from netcore.dispatch.wakeups import Wakeups
from netcore.errors import ClosedError, FlushTimeoutError, TransientAdapterError, describe, message_of
from netcore.events import IndexedEvent
from netcore.ingest.clock import Clock
from netcore.ingest.router import Router, spread
from netcore.ingest.shard import Shard
from netcore.lifecycle import Lifecycle, State
from netcore.observers import Observers
from netcore.runtime import GRACE_S, CallTimeoutError, Progress, Runtime, Task
from netcore.stats import EventBusStats, ScalingRecord, ShardStats

__all__ = ["Engine"]

_log = logging.getLogger("netcore.bus")
REBASE_S: Final = 0.15
"""How often the clock is brought up to the wall clock: the longest that a timestamp lags it."""

_SUMMED: Final = ("accepted", "rejected", "discarded", "evicted", "batches", "dispatched", "retries",
                  "dead_lettered", "lost")  # fmt: skip


class Engine:
    """The running parts of one bus.

    Args:
        config: its settings.
        adapter: not yet opened.
        router: the slot table that its producers use.
        lifecycle: its state.
    """

    def __init__(
        self, config: EventBusConfig, adapter: Adapter[Any], router: Router, lifecycle: Lifecycle
    ) -> None:
        self.config: Final = config
        self.adapter: Final = adapter
        self.router: Final = router
        self.clock: Final[Clock] = router.clock
        self.lifecycle: Final = lifecycle
        self.producer = ""
        self.shards: dict[int, Shard] = {}
        self.workers: dict[int, Task] = {}
        self.next_shard = 0
        self.scaling: deque[ScalingRecord] = deque(maxlen=32)
        self.timeout_s: Final = config.adapter_timeout_ms / 1e3
        self.runtime: Runtime
        self.wakeups: Wakeups
        self.progress: Progress
        self.observers: Observers
        self._retired: tuple[frozenset[int], dict[str, int]] = (frozenset(), dict.fromkeys(_SUMMED, 0))
        """Ids of the removed shards and the sums of their counters, replaced as a whole."""
        self._errors: dict[str, int] = {}
        self._dead_letter_failures = 0
        self._dead_letter_file = DeadLetterFile(config.dead_letters) if config.dead_letters else None
        self._end_clock: Callable[[], object] | None = None
        self._rng = random.Random()  # noqa: S311  # spreads retries, guards nothing

    # -- opening ---------------------------------------------------------------------------------

    async def open(self, runtime: Runtime, observers: Observers) -> None:
        """Connect the adapter, then start the shards; on failure everything is released again."""
        self.runtime = runtime
        self.wakeups = Wakeups(runtime, self._take_no_more)
        self.progress = Progress(runtime)
        self.observers = observers
        self.producer = os.urandom(16).hex()
        try:
            await self._open_adapter()
        except BaseException:
            self.lifecycle.move(State.CLOSED)
            raise
        self.lifecycle.move(State.OPEN)
        self.clock.rebase()
        self._end_clock = runtime.every(REBASE_S, self.clock.rebase)
        for _ in range(self.config.shards):
            self.start_shard()
        self.router.install(spread(list(self.shards)), self.rings())

    async def _open_adapter(self) -> None:
        context = AdapterContext(
            producer=self.producer,
            timeout_ms=self.config.adapter_timeout_ms,
            causal_wait_ms=self.config.causal_wait_ms,
            max_clock_drift_ms=self.config.max_clock_drift_ms,
            observe=self.clock.observe,
            watermark=self.watermark_after,
            logger=logging.getLogger(f"netcore.adapter.{self.adapter.kind}"),
        )
        try:
            call = functools.partial(ask, self.adapter, "open", context)
            await self.runtime.bounded(call, self.timeout_s, "netcore open")
        except BaseException as error:
            await self._release_adapter()
            if isinstance(error, CallTimeoutError):
                raise TransientAdapterError(
                    f"the {self.adapter.kind} adapter did not open within {self.timeout_s:g} s "
                    "(adapter_timeout_ms)"
                ) from error
            raise

    async def _release_adapter(self) -> None:
        """Close an adapter that did not open; its own complaint matters less than the first."""
        closing = self.runtime.spawn(functools.partial(ask, self.adapter, "close"), "netcore close")
        if not await closing.join(GRACE_S):
            closing.cancel()

    # -- shards ----------------------------------------------------------------------------------

    def rings(self) -> dict[int, Any]:
        """Return the rings of the shards that stay, by id."""
        return {shard.id: shard.ring for shard in self.shards.values() if not shard.leaving}

    def start_shard(self) -> Shard:
        """Add a shard with its worker; nothing is routed to it yet."""
        runtime = self.runtime
        signal = runtime.signal()
        shard = Shard(
            self.next_shard,
            self.config.ring_capacity,
            signal,
            wake=functools.partial(self.wakeups.wake, signal.set),
            moved=functools.partial(runtime.call_soon_threadsafe, self.progress.notify),
        )
        self.start_worker(shard)
        self.next_shard += 1
        self.shards[shard.id] = shard
        return shard

    def _take_no_more(self) -> None:
        """Refuse events: nobody is there to store them. Any thread, maybe with a ring locked."""
        with contextlib.suppress(ClosedError):  # another thread was first, or it is shut down
            self.lifecycle.move(State.ABANDONED)
        self.router.close()

    def find_gone(self) -> None:
        """Close the bus if its loop is gone, and let go of whoever waits; any thread, no lock held."""
        if self.runtime.gone:
            self.abandon()

    def require_here(self, call: str) -> None:
        """Raise `ClosedError` unless the bus is open, and `call` was made on its own loop."""
        self.lifecycle.require_open()
        if not self.runtime.here:
            self.find_gone()
            self.lifecycle.require_open()
            raise ClosedError(f"{call} must be called on the event loop that opened the bus")

    def start_worker(self, shard: Shard) -> None:
        """Start (or, after an unexpected cancellation, restart) a shard's worker."""
        limits = self.adapter.capabilities
        most = self.config.batch.max_events
        dispatcher = Dispatcher(
            shard=shard,
            batcher=Batcher(
                shard,
                max_events=min(most, limits.max_batch_events or most),
                max_bytes=limits.max_batch_bytes,
                delay_s=self.config.batch.max_delay_ms / 1e3,
                progress=self.progress,
            ),
            adapter=self.adapter,
            producer=self.producer,
            runtime=self.runtime,
            progress=self.progress,
            events=DispatchEvents(
                dispatched=self.observers.dispatched if self.observers.wants_batches else None,
                dead_letter=self._dead_letter,
            ),
            unexpected=self._unexpected,
            timeout_s=self.timeout_s,
            rng=self._rng,
        )
        self.workers[shard.id] = self.runtime.spawn(
            functools.partial(self._work, shard, dispatcher),
            f"netcore shard {shard.id}",
            ended=functools.partial(self._worker_ended, shard),
        )

    async def _work(self, shard: Shard, dispatcher: Dispatcher) -> None:
        try:
            await dispatcher.run()
        except Exception:
            _log.exception("a worker failed, which is a bug; the bus takes no more events")
            if self.lifecycle.state is State.OPEN:
                self.abandon()
        finally:
            self._worker_ended(shard)  # also where its loop was closed, and only the collector ends it

    def _worker_ended(self, shard: Shard) -> None:
        """Close the bus if the worker was to go on: it was cancelled from outside, the loop is going away.

        Nobody would drain the ring. A sealed one's worker is ended by the bus itself: its shard is
        leaving, or never was routed to.
        """
        if not shard.ring.sealed and self.lifecycle.state is State.OPEN:
            self.abandon()

    def retire(self, shard: Shard) -> None:
        """Forget a removed shard, keeping its counters in the totals."""
        final = shard.stats(self.timeout_s)
        ids, sums = self._retired
        # First it counts as retired, then it goes: `stats`, on another thread, sees it once or the other.
        self._retired = (ids | {shard.id}, {name: sums[name] + getattr(final, name) for name in _SUMMED})
        self.shards.pop(shard.id, None)
        self.workers.pop(shard.id, None)

    def abandon(self) -> None:
        """Stop taking events, and let go of whoever waits: the loop is gone, or the bus was dropped."""
        self._take_no_more()
        for shard in list(self.shards.values()):
            shard.ring.seal()
        self.runtime.call_soon(self.progress.notify)

    def drop(self) -> None:
        """Release what a bus that was dropped without shutdown held; any thread, waits for nothing.

        The collector may call it in the middle of anything, a ring's locked sections included: so
        nothing here takes a lock, and the rest is left to the loop.
        """
        self.lifecycle.move(State.ABANDONED)
        self.runtime.call_soon_threadsafe(self._dismantle)

    def _dismantle(self) -> None:
        self.abandon()
        self.stop_clock()
        for worker in self.workers.values():
            worker.cancel()
        self.runtime.spawn(functools.partial(ask, self.adapter, "close"), "netcore close")

    # -- what polls, flushes and adapters ask ----------------------------------------------------

    def had_shard(self, shard: int) -> bool:
        """Tell whether this bus has or had the shard."""
        return 0 <= shard < self.next_shard

    def watermark(self) -> tuple[int, frozenset[int]]:
        """Return (w, lagging shards).

        Every event stored from now on has a merge key >= w, but for those of the lagging shards,
        which have stored nothing for `causal_wait_ms` though they had something to store.
        """
        return self._watermark(None)

    def watermark_after(self, stored: Batch | None) -> int:
        """Return the low watermark, given that `stored` is stored."""
        return self._watermark(stored)[0]

    def _watermark(self, stored: Batch | None) -> tuple[int, frozenset[int]]:
        # The clock first: an event that is accepted after this line draws a larger timestamp. Then
        # the rings, then what the workers hold; no worker runs in between, since all is on one thread.
        lowest = self.clock.tick()
        lagging: list[int] = []
        patience = time.monotonic() - self.config.causal_wait_ms / 1e3
        for shard in self.shards.values():
            done = len(stored) if stored is not None and stored.shard == shard.id else 0
            oldest = shard.oldest_ts(done)
            if oldest is None:
                continue
            if shard.stalled_since() < patience:
                lagging.append(shard.id)
            else:
                lowest = min(lowest, oldest)
        return lowest, frozenset(lagging)

    async def flush(self, timeout: float | None) -> None:
        """See `EventBus.flush`."""
        shards = list(self.shards.values())
        marks = [(shard, shard.ring.mark()) for shard in shards]
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            for shard in shards:
                shard.signal.set()
            while behind := [shard.id for shard, mark in marks if not shard.reached(mark)]:
                if self.lifecycle.state is State.ABANDONED:
                    raise self.lifecycle.refusal()
                left = None if deadline is None else deadline - time.monotonic()
                if timeout is not None and left is not None and left <= 0:
                    raise FlushTimeoutError(timeout, behind)
                await self.progress.wait(left)
        finally:
            for shard, mark in marks:
                shard.ring.unmark(mark)

    # -- what goes wrong -------------------------------------------------------------------------

    def _unexpected(self, error: Exception) -> None:
        """Count an exception that an adapter should not raise; log each kind once."""
        kind = type(error).__qualname__
        for known in self._errors:
            if known == kind or known.startswith(f"{kind}: "):
                self._errors[known] += 1
                return
        words = message_of(error)
        self._errors[f"{kind}: {words}" if words else kind] = 1
        _log.error(
            "the %s adapter raised %s, which is none of the contract's errors; treated as transient, "
            "logged once",
            self.adapter.kind,
            kind,
            exc_info=error,
        )

    def _dead_letter(self, shard: int, seq: int, event: IndexedEvent, error: Exception) -> None:
        """Hand on an event that can never be stored; a failing sink is counted and blocks nothing."""
        taken, failed = self.observers.dead_letter(shard, event.ts, event.raw, error)
        if self._dead_letter_file is not None:
            try:
                self._dead_letter_file.write(
                    ts=event.ts,
                    shard=shard,
                    producer=self.producer,
                    seq=seq,
                    error=message_of(error),
                    payload=event.raw,
                )
                taken += 1
            except OSError:
                if not self._dead_letter_failures:
                    _log.exception("dead letters cannot be written to %s", self._dead_letter_file.path)
                failed += 1
        self._dead_letter_failures += failed
        total = sum(s.dead_lettered for s in self.shards.values()) + self._retired[1]["dead_lettered"]
        if total & (total - 1) == 0:  # the 1st, 2nd, 4th, 8th, ...: never silent, never a flood
            where = "a dead-letter sink took it" if taken else "no dead-letter sink took it: it is gone"
            _log.error(
                "shard %d: an event of %d bytes can never be stored (%s); %s; %d so far",
                shard,
                len(event.raw),
                message_of(error),
                where,
                total,
            )

    # -- watching --------------------------------------------------------------------------------

    def shard_stats(self) -> tuple[ShardStats, ...]:
        """Return a snapshot of each live shard, by id."""
        wedged_after = self.timeout_s + GRACE_S
        return tuple(shard.stats(wedged_after) for shard in list(self.shards.values()))

    def stats(self) -> EventBusStats:
        """See `EventBus.stats`."""
        shards = self.shard_stats()
        gone, totals = self._retired
        shards = tuple(s for s in shards if s.id not in gone)
        sums = {name: totals[name] + sum(getattr(s, name) for s in shards) for name in _SUMMED}
        abandoned = self.lifecycle.state is State.ABANDONED
        try:
            adapter = self.adapter.stats()
        except Exception as error:
            adapter = {"error": describe(error)}
        return EventBusStats(
            at=time.time_ns(),
            ingested=sums["accepted"],
            rejected=sums["rejected"],
            discarded=sums["discarded"],
            evicted=sums["evicted"],
            batches_dispatched=sums["batches"],
            dispatched=sums["dispatched"],
            retries=sums["retries"],
            dead_lettered=sums["dead_lettered"],
            lost=sums["lost"],
            clock_anomalies=self.clock.anomalies,
            dead_letter_failures=self._dead_letter_failures,
            pressure=max((s.utilisation for s in shards), default=0.0),
            lossy=sums["lost"] > 0 or (abandoned and any(s.depth + s.in_flight for s in shards)),
            scaling=tuple(self.scaling),
            adapter=adapter,
            errors=dict(self._errors),
            shards=shards,
        )

    def stop_clock(self) -> None:
        """End the clock's timer."""
        if self._end_clock is not None:
            self._end_clock()
