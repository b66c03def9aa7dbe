"""When a batch leaves its shard, and what is in it."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate
from typing import Final

from netcore.ingest.ring import NOTHING, Columns
from netcore.ingest.shard import Shard
from netcore.runtime import Progress

__all__ = ["Batcher"]

FENCE_S: Final = 0.25
"""A worker before a fence looks again this often; whatever settles events tells it sooner."""


class Batcher:
    """Cuts a shard's events into batches.

    A batch leaves at `max_events`, or `delay_s` after its first event was accepted, whichever
    comes first; a flush, a shutdown, a removal or a full ring cuts the delay. A batch is never empty, never
    over `max_events`, and never over `max_bytes` of payload unless it is a single event.

    Args:
        shard: whose events.
        max_events: ceiling of a batch, the adapter's own limit included.
        max_bytes: ceiling of a batch's payload bytes, or None.
        delay_s: seconds.
        progress: moves whenever any shard's batch is settled.
        now: monotonic seconds.
    """

    __slots__ = ("_delay_s", "_enough", "_max_bytes", "_max_events", "_now", "_progress", "_shard", "_since")

    def __init__(
        self,
        shard: Shard,
        *,
        max_events: int,
        max_bytes: int | None,
        delay_s: float,
        progress: Progress,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._shard = shard
        self._max_events = max_events
        self._enough = min(max_events, shard.ring.capacity)
        self._max_bytes = max_bytes
        self._delay_s = delay_s
        self._progress = progress
        self._now = now
        self._since: float | None = None
        """When the delay of the events now in the ring began: no later than the first of them came."""

    async def next(self) -> Columns:
        """Wait for a batch; no payloads once the ring is sealed and drained.

        What it returns stays in `shard.held` until settled.
        """
        shard = self._shard
        ring = shard.ring
        while True:
            if shard.held.payloads:
                return self._cut()
            await self._pass_fences()
            waiting = ring.here
            if not waiting:
                if ring.finish():
                    return NOTHING
                if ring.doze():
                    self._since = None
                    await shard.signal.wait()
                    ring.awake()
                    self._since = self._now()
                continue
            if waiting < self._enough and not self._hurried():
                begun = self._since = self._now() if self._since is None else self._since
                left = begun + self._delay_s - self._now()
                if left > 0:
                    if ring.doze(self._enough - 1):
                        await shard.signal.wait(left)
                        ring.awake()
                    continue
            shard.held = ring.take(self._max_events)
            if not ring.here:
                # Events that come during the dispatch arrive after this moment; one that was left
                # behind came before, and keeps the beginning of the delay.
                self._since = self._now()

    def _hurried(self) -> bool:
        ring = self._shard.ring
        return ring.sealed or self._shard.stopping or any(mark.settle_at is None for mark in ring.marks)

    def _cut(self) -> Columns:
        """Return as much of what is held as fits into one batch."""
        held = self._shard.held
        if self._max_bytes is None or sum(map(len, held.payloads)) <= self._max_bytes:
            return held
        sizes = list(accumulate(map(len, held.payloads)))
        return held.part(0, max(1, bisect_right(sizes, self._max_bytes)))

    async def _pass_fences(self) -> None:
        """Wait while the oldest event in the ring must not leave yet; see `scaling.resharding`."""
        fences = self._shard.ring.fences
        while fences:
            fence = fences[0]
            if fence.passed() or self._now() >= fence.deadline:
                with self._shard.ring.lock:  # a withdrawal may be going through them
                    fences.popleft()
            elif self._shard.ring.head < fence.position:
                return
            else:
                await self._progress.wait(min(FENCE_S, fence.deadline - self._now()))
