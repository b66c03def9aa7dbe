"""Storing in transactions: what the server's other users see of it, and what happens where it can't be done."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from net_adapter_redis import RedisAdapter, RedisConfig, transaction
from net_adapter_redis.resp import command
from redis.asyncio import Redis

from netcore.contracts.adapter import Batch, Stream
from netcore.errors import AdapterError, AdapterRefusedError, TransientAdapterError
from netcore.testing.contract import Writer, adapter_context, drain
from netcore.testing.proxy import FaultyProxy
from netcore.testing.servers import RedisServer

pytestmark = pytest.mark.anyio
Opened = Callable[..., Awaitable[RedisAdapter]]
STREAM, STAGING, META = "net:shard:0", "net:open:0", "{net:shard:0}:meta"


def payloads(count: int, start: int = 0) -> list[bytes]:
    """Return `count` different payloads."""
    return [b'{"n":%d}' % index for index in range(start, start + count)]


async def stored(adapter: RedisAdapter) -> list[bytes]:
    """Return what the stream holds."""
    return [event.raw for event in await drain(adapter)]


@pytest.fixture
def account(server: RedisServer) -> Iterator[str]:
    """Return the URL of a user named "some", who may do everything until a test takes a right away."""
    server.call("ACL", "SETUSER", "some", "reset", "on", ">pw", "~*", "&*", "+@all")
    yield server.url.replace("redis://", "redis://some:pw@")
    server.call("ACL", "DELUSER", "some")


class Calls:
    """How often the server ran a command."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server

    def of(self, name: str) -> int:
        for line in self._server.call("INFO", "commandstats").decode().splitlines():
            if line.startswith(f"cmdstat_{name}:calls="):
                return int(line.split("=")[1].split(",")[0])
        return 0


async def test_transaction_stores_larger_batches_only(server: RedisServer, opened: Opened) -> None:
    """Small ones, and the first of a stream, go by the script; afterwards nothing is left beside the stream."""
    adapter, calls = await opened(), Calls(server)
    writer = Writer(adapter)
    before = calls.of("exec")
    await writer.write(payloads(100))
    await writer.write(payloads(31, 100))
    assert calls.of("exec") == before
    await writer.write(payloads(32, 131))
    await writer.write(payloads(300, 163))
    assert calls.of("exec") == before + 2
    assert await stored(adapter) == payloads(463)
    assert server.call("EXISTS", STAGING) == 0
    assert server.call("HGET", META, "open").endswith(b"=300")
    assert server.call("GET", f"{{net:shard:0}}:next:{writer.producer}") == b"463"
    assert adapter.stats()["duplicates"] == adapter.stats()["lost_by_backend"] == 0


