"""What an entry of a stream looks like, both ways.

`event`: fields `d` = `{"r":<payload>,"t":<ts>,"s":<shard>}` and `dedup_id` =
`{producer}:{shard}:{first_seq}:{index in batch}`.

`packed`: field `b` = a msgpack array `[1, producer, shard, first_seq, [ts, ...], [payload, ...]]`,
the payloads as binary.

A payload need not be JSON: it is sliced out of the envelope by position from the envelope's end,
where everything has a known shape. Only an envelope of another shape is parsed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain, repeat
from operator import add
from typing import Any, Final

import msgspec

from net_adapter_redis.resp import bulk
from netcore import Batch, StoredEvent

__all__ = [
    "PackedBatch",
    "decode_alike",
    "decode_each",
    "decode_slice",
    "encode_events",
    "encode_packed",
    "event_from",
    "unpack",
]

_START: Final = b'{"r":'
_MIDDLE: Final = b',"t":'
# Greedy, so that the payload is whatever stands before the *last* end of this shape.
_ENVELOPE: Final = re.compile(rb'\{"r":(.*),"t":(-?[0-9]{1,20}),"s":[0-9]{1,5}\}', re.DOTALL)
_EPOCH_FROM: Final = 10**18
"""Nanoseconds: a smaller `t` counts from some program's start and means nothing to others."""


