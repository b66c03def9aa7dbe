"""One shard: its ring, what its worker holds, and its counters.

The loop's thread owns everything here but the ring: workers, polls, flushes and scaling all run
there, so nothing needs a lock. `stats` may be called from any thread: it reads ints only.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from netcore.ingest.ring import NOTHING, FlushMark, Ring
from netcore.runtime import Signal
from netcore.stats import ShardStats

__all__ = ["Shard"]


class Shard:
    """One ring and what became of its events.

    Args:
        shard_id: its id, never reused in a bus's life.
        capacity: of the ring, in events.
        signal: wakes the worker.
        wake: sets `signal` from any thread.
        moved: see `Ring`.
    """

    __slots__ = (
        "added_at",
        "attempt_started",
        "batches",
        "busy_s",
        "busy_since",
        "dead_lettered",
        "dispatched",
        "given_up",
        "held",
        "id",
        "last_batch_ms",
        "last_error",
        "last_progress",
        "leaving",
        "lost",
        "next_seq",
        "retries",
        "ring",
        "signal",
        "stopping",
    )

    def __init__(
        self,
        shard_id: int,
        capacity: int,
        signal: Signal,
        wake: Callable[[], object],
        moved: Callable[[], object],
    ) -> None:
        self.id: Final = shard_id
        self.ring: Final = Ring(shard_id, capacity, wake, moved)
        self.signal: Final = signal
        self.added_at: Final = time.monotonic()
        self.held = NOTHING
        """Taken from the ring and not yet settled, oldest first."""
        self.next_seq = 0
        self.dispatched = self.dead_lettered = self.lost = self.batches = self.retries = 0
        self.last_batch_ms = self.busy_s = 0.0
        self.last_error = ""
        self.last_progress = time.monotonic()
        self.attempt_started: float | None = None
        self.busy_since: float | None = None
        self.stopping = False
        self.leaving = False
        self.given_up = False
        """Its events are counted as lost: what an adapter call that comes back late says is void."""

    @property
    def settled(self) -> int:
        """Drained events that are stored, dead-lettered or lost."""
        return self.dispatched + self.dead_lettered + self.lost

    @property
    def in_flight(self) -> int:
        """Events taken from the ring and not yet settled."""
        return self.ring.drained - self.settled

    @property
    def outstanding(self) -> int:
        """Accepted events that are not settled."""
        return self.ring.here + self.in_flight

    def reached(self, mark: FlushMark) -> bool:
        """Tell whether all that was accepted before the mark is settled or evicted."""
        return mark.settle_at is not None and self.settled >= mark.settle_at

    def oldest_ts(self, stored: int = 0) -> int | None:
        """Return the timestamp of the oldest event not yet stored; None if there is none.

        No event that this shard stores from now on has a merge key below it: a key is never below
        that of its predecessor in the stream.

        Args:
            stored: how many of the held events to count as stored.
        """
        if len(self.held.stamps) > stored:
            return self.held.stamps[stored]
        with self.ring.lock:
            return self.ring.oldest()

    def stalled_since(self) -> float:
        """When it last stored something or was last woken from idling (monotonic seconds)."""
        return max(self.last_progress, self.ring.woken_at)

    def give_up(self) -> int:
        """Count everything outstanding as lost, and return how much that is."""
        self.given_up = True
        self.ring.abandon()
        lost = self.in_flight
        self.lost += lost
        self.held = NOTHING
        return lost

    def stats(self, wedged_after_s: float) -> ShardStats:
        """Return a snapshot; any thread.

        Args:
            wedged_after_s: an adapter call older than this outlived its cancellation.
        """
        ring = self.ring
        # What is settled is read before what was drained: an event may pass from one to the other
        # in between, and must then not be counted as neither.
        dispatched, dead_lettered, lost = self.dispatched, self.dead_lettered, self.lost
        drained, evicted, depth, oldest = ring.counts()
        started, busy_since = self.attempt_started, self.busy_since
        return ShardStats(
            id=self.id,
            depth=depth,
            capacity=ring.capacity,
            utilisation=depth / ring.capacity,
            in_flight=max(0, drained - dispatched - dead_lettered - lost),
            oldest_age_ms=0.0 if oldest is None else max(0.0, (time.time_ns() - oldest) / 1e6),
            accepted=drained + evicted + depth,
            dispatched=dispatched,
            evicted=evicted,
            rejected=ring.rejected,
            discarded=ring.discarded,
            dead_lettered=dead_lettered,
            lost=lost,
            full_hits=ring.full_hits,
            batches=self.batches,
            retries=self.retries,
            last_batch_ms=self.last_batch_ms,
            busy_s=self.busy_s + (time.monotonic() - busy_since if busy_since is not None else 0.0),
            age_s=time.monotonic() - self.added_at,
            wedged=started is not None and time.monotonic() - started > wedged_after_s,
            leaving=self.leaving,
            last_error=self.last_error,
        )
