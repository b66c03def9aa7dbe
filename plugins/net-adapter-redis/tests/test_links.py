"""A connection: when callers go on, and how much the server reads at a time."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import re
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from net_adapter_redis import RedisAdapter, transaction
from net_adapter_redis.inlet import Inlet, transport_of
from net_adapter_redis.links import Link, _Answer
from net_adapter_redis.resp import command
from net_adapter_redis.session import Session

from netcore.errors import TransientAdapterError
from netcore.testing.contract import Writer, drain
from netcore.testing.servers import RedisServer

pytestmark = pytest.mark.anyio
Opened = Callable[..., Awaitable[RedisAdapter]]
PAYLOADS = [b"%01000d" % index for index in range(500)]
NEVER_ANSWERED = command("BLPOP", "nothing", 0)


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

    async def wait() -> list[Any]:
        return await answer

    waiter = asyncio.ensure_future(wait())
    await asyncio.sleep(0)
    answer.arrive([1])
    assert not waiter.done()
    await asyncio.wait([waiter], timeout=60)
    assert waiter.done()
    assert waiter.result() == [1]


async def test_answer_that_arrives_in_its_waiters_own_context_wakes_it_as_usual() -> None:
    """A loop may read there; a context cannot be entered twice."""
    answer = _Answer()

    async def wait() -> list[Any]:
        return await answer

    context = contextvars.copy_context()
    loop = asyncio.get_running_loop()
    waiter = loop.create_task(wait(), context=context)
    await asyncio.sleep(0)
    loop.call_soon(answer.arrive, [1], context=context)
    await asyncio.wait([waiter], timeout=60)
    assert waiter.done()
    assert waiter.result() == [1]


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


async def test_call_goes_on_before_the_next_reply_is_taken(opened: Opened) -> None:
    """Two replies that come in one piece: the first one's caller runs between them."""
    link = writer_link(await opened())
    await link.call(command("PING"))
    seen: list[Any] = []

    async def first() -> None:
        seen.extend(await link.call(NEVER_ANSWERED))
        seen.append("its caller")

    callers = [first(), link.call(NEVER_ANSWERED, sink=seen.append)]
    tasks = [asyncio.ensure_future(caller) for caller in callers]
    await asyncio.sleep(0)
    assert link._connection is not None
    transport = transport_of(link._connection)
    assert transport is not None
    inlet, both = transport.get_protocol(), b"$5\r\nfirst\r\n$6\r\nsecond\r\n"
    assert isinstance(inlet, Inlet)
    inlet.get_buffer(len(both))[: len(both)] = both
    asyncio.get_running_loop().call_soon(inlet.buffer_updated, len(both))
    await asyncio.gather(*tasks)
    link.drop()
    assert seen == [b"first", "its caller", b"second"]


async def test_call_that_was_given_up_keeps_no_task_alive(opened: Opened) -> None:
    """Though its place in the queue is kept until the reply comes."""
    link = writer_link(await opened())
    await link.call(command("PING"))
    waiting = asyncio.ensure_future(link.call(NEVER_ANSWERED))
    await asyncio.sleep(0)
    gone = weakref.ref(waiting)
    waiting.cancel()
    await asyncio.wait([waiting])
    del waiting
    gc.collect()
    assert gone() is None
    assert not link.idle


async def test_server_to_which_much_is_sent_reads_batches_whole(server: RedisServer, opened: Opened) -> None:
    """Its room for a connection becomes larger than 16 KiB."""
    adapter = await opened()
    writer = Writer(adapter)
    rooms = []
    for _ in range(30):
        await writer.write(PAYLOADS)
        rooms.append(room_bytes(server))  # a moment without batches, and it has taken it back
    assert max(rooms[:3]) < 64 << 10 <= max(rooms)


async def test_server_is_asked_once_a_connection(
    server: RedisServer, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not before about 2 MiB were sent over it, nor again when the server is looked into anew."""
    monkeypatch.setattr(transaction, "_WIDEN_S", 3600.0)
    monkeypatch.setattr(transaction, "_LEARN_S", 0.0)
    adapter = await opened()
    writer = Writer(adapter)
    before, counts = asked(server), []
    for _ in range(12):
        await writer.write(PAYLOADS)
        counts.append(asked(server) - before)
    assert counts[2] == 0
    assert counts[-1] == 1
    writer_link(adapter).drop()
    for _ in range(12):
        await writer.write(PAYLOADS)
    assert asked(server) - before == 2
    assert await drain_raw(adapter) == PAYLOADS * 24


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


async def test_connection_that_is_cut_at_large_arguments_is_not_cut_for_ever(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy may have limits of its own; the batches that this delays are stored by their next try."""
    monkeypatch.setattr(transaction, "_WIDEN_S", 0.0)
    adapter = await opened()
    writer, ask = Writer(adapter), Session.ask
    cuts = failed = 0

    async def cut(session: Session, link: Link, data: bytes, *args: Any, **more: Any) -> list[Any]:
        nonlocal cuts
        if data == transaction._WIDEN:
            cuts += 1
            link.drop()
            raise TransientAdapterError("the connection was cut")
        return await ask(session, link, data, *args, **more)

    monkeypatch.setattr(Session, "ask", cut)
    for _ in range(40):
        batch = writer.batch(PAYLOADS)
        try:
            await adapter.append(batch)
        except TransientAdapterError:
            failed += 1
            await adapter.append(batch)
    assert failed == cuts == transaction._TRIES
    assert await drain_raw(adapter) == PAYLOADS * 40


async def drain_raw(adapter: RedisAdapter) -> list[bytes]:
    """Return what the stream holds."""
    return [event.raw for event in await drain(adapter)]