class PackedBatch(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The content of field `b`."""

    version: int
    producer: str
    shard: int
    first_seq: int
    ts: list[int]
    raw: list[bytes]


class _Envelope(msgspec.Struct):
    """An envelope written by somebody else's JSON encoder."""

    r: msgspec.Raw
    t: float | int | None = None


_INDEXES: Final = [b"%d\r\n" % index for index in range(4096)]
_encode_numbers: Final = msgspec.json.Encoder().encode
_encode_packed: Final = msgspec.msgpack.Encoder().encode
_decode_packed: Final = msgspec.msgpack.Decoder(PackedBatch).decode
_decode_envelope: Final = msgspec.json.Decoder(_Envelope).decode


def encode_events(batch: Batch, before: bytes = b"") -> list[bytes]:
    """Return the arguments (envelope, dedup id) of each event, in wire format, to be joined.

    Args:
        batch: the events.
        before: what stands before each envelope, so that each event becomes an XADD; empty: they
            are arguments of one command.
    """
    shard, stamps, payloads = batch.shard, batch.stamps, batch.payloads
    source = b"%b:%d:%d:" % (batch.producer.encode(), shard, batch.first_seq)
    name = bulk(b"dedup_id") if before else b""
    times = _encode_numbers(stamps)[1:-1].split(b",")
    sizes = list(map(len, payloads))
    if min(stamps) >= _EPOCH_FROM and max(stamps) < _EPOCH_FROM * 10:
        around = len(b'{"r":,"t":,"s":}') + len(str(shard)) + 19
    else:
        around = len(b'{"r":,"t":,"s":}') + len(str(shard))
        sizes = list(map(add, sizes, map(len, times)))
    # Constant pieces are made once, and every event costs a few pieces and no formatting: a third
    # cheaper than a formatting call an event.
    heads = {size: b'%b$%d\r\n{"r":' % (before, size + around) for size in set(sizes)}
    pieces: list[bytes] = []
    low, digits = 0, 1
    while low < len(stamps):
        high = 10**digits
        tail = b',"s":%d}\r\n%b$%d\r\n%b' % (shard, name, len(source) + digits, source)
        pieces += chain.from_iterable(
            zip(
                map(heads.__getitem__, sizes[low:high]), payloads[low:high], repeat(_MIDDLE),
                times[low:high], repeat(tail), _indexes(low, min(high, len(stamps))), strict=False,
            )
        )  # fmt: skip
        low, digits = high, digits + 1
    return pieces


def _indexes(low: int, high: int) -> list[bytes]:
    if high <= len(_INDEXES):
        return _INDEXES[low:high]
    return [b"%d\r\n" % index for index in range(low, high)]


def encode_packed(batch: Batch) -> bytes:
    """Return the content of field `b`."""
    ts, raw = batch.stamps, batch.payloads
    return _encode_packed(PackedBatch(1, batch.producer, batch.shard, batch.first_seq, ts, raw))


def event_from(envelope: bytes, entry: bytes) -> tuple[int, bytes] | None:
    """Return (ts, payload) of an envelope of any shape, or None if it is no event.

    Args:
        envelope: the content of field `d`.
        entry: the entry's id; tells the time where the envelope does not.
    """
    if match := _ENVELOPE.fullmatch(envelope):
        ts, raw = int(match[2]), match[1]
    else:
        try:
            parsed = _decode_envelope(envelope)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        ts, raw = _whole(parsed.t), bytes(parsed.r)
    return (ts if ts >= _EPOCH_FROM else _time_of(entry)), raw


def _time_of(entry: bytes) -> int:
    """Return when the server stored an entry, ns: for writers whose `t` is no time of the world."""
    return int(entry.partition(b"-")[0]) * 1_000_000


def _whole(t: float | int | None) -> int:
    """Return `t` as an int, 0 where it is missing or no time."""
    return int(t) if isinstance(t, int) or (isinstance(t, float) and abs(t) < 1e19) else 0


def unpack(blob: bytes) -> PackedBatch | None:
    """Read the content of field `b`; None if it is no batch."""
    try:
        batch = _decode_packed(blob)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return batch if batch.version == 1 and 0 < len(batch.ts) == len(batch.raw) else None


def decode_alike(
    entries: Sequence[Any], shard: int, count: int | None, incarnation: str
) -> list[StoredEvent] | None:
    """Return the events of entries that all have this library's shape, or None if one has not.

    Column by column, each step one C call an entry: twice as fast as entry by entry.

    Args:
        entries: `[id, [field, value, ...]]` each, as Redis sends them.
        shard: the stream's shard.
        count: entries added up to the one before the first of these, or None.
        incarnation: the stream's; "" without `count`.
    """
    tail = b',"s":%d}' % shard
    end, stamp = -len(tail), -len(tail) - 19
    middle = stamp - len(_MIDDLE)
    envelopes = [fields[1] for _, fields in entries if fields[0] == b"d"]
    stamps = [
        envelope[stamp:end]
        for envelope in envelopes
        if envelope[:5] == _START and envelope[end:] == tail and envelope[middle:stamp] == _MIDDLE
    ]
    digits = b"".join(stamps)
    if len(digits) != 19 * len(entries) or not digits.isdigit() or min(stamps) < b"1":
        return None
    ids = b" ".join([entry[0] for entry in entries]).decode().split(" ")
    if count is not None:
        ids = [f"{entry}@{number}.{incarnation}" for number, entry in enumerate(ids, count + 1)]
    raws = [envelope[5:middle] for envelope in envelopes]
    return list(map(StoredEvent, ids, repeat(shard), map(int, stamps), raws))


def decode_each(entries: Sequence[Any], shard: int, count: int | None, incarnation: str) -> list[StoredEvent]:
    """Return the events of leading entries that `net-mesh` could have written; as `decode_alike`.

    Stops before the first entry of another shape.
    """
    events: list[StoredEvent] = []
    for number, (entry, fields) in enumerate(entries, 1 if count is None else count + 1):
        match = _ENVELOPE.fullmatch(fields[1]) if fields[0] == b"d" else None
        if match is None:
            break
        ts = int(match[2])
        if ts < _EPOCH_FROM:
            ts = _time_of(entry)
        where = entry.decode() if count is None else f"{entry.decode()}@{number}.{incarnation}"
        events.append(StoredEvent(where, shard, ts, match[1]))
    return events


def decode_slice(
    batch: PackedBatch, shard: int, entry: str, after: int, limit: int, suffix: str
) -> list[StoredEvent]:
    """Return up to `limit` events of a packed batch, from the one behind index `after`."""
    low, high = after + 1, min(after + 1 + limit, len(batch.raw))
    if low >= high:
        return []
    # Joined and split again, the ids are made by two C calls a batch instead of one a piece.
    end = f"/{len(batch.raw)}{suffix}"
    joint = f"{end} {entry}:"
    ids = f"{entry}:{joint.join(map(str, range(low, high)))}{end}".split(" ")
    return list(map(StoredEvent, ids, repeat(shard), batch.ts[low:high], batch.raw[low:high]))
