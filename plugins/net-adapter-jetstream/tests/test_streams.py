"""Streams as they are found: trimmed, purged, deleted, full, differently set up, written by others."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import nats as nats_client
import pytest
from net_adapter_jetstream import JetStreamAdapter
from net_adapter_jetstream import adapter as adapter_module
from net_adapter_jetstream import writer as writer_module

from netcore import AdapterRefusedError, Gap, ReadRequest, ShardPage, Stream
from netcore.testing.contract import Writer, drain
from netcore.testing.servers import NatsServer

pytestmark = pytest.mark.anyio

OpenAdapter = Callable[..., Awaitable[JetStreamAdapter]]


class Admin:
    """An operator with a client of their own."""

    def __init__(self, client: Any, prefix: str) -> None:
        self.client = client
        self.prefix = prefix

    async def api(self, verb: str, shard: int = 0, **body: Any) -> dict[str, Any]:
        """Call the stream API; return what it answers."""
        subject = f"$JS.API.STREAM.{verb}.{self.prefix}_shard_{shard}"
        reply = await self.client.request(subject, json.dumps(body).encode() if body else b"", timeout=5)
        answer: dict[str, Any] = json.loads(reply.data)
        assert "error" not in answer, answer
        return answer

    async def publish(self, body: bytes, shard: int = 0, **headers: str) -> None:
        """Publish a message and wait until it is stored."""
        await self.client.jetstream().publish(f"{self.prefix}.shard.{shard}", body, headers=headers or None)

    async def edit(self, shard: int = 0, **changes: Any) -> None:
        """Change settings of a stream."""
        config = (await self.api("INFO", shard))["config"]
        await self.api("UPDATE", shard, **(config | changes))

    async def create(self, shard: int = 0, **settings: Any) -> None:
        """Make a stream."""
        name = f"{self.prefix}_shard_{shard}"
        await self.api("CREATE", shard, name=name, subjects=[f"{self.prefix}.shard.{shard}"], **settings)


@asynccontextmanager
async def administer(server: NatsServer, prefix: str) -> AsyncIterator[Admin]:
    """Connect an operator."""
    client = await nats_client.connect(server.url)
    try:
        yield Admin(client, prefix)
    finally:
        await client.close()


@pytest.fixture
async def admin(nats: NatsServer, prefix: str) -> AsyncIterator[Admin]:
    """An operator of the shared server."""
    async with administer(nats, prefix) as made:
        yield made


def numbered(first: int, count: int) -> list[bytes]:
    """Return payloads that tell their place."""
    return [b'{"n":%d}' % (first + index) for index in range(count)]


def payloads_of(events: Any) -> list[bytes]:
    """Return the payloads of events."""
    return [event.raw for event in events]


async def read(adapter: JetStreamAdapter, after: str | None, limit: int = 1000) -> ShardPage:
    """Read a page of shard 0."""
    return await adapter.read(Stream(0), after, limit)


# -- wire layout


async def test_event_layout_on_the_wire(nats: NatsServer, open_adapter: OpenAdapter, admin: Admin) -> None:
    """Stream, subject, envelope and message id are as documented, for readers of other makes."""
    adapter = await open_adapter(nats.url)
    writer = Writer(adapter)
    batch = await writer.write([b'{"a":1}', b"\xff"])
    config = (await admin.api("INFO"))["config"]
    assert config["subjects"] == [f"{admin.prefix}.shard.0"]
    assert (config["storage"], config["allow_direct"], config["retention"]) == ("file", True, "limits")
    for index, raw in enumerate([b'{"a":1}', b"\xff"]):
        message = await admin.client.jetstream().get_msg(f"{admin.prefix}_shard_0", index + 1)
        assert message.data == b'{"r":%b,"t":%d,"s":0}' % (raw, batch.events[index].ts)
        assert message.headers["Nats-Msg-Id"] == f"{writer.producer}:0:0:{index}"


async def test_foreign_envelopes_are_read(nats: NatsServer, open_adapter: OpenAdapter, admin: Admin) -> None:
    """Other order and white space are the same event; no JSON and no envelope is counted and passed over."""
    adapter = await open_adapter(nats.url)
    await Writer(adapter).write(numbered(0, 1))
    await admin.publish(b' { "s": 0, "t": 5, "r": {"n": 1} } ')
    for junk in (b"garbage", b'{"r":1}', b"\x93\x01\x02", b"\x93\x01\x90\x90", b"[]", b""):
        await admin.publish(junk)
    await Writer(adapter).write(numbered(2, 1))
    page = await read(adapter, None)
    assert payloads_of(page.events) == [b'{"n":0}', b'{"n": 1}', b'{"n":2}']
    assert (page.events[1].ts, page.undecodable) == (5, 6)
    assert payloads_of(await drain(adapter, after=page.events[1].id, limit=1)) == [b'{"n":2}']


async def test_only_undecodable_entries_move_the_position(
    nats: NatsServer, open_adapter: OpenAdapter, admin: Admin
) -> None:
    """A page of rubbish is passed over once: nothing stalls, nothing spins."""
    adapter = await open_adapter(nats.url)
    await Writer(adapter).write(numbered(0, 1))
    end = (await read(adapter, None)).position
    for _ in range(3):
        await admin.publish(b"rubbish")
    page = await read(adapter, end)
    assert (page.events, page.undecodable, page.has_more) == ([], 3, False)
    again = await read(adapter, page.position)
    assert (again.undecodable, again.position) == (0, page.position)


async def test_layouts_are_read_in_one_stream(nats: NatsServer, open_adapter: OpenAdapter) -> None:
    """A running deployment switches the layout and back: pages and positions go on."""
    one = await open_adapter(nats.url)
    writer = Writer(one)
    for layout in ("event", "packed", "event", "packed"):
        writer.adapter = await open_adapter(nats.url, layout=layout)
        await writer.write(numbered(len(writer.written), 30))
        await writer.write(numbered(len(writer.written), 1))
    expected = payloads_of(writer.written)
    for limit in (1, 7, 31, 1000):
        assert payloads_of(await drain(one, limit=limit)) == expected
    found = await drain(one)
    for place in range(0, len(found), 5):
        assert payloads_of((await read(one, found[place].id)).events) == expected[place + 1 :]


async def test_packed_batch_above_max_payload_is_split(nats: NatsServer, open_adapter: OpenAdapter) -> None:
    """Several messages, still one step."""
    adapter = await open_adapter(nats.url, layout="packed")
    writer = Writer(adapter)
    batch = await writer.write([bytes([index]) * 400_000 for index in range(9)])
    await adapter.append(batch)
    _, tail = await adapter.bounds(Stream(0))
    assert tail.startswith("5@")
    assert payloads_of(await drain(adapter, limit=2)) == payloads_of(writer.written)


# -- gaps and holes


async def test_slow_consumer_counts_what_the_limit_took(nats: NatsServer, open_adapter: OpenAdapter) -> None:
    """While the stream is trimmed under a reader, events read and events missed add up."""
    adapter = await open_adapter(nats.url, max_events=500)
    writer = Writer(adapter)
    await writer.write(numbered(0, 100))
    seen: list[bytes] = []
    missed = 0
    position: str | None = "0"
    done = asyncio.Event()

    async def write() -> None:
        for _ in range(60):
            await writer.write(numbered(len(writer.written), 100))
        done.set()

    task = asyncio.create_task(write())
    while True:
        last_round = done.is_set()
        page = await read(adapter, position, 37)
        if page.gap is not None:
            assert page.gap.missed is not None
            missed += page.gap.missed
        seen += payloads_of(page.events)
        position = page.position
        if last_round and not page.has_more:
            break
        await asyncio.sleep(0)
    await task
    numbers = [json.loads(raw)["n"] for raw in seen]
    assert numbers == sorted(set(numbers))
    assert missed > 0
    assert len(seen) + missed == len(writer.written)


async def test_purged_stream_reports_the_exact_gap(
    nats: NatsServer, open_adapter: OpenAdapter, admin: Admin
) -> None:
    """Purged in part and as a whole: what is missing is counted; writing goes on, once."""
    adapter = await open_adapter(nats.url)
    writer = Writer(adapter)
    first = await writer.write(numbered(0, 20))
    position = (await read(adapter, None, 5)).position
    await admin.api("PURGE", seq=11)
    page = await read(adapter, position)
    assert isinstance(page.gap, Gap)
    assert (page.gap.missed, len(page.events)) == (5, 10)
    await admin.api("PURGE")
    page = await read(adapter, position)
    assert isinstance(page.gap, Gap)
    assert (page.gap.missed, page.events, page.has_more) == (15, [], False)
    assert (await read(adapter, page.position)).gap is None
    other = await open_adapter(nats.url)
    await other.append(first)  # its marks went with the purge: the server's window knows it
    await writer.write(numbered(20, 3))
    assert payloads_of((await read(adapter, page.position)).events) == numbered(20, 3)


async def test_packed_gap_is_of_unknown_size(
    nats: NatsServer, open_adapter: OpenAdapter, admin: Admin
) -> None:
    """Sequence numbers count messages, not the events in them: no wrong number is told."""
    adapter = await open_adapter(nats.url, layout="packed")
    writer = Writer(adapter)
    for _ in range(3):
        await writer.write(numbered(len(writer.written), 10))
    position = (await read(adapter, None, 4)).position
    await admin.api("PURGE", seq=3)
    page = await read(await open_adapter(nats.url), position)
    assert isinstance(page.gap, Gap)
    assert (page.gap.missed, payloads_of(page.events)) == (None, numbered(20, 10))


async def test_deleted_messages_are_passed_over(
    nats: NatsServer, open_adapter: OpenAdapter, admin: Admin
) -> None:
    """Holes inside, and at the end, are neither gaps nor the end of the stream."""
    adapter = await open_adapter(nats.url)
    await Writer(adapter).write(numbered(0, 12))
    for seq in (3, 4, 8, 11, 12):
        await admin.api("MSG.DELETE", seq=seq)
    left = [b'{"n":%d}' % n for n in (0, 1, 4, 5, 6, 8, 9)]
    for limit in (1, 2, 3, 100):
        found = await drain(adapter, limit=limit)
        assert (payloads_of(found), found.gaps) == (left, [])
    end = found.position
    page = await read(adapter, end)
    assert (page.events, page.has_more, page.position) == ([], False, end)
    began = asyncio.get_running_loop().time()
    await adapter.wait({Stream(0): end}, 0.2)
    assert asyncio.get_running_loop().time() - began >= 0.2
    await Writer(adapter).write(numbered(12, 1))
    assert payloads_of((await read(adapter, end)).events) == numbered(12, 1)


async def test_deleted_stream_is_a_gap_and_made_anew(
    nats: NatsServer, open_adapter: OpenAdapter, admin: Admin
) -> None:
    """Positions of the old stream are not taken for positions of the new one, though the numbers fit."""
    adapter = await open_adapter(nats.url)
    writer = Writer(adapter)
    await writer.write(numbered(0, 10))
    position = (await read(adapter, None, 5)).position
    await admin.api("DELETE")
    page = await read(adapter, position)
    assert (page.events, page.has_more, page.gap, page.position) == ([], False, None, position)
    assert await adapter.streams() == []
    await writer.write(numbered(10, 10))
    page = await read(adapter, position)
    assert isinstance(page.gap, Gap)
    assert (page.gap.missed, payloads_of(page.events)) == (None, numbered(10, 10))
    assert adapter.stats()["resets"] == 1


async def test_seek_finds_its_way_by_the_servers_clock(
    nats: NatsServer, open_adapter: OpenAdapter, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It skips what was stored before, allows for stamps that run ahead, and gives up on foreign ends."""
    monkeypatch.setattr(writer_module, "_LEAD_SLACK_MS", 5)
    monkeypatch.setattr(adapter_module, "_SLACK_MS", 5)
    adapter = await open_adapter(nats.url)
    writer = Writer(adapter)
    await writer.write(numbered(0, 10))
    await asyncio.sleep(0.1)  # time itself is the subject
    between = time.time_ns()
    await asyncio.sleep(0.1)
    await writer.write(numbered(10, 10), ts=range(time.time_ns(), time.time_ns() + 10))
    position = await adapter.seek(Stream(0), between)
    assert position is not None
    assert payloads_of((await read(adapter, position)).events) == numbered(10, 10)
    ahead = Writer(adapter)
    await ahead.write(numbered(20, 1), ts=[time.time_ns() + 10**9])
    position = await adapter.seek(Stream(0), time.time_ns() + 10**9 - 10**8)
    assert b'{"n":20}' in payloads_of(await drain(adapter, after=position))
    await admin.publish(b'{"r":1,"t":9000000000000000000,"s":0}')
    assert await adapter.seek(Stream(0), time.time_ns() + 10**15) is None


