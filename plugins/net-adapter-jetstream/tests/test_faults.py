"""Crashes, stalls and lost replies: what was acknowledged is there, once, in order."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import nats as nats_client
import pytest
from nats.js.errors import APIError
from net_adapter_jetstream import JetStreamAdapter, JetStreamConfig

from netcore import AdapterClosedError, Batch, Stream, TransientAdapterError
from netcore.testing.contract import Writer, adapter_context, drain
from netcore.testing.proxy import FaultyProxy
from netcore.testing.servers import NatsServer

pytestmark = pytest.mark.anyio

OpenAdapter = Callable[..., Awaitable[JetStreamAdapter]]
Until = Callable[[Callable[[], bool]], Awaitable[None]]


def numbered(first: int, count: int, tag: str = "n") -> list[bytes]:
    """Return payloads that tell their place."""
    return [b'{"%b":%d}' % (tag.encode(), first + index) for index in range(count)]


def payloads_of(events: Any) -> list[bytes]:
    """Return the payloads of events."""
    return [event.raw for event in events]


async def store(adapter: JetStreamAdapter, batch: Batch, *, within: float = 30.0) -> int:
    """Append, retrying as a bus does; return how many attempts it took."""
    attempts = 0
    async with asyncio.timeout(within):
        while True:
            attempts += 1
            try:
                await adapter.append(batch)
            except TransientAdapterError:
                await asyncio.sleep(0.02)
            else:
                return attempts


@pytest.fixture
async def proxy(nats: NatsServer) -> AsyncIterator[FaultyProxy]:
    """A proxy in front of the shared server."""
    async with FaultyProxy(nats.host, nats.port) as made:
        yield made


def through(proxy: FaultyProxy) -> str:
    """Return the URL that leads through the proxy."""
    return f"nats://{proxy.host}:{proxy.port}"


async def _killed_under_load(
    server: NatsServer, open_adapter: OpenAdapter, until: Until, kills: int, **settings: Any
) -> None:
    adapter = await open_adapter(server.url, **settings)
    writer = Writer(adapter)
    done = asyncio.Event()

    async def write() -> None:
        while not done.is_set():
            await store(adapter, writer.batch(numbered(len(writer.written), 400)))

    task = asyncio.create_task(write())
    lottery = random.Random(7)  # not for secrets
    for _ in range(kills):
        before = len(writer.written)
        await until(lambda: len(writer.written) >= before + 1200)  # noqa: B023  # awaited here
        await asyncio.sleep(lottery.uniform(0, 0.03))
        server.kill()
        await asyncio.to_thread(server.restart)
    done.set()
    await task
    found = await drain(adapter, limit=997)
    assert payloads_of(found) == payloads_of(writer.written)
    assert adapter.stats()["reconnects"] == kills
    assert adapter.stats()["rolled_back"] == 0


@pytest.mark.parametrize("layout", ["event", "packed"])
async def test_server_killed_mid_batch_loses_and_repeats_nothing(
    own_nats: NatsServer, open_adapter: OpenAdapter, until: Until, layout: str
) -> None:
    """Killed while a batch is under way, the server comes back with all or nothing of it."""
    await _killed_under_load(own_nats, open_adapter, until, 1, layout=layout)


@pytest.mark.faults
@pytest.mark.timeout(600)
async def test_server_killed_often_loses_and_repeats_nothing(
    own_nats: NatsServer, open_adapter: OpenAdapter, until: Until
) -> None:
    """Twenty times in a row."""
    await _killed_under_load(own_nats, open_adapter, until, 20)


async def test_old_server_killed_mid_batch_loses_and_repeats_nothing(
    old_nats: NatsServer, open_adapter: OpenAdapter, until: Until
) -> None:
    """Without batches a part of one may be left; the retry completes it."""
    await _killed_under_load(old_nats, open_adapter, until, 1)


@pytest.mark.faults
@pytest.mark.timeout(600)
async def test_old_server_killed_often_loses_and_repeats_nothing(
    old_nats: NatsServer, open_adapter: OpenAdapter, until: Until
) -> None:
    """Twenty times in a row."""
    await _killed_under_load(old_nats, open_adapter, until, 20)


async def test_server_paused_past_the_timeout_stores_each_batch_once(
    own_nats: NatsServer, open_adapter: OpenAdapter
) -> None:
    """Attempts that time out land when the server goes on; only one of them counts."""
    adapter = await open_adapter(own_nats.url, timeout_ms=200)
    writer = Writer(adapter)
    await writer.write(numbered(0, 50))
    batch = writer.batch(numbered(50, 50))
    own_nats.pause()
    for _ in range(3):
        began = time.monotonic()
        with pytest.raises(TransientAdapterError):
            await adapter.append(batch)
        assert time.monotonic() - began < 2
    own_nats.resume()
    await store(adapter, batch)
    await store(adapter, writer.batch(numbered(100, 50)))
    assert payloads_of(await drain(adapter)) == payloads_of(writer.written)


async def test_server_paused_is_noticed_while_idle(
    own_nats: NatsServer, open_adapter: OpenAdapter, until: Until
) -> None:
    """A connection that answers no ping is given up, without anybody asking for anything."""
    adapter = await open_adapter(own_nats.url, timeout_ms=200)
    assert adapter.stats()["connected"]
    own_nats.pause()
    await until(lambda: not adapter.stats()["connected"])
    own_nats.resume()
    await until(lambda: bool(adapter.stats()["connected"]))


async def test_commit_reply_swallowed_stores_once(proxy: FaultyProxy, open_adapter: OpenAdapter) -> None:
    """The reply to the commit never comes: the retry finds the batch stored."""
    adapter = await open_adapter(through(proxy), timeout_ms=300)
    writer = Writer(adapter)
    await writer.write(numbered(0, 5))
    batch = writer.batch(numbered(5, 200))
    proxy.swallow_replies(1)
    with pytest.raises(TransientAdapterError, match=r"no reply within 0\.3 s"):
        await adapter.append(batch)
    assert len(await drain(adapter)) == 205
    await store(adapter, batch)
    await writer.write(numbered(205, 5))
    assert payloads_of(await drain(adapter)) == payloads_of(writer.written)


async def test_connection_cut_instead_of_the_reply_fails_at_once(
    proxy: FaultyProxy, open_adapter: OpenAdapter
) -> None:
    """A lost connection is not waited out: the time-out is a minute here."""
    adapter = await open_adapter(through(proxy), timeout_ms=60_000)
    writer = Writer(adapter)
    await writer.write(numbered(0, 5))
    batch = writer.batch(numbered(5, 20))
    proxy.cut_before_reply(1)
    began = time.monotonic()
    with pytest.raises(TransientAdapterError, match="lost"):
        await adapter.append(batch)
    assert time.monotonic() - began < 2
    assert await store(adapter, batch) >= 1
    assert payloads_of(await drain(adapter)) == payloads_of(writer.written)


async def test_batch_torn_on_the_way_stores_nothing_of_it(
    proxy: FaultyProxy, nats: NatsServer, open_adapter: OpenAdapter
) -> None:
    """Cut in the middle of a batch, the server keeps none of it; the retry stores it once."""
    adapter = await open_adapter(through(proxy), timeout_ms=1000)
    other = await open_adapter(nats.url)
    writer = Writer(adapter)
    await writer.write(numbered(0, 5))
    batch = writer.batch(numbered(5, 500))
    proxy.cut_request_after(30_000)
    with pytest.raises(TransientAdapterError):
        await adapter.append(batch)
    assert len(await drain(other)) == 5
    await store(adapter, batch)
    assert payloads_of(await drain(adapter)) == payloads_of(writer.written)


@pytest.mark.parametrize("layout", ["event", "packed"])
@pytest.mark.parametrize("fate", ["stored", "torn"])
async def test_lost_reply_then_foreign_write_is_resolved(
    proxy: FaultyProxy, nats: NatsServer, open_adapter: OpenAdapter, fate: str, layout: str
) -> None:
    """Somebody else writes before the retry: whether the batch is there is still known."""
    adapter = await open_adapter(through(proxy), timeout_ms=300, layout=layout)
    one, two = Writer(adapter), Writer(await open_adapter(nats.url))
    await one.write(numbered(0, 5))
    batch = one.batch(numbered(5, 100))
    if fate == "stored":
        proxy.cut_before_reply(1)
    else:
        proxy.cut_request_after(600)
    with pytest.raises(TransientAdapterError):
        await adapter.append(batch)
    await two.write(numbered(0, 7, "other"))
    await store(adapter, batch)
    found = payloads_of(await drain(adapter))
    assert [raw for raw in found if b"other" not in raw] == payloads_of(one.written)
    assert [raw for raw in found if b"other" in raw] == payloads_of(two.written)


async def test_lost_reply_then_many_producers_is_resolved(
    proxy: FaultyProxy, nats: NatsServer, open_adapter: OpenAdapter
) -> None:
    """More producers wrote since than the marks remember: the message after the base tells."""
    adapter = await open_adapter(through(proxy), timeout_ms=300, duplicate_window_s=0.1)
    other = await open_adapter(nats.url)
    writer = Writer(adapter)
    await writer.write(numbered(0, 5))
    batch = writer.batch(numbered(5, 10))
    proxy.cut_before_reply(1)
    with pytest.raises(TransientAdapterError):
        await adapter.append(batch)
    for index in range(20):
        await Writer(other).write(numbered(index, 1, "other"))
    await store(adapter, batch)
    found = payloads_of(await drain(adapter))
    assert [raw for raw in found if b"other" not in raw] == payloads_of(writer.written)
    assert len(found) == 35


async def test_retry_past_the_duplicate_window_is_recognised(
    nats: NatsServer, open_adapter: OpenAdapter
) -> None:
    """The server forgets ids; the marks do not, and any process reads them."""
    first = await open_adapter(nats.url, duplicate_window_s=0.1)
    writer = Writer(first)
    await writer.write(numbered(0, 10))
    batch = await writer.write(numbered(10, 10))
    await asyncio.sleep(0.15)  # the window itself, not a wait for something
    second = await open_adapter(nats.url, duplicate_window_s=0.1)
    await second.append(batch)
    straddling = Batch(
        producer=batch.producer,
        shard=0,
        first_seq=15,
        events=[*batch.events[5:], *writer.batch(numbered(20, 3)).events],
    )
    await second.append(straddling)
    assert payloads_of(await drain(second)) == numbered(0, 23)


@pytest.mark.parametrize("server", ["nats", "old_nats"])
async def test_two_producers_on_one_shard_store_all_once(
    request: pytest.FixtureRequest, open_adapter: OpenAdapter, server: str
) -> None:
    """Each is re-based on the other's writes; each one's order holds."""
    url = request.getfixturevalue(server).url
    writers = [Writer(await open_adapter(url)) for _ in range(2)]

    async def write(writer: Writer, tag: str) -> None:
        for index in range(30):
            await store(writer.adapter, writer.batch(numbered(index * 20, 20, tag)))  # type: ignore[arg-type]

    await asyncio.gather(write(writers[0], "a"), write(writers[1], "b"))
    found = payloads_of(await drain(writers[0].adapter))
    assert len(found) == 1200
    for writer, tag in zip(writers, (b'"a"', b'"b"'), strict=True):
        assert [raw for raw in found if tag in raw] == payloads_of(writer.written)


@pytest.mark.parametrize("server", ["nats", "old_nats"])
async def test_two_producers_that_make_the_stream_at_once_both_write(
    request: pytest.FixtureRequest, prefix: str, server: str
) -> None:
    """Whoever comes second takes the stream that the first has made, whatever the server complains of."""
    url = request.getfixturevalue(server).url
    adapters = [JetStreamAdapter(JetStreamConfig(url=url, prefix=prefix, timeout_ms=5000)) for _ in range(2)]
    for adapter in adapters:
        await adapter.open(adapter_context())
    for shard in range(40):
        batches = [Writer(adapter, shard=shard).batch([b"1"]) for adapter in adapters]
        await asyncio.gather(*(a.append(b) for a, b in zip(adapters, batches, strict=True)))
    assert len(await adapters[0].streams()) == 40
    for adapter in adapters:
        await adapter.close()


@pytest.mark.parametrize("server", ["nats", "old_nats"])
async def test_two_chains_interleaved_by_the_server_store_one_of_them_whole(
    request: pytest.FixtureRequest, prefix: str, server: str
) -> None:
    """Where batches are chains: a chain that another one has begun before must not go on in the middle of it."""
    from net_adapter_jetstream import frames

    client = await nats_client.connect(request.getfixturevalue(server).url)
    stream = client.jetstream()
    await stream.add_stream(name=prefix, subjects=[prefix])
    one, two = (
        frames.Shipment(prefix, [b"%d" % n for n in range(8)], f"{tag}:0:0:", list(range(8)), 0, None, "")
        for tag in ("one", "two")
    )
    order = [*((one, n) for n in range(3)), *((two, n) for n in range(8)), *((one, n) for n in range(3, 8))]
    for shipment, place in order:
        with contextlib.suppress(APIError):  # what the server refuses is what this is about
            await stream.publish(prefix, shipment.bodies[place], headers=frames.headers(shipment, place))
    info = await stream.stream_info(prefix)
    stored = [await stream.get_msg(prefix, seq) for seq in range(1, info.state.last_seq + 1)]
    assert [message.headers["Nats-Msg-Id"] for message in stored] == [f"one:0:0:{n}" for n in range(8)]
    await client.close()


async def test_server_that_ignores_batches_is_found_out(
    old_nats: NatsServer, open_adapter: OpenAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that claims batches and stores one by one: the count in its reply gives it away."""
    from net_adapter_jetstream import streams

    monkeypatch.setattr(streams.Streams, "batches", property(lambda self: True))
    honest = streams.Streams.ensure

    async def ensure(self: Any, shard: int) -> Any:
        info = await honest(self, shard)
        info.config["allow_atomic"] = True
        return info

    monkeypatch.setattr(streams.Streams, "ensure", ensure)
    monkeypatch.setattr(streams.Streams, "_changes", lambda self, shard, found: {})
    adapter = await open_adapter(old_nats.url)
    writer = Writer(adapter)
    await writer.write(numbered(0, 20))
    await writer.write(numbered(20, 20))
    assert payloads_of(await drain(adapter)) == payloads_of(writer.written)
    assert "without atomic batches" in (await adapter.health()).reason


