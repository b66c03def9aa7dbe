"""Reading ahead: quicker, and nobody could tell by what comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from net_adapter_redis import RedisAdapter
from net_adapter_redis.registry import Registry
from net_adapter_redis.session import Session

from netcore import ConsumeRequest, EventBus, EventBusConfig
from netcore.contracts.adapter import ReadRequest, ShardPage, Stream
from netcore.errors import TransientAdapterError
from netcore.testing.contract import Writer
from netcore.testing.proxy import FaultyProxy
from netcore.testing.servers import RedisServer

pytestmark = pytest.mark.anyio
Opened = Callable[..., Awaitable[RedisAdapter]]
LAYOUTS = pytest.mark.parametrize("layout", ["event", "packed"])


def payloads(count: int, start: int = 0) -> list[bytes]:
    """Return `count` different payloads."""
    return [b'{"n":%d}' % index for index in range(start, start + count)]


async def page_after(adapter: RedisAdapter, after: str | None, limit: int = 20) -> ShardPage:
    """Read a page as a poll does, with the list of streams."""
    [page], _ = await adapter.read_listed([ReadRequest(Stream(0), after, limit)])
    assert isinstance(page, ShardPage)
    return page


async def fetched(adapter: RedisAdapter) -> None:
    """Wait until nothing is on its way."""
    async with asyncio.timeout(10):
        while adapter._ahead._tasks:
            await asyncio.wait(set(adapter._ahead._tasks))


async def reading_ahead(adapter: RedisAdapter, limit: int = 20) -> tuple[list[bytes], str]:
    """Read two pages, so that more are here; return their payloads and where the next one begins."""
    first = await page_after(adapter, None, limit)
    second = await page_after(adapter, first.position, limit)
    await fetched(adapter)
    return [event.raw for event in [*first.events, *second.events]], second.position


@LAYOUTS
async def test_pages_that_follow_each_other_ask_the_server_rarely(
    server: RedisServer, opened: Opened, layout: str
) -> None:
    """Most pages come from memory, list of streams included; together they are what is stored."""
    async with FaultyProxy(server.host, server.port) as proxy:
        adapter = await opened(f"redis://{proxy.host}:{proxy.port}", layout=layout)
        writer = Writer(adapter)
        for index in range(30):
            await writer.write(payloads(100, index * 100))
        got, after = await reading_ahead(adapter)
        silent = pages = 0
        more = True
        while more:
            before = proxy.bytes_to_server
            page = await page_after(adapter, after)
            await fetched(adapter)
            silent += proxy.bytes_to_server == before
            pages += 1
            got += [event.raw for event in page.events]
            after, more = page.position, page.has_more
        assert got == payloads(3_000)
        assert silent > pages * 0.8


@LAYOUTS
async def test_a_stream_that_came_to_be_is_listed_with_the_next_read(opened: Opened, layout: str) -> None:
    """Pages from memory come with a list as old as they are; the last page of a stream with a new one."""
    adapter, other = await opened(layout=layout), await opened()
    await Writer(adapter).write(payloads(600))
    got, after = await reading_ahead(adapter, 100)
    await Writer(other, shard=900).write(payloads(1))
    more = True
    while more:
        [page], streams = await adapter.read_listed([ReadRequest(Stream(0), after, 100)])
        assert isinstance(page, ShardPage)
        got += [event.raw for event in page.events]
        after, more = page.position, page.has_more
    assert got == payloads(600)
    assert streams == [Stream(0), Stream(900)]


async def test_a_cause_in_a_new_stream_comes_before_its_effect(server: RedisServer) -> None:
    """A poll that reads the effect knows the stream of the cause, though it is new."""
    config = EventBusConfig(shards=2, adapter={"kind": "redis", "url": server.url})
    causes = EventBusConfig(shards=1, adapter={"kind": "redis", "url": server.url, "prefix": "net"})
    async with EventBus(config) as reader, EventBus(causes) as writer:
        writer.ingest({"n": -1})
        await writer.flush()
        page = await reader.poll(ConsumeRequest(10, start="earliest"))
        seen: list[int] = []
        for shard in range(2, 40):
            # One event in a stream that nobody has heard of, then one in an old one.
            cause = time.time_ns()
            for key, ts in ((shard, cause), (0, cause + 1)):
                server.call(
                    "XADD",
                    f"net:shard:{key}",
                    "*",
                    "d",
                    f'{{"r":{shard * 2 + (key == 0)},"t":{ts},"s":{key}}}',
                )
            page = await reader.poll(ConsumeRequest(10, cursor=page.cursor))
            seen += [event.decode() for event in page.events]
        assert seen == list(range(4, 80))


@LAYOUTS
async def test_what_was_trimmed_meanwhile_is_told_exactly(
    server: RedisServer, opened: Opened, layout: str
) -> None:
    """What is in memory still comes; behind it the gap is as large as what is missing."""
    adapter = await opened(layout=layout)
    writer = Writer(adapter)
    for index in range(60):
        await writer.write(payloads(100, index * 100))
    got, after = await reading_ahead(adapter)
    server.call("XTRIM", "net:shard:0", "MAXLEN", "=", 1)
    gaps: list[Any] = []
    more = True
    while more:
        page = await page_after(adapter, after)
        got += [event.raw for event in page.events]
        gaps += [page.gap.missed] if page.gap is not None else []
        after, more = page.position, page.has_more
    kept = 1 if layout == "event" else 100
    assert len(gaps) == 1
    assert 40 < len(got) < 6_000
    assert got == payloads(len(got) - kept) + payloads(kept, 6_000 - kept)
    assert gaps[0] in (None, 6_000 - len(got))
    assert layout == "packed" or gaps[0] is not None


async def test_two_chains_on_one_stream_do_not_disturb_each_other(opened: Opened) -> None:
    """Each gets its own events, at whatever page the other is."""
    adapter = await opened()
    await Writer(adapter).write(payloads(1_500))
    got: list[list[bytes]] = [[], []]
    after: list[str | None] = [None, None]
    for turn in range(300):
        chain = turn % 3 % 2
        page = await page_after(adapter, after[chain], 10 + 7 * chain)
        got[chain] += [event.raw for event in page.events]
        after[chain] = page.position
    assert got == [payloads(len(got[0])), payloads(len(got[1]))]
    assert min(map(len, got)) == 1_500


async def test_a_connection_lost_while_reading_ahead_is_nobodys_trouble(
    server: RedisServer, opened: Opened
) -> None:
    """The reader is told by its own next read, if that fails too; nothing is skipped or repeated."""
    async with FaultyProxy(server.host, server.port) as proxy:
        adapter = await opened(f"redis://{proxy.host}:{proxy.port}")
        for index in range(3):
            await Writer(adapter, producer=f"{index:032x}").write(payloads(700, index * 700))
        got, after = await reading_ahead(adapter, 100)
        more = True
        turn = 0
        while more:
            turn += 1
            if turn % 3 == 0:
                proxy.cut_before_reply()
            try:
                page = await page_after(adapter, after, 100)
            except TransientAdapterError:
                continue
            got += [event.raw for event in page.events]
            after, more = page.position, page.has_more
        assert got == payloads(2_100)
        assert proxy.cuts > 2


async def test_close_with_a_fetch_on_its_way_ends_at_once(server: RedisServer, opened: Opened) -> None:
    """No task is left behind, and nobody waits for the answer."""
    async with FaultyProxy(server.host, server.port) as proxy:
        adapter = await opened(f"redis://{proxy.host}:{proxy.port}")
        await Writer(adapter).write(payloads(2_000))
        _, after = await reading_ahead(adapter, 100)
        proxy.stall("to_client")
        while not adapter._ahead._tasks:
            after = (await page_after(adapter, after, 100)).position
        began = time.monotonic()
        await adapter.close()
        assert time.monotonic() - began < 2
        assert not [task for task in asyncio.all_tasks() if task.get_name() == "netcore-redis-ahead"]


async def test_a_list_lost_behind_its_reads_is_asked_for_again(
    server: RedisServer, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page whose look for new streams was lost on the way does not go out with an older list."""
    adapter = await opened()
    await Writer(adapter).write(payloads(1))
    first = await page_after(adapter, None)
    ask = Session.ask

    async def torn(
        self: Session, link: Any, data: bytes, replies: int, doing: str, *, sink: Any = None
    ) -> list[Any]:
        if doing != "read":
            return await ask(self, link, data, replies, doing, sink=sink)
        sink((await ask(self, link, data, replies, doing))[0])
        raise TransientAdapterError("the connection was lost behind the first reply")

    for shard in (3, 0):  # a cause in a stream that nobody has heard of, then its effect
        server.call("XADD", f"net:shard:{shard}", "*", "d", f'{{"r":{shard},"t":1,"s":{shard}}}')
    monkeypatch.setattr(Session, "ask", torn)
    [page], streams = await adapter.read_listed([ReadRequest(Stream(0), first.position, 20)])
    assert isinstance(page, ShardPage)
    assert [event.raw for event in page.events] == [b"0"]
    assert Stream(3) in streams


