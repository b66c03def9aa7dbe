"""One scripted fault: what it does to calls, and what a test learns of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import anyio

__all__ = ["Fault", "Moved", "Thunk"]

Thunk: TypeAlias = Callable[[], Awaitable[Any]]


class Fault:
    """What happens to some calls of one kind, and a handle on those it happened to.

    Made by the methods of `FaultyAdapter`. Single loop.

    Attributes:
        hits: calls it happened to so far.
        inside: calls that it is holding right now.
        open: it was released.
        late: calls kept for `deliver`.
        cancelled: cancellations that reached calls it held (of `hang_uncancellable`: on asyncio, those
            by `Task.cancel` only).
    """

    def __init__(
        self,
        effect: Callable[[Fault, Thunk], Awaitable[Any]],
        *,
        times: int | None,
        matches: Callable[[int | None], bool],
    ) -> None:
        self._effect = effect
        self._left = times
        self._matches = matches
        self._released: anyio.Event | None = None
        self.open = False
        self._moved = Moved()
        self.late: list[Thunk] = []
        self.hits = 0
        self.inside = 0
        self.cancelled = 0

    def release(self) -> None:
        """Let go of what it holds, now and later."""
        self.open = True
        if self._released is not None:
            self._released.set()

    def end(self) -> None:
        """Happen to no further call; release what it holds."""
        self._left = 0
        self.release()

    async def reached(self, count: int = 1, *, timeout: float = 10.0) -> None:
        """Wait until it happened to `count` calls in all.

        Raises:
            TimeoutError: to fewer, within `timeout` seconds.
        """
        await self._moved.until(lambda: self.hits >= count, timeout)

    async def abandoned(self, count: int = 1, *, timeout: float = 10.0) -> None:
        """Wait until `cancelled` is `count` or more.

        Raises:
            TimeoutError: fewer were, within `timeout` seconds.
        """
        await self._moved.until(lambda: self.cancelled >= count, timeout)

    async def deliver(self) -> int:
        """Carry out, now and in order, the calls that `delay_past_cancellation` kept; return how many.

        They run in the caller's task, as if the network had let them through at last.
        """
        late, self.late = self.late, []
        for call in late:
            await call()
        return len(late)

    def takes(self, shard: int | None) -> bool:
        """Tell whether it applies to a call, and count that down."""
        if self._left == 0 or not self._matches(shard):
            return False
        if self._left is not None:
            self._left -= 1
        return True

    async def happen(self, call: Thunk) -> Any:
        """Happen to a call."""
        self.hits += 1
        self.inside += 1
        self._moved.notify()
        try:
            return await self._effect(self, call)
        finally:
            self.inside -= 1
            self._moved.notify()

    async def wait_released(self) -> None:
        """Wait for `release`."""
        if self._released is None:
            self._released = anyio.Event()
        if not self.open:
            await self._released.wait()

    def count_cancelled(self) -> None:
        """Count a cancellation and tell who waits for it."""
        self.cancelled += 1
        self._moved.notify()


class Moved:
    """Lets tests wait until a condition holds, looked at whenever something moved."""

    def __init__(self) -> None:
        self._event: anyio.Event | None = None

    def notify(self) -> None:
        """Have waiters look again."""
        if self._event is not None:
            self._event.set()
            self._event = None

    async def until(self, condition: Callable[[], bool], timeout: float) -> None:
        """Wait until it holds, at most `timeout` seconds."""
        with anyio.fail_after(timeout):
            while not condition():
                if self._event is None:
                    self._event = anyio.Event()
                await self._event.wait()
