"""Reading: positions, gaps, both layouts, streams that others wrote or broke."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest
from net_adapter_redis import RedisAdapter
from net_adapter_redis.positions import Position

from netcore.contracts.adapter import ReadRequest, ShardPage, Stream
from netcore.errors import AdapterRefusedError
from netcore.testing.contract import Writer, drain
from netcore.testing.proxy import FaultyProxy
from netcore.testing.servers import RedisServer

pytestmark = pytest.mark.anyio
Opened = Callable[..., Awaitable[RedisAdapter]]


def payloads(count: int, start: int = 0) -> list[bytes]:
    """Return `count` different payloads."""
    return [b'{"n":%d}' % index for index in range(start, start + count)]


async def raws(adapter: RedisAdapter, after: str | None = None) -> list[bytes]:
    """Read everything of shard 0."""
    return [event.raw for event in await drain(adapter, after=after, limit=7)]


async def test_read_recognises_both_layouts_in_one_stream(opened: Opened) -> None:
    """A running deployment can switch and switch back; every position stays good for every reader."""
    events, packed = await opened(layout="event"), await opened(layout="packed")
    for turn in range(6):
        writer = Writer(packed if turn % 2 else events)
        await writer.write(payloads(9, turn * 9))
    expected = payloads(54)
    for adapter in (events, packed):
        found = await drain(adapter, limit=4)
        assert [event.raw for event in found] == expected
        for index, event in enumerate(found):
            page = await adapter.read(Stream(0), event.id, 100)
            assert [later.raw for later in page.events] == expected[index + 1 :]
            assert page.gap is None


async def test_read_packed_ids_are_entry_and_index(opened: Opened) -> None:
    """The position inside a batch is part of each id."""
    adapter = await opened(layout="packed")
    await Writer(adapter).write(payloads(3))
    found = await drain(adapter)
    entry = found[0].id.partition(":")[0]
    assert [event.id.partition("/")[0] for event in found] == [f"{entry}:{index}" for index in range(3)]


async def test_read_skips_and_counts_what_is_no_event(server: RedisServer, opened: Opened) -> None:
    """Foreign and corrupt entries never stall a reader, also when a page holds nothing else."""
    adapter = await opened()
    writer = Writer(adapter)
    await writer.write(payloads(2))
    broken: list[tuple[str, str | bytes]] = [
        ("x", "y"),
        ("d", "not json"),
        ("d", '{"q":1}'),
        ("b", b"\xc1"),
        ("b", b"\x96\x02\xa0\x00\x00\x90\x90"),
    ]
    for name, value in broken * 5:
        server.call("XADD", "net:shard:0", "*", name, value)
    await writer.write(payloads(2, 2))
    for name, value in broken:
        server.call("XADD", "net:shard:0", "*", name, value)
    found, undecodable, after, more = [], 0, None, True
    while more:
        page = await adapter.read(Stream(0), after, 2)
        found += [event.raw for event in page.events]
        undecodable += page.undecodable
        after, more = page.position, page.has_more
    assert found == payloads(4)
    assert undecodable == 30
    assert adapter.stats()["undecodable"] == 30
    page = await adapter.read(Stream(0), after, 2)
    assert (page.events, page.position, page.undecodable) == ([], after, 0)


async def test_read_entries_of_other_shapes(server: RedisServer, opened: Opened) -> None:
    """Somebody else's JSON: spaces, other orders of keys, further fields; times not since the epoch."""
    envelopes = [
        '{"r": {"a": [1, 2]}, "t": 1764000000000000000, "s": 0}',
        '{"s":0,"t":1764000000000000001,"r":"x"}',
        '{"r":{"q":1,"t":5,"s":0},"x":3,"t":12}',
        '{"r":null}',
        '{"r":7,"t":"soon","s":0}',
        '{"r":8,"t":77,"s":0}',
        '{"r":9,"t":-5,"s":0}',
        '{"r":10,"t":1764000000000000002,"s":3}',
    ]
    for index, envelope in enumerate(envelopes):
        server.call("XADD", "net:shard:0", f"5000-{index}", "dedup_id", f"a:{index}", "d", envelope)
    adapter = await opened()
    found = await drain(adapter)
    by_id = 5_000_000_000
    assert [(event.raw, event.ts) for event in found] == [
        (b'{"a": [1, 2]}', 1764000000000000000),
        (b'"x"', 1764000000000000001),
        (b'{"q":1,"t":5,"s":0}', by_id),
        (b"null", by_id),
        (b"8", by_id),
        (b"9", by_id),
        (b"10", 1764000000000000002),
    ]
    assert adapter.stats()["undecodable"] == 1


