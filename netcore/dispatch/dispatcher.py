"""Getting a shard's batches stored: retries, bisection, dead letters, and the worker's loop."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Awaitable, Callable
from types import CoroutineType
from typing import Any, Final

import msgspec

from netcore.contracts.adapter import Adapter, Batch
from netcore.contracts.answers import awaitable
from netcore.dispatch.batcher import Batcher
from netcore.errors import AdapterRefusedError, FatalAdapterError, TransientAdapterError, describe
from netcore.events import IndexedEvent
from netcore.ingest.ring import NOTHING
from netcore.ingest.shard import Shard
from netcore.runtime import Progress, Runtime

__all__ = ["Backoff", "DispatchEvents", "Dispatcher"]

_log = logging.getLogger("netcore.dispatch")
TURN_S: Final = 0.001
"""How long a worker may keep the loop to itself when its adapter never suspends."""


class Backoff:
    """Waits between attempts: random in [1/2, 1] of 20 ms * 2^k, at most 2 s.

    Source: "equal jitter" in M. Brooker, "Exponential Backoff And Jitter" (2015).
    """

    FIRST_S: Final = 0.02
    LONGEST_S: Final = 2.0

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def seconds(self, attempt: int, *, longest: bool = False) -> float:
        """Return the wait after the attempt with this number, from 0."""
        ceiling = self.LONGEST_S if longest else min(self.LONGEST_S, self.FIRST_S * 2 ** min(attempt, 16))
        return ceiling * (0.5 + 0.5 * self._rng.random())


class DispatchEvents(msgspec.Struct, frozen=True, kw_only=True):
    """What a dispatcher tells its bus, on the loop thread; neither may raise.

    Attributes:
        dispatched: (shard id, events, seconds) after a batch was stored; None if nobody listens.
        dead_letter: (shard id, sequence number, event, error) for each event given up.
    """

    dispatched: Callable[[int, int, float], None] | None
    dead_letter: Callable[[int, int, IndexedEvent, Exception], None]


class Dispatcher:
    """One shard's worker.

    Args:
        shard: whose events.
        batcher: cuts its batches.
        adapter: stores them.
        producer: the bus's name on its batches.
        runtime: the loop.
        progress: notified after each settled batch.
        events: who is told what.
        unexpected: counts an unexpected exception of the adapter.
        timeout_s: bounds each attempt.
        rng: for the backoff.
    """

    def __init__(
        self,
        *,
        shard: Shard,
        batcher: Batcher,
        adapter: Adapter[Any],
        producer: str,
        runtime: Runtime,
        progress: Progress,
        events: DispatchEvents,
        unexpected: Callable[[Exception], None],
        timeout_s: float,
        rng: random.Random,
    ) -> None:
        self._shard = shard
        self._batcher = batcher
        self._adapter = adapter
        self._producer = producer
        self._runtime = runtime
        self._progress = progress
        self._events = events
        self._unexpected = unexpected
        self._timeout_s = timeout_s
        self._backoff = Backoff(rng)

    async def run(self) -> None:
        """Drain the shard until its ring is sealed and empty."""
        turn_ends = time.monotonic() + TURN_S
        while (columns := await self._batcher.next()).payloads:
            suspended = self._runtime.suspended
            began = self._shard.busy_since = time.monotonic()
            await self._store(
                Batch(
                    producer=self._producer,
                    shard=self._shard.id,
                    first_seq=self._shard.next_seq,
                    stamps=columns.stamps,
                    payloads=columns.payloads,
                )
            )
            now = time.monotonic()
            self._shard.busy_since = None
            self._shard.busy_s += now - began
            if self._runtime.suspended != suspended:  # others have run meanwhile
                turn_ends = now + TURN_S
            elif now > turn_ends:
                await self._runtime.checkpoint()
                turn_ends = time.monotonic() + TURN_S

    async def _store(self, batch: Batch) -> None:
        """Return once the batch is settled: stored, bisected down to what can't be, or given up."""
        started = time.monotonic()
        attempt = 0
        while not self._shard.given_up:
            try:
                self._shard.attempt_started = time.monotonic()
                call: Awaitable[None] = self._adapter.append(batch)
                if type(call) is not CoroutineType:
                    call = awaitable(self._adapter, "append", call)
                await self._runtime.within(call, self._timeout_s)
            except FatalAdapterError as error:
                await self._bisect(batch, error)
                return
            except AdapterRefusedError as error:
                delay = self._refused(error, self._backoff.seconds(attempt, longest=True))
            except (TransientAdapterError, TimeoutError) as error:
                delay = self._refused(error, self._backoff.seconds(attempt))
            except Exception as error:
                self._unexpected(error)
                delay = self._refused(error, self._backoff.seconds(attempt))
            else:
                self._stored(batch, time.monotonic() - started)
                return
            finally:
                self._shard.attempt_started = None
            if self._shard.given_up:
                return
            attempt += 1
            self._shard.retries += 1
            await self._pause(delay)

    async def _pause(self, seconds: float) -> None:
        """Wait before the next attempt; a shutdown or removal that begins meanwhile cuts the wait."""
        shard = self._shard
        until = time.monotonic() + seconds
        had_begun = shard.ring.sealed
        while (left := until - time.monotonic()) > 0 and shard.ring.sealed == had_begun:
            await shard.signal.wait(left)

    def _refused(self, error: Exception, delay: float) -> float:
        text = describe(error)
        if isinstance(error, TimeoutError) and not isinstance(error, TransientAdapterError):
            text = f"append gave no answer within {self._timeout_s:g} s"
        if text != self._shard.last_error:
            _log.warning("shard %d: %s; will retry until it is stored", self._shard.id, text)
        self._shard.last_error = text
        return delay

    def _stored(self, batch: Batch, seconds: float) -> None:
        shard = self._shard
        if shard.given_up:
            return
        count = len(batch)
        shard.dispatched += count
        shard.batches += 1
        shard.last_batch_ms = seconds * 1e3
        self._settle(count)
        if self._events.dispatched is not None:
            self._events.dispatched(shard.id, count, seconds)

    def _settle(self, count: int) -> None:
        shard = self._shard
        shard.next_seq += count
        shard.held = NOTHING if count == len(shard.held.payloads) else shard.held.part(count)
        shard.last_error = ""
        shard.last_progress = time.monotonic()
        self._progress.notify()

    async def _bisect(self, batch: Batch, error: FatalAdapterError) -> None:
        """Store all of a refused batch but the events that make it so."""
        if self._shard.given_up:
            return
        if len(batch) == 1:
            event: Any = batch.events[0]
            self._shard.dead_lettered += 1
            self._settle(1)
            self._events.dead_letter(self._shard.id, batch.first_seq, event, error)
            return
        middle = len(batch) // 2
        for half in (batch.part(0, middle), batch.part(middle)):
            await self._store(half)