async def test_close_under_a_paused_server_is_bounded(
    own_nats: NatsServer, open_adapter: OpenAdapter
) -> None:
    """Closing waits for the time-out at most, and calls under way end with it."""
    adapter = await open_adapter(own_nats.url, timeout_ms=500)
    writer = Writer(adapter)
    await writer.write(numbered(0, 5))
    own_nats.pause()
    task = asyncio.create_task(adapter.append(writer.batch(numbered(5, 900))))
    await asyncio.sleep(0)
    began = time.monotonic()
    await adapter.close()
    assert time.monotonic() - began < 2.5
    own_nats.resume()
    with pytest.raises((TransientAdapterError, AdapterClosedError)):
        await task


async def test_unread_data_is_bounded(own_nats: NatsServer, open_adapter: OpenAdapter) -> None:
    """A server that does not read is not sent more and more: appends fail, memory does not grow."""
    adapter = await open_adapter(own_nats.url, timeout_ms=100)
    writers = [Writer(adapter, shard=shard) for shard in range(4)]
    for writer in writers:
        await writer.write(numbered(0, 1))
    batches = [writer.batch([b"x" * 900_000] * 8) for writer in writers]
    own_nats.pause()
    for _ in range(8):
        results = await asyncio.gather(*(adapter.append(b) for b in batches), return_exceptions=True)
        assert all(isinstance(result, TransientAdapterError) for result in results)
        client = adapter._link._client
        assert client is None or client.pending_data_size < 100 << 20
    own_nats.resume()
    for batch in batches:
        await store(adapter, batch)
    for writer in writers:
        assert payloads_of(await drain(adapter, writer.shard, limit=5)) == payloads_of(writer.written)


