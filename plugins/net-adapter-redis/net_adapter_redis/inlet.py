"""Receiving: from the socket straight into hiredis, and each reply on as soon as it is complete.

redis-py connects and shakes hands; from then on this takes its stream reader's place on the
transport: between a reply's arrival and its consumer there is then no task to wake, and bytes are
copied once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

import hiredis
from redis import exceptions as redis_errors
from redis.asyncio.connection import AbstractConnection

__all__ = ["Inlet", "transport_of"]

_BUFFER: Final = 1 << 18
_INCOMPLETE: Final = object()


def transport_of(connection: AbstractConnection) -> asyncio.WriteTransport | None:
    """Return what a connection sends with, or None: it is not connected."""
    writer: asyncio.StreamWriter | None = connection._writer
    return None if writer is None else writer.transport


class Inlet(asyncio.BufferedProtocol):
    """The receiving end of one connection.

    Args:
        connection: connected, nothing outstanding on it.
        take: called with each reply, error replies as exceptions.

    Attributes:
        ended: done with the reason once nothing more can come.
    """

    def __init__(self, connection: AbstractConnection, take: Callable[[Any], None]) -> None:
        transport = transport_of(connection)
        if transport is None:
            raise redis_errors.ConnectionError("the connection was lost at once")
        self.ended: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()
        self._take = take
        self._room = memoryview(bytearray(_BUFFER))
        self._replies = hiredis.Reader(
            protocolError=redis_errors.InvalidResponse,
            replyError=connection._parser.parse_error,
            notEnoughData=_INCOMPLETE,
        )
        # The one before still serves whoever sends or closes: those wait for it.
        self._before: Any = transport.get_protocol()
        transport.set_protocol(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Lend the transport room to read into."""
        return self._room

    def buffer_updated(self, nbytes: int) -> None:
        """Take in what was read."""
        replies, take = self._replies, self._take
        if self.ended.done():
            return  # given up: late replies are nobody's
        try:
            replies.feed(self._room[:nbytes])  # type: ignore[arg-type]  # it takes any buffer
            while (reply := replies.gets(False)) is not _INCOMPLETE:
                if isinstance(reply, redis_errors.ConnectionError):
                    raise reply  # a server that is loading, or wants a password, serves nobody
                take(reply)
        except Exception as error:
            self._end(error)

    def eof_received(self) -> bool:
        """Note that the server will send no more; the transport closes itself."""
        self._end(redis_errors.ConnectionError("Connection closed by server."))
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the connection is gone."""
        self._end(exc or redis_errors.ConnectionError("Connection closed by server."))
        self._before.connection_lost(exc)

    def pause_writing(self) -> None:
        """Make senders wait."""
        self._before.pause_writing()

    def resume_writing(self) -> None:
        """Let senders go on."""
        self._before.resume_writing()

    def _end(self, error: Exception) -> None:
        if not self.ended.done():
            self.ended.set_result(error)