async def test_read_compares_ids_as_numbers(server: RedisServer, opened: Opened) -> None:
    """`9-1` is before `10-0`, and `5-9` before `5-10`."""
    ids = ["5-9", "5-10", "9-1", "10-0", "100-0"]
    for entry in ids:
        server.call("XADD", "net:shard:0", entry, "d", f'{{"r":"{entry}","t":1,"s":0}}')
    adapter = await opened()
    for index, entry in enumerate(ids):
        assert await raws(adapter, entry) == [b'"%b"' % later.encode() for later in ids[index + 1 :]]


async def test_read_behind_trimming_reports_exactly_what_is_gone(server: RedisServer, opened: Opened) -> None:
    """After exact and approximate trims, from positions trimmed themselves or just before."""
    adapter = await opened()
    writer = Writer(adapter)
    await writer.write(payloads(1000))
    found = await drain(adapter)
    for option, keep in (("=", 600), ("~", 250), ("=", 7)):
        server.call("XTRIM", "net:shard:0", "MAXLEN", option, keep)
        gone = 1000 - int(server.call("XLEN", "net:shard:0"))
        page = await adapter.read(Stream(0), found[99].id, 3)
        assert page.gap is not None
        assert page.gap.missed == gone - 100
        assert [event.raw for event in page.events] == payloads(3, gone)
        again = await adapter.read(Stream(0), page.gap.resumed_at, 3)
        assert again.gap is None
        assert again.events == page.events
        assert (await adapter.read(Stream(0), found[gone - 1].id, 3)).gap is None
        assert (await adapter.read(Stream(0), found[gone].id, 3)).gap is None
    server.call("XTRIM", "net:shard:0", "MAXLEN", 0)
    assert (await adapter.read(Stream(0), found[-1].id, 3)).gap is None
    page = await adapter.read(Stream(0), found[-3].id, 3)
    assert page.gap is not None
    assert page.gap.missed == 2
    await writer.write(payloads(2))
    assert (await adapter.read(Stream(0), page.position, 3)).gap is None


async def test_read_behind_trimming_says_none_where_it_cannot_count(
    server: RedisServer, opened: Opened
) -> None:
    """Entries deleted by hand, entries that held many events, streams that others made."""
    adapter = await opened()
    writer = Writer(adapter)
    await writer.write(payloads(100))
    found = await drain(adapter)
    server.call("XDEL", "net:shard:0", found[50].id.partition("@")[0])
    assert (await adapter.read(Stream(0), found[50].id, 3)).gap is None
    server.call("XTRIM", "net:shard:0", "MAXLEN", 10)
    page = await adapter.read(Stream(0), found[20].id, 3)
    assert page.gap is not None
    assert page.gap.missed is None
    assert [event.raw for event in page.events] == payloads(3, 90)

    packed = await opened(layout="packed", prefix="packed")
    writer = Writer(packed)
    for index in range(5):
        await writer.write(payloads(10, index * 10))
    found = await drain(packed)
    server.call("XTRIM", "packed:shard:0", "MAXLEN", 4)
    inside = await packed.read(Stream(0), found[3].id, 3)
    assert inside.gap is not None
    assert inside.gap.missed == 6
    assert (await packed.read(Stream(0), found[9].id, 3)).gap is None
    server.call("XTRIM", "packed:shard:0", "MAXLEN", 2)
    page = await packed.read(Stream(0), found[3].id, 3)
    assert page.gap is not None
    assert page.gap.missed is None

    for _ in range(10):
        server.call("XADD", "net:shard:7", "*", "d", '{"r":1,"t":1,"s":7}')
    foreign = await drain(adapter, 7)
    server.call("XTRIM", "net:shard:7", "MAXLEN", 2)
    page = await adapter.read(Stream(7), foreign[0].id, 3)
    assert page.gap is not None
    assert page.gap.missed is None


async def test_read_after_flush_and_much_trimming_gives_no_false_number(
    server: RedisServer, opened: Opened
) -> None:
    """The stream of the same name is another one: its counts say nothing about the old one."""
    adapter = await opened()
    writer = Writer(adapter)
    await writer.write(payloads(100))
    old = await drain(adapter)
    server.call("FLUSHALL")
    empty = await adapter.read(Stream(0), old[50].id, 10)
    assert empty.gap is not None
    assert empty.gap.missed is None
    assert (await adapter.read(Stream(0), empty.position, 10)).gap is None
    await writer.write(payloads(500, 100))
    server.call("XTRIM", "net:shard:0", "MAXLEN", 10)
    page = await adapter.read(Stream(0), old[50].id, 100)
    assert page.gap is not None
    assert page.gap.missed is None
    assert [event.raw for event in page.events] == payloads(10, 590)


