"""The wire codec: msgpack arrays, one a message, typed and bounded by what is declared here.

`docs/reference/mesh-protocol.md` tells the same in words. Everything that comes from a peer passes
through `decode` before anybody looks at it: a frame that is too long, of an unknown type, or with a
field out of its bounds is a `FrameError`, and its link is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final, TypeAlias

import msgspec

__all__ = [
    "APART_BYTES",
    "INFINITY",
    "MAX_BATCH_BYTES",
    "MAX_FRAME",
    "MOST",
    "VERSION",
    "Ack",
    "Body",
    "Bye",
    "Credit",
    "Entries",
    "FrameError",
    "Heads",
    "Hello",
    "LaneRow",
    "Message",
    "Record",
    "Refuse",
    "Reset",
    "Subscribe",
    "Table",
    "WireEntry",
    "bodies",
    "decode",
    "decode_body",
    "encode",
    "encode_body",
]

VERSION: Final = 2
MAGIC: Final = "netmesh"
INFINITY: Final = (1 << 63) - 1
MAX_BATCH_BYTES: Final = 32 << 20
MAX_FRAME: Final = MAX_BATCH_BYTES + (2 << 20)
MOST: Final = 4096
"""Members, links, lanes and dependencies that one message may tell of."""
APART_BYTES: Final = 16 << 10
"""From this size on a body is sent in a frame of its own: it is copied at neither end."""

Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=INFINITY)]
Start: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=INFINITY - (1 << 24))]
"""Where an entry begins: its end is a `Count` too."""
Shard: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=65_535)]
Name: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
Text: TypeAlias = Annotated[str, msgspec.Meta(max_length=512)]
Vector: TypeAlias = Annotated[dict[Name, Count], msgspec.Meta(max_length=MOST)]
InlineBody: TypeAlias = Annotated[bytes, msgspec.Meta(max_length=MAX_FRAME)]
Body: TypeAlias = bytes | memoryview
"""A body as it is kept: what was encoded here, or a view of the frame in which it came."""


class FrameError(ValueError):
    """A frame from a peer is not one of this protocol's."""


class Hello(msgspec.Struct, array_like=True, tag=1, frozen=True):
    """First frame of either side: who I am, which mesh, what time I think it is."""

    magic: Name
    version: Count
    mesh: Name
    node: Name
    clock: Count


class Refuse(msgspec.Struct, array_like=True, tag=2, frozen=True):
    """The link is refused for a reason that will not pass by itself."""

    reason: Text


class Reset(msgspec.Struct, array_like=True, tag=3, frozen=True):
    """A frame came from somebody who has not said Hello: begin again."""


class LaneRow(msgspec.Struct, array_like=True, frozen=True):
    """What a node holds of one lane: everything from `floor` to `head`, maybe more before."""

    origin: Name
    floor: Count
    head: Count


class Record(msgspec.Struct, array_like=True, frozen=True):
    """One member as it describes itself; the highest version wins."""

    node: Name
    version: Count
    address: Text
    key: Text
    links: Annotated[list[Name], msgspec.Meta(max_length=MOST)]
    lanes: Annotated[list[LaneRow], msgspec.Meta(max_length=MOST)]


class Table(msgspec.Struct, array_like=True, tag=4, frozen=True):
    """The heartbeat: the sender's clock and the member records that the other side lacks."""

    clock: Count
    records: Annotated[list[Record], msgspec.Meta(max_length=MOST)]


class Subscribe(msgspec.Struct, array_like=True, tag=5, frozen=True):
    """Send me this lane's entries above `after`, in order; `on=False` stops it."""

    origin: Name
    after: Count
    on: bool = True


class Heads(msgspec.Struct, array_like=True, tag=6, frozen=True):
    """The answer to a Subscribe: per shard, where it begins at the sender, and how far it has come."""

    origin: Name
    head: Count
    shards: Annotated[dict[Shard, tuple[Count, Count]], msgspec.Meta(max_length=65_536)]


class Credit(msgspec.Struct, array_like=True, tag=7, frozen=True):
    """You may send entries until their bytes on this link, counted from its start, pass `total`."""

    total: Count


class WireEntry(msgspec.Struct, array_like=True, frozen=True):
    """One batch, or with `count` 0 a bare watermark.

    `deps` None: as the entry before it. `body` None: the next of the frames behind this one.
    """

    lsn: Count
    shard: Shard
    start: Start
    count: Annotated[int, msgspec.Meta(ge=0, le=1 << 24)]
    w: Count
    lo: Count
    hi: Count
    deps: Vector | None
    body: InlineBody | None


class Entries(msgspec.Struct, array_like=True, tag=8, frozen=True):
    """A run of a lane: every entry that the sender retains up to `upto` and not sent before."""

    origin: Name
    upto: Count
    entries: Annotated[list[WireEntry], msgspec.Meta(max_length=65_536)]


class Ack(msgspec.Struct, array_like=True, tag=9, frozen=True):
    """I have stored this lane up to `upto`."""

    origin: Name
    upto: Count


class Bye(msgspec.Struct, array_like=True, tag=10, frozen=True):
    """I am closing; nothing more comes from me."""


Message: TypeAlias = (
    Hello | Refuse | Reset | Table | Subscribe | Heads | Credit | Entries | Ack | Bye
)  # fmt: skip

_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Message)
_body: Final = msgspec.msgpack.Decoder(tuple[list[int], list[bytes]])

encode: Final = _encoder.encode


def decode(frame: bytes) -> Message:
    """Turn a frame into its message.

    Raises:
        FrameError: longer than `MAX_FRAME`, not msgpack, or not a message of this protocol.
    """
    if len(frame) > MAX_FRAME:
        raise FrameError(f"a frame of {len(frame)} bytes; at most {MAX_FRAME} are allowed")
    try:
        message: Message = _decoder.decode(frame)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise FrameError(f"not a frame of the mesh protocol: {error}") from error
    return message


def bodies(message: Entries, frames: Sequence[memoryview]) -> list[Body]:
    """Return the body of each entry, given the frames that came behind the message.

    Raises:
        FrameError: they are not as many as there are entries without a body, or one is too long.
    """
    apart = iter(frames)
    found = [next(apart, None) if entry.body is None else entry.body for entry in message.entries]
    if None in found or next(apart, None) is not None:
        raise FrameError(f"{len(frames)} frames behind entries that want another number")
    if any(len(frame) > MAX_FRAME for frame in frames):
        raise FrameError(f"a body of more than {MAX_FRAME} bytes")
    return found  # type: ignore[return-value]


def encode_body(stamps: Sequence[int], payloads: Sequence[bytes]) -> bytes:
    """Encode a batch once, for the log and every peer: `[[ts, ...], [payload, ...]]`."""
    return _encoder.encode((stamps, payloads))


def decode_body(body: Body, count: int) -> tuple[list[int], list[bytes]]:
    """Return a body's timestamps and payloads, `count` of each.

    Raises:
        FrameError: it is not a body of `count` events.
    """
    try:
        stamps, raws = _body.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise FrameError(f"not the body of an entry: {error}") from error
    if len(stamps) != count or len(raws) != count:
        raise FrameError(f"a body of {len(stamps)} and {len(raws)} for an entry of {count} events")
    return stamps, raws