async def test_open_against_nothing_fails_soon_and_leaves_nothing() -> None:
    """The message names host and port, not the password; no task stays."""
    url = "nats://me:s3cret@127.0.0.1:1,nats://127.0.0.1:2"
    adapter = JetStreamAdapter(JetStreamConfig(url=url, timeout_ms=1000))
    before = asyncio.all_tasks()
    began = time.monotonic()
    with pytest.raises(TransientAdapterError, match=r"127\.0\.0\.1:[12]") as raised:
        await adapter.open(adapter_context())
    assert time.monotonic() - began < 1.5
    assert "s3cret" not in str(raised.value)
    assert asyncio.all_tasks() == before
    await adapter.close()


async def test_open_against_silence_fails_within_the_timeout() -> None:
    """Something accepts the connection and says nothing."""
    accepted: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: accepted.append(writer), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    adapter = JetStreamAdapter(JetStreamConfig(url=f"nats://127.0.0.1:{port}", timeout_ms=300))
    before = asyncio.all_tasks()
    began = time.monotonic()
    with pytest.raises(TransientAdapterError, match=str(port)):
        await adapter.open(adapter_context())
    assert time.monotonic() - began < 1.0
    assert asyncio.all_tasks() == before
    assert accepted
    for writer in accepted:
        writer.close()
    server.close()