# -- settings


async def test_existing_stream_is_given_what_it_lacks(
    nats: NatsServer, open_adapter: OpenAdapter, admin: Admin
) -> None:
    """Direct get, batches, a longer window, more retention; what we do not know of is left alone."""
    await admin.create(max_msgs=50, duplicate_window=10**9, description="theirs", compression="s2")
    adapter = await open_adapter(nats.url, max_events=60)
    await Writer(adapter).write(numbered(0, 5))
    config = (await admin.api("INFO"))["config"]
    assert (config["allow_direct"], config["allow_atomic"]) == (True, True)
    assert (config["max_msgs"], config["duplicate_window"]) == (60, 120 * 10**9)
    assert (config["description"], config["compression"]) == ("theirs", "s2")


async def test_existing_stream_keeps_a_longer_window(
    nats: NatsServer, open_adapter: OpenAdapter, admin: Admin
) -> None:
    """Two processes with different settings must not set it to and fro."""
    await admin.create(duplicate_window=3600 * 10**9)
    adapter = await open_adapter(nats.url)
    await Writer(adapter).write(numbered(0, 5))
    assert (await admin.api("INFO"))["config"]["duplicate_window"] == 3600 * 10**9


@pytest.mark.parametrize(
    ("settings", "wanted", "field"),
    [
        ({"retention": "workqueue"}, {}, "retention"),
        ({"storage": "memory"}, {}, "storage"),
        ({}, {"max_events": 5}, "max_msgs"),
        ({"max_bytes": 10_000_000}, {"max_bytes": 1000}, "max_bytes"),
        ({"max_age": 10**12}, {"max_age_s": 5.0}, "max_age"),
        ({"deny_delete": True}, {"replicas": 3}, "num_replicas"),
    ],
)
async def test_stream_set_up_otherwise_is_refused(
    nats: NatsServer,
    open_adapter: OpenAdapter,
    admin: Admin,
    settings: dict[str, Any],
    wanted: dict[str, Any],
    field: str,
) -> None:
    """What would delete events, or cannot be changed, is named and nothing is written."""
    await admin.create(**settings)
    adapter = await open_adapter(nats.url, **wanted)
    with pytest.raises(AdapterRefusedError, match=field):
        await Writer(adapter).write(numbered(0, 1))
    assert (await admin.api("INFO"))["state"]["messages"] == 0


