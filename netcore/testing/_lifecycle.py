"""Clauses on waiting, cancellation, closing, identity, capabilities and outages."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import anyio
import msgspec
import pytest

from netcore.contracts.adapter import Batch, Health, ReadRequest, Stream
from netcore.errors import AdapterClosedError, AdapterError, AdapterRefusedError, TransientAdapterError
from netcore.testing._base import (
    TURNS,
    AnyAdapter,
    ContractBase,
    MakeAdapter,
    OpenAdapter,
    Writer,
    adapter_context,
    append,
    cancel_after,
    drain,
    payloads,
    raws,
    running,
    suspends,
)

__all__ = ["LifecycleClauses"]

_LONG_S = 60.0


class LifecycleClauses(ContractBase):
    """What holds from `open` to `close`, and under cancellation."""

    async def test_wait_returns_when_something_is_appended(self, adapter: AnyAdapter) -> None:
        """Who waits at the tail is woken by an append; several are all woken."""
        await Writer(adapter).write(payloads(2))
        _, tail = await adapter.bounds(Stream(0))
        with anyio.fail_after(self.patience_s):
            async with (
                running(lambda: adapter.wait({Stream(0): tail}, _LONG_S)) as first,
                running(lambda: adapter.wait({Stream(0): tail}, _LONG_S)) as second,
            ):
                await Writer(adapter).write(payloads(1))
                await first.wait()
                await second.wait()

    async def test_wait_returns_when_a_stream_appears(self, adapter: AnyAdapter) -> None:
        """A stream that is not among the positions is news."""
        await Writer(adapter).write(payloads(1))
        _, tail = await adapter.bounds(Stream(0))
        with anyio.fail_after(self.patience_s):
            async with running(lambda: adapter.wait({Stream(0): tail}, _LONG_S)) as woken:
                await Writer(adapter, shard=1).write(payloads(1))
                await woken.wait()

    async def test_wait_returns_when_the_first_stream_appears(self, adapter: AnyAdapter) -> None:
        """In an empty store one can wait for anything at all."""
        with anyio.fail_after(self.patience_s):
            async with running(lambda: adapter.wait({}, _LONG_S)) as woken:
                await Writer(adapter, shard=1).write(payloads(1))
                await woken.wait()

    async def test_wait_returns_when_something_newer_is_there_already(self, adapter: AnyAdapter) -> None:
        """An append just before the wait is not missed; None stands for the beginning."""
        await Writer(adapter).write(payloads(2))
        found = await drain(adapter)
        for position in (None, found[0].id):
            with anyio.fail_after(self.patience_s):
                await adapter.wait({Stream(0): position}, _LONG_S)

    async def test_wait_returns_by_its_timeout(self, adapter: AnyAdapter) -> None:
        """Nothing new: it returns all the same, quietly; 0 and less at once."""
        await Writer(adapter).write(payloads(1))
        _, tail = await adapter.bounds(Stream(0))
        for timeout in (0.1, 0.0, -1.0):
            with anyio.fail_after(self.patience_s):
                await adapter.wait({Stream(0): tail}, timeout)

    async def test_calls_cancelled_anywhere_leave_the_adapter_usable(self, adapter: AnyAdapter) -> None:
        """A cancelled call ends, and no later answer is taken for another's."""
        writer = Writer(adapter)
        await writer.write(payloads(20))
        _, tail = await adapter.bounds(Stream(0))
        calls: dict[str, Callable[[], Awaitable[Any]]] = {
            "streams": adapter.streams,
            "read": lambda: adapter.read(Stream(0), None, 5),
            "read_many": lambda: adapter.read_many([ReadRequest(Stream(0), None, 5)]),
            "read_listed": lambda: adapter.read_listed([ReadRequest(Stream(0), None, 5)]),
            "bounds": lambda: adapter.bounds(Stream(0)),
            "snapshot": adapter.snapshot,
            "seek": lambda: adapter.seek(Stream(0), 10**18),
            "wait": lambda: adapter.wait({Stream(0): tail}, _LONG_S),
            "flush": adapter.flush,
            "health": adapter.health,
        }
        for name, call in calls.items():
            for count in TURNS:
                await cancel_after(count, call)
                page = await adapter.read(Stream(0), None, 3)
                assert raws(page.events) == payloads(3), f"after {name} cancelled at turn {count}"
        await writer.write(payloads(2, prefix="after"))
        assert raws(await drain(adapter)) == raws(writer.written)

    async def test_close_is_idempotent_and_ends_the_adapter(self, adapter: AnyAdapter) -> None:
        """Closing twice, also at once, is fine; later calls raise `AdapterClosedError`."""
        writer = Writer(adapter)
        await writer.write(payloads(1))
        with anyio.fail_after(self.patience_s * 2):
            async with anyio.create_task_group() as group:
                group.start_soon(adapter.close)
                group.start_soon(adapter.close)
            await adapter.close()
        calls: list[Callable[[], Awaitable[Any]]] = [
            lambda: adapter.append(writer.batch(payloads(1))),
            lambda: adapter.read(Stream(0), None, 1),
            lambda: adapter.bounds(Stream(0)),
            adapter.streams,
        ]
        for call in calls:
            with anyio.fail_after(self.patience_s), pytest.raises(AdapterClosedError):
                await call()

    async def test_close_before_open_is_harmless(self, make_adapter: MakeAdapter) -> None:
        """A bus that fails before opening closes what it has."""
        adapter = make_adapter()
        with anyio.fail_after(self.patience_s):
            await adapter.close()

    async def test_close_during_calls_ends_them(self, open_adapter: OpenAdapter) -> None:
        """An append, a read and a wait under way return or raise an `AdapterError`, soon."""
        for count in TURNS[:6]:
            adapter = await open_adapter()
            writer = Writer(adapter, shard=count)
            await writer.write(payloads(1))
            _, tail = await adapter.bounds(Stream(count))
            batch = writer.batch(payloads(500))
            streams = {stream: (await adapter.bounds(stream))[1] for stream in await adapter.streams()}
            streams[Stream(count)] = tail
            with anyio.fail_after(self.patience_s * 2):
                async with anyio.create_task_group() as group:
                    group.start_soon(_tolerate, lambda: adapter.append(batch))  # noqa: B023
                    group.start_soon(_tolerate, lambda: adapter.read(Stream(count), None, 10))  # noqa: B023
                    group.start_soon(_tolerate, lambda: adapter.wait(streams, 2.0))  # noqa: B023
                    for _ in range(count):
                        await anyio.lowlevel.checkpoint()
                    await adapter.close()

    async def test_identity_names_the_store_and_no_address(self, open_adapter: OpenAdapter) -> None:
        """It is stable, equal for two adapters on one store, and carries no address or credential."""
        one = await open_adapter()
        identity = one.identity()
        assert identity
        assert identity == one.identity()
        if not self.exclusive:
            assert (identity == (await open_adapter()).identity()) is self.shared(one)
        for text in _strings(msgspec.to_builtins(one.config)):
            url = urlsplit(text) if "://" in text else None
            for part in (text, url.netloc, url.password) if url else ():
                assert not part or part not in identity, f"the identity contains {part!r}"

    async def test_another_adapter_on_the_store_reads_the_same(self, open_adapter: OpenAdapter) -> None:
        """Events, ids and positions mean the same to every reader; a private store shows nothing."""
        one = await open_adapter()
        if self.exclusive:
            with pytest.raises(AdapterError):
                await open_adapter()
            await Writer(one).write(payloads(1))  # who has it open goes on undisturbed
            assert raws(await drain(one)) == payloads(1)
            return
        two = await open_adapter()
        writer = Writer(one)
        await writer.write(payloads(5))
        mine = await drain(one)
        if not self.shared(one):
            assert await two.streams() == []
            assert await drain(two) == []
            return
        theirs = await drain(two)
        assert list(theirs) == list(mine)
        assert await two.streams() == await one.streams()
        assert raws(await drain(two, after=mine[2].id)) == payloads(5)[3:]
        with anyio.fail_after(self.patience_s):
            async with running(lambda: two.wait({Stream(0): theirs.position}, _LONG_S)) as woken:
                await writer.write(payloads(1, prefix="more"))
                await woken.wait()

    async def test_durable_events_outlive_the_adapter(self, open_adapter: OpenAdapter) -> None:
        """What was acknowledged is there when the store is opened again; cursors of before still hold."""
        one = await open_adapter()
        if not (one.capabilities.durable or self.shared(one)):
            pytest.skip("the adapter promises neither `durable` nor `shared`")
        await Writer(one).write(payloads(4))
        before = await drain(one)
        identity = one.identity()
        await one.flush()
        await one.close()
        two = await open_adapter()
        assert two.identity() == identity, "a cursor is of use only where the store has the name it had"
        assert list(await drain(two)) == list(before)
        assert raws(await drain(two, after=before[1].id)) == payloads(4)[2:]
        await Writer(two).write(payloads(1, prefix="more"))
        assert len(await drain(two)) == 5

    async def test_inline_adapter_never_suspends(self, adapter: AnyAdapter) -> None:
        """A bus awaits reads of an `inline` adapter without a task: none may yield to the loop."""
        if not adapter.capabilities.inline:
            pytest.skip("the adapter does not promise `inline`")
        await Writer(adapter).write(payloads(3))
        assert not suspends(adapter.streams())
        assert not suspends(adapter.read(Stream(0), None, 2))
        assert not suspends(adapter.read_many([ReadRequest(Stream(0), None, 2)]))
        assert not suspends(adapter.bounds(Stream(0)))
        assert not suspends(adapter.snapshot())
        assert not suspends(adapter.seek(Stream(0), 1))

    async def test_health_and_stats_answer_while_open(self, adapter: AnyAdapter) -> None:
        """Health is good, stats can be read from any thread and encoded as JSON."""
        await Writer(adapter).write(payloads(2))
        health = await adapter.health()
        assert isinstance(health, Health)
        assert health.ok, health.reason
        seen: list[dict[str, Any]] = []
        reader = threading.Thread(target=lambda: seen.append(adapter.stats()))
        reader.start()
        reader.join(self.patience_s)
        assert len(seen) == 1
        assert isinstance(seen[0], dict)
        assert isinstance(seen[0].get("unreplicated", 0), int)
        msgspec.json.encode(seen[0])

    async def test_outage_is_transient_and_loses_nothing(
        self, open_adapter: OpenAdapter, outage: Callable[[], Any] | None
    ) -> None:
        """While the backend is away calls raise `TransientAdapterError`; afterwards a retry is stored once."""
        adapter = await open_adapter()
        if outage is None:
            pytest.skip("the fixture `outage` is not set")
        writer = Writer(adapter)
        await writer.write(payloads(2))
        batch = writer.batch(payloads(2, prefix="b"))
        async with outage():
            await _fails_as_transient(lambda: adapter.append(batch), self.patience_s)
            await _fails_as_transient(lambda: adapter.read(Stream(0), None, 10), self.patience_s)
            with anyio.fail_after(_LONG_S):
                assert not (await adapter.health()).ok
        await _until_stored(adapter, batch)
        assert raws(await drain(adapter)) == raws(writer.written)

    async def test_open_during_an_outage_is_transient_and_leaves_nothing(
        self, make_adapter: MakeAdapter, outage: Callable[[], Any] | None
    ) -> None:
        """Opening fails with `TransientAdapterError`, and closing what failed to open is harmless."""
        if outage is None:
            pytest.skip("the fixture `outage` is not set")
        adapter = make_adapter()
        async with outage():
            with anyio.fail_after(_LONG_S), pytest.raises(TransientAdapterError):
                await adapter.open(adapter_context(timeout_ms=2000))
            with anyio.fail_after(self.patience_s * 2):
                await adapter.close()

    async def test_close_during_an_outage_is_bounded(
        self, open_adapter: OpenAdapter, outage: Callable[[], Any] | None
    ) -> None:
        """Closing never waits for a backend that does not answer."""
        adapter = await open_adapter()
        if outage is None:
            pytest.skip("the fixture `outage` is not set")
        await Writer(adapter).write(payloads(2))
        async with outage():
            with anyio.fail_after(self.patience_s * 2):
                await adapter.close()


async def _tolerate(call: Callable[[], Awaitable[Any]]) -> None:
    """Run a call that may fail because the adapter is being closed."""
    try:
        await call()
    except AdapterRefusedError:
        raise
    except AdapterError:
        return


async def _fails_as_transient(call: Callable[[], Awaitable[Any]], patience_s: float) -> None:
    """Check that a call raises `TransientAdapterError`, or hangs and can be cancelled."""
    with anyio.move_on_after(patience_s) as scope:
        with pytest.raises(TransientAdapterError):
            await call()
    assert scope.cancelled_caught or not scope.cancel_called


async def _until_stored(adapter: AnyAdapter, batch: Batch) -> None:
    """Retry as a bus does."""
    with anyio.fail_after(_LONG_S):
        while True:
            try:
                await append(adapter, batch)
            except TransientAdapterError:
                await anyio.sleep(0.05)
            else:
                return


def _strings(value: Any) -> list[str]:
    """Collect the texts in plain data."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for item in value.values() for text in _strings(item)]
    if isinstance(value, list | tuple):
        return [text for item in value for text in _strings(item)]
    return []
