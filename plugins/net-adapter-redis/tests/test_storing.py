"""Storing: once, whatever the network and the server do meanwhile."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable

import pytest
from net_adapter_redis import RedisAdapter, RedisConfig, transaction

from netcore.contracts.adapter import Batch, ShardPage, Stream
from netcore.errors import (
    AdapterRefusedError,
    FatalAdapterError,
    TransientAdapterError,
)
from netcore.testing.contract import Writer, adapter_context, drain
from netcore.testing.proxy import FaultyProxy
from netcore.testing.servers import RedisServer

pytestmark = pytest.mark.anyio
Opened = Callable[..., Awaitable[RedisAdapter]]


@pytest.fixture(params=["script", "transactions"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Store every batch by the script, or every one that can be in a transaction."""
    chosen: str = request.param
    monkeypatch.setattr(transaction, "_LEAST", 1 if chosen == "transactions" else 1 << 30)
    return chosen


def payloads(count: int, start: int = 0) -> list[bytes]:
    """Return `count` different payloads."""
    return [b'{"n":%d}' % index for index in range(start, start + count)]


async def until_stored(adapter: RedisAdapter, batch: Batch, *, timeout: float = 20.0) -> int:
    """Retry a batch as a dispatcher does; return the number of attempts."""
    attempts = 0
    async with asyncio.timeout(timeout):
        while True:
            attempts += 1
            try:
                await adapter.append(batch)
            except TransientAdapterError:
                await asyncio.sleep(0.01)
            else:
                return attempts


async def until_read(adapter: RedisAdapter, after: str) -> ShardPage:
    """Read one page, trying again as polls do."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await adapter.read(Stream(0), after, 100)
            except TransientAdapterError:
                await asyncio.sleep(0.01)


async def assert_stored_once(adapter: RedisAdapter, expected: list[bytes], shard: int = 0) -> None:
    """Check that the stream holds exactly these payloads, in order."""
    assert [event.raw for event in await drain(adapter, shard)] == expected


@pytest.mark.parametrize("layout", ["event", "packed"])
async def test_append_reply_lost_is_stored_once(server: RedisServer, opened: Opened, layout: str) -> None:
    """The connection is reset after the request and before the reply: the retry stores nothing twice."""
    async with FaultyProxy(server.host, server.port) as proxy:
        adapter = await opened(f"redis://{proxy.host}:{proxy.port}", layout=layout)
        writer = Writer(adapter)
        for index in range(20):
            batch = writer.batch(payloads(7, index * 7))
            if index % 2:
                proxy.cut_before_reply()
            assert await until_stored(adapter, batch) == 1 + index % 2
        assert proxy.cuts == 10
        await assert_stored_once(adapter, payloads(140))
    assert adapter.stats()["duplicates"] == 70


async def test_append_torn_request_is_stored_once(server: RedisServer, opened: Opened) -> None:
    """Half a request reaches the server: it stores nothing of it, and the retry stores all."""
    async with FaultyProxy(server.host, server.port) as proxy:
        adapter = await opened(f"redis://{proxy.host}:{proxy.port}")
        writer = Writer(adapter)
        await writer.write(payloads(5))
        proxy.cut_request_after(200)
        assert await until_stored(adapter, writer.batch(payloads(50, 5))) == 2
        await assert_stored_once(adapter, payloads(55))


async def test_append_to_frozen_server_is_stored_once(server: RedisServer, opened: Opened) -> None:
    """Attempts that timed out against a stopped process land later, after newer ones too."""
    adapter = await opened(timeout_ms=100)
    writer = Writer(adapter)
    await writer.write(payloads(5))
    batch = writer.batch(payloads(300, 5))
    server.pause()
    for _ in range(3):
        with pytest.raises(TransientAdapterError, match=rf"{server.port}: no (answer|connection) within"):
            await adapter.append(batch)
    server.resume()
    await until_stored(adapter, batch)
    await writer.write(payloads(5, 305))
    await adapter.append(batch)
    await assert_stored_once(adapter, payloads(310))


async def test_append_cancelled_midway_then_retried_is_stored_once(opened: Opened) -> None:
    """A cancelled call leaves the connection usable and its late reply is nobody else's."""
    adapter = await opened()
    writer = Writer(adapter)
    for index in range(30):
        batch = writer.batch(payloads(20, index * 20))
        task = asyncio.ensure_future(adapter.append(batch))
        for _ in range(index % 5):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await adapter.append(batch)
    await assert_stored_once(adapter, payloads(600))
    assert adapter.stats()["connects"] == 2


