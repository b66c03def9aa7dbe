"""A TCP proxy on loopback whose faults a test switches on and off, for asyncio.

    async with FaultyProxy(server.host, server.port) as proxy:
        ...                       # connect to proxy.host, proxy.port
        proxy.swallow_replies(1)  # the next request arrives, its reply is lost
        await proxy.swallowed(1)

Nothing is timed but `delay`: the other faults hold until the test ends them.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from typing import Final, Literal, TypeAlias

from netcore.testing._process import LOOPBACK

__all__ = ["Direction", "FaultyProxy"]

Direction: TypeAlias = Literal["both", "to_server", "to_client"]

_CHUNK: Final = 65_536
_GRACE_S: Final = 5.0


class FaultyProxy:
    """Forwards TCP connections to a server and fails as it is told.

    Faults apply to all connections, present and later, and each can be combined with the others.
    At most 192 KiB a direction are held here: beyond that the sender feels it, as on a real
    network. Use it from one asyncio loop.

    Args:
        host: the server's address.
        port: the server's port.

    Attributes:
        host: where to connect instead, 127.0.0.1.
        port: a free port, known once it is started.
        delay: seconds by which each chunk is late, in both directions.
        connections: accepted so far.
        bytes_to_server: delivered so far.
        bytes_to_client: delivered so far.
        bytes_swallowed: thrown away so far.
    """

    def __init__(self, host: str, port: int) -> None:
        self.host = LOOPBACK
        self.port = 0
        self.delay = 0.0
        self.connections = 0
        self.bytes_to_server = 0
        self.bytes_to_client = 0
        self.bytes_swallowed = 0
        self._target = (host, port)
        self._listener: asyncio.Server | None = None
        self._links: set[_Link] = set()
        self._refusing = False
        self._gates = {"to_server": asyncio.Event(), "to_client": asyncio.Event()}
        self._tear_after: int | None = None
        self._swallow = 0
        self._swallowed = 0
        self._cut_replies = 0
        self._cuts = 0
        self._changed = asyncio.Event()
        self.resume()

    async def start(self) -> None:
        """Listen on a free port of 127.0.0.1 (on the same one, after `close`)."""
        self._listener = await asyncio.start_server(self._accept, self.host, self.port, limit=_CHUNK)
        self.port = self._listener.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Stop listening and reset all connections. Idempotent."""
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()
        self.cut()
        if tasks := [link.task for link in self._links if link.task is not None]:
            await asyncio.wait(tasks, timeout=_GRACE_S)
        if listener is not None:
            await listener.wait_closed()

    async def __aenter__(self) -> FaultyProxy:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    @property
    def open_connections(self) -> int:
        """How many connections are open now."""
        return len(self._links)

    @property
    def cuts(self) -> int:
        """How many connections were reset so far."""
        return self._cuts

    def cut(self) -> None:
        """Reset all open connections, both sides; new ones work."""
        for link in list(self._links):
            self._reset(link)

    def refuse(self, on: bool = True) -> None:
        """Reset new connections at once (open ones stay), until called with False."""
        self._refusing = on

    def stall(self, direction: Direction = "both") -> None:
        """Hold back everything in `direction`, open and later connections, until `resume`.

        Stalled in one direction only, a connection is half-open: requests arrive and replies do
        not, or the other way round. Nothing is lost by it.
        """
        for name, gate in self._gates.items():
            if direction in ("both", name):
                gate.clear()

    def resume(self) -> None:
        """End `stall`: what was held back is delivered, in order."""
        for gate in self._gates.values():
            gate.set()

    def swallow_replies(self, count: int) -> None:
        """Throw away the next `count` chunks that come from the server.

        A chunk is what one receive returned: a short reply arrives as one, if requests wait for
        their replies. The connection stays open, as if the packet never came.
        """
        self._swallow = count

    def cut_before_reply(self, count: int = 1) -> None:
        """Let requests through, and reset the connection instead of delivering its next reply.

        The server has then done what it was asked, and the client cannot know. For the next
        `count` replies.
        """
        self._cut_replies = count

    def cut_request_after(self, size: int) -> None:
        """Deliver `size` more bytes to the server, then reset that connection: a torn request."""
        self._tear_after = size

    async def swallowed(self, count: int, *, timeout: float = 10.0) -> None:
        """Wait until `count` chunks in all have been swallowed.

        Raises:
            TimeoutError: fewer were, within `timeout` seconds.
        """
        await self._until(lambda: self._swallowed >= count, timeout)

    async def reached_server(self, size: int, *, timeout: float = 10.0) -> None:
        """Wait until `size` bytes in all have been delivered to the server.

        Raises:
            TimeoutError: fewer were, within `timeout` seconds.
        """
        await self._until(lambda: self.bytes_to_server >= size, timeout)

    async def connected(self, count: int, *, timeout: float = 10.0) -> None:
        """Wait until `count` connections in all have been accepted.

        Raises:
            TimeoutError: fewer were, within `timeout` seconds.
        """
        await self._until(lambda: self.connections >= count, timeout)

    async def _until(self, done: Callable[[], bool], timeout: float) -> None:
        async with asyncio.timeout(timeout):
            while not done():
                self._changed.clear()
                await self._changed.wait()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(_Side(reader, writer))
        if self._refusing or self._listener is None:
            self._cuts += 1
            link.abort()
            return
        link.task = asyncio.get_running_loop().create_task(self._serve(link), name="netcore-proxy")
        self._links.add(link)
        link.task.add_done_callback(lambda _: self._links.discard(link))
        self.connections += 1
        self._changed.set()

    async def _serve(self, link: _Link) -> None:
        try:
            async with asyncio.timeout(_GRACE_S):
                link.server = _Side(*await asyncio.open_connection(*self._target, limit=_CHUNK))
        except OSError:  # refused, or timed out
            link.abort()
            return
        requests = asyncio.get_running_loop().create_task(self._requests(link, link.server))
        try:
            await self._replies(link, link.server)
        finally:
            requests.cancel()
            link.close()

    async def _requests(self, link: _Link, server: _Side) -> None:
        while data := await link.client.receive():
            await self._pass("to_server")
            torn = self._tear_after is not None and len(data) >= self._tear_after
            if self._tear_after is not None:
                data = data[: self._tear_after]
                self._tear_after = None if torn else self._tear_after - len(data)
            if not await server.send(data):
                return
            self.bytes_to_server += len(data)
            self._changed.set()
            if torn:
                self._reset(link)
                return
        server.end()

    async def _replies(self, link: _Link, server: _Side) -> None:
        while data := await server.receive():
            await self._pass("to_client")
            if self._swallow:
                self._swallow -= 1
                self._swallowed += 1
                self.bytes_swallowed += len(data)
                self._changed.set()
            elif self._cut_replies:
                self._cut_replies -= 1
                self._reset(link)
                return
            elif await link.client.send(data):
                self.bytes_to_client += len(data)
                self._changed.set()
            else:
                return

    async def _pass(self, direction: Literal["to_server", "to_client"]) -> None:
        if self.delay:
            await asyncio.sleep(self.delay)
        await self._gates[direction].wait()

    def _reset(self, link: _Link) -> None:
        self._cuts += 1
        link.abort()
        self._changed.set()
        # Its copiers may be waiting at a gate.
        if link.task is not None and link.task is not asyncio.current_task():
            link.task.cancel()


