"""The small door to the event loop: asyncio or trio, whichever runs.

Only what the bus needs: background tasks that outlive the call that started them (so no task
group spans two public calls), a one-waiter signal, calls with a deadline, and a thread-safe way
in. Everything here but `Runtime.call_soon_threadsafe` belongs to the loop's own thread.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, Final, TypeVar

__all__ = [
    "CallCancelledError",
    "CallTimeoutError",
    "Progress",
    "Runtime",
    "Signal",
    "Task",
    "current_runtime",
]

T = TypeVar("T")

GRACE_S: Final = 1.0
"""How long a cancelled call is awaited before it is left behind."""


class CallTimeoutError(TimeoutError):
    """A bounded call did not end in time.

    Attributes:
        task: the call itself if it outlived its cancellation too, else None.
    """

    def __init__(self, timeout: float, task: Task | None) -> None:
        state = "and ignores its cancellation" if task else "and was cancelled"
        super().__init__(f"no answer within {timeout:g} s {state}")
        self.task = task


class CallCancelledError(RuntimeError):
    """A background call was cancelled, or let a cancellation of its own escape.

    Not a `CancelledError`: that would tell the one who waits for the call that *it* was cancelled.
    """


class Signal(ABC):
    """A latch for one waiter: `set` is remembered until a `wait` takes it."""

    __slots__ = ()

    @abstractmethod
    def set(self) -> None:
        """Wake the waiter, or let the next `wait` return at once."""

    @abstractmethod
    async def wait(self, timeout: float | None = None) -> bool:
        """Wait until set, at most `timeout` seconds; True if set, False if time ran out."""


class Task(ABC):
    """A background task."""

    __slots__ = ()

    @property
    @abstractmethod
    def done(self) -> bool:
        """Whether it has ended."""

    @abstractmethod
    def cancel(self) -> None:
        """Ask it to end; does nothing once done."""

    @abstractmethod
    async def join(self, timeout: float | None = None) -> bool:
        """Wait until it ends, at most `timeout` seconds; False if it has not."""

    @abstractmethod
    def result(self) -> Any:
        """Return or raise what the ended task returned or raised.

        Raises:
            CallCancelledError: it was cancelled.
        """


class Runtime(ABC):
    """One running event loop."""

    name: str

    def __init__(self) -> None:
        self.thread_id: Final = threading.get_ident()

    @property
    @abstractmethod
    def here(self) -> bool:
        """Whether the caller runs on this very loop."""

    @staticmethod
    def now() -> float:
        """Seconds on a monotonic clock."""
        return time.monotonic()

    @abstractmethod
    def signal(self) -> Signal:
        """Make a signal of this loop."""

    @abstractmethod
    def spawn(self, function: Callable[[], Coroutine[Any, Any, Any]], name: str) -> Task:
        """Start a background task owned by the loop. What it raises stays with the task."""

    @abstractmethod
    def call_soon_threadsafe(self, function: Callable[[], object]) -> bool:
        """Run `function` soon on the loop's thread; any thread. False: the loop is gone."""

    def call_soon(self, function: Callable[[], object]) -> None:
        """Run `function`: at once on the loop's own thread, else soon; any thread."""
        if threading.get_ident() == self.thread_id:
            function()
        else:
            self.call_soon_threadsafe(function)

    @abstractmethod
    async def within(self, awaitable: Awaitable[T], timeout: float) -> T:
        """Await in this very task; at `timeout` seconds cancel once and raise `TimeoutError`.

        An awaitable that swallows the cancellation is awaited for as long as it takes.
        """

    @abstractmethod
    async def checkpoint(self) -> None:
        """Let other tasks run."""

    @abstractmethod
    async def sleep(self, seconds: float) -> None:
        """Sleep."""

    async def bounded(self, call: Callable[[], Coroutine[Any, Any, T]], timeout: float, name: str) -> T:
        """Run a call in a task of its own and never wait longer than `timeout` + 1 s for it.

        Raises:
            CallTimeoutError: no answer; the call was cancelled or, if it ignores that, left behind.
        """
        task = self.spawn(call, name)
        try:
            if not await task.join(timeout):
                task.cancel()
                left_behind = not await task.join(GRACE_S)
                raise CallTimeoutError(timeout, task if left_behind else None)
        except BaseException:
            task.cancel()
            raise
        value: T = task.result()
        return value


class Progress:
    """Wakes everyone who waits for something to have moved. Loop thread only."""

    __slots__ = ("_runtime", "_waiters")

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._waiters: set[Signal] = set()

    def notify(self) -> None:
        """Wake all present waiters."""
        for signal in self._waiters:
            signal.set()

    async def wait(self, timeout: float | None = None) -> bool:
        """Wait for the next `notify`; False if `timeout` seconds pass first."""
        signal = self._runtime.signal()
        self._waiters.add(signal)
        try:
            return await signal.wait(timeout)
        finally:
            self._waiters.discard(signal)


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


class _AsyncioRuntime(Runtime):
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

    def signal(self) -> Signal:
        return _AsyncioSignal(self._loop)

    def spawn(self, function: Callable[[], Coroutine[Any, Any, Any]], name: str) -> Task:
        task = self._loop.create_task(function(), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return _AsyncioTask(task)

    def call_soon_threadsafe(self, function: Callable[[], object]) -> bool:
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:
            return False
        return True

    async def within(self, awaitable: Awaitable[T], timeout: float) -> T:
        # The first step by hand: most calls of an in-process adapter end in it, and need no timer.
        steps = awaitable.__await__()
        try:
            first = next(steps)
        except StopIteration as ended:
            value: T = ended.value
            return value
        try:
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


def current_runtime() -> Runtime:
    """Return the door to the loop that runs in this thread.

    Raises:
        RuntimeError: no event loop runs here; use `netcore.blocking` in code without one.
    """
    try:
        return _AsyncioRuntime()
    except RuntimeError:
        trio_module: Any = sys.modules.get("trio")
        if trio_module is not None and trio_module.lowlevel.in_trio_run():
            from netcore._runtime_trio import TrioRuntime

            return TrioRuntime()
    raise RuntimeError("no event loop runs in this thread; use netcore.blocking.EventBus without one")