async def test_trimming_under_a_slow_reader_adds_up(opened: Opened) -> None:
    """What a slow consumer got and what it was told it missed are together what was written."""
    writing, reading = await opened(max_events=200), await opened()
    writer = Writer(writing)
    after, got, missed = (await reading.bounds(Stream(0)))[0], 0, 0
    await writer.write(payloads(10))
    page = await reading.read(Stream(0), after, 5)
    for index in range(60):
        got += len(page.events)
        missed += 0 if page.gap is None else page.gap.missed or 0
        await writer.write(payloads(50, index * 50))
        page = await reading.read(Stream(0), page.position, 20)
    rest = await drain(reading, after=page.position)
    got += len(page.events) + len(rest)
    missed += 0 if page.gap is None else page.gap.missed or 0
    missed += sum(gap.missed or 0 for gap in rest.gaps)
    assert missed > 0
    assert got + missed == 10 + 60 * 50


@pytest.mark.parametrize("layout", ["event", "packed"])
async def test_max_events_keeps_at_least_that_many(server: RedisServer, opened: Opened, layout: str) -> None:
    """Trimming never takes what the setting promises to keep, and does take what is far beyond."""
    adapter = await opened(layout=layout, max_events=400)
    writer = Writer(adapter)
    for index in range(40):
        await writer.write(payloads(1 + index * 7 % 60, writer.next_seq))
        kept = len(await drain(adapter))
        assert min(writer.next_seq, 400) <= kept <= 400 + 60 + 50


async def test_max_age_trims_at_the_next_append(server: RedisServer, opened: Opened) -> None:
    """Old entries go when something new is stored; approximately, so whole nodes of the stream."""
    server.call("CONFIG", "SET", "stream-node-max-entries", 1)
    try:
        adapter = await opened(max_age_s=0.05)
        writer = Writer(adapter)
        await writer.write(payloads(5))
        await asyncio.sleep(0.08)
        await writer.write(payloads(1, 5))
        assert await raws(adapter) == payloads(1, 5)
    finally:
        server.call("CONFIG", "SET", "stream-node-max-entries", 100)


async def test_read_many_is_one_round_trip(server: RedisServer, opened: Opened) -> None:
    """All shards of a poll are asked for at once; one sick shard spoils only its own page."""
    async with FaultyProxy(server.host, server.port) as proxy:
        adapter = await opened(f"redis://{proxy.host}:{proxy.port}")
        for shard in range(8):
            await Writer(adapter, shard=shard).write(payloads(5))
        server.call("SET", "net:shard:9", "mine")
        first = await adapter.read_many([ReadRequest(Stream(shard), None, 2) for shard in range(8)])
        pages = [page for page in first if isinstance(page, ShardPage)]
        proxy.delay = 0.1
        began = time.monotonic()
        requests = [ReadRequest(Stream(shard), page.position, 2) for shard, page in enumerate(pages)]
        answers = await adapter.read_many([*requests, ReadRequest(Stream(9), "5-0", 2)])
        took = time.monotonic() - began
        proxy.delay = 0.0
        assert [page.events[0].raw for page in answers[:8] if isinstance(page, ShardPage)] == payloads(
            1, 2
        ) * 8
        refused = answers[8]
        assert isinstance(refused, AdapterRefusedError)
        assert "net:shard:9" in str(refused)
        assert 0.2 <= took < 0.4  # one trip takes 0.2 s here


async def test_read_of_one_shard_that_cannot_be_read_raises(server: RedisServer, opened: Opened) -> None:
    """A key of the wrong type is named, with the remedy."""
    adapter = await opened()
    server.call("SET", "net:shard:0", "mine")
    with pytest.raises(AdapterRefusedError, match=r"read net:shard:0: .*WRONGTYPE.*move it away"):
        await adapter.read(Stream(0), None, 1)
    with pytest.raises(AdapterRefusedError, match="net:shard:0"):
        await adapter.bounds(Stream(0))


async def test_read_large_packed_batch_in_small_pages_costs_few_bytes(
    server: RedisServer, opened: Opened
) -> None:
    """A batch is fetched once and served from memory, not once a page."""
    async with FaultyProxy(server.host, server.port) as proxy:
        adapter = await opened(f"redis://{proxy.host}:{proxy.port}", layout="packed")
        writer = Writer(adapter)
        for _ in range(4):
            await writer.write([b"x" * 1000 for _ in range(500)])
        before = proxy.bytes_to_client
        found = await drain(adapter, limit=10)
        assert len(found) == 2000
        assert len(found.pages) >= 200
        assert proxy.bytes_to_client - before < 3 * 2_000_000


