"""A wall clock that stands still until a test moves it."""

from __future__ import annotations

__all__ = ["ManualClock"]


class ManualClock:
    """Call it for the time in ns since the epoch; hand it to whatever takes a `now`.

    Args:
        start: first time it tells, ns since the epoch; default: a day in November 2023.
    """

    def __init__(self, start: int = 1_700_000_000_000_000_000) -> None:
        self._now = start

    def __call__(self) -> int:  # noqa: D102  # the class says it
        return self._now

    def advance(self, seconds: float) -> int:
        """Move on by `seconds` (back, if negative: wall clocks do step) and return the new time, ns."""
        self._now += round(seconds * 1_000_000_000)
        return self._now

    def set(self, ns: int) -> None:
        """Set the time, ns since the epoch."""
        self._now = ns