async def test_server_set_back_is_noticed_and_gone_on_with(
    own_nats: NatsServer, open_adapter: OpenAdapter, until: Until
) -> None:
    """Acknowledged events are gone (a restored backup): counted, a gap to readers, and writing goes on."""
    adapter = await open_adapter(own_nats.url)
    writer = Writer(adapter)
    await writer.write(numbered(0, 10))
    own_nats.stop()
    files, backup = own_nats.folder / "jetstream", own_nats.folder / "backup"
    await asyncio.to_thread(shutil.copytree, files, backup)
    await asyncio.to_thread(own_nats.start)
    lost = writer.batch(numbered(10, 7))
    await store(adapter, lost)
    position = (await drain(adapter)).position
    own_nats.stop()
    await asyncio.to_thread(shutil.rmtree, files)
    await asyncio.to_thread(shutil.copytree, backup, files)
    await asyncio.to_thread(own_nats.start)
    await until(lambda: bool(adapter.stats()["connected"]))
    page = await adapter.read(Stream(0), position, 10)
    assert page.gap is not None
    assert (page.gap.missed, page.events, page.has_more) == (None, [], False)
    await store(adapter, writer.batch(numbered(17, 3)))
    assert adapter.stats()["rolled_back"] == 7
    assert payloads_of(await drain(adapter, after=page.position)) == numbered(17, 3)
    assert payloads_of(await drain(adapter)) == [*numbered(0, 10), *numbered(17, 3)]