@pytest.mark.parametrize("layout", ["event", "packed"])
async def test_read_ahead_serves_pages_cut_anywhere(server: RedisServer, opened: Opened, layout: str) -> None:
    """Reads that follow each other ask the server seldom; what is no event is counted once all the same."""
    async with FaultyProxy(server.host, server.port) as proxy:
        adapter = await opened(f"redis://{proxy.host}:{proxy.port}", layout=layout)
        writer = Writer(adapter)
        for index in range(30):
            await writer.write(payloads(100, index * 100))
            if index % 10 == 5:
                server.call("XADD", "net:shard:0", "*", "x", "y")
        before = proxy.bytes_to_server
        got: list[bytes] = []
        after: str | None = None
        undecodable = reads = 0
        more = True
        while more:
            page = await adapter.read(Stream(0), after, 40)
            cut = len(page.events) - reads % 7 if page.has_more and len(page.events) > 7 else len(page.events)
            taken = page.events[:cut]
            got += [event.raw for event in taken]
            whole = cut == len(page.events)
            after = page.position if whole else taken[-1].id
            undecodable += page.undecodable if whole else 0
            more, reads = page.has_more or not whole, reads + 1
        assert got == payloads(3000)
        assert undecodable <= 3
        assert reads > 75
        assert proxy.bytes_to_server - before < reads * 60  # a command is about 80 bytes


async def test_seek_far_ahead_and_behind(server: RedisServer, opened: Opened) -> None:
    """A time before everything is the beginning, one after everything the tail; neither reports a gap."""
    adapter = await opened()
    writer = Writer(adapter)
    now = time.time_ns()
    await writer.write(payloads(3), ts=[now - 10**9, now, now + 90 * 10**9])
    assert await raws(adapter, await adapter.seek(Stream(0), 0)) == payloads(3)
    assert await raws(adapter, await adapter.seek(Stream(0), now + 90 * 10**9)) == payloads(3)
    tail = await adapter.seek(Stream(0), now + 10**15)
    assert tail == (await adapter.bounds(Stream(0)))[1]
    assert (await adapter.read(Stream(0), tail, 5)).gap is None


async def test_seek_takes_the_producers_clock_into_account(server: RedisServer, opened: Opened) -> None:
    """Timestamps ahead of the server's clock are found all the same, and so are those of other writers."""
    adapter = await opened()
    ahead = time.time_ns() + 5 * 10**9
    writer = Writer(adapter)
    await writer.write(payloads(1), ts=[ahead - 10**12])
    for index in range(20):
        await writer.write(payloads(1, index), ts=[ahead + index * 10**6])
        await asyncio.sleep(0.002)
    for index in (0, 7, 19):
        position = await adapter.seek(Stream(0), ahead + index * 10**6)
        assert (await raws(adapter, position))[-(20 - index) :] == payloads(20 - index, index)
    server.call("XADD", "net:shard:5", "1764000000000-0", "d", '{"r":1,"t":1764000030000000000,"s":5}')
    position = await adapter.seek(Stream(5), 1764000030000000000)
    assert [event.raw for event in await drain(adapter, 5, after=position)] == [b"1"]


async def test_streams_lists_what_others_made(server: RedisServer, opened: Opened) -> None:
    """Streams with no entry in the registry are found by their names; reading leaves no trace."""
    adapter = await opened()
    assert await adapter.streams() == []
    for shard in (0, 3, 900):
        server.call("XADD", f"net:shard:{shard}", "*", "d", '{"r":1,"t":1,"s":0}')
    async with asyncio.timeout(10):
        while await adapter.streams() != [Stream(0), Stream(3), Stream(900)]:  # the server
            await asyncio.sleep(0.05)
    server.call("XADD", "net:shard:904", "*", "d", '{"r":1,"t":1,"s":0}')
    assert Stream(904) in await adapter.streams()
    assert await (await opened()).streams() == [Stream(0), Stream(3), Stream(900), Stream(904)]
    await Writer(adapter, shard=60_000).write(payloads(1))
    assert Stream(60_000) in await (await opened()).streams()
    assert server.call("XLEN", "net:shards") == 1


