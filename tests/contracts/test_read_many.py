"""The default `read_many`: reads side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from netcore import Adapter, AdapterConfig, Batch, Capabilities, ReadRequest, ShardPage, Stream
from netcore.errors import CursorError, TransientAdapterError

pytestmark = pytest.mark.anyio


class BareConfig(AdapterConfig, frozen=True, kw_only=True, tag="bare"):
    """No settings."""


class Bare(Adapter[BareConfig]):
    """Only reads, as the test says; a page's position names its shard."""

    kind = "bare"
    Config = BareConfig

    def __init__(self, effect: Callable[[int], Awaitable[None]]) -> None:
        super().__init__(BareConfig())
        self.effect = effect
        self.running = self.most = 0
        self.begun: list[int] = []
        self.cancelled: list[int] = []

    async def read(self, stream: Stream, after: str | None, limit: int, snapshot: object = None) -> ShardPage:
        self.begun.append(stream.shard)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.effect(stream.shard)
        except anyio.get_cancelled_exc_class():
            self.cancelled.append(stream.shard)
            raise
        finally:
            self.running -= 1
        return ShardPage(events=[], position=f"{stream.shard}:{after}:{limit}:{snapshot}", has_more=False)

    async def open(self, context: Any) -> None:
        """Do nothing."""

    async def append(self, batch: Batch) -> None:
        """Do nothing."""

    async def streams(self) -> list[Stream]:
        return []

    async def bounds(self, stream: Stream) -> tuple[str, str]:
        return "", ""

    async def close(self) -> None:
        """Do nothing."""


class BareInline(Bare):
    capabilities = Capabilities(inline=True)


def requests(count: int) -> list[ReadRequest]:
    return [ReadRequest(Stream(shard), "a", 5) for shard in range(count)]


def shown(pages: list[ShardPage | Exception]) -> list[str]:
    return [page.position if isinstance(page, ShardPage) else repr(page) for page in pages]


async def test_read_many_default_reads_side_by_side_and_keeps_the_order(anyio_backend: str) -> None:
    """Each read waits for the one behind it: in turn they would never end."""
    ended = [anyio.Event() for _ in range(6)]
    ended[5].set()

    async def backwards(shard: int) -> None:
        if shard < 5:
            await ended[shard + 1].wait()
        ended[shard].set()

    with anyio.fail_after(5):
        pages = await Bare(backwards).read_many(requests(6), "s")
    assert shown(pages) == [f"{shard}:a:5:s" for shard in range(6)]


@pytest.mark.parametrize("make", [Bare, BareInline])
async def test_read_many_default_with_failing_reads_answers_the_others(
    anyio_backend: str, make: type[Bare]
) -> None:
    """Each exception is in its place and ends no other read, whenever it is raised."""

    async def some_fail(shard: int) -> None:
        if shard == 1:
            raise CursorError("at once")
        if make is Bare:
            await anyio.lowlevel.checkpoint()
        if shard == 2:
            raise KeyError("later")

    pages = await make(some_fail).read_many(requests(4))
    assert shown(pages) == ["0:a:5:None", "CursorError('at once')", "KeyError('later')", "3:a:5:None"]


async def test_read_many_default_that_is_cancelled_cancels_its_reads(anyio_backend: str) -> None:
    """No read outlives the call, and none begins afterwards."""
    adapter = Bare(lambda shard: anyio.sleep_forever())
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(adapter.read_many, requests(100))
            while adapter.running < 64:
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
    assert sorted(adapter.cancelled) == list(range(64))
    assert (adapter.running, len(adapter.begun)) == (0, 64)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_read_many_default_whose_task_is_cancelled_cancels_its_reads(anyio_backend: str) -> None:
    """The same with asyncio's own cancellation, as a bus does at a time-out."""
    adapter = Bare(lambda shard: anyio.sleep_forever())
    task = asyncio.create_task(adapter.read_many(requests(3)))
    with anyio.fail_after(5):
        while adapter.running < 3:
            await anyio.lowlevel.checkpoint()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert sorted(adapter.cancelled) == [0, 1, 2]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_read_many_default_with_a_read_that_cancels_itself_answers_the_others(
    anyio_backend: str,
) -> None:
    """A driver's own cancellation, as of a lost connection, is that stream's failure alone."""

    async def gone(shard: int) -> None:
        await anyio.lowlevel.checkpoint()
        if shard == 0:
            future = asyncio.get_running_loop().create_future()
            future.cancel()
            await future
        await anyio.sleep(0.01)

    with anyio.fail_after(5):
        first, *others = await Bare(gone).read_many(requests(3))
    assert isinstance(first, TransientAdapterError)
    assert shown(others) == ["1:a:5:None", "2:a:5:None"]


async def test_read_many_default_reads_at_most_64_at_once(anyio_backend: str) -> None:
    """A thousand streams need no thousand connections."""
    adapter = Bare(lambda shard: anyio.lowlevel.checkpoint())
    with anyio.fail_after(5):
        pages = await adapter.read_many(requests(300))
    assert shown(pages) == [f"{shard}:a:5:None" for shard in range(300)]
    assert 1 < adapter.most <= 64


def test_read_many_default_of_an_inline_adapter_never_suspends() -> None:
    """Its reads never do, so there is nothing to gain from tasks and a promise to lose."""

    async def nothing(shard: int) -> None:
        """Never suspend."""

    adapter = BareInline(nothing)
    # No loop runs here: whoever asked for one would fail.
    adapter.read = lambda *args: page_of(args[0])  # type: ignore[method-assign]
    call = adapter.read_many(requests(2))
    with pytest.raises(StopIteration) as ended:
        call.send(None)
    assert shown(ended.value.value) == ["0", "1"]


async def page_of(stream: Stream) -> ShardPage:
    return ShardPage(events=[], position=str(stream.shard), has_more=False)
