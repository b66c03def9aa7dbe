"""Waking workers: many with one call into the loop."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Final

from netcore.runtime import Runtime

__all__ = ["Wakeups"]

STALE_S: Final = 0.1
"""A call into the loop older than this may never be answered: the next wake-up calls again, and
finds out if the loop is gone."""


class Wakeups:
    """What woke workers share: a burst over many shards calls into the loop once, not once a shard.

    A call from another thread is a system call, and one on the loop's own thread still costs as much
    as a dozen pushes. Any thread may call `wake`; what it asks for is done on the loop's thread.

    Args:
        runtime: the loop.
        gone: called, on the thread that finds it out, when the loop is gone.
    """

    __slots__ = ("_called", "_called_at", "_due", "_gone", "_runtime")

    def __init__(self, runtime: Runtime, gone: Callable[[], object]) -> None:
        self._runtime = runtime
        self._gone = gone
        self._due: deque[Callable[[], object]] = deque()
        self._called = False
        self._called_at = 0.0

    def wake(self, function: Callable[[], object]) -> None:
        """Have `function` called on the loop's thread soon; any thread, maybe with its ring locked."""
        # First the entry, then the look: `_run` takes the flag down before it looks at the entries.
        self._due.append(function)
        now = time.monotonic()
        if self._called and now - self._called_at < STALE_S:
            return
        try:
            self._called_at = now
            self._called = True
            there = self._runtime.call_next(self._run)
        except BaseException:  # a KeyboardInterrupt: nobody may rely on this call
            self._called = False
            raise
        if not there:
            self._gone()

    def _run(self) -> None:
        self._called = False
        due = self._due
        while due:
            due.popleft()()