async def test_wait_wakes_for_others_and_costs_nothing_while_idle(
    server: RedisServer, opened: Opened
) -> None:
    """Writes of other processes wake it; until then not a byte goes either way."""
    async with FaultyProxy(server.host, server.port) as proxy:
        adapter = await opened(f"redis://{proxy.host}:{proxy.port}")
        await Writer(adapter).write(payloads(1))
        await adapter.streams()
        tail = (await adapter.bounds(Stream(0)))[1]
        waiting = asyncio.ensure_future(adapter.wait({Stream(0): tail}, 30))
        await proxy.connected(3)
        sent = 0
        async with asyncio.timeout(10):
            while sent != proxy.bytes_to_server or not server.call("INFO", "clients").count(
                b"blocked_clients:1"
            ):
                sent = proxy.bytes_to_server
                await asyncio.sleep(0.02)
        await asyncio.sleep(0.3)
        assert proxy.bytes_to_server == sent
        assert not waiting.done()
        server.call("XADD", "net:shard:0", "*", "d", '{"r":1,"t":1,"s":0}')
        async with asyncio.timeout(5):
            await waiting


async def test_wait_wakes_within_a_millisecond_or_so(opened: Opened) -> None:
    """The median from an append's return to the waiter's: an event bus is not polled."""
    writing, reading = await opened(), await opened()
    writer, delays = Writer(writing), []
    await writer.write(payloads(1))
    for _ in range(21):
        await reading.streams()
        tail = (await reading.bounds(Stream(0)))[1]

        async def wait(tail: str = tail) -> float:
            await reading.wait({Stream(0): tail}, 10)
            return time.perf_counter()

        waiting = asyncio.ensure_future(wait())
        await asyncio.sleep(0.01)
        began = time.perf_counter()
        await writer.write(payloads(1))
        delays.append(await waiting - began)
    assert sorted(delays)[10] < 0.02  # a busy machine's allowance; the README tells what is usual


@pytest.mark.parametrize("shard", [1, 40_000])
async def test_wait_notices_a_new_shard(server: RedisServer, opened: Opened, shard: int) -> None:
    """A shard that another bus adds is news, through the registry; one near the known ones also without."""
    adapter, other = await opened(), await opened()
    await Writer(adapter).write(payloads(1))
    await adapter.streams()
    waiting = asyncio.ensure_future(adapter.wait({Stream(0): (await adapter.bounds(Stream(0)))[1]}, 20))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    if shard == 1:
        server.call("XADD", "net:shard:1", "*", "d", '{"r":1,"t":1,"s":1}')
    else:
        await Writer(other, shard=shard).write(payloads(1))
    async with asyncio.timeout(5):
        await waiting
    assert Stream(shard) in await adapter.streams()


async def test_wait_goes_on_beside_a_key_of_the_wrong_type(server: RedisServer, opened: Opened) -> None:
    """One sick shard keeps nobody awake, and nobody from waking."""
    adapter = await opened()
    await Writer(adapter).write(payloads(1))
    server.call("SET", "net:shard:1", "mine")
    tail = (await adapter.bounds(Stream(0)))[1]
    positions = {stream: tail if stream.shard == 0 else None for stream in await adapter.streams()}
    waiting = asyncio.ensure_future(adapter.wait(positions, 20))
    async with asyncio.timeout(10):
        while not server.call("INFO", "clients").count(b"blocked_clients:1"):
            await asyncio.sleep(0.005)
    assert not waiting.done()
    await Writer(adapter).write(payloads(1))
    async with asyncio.timeout(5):
        await waiting


async def test_wait_more_at_once_than_connections_all_wake(opened: Opened) -> None:
    """Beyond `pool_size` polls look often instead; none is left behind."""
    adapter = await opened(pool_size=3)
    writer = Writer(adapter)
    await writer.write(payloads(1))
    tail = (await adapter.bounds(Stream(0)))[1]
    waiting = [asyncio.ensure_future(adapter.wait({Stream(0): tail}, 20)) for _ in range(5)]
    await asyncio.sleep(0.1)
    await writer.write(payloads(1))
    async with asyncio.timeout(5):
        await asyncio.gather(*waiting)
    assert adapter.stats()["connects"] <= 3


async def test_wait_while_the_server_is_away_returns_early_not_at_once(
    server: RedisServer, opened: Opened
) -> None:
    """The next read says what is wrong; there is no spinning meanwhile."""
    adapter = await opened()
    await Writer(adapter).write(payloads(1))
    tail = (await adapter.bounds(Stream(0)))[1]
    server.kill()
    began = time.monotonic()
    await adapter.wait({Stream(0): tail}, 5)
    assert 0.09 < time.monotonic() - began < 3


def test_position_before_an_entry_leaves_no_room() -> None:
    """The position right before an entry admits no other in between."""
    for where in ((5, 3), (5, 0), (0, 1)):
        before = Position(where).before()
        assert before.id < where
        assert before.reaches(where)
        assert not Position((max(where[0] - 2, 0), 0)).reaches((where[0] + 1, 1))