async def test_a_look_during_the_probe_of_another_is_not_taken_for_answered(
    server: RedisServer, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was read while names were tried out counts as listed only once its own look is answered."""
    adapter = await opened()
    await Writer(adapter).write(payloads(1))
    await page_after(adapter, None)
    registry, density, session = adapter._registry, adapter._density(Stream(0)), adapter._open_session()
    link = session.network.reader(b"")
    probe = Registry._probe

    async def look() -> None:
        seen = registry.look([density])
        seen.accept(await session.ask(link, seen.commands, seen.replies, "look"))

    async def overtaken(self: Registry, ids: Any, doing: str) -> None:
        await probe(self, ids, doing)
        server.call("XADD", "net:shard:5", "*", "d", '{"r":1,"t":1,"s":5}')
        await look()  # another poll's, answered before this one's reader has its turn

    server.call("XADD", "net:shard:3", "*", "d", '{"r":1,"t":1,"s":3}')
    await look()
    with monkeypatch.context() as patched:
        patched.setattr(Registry, "_probe", overtaken)
        await registry.complete()
    assert not density.listed or 5 in registry.known
    await registry.refresh()
    assert {0, 3, 5} <= registry.known


async def test_a_gap_behind_kept_entries_begins_a_page_of_its_own(
    server: RedisServer, opened: Opened
) -> None:
    """What is still known of a stream that was replaced meanwhile comes first; the gap is told once."""
    adapter, limit = await opened(layout="packed"), 150
    writer = Writer(adapter)
    for index in range(4):
        await writer.write(payloads(100, index * 100))
    pages = [await page_after(adapter, None, limit)]
    server.call("FLUSHALL")
    await writer.write(payloads(100, 1_000))
    while pages[-1].has_more:
        pages.append(await page_after(adapter, pages[-1].position, limit))
    got = [[int(event.raw[5:-1]) for event in page.events] for page in pages]
    assert all(numbers == list(range(numbers[0], numbers[0] + len(numbers))) for numbers in got if numbers)
    assert [page.gap is not None for page in pages].count(True) == 1
    assert [number for numbers in got for number in numbers][-100:] == list(range(1_000, 1_100))
