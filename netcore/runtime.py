"""The small door to the event loop: asyncio or trio, whichever runs.

Only what the bus needs: background tasks that outlive the call that started them (so no task
group spans two public calls), a one-waiter signal, calls with a deadline, and a thread-safe way
in. Everything here but `Runtime.call_soon_threadsafe` belongs to the loop's own thread.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine
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
        self.suspended = 0
        """How many awaits in `within` let others run, as far as the loop can tell."""

    @property
    @abstractmethod
    def here(self) -> bool:
        """Whether the caller runs on this very loop."""

    @property
    @abstractmethod
    def gone(self) -> bool:
        """Whether the loop has ended for good; any thread."""

    @staticmethod
    def now() -> float:
        """Seconds on a monotonic clock."""
        return time.monotonic()

    @abstractmethod
    def signal(self) -> Signal:
        """Make a signal of this loop."""

    @abstractmethod
    def spawn(
        self,
        function: Callable[[], Coroutine[Any, Any, Any]],
        name: str,
        *,
        ended: Callable[[], object] | None = None,
    ) -> Task:
        """Start a background task owned by the loop. What it raises stays with the task.

        Args:
            function: what it runs.
            name: shown by debuggers.
            ended: called on the loop's thread once it has ended in whatever way, also if it was
                cancelled before its first step, when nothing of `function` ran. Must not raise.
        """

    @abstractmethod
    def call_soon_threadsafe(self, function: Callable[[], object]) -> bool:
        """Run `function` soon on the loop's thread; any thread. False: the loop is gone."""

    def call_soon(self, function: Callable[[], object]) -> bool:
        """Run `function`: at once on the loop's own thread, else soon; any thread. False: the loop is gone."""
        if threading.get_ident() != self.thread_id:
            return self.call_soon_threadsafe(function)
        try:
            function()
        except RuntimeError:  # the loop was closed, and this thread goes on without it
            return False
        return True

    def call_next(self, function: Callable[[], object]) -> bool:
        """Run `function` in the loop's next turn; any thread. False: the loop is gone."""
        return self.call_soon_threadsafe(function)

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

    def every(self, seconds: float, function: Callable[[], object]) -> Callable[[], object]:
        """Run a short function that raises nothing again and again; return what ends that."""

        async def repeat() -> None:
            while True:
                await self.sleep(seconds)
                function()

        return self.spawn(repeat, "netcore timer").cancel

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


def current_runtime() -> Runtime:
    """Return the door to the loop that runs in this thread.

    Raises:
        RuntimeError: no event loop runs here; use `netcore.blocking` in code without one.
    """
    # A loop that runs has been imported; neither is imported here to find out, since both take long.
    asyncio_module: Any = sys.modules.get("asyncio")
    if asyncio_module is not None:
        with contextlib.suppress(RuntimeError):
            asyncio_module.get_running_loop()
            from netcore._runtime_asyncio import AsyncioRuntime

            return AsyncioRuntime()
    trio_module: Any = sys.modules.get("trio")
    if trio_module is not None and trio_module.lowlevel.in_trio_run():
        from netcore._runtime_trio import TrioRuntime

        return TrioRuntime()
    raise RuntimeError("no event loop runs in this thread; use netcore.blocking.EventBus without one")
