"""From other threads back to the event loop, on asyncio and trio alike."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

import anyio

__all__ = ["Bell", "Loop", "current_loop"]


class Loop(Protocol):
    """What the bell needs of an event loop. All but `call` on the loop's own thread."""

    def call(self, callback: Callable[[], None]) -> None:
        """Run a callback soon, from any thread; a loop that has ended meanwhile drops it."""

    def call_here(self, callback: Callable[[], None]) -> None:
        """Run a callback soon."""

    def latch(self) -> tuple[Callable[[], object], Callable[[float], Awaitable[object]]]:
        """Return how to set a new latch, and how to wait until it is set, for so many seconds at most."""


class _AsyncioLoop:
    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    def call(self, callback: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback)

    def call_here(self, callback: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon(callback)

    def latch(self) -> tuple[Callable[[], object], Callable[[float], Awaitable[object]]]:
        # A plain future and a timer: on the way of every event, scopes and events cost three times that.
        future: asyncio.Future[None] = self._loop.create_future()

        def wake() -> None:
            if not future.done():
                future.set_result(None)

        async def woken(timeout: float) -> None:
            timer = self._loop.call_later(timeout, wake)
            try:
                await future
            finally:
                timer.cancel()

        return wake, woken


class _TrioLoop:
    def __init__(self) -> None:
        import trio

        self._trio = trio
        self._token = trio.lowlevel.current_trio_token()

    def call(self, callback: Callable[[], None]) -> None:
        with contextlib.suppress(self._trio.RunFinishedError):
            self._token.run_sync_soon(callback)

    call_here = call

    def latch(self) -> tuple[Callable[[], object], Callable[[float], Awaitable[object]]]:
        event = self._trio.Event()

        async def woken(timeout: float) -> None:
            with self._trio.move_on_after(timeout):
                await event.wait()

        return event.set, woken


def current_loop() -> Loop:
    """Return the loop that the calling task runs on."""
    return _AsyncioLoop() if anyio.get_cancelled_exc_class() is asyncio.CancelledError else _TrioLoop()


class Bell:
    """Wakes tasks that wait for a condition which another thread makes true.

    `ring` is cheap while nobody waits, and coalesces: one callback is under way at most.

    Args:
        answer: called on the loop at each ring that has somebody to wake, before they look again.
    """

    def __init__(self, answer: Callable[[], None]) -> None:
        self._loop = current_loop()
        self._thread = threading.get_ident()
        self._answer = answer
        self._waiting: dict[Callable[[], object], Callable[[], bool]] = {}  # what wakes -> its condition
        self._under_way = False
        self.eager = False
        """Ring although nobody waits: `answer` has work to do."""

    def ring(self) -> None:
        """Let the waiters look again. Any thread."""
        if (self._waiting or self.eager) and not self._under_way:
            self._under_way = True
            if threading.get_ident() == self._thread:
                self._loop.call_here(self._rung)
            else:
                self._loop.call(self._rung)

    def soon(self, callback: Callable[[], None]) -> None:
        """Run a callback in the loop's next turn. Loop thread only."""
        self._loop.call_here(callback)

    def look(self) -> None:
        """Let the waiters look now. From a callback of the loop only."""
        if self._waiting or self.eager:
            self._rung()

    def _rung(self) -> None:
        self._under_way = False
        self._answer()
        for wake, condition in list(self._waiting.items()):
            try:
                holds = condition()
            except Exception:  # theirs to meet
                holds = True
            if holds:
                wake()

    async def until(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Wait until `condition` holds; False after `timeout` seconds. Loop thread only."""
        deadline = time.monotonic() + timeout
        while True:
            wake, woken = self._loop.latch()
            self._waiting[wake] = condition  # before the look: a ring after it is not missed
            try:
                if condition():
                    return True
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                await woken(left)
            finally:
                del self._waiting[wake]
