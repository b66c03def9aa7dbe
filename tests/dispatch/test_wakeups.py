"""Waking workers: many with one call into the loop, and none forgotten."""

from __future__ import annotations

import threading
from collections.abc import Callable

import anyio
import pytest

from netcore.dispatch import wakeups as wakeups_module
from netcore.dispatch.wakeups import Wakeups
from netcore.runtime import Runtime, current_runtime


class Loop:
    """Stands for a loop: counts the calls into it, and runs them when told to."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], object]] = []
        self.gone = False

    def call_next(self, function: Callable[[], object]) -> bool:
        """Note the call."""
        self.calls.append(function)
        return not self.gone

    def turn(self) -> None:
        """Run what was asked for."""
        due, self.calls = self.calls, []
        for function in due:
            function()


def made(loop: Loop, told: list[str] | None = None) -> Wakeups:
    """Make wake-ups of a loop."""
    return Wakeups(loop, lambda: told.append("gone") if told is not None else None)  # type: ignore[arg-type]


def test_wakeups_many_before_the_loop_turns_are_one_call_and_all_are_done() -> None:
    """A burst over a hundred shards costs one call; the next burst another."""
    loop, woken = Loop(), list[int]()
    wakeups = made(loop)
    for burst in (1, 2):
        for _ in range(100):
            wakeups.wake(lambda: woken.append(1))
        assert len(loop.calls) == 1
        loop.turn()
        assert len(woken) == 100 * burst


def test_wakeups_asked_for_during_a_run_are_done_in_it_or_in_the_next() -> None:
    """A worker that is woken while others are being woken is not forgotten."""
    loop, woken = Loop(), list[str]()
    wakeups = made(loop)
    wakeups.wake(lambda: wakeups.wake(lambda: woken.append("inner")))
    loop.turn()
    loop.turn()
    assert woken == ["inner"]


def test_wakeups_whose_call_is_never_answered_call_again_and_find_the_loop_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A loop that ended with a call in its queue is noticed by a later wake-up."""
    loop, told = Loop(), list[str]()
    wakeups = made(loop, told)
    wakeups.wake(int)
    loop.gone = True
    wakeups.wake(int)
    assert told == []
    monkeypatch.setattr(wakeups_module, "STALE_S", 0.0)
    wakeups.wake(int)
    assert told == ["gone"]


@pytest.mark.anyio
async def test_wakeups_from_threads_and_the_loop_itself_are_all_done() -> None:
    """Real threads against a real loop: none is lost between the flag and the queue."""
    runtime: Runtime = current_runtime()
    wakeups, woken = Wakeups(runtime, int), list[int]()

    def burst() -> None:
        for _ in range(2000):
            wakeups.wake(lambda: woken.append(1))

    threads = [threading.Thread(target=burst) for _ in range(3)]
    for thread in threads:
        thread.start()
    with anyio.fail_after(20):
        for _ in range(200):
            wakeups.wake(lambda: woken.append(1))
            await anyio.lowlevel.checkpoint()
        while len(woken) < 3 * 2000 + 200:
            await anyio.sleep(0.001)
    for thread in threads:
        thread.join(5)


def test_wakeup_interrupted_in_its_call_does_not_silence_the_next() -> None:
    """A KeyboardInterrupt in the call into the loop leaves nobody believing that it was made."""
    loop, woken = Loop(), list[str]()
    wakeups = made(loop)
    call_next = loop.call_next

    def interrupted(function: Callable[[], object]) -> bool:
        raise KeyboardInterrupt

    loop.call_next = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        wakeups.wake(lambda: woken.append("first"))
    loop.call_next = call_next  # type: ignore[method-assign]
    wakeups.wake(lambda: woken.append("second"))
    loop.turn()
    assert woken == ["first", "second"]
