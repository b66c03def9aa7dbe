"""The adapter contract: where a bus's events go, and where polls read them back.

An adapter stores *streams*: ordered logs of events, one a shard (on a mesh: one a shard of one
origin). The bus hands it batches (`append`), one at a time a shard; the merger reads pages back
(`read`). `netcore.testing.AdapterContract` is this file as a test suite.

Errors that any call may raise, and nothing else on purpose:

- `TransientAdapterError`: away or busy for now. The dispatcher retries for as long as the bus
  lives; a poll names the shard in `failed_shards`.
- `FatalAdapterError` (only `append`): the *content* of this batch can never be stored. The
  dispatcher bisects it until the poison event is alone and dead-letters that.
- `AdapterRefusedError`: the backend or account refuses. Fatal at `open`; in a running bus the
  batch is kept and retried slowly until somebody mends the cause.
- `AdapterClosedError`: the adapter is closed.
- `CursorError` (only calls that take a position): it cannot be a position of this store.

Driver exceptions stop here: map them with `raise ... from error`. Any other exception is treated
as transient and reported with its traceback; a call that is not async, or answers in another shape,
as `AdapterRefusedError`, which names it. Cancellation always propagates.

Concurrency: all calls come from the bus's event loop. `append`s of different shards overlap, and
so do reads with everything; `append`s of one shard never overlap, except that an attempt which
timed out may still be under way in the backend when its retry comes.
"""

from __future__ import annotations

import logging
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import msgspec

from netcore.config import AdapterConfig
from netcore.contracts.batch import Batch
from netcore.errors import TransientAdapterError
from netcore.events import StoredEvent

__all__ = [
    "Adapter",
    "AdapterContext",
    "Batch",
    "Capabilities",
    "Gap",
    "Health",
    "ReadRequest",
    "ShardPage",
    "Stream",
    "position_error",
]

ConfigT = TypeVar("ConfigT", bound=AdapterConfig)


class Stream(msgspec.Struct, frozen=True, order=True):
    """What an adapter stores in order: a shard or, on a mesh, a shard of one origin."""

    shard: int
    origin: str = ""


class Gap(msgspec.Struct, frozen=True, kw_only=True):
    """Events that a consumer can no longer have: trimmed or lost before it read them.

    Attributes:
        shard: the shard.
        missed: how many, or None where the backend cannot tell.
        resumed_at: the position at which reading went on.
        origin: the stream's origin.
    """

    shard: int
    missed: int | None
    resumed_at: str
    origin: str = ""


class ReadRequest(msgspec.Struct, frozen=True):
    """One stream's part of a page.

    Attributes:
        stream: what to read.
        after: position to go on after; None: from the beginning.
        limit: most events to return, 1 or more.
    """

    stream: Stream
    after: str | None
    limit: int


class ShardPage(msgspec.Struct, kw_only=True):
    """What `read` returns.

    Attributes:
        events: at most `limit`, in stored order, each with the `id` to resume after.
        position: how far the page read, undecodable entries included: resuming after it goes on
            behind them. With nothing read: `after`, or the beginning as a position.
        has_more: entries after `position` exist (in the snapshot, if one was given).
        gap: set when `after` was older than the earliest retained event; reported once, because
            `position` is past it.
        undecodable: entries skipped since they are not events.
    """

    events: list[StoredEvent]
    position: str
    has_more: bool
    gap: Gap | None = None
    undecodable: int = 0


