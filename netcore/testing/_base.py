"""What the clauses of the contract share: switches, fixtures, a writer and a reader."""

from __future__ import annotations

import itertools
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any, ClassVar, Final, Protocol, TypeAlias

import anyio
import anyio.lowlevel
import pytest

from netcore.contracts.adapter import Adapter, AdapterContext, Batch, Gap, Stream
from netcore.contracts.answers import ask
from netcore.events import StoredEvent

__all__ = [
    "TURNS",
    "AnyAdapter",
    "ContractBase",
    "Drained",
    "MakeAdapter",
    "OpenAdapter",
    "Writer",
    "adapter_context",
    "cancel_after",
    "drain",
    "payloads",
    "raws",
    "turns",
]

AnyAdapter: TypeAlias = Adapter[Any]

TURNS: Final = (0, 1, 2, 3, 5, 8, 13, 30, 100)
"""After how many turns of the loop a call is cancelled: from before its first await to well in."""

_CALL_S: Final = 30.0


class MakeAdapter(Protocol):
    """Builds an unopened adapter; all built within one test name the same store."""

    def __call__(self, **overrides: Any) -> AnyAdapter:
        """Build one; `overrides` are settings of its config."""
        ...


class OpenAdapter(Protocol):
    """Builds and opens an adapter, and closes it after the test."""

    async def __call__(self, **overrides: Any) -> AnyAdapter:
        """Open one; `overrides` are settings of its config."""
        ...


def adapter_context(*, producer: str | None = None, **changes: Any) -> AdapterContext:
    """Return a context to open an adapter with, as a bus with default settings would lend it.

    Args:
        producer: 32 hex digits; default: random.
        changes: other fields of `AdapterContext` to set.
    """
    fields: dict[str, Any] = {
        "producer": producer or secrets.token_hex(16),
        "timeout_ms": 30_000,
        "causal_wait_ms": 1000,
        "max_clock_drift_ms": 60_000,
        "observe": lambda ts: None,
        "watermark": lambda batch: time.time_ns(),
        "logger": logging.getLogger("netcore.adapter.test"),
    }
    return AdapterContext(**(fields | changes))


def payloads(count: int, *, prefix: str = "p") -> list[bytes]:
    """Return `count` different payloads."""
    return [f'{{"{prefix}":{index}}}'.encode() for index in range(count)]


def raws(events: Iterable[StoredEvent]) -> list[bytes]:
    """Return the payloads of events."""
    return [event.raw for event in events]


class Writer:
    """Writes to one shard as a bus would: consecutive sequence numbers, one batch after the other.

    Args:
        adapter: where to.
        shard: the shard.
        producer: default: a new one.

    Attributes:
        written: all events of the batches built so far, in order.
        next_seq: sequence number of the next event; set it higher to skip numbers.
    """

    _ts = itertools.count(time.time_ns(), 1000)  # one for all, as a bus has one clock

    def __init__(self, adapter: AnyAdapter, *, shard: int = 0, producer: str | None = None) -> None:
        self.adapter = adapter
        self.shard = shard
        self.producer = producer or secrets.token_hex(16)
        self.written: list[StoredEvent] = []
        self.next_seq = 0

    def batch(self, payloads: Iterable[bytes], *, ts: Iterable[int] | None = None) -> Batch:
        """Build the next batch, to be appended by the caller."""
        events = [
            StoredEvent(id="", shard=self.shard, ts=at, raw=raw)
            for raw, at in zip(payloads, ts or self._ts, strict=False)
        ]
        first_seq, self.next_seq = self.next_seq, self.next_seq + len(events)
        self.written += events
        return Batch(producer=self.producer, shard=self.shard, first_seq=first_seq, events=events)

    async def write(self, payloads: Iterable[bytes], *, ts: Iterable[int] | None = None) -> Batch:
        """Build the next batch and append it."""
        batch = self.batch(payloads, ts=ts)
        await append(self.adapter, batch)
        return batch


async def append(adapter: AnyAdapter, batch: Batch) -> None:
    """Append with a deadline."""
    with anyio.fail_after(_CALL_S):
        await adapter.append(batch)


class Drained(list[StoredEvent]):
    """The events of a chain of pages.

    Attributes:
        position: where the chain ended.
        gaps: the gaps it reported.
        pages: the number of events in each page.
    """

    position: str
    gaps: list[Gap]
    pages: list[int]


