"""The asyncio side of `netcore.runtime`; imported only where asyncio runs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, TypeVar

from netcore.runtime import CallCancelledError, Runtime, Signal, Task

__all__ = ["AsyncioRuntime"]

T = TypeVar("T")


class _AsyncioSignal(Signal):
    __slots__ = ("_flag", "_future", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._flag = False
        self._future: asyncio.Future[None] | None = None

    def set(self) -> None:
        self._flag = True
        self._release()

    def _release(self) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    async def wait(self, timeout: float | None = None) -> bool:
        if not self._flag:
            self._future = self._loop.create_future()
            timer = None if timeout is None else self._loop.call_later(max(0.0, timeout), self._release)
            try:
                await self._future
            finally:
                self._future = None
                if timer is not None:
                    timer.cancel()
        fired, self._flag = self._flag, False
        return fired


class _AsyncioTask(Task):
    __slots__ = ("_task",)

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self._task = task
        task.add_done_callback(_retrieve)

    @property
    def done(self) -> bool:
        return self._task.done()

    def cancel(self) -> None:
        self._task.cancel()

    async def join(self, timeout: float | None = None) -> bool:
        if not self._task.done():
            await asyncio.wait({self._task}, timeout=timeout)
        return self._task.done()

    def result(self) -> Any:
        if self._task.cancelled():
            raise CallCancelledError("the call was cancelled")
        return self._task.result()


class _Repeated:
    """A callback that renews itself: half the work, at each turn, of a task that sleeps."""

    __slots__ = ("_function", "_handle", "_loop", "_seconds")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, seconds: float, function: Callable[[], object]
    ) -> None:
        self._loop = loop
        self._seconds = seconds
        self._function = function
        self._handle = loop.call_later(seconds, self._fire)

    def _fire(self) -> None:
        self._handle = self._loop.call_later(self._seconds, self._fire)
        self._function()

    def cancel(self) -> None:
        self._handle.cancel()


class _Resumed(Awaitable[T]):
    """The rest of an awaitable that has been stepped once already, in the same task."""

    __slots__ = ("_steps", "_yielded")

    def __init__(self, steps: Generator[Any, Any, T], yielded: Any) -> None:
        self._steps = steps
        self._yielded = yielded

    def __await__(self) -> Generator[Any, Any, T]:
        steps, yielded = self._steps, self._yielded
        try:
            while True:
                try:
                    received = yield yielded
                except BaseException as error:
                    yielded = steps.throw(error)
                else:
                    yielded = steps.send(received)
        except StopIteration as ended:
            value: T = ended.value
            return value


def _retrieve(task: asyncio.Task[Any]) -> None:
    """Take the exception, so that asyncio does not log it as never retrieved."""
    if not task.cancelled():
        task.exception()


class AsyncioRuntime(Runtime):
    name = "asyncio"

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[Any]] = set()  # the loop itself keeps weak references only

    @property
    def here(self) -> bool:
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False

    @property
    def gone(self) -> bool:
        return self._loop.is_closed()

    def signal(self) -> Signal:
        return _AsyncioSignal(self._loop)

    def spawn(
        self,
        function: Callable[[], Coroutine[Any, Any, Any]],
        name: str,
        *,
        ended: Callable[[], object] | None = None,
    ) -> Task:
        task = self._loop.create_task(function(), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if ended is not None:
            task.add_done_callback(lambda _: ended())
        return _AsyncioTask(task)

    def every(self, seconds: float, function: Callable[[], object]) -> Callable[[], object]:
        return _Repeated(self._loop, seconds, function).cancel

    def call_soon_threadsafe(self, function: Callable[[], object]) -> bool:
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:
            return False
        return True

    def call_next(self, function: Callable[[], object]) -> bool:
        if threading.get_ident() != self.thread_id:
            return self.call_soon_threadsafe(function)
        try:
            self._loop.call_soon(function)  # without the system call
        except RuntimeError:
            return False
        return True

    async def within(self, awaitable: Awaitable[T], timeout: float) -> T:
        try:
            # The first step by hand: most calls of an in-process adapter end in it, and need no timer.
            steps = awaitable.__await__()
            try:
                first = next(steps)
            except StopIteration as ended:
                value: T = ended.value
                return value
            self.suspended += 1
            async with asyncio.timeout(timeout):
                return await _Resumed(steps, first)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Nobody cancelled this task: the awaitable let a cancellation of its own escape.
            raise CallCancelledError("the call cancelled itself") from error

    async def checkpoint(self) -> None:
        await asyncio.sleep(0)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