class Health(msgspec.Struct, frozen=True):
    """Whether the adapter works; `reason` says why not, or what is worth knowing."""

    ok: bool
    reason: str = ""


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What an adapter's class promises; the bus acts on it.

    An object whose settings or backend decide may set its own, `self.capabilities`, by the end of `open`.

    Attributes:
        durable: what `append` acknowledged survives the end of this process.
        shared: other processes can see the streams.
        watermark: every event that this bus stores is visible to reads once `append` returned, in
            this very process, so that causal pages may be cut at the bus's own low watermark.
        inline: the calls that a page is made of never suspend (`snapshot`, `streams`, `read`,
            `read_many`, `bounds`, `seek`); the bus then awaits them without a task of their own.
        max_payload_bytes: largest payload that can be stored, or None: no limit of its own. The bus
            does not look at it: `append` raises `FatalAdapterError` for a larger one.
        max_batch_events: the bus sends no larger batch.
        max_batch_bytes: the bus sends no batch whose payloads sum up to more, unless it is one event.
    """

    durable: bool = False
    shared: bool = False
    watermark: bool = False
    inline: bool = False
    max_payload_bytes: int | None = None
    max_batch_events: int | None = None
    max_batch_bytes: int | None = None


class AdapterContext(msgspec.Struct, frozen=True, kw_only=True):
    """What a bus lends its adapter at `open`.

    Attributes:
        producer: the name that this bus's batches carry.
        timeout_ms: the bus's bound on each call, `adapter_timeout_ms`.
        causal_wait_ms: the bus's setting.
        max_clock_drift_ms: the bus's setting.
        observe: call with a timestamp seen from elsewhere; the bus's clock moves past it, unless it
            is out of bounds. Loop thread only.
        watermark: low watermark of the bus, ns: every event it stores from now on has a merge key
            not below it. Given a batch, that batch counts as stored. Loop thread only.
        logger: for the adapter's own messages, `netcore.adapter.<kind>`.
    """

    producer: str
    timeout_ms: float
    causal_wait_ms: float
    max_clock_drift_ms: float
    observe: Callable[[int], object]
    watermark: Callable[[Batch | None], int]
    logger: logging.Logger


class Adapter(ABC, Generic[ConfigT]):
    """Where events go. Subclass it, name a `kind` and a `Config`, implement the abstract calls.

    A class is registered through the hook `netcore_adapters`; the bus makes one object a bus,
    calls `open` once, and `close` at the end. Calls may come from different tasks: start
    background work as tasks that the adapter itself owns and ends in `close`, and let no cancel
    scope or task group span two calls.

    Args:
        config: an instance of `Config`.
    """

    kind: ClassVar[str]
    Config: ClassVar[type[AdapterConfig]]
    capabilities: ClassVar[Capabilities] = Capabilities()
    _private_id: str | None = None

    def __init__(self, config: ConfigT) -> None:
        self.config = config

    def identity(self) -> str:
        """Name the store, for cursors: kind and namespace, never an address or a credential.

        Two adapters on one store agree, also from one process to the next; a private store has a
        random id, kept in it if it is durable. Called after `open`. The default is the kind and a
        random id, fit only for a store that ends with the adapter.
        """
        if self._private_id is None:
            self._private_id = os.urandom(8).hex()
        return f"{self.kind}:{self._private_id}"

    @abstractmethod
    async def open(self, context: AdapterContext) -> None:
        """Connect and check; called once, before any other call.

        Raises:
            TransientAdapterError: nothing answers (name host and port). Nothing is left behind:
                no task, no socket.
            AdapterRefusedError: the backend refuses, with the remedy.
        """

    @abstractmethod
    async def append(self, batch: Batch) -> None:
        """Store `batch`: all or nothing, in order, once.

        Keep, per (producer, shard), the next expected sequence number. A batch wholly below it is
        stored already, however late it arrives: return. One that straddles it stores only its
        tail. One that starts above it is stored whole (numbers of dead-lettered events are
        skipped). This comes before any verdict on the content.

        When it returns, the events are visible to `read`. When it is cancelled or raises, they may
        or may not have been stored; the same batch comes again.
        """

    @abstractmethod
    async def streams(self) -> list[Stream]:
        """List the streams that hold data or are being written, whoever wrote them."""

    @abstractmethod
    async def read(self, stream: Stream, after: str | None, limit: int, snapshot: object = None) -> ShardPage:
        """Return what stands after a position. Non-destructive; creates nothing in the backend.

        Resuming after any event's `id` is exact. An unknown stream is empty. A position older than
        the earliest retained event skips to that and reports a `Gap`.

        Args:
            stream: what to read.
            after: a position from an event, a page, `bounds` or `seek`; None: the beginning.
            limit: most events, 1 or more.
            snapshot: what `snapshot()` returned for this page, or None: what is there now.

        Raises:
            CursorError: `after` cannot be a position of this stream (never "from the start").
        """

    @abstractmethod
    async def bounds(self, stream: Stream) -> tuple[str, str]:
        """Return the positions `(earliest, tail)`.

        Reading after `earliest` starts at the earliest retained event; reading after `tail`, at the
        next event to be stored. They are equal for an empty or unknown stream.
        """

    async def snapshot(self) -> object:
        """Return what is visible now, opaque; each `read` of a page gets it. Default: None."""
        return None

    async def read_many(
        self, requests: Sequence[ReadRequest], snapshot: object = None
    ) -> list[ShardPage | Exception]:
        """Read several streams; a broker answers in one round trip.

        The result matches `requests` one to one. A stream that cannot be read has its exception
        there; the call as a whole raises only when nothing could be read. The bus uses whichever
        of `read` and `read_many` the more derived class defines.

        The default makes the `read`s side by side, 64 at once; in turn where they never suspend (`inline`).
        """
        if not self.capabilities.inline and len(requests) > 1:
            return await self._read_side_by_side(requests, snapshot)
        pages: list[ShardPage | Exception] = []
        for request in requests:
            try:
                pages.append(await self.read(request.stream, request.after, request.limit, snapshot))
            except Exception as error:
                pages.append(error)
        return pages

    async def _read_side_by_side(
        self, requests: Sequence[ReadRequest], snapshot: object
    ) -> list[ShardPage | Exception]:
        import anyio  # takes a while, and only defaults need it

        pages: dict[int, ShardPage | Exception] = {}
        todo = enumerate(requests)
        cancelled = anyio.get_cancelled_exc_class()

        async def work() -> None:
            for index, each in todo:  # whoever is free takes the next
                try:
                    pages[index] = await self.read(each.stream, each.after, each.limit, snapshot)
                except Exception as error:
                    pages[index] = error
                except cancelled:
                    if anyio.current_effective_deadline() == -math.inf:
                        raise  # all of this is cancelled; else the driver cancelled that read alone
                    pages[index] = TransientAdapterError("the read cancelled itself; try again")

        async with anyio.create_task_group() as group:
            for _ in range(min(64, len(requests))):
                group.start_soon(work)
        return [pages[index] for index in range(len(requests))]

    async def read_listed(
        self, requests: Sequence[ReadRequest]
    ) -> tuple[list[ShardPage | Exception], list[Stream]]:
        """Read several streams as `read_many` does, and list all as `streams` does, in one call.

        The list must be as new as the pages: it names every stream that held data when the newest
        of the events returned was read. So a page of events that were read ahead may come with a
        list made right after that, and both may be answered without asking a backend at all.

        Override it where that saves a round trip a poll. The bus uses it only on classes that do,
        where neither a more derived class defines `streams`, `read` or `read_many` nor any defines
        `snapshot`. The default calls `read_many`, then `streams`.
        """
        pages = await self.read_many(requests)
        return pages, await self.streams()

    async def seek(self, stream: Stream, ts: int) -> str | None:
        """Return a position such that every event with a timestamp >= `ts` lies after it.

        It may be early, never late. The default is None, the beginning.
        """
        return None

    async def enter(self, stream: Stream, since: int) -> str | None:
        """Return where a chain of polls enters a stream that it hears of only now.

        The chain wants every event since `since` (ns): where it began with `start="tail"`, else the
        `start` that was asked for, 0 for "earliest". Other chains than those from the tail ask only
        where the store is not shared: elsewhere they read such a stream from its beginning. The
        default is None, the beginning: the stream is new.

        Override it where a stream may be old and merely not have been heard of, as on a mesh; or
        where what a new one has lost to retention already can be told, as a gap.
        """
        return None

    async def retired(self, streams: Iterable[Stream]) -> set[Stream]:
        """Tell which of these will never hold data again, so that cursors may drop them.

        Never name one that this process merely has not heard of. The default is none.
        """
        return set()

    async def wait(self, positions: Mapping[Stream, str | None], timeout: float) -> None:
        """Return when something newer than `positions`, or a stream not among them, may exist.

        Early returns are harmless, late ones are not: return by `timeout` (seconds) at the latest.
        The default looks at `streams` and `bounds` every 50 ms; a good adapter costs nothing
        while idle.
        """
        import anyio  # takes a while, and only this default needs it

        deadline = anyio.current_time() + timeout
        while (left := deadline - anyio.current_time()) > 0:
            if set(await self.streams()) - positions.keys():
                return
            for stream, position in positions.items():
                earliest, tail = await self.bounds(stream)
                if tail != (earliest if position is None else position):
                    return
            await anyio.sleep(min(0.05, left))

    async def flush(self) -> None:
        """Make durable what `append` acknowledged, as far as the adapter buffers. Default: nothing."""
        return

    @abstractmethod
    async def close(self) -> None:
        """Release everything. Idempotent, bounded in time; later calls raise `AdapterClosedError`."""

    async def health(self) -> Health:
        """Tell whether the backend can be reached and written. Default: ok."""
        return Health(ok=True)

    def stats(self) -> dict[str, Any]:
        """Return what `bus.stats().adapter` shows; any thread, no waiting. Default: nothing.

        A key `unreplicated` (int) also goes into the shutdown report.
        """
        return {}


def position_error(kind: str, position: object) -> str:
    """Word the `CursorError` for a position that cannot be one of `kind`'s."""
    shown = repr(position)
    return f"{shown[:80]} is not a position of the {kind} adapter; start a new chain of polls"


def unreplicated(adapter: Adapter[Any]) -> int:
    """Read the `unreplicated` count from an adapter's stats; 0 where it has none."""
    try:
        return int(adapter.stats().get("unreplicated", 0))
    except Exception:  # whatever an adapter's stats do, a shutdown must end
        return 0