async def drain(
    adapter: AnyAdapter,
    shard: int = 0,
    *,
    after: str | None = None,
    limit: int = 1000,
    snapshot: object = None,
) -> Drained:
    """Read pages until there is no more, checking what every page promises."""
    found = Drained()
    found.gaps, found.pages = [], []
    stream = Stream(shard)
    while True:
        with anyio.fail_after(_CALL_S):
            page = await adapter.read(stream, after, limit, snapshot)
        assert len(page.events) <= limit, f"read returned {len(page.events)} events at limit {limit}"
        assert isinstance(page.position, str), f"page.position is {page.position!r}, not a str"
        assert all(event.shard == shard for event in page.events), "read returned another shard's events"
        found += page.events
        found.pages.append(len(page.events))
        found.position = page.position
        if page.gap is not None:
            found.gaps.append(page.gap)
        if not page.has_more:
            return found
        assert page.position != after, f"has_more is True and the position stays at {after!r}"
        after = page.position


async def turns(count: int) -> None:
    """Let the loop turn `count` times."""
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


async def cancel_after(count: int, call: Callable[[], Awaitable[Any]]) -> bool:
    """Run a call and cancel it after `count` turns of the loop.

    Returns:
        Whether it had returned by then. What it raised of its own is raised here.
    """
    returned = False

    async def run() -> None:
        nonlocal returned
        await call()
        returned = True

    with anyio.fail_after(_CALL_S):
        async with anyio.create_task_group() as group:
            group.start_soon(run)
            await turns(count)
            group.cancel_scope.cancel()
    return returned


def suspends(call: Coroutine[Any, Any, Any]) -> bool:
    """Tell whether a call awaits anything that is not there yet; the call is then abandoned."""
    try:
        call.send(None)
    except StopIteration:
        return False
    call.close()
    return True


class ContractBase:
    """Switches and fixtures of `AdapterContract`."""

    pytestmark: ClassVar[Any] = [pytest.mark.anyio]

    backends: ClassVar[tuple[str, ...]] = ("asyncio",)
    shares_store: ClassVar[bool | None] = None
    exclusive: ClassVar[bool] = False
    retention: ClassVar[dict[str, Any] | None] = None
    max_payload: ClassVar[int] = 1 << 20
    patience_s: ClassVar[float] = 5.0
    foreign_positions: ClassVar[tuple[str, ...]] = ()

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Run each clause once for each of `backends`."""
        if "anyio_backend" in metafunc.fixturenames:
            metafunc.parametrize("anyio_backend", list(self.backends))

    @pytest.fixture
    async def open_adapter(self, make_adapter: MakeAdapter) -> AsyncIterator[OpenAdapter]:
        """Open adapters on the test's store; close them all afterwards."""
        opened: list[AnyAdapter] = []

        async def open_one(**overrides: Any) -> AnyAdapter:
            adapter = make_adapter(**overrides)
            opened.append(adapter)
            with anyio.fail_after(_CALL_S):
                await ask(adapter, "open", adapter_context())
            return adapter

        yield open_one
        for adapter in reversed(opened):
            with anyio.fail_after(_CALL_S):
                await ask(adapter, "close")

    @pytest.fixture
    async def adapter(self, open_adapter: OpenAdapter) -> AnyAdapter:
        """One opened adapter on a fresh store."""
        return await open_adapter()

    @pytest.fixture
    def outage(self) -> Callable[[], Any] | None:
        """Override it to have outages tested.

        Returns:
            A callable that returns an async context manager, within which the backend is
            unreachable and after which it is back with its data; None skips those clauses.
        """
        return None

    def poison(self, adapter: AnyAdapter) -> bytes | None:
        """Return a payload that the adapter can never store, or None if it stores all.

        The default is a payload one byte longer than the adapter's `max_payload_bytes`.
        """
        longest = adapter.capabilities.max_payload_bytes
        return None if longest is None or longest > 1 << 26 else b"x" * (longest + 1)

    def shared(self, adapter: AnyAdapter) -> bool:
        """Tell whether two adapters on one store see each other."""
        return adapter.capabilities.shared if self.shares_store is None else self.shares_store


@asynccontextmanager
async def running(call: Callable[[], Awaitable[Any]], *, lead: int = 5) -> AsyncIterator[anyio.Event]:
    """Run a call beside the block, `lead` turns ahead of it; yields what is set when it returned."""
    done = anyio.Event()

    async def run() -> None:
        await call()
        done.set()

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        await turns(lead)
        yield done
