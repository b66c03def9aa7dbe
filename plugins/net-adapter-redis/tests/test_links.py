"""A connection: when callers go on, and how much the server reads at a time."""

from __future__ import annotations

import asyncio
import contextvars
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from net_adapter_redis import RedisAdapter, transaction
from net_adapter_redis.links import Link, _Answer

from netcore.testing.contract import Writer, drain
from netcore.testing.servers import RedisServer

pytestmark = pytest.mark.anyio
Opened = Callable[..., Awaitable[RedisAdapter]]
PAYLOADS = [b"%01000d" % index for index in range(500)]


async def test_answer_that_arrives_runs_its_waiter_at_once_in_its_own_context() -> None:
    """Whatever stands behind the arrival in the same callback comes after it."""
    name = contextvars.ContextVar("name", default="the loop's")
    answer, seen = _Answer(), []

    async def wait() -> None:
        name.set("the waiter's")
        async with asyncio.timeout(60):
            seen.append(*await answer)
        seen.append(name.get())

    def arrive() -> None:
        answer.arrive(["reply"])
        seen.append(name.get())

    waiter = asyncio.ensure_future(wait())
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_soon(arrive)
    await waiter
    assert seen == ["reply", "the waiter's", "the loop's"]


async def test_answer_that_arrives_in_a_task_wakes_its_waiter_as_usual() -> None:
    """No task may run within another's step."""
    answer = _Answer()
    waiter = asyncio.ensure_future(asyncio.wait_for(answer, 60))
    await asyncio.sleep(0)
    answer.arrive([1])
    assert not waiter.done()
    assert await waiter == [1]


async def test_answer_nobody_waits_for_yet_is_kept() -> None:
    """Who comes later has it at once."""
    answer = _Answer()
    asyncio.get_running_loop().call_soon(answer.arrive, [1])
    await asyncio.sleep(0)
    assert answer.result() == [1]
    assert await answer == [1]


async def test_answer_whose_waiter_went_away_runs_nobody() -> None:
    """And wakes whoever else waits."""
    answer, seen = _Answer(), []
    other = asyncio.ensure_future(asyncio.wait([answer]))
    await asyncio.sleep(0)
    answer.add_done_callback(seen.append)
    answer.remove_done_callback(seen.append)
    asyncio.get_running_loop().call_soon(answer.arrive, [1])
    assert await other == ({answer}, set())
    assert seen == []


async def test_answer_that_fails_or_is_cancelled_wakes_its_waiter() -> None:
    """Both ways out that are not an arrival."""
    failing, cancelled = _Answer(), _Answer()
    waiters = [asyncio.ensure_future(asyncio.wait_for(answer, 60)) for answer in (failing, cancelled)]
    await asyncio.sleep(0)
    failing.set_exception(ConnectionError("lost"))
    waiters[1].cancel()
    results: list[Any] = await asyncio.gather(*waiters, return_exceptions=True)
    assert [type(result) for result in results] == [ConnectionError, asyncio.CancelledError]
    assert cancelled.cancelled()


def writer_link(adapter: RedisAdapter) -> Link:
    """Return the adapter's connection for writes."""
    return adapter._session.network.writer(b"net:shard:0")


def room_bytes(server: RedisServer) -> int:
    """Return how much the server could read at a time, at most, on any of its connections."""
    clients = server.call("CLIENT", "LIST").decode()
    return max(
        int(held) + int(free) for held, free in re.findall(r" qbuf=([0-9]+) qbuf-free=([0-9]+) ", clients)
    )


def asked(server: RedisServer) -> int:
    """Return how often the server was asked for a script of a very long name, or any other."""
    stats = server.call("INFO", "commandstats").decode()
    found = re.search(r"^cmdstat_script\|exists:calls=([0-9]+)", stats, re.MULTILINE)
    return int(found[1]) if found else 0


async def test_server_to_which_much_is_sent_reads_batches_whole(server: RedisServer, opened: Opened) -> None:
    """Its room for a connection becomes larger than 16 KiB, once; again on the next connection."""
    adapter = await opened()
    writer = Writer(adapter)
    before = asked(server)
    await writer.write(PAYLOADS)
    await writer.write(PAYLOADS)
    assert asked(server) == before
    for _ in range(5):
        await writer.write(PAYLOADS)
    assert asked(server) == before + 1
    assert room_bytes(server) >= 64 << 10
    writer_link(adapter).drop()
    for _ in range(6):
        await writer.write(PAYLOADS)
    assert asked(server) == before + 2
    assert await drain_raw(adapter) == PAYLOADS * 13


@pytest.mark.parametrize(("seconds", "times"), [(3600.0, 1), (0.0, 3)])
async def test_server_that_may_have_taken_its_room_back_is_asked_again_after_a_while(
    server: RedisServer, opened: Opened, monkeypatch: pytest.MonkeyPatch, seconds: float, times: int
) -> None:
    """And once more has been sent, so that it never adds much to what is sent."""
    monkeypatch.setattr(transaction, "_WIDEN_S", seconds)
    adapter = await opened()
    writer = Writer(adapter)
    before = asked(server)
    for _ in range(14):
        await writer.write(PAYLOADS)
    assert asked(server) == before + times


async def test_account_that_may_not_ask_for_scripts_is_refused_once(
    server: RedisServer, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its batches are stored all the same."""
    monkeypatch.setattr(transaction, "_WIDEN_S", 0.0)
    server.call("ACL", "SETUSER", "some", "reset", "on", ">pw", "~*", "&*", "+@all", "-script|exists")
    try:
        adapter = await opened(server.url.replace("redis://", "redis://some:pw@"))
        writer = Writer(adapter)
        for _ in range(24):
            await writer.write(PAYLOADS)
        log = server.call("ACL", "LOG")
        assert [entry[entry.index(b"object") + 1] for entry in log] == [b"script|exists"]
        assert log[0][log[0].index(b"count") + 1] == 1
        assert await drain_raw(adapter) == PAYLOADS * 24
    finally:
        server.call("ACL", "LOG", "RESET")
        server.call("ACL", "DELUSER", "some")


async def drain_raw(adapter: RedisAdapter) -> list[bytes]:
    """Return what the stream holds."""
    return [event.raw for event in await drain(adapter)]