@pytest.mark.parametrize("layout", ["event", "packed"])
@pytest.mark.parametrize("kills", [2, pytest.param(25, marks=pytest.mark.faults)])
async def test_append_server_killed_midway_loses_and_repeats_nothing(layout: str, kills: int) -> None:
    """`kill -9` under fire with an append-only file synced always: all that was acknowledged is there."""
    with RedisServer(appendonly=True) as server:
        adapter = RedisAdapter(RedisConfig(url=server.url, layout=layout))  # type: ignore[arg-type]
        await adapter.open(adapter_context())
        try:
            writers = [Writer(adapter, shard=shard) for shard in range(3)]
            stop = asyncio.Event()

            async def fire(writer: Writer) -> None:
                while not stop.is_set():
                    await until_stored(adapter, writer.batch(payloads(40, writer.next_seq)), timeout=60)

            tasks = [asyncio.ensure_future(fire(writer)) for writer in writers]
            for _ in range(kills):
                goal = adapter.stats()["batches"] + 20
                while adapter.stats()["batches"] < goal:  # a plain counter
                    await asyncio.sleep(0.002)
                await asyncio.to_thread(server.restart)
            stop.set()
            await asyncio.gather(*tasks)
            for writer in writers:
                await assert_stored_once(adapter, payloads(writer.next_seq), writer.shard)
            assert adapter.stats()["lost_by_backend"] == adapter.stats()["resets"] == 0
        finally:
            await adapter.close()


@pytest.mark.parametrize("layout", ["event", "packed"])
async def test_append_cut_off_in_the_servers_log_is_stored_once(layout: str) -> None:
    """A crash that leaves half a batch in the append-only file: none of it is there, nor comes back later."""
    with RedisServer(appendonly=True) as server:
        adapter = RedisAdapter(RedisConfig(url=server.url, layout=layout))  # type: ignore[arg-type]
        await adapter.open(adapter_context())
        try:
            writer = Writer(adapter)
            await until_stored(adapter, writer.batch(payloads(3)))
            [log] = server.folder.glob("appendonlydir/*.incr.aof")
            whole = log.stat().st_size
            lost = writer.batch(payloads(10, 3))
            await until_stored(adapter, lost)
            server.kill()
            content = log.read_bytes()
            # In the midst of the events; where one entry holds them all, between it and its mark.
            cut = content.rindex(b'{"n":8}' if layout == "event" else b":next:")
            assert cut > whole
            log.write_bytes(content[:cut])
            server.start()
            await until_stored(adapter, lost)  # a retry: as far as its sender knows nothing was acknowledged
            await asyncio.to_thread(server.restart)
            await until_stored(adapter, writer.batch(payloads(2, 13)))
            await assert_stored_once(adapter, payloads(15))
        finally:
            await adapter.close()


@pytest.mark.parametrize("layout", ["event", "packed"])
async def test_append_straddling_batch_stores_its_tail(opened: Opened, layout: str) -> None:
    """A batch whose beginning is stored already adds only the rest; a late one adds nothing."""
    adapter = await opened(layout=layout)
    writer = Writer(adapter)
    first = await writer.write(payloads(10))
    joined = writer.batch(payloads(10, 10))
    await adapter.append(
        Batch(producer=writer.producer, shard=0, first_seq=0, events=[*first.events, *joined.events])
    )
    await adapter.append(first)
    await adapter.append(joined)
    await assert_stored_once(adapter, payloads(20))


