"""The faulty TCP proxy: forwards faithfully, and each fault does what its name says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from netcore.testing.proxy import FaultyProxy

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    """The proxy is for asyncio."""
    return "asyncio"


class Echo:
    """Answers each line with the same line; remembers what it got."""

    def __init__(self) -> None:
        self.received = b""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                self.received += line
                writer.write(line)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()


@asynccontextmanager
async def echo_behind_proxy() -> AsyncIterator[tuple[Echo, FaultyProxy]]:
    echo = Echo()
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0, limit=1 << 22)
    async with server:
        host, port = server.sockets[0].getsockname()[:2]
        async with FaultyProxy(host, port) as proxy:
            yield echo, proxy


class Client:
    """A connection through the proxy; every wait has a deadline."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, line: bytes) -> bytes:
        self.writer.write(line)
        return await asyncio.wait_for(self.reader.readline(), 5)

    async def ended(self) -> bool:
        try:
            return await asyncio.wait_for(self.reader.read(), 5) == b""
        except ConnectionResetError:
            return True


@asynccontextmanager
async def client_of(proxy: FaultyProxy) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port, limit=1 << 22)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def test_proxy_without_faults_forwards_every_byte() -> None:
    """A megabyte goes there and back, counted."""
    async with echo_behind_proxy() as (_, proxy), client_of(proxy) as client:
        line = b"x" * 1_000_000 + b"\n"
        assert await client.ask(line) == line
        assert proxy.bytes_to_server == proxy.bytes_to_client == len(line)
        assert (proxy.connections, proxy.open_connections) == (1, 1)


async def test_proxy_cut_resets_and_serves_new_connections() -> None:
    """`cut` ends what is open; who connects again is served."""
    async with echo_behind_proxy() as (_, proxy):
        async with client_of(proxy) as client:
            await client.ask(b"a\n")
            proxy.cut()
            with pytest.raises(ConnectionResetError):
                await client.reader.read()
        async with client_of(proxy) as client:
            assert await client.ask(b"b\n") == b"b\n"
        assert proxy.cuts == 1


async def test_proxy_refusing_resets_new_connections_only() -> None:
    """`refuse` lets open connections live."""
    async with echo_behind_proxy() as (_, proxy), client_of(proxy) as old:
        await old.ask(b"a\n")
        proxy.refuse()
        async with client_of(proxy) as new:
            assert await new.ended()
        assert await old.ask(b"b\n") == b"b\n"
        proxy.refuse(False)
        async with client_of(proxy) as new:
            assert await new.ask(b"c\n") == b"c\n"


async def test_proxy_stalled_to_client_is_half_open() -> None:
    """The request arrives, its reply is held until `resume`, and nothing is lost."""
    async with echo_behind_proxy() as (echo, proxy), client_of(proxy) as client:
        proxy.stall("to_client")
        asking = asyncio.create_task(client.ask(b"a\n"))
        await proxy.reached_server(2)
        assert not asking.done()
        proxy.resume()
        assert await asking == b"a\n"
        assert echo.received == b"a\n"


async def test_proxy_stalled_both_ways_can_be_cut_and_closed() -> None:
    """A cut reaches connections that wait at a stall."""
    async with echo_behind_proxy() as (echo, proxy), client_of(proxy) as client:
        await client.ask(b"a\n")
        proxy.stall()
        client.writer.write(b"b\n")
        proxy.cut()
        assert await client.ended()
        assert echo.received == b"a\n"


async def test_proxy_swallowing_loses_exactly_that_many_replies() -> None:
    """The first reply is lost, the second arrives, the connection stays."""
    async with echo_behind_proxy() as (echo, proxy), client_of(proxy) as client:
        proxy.swallow_replies(1)
        client.writer.write(b"a\n")
        await proxy.swallowed(1)
        assert await client.ask(b"b\n") == b"b\n"
        assert echo.received == b"a\nb\n"
        assert proxy.bytes_swallowed == 2


async def test_proxy_cutting_before_reply_has_delivered_the_request() -> None:
    """The server did what it was asked; the client sees a reset."""
    async with echo_behind_proxy() as (echo, proxy), client_of(proxy) as client:
        proxy.cut_before_reply()
        client.writer.write(b"a\n")
        assert await client.ended()
        assert echo.received == b"a\n"
        assert proxy.bytes_to_client == 0


async def test_proxy_tearing_a_request_delivers_its_beginning() -> None:
    """Exactly the given number of bytes arrives before the reset."""
    async with echo_behind_proxy() as (_, proxy), client_of(proxy) as client:
        proxy.cut_request_after(3)
        client.writer.write(b"abcdef\n")
        assert await client.ended()
        assert proxy.bytes_to_server == 3


async def test_proxy_delay_makes_replies_late() -> None:
    """Each direction adds the delay."""
    async with echo_behind_proxy() as (_, proxy), client_of(proxy) as client:
        proxy.delay = 0.02
        started = asyncio.get_running_loop().time()
        assert await client.ask(b"a\n") == b"a\n"
        assert asyncio.get_running_loop().time() - started >= 0.04


async def test_proxy_with_dead_server_ends_the_connection() -> None:
    """Nothing answers behind it: the client sees the end at once."""
    async with echo_behind_proxy() as (_, proxy):
        pass
    async with FaultyProxy("127.0.0.1", proxy.port) as proxy, client_of(proxy) as client:
        assert await client.ended()


async def test_proxy_closed_can_be_started_again_on_its_port() -> None:
    """`close` is idempotent; a later `start` uses the same port."""
    async with echo_behind_proxy() as (_, proxy):
        port = proxy.port
        await proxy.close()
        await proxy.close()
        await proxy.start()
        assert proxy.port == port
        async with client_of(proxy) as client:
            assert await client.ask(b"a\n") == b"a\n"


async def test_proxy_wait_gives_up_in_time() -> None:
    """Waiting on what does not happen ends with TimeoutError."""
    async with echo_behind_proxy() as (_, proxy):
        with pytest.raises(TimeoutError):
            await proxy.connected(1, timeout=0.01)
