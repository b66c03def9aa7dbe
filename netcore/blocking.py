"""The same bus for code with no event loop: `with EventBus(config) as bus: bus.poll(...)`.

The bus runs on a loop in a thread of its own. `ingest*` goes straight to the rings, as from any
thread; the other calls are handed to the loop and waited for.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Final, TypeVar

import anyio
from anyio.from_thread import BlockingPortal

from netcore.bus import EventBus as AsyncEventBus
from netcore.config import EventBusConfig
from netcore.consume.request import ConsumeRequest, ConsumeResponse
from netcore.contracts.adapter import Health
from netcore.contracts.policies import ScalingDecision
from netcore.errors import ClosedError
from netcore.events import RawEvent, StoredEvent
from netcore.lifecycle import State
from netcore.runtime import GRACE_S, current_runtime
from netcore.stats import EventBusStats, IngestSummary, ShutdownReport

__all__ = ["EventBus"]

T = TypeVar("T")
Key = str | bytes | None


class _Loop:
    """An event loop in a daemon thread: no adapter can keep the process from ending."""

    def __init__(self) -> None:
        started: Future[tuple[BlockingPortal, Callable[[], object]]] = Future()
        self._thread: Final = threading.Thread(
            target=_run_loop, args=(started,), name="netcore loop", daemon=True
        )
        self._thread.start()
        self.portal, self.stop = started.result()

    def join(self, timeout: float) -> None:
        """Wait until the thread has ended, at most `timeout` seconds."""
        self._thread.join(timeout)


def _run_loop(started: Future[tuple[BlockingPortal, Callable[[], object]]]) -> None:
    async def serve() -> None:
        runtime = current_runtime()
        ended = anyio.Event()
        async with BlockingPortal() as portal:
            started.set_result((portal, lambda: runtime.call_soon_threadsafe(ended.set)))
            await ended.wait()

    try:
        anyio.run(serve)
    except BaseException as error:
        if started.done():
            raise
        started.set_exception(error)


class EventBus:
    """A blocking front of `netcore.EventBus`; each method is documented there.

    Safe to use from several threads. Waiting calls may be interrupted by KeyboardInterrupt.

    Args:
        config: settings; default: `EventBusConfig()`.
        plugins: modules or objects with hooks, registered for this bus.
    """

    def __init__(self, config: EventBusConfig | None = None, *, plugins: Sequence[object] = ()) -> None:
        self._bus = AsyncEventBus(config, plugins=plugins)
        self._loop: _Loop | None = None

    @property
    def config(self) -> EventBusConfig:
        """The bus's settings."""
        return self._bus.config

    def open(self) -> EventBus:
        """Start the loop's thread and connect the adapter; `shutdown()` must follow.

        Raises:
            AdapterError: the adapter could not be opened; the thread has ended again.
        """
        if self._loop is not None:
            raise ClosedError("this bus is open already, or was")
        self._loop = _Loop()
        try:
            self._loop.portal.call(self._bus.__aenter__)
        except BaseException:
            self._loop.stop()
            raise
        return self

    def __enter__(self) -> EventBus:
        return self.open()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.shutdown()

    def ingest(self, event: Any, key: Key = None) -> tuple[int, int] | None:
        """See `netcore.EventBus.ingest`. Under `block` it waits for room, like any foreign thread."""
        return self._bus.ingest(event, key)

    def ingest_raw(self, event: bytes | RawEvent, key: Key = None) -> tuple[int, int] | None:
        """See `netcore.EventBus.ingest_raw`."""
        return self._bus.ingest_raw(event, key)

    def ingest_many(self, events: Iterable[Any]) -> IngestSummary:
        """See `netcore.EventBus.ingest_many`."""
        return self._bus.ingest_many(events)

    def ingest_raw_many(self, events: Iterable[bytes | RawEvent]) -> IngestSummary:
        """See `netcore.EventBus.ingest_raw_many`."""
        return self._bus.ingest_raw_many(events)

    def poll(self, request: ConsumeRequest, wait: float = 0.0) -> ConsumeResponse:
        """See `netcore.EventBus.poll`."""
        return self._call(self._bus.poll, request, wait)

    @contextlib.contextmanager
    def subscribe(self, request: ConsumeRequest) -> Iterator[Iterator[StoredEvent]]:
        """Follow the streams: `with bus.subscribe(request) as events: for event in events: ...`."""

        async def enter() -> Any:
            return await self._bus.subscribe(request).__aenter__()

        subscription = self._call(enter)
        try:
            yield self._follow(subscription)
        finally:
            with contextlib.suppress(ClosedError):
                self._call(subscription.__aexit__, None, None, None)

    def _follow(self, subscription: Any) -> Iterator[StoredEvent]:
        while True:
            try:
                yield self._call(subscription.__anext__)
            except StopAsyncIteration:
                return

    def flush(self, timeout: float | None = None) -> None:
        """See `netcore.EventBus.flush`."""
        self._call(self._bus.flush, timeout)

    def stats(self) -> EventBusStats:
        """See `netcore.EventBus.stats`."""
        return self._bus.stats()

    def health(self) -> Health:
        """See `netcore.EventBus.health`."""
        return self._call(self._bus.health)

    def add_shards(self, count: int, *, timeout: float = 30.0, reason: str = "") -> list[int]:
        """See `netcore.EventBus.add_shards`."""
        return self._call(functools.partial(self._bus.add_shards, count, timeout=timeout, reason=reason))

    def remove_shards(
        self, shard_ids: Iterable[int], *, timeout: float = 30.0, reason: str = ""
    ) -> list[int]:
        """See `netcore.EventBus.remove_shards`."""
        return self._call(
            functools.partial(self._bus.remove_shards, shard_ids, timeout=timeout, reason=reason)
        )

    def suggest_scaling(self) -> ScalingDecision:
        """See `netcore.EventBus.suggest_scaling`."""
        return self._call(self._bus.suggest_scaling)

    def apply(self, decision: ScalingDecision) -> list[int]:
        """See `netcore.EventBus.apply`."""
        return self._call(self._bus.apply, decision)

    def shutdown(self, timeout: float = 30.0) -> ShutdownReport:
        """See `netcore.EventBus.shutdown`; then ends the loop's thread. Idempotent."""
        if self._loop is None:
            return anyio.run(self._bus.shutdown, timeout)
        ends = time.monotonic() + timeout + GRACE_S
        try:
            return self._call(self._bus.shutdown, timeout)
        except ClosedError:
            if self._bus._report is None:
                raise
            return self._bus._report
        finally:
            if self._bus._report is not None:
                self._loop.stop()
                self._loop.join(max(0.2, ends - time.monotonic()))

    def __del__(self) -> None:
        loop = getattr(self, "_loop", None)
        if loop is not None:
            loop.stop()

    def _call(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        if self._loop is None or self._bus._lifecycle.state is State.FORKED:
            # In a forked child the loop's thread does not exist: nobody would ever answer.
            raise self._bus._lifecycle.refusal()
        try:
            return self._loop.portal.call(function, *args)
        except RuntimeError as error:
            if self._bus._lifecycle.state in (State.CLOSED, State.ABANDONED) and not isinstance(
                error, ClosedError
            ):
                raise self._bus._lifecycle.refusal() from error
            raise
