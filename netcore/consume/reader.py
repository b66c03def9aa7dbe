"""Bounded reads: what a poll asks of its adapter, and what becomes of answers that never come.

A stream whose read hangs costs one poll at most the time-out. From then on it is a *suspect*:
polls report it at once, and one probe at a time asks for it in the background, until it answers.
The same holds for the calls a poll makes about all streams at once, whose suspect is a name.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from netcore.contracts.adapter import Adapter, ReadRequest, ShardPage, Stream
from netcore.contracts.answers import FaultyAdapterError, ask
from netcore.errors import AdapterError, CursorError, TransientAdapterError, message_of
from netcore.runtime import Runtime, Signal, Task

__all__ = ["Call", "HungError", "Reader", "describe"]

Call = Callable[[], Awaitable[Any]]

MAX_AT_ONCE: Final = 64
_GRACE_S: Final = 0.1
_PROBE_FIRST_S: Final = 0.05
_PROBE_LAST_S: Final = 5.0
_ALONE_FACTOR: Final = 10
_PENDING: Final = object()
_log = logging.getLogger("netcore.consume")


class HungError(TransientAdapterError, TimeoutError):
    """A call did not answer in time and was cancelled.

    Attributes:
        task: the call, if it ignores its cancellation, else None.
    """

    def __init__(self, timeout: float, task: Task | None = None) -> None:
        super().__init__(f"no answer within {timeout:g} s; it is being probed in the background")
        self.task = task


def describe(error: BaseException) -> str:
    """Word an error for `failed_shards`: its type only where the message alone says too little."""
    text = message_of(error)
    return text if isinstance(error, AdapterError) and text else f"{type(error).__name__}: {text}"


class _Suspect:
    """A stream (or the listing) that hung, and the task that probes it."""

    __slots__ = ("error", "probe")

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.probe: Task | None = None


class Reader:
    """Reads an adapter with deadlines. Loop thread only; used by many polls at once.

    Args:
        adapter: an open adapter.
        runtime: the loop.
        timeout_s: bound on each call.
    """

    def __init__(self, adapter: Adapter[Any], runtime: Runtime, timeout_s: float) -> None:
        self.adapter = adapter
        self._runtime = runtime
        self._timeout = timeout_s
        self._inline = adapter.capabilities.inline
        self._many = _prefers(type(adapter), "read_many", {"read"})
        self._listed = (
            _prefers(type(adapter), "read_listed", {"streams", "read", "read_many"})
            and type(adapter).snapshot is Adapter.snapshot
        )
        self._alone_until = 0.0
        self._suspects: dict[Stream | str, _Suspect] = {}
        self._strays: set[Task] = set()
        self._complained: set[str] = set()
        self._closed = False

    def suspect(self, key: Stream | str) -> Exception | None:
        """Return why a stream (or a named call) is not to be asked now, or None if it may be."""
        entry = self._suspects.get(key) if self._suspects else None
        return None if entry is None else entry.error

    async def guarded(self, calls: Mapping[Any, Call], *, may_suspend: bool = False) -> list[Any]:
        """Make calls as `gather` does, sparing suspects; what hangs is a suspect from now on.

        Args:
            calls: a call for each stream, or for a name.
            may_suspend: these calls may, also where those of `inline` adapters may not.
        """
        askable = {key: call for key, call in calls.items() if self.suspect(key) is None}
        found = await self.gather(list(askable.values()), may_suspend=may_suspend)
        answers = dict(zip(askable, found, strict=True))
        for key, answer in answers.items():
            if isinstance(answer, HungError):
                self._accuse(key, askable[key], answer)
        return [answers[key] if key in answers else self.suspect(key) or _starved(0) for key in calls]

    async def gather(
        self, calls: Sequence[Call], timeout: float | None = None, *, may_suspend: bool = False
    ) -> list[Any]:
        """Make calls side by side, at most 64 at once, all within one time-out.

        Returns:
            One answer a call, in order: what it returned, or the exception it raised, `HungError`
            where nothing came. Never raises but for cancellation, which ends the calls too.
        """
        limit = self._timeout if timeout is None else min(timeout, self._timeout)
        if self._inline and not may_suspend:
            return await self._in_turn(calls, limit)
        batch = _Gathering(self._runtime, calls)
        answers = await batch.run(limit)
        for answer in answers:
            if isinstance(answer, HungError) and answer.task is not None:
                self._strays.add(answer.task)
        self._strays = {task for task in self._strays if not task.done}
        return answers

    async def _in_turn(self, calls: Sequence[Call], limit: float) -> list[Any]:
        """Await calls that promise never to suspend, in this very task."""
        answers: list[Any] = []

        async def all_of_them() -> None:
            for call in calls:
                try:
                    answers.append(await call())
                except Exception as error:
                    answers.append(error)

        try:
            await self._runtime.within(all_of_them(), limit)
        except TimeoutError:
            answers.append(HungError(limit))
        answers += [_starved(limit)] * (len(calls) - len(answers))
        return answers

    async def listing(self) -> tuple[object, list[Stream]]:
        """Take a snapshot, then list the streams.

        Raises:
            AdapterError: it failed, or hung now or before.
        """
        (answer,) = await self.guarded({"listing": self._listing})
        if isinstance(answer, AdapterError):
            raise answer
        if isinstance(answer, Exception):
            _log.warning("listing the streams of %s failed", self.adapter.kind, exc_info=answer)
            raise TransientAdapterError(describe(answer)) from answer
        snapshot, streams = answer
        return snapshot, streams

    @property
    def lists_with_reads(self) -> bool:
        """Whether `read_listed` may be used now."""
        return self._listed and self._runtime.now() >= self._alone_until and not self._suspects

    async def read_listed(
        self, requests: Sequence[ReadRequest]
    ) -> tuple[list[ShardPage | Exception], list[Stream]]:
        """Read streams, and list all, in one call.

        Raises:
            AdapterError: it failed as a whole. If it hung, streams are listed and read one by one for a
                while, which tells which of them hangs.
            CursorError: a position is none of this store.
        """
        half = self._timeout if self._inline else self._timeout / 2
        (answer,) = await self.gather([partial(ask, self.adapter, "read_listed", requests)], half)
        if isinstance(answer, HungError):
            self._alone_until = self._runtime.now() + _ALONE_FACTOR * self._timeout
        if isinstance(answer, AdapterError | CursorError):
            raise answer
        if isinstance(answer, Exception):
            _log.warning("reading the streams of %s failed", self.adapter.kind, exc_info=answer)
            raise TransientAdapterError(describe(answer)) from answer
        pages, streams = answer
        for page in pages:
            if isinstance(page, CursorError):
                raise page
        return pages, streams

    async def _listing(self) -> tuple[object, list[Stream]]:
        snapshot = await ask(self.adapter, "snapshot")
        return snapshot, await ask(self.adapter, "streams")

    async def read(self, requests: Sequence[ReadRequest], snapshot: object) -> list[ShardPage | Exception]:
        """Read several streams of which none is a suspect.

        Raises:
            CursorError: a position is none of this store.
        """
        answers: list[Any]
        if self._many and self._runtime.now() >= self._alone_until:
            answers = await self._read_together(requests, snapshot)
        else:
            answers = await self._read_alone(requests, snapshot, self._timeout)
        for request, answer in zip(requests, answers, strict=True):
            if isinstance(answer, CursorError):
                raise answer
            if isinstance(answer, HungError):
                probe = partial(ask, self.adapter, "read", request.stream, request.after, 1)
                self._accuse(request.stream, probe, answer)
        return answers

    async def _read_together(self, requests: Sequence[ReadRequest], snapshot: object) -> list[Any]:
        """One `read_many`; if that hangs, one `read` a stream, which tells which of them hangs."""
        half = self._timeout if self._inline else self._timeout / 2
        (answer,) = await self.gather([partial(ask, self.adapter, "read_many", requests, snapshot)], half)
        if isinstance(answer, HungError):
            answers = await self._read_alone(requests, snapshot, half)
            if not any(isinstance(page, HungError) for page in answers):
                # Nobody to name, so nothing would keep the next poll from waiting as long again.
                self._alone_until = self._runtime.now() + _ALONE_FACTOR * self._timeout
            return answers
        if isinstance(answer, CursorError):
            raise answer
        if isinstance(answer, Exception):
            return [answer] * len(requests)
        pages: list[Any] = answer
        return pages

    async def _read_alone(
        self, requests: Sequence[ReadRequest], snapshot: object, timeout: float
    ) -> list[Any]:
        read = partial(ask, self.adapter, "read")
        calls = [partial(read, each.stream, each.after, each.limit, snapshot) for each in requests]
        return await self.gather(calls, timeout)

    def misread(self, error: Exception) -> FaultyAdapterError:
        """Word what the merger met in the middle of a page: an event that is none."""
        method = "read_many" if self._many else "read"
        text = f"must return StoredEvents with an int as ts in its pages: {describe(error)}"
        wrong = FaultyAdapterError(self.adapter, method, text)
        wrong.__cause__ = error
        return wrong

    def complain(self, error: Exception) -> None:
        """Log, once a call, that the adapter is at fault where a poll goes on without the answer."""
        if isinstance(error, FaultyAdapterError) and error.method not in self._complained:
            self._complained.add(error.method)
            _log.error("%s; polls do without it; logged once", error)
        else:
            _log.debug("%s: %s", self.adapter.kind, describe(error))

    def _accuse(self, key: Stream | str, call: Call, error: HungError) -> None:
        """Report the stream (or fail the named call) at once from now on, and probe it."""
        if key in self._suspects or self._closed:
            return
        suspect = self._suspects[key] = _Suspect(error)
        name = key if isinstance(key, str) else f"shard {key.shard}"
        _log.warning("%s: %s does not answer; probing it in the background", self.adapter.kind, name)
        suspect.probe = self._runtime.spawn(partial(self._probe, key, call, error.task), "netcore probe")

    async def _probe(self, key: Stream | str, call: Call, stray: Task | None) -> None:
        """Ask again and again, one call at a time, until any answer comes, be it an error."""
        pause = _PROBE_FIRST_S
        try:
            while not self._closed:
                if stray is not None:
                    await stray.join()  # it ends by itself or when the adapter is closed
                await self._runtime.sleep(pause)
                pause = min(pause * 2, _PROBE_LAST_S)
                (answer,) = await _Gathering(self._runtime, [call]).run(self._timeout)
                if not isinstance(answer, HungError):
                    return
                stray = answer.task
        finally:
            self._suspects.pop(key, None)

    async def aclose(self) -> None:
        """End the probes. Bounded: whatever ignores its cancellation is left behind."""
        self._closed = True
        probes = [suspect.probe for suspect in self._suspects.values() if suspect.probe is not None]
        await end_tasks(self._runtime, [*probes, *self._strays], 1.0)


class _Gathering:
    """One `Reader.gather` with tasks."""

    __slots__ = ("_answers", "_calls", "_ended", "_runtime", "_signal")

    def __init__(self, runtime: Runtime, calls: Sequence[Call]) -> None:
        self._runtime = runtime
        self._calls = calls
        self._answers: list[Any] = [_PENDING] * len(calls)
        self._ended: list[int] = []
        self._signal: Signal = runtime.signal()

    async def _one(self, index: int) -> None:
        try:
            self._answers[index] = await self._calls[index]()
        except Exception as error:
            self._answers[index] = error
        finally:
            self._ended.append(index)
            self._signal.set()

    async def run(self, timeout: float) -> list[Any]:
        deadline = self._runtime.now() + timeout
        waiting = iter(range(len(self._calls)))
        running: dict[int, Task] = {}
        try:
            while self._start(waiting, running):
                left = deadline - self._runtime.now()
                if left <= 0 or not await self._signal.wait(left):
                    break
                while self._ended:
                    running.pop(self._ended.pop())
        except BaseException:
            for task in running.values():
                task.cancel()
            raise
        if running:
            await self._give_up(running, timeout)
        return [_starved(timeout) if answer is _PENDING else answer for answer in self._answers]

    def _start(self, waiting: Iterable[int], running: dict[int, Task]) -> bool:
        if len(running) < MAX_AT_ONCE:
            for index in waiting:
                running[index] = self._runtime.spawn(partial(self._one, index), "netcore read")
                if len(running) == MAX_AT_ONCE:
                    break
        return bool(running)

    async def _give_up(self, running: dict[int, Task], timeout: float) -> None:
        """Cancel what is left; an answer that came in the last moment still counts."""
        late = [index for index in running if self._answers[index] is _PENDING]
        await end_tasks(self._runtime, list(running.values()), _GRACE_S)
        for index in late:
            task = running[index]
            self._answers[index] = HungError(timeout, None if task.done else task)


async def end_tasks(runtime: Runtime, tasks: Sequence[Task], grace_s: float) -> None:
    """Cancel tasks and wait for them, together at most `grace_s` seconds."""
    for task in tasks:
        task.cancel()
    deadline = runtime.now() + grace_s
    for task in tasks:
        await task.join(max(0.0, deadline - runtime.now()))


def _starved(timeout: float) -> Exception:
    return TransientAdapterError(f"not asked: other streams took the whole {timeout:g} s")


def _prefers(cls: type[Adapter[Any]], name: str, others: set[str]) -> bool:
    """Tell whether a call is defined in a more derived class than those it is made of, or in the same."""
    for base in cls.__mro__:
        if name in vars(base):
            return base is not Adapter
        if others & vars(base).keys():
            return False
    return False
