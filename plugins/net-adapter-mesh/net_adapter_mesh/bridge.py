"""From other threads back to the event loop, on asyncio and trio alike."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import anyio

__all__ = ["Bell", "loop_caller"]


def loop_caller() -> Callable[[Callable[[], None]], None]:
    """Return a function that runs a callback on the loop of the calling task, from any thread.

    A loop that has ended meanwhile drops the callback.
    """
    if anyio.get_cancelled_exc_class() is asyncio.CancelledError:
        loop = asyncio.get_running_loop()

        def call_asyncio(callback: Callable[[], None]) -> None:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(callback)

        return call_asyncio
    import trio

    token = trio.lowlevel.current_trio_token()

    def call_trio(callback: Callable[[], None]) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(callback)

    return call_trio


class Bell:
    """Wakes tasks that wait for a condition which another thread makes true.

    `ring` is cheap while nobody waits, and coalesces: one callback is under way at most.

    Args:
        answer: called on the loop at each ring that has somebody to wake, before they look again.
    """

    def __init__(self, answer: Callable[[], None]) -> None:
        self._call = loop_caller()
        self._answer = answer
        self._waiting: set[anyio.Event] = set()
        self._under_way = False
        self.eager = False
        """Ring although nobody waits: `answer` has work to do."""

    def ring(self) -> None:
        """Let the waiters look again. Any thread."""
        if (self._waiting or self.eager) and not self._under_way:
            self._under_way = True
            self._call(self._rung)

    def _rung(self) -> None:
        self._under_way = False
        self._answer()
        waiting, self._waiting = self._waiting, set()
        for event in waiting:
            event.set()

    async def until(self, condition: Callable[[], bool], timeout: float) -> bool:
        """Wait until `condition` holds; False after `timeout` seconds. Loop thread only."""
        with anyio.move_on_after(max(0.0, timeout)):
            while True:
                event = anyio.Event()
                self._waiting.add(event)  # before the look: a ring after it is not missed
                try:
                    if condition():
                        return True
                    await event.wait()
                finally:
                    self._waiting.discard(event)
        return condition()