async def test_silent_server_does_not_hide_the_next(nats: NatsServer, open_adapter: OpenAdapter) -> None:
    """Of two addresses one accepts and says nothing: the other is reached within the time-out."""
    accepted: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: accepted.append(writer), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    for _ in range(4):  # in whichever order they are tried
        adapter = await open_adapter([f"nats://127.0.0.1:{port}", nats.url], timeout_ms=1000)
        assert adapter.stats()["connected"]
    for writer in accepted:
        writer.close()
    server.close()


async def test_close_lets_an_append_under_way_end(nats: NatsServer, open_adapter: OpenAdapter) -> None:
    """What was sent is acknowledged before the connection goes."""
    adapter = await open_adapter(nats.url)
    writer = Writer(adapter)
    await writer.write(numbered(0, 1))
    task = asyncio.create_task(adapter.append(writer.batch(numbered(1, 900))))
    for _ in range(3):
        await asyncio.sleep(0)
    await adapter.close()
    await task
    assert len(await drain(await open_adapter(nats.url))) == 901


async def test_idle_wait_sends_next_to_nothing(proxy: FaultyProxy, open_adapter: OpenAdapter) -> None:
    """Waiting at the tail of a busy-looking stream neither polls nor carries its traffic."""
    adapter = await open_adapter(through(proxy))
    writer = Writer(adapter)
    for _ in range(2):
        await writer.write(numbered(len(writer.written), 1000))
    _, tail = await adapter.bounds(Stream(0))
    before = proxy.bytes_to_server + proxy.bytes_to_client
    await adapter.wait({Stream(0): tail}, 1.0)
    assert proxy.bytes_to_server + proxy.bytes_to_client - before < 12_000


async def test_reads_during_a_cut_fail_or_are_whole(
    proxy: FaultyProxy, open_adapter: OpenAdapter, until: Until
) -> None:
    """A read whose connection goes is an error, never the end of the stream."""
    adapter = await open_adapter(through(proxy))
    writer = Writer(adapter)
    await writer.write(numbered(0, 1000))
    await drain(adapter)
    for _ in range(10):
        read = asyncio.create_task(adapter.read(Stream(0), None, 1000))
        await proxy.reached_server(proxy.bytes_to_server + 1)
        proxy.cut()
        try:
            page = await read
        except TransientAdapterError:
            pass
        else:
            assert len(page.events) == 1000
        await until(lambda: bool(adapter.stats()["connected"]))
