"""One connection to a server, on which many callers' commands are under way at once.

Commands go out in the order of the calls and replies come back in it. A caller that was cancelled
or gave up leaves its place in the queue, so its late reply is recognised and thrown away: it can
never be taken for somebody else's.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from contextvars import Context
from typing import Any, Final

from redis import exceptions as redis_errors
from redis.asyncio.connection import AbstractConnection

from net_adapter_redis.inlet import Inlet, transport_of
from netcore import AdapterClosedError

__all__ = ["Link"]

_CLOSE_S: Final = 1.0
_WRITE_LIMIT: Final = 32 << 20


class _Answer(asyncio.Future[list[Any]]):
    """A future whose waiter goes on when the answer arrives, not a turn of the loop later.

    Behind a reply there is mostly another command to be sent. In a turn of the loop there may also be
    a millisecond of somebody's ingesting, which the server would spend idle.
    """

    _waiter: tuple[Callable[[Any], object], Context | None] | None = None

    def add_done_callback(self, fn: Callable[[Any], object], /, *, context: Context | None = None) -> None:
        """Note who waits; a cancellation or an exception wakes them as usual."""
        super().add_done_callback(fn, context=context)
        self._waiter = (fn, context)

    def arrive(self, replies: list[Any]) -> None:
        """Set the result and run the waiter; to be called from a callback, where no task is running."""
        waiter, self._waiter = self._waiter, None
        if waiter is None or asyncio.current_task() is not None:
            self.set_result(replies)
            return
        go_on, context = waiter
        still_there = self.remove_done_callback(go_on)
        self.set_result(replies)
        if not still_there:
            return
        try:
            if context is None:
                go_on(self)
            else:
                context.run(go_on, self)
        except RuntimeError:  # somebody's loop reads in the waiter's own context: not entered, so not run
            self.get_loop().call_soon(go_on, self, context=context)

    def forget(self) -> None:
        """Let go of who waited; else a task that gave up would live as long as its late reply takes."""
        self._waiter = None


class _Request:
    """Replies that somebody waits for."""

    __slots__ = ("complete", "future", "replies", "sink")

    def __init__(
        self,
        complete: int | Callable[[list[Any]], bool],
        future: _Answer,
        sink: Callable[[Any], Any] | None,
    ) -> None:
        self.complete = complete
        self.replies: list[Any] = []
        self.future = future
        self.sink = sink

    def take(self, reply: Any) -> bool:
        """Take one reply; tell whether it was the last."""
        if self.sink is not None and not self.future.done():
            reply = self.sink(reply)
        self.replies.append(reply)
        complete = self.complete
        return len(self.replies) == complete if isinstance(complete, int) else complete(self.replies)


class Link:
    """A connection that is opened on use and again after a loss; it never sends a command twice.

    Args:
        make: makes a redis-py connection, not yet connected.
        timeout: seconds for connecting, and for each call.
        opened: called after each connect.

    Attributes:
        address: host and port, or the socket's path.
        connects: how often it was connected.
    """

    def __init__(
        self,
        make: Callable[[], AbstractConnection],
        *,
        address: str,
        timeout: float,
        opened: Callable[[], None] | None = None,
    ) -> None:
        self.address = address
        self.connects = 0
        self._make = make
        self._timeout = timeout
        self._opened = opened
        self._connection: AbstractConnection | None = None
        self._connecting: asyncio.Task[AbstractConnection] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._requests: deque[_Request] = deque()
        self._closed = False

    @property
    def idle(self) -> bool:
        """No reply is outstanding."""
        return not self._requests

    @property
    def connected(self) -> bool:
        """It has a connection that is not known to be lost."""
        return self._connection is not None

    async def call(
        self,
        data: bytes,
        replies: int | Callable[[list[Any]], bool] = 1,
        *,
        timeout: float | None = None,
        patient: bool = False,
        sink: Callable[[Any], Any] | None = None,
    ) -> list[Any]:
        """Send commands and return their replies, error replies among them as exceptions.

        A cancelled call may or may not be carried out.

        Args:
            data: the commands, in wire format.
            replies: how many replies they get; or a function that tells from the replies so far
                whether they are complete.
            timeout: seconds, instead of the link's.
            patient: when time is up, keep the connection, for the reply will come.
            sink: called with each reply as it arrives, must not raise; its results are returned
                instead. Replies that are used up at once never pile up: a page's many small
                lists would cost the garbage collector more than all else.

        Raises:
            redis.exceptions.RedisError: the connection was lost or can't be made. The commands may
                or may not have been carried out.
            AdapterClosedError: the link is closed, or was meanwhile.
        """
        limit = self._timeout if timeout is None else timeout
        connection = self._connection
        try:
            async with asyncio.timeout(limit):
                if connection is None or not connection.is_connected:
                    connection = await self._connect()
                    if connection is not self._connection or not connection.is_connected:
                        raise redis_errors.ConnectionError("the connection was lost at once")
                request = _Request(replies, _Answer(), sink)
                self._requests.append(request)
                # Nothing may suspend between these two lines: the queue is the order of sending.
                await connection.send_packed_command([data], check_health=False)
                try:
                    return await request.future
                finally:
                    request.future.forget()
        except TimeoutError as error:
            late = redis_errors.TimeoutError(f"no answer within {limit:g} s")
            if not patient and connection is not None:
                self._lost(connection, late)
            raise late from error

    async def close(self) -> None:
        """Close the connection; calls under way and later ones raise `AdapterClosedError`."""
        self._closed = True
        connection, keeper, connecting = self._connection, self._keeper, self._connecting
        self._fail(AdapterClosedError("the redis adapter was closed"))
        self._connection = None
        if connecting is not None:
            connecting.cancel()
        if connection is not None:
            transport = transport_of(connection)
            try:
                async with asyncio.timeout(_CLOSE_S):
                    await connection.disconnect()
            except (redis_errors.RedisError, OSError):
                if transport is not None:
                    transport.abort()
        if keeper is not None and not keeper.done():
            keeper.cancel()
        ending = [task for task in (connecting, keeper) if task is not None]
        if ending:
            await asyncio.wait(ending, timeout=_CLOSE_S)

    async def _connect(self) -> AbstractConnection:
        """Connect, once for all who ask at the same time."""
        if self._closed:
            raise AdapterClosedError("the redis adapter is closed")
        if self._connecting is None:
            loop = asyncio.get_running_loop()
            self._connecting = loop.create_task(self._dial(), name="netcore-redis-connect")
            self._connecting.add_done_callback(self._dialled)
        return await asyncio.shield(self._connecting)

    def _dialled(self, task: asyncio.Task[AbstractConnection]) -> None:
        self._connecting = None
        if not task.cancelled():
            task.exception()  # whoever asked may be gone

    async def _dial(self) -> AbstractConnection:
        if self._keeper is not None:  # of the connection before; it ends by itself
            await asyncio.wait([self._keeper])
        connection = self._make()
        try:
            async with asyncio.timeout(self._timeout):
                await connection.connect()  # type: ignore[no-untyped-call]
            inlet = Inlet(connection, self._take)
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        if (transport := transport_of(connection)) is not None:
            # A cancelled send would cost the connection: let sends not suspend.
            transport.set_write_buffer_limits(high=_WRITE_LIMIT)
        self.connects += 1
        if self._opened is not None:
            self._opened()
        self._connection = connection
        loop = asyncio.get_running_loop()
        self._keeper = loop.create_task(self._keep(connection, inlet), name="netcore-redis-connection")
        return connection

    def _take(self, reply: Any) -> None:
        """Hand a reply to whoever is first in the queue."""
        requests = self._requests
        if not requests:
            raise redis_errors.ConnectionError("a reply that nobody asked for")
        request = requests[0]
        if request.take(reply):
            requests.popleft()
            if not request.future.done():
                request.future.arrive(request.replies)

    async def _keep(self, connection: AbstractConnection, inlet: Inlet) -> None:
        """Wait for a connection's end, and clear up."""
        try:
            self._lost(connection, await inlet.ended)
        finally:
            self._lost(connection, redis_errors.ConnectionError("the connection was dropped"))
            with contextlib.suppress(redis_errors.RedisError, OSError):
                await connection.disconnect(nowait=True)

    def _lost(self, connection: AbstractConnection, error: Exception) -> None:
        """Forget the connection and tell all who wait for replies."""
        if self._connection is connection:
            self._connection = None
            self._fail(error)
            if self._keeper is not None and self._keeper is not asyncio.current_task():
                self._keeper.cancel()

    def _fail(self, error: Exception) -> None:
        while self._requests:
            future = self._requests.popleft().future
            if not future.done():
                future.set_exception(error)
                future.exception()  # its caller may be gone

    def drop(self) -> None:
        """Give the connection up, e.g. since a command that blocks is under way on it."""
        if self._connection is not None:
            self._lost(self._connection, redis_errors.ConnectionError("the connection was given up"))