async def test_full_stream_that_discards_new_is_refused_until_mended(
    nats: NatsServer, open_adapter: OpenAdapter, admin: Admin
) -> None:
    """Nothing of the batch is stored; when an operator makes room it is stored as it is."""
    await admin.create(max_msgs=10, discard="new")
    adapter = await open_adapter(nats.url)
    writer = Writer(adapter)
    await writer.write(numbered(0, 8))
    batch = writer.batch(numbered(8, 5))
    with pytest.raises(AdapterRefusedError, match="full"):
        await adapter.append(batch)
    single = Writer(adapter)
    await single.write(numbered(100, 2))
    with pytest.raises(AdapterRefusedError, match="full"):
        await single.write(numbered(102, 1))
    await admin.edit(max_msgs=100)
    await adapter.append(batch)
    assert payloads_of(await drain(adapter)) == [*numbered(0, 8), *numbered(100, 2), *numbered(8, 5)]


async def test_stream_without_direct_get_is_refused_to_readers(
    nats: NatsServer, open_adapter: OpenAdapter, admin: Admin
) -> None:
    """A consumer changes nothing at the server: it says which setting it needs."""
    await admin.create()
    await admin.publish(b'{"r":1,"t":1,"s":0}')
    adapter = await open_adapter(nats.url)
    with pytest.raises(AdapterRefusedError, match="allow_direct"):
        await read(adapter, None)