class _Side:
    """One end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        # So that `drain` waits for the last byte: nothing piles up here.
        writer.transport.set_write_buffer_limits(high=0)

    async def receive(self) -> bytes:
        """Return the next chunk; empty at the end, however it came."""
        try:
            return await self._reader.read(_CHUNK)
        except OSError:
            return b""

    async def send(self, data: bytes) -> bool:
        """Send it all; False if the other side is gone."""
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError:
            return False
        return not self._writer.is_closing()

    def end(self) -> None:
        """Say that nothing follows; the other direction stays open."""
        with contextlib.suppress(OSError):
            self._writer.write_eof()

    def close(self) -> None:
        """Close it; what was sent has been delivered."""
        self._writer.close()

    def abort(self) -> None:
        """Reset it: the other side sees ECONNRESET."""
        transport = self._writer.transport
        if (sock := transport.get_extra_info("socket")) is not None and not transport.is_closing():
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()


class _Link:
    """A client's connection and the one to the server that carries it on."""

    def __init__(self, client: _Side) -> None:
        self.client = client
        self.server: _Side | None = None
        self.task: asyncio.Task[None] | None = None

    def close(self) -> None:
        """Close both sides."""
        self.client.close()
        if self.server is not None:
            self.server.close()

    def abort(self) -> None:
        """Reset both sides."""
        self.client.abort()
        if self.server is not None:
            self.server.abort()
