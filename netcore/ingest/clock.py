"""The bus's hybrid logical clock.

Source: Kulkarni et al., "Logical Physical Clocks" (2014), with the logical part folded into the
nanoseconds: each event draws the next integer, and the counter is re-based to the wall clock.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from itertools import count
from typing import Final

__all__ = ["Clock"]

REBASE_MARGIN_NS: Final = 1_000_000
OBSERVE_MARGIN_NS: Final = 1 << 16  # small, or two nodes that answer each other would race ahead
MAX_TS: Final = 1 << 62


class Clock:
    """Draws timestamps: int ns since the epoch, strictly increasing, from any thread.

    `counter` counts at C level, so a draw (`next`) is atomic and costs some 25 ns. `rebase`, called some
    times a second by the bus, brings it to the wall clock: drawn values lag it by at most the
    time between two calls. A thread that looked `counter` up just before a re-base may still draw
    from the old counter; that value is smaller than every value of the new one, because a margin is
    left (1 ms when re-basing, 65 us when observing; one look-up serves at most 1,024 draws), and
    belongs to an event ingested concurrently.

    Args:
        now: the wall clock, ns since the epoch.
        max_drift_ms: timestamps further ahead of the wall clock are not observed.
    """

    __slots__ = ("_drift_ns", "_lock", "_now", "anomalies", "counter")

    def __init__(self, now: Callable[[], int] = time.time_ns, max_drift_ms: float = 60_000) -> None:
        self._now = now
        self._drift_ns = int(max_drift_ms * 1_000_000)
        self._lock = threading.Lock()
        self.anomalies = 0
        self.counter = count(now())

    def tick(self) -> int:
        """Draw a timestamp."""
        return next(self.counter)

    def rebase(self) -> None:
        """Move up to the wall clock, never backwards."""
        with self._lock:
            now = self._now()
            if now > self.tick() + REBASE_MARGIN_NS:
                self.counter = count(now)

    def tick_now(self) -> int:
        """Draw a timestamp that lags the wall clock by 1 ms at most. Slower than `tick`."""
        self.rebase()
        return self.tick()

    def horizon(self) -> int:
        """Return the largest timestamp that `observe` would take now."""
        return min(MAX_TS, self._now() + self._drift_ns)

    def observe(self, ts: int) -> bool:
        """Make every later draw larger than `ts`; False if `ts` is out of bounds and ignored.

        Out of bounds: negative, over 2**62, or further ahead of the wall clock than the drift
        allowed. Counted in `anomalies`.
        """
        if ts < 0 or ts > MAX_TS or ts > self._now() + self._drift_ns:
            self.anomalies += 1
            return False
        with self._lock:
            if ts >= self.tick():
                self.counter = count(ts + OBSERVE_MARGIN_NS)
        return True

    def observe_all(self, stamps: list[int]) -> None:
        """Observe the largest of `stamps` that is in bounds; count the others."""
        if not stamps:
            return
        if min(stamps) >= 0 and (largest := max(stamps)) <= min(MAX_TS, self._now() + self._drift_ns):
            self.observe(largest)
            return
        for ts in stamps:
            self.observe(ts)
