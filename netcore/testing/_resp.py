"""Just enough of Redis' protocol to talk to a server without the driver that is under test."""

from __future__ import annotations

import socket
from typing import BinaryIO, TypeAlias

__all__ = ["Reply", "call", "encode"]

Reply: TypeAlias = "bytes | int | list[Reply] | None"


def encode(*args: str | bytes | int) -> bytes:
    """Encode one command."""
    parts = [arg if isinstance(arg, bytes) else str(arg).encode() for arg in args]
    body = b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)
    return b"*%d\r\n%b" % (len(parts), body)


def call(connection: socket.socket, *args: str | bytes | int) -> Reply:
    """Send one command and return its reply.

    Returns:
        Status lines and strings as bytes, numbers as int, arrays as lists, nil as None.

    Raises:
        RuntimeError: the server answered with an error; the message is the server's.
        ConnectionError: the server hung up.
    """
    connection.sendall(encode(*args))
    with connection.makefile("rb") as stream:
        return _reply(stream)


def _reply(stream: BinaryIO) -> Reply:
    line = stream.readline()
    if not line.endswith(b"\r\n"):
        raise ConnectionError("the server hung up")
    kind, rest = line[:1], line[1:-2]
    if kind == b"-":
        raise RuntimeError(rest.decode(errors="replace"))
    if kind == b"+":
        return rest
    if kind == b":":
        return int(rest)
    count = int(rest)
    if count < 0:
        return None
    if kind == b"*":
        return [_reply(stream) for _ in range(count)]
    data = stream.read(count + 2)
    return data[:-2]