async def test_reading_many_streams_overlaps_and_is_whole(
    nats: NatsServer, open_adapter: OpenAdapter
) -> None:
    """All streams in one call, pages of different sizes, each exact."""
    adapter = await open_adapter(nats.url)
    writers = [Writer(adapter, shard=shard) for shard in range(12)]
    for writer in writers:
        await writer.write(numbered(0, 10 * writer.shard + 1))
    positions: dict[int, str | None] = {writer.shard: None for writer in writers}
    found: dict[int, list[bytes]] = {writer.shard: [] for writer in writers}
    while positions:
        requests = [ReadRequest(Stream(shard), after, 9) for shard, after in positions.items()]
        for request, page in zip(requests, await adapter.read_many(requests), strict=True):
            assert isinstance(page, ShardPage)
            found[request.stream.shard] += payloads_of(page.events)
            positions[request.stream.shard] = page.position
            if not page.has_more:
                del positions[request.stream.shard]
    assert found == {writer.shard: payloads_of(writer.written) for writer in writers}


async def test_large_payloads_are_paged_within_bounds(nats: NatsServer, open_adapter: OpenAdapter) -> None:
    """Pages of big messages are cut by bytes; the rest follows."""
    adapter = await open_adapter(nats.url)
    writer = Writer(adapter)
    for index in range(6):
        await writer.write([bytes([index + 1]) * 1_000_000] * 4)
    found = await drain(adapter, limit=1000)
    assert payloads_of(found) == payloads_of(writer.written)
    assert len(found.pages) > 1


