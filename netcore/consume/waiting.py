"""Waiting polls: for events, for the watermark, for time to pass; all end when the bus closes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

from netcore.consume.reader import Reader, end_tasks
from netcore.contracts.adapter import Stream
from netcore.contracts.answers import ask
from netcore.errors import ClosedError
from netcore.runtime import Progress, Runtime, Signal, Task

__all__ = ["Patience", "Waiting"]

_LONGEST_WAIT_S: Final = 60.0
_PROGRESS_STEP_S: Final = 0.1  # lagging shards leave the watermark by time alone, nobody notifies
_MAX_STRAYS: Final = 64
_GRACE_S: Final = 0.05
_CALM_S: Final = 0.5
_TURN_S: Final = 0.001


class Patience:
    """Slows one long poll down that is woken again and again for nothing.

    Adapters may wake early, other shards than the wanted ones may be busy, a failing shard may
    hold news that cannot be read: none of that may become a busy loop.
    """

    __slots__ = ("pause",)

    def __init__(self) -> None:
        self.pause = 0.0

    def woken(self, after: float, *, failing: bool) -> None:
        """Note that a wait ended after so many seconds."""
        longest = 0.25 if failing else 0.05
        self.pause = 0.0 if after >= _CALM_S else min(longest, max(0.001, self.pause * 2))


class Waiting:
    """Lets polls wait, and wakes them all when the bus closes. Loop thread only.

    Args:
        reader: bounded calls of the adapter.
        runtime: the loop.
        progress: notified whenever the watermark may have moved.
    """

    def __init__(self, reader: Reader, runtime: Runtime, progress: Progress) -> None:
        self._adapter = reader.adapter
        self._reader = reader
        self._runtime = runtime
        self._progress = progress
        self._sleepers: set[Signal] = set()
        self._tasks: set[Task] = set()
        self._closed = False
        self._inline = reader.adapter.capabilities.inline
        self._turn_ends = 0.0

    def check_open(self) -> None:
        """Raise `ClosedError` once closed."""
        if self._closed:
            raise ClosedError("the bus is shut down, so it serves no polls; open another")

    def close(self) -> None:
        """Wake everybody: they find the door closed."""
        self._closed = True
        for signal in self._sleepers:
            signal.set()
        self._progress.notify()

    async def aclose(self) -> None:
        """Wait a little for adapter calls that were cancelled."""
        await end_tasks(self._runtime, [task for task in self._tasks if not task.done], 0.5)

    async def breathe(self) -> None:
        """Let other tasks run if polls that never had to wait may have kept the loop to themselves."""
        if self._inline and self._runtime.now() >= self._turn_ends:
            await self._runtime.checkpoint()
            self._rested()

    def _rested(self) -> None:
        """Begin a new turn: other tasks could run just now."""
        self._turn_ends = self._runtime.now() + _TURN_S

    async def pause(self, seconds: float) -> None:
        """Let other tasks run, for at least so long.

        Raises:
            ClosedError: the bus closed.
        """
        if seconds > 0:
            self.check_open()
            await self._sleep(self._runtime.signal(), seconds)
        else:
            await self._runtime.checkpoint()
            self._rested()
        self.check_open()

    async def _sleep(self, signal: Signal, seconds: float) -> None:
        self._sleepers.add(signal)
        try:
            await signal.wait(seconds)
        finally:
            self._sleepers.discard(signal)
        self._rested()

    async def for_progress(self, seconds: float) -> None:
        """Wait until something settled, at most `seconds`; 0: only let other tasks run.

        Raises:
            ClosedError: the bus closed.
        """
        self.check_open()
        if seconds > 0:
            await self._progress.wait(min(seconds, _PROGRESS_STEP_S))
        else:
            await self._runtime.checkpoint()
        self._rested()
        self.check_open()

    async def for_events(
        self, seen: Mapping[Stream, str | None], others: Sequence[Stream], left: float, patience: Patience
    ) -> None:
        """Wait until something new may be stored.

        Args:
            seen: how far each stream was looked at.
            others: streams of no interest, whose news should not wake this poll.
            left: seconds, at most.
            patience: of this poll.

        Raises:
            ClosedError: the bus closed.
        """
        end = self._runtime.now() + left
        if patience.pause:
            await self.pause(min(left, patience.pause))
        tails = await self._tails(others, left) if others else {}
        left = end - self._runtime.now()
        self.check_open()
        if left <= 0:
            return
        if len(self._tasks) >= _MAX_STRAYS:
            self._tasks = {task for task in self._tasks if not task.done}
        if len(self._tasks) >= _MAX_STRAYS:
            await self.pause(min(left, _GRACE_S))
        else:
            await self._ask({**seen, **tails}, min(left, _LONGEST_WAIT_S))
        self.check_open()

    async def _tails(self, streams: Sequence[Stream], left: float) -> dict[Stream, str | None]:
        calls = [partial(ask, self._adapter, "bounds", stream) for stream in streams]
        answers = await self._reader.gather(calls, left)
        return {
            stream: None if isinstance(answer, Exception) else answer[1]
            for stream, answer in zip(streams, answers, strict=True)
        }

    async def _ask(self, positions: dict[Stream, str | None], left: float) -> None:
        """Let the adapter wait, in a task, so that closing and the deadline need not."""
        signal = self._runtime.signal()

        async def call() -> None:
            try:
                await ask(self._adapter, "wait", positions, left)
            except Exception as error:
                self._reader.complain(error)
            finally:
                signal.set()

        task = self._runtime.spawn(call, "netcore wait")
        self._tasks.add(task)
        try:
            await self._sleep(signal, left)
        finally:
            task.cancel()
        if await task.join(_GRACE_S):
            self._tasks.discard(task)