async def test_transaction_entries_are_those_of_the_script(
    server: RedisServer, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever reads the stream can't tell which way an entry came."""
    adapter = await opened()
    writer = Writer(adapter)
    ts = list(range(1_764_000_000_000_000_000, 1_764_000_000_000_000_040))
    await writer.write(payloads(1), ts=[1])
    await writer.write(payloads(40), ts=ts)
    monkeypatch.setattr(adapter._writer._transactions, "_least", 1 << 30)
    await writer.write(payloads(40), ts=ts)
    entries = [fields for _, fields in server.call("XRANGE", STREAM, "-", "+")[1:]]
    assert [fields[:2] for fields in entries[:40]] == [fields[:2] for fields in entries[40:]]
    source = b"%b:0:" % writer.producer.encode()
    assert [fields[2:] for fields in entries] == [
        [b"dedup_id", b"%b%d:%d" % (source, first, index)] for first in (1, 41) for index in range(40)
    ]


async def test_transaction_of_a_stored_batch_stores_nothing(server: RedisServer, opened: Opened) -> None:
    """Refused batches, whole or in part, leave no stream of their own behind."""
    adapter = await opened()
    writer = Writer(adapter)
    await writer.write(payloads(1))
    batch = await writer.write(payloads(50, 1))
    await writer.write(payloads(50, 51))
    await adapter.append(batch)
    assert await stored(adapter) == payloads(101)
    assert adapter.stats()["duplicates"] == 50
    assert server.call("KEYS", "*open*") == []


async def test_transaction_is_never_seen_half_done(server: RedisServer, opened: Opened) -> None:
    """Another client finds the stream at every moment, and whole batches in it."""
    adapter = await opened()
    writer = Writer(adapter)
    await writer.write(payloads(64))
    lengths: list[int] = []
    done = asyncio.Event()

    async def look() -> None:
        async with Redis.from_url(server.url) as other:
            while not done.is_set():
                lengths.append(await other.xlen(STREAM))
                assert not await other.exists(STAGING)

    looking = asyncio.ensure_future(look())
    while len(lengths) < 5 or writer.next_seq < 64 * 100:
        await writer.write(payloads(64, writer.next_seq))
    done.set()
    await looking
    assert len(lengths) == len([length for length in lengths if length and length % 64 == 0])
    assert lengths == sorted(lengths)
    assert await stored(adapter) == payloads(writer.next_seq)


async def test_transaction_wakes_those_who_wait(server: RedisServer, opened: Opened) -> None:
    """Long polls, plain XREADs and consumer groups hear of it, though the stream is renamed."""
    adapter = await opened()
    writer = Writer(adapter)
    await writer.write(payloads(1))
    assert await adapter.streams() == [Stream(0)]
    page = await drain(adapter)
    async with (
        Redis.from_url(server.url, socket_timeout=None) as other,
        Redis.from_url(server.url, socket_timeout=None) as grouped,
    ):
        await grouped.xgroup_create(STREAM, "group", id="$")
        calls = Calls(server)
        waiting = asyncio.ensure_future(adapter.wait({Stream(0): page.position}, 20))
        reading = asyncio.ensure_future(other.xread({STREAM: "$"}, block=20_000))
        group = asyncio.ensure_future(grouped.xreadgroup("group", "one", {STREAM: ">"}, block=20_000))
        async with asyncio.timeout(10):
            while b"blocked_clients:3" not in server.call("INFO", "clients"):  # another process
                await asyncio.sleep(0.01)
        before = calls.of("exec")
        await writer.write(payloads(50, 1))
        assert calls.of("exec") == before + 1
        async with asyncio.timeout(10):
            await waiting
            for reply in (await reading, await group):
                [(name, entries)] = _pairs(reply)
                assert name == STREAM.encode()
                assert len(entries) == 50


def _pairs(reply: Any) -> list[tuple[bytes, list[Any]]]:
    """Return (stream, entries) of either shape that redis-py gives."""
    if isinstance(reply, dict):
        return [(name, entries[0]) for name, entries in reply.items()]
    return [(name, entries) for name, entries in reply]


async def test_transaction_trims_and_gaps_stay_exact(opened: Opened) -> None:
    """Retention is applied, and what a slow reader missed is counted, as behind the script."""
    adapter = await opened(max_events=200)
    writer = Writer(adapter)
    await writer.write(payloads(40))
    first = await adapter.read(Stream(0), None, 1)
    for _ in range(20):
        await writer.write(payloads(40, writer.next_seq))
    rest = await adapter.read(Stream(0), first.position, 1000)
    assert rest.gap is not None
    assert rest.gap.missed == 839 - len(rest.events)
    assert 200 <= len(rest.events) <= 400
    assert [event.raw for event in rest.events] == payloads(840)[-len(rest.events) :]


async def test_transaction_after_scripts_were_flushed_leaves_nothing_behind(
    server: RedisServer, opened: Opened
) -> None:
    """Without the script the XADDs make a stream of their own: it is removed, the batch is stored once."""
    adapter = await opened()
    writer = Writer(adapter)
    await writer.write(payloads(1))
    server.call("SCRIPT", "FLUSH")
    await writer.write(payloads(50, 1))
    assert server.call("KEYS", "*open*") == []
    await writer.write(payloads(50, 51))
    assert await stored(adapter) == payloads(101)
    assert adapter.stats()["duplicates"] == 0


@pytest.mark.parametrize("right", ["-rename", "-client", "-hget", "-multi", "-exec", "-del -rename"])
async def test_transaction_without_a_right_leaves_it_to_the_script(
    server: RedisServer, opened: Opened, account: str, right: str
) -> None:
    """An account that may not do it stores all the same, each batch once, and soon tries no more."""
    adapter = await opened(account)
    writer = Writer(adapter)
    await writer.write(payloads(1))
    server.call("ACL", "SETUSER", "some", *right.split())
    for _ in range(6):
        await writer.write(payloads(40, writer.next_seq))
    # Not being silenced is no reason not to store: it only takes longer.
    assert adapter._writer._transactions.suit(writer.batch(payloads(40))) == (right == "-client")
    server.call("ACL", "SETUSER", "some", "+@all")
    assert await stored(adapter) == payloads(241)
    assert adapter.stats()["connection_errors"] == 0
    assert server.call("EXISTS", STREAM) == 1


async def test_transaction_with_rights_to_some_keys_only_never_loses_the_stream(
    server: RedisServer, opened: Opened
) -> None:
    """Whoever may write the staging key but not read it could rename to it and not back."""
    server.call("ACL", "SETUSER", "some", "reset", "on", ">pw", "%W~net:open:0", "+@all")
    server.call("ACL", "SETUSER", "some", "~net:shard*", "~{net:shard:0}:next:*", "~{net:shard:0}:meta")
    try:
        adapter = await opened(server.url.replace("redis://", "redis://some:pw@"))
        writer = Writer(adapter)
        for _ in range(4):
            await writer.write(payloads(40, writer.next_seq))
        assert server.call("XLEN", STREAM) == 160
    finally:
        server.call("ACL", "DELUSER", "some")


@pytest.mark.parametrize("kind", ["string", "stream"])
async def test_transaction_with_a_foreign_key_in_its_place_stores_once(
    server: RedisServer, opened: Opened, kind: str
) -> None:
    """Somebody's string is left alone; a stream by that name is a leftover."""
    adapter = await opened()
    writer = Writer(adapter)
    await writer.write(payloads(1))
    if kind == "string":
        server.call("SET", STAGING, "mine")
    else:
        server.call("XADD", STAGING, "*", "a", "b")
    for _ in range(3):
        await writer.write(payloads(40, writer.next_seq))
    assert await stored(adapter) == payloads(121)
    assert server.call("EXISTS", STAGING) == (1 if kind == "string" else 0)


async def test_transaction_finds_a_stream_that_was_not_renamed_back(
    server: RedisServer, opened: Opened
) -> None:
    """Nothing is known that leaves it so; if it is, the next batch's transaction puts it right."""
    adapter = await opened()
    writer = Writer(adapter)
    await writer.write(payloads(50))
    await writer.write(payloads(50, 50))
    server.call("HSET", META, "open", "0123abcd:100:1764000000000")
    server.call("RENAME", STREAM, STAGING)
    await writer.write(payloads(50, 100))
    assert await stored(adapter) == payloads(150)
    assert adapter.stats()["lost_by_backend"] == 0


async def test_transaction_that_fills_the_last_ids_advances_as_far_as_it_stored(
    server: RedisServer, opened: Opened
) -> None:
    """XADDs that fail inside a transaction do not undo those before: the mark says how many there were."""
    adapter = await opened()
    writer = Writer(adapter)
    await writer.write(payloads(1))
    last = 2**64 - 1
    server.call("XSETID", STREAM, f"{last}-{last - 5}")
    batch = writer.batch(payloads(50, 1))
    for _ in range(2):
        with pytest.raises((TransientAdapterError, AdapterRefusedError), match="exhausted"):
            await adapter.append(batch)
    assert server.call("XLEN", STREAM) == 6
    assert server.call("GET", f"{{net:shard:0}}:next:{writer.producer}") == b"6"


async def test_transaction_whose_reply_is_lost_is_recognised(server: RedisServer, opened: Opened) -> None:
    """It was carried out, nobody heard: the retry is a duplicate, also while others are on their way."""
    async with FaultyProxy(server.host, server.port) as proxy:
        adapter = await opened(f"redis://{proxy.host}:{proxy.port}")
        writers = [Writer(adapter, shard=shard) for shard in range(4)]
        for writer in writers:
            await writer.write(payloads(40))
        proxy.cut_before_reply()
        batches = [writer.batch(payloads(40, 40)) for writer in writers]
        results = await asyncio.gather(*(adapter.append(each) for each in batches), return_exceptions=True)
        assert any(isinstance(result, TransientAdapterError) for result in results)
        for batch in batches:
            await adapter.append(batch)
        for shard in range(4):
            assert [event.raw for event in await drain(adapter, shard)] == payloads(80)


async def until_stored(adapter: RedisAdapter, batch: Batch) -> None:
    """Append as the bus does: again until it is stored, at most for ten seconds."""
    end = time.monotonic() + 10
    while True:
        try:
            await adapter.append(batch)
        except TransientAdapterError:
            assert time.monotonic() < end
        else:
            return


async def test_transaction_cut_off_in_an_unrepaired_log_costs_no_older_event(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Redis 7.0 replays the beginning of a cut-off transaction at the second start: what stood before stays."""
    with RedisServer(appendonly=True) as server:
        monkeypatch.setattr(server, "_repair", lambda: None)
        adapter = RedisAdapter(RedisConfig(url=server.url))
        await adapter.open(adapter_context())
        try:
            writer = Writer(adapter)
            await writer.write(payloads(1000))
            [log] = server.folder.glob("appendonlydir/*.incr.aof")
            lost = await writer.write(payloads(50, 1000))
            server.kill()
            content = log.read_bytes()
            log.write_bytes(content[: content.rindex(b'{"n":1020}')])
            server.start()
            await until_stored(adapter, lost)
            await writer.write(payloads(50, 1050))
            server.kill()
            server.start()
            await until_stored(adapter, writer.batch(payloads(50, 1100)))
            assert set(payloads(1000)) <= set(await stored(adapter))
        finally:
            await adapter.close()


def skip_where_logs_are_cut_off(server: RedisServer) -> None:
    """Skip with a Valkey that never replays half a transaction: a log makes no difference to it."""
    found = re.search(rb"^valkey_version:(\d+)\.(\d+)", server.call("INFO", "server"), re.MULTILINE)
    if found is not None and (int(found[1]), int(found[2])) >= (9, 1):
        pytest.skip("this server replays no half transaction")


async def test_transaction_while_a_log_is_kept_is_left_to_the_script() -> None:
    """Switching the append-only file on under a running adapter ends them with the next batch, off begins them."""
    with RedisServer() as server:
        skip_where_logs_are_cut_off(server)
        calls = Calls(server)
        adapter = RedisAdapter(RedisConfig(url=server.url))
        await adapter.open(adapter_context())
        try:
            writer = Writer(adapter)
            await writer.write(payloads(1))
            await writer.write(payloads(40, 1))
            assert (calls.of("rename"), calls.of("exec")) == (2, 1)
            server.call("CONFIG", "SET", "appendonly", "yes")
            for _ in range(4):
                await writer.write(payloads(40, writer.next_seq))
            assert (calls.of("rename"), calls.of("exec")) == (2, 2)
            assert server.call("KEYS", "*open*") == []
            server.call("CONFIG", "SET", "appendonly", "no")
            server.call("CLIENT", "KILL", "TYPE", "normal")
            await until_stored(adapter, batch := writer.batch(payloads(40, writer.next_seq)))
            await writer.write(payloads(40, batch.first_seq + 40))
            assert calls.of("rename") > 2
            assert await stored(adapter) == payloads(281)
            assert adapter.stats()["lost_by_backend"] == 0
        finally:
            await adapter.close()


async def test_transaction_is_looked_into_again_now_and_then(
    server: RedisServer, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the server loads a file that was cut off is asked anew, without a reconnect."""
    skip_where_logs_are_cut_off(server)
    monkeypatch.setattr(transaction, "_LEARN_S", 0.0)
    adapter, calls = await opened(), Calls(server)
    writer = Writer(adapter)
    await writer.write(payloads(1))
    before = calls.of("exec")
    server.call("CONFIG", "SET", "aof-load-truncated", "yes")
    try:
        await writer.write(payloads(40, 1))
        assert calls.of("exec") == before
    finally:
        server.call("CONFIG", "SET", "aof-load-truncated", "no")
    await writer.write(payloads(40, 41))
    assert calls.of("exec") == before + 1
    assert await stored(adapter) == payloads(81)


@pytest.mark.parametrize("which", ["first", "all"])
async def test_transaction_events_ahead_of_the_clock_are_found_by_seek(opened: Opened, which: str) -> None:
    """What the server notes of timestamps ahead of its clock covers a batch's first entry (Redis 7.0)."""
    adapter = await opened()
    writer = Writer(adapter)
    await writer.write(payloads(1), ts=[time.time_ns()])
    now = time.time_ns()
    far = now + 3_600 * 10**9
    ts = [far] * 4096 if which == "all" else [far, *[now] * 4095]
    await writer.write([b'{"n":%d,"x":"%b"}' % (n, b"x" * 900) for n in range(4096)], ts=ts)
    page = await adapter.read(Stream(0), await adapter.seek(Stream(0), far), 4096)
    assert sum(event.ts == far for event in page.events) == ts.count(far)


@pytest.mark.parametrize("right", ["-hmget", "-@read", "-type"])
async def test_transaction_after_a_right_came_back_has_repeated_nothing(
    server: RedisServer, opened: Opened, account: str, right: str
) -> None:
    """ "close" needs no right that "open" did not need: the stream keeps its name, the batch is stored once."""
    adapter = await opened(account)
    writer = Writer(adapter)
    await writer.write(payloads(80))
    server.call("ACL", "SETUSER", "some", right)
    batch = writer.batch(payloads(40, 80))
    for _ in range(2):
        with contextlib.suppress(AdapterError):
            await adapter.append(batch)
    assert server.call("EXISTS", STREAM) == 1
    server.call("ACL", "SETUSER", "some", "+@all")
    await adapter.append(batch)
    assert await stored(adapter) == payloads(120)


async def test_transaction_noted_but_never_begun_is_not_ended_later(
    server: RedisServer, opened: Opened, account: str
) -> None:
    """RENAME was denied, then allowed; the stream is deleted: the next batch is stored once."""
    adapter = await opened(account)
    writer = Writer(adapter)
    await writer.write(payloads(40))
    server.call("ACL", "SETUSER", "some", "-rename")
    await writer.write(payloads(40, 40))
    server.call("ACL", "SETUSER", "some", "+rename")
    server.call("DEL", STREAM)
    await writer.write(payloads(40, 80))
    assert await stored(adapter) == payloads(40, 80)


async def test_transaction_with_meta_of_another_type_leaves_nothing_behind(
    server: RedisServer, opened: Opened
) -> None:
    """Refused batches do not pile up under the other name."""
    adapter = await opened()
    writer = Writer(adapter)
    await writer.write(payloads(40))
    server.call("DEL", META)
    server.call("SET", META, "x")
    for _ in range(3):
        with pytest.raises(AdapterRefusedError):
            await adapter.append(writer.batch(payloads(40, 40)))
    assert server.call("EXISTS", STAGING) == 0


async def test_transaction_that_is_swallowed_is_left_to_the_script(tmp_path: Path) -> None:
    """Where EXEC is no command, nothing answers: after some time-outs batches are stored all the same."""
    with RedisServer() as server:
        line = server.command()
        server.kill()
        settings = tmp_path / "redis.conf"
        settings.write_text('rename-command EXEC ""\n')
        server.command = lambda: [line[0], str(settings), *line[1:]]
        server.start()
        adapter = RedisAdapter(RedisConfig(url=server.url, timeout_ms=200))
        await adapter.open(adapter_context())
        try:
            writer = Writer(adapter)
            await until_stored(adapter, writer.batch(payloads(1)))
            await until_stored(adapter, writer.batch(payloads(40, 1)))
            assert server.call("XLEN", STREAM) == 41
        finally:
            await adapter.close()


def test_complete_tells_when_all_replies_are_there() -> None:
    """Silenced, whatever came of it; or not silenced at all."""
    denied = RuntimeError("NOPERM")
    for whole in (
        [b"OK", b"0123abcd=40"],
        [b"OK", None],
        [b"OK", denied],
        [denied, b"OK", *[b"QUEUED"] * 42, denied, denied, b"0123abcd=40"],
    ):
        assert [transaction._complete(47, whole[:count]) for count in range(1, len(whole) + 1)] == [
            *[False] * (len(whole) - 1),
            True,
        ]


async def test_complete_counts_what_a_server_answers_that_is_not_silenced(
    server: RedisServer, opened: Opened
) -> None:
    """The number of commands beside the XADDs is what is really sent."""
    adapter = await opened()
    writer = Writer(adapter)
    await writer.write(payloads(1))
    sent: list[bytes] = []
    link = adapter._session.network.writer(STREAM.encode())  # type: ignore[union-attr]
    original = link.call

    async def listen(data: bytes, *args: Any, **kwargs: Any) -> list[Any]:
        sent.append(data)
        return await original(data, *args, **kwargs)

    link.call = listen  # type: ignore[method-assign]
    await writer.write(payloads(40, 1))
    [data] = sent
    assert data.startswith(command("CLIENT", "REPLY", "OFF"))
    assert data.count(b"\r\n$4\r\nXADD\r\n") == 40
    heads = [line for line in data.split(b"\r\n") if line[:1] == b"*" and line[1:].isdigit()]
    assert len(heads) == 40 + transaction._BESIDE
