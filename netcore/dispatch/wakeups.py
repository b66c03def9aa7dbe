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
    """

    __slots__ = ("_called", "_called_at", "_due", "_runtime")

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._due: deque[Callable[[], object]] = deque()
        self._called = False
        self._called_at = 0.0

    def wake(self, function: Callable[[], object]) -> bool:
        """Have `function` called on the loop's thread soon; any thread. False: the loop is gone."""
        # First the entry, then the look: `_run` takes the flag down before it looks at the entries.
        self._due.append(function)
        if self._called and time.monotonic() - self._called_at < STALE_S:
            return True
        self._called_at = time.monotonic()
        self._called = True
        return self._runtime.call_next(self._run)

    def _run(self) -> None:
        self._called = False
        due = self._due
        while due:
            due.popleft()()
