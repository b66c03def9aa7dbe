"""The trio side of `netcore.runtime`; imported only where trio runs."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import trio

from netcore.runtime import CallCancelledError, Runtime, Signal, Task

__all__ = ["TrioRuntime"]

T = TypeVar("T")


class _TrioSignal(Signal):
    __slots__ = ("_event", "_flag")

    def __init__(self) -> None:
        self._flag = False
        self._event: trio.Event | None = None

    def set(self) -> None:
        self._flag = True
        if self._event is not None:
            self._event.set()

    async def wait(self, timeout: float | None = None) -> bool:
        if not self._flag:
            self._event = trio.Event()
            try:
                with trio.move_on_after(math.inf if timeout is None else max(0.0, timeout)):
                    await self._event.wait()
            finally:
                self._event = None
        fired, self._flag = self._flag, False
        return fired


class _TrioTask(Task):
    __slots__ = ("_ended", "_error", "_on_end", "_scope", "_value")

    def __init__(
        self,
        function: Callable[[], Coroutine[Any, Any, Any]],
        name: str,
        on_end: Callable[[], object] | None,
    ) -> None:
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self._on_end = on_end
        self._value: Any = None
        self._error: BaseException | None = None
        trio.lowlevel.spawn_system_task(self._run, function, name=name)

    async def _run(self, function: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        # Whatever a system task lets escape takes the whole trio run down, so nothing may escape
        # but trio's own cancellation of system tasks at the end of the run.
        try:
            with self._scope:
                self._value = await function()
            if self._scope.cancelled_caught:
                self._error = CallCancelledError("the call was cancelled")
        except Exception as error:
            self._error = error
        finally:
            self._ended.set()
            if self._on_end is not None:
                self._on_end()

    @property
    def done(self) -> bool:
        return self._ended.is_set()

    def cancel(self) -> None:
        self._scope.cancel()

    async def join(self, timeout: float | None = None) -> bool:
        if not self._ended.is_set():
            with trio.move_on_after(math.inf if timeout is None else max(0.0, timeout)):
                await self._ended.wait()
        return self._ended.is_set()

    def result(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._value


class TrioRuntime(Runtime):
    name = "trio"

    def __init__(self) -> None:
        super().__init__()
        self._token = trio.lowlevel.current_trio_token()

    @property
    def here(self) -> bool:
        return trio.lowlevel.in_trio_run() and trio.lowlevel.current_trio_token() is self._token

    @property
    def gone(self) -> bool:
        try:
            self._token.run_sync_soon(int, idempotent=True)  # trio tells in no other way
        except trio.RunFinishedError:
            return True
        return False

    def signal(self) -> Signal:
        return _TrioSignal()

    def spawn(
        self,
        function: Callable[[], Coroutine[Any, Any, Any]],
        name: str,
        *,
        ended: Callable[[], object] | None = None,
    ) -> Task:
        return _TrioTask(function, name, ended)

    def call_soon_threadsafe(self, function: Callable[[], object]) -> bool:
        try:
            self._token.run_sync_soon(function)
        except trio.RunFinishedError:
            return False
        return True

    async def within(self, awaitable: Awaitable[T], timeout: float) -> T:
        with trio.move_on_after(timeout):
            return await awaitable
        raise TimeoutError

    async def checkpoint(self) -> None:
        await trio.lowlevel.checkpoint()

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)