async def test_append_after_scripts_were_flushed_loads_again(
    server: RedisServer, opened: Opened, way: str
) -> None:
    """A server that forgot the scripts gets them again, the one that stores with the batch."""
    adapter = await opened()
    writer = Writer(adapter)
    await writer.write(payloads(3))
    server.call("SCRIPT", "FLUSH")
    await writer.write(payloads(3, 3))
    await writer.write(payloads(3, 6))
    assert adapter.stats()["script_loads"] == (1 if way == "script" else 2)
    await assert_stored_once(adapter, payloads(9))


async def test_append_mark_expires_with_its_producer(server: RedisServer, opened: Opened) -> None:
    """Memory in the server is bounded: each producer's mark has the configured life, renewed by each batch."""
    adapter = await opened(dedup_ttl_s=120)
    writer = Writer(adapter, shard=2)
    await writer.write(payloads(1))
    key = f"{{net:shard:2}}:next:{writer.producer}"
    assert server.call("GET", key) == b"1"
    assert 119_000 < server.call("PTTL", key) <= 120_000
    server.call("PEXPIRE", key, 5_000)
    await writer.write(payloads(1))
    assert server.call("PTTL", key) > 119_000
    assert server.call("DBSIZE") == 4  # stream, mark, meta, registry: nothing an event or batch


