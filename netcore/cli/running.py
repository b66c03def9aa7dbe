"""Runs a command's coroutine: the first SIGINT or SIGTERM asks it to end, a second one ends it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import types
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import anyio

from netcore.cli.options import note

__all__ = ["Stop", "run"]

T = TypeVar("T")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """Whether the user asked the command to end.

    Attributes:
        signal: number of the first signal that came, or 0.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._scopes: set[anyio.CancelScope] = set()

    def __bool__(self) -> bool:
        return self.signal != 0

    @property
    def exit_code(self) -> int:
        """What a shell expects of a program that a signal ended; 0 if none came."""
        return 128 + self.signal if self.signal else 0

    async def until(self, call: Callable[[], Awaitable[T]]) -> T | None:
        """Await `call()`; once a signal came it is cancelled, and None returned."""
        if self.signal:
            return None
        with anyio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                return await call()
            finally:
                self._scopes.discard(scope)
        return None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals over; must be entered on the main thread, with the loop running."""
        self._loop = asyncio.get_running_loop()
        before = {number: signal.signal(number, self._received) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _received(self, number: int, frame: types.FrameType | None) -> None:
        if self.signal:  # the user means it: no draining, no flushing, whatever is stuck
            if sys.stderr.isatty():
                sys.stderr.write("\x1b[?25h")  # a progress bar may have hidden the cursor
                sys.stderr.flush()
            os._exit(128 + number)
        self.signal = number
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        note(f"{signal.Signals(self.signal).name}: shutting down (again to leave at once)")
        for scope in list(self._scopes):
            scope.cancel()


def run(body: Callable[[Stop], Awaitable[int]]) -> int:
    """Run `body` on asyncio, which every adapter supports, and return the exit code it returns."""

    async def main() -> int:
        stop = Stop()
        with stop.listening():
            return await body(stop)

    return anyio.run(main, backend="asyncio")
