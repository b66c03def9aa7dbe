"""The manual clock."""

from __future__ import annotations

from netcore.testing.clock import ManualClock


def test_clock_stands_still_until_moved() -> None:
    """It tells the same time until a test moves it, forwards or backwards."""
    clock = ManualClock(1000)
    assert clock() == clock() == 1000
    assert clock.advance(1.5) == 1_500_001_000
    clock.advance(-1.5)
    assert clock() == 1000
    clock.set(7)
    assert clock() == 7