async def test_append_mark_forgotten_is_no_loss(
    server: RedisServer, opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    """A mark that ran out or was evicted is counted for what it is."""
    adapter = await opened()
    writer = Writer(adapter)
    await writer.write(payloads(3))
    server.call("DEL", f"{{net:shard:0}}:next:{writer.producer}")
    await writer.write(payloads(3, 3))
    stats = adapter.stats()
    assert (stats["forgotten_marks"], stats["lost_by_backend"], stats["resets"]) == (1, 0, 0)
    assert "forgot which batches" in caplog.text


async def test_append_notices_a_flushed_server(
    server: RedisServer, opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    """FLUSHALL: counted, logged, in health, never an error; numbering goes on."""
    adapter = await opened()
    writer = Writer(adapter)
    await writer.write(payloads(30))
    server.call("FLUSHALL")
    await writer.write(payloads(3, 30))
    stats = adapter.stats()
    assert (stats["lost_by_backend"], stats["resets"]) == (30, 1)
    health = await adapter.health()
    assert health.ok
    assert "lost up to 30 stored events" in health.reason
    assert "lost up to 30 stored events" in caplog.text
    await assert_stored_once(adapter, payloads(3, 30))


async def test_append_notices_a_server_that_fell_back(opened: Opened) -> None:
    """A server that comes back without its last batches: what fell away is counted exactly, order is kept."""
    with RedisServer() as server:
        adapter = await opened(server.url)
        writer = Writer(adapter)
        await writer.write(payloads(10))
        server.call("SAVE")
        await writer.write(payloads(20, 10))
        server.restart()
        await until_stored(adapter, writer.batch(payloads(5, 30)))
        assert adapter.stats()["lost_by_backend"] == 20
        assert adapter.stats()["resets"] == 0
        await assert_stored_once(adapter, payloads(10) + payloads(5, 30))


async def test_append_after_failover_to_a_replica_goes_on(opened: Opened) -> None:
    """A replica that lacked the last batch takes over the address: the loss is counted, readers get a gap."""
    primary = RedisServer(options={"repl-diskless-sync-delay": 0})
    replica = RedisServer()
    with primary, replica:
        adapter = await opened(primary.url)
        writer = Writer(adapter)
        await writer.write(payloads(10))
        replica.call("REPLICAOF", primary.host, primary.port)
        async with asyncio.timeout(20):
            while not replica.call("EXISTS", "net:shard:0"):  # another process
                await asyncio.sleep(0.02)
        replica.call("REPLICAOF", "NO", "ONE")
        await writer.write(payloads(20, 10))
        read = await drain(adapter)
        primary.kill()
        replica.call("CONFIG", "SET", "port", primary.port)
        page = await until_read(adapter, read.position)
        assert page.events == []
        assert page.gap is not None
        assert page.gap.missed is None
        await until_stored(adapter, writer.batch(payloads(5, 30)))
        assert adapter.stats()["lost_by_backend"] == 20
        assert [event.raw for event in await drain(adapter, after=page.position)] == payloads(5, 30)
        await assert_stored_once(adapter, payloads(10) + payloads(5, 30))


async def test_append_overlaps_over_shards_on_one_connection(server: RedisServer, opened: Opened) -> None:
    """Appends of many shards are under way at once, and no connection is added for it."""
    async with FaultyProxy(server.host, server.port) as proxy:
        adapter = await opened(f"redis://{proxy.host}:{proxy.port}")
        writers = [Writer(adapter, shard=shard) for shard in range(16)]
        await writers[0].write(payloads(1))
        proxy.stall("to_client")
        before = proxy.bytes_to_server
        tasks = [asyncio.ensure_future(writer.write(payloads(10))) for writer in writers]
        await proxy.reached_server(before + 16 * 500)
        assert not any(task.done() for task in tasks)
        proxy.resume()
        await asyncio.gather(*tasks)
        assert proxy.connections == 1


@pytest.mark.parametrize("layout", ["event", "packed"])
async def test_append_payload_too_large_for_the_server_is_fatal(
    server: RedisServer, opened: Opened, layout: str
) -> None:
    """A value beyond `proto-max-bulk-len` can never be stored: the batch is poison, the next one is not."""
    server.call("CONFIG", "SET", "proto-max-bulk-len", 1 << 20)
    try:
        adapter = await opened(layout=layout)
        writer = Writer(adapter)
        with pytest.raises(FatalAdapterError, match=r"2,097,152 bytes is too large for Redis"):
            await writer.write([b"x" * (2 << 20)])
        await writer.write([b"y" * ((1 << 20) - 300)])
        await assert_stored_once(adapter, [b"y" * ((1 << 20) - 300)])
    finally:
        server.call("CONFIG", "SET", "proto-max-bulk-len", 512 << 20)


async def test_append_payload_beyond_the_limit_is_fatal_unless_stored(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the batch is stored already is asked before its content is judged."""
    adapter = await opened()
    writer = Writer(adapter)
    batch = await writer.write([b"x" * 2000])
    monkeypatch.setattr(adapter._writer, "largest", 1000)
    await adapter.append(batch)
    with pytest.raises(FatalAdapterError, match="2,000 bytes is too large"):
        await writer.write([b"y" * 2000])


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        ("net:shard:0", "net:shard:0 is a string, not a stream"),
        ("{net:shard:0}:meta", "{net:shard:0}:meta is a string, not a hash"),
        ("net:shards", "net:shards is a string, not a stream"),
    ],
)
async def test_append_wrong_type_of_key_is_refused_and_stores_nothing(
    server: RedisServer, opened: Opened, key: str, shown: str
) -> None:
    """The error names the key and the remedy; once it is moved away the same batch is stored whole."""
    adapter = await opened()
    writer = Writer(adapter)
    server.call("SET", key, "mine")
    batch = writer.batch(payloads(5))
    with pytest.raises(AdapterRefusedError) as caught:
        await adapter.append(batch)
    assert shown in str(caught.value)
    assert "move that key away" in str(caught.value)
    server.call("DEL", key)
    await adapter.append(batch)
    await assert_stored_once(adapter, payloads(5))
    assert await adapter.streams() == [Stream(0)]


async def test_append_server_out_of_memory_is_transient_and_stores_nothing(
    server: RedisServer, opened: Opened
) -> None:
    """A full server refuses the whole batch; with memory again the order is kept."""
    adapter = await opened()
    writer = Writer(adapter)
    await writer.write(payloads(5))
    batch = writer.batch(payloads(5, 5))
    server.call("CONFIG", "SET", "maxmemory", 1)
    try:
        with pytest.raises(TransientAdapterError, match="OOM"):
            await adapter.append(batch)
    finally:
        server.call("CONFIG", "SET", "maxmemory", 0)
    await adapter.append(batch)
    await assert_stored_once(adapter, payloads(10))


async def test_append_busy_server_is_transient(server: RedisServer, opened: Opened) -> None:
    """Somebody's endless script: BUSY is waited out."""
    adapter = await opened()
    writer = Writer(adapter)
    server.call("CONFIG", "SET", "busy-reply-threshold", 1)
    endless = asyncio.ensure_future(asyncio.to_thread(_run_endless, server))
    try:
        async with asyncio.timeout(10):
            while True:
                try:
                    await adapter.append(writer.batch(payloads(1)))
                except TransientAdapterError as error:
                    assert "BUSY" in str(error)  # noqa: PT017  # it is looked for in a loop
                    break
    finally:
        server.call("SCRIPT", "KILL")
        await endless
        server.call("CONFIG", "SET", "busy-reply-threshold", 5_000)
    await adapter.append(writer.batch(payloads(1)))


def _run_endless(server: RedisServer) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        server.call("EVAL", "while true do end", 0)


async def test_append_read_only_replica_is_transient(opened: Opened) -> None:
    """After a failover a client may still talk to what is a replica now."""
    primary, replica = RedisServer(), RedisServer()
    with primary, replica:
        adapter = await opened(replica.url)
        replica.call("REPLICAOF", primary.host, primary.port)
        with pytest.raises(TransientAdapterError, match=r"READONLY|LOADING|MASTERDOWN"):
            await adapter.append(Writer(adapter).batch(payloads(1)))


async def test_append_loading_server_is_transient(opened: Opened) -> None:
    """A server that still reads its data file says so: that passes."""
    with RedisServer(appendonly=True, options={"appendfsync": "no", "key-load-delay": 200}) as server:
        adapter = await opened(server.url)
        writer = Writer(adapter)
        for index in range(20):
            await writer.write(payloads(200, index * 200))
        server.kill()
        server.start(ready=False)
        batch, seen = writer.batch(payloads(3, 4_000)), set[str]()
        async with asyncio.timeout(60):
            while True:
                try:
                    await adapter.append(batch)
                    break
                except TransientAdapterError as error:
                    seen.add(str(error))
                    await asyncio.sleep(0.005)
        assert any("LOADING" in text for text in seen), seen
        await assert_stored_once(adapter, payloads(4_003))


@pytest.mark.parametrize("layout", ["event", "packed"])
async def test_append_any_bytes_come_back_identical(opened: Opened, layout: str) -> None:
    """Payloads that look like the envelope's own end, hold no JSON, or nothing at all."""
    nasty = [
        b"",
        b"}",
        b'1,"t":2',
        b'{"a":1},"t":1764000000000000000,"s":0}',
        b'","s":0}',
        b'{"r":1,"t":2,"s":3}',
        bytes(range(256)),
        b"\xff\xfe,\r\n$3\r\n",
        secrets.token_bytes(70_000),
    ]
    adapter = await opened(layout=layout)
    writer = Writer(adapter)
    await writer.write(nasty)
    await writer.write(nasty, ts=[0, 1, 10**17, 10**18, 10**19 - 1, 2**62, 5, 6, 7])
    assert [event.raw for event in await drain(adapter)] == nasty * 2


async def test_append_after_dead_letter_skips_its_number(opened: Opened) -> None:
    """A batch that starts above the expected number is stored whole."""
    adapter = await opened()
    writer = Writer(adapter)
    await writer.write(payloads(2))
    writer.next_seq += 1
    await writer.write(payloads(2, 2))
    await assert_stored_once(adapter, payloads(4))
