"""The hybrid logical clock: order, the wall clock, and timestamps from elsewhere."""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netcore.ingest.clock import MAX_TS, OBSERVE_MARGIN_NS, Clock

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND


class Wall:
    """A wall clock that stands where it is put."""

    def __init__(self, now: int = START) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def tiny_switch_interval() -> Iterator[None]:
    """Let threads take turns as often as the interpreter can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@given(st.lists(st.tuples(st.sampled_from(["tick", "step", "rebase", "observe"]), st.integers(-10, 10))))
def test_clock_wall_steps_both_ways_draws_strictly_increase(script: list[tuple[str, int]]) -> None:
    """Whatever the wall clock does, and whatever is observed, each draw is above all before it."""
    wall = Wall()
    clock = Clock(wall)
    last = 0
    for action, amount in [*script, ("tick", 0)]:
        if action == "step":
            wall.now += amount * SECOND
        elif action == "rebase":
            clock.rebase()
        elif action == "observe" and clock.observe(seen := wall.now + amount * SECOND):
            assert clock.tick() > seen
        drawn = clock.tick()
        assert drawn > last
        last = drawn


def test_clock_rebased_draws_at_the_wall_clock() -> None:
    """After an idle hour one re-base brings the draws to the present."""
    wall = Wall()
    clock = Clock(wall)
    clock.tick()
    wall.now += 3600 * SECOND
    assert clock.tick() < wall.now
    clock.rebase()
    assert clock.tick() == wall.now


def test_clock_wall_steps_back_goes_on_without_following() -> None:
    """A wall clock set back by a day neither stops nor turns the draws."""
    wall = Wall()
    clock = Clock(wall)
    before = clock.tick()
    wall.now -= 86_400 * SECOND
    clock.rebase()
    assert clock.tick() == before + 2  # the re-base drew one to compare


@pytest.mark.parametrize("ts", [-1, MAX_TS + 1, 2**63, START + 61 * SECOND])
def test_observe_out_of_bounds_is_counted_and_ignored(ts: int) -> None:
    """A timestamp that is negative, too large, or too far ahead moves nothing."""
    clock = Clock(Wall(), max_drift_ms=60_000)
    before = clock.tick()
    assert clock.observe(ts) is False
    assert clock.anomalies == 1
    assert clock.tick() == before + 1


def test_observe_at_the_edge_of_the_drift_is_taken() -> None:
    """Exactly `max_clock_drift_ms` ahead is in bounds; the next draw is above it."""
    clock = Clock(Wall(), max_drift_ms=60_000)
    assert clock.horizon() == START + 60 * SECOND
    assert clock.observe(START + 60 * SECOND) is True
    assert clock.tick() > START + 60 * SECOND
    assert clock.anomalies == 0


def timestamps(drift_ms: int = 60_000) -> st.SearchStrategy[int]:
    """Anything that a foreign event may carry, much of it beside a bound."""
    bounds = (0, MAX_TS, START, START + drift_ms * 1_000_000)
    beside = st.builds(int.__add__, st.sampled_from(bounds), st.integers(-3, 3))
    return beside | st.integers(-(2**70), 2**70) | st.integers(START - SECOND, START + 2 * SECOND)


@given(
    drift_ms=st.sampled_from([0, 1, 1000, 60_000, 86_400_000]),
    script=st.lists(st.sampled_from(["observe", "step", "rebase"]), max_size=20),
    data=st.data(),
)
def test_observe_any_timestamp_keeps_the_bounds(
    drift_ms: int, script: list[str], data: st.DataObject
) -> None:
    """In bounds, and only there, later draws are above it; whatever is out of bounds moves nothing at all.

    The bounds go with the wall clock, also when that steps back; what was drawn is never taken back, and
    nothing but the wall clock and what was in bounds carries the draws ahead.
    """
    wall = Wall()
    clock = Clock(wall, max_drift_ms=drift_ms)
    refused, ceiling, draws, last = 0, wall.now, 0, clock.tick()
    for action in script:
        if action == "step":
            wall.now = max(0, wall.now + data.draw(st.integers(-100, 100)) * SECOND)
            ceiling = max(ceiling, wall.now)
        elif action == "rebase":
            clock.rebase()
        else:
            edge = min(MAX_TS, wall.now + drift_ms * 1_000_000)
            assert clock.horizon() == edge
            ts = data.draw(timestamps(drift_ms) | st.integers(edge - 2, edge + 2))
            taken = clock.observe(ts)
            assert taken == (0 <= ts <= edge)
            if taken:
                ceiling = max(ceiling, ts + OBSERVE_MARGIN_NS)
                assert clock.tick() > ts
            else:
                refused += 1
                assert clock.tick() == last + 1  # not even drawn
        draws += 3  # at most: one here, one above, one in the call
        drawn = clock.tick()
        assert last < drawn <= ceiling + draws
        assert clock.anomalies == refused
        last = drawn


@given(st.lists(timestamps(), max_size=8))
def test_observe_all_acts_like_observing_each(stamps: list[int]) -> None:
    """The short cut for many timestamps moves the clock and counts as one by one would."""
    at_once, singly = Clock(Wall()), Clock(Wall())
    at_once.observe_all(stamps)
    for ts in stamps:
        singly.observe(ts)
    assert at_once.anomalies == singly.anomalies
    taken = [ts for ts in stamps if 0 <= ts <= START + 60 * SECOND]
    assert at_once.tick() > max(taken, default=0)


@pytest.mark.usefixtures("tiny_switch_interval")
def test_clock_threads_draw_while_it_is_rebased_and_observes_all_distinct() -> None:
    """No two threads ever draw the same number, and each sees its own draws increase."""
    clock = Clock()
    drawn: list[list[int]] = [[] for _ in range(6)]
    stop = threading.Event()

    def draw(mine: list[int]) -> None:
        while not stop.is_set():
            mine.append(clock.tick())

    threads = [threading.Thread(target=draw, args=(mine,)) for mine in drawn]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 1.0
    moves = 0
    while time.monotonic() < until:
        clock.rebase()
        assert clock.observe(time.time_ns() + 5_000_000)
        moves += 1
        time.sleep(0.0005)
    stop.set()
    for thread in threads:
        thread.join()
    assert moves > 10
    assert all(a < b for mine in drawn for a, b in itertools.pairwise(mine))
    everything = [ts for mine in drawn for ts in mine]
    assert len(everything) == len(set(everything)) > 1000
