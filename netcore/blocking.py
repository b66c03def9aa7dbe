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
from concurrent.futures import CancelledError, Future, wait
from types import TracebackType
from typing import Any, Final, TypeVar

import anyio
from anyio.from_thread import BlockingPortal

from netcore.bus import EventBus as AsyncEventBus
from netcore.config import EventBusConfig, check_timeout
from netcore.consume.request import ConsumeRequest, ConsumeResponse
from netcore.consume.subscription import Subscription as AsyncSubscription
from netcore.contracts.adapter import Gap, Health
from netcore.contracts.policies import ScalingDecision
from netcore.errors import ClosedError
from netcore.events import Event, RawEvent, StoredEvent
from netcore.lifecycle import State
from netcore.runtime import GRACE_S, current_runtime
from netcore.stats import EventBusStats, IngestSummary, ShutdownReport

__all__ = ["EventBus", "Subscription"]

T = TypeVar("T")
Key = str | bytes | None
_LOOK_S: Final = 1.0
"""How often one who waits makes sure that the loop's thread still runs."""


class _Loop:
    """An event loop in a daemon thread: no adapter can keep the process from ending."""

    def __init__(self) -> None:
        started: Future[tuple[BlockingPortal, Callable[[], object]]] = Future()
        self._thread: Final = threading.Thread(
            target=_run_loop, args=(started,), name="netcore loop", daemon=True
        )
        self._thread.start()
        self.portal, self.stop = started.result()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

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

    It has no `put`: under `block`, `ingest` itself waits for room here. Safe to use from several
    threads. Waiting calls may be interrupted by KeyboardInterrupt.

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
            self._call(self._bus.__aenter__)
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

    def ingest_raw(self, event: bytes | RawEvent | Event, key: Key = None) -> tuple[int, int] | None:
        """See `netcore.EventBus.ingest_raw`."""
        return self._bus.ingest_raw(event, key)

    def ingest_many(self, events: Iterable[Any]) -> IngestSummary:
        """See `netcore.EventBus.ingest_many`."""
        return self._bus.ingest_many(events)

    def ingest_raw_many(self, events: Iterable[bytes | RawEvent | Event]) -> IngestSummary:
        """See `netcore.EventBus.ingest_raw_many`."""
        return self._bus.ingest_raw_many(events)

    def poll(self, request: ConsumeRequest, wait: float = 0.0) -> ConsumeResponse:
        """See `netcore.EventBus.poll`."""
        return self._call(self._bus.poll, request, wait)

    def subscribe(self, request: ConsumeRequest) -> Subscription:
        """Follow the streams: `with bus.subscribe(request) as events: for event in events: ...`.

        Raises:
            ClosedError: the bus is not open.
        """
        return Subscription(self, self._bus.subscribe(request))

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

    def apply(self, decision: ScalingDecision, *, timeout: float = 30.0) -> list[int]:
        """See `netcore.EventBus.apply`."""
        return self._call(functools.partial(self._bus.apply, decision, timeout=timeout))

    def shutdown(self, timeout: float = 30.0) -> ShutdownReport:
        """See `netcore.EventBus.shutdown`; then ends the loop's thread. Idempotent."""
        check_timeout(timeout)
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
        future = self._start(function, *args)
        try:
            return self._answer(future)
        except BaseException:
            future.cancel()  # interrupted: the call must not go on by itself
            raise

    def _start(self, function: Callable[..., Awaitable[T]], *args: Any) -> Future[T]:
        """Hand a call to the loop."""
        if self._loop is None or self._bus._lifecycle.state is State.FORKED:
            # In a forked child the loop's thread does not exist: nobody would ever answer.
            raise self._bus._lifecycle.refusal()
        with self._closed_means_closed():
            return self._loop.portal.start_task_soon(function, *args)

    def _answer(self, future: Future[T]) -> T:
        """Wait for a call that was handed to the loop."""
        assert self._loop is not None
        while True:
            over = not self._loop.alive
            with self._closed_means_closed():
                wait([future], _LOOK_S)
                if future.done():
                    return future.result()
                if over:  # the loop ended before it looked at this call
                    raise self._bus._lifecycle.refusal()

    @contextlib.contextmanager
    def _closed_means_closed(self) -> Iterator[None]:
        """Name the cause where the loop's thread refuses or drops a call because it is ending."""
        try:
            yield
        except (RuntimeError, CancelledError) as error:
            if self._bus._lifecycle.state in (State.CLOSED, State.ABANDONED) and not isinstance(
                error, ClosedError
            ):
                raise self._bus._lifecycle.refusal() from error
            raise


class Subscription:
    """A blocking front of `netcore.Subscription`, which documents the attributes. Made by `subscribe`.

    Ends cleanly when the bus shuts down. An iteration that KeyboardInterrupt broke off loses nothing
    and may go on. For one thread.
    """

    def __init__(self, bus: EventBus, inner: AsyncSubscription) -> None:
        self._bus = bus
        self._inner = inner
        self._inside = False
        self._turning: Future[bool] | None = None

    def __enter__(self) -> Subscription:
        self._bus._call(self._inner.__aenter__)
        self._inside = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._inside = False
        with contextlib.suppress(ClosedError):
            self._bus._call(self._inner.__aexit__, None, None, None)

    def __iter__(self) -> Subscription:
        return self

    def __next__(self) -> StoredEvent:
        """Return the next event; wait for it as long as it takes.

        Raises:
            StopIteration: the bus was shut down.
            ClosedError: not inside `with`.
            CursorError: a position is no longer valid in this store.
        """
        if not self._inside:
            raise ClosedError("iterate a subscription inside `with`")
        # A turn that an interruption left behind is waited for, not begun anew: its page is the next.
        while self._turning is not None or (event := self._inner.ready()) is None:
            try:
                if self._turning is None:
                    self._turning = self._bus._start(self._inner.turn)
                more = self._bus._answer(self._turning)
            except Exception as error:
                self._turning = None
                if isinstance(error, ClosedError):
                    raise StopIteration from None
                raise
            self._turning = None
            if not more:
                raise StopIteration
        return event

    @property
    def cursor(self) -> str:
        """Where to resume so that exactly what has been yielded is not seen again."""

        async def ask() -> str:
            return self._inner.cursor

        try:
            return self._bus._call(ask)  # on the loop's thread, which may be at the next page already
        except ClosedError:
            return self._inner.cursor

    @property
    def gaps(self) -> list[Gap]:
        """The gaps met so far, the last 1,024 of them."""
        return self._inner.gaps

    @property
    def failed_shards(self) -> dict[int, str]:
        """Shard -> why it could not be read, as of the last page."""
        return self._inner.failed_shards

    @property
    def lagging_shards(self) -> set[int]:
        """Shards that do not keep up, as of the last page."""
        return self._inner.lagging_shards

    @property
    def undecodable(self) -> int:
        """Payloads and entries found undecodable so far."""
        return self._inner.undecodable