# -- waiting


async def test_wait_is_woken_within_milliseconds(nats: NatsServer, open_adapter: OpenAdapter) -> None:
    """Two processes' adapters: the median from stored to woken is small; no wake-up is lost."""
    one, two = await open_adapter(nats.url), await open_adapter(nats.url)
    writer = Writer(one)
    await writer.write(numbered(0, 1))
    position = (await read(two, None)).position
    loop = asyncio.get_running_loop()
    took = []
    for index in range(30):
        waiting = asyncio.create_task(two.wait({Stream(0): position}, 30))
        await asyncio.sleep(0.002 * (index % 3))
        await writer.write(numbered(index, 3))
        stored = loop.time()
        await waiting
        took.append(loop.time() - stored)
        position = (await read(two, position)).position
    took.sort()
    assert took[len(took) // 2] < 0.05
    assert took[-1] < 1.0


async def test_wait_that_may_not_subscribe_still_returns(open_adapter: OpenAdapter, prefix: str) -> None:
    """Without the right to subscribe it looks now and then."""
    users = (
        f"authorization {{ users: [ {{ user: w, password: w }}, {{ user: r, password: r, permissions: "
        f'{{ subscribe: {{ deny: "{prefix}.shard.>" }} }} }} ] }}'
    )
    with NatsServer(config=users) as server:
        one = await open_adapter(server.url, user="w", password="w")
        two = await open_adapter(server.url, user="r", password="r")
        await Writer(one).write(numbered(0, 1))
        position = (await read(two, None)).position
        waiting = asyncio.create_task(two.wait({Stream(0): position}, 20))
        await asyncio.sleep(0.05)
        await Writer(one).write(numbered(1, 1))
        async with asyncio.timeout(5):
            await waiting
        assert payloads_of((await read(two, position)).events) == numbered(1, 1)
