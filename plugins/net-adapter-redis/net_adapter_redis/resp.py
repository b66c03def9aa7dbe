"""Commands in Redis' wire format, built once as bytes: a packing call an argument would cost more."""

from __future__ import annotations

__all__ = ["array", "bulk", "command"]


def bulk(value: bytes) -> bytes:
    """Return one argument."""
    return b"$%d\r\n%b\r\n" % (len(value), value)


def array(count: int) -> bytes:
    """Return the head of a command of `count` arguments."""
    return b"*%d\r\n" % count


def command(*args: bytes | str | int) -> bytes:
    """Return a whole command."""
    parts = [array(len(args))]
    for arg in args:
        parts.append(bulk(arg if isinstance(arg, bytes) else str(arg).encode()))
    return b"".join(parts)
