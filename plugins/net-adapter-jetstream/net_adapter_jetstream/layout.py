"""What a message's body holds: one event in an envelope, or a packed batch.

Envelope: `{"r":<payload>,"t":<ts>,"s":<shard>}`. The payload's bytes stand in it as they are, JSON
or not, so it is cut out by position, from the end. Packed: msgpack of `[1, [ts, ...], [payload, ...]]`,
whose first byte is never `{`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import msgspec

from netcore import StoredEvent

__all__ = ["PACKED", "decode", "envelope_end", "envelopes", "pack", "unpack"]

PACKED: Final = b"\x93"
"""First byte of a packed body."""

_PACKED_VERSION: Final = 1
_TAIL: Final = re.compile(rb',"t":(-?[0-9]{1,20}),"s":[0-9]{1,10}\}\Z')
_TAIL_BYTES: Final = 64  # longer than any tail


class _Foreign(msgspec.Struct):
    """An envelope written by somebody else: other order, other white space."""

    r: msgspec.Raw
    t: int


class _Packed(msgspec.Struct, array_like=True):
    version: int
    ts: list[int]
    raw: list[bytes]


_foreign: Final = msgspec.json.Decoder(_Foreign)
_packed: Final = msgspec.msgpack.Decoder(_Packed)
_encode: Final = msgspec.msgpack.encode


def envelopes(events: Sequence[StoredEvent], shard: int) -> list[bytes]:
    """Wrap each payload."""
    end = envelope_end(shard)
    return [b'{"r":%b,"t":%d%b' % (event.raw, event.ts, end) for event in events]


def pack(events: Sequence[StoredEvent]) -> bytes:
    """Encode a batch as one body."""
    return _encode((_PACKED_VERSION, [event.ts for event in events], [event.raw for event in events]))


def decode(body: bytes, end: bytes) -> tuple[int, bytes] | None:
    """Return `(ts, payload)` of an envelope, None if `body` is none.

    Args:
        body: the message's body.
        end: how our own envelopes of this stream end, `,"s":<shard>}`; others are read too, slower.
    """
    if body.startswith(b'{"r":'):
        if body.endswith(end):
            start = body.rfind(b',"t":', -_TAIL_BYTES)
            try:
                if start >= 5:
                    return int(body[start + 5 : -len(end)]), body[5:start]
            except ValueError:
                pass
        tail = _TAIL.search(body, max(0, len(body) - _TAIL_BYTES))
        if tail is not None and tail.start() >= 5:
            return int(tail[1]), body[5 : tail.start()]
    try:
        found = _foreign.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return found.t, bytes(found.r)


def envelope_end(shard: int) -> bytes:
    """Return the bytes that end each envelope of `shard`."""
    return b',"s":%d}' % shard


def unpack(body: bytes) -> list[tuple[int, bytes]] | None:
    """Return `(ts, payload)` of each event of a packed body, None if `body` is none (or is empty)."""
    try:
        found = _packed.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if found.version != _PACKED_VERSION or not found.ts or len(found.ts) != len(found.raw):
        return None
    return list(zip(found.ts, found.raw, strict=True))
