"""Cursors: everything a chain of polls remembers, in one opaque string.

A cursor is base64url (no padding) of a version byte, the xxh3_64 checksum of the rest, and a
msgpack document: the store's identity, how the chain started, and each stream's position and last
merge key. The checksum is against accidents, not against forgery.
"""

from __future__ import annotations

import base64
import binascii
import operator
import re
from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

import msgspec
import xxhash

from netcore.consume.request import start_ns
from netcore.contracts.adapter import Stream
from netcore.contracts.answers import MAX_SHARD
from netcore.errors import ConfigError, CursorError
from netcore.events import StoredEvent

__all__ = ["MAX_KEY", "NO_KEY", "Cursor", "Entry", "decode_cursor"]

Entry: TypeAlias = tuple[str | None, int]
"""A stream's position (None: its beginning) and the merge key of the last event read from it."""

NO_KEY: Final = -(1 << 63)
"""The key of a stream of which nothing was read: below every timestamp."""

MAX_KEY: Final = (1 << 63) - 1
MAX_CURSOR_CHARS: Final = 1 << 20
_VERSION: Final = b"\x01"
_HEAD: Final = 9  # the version byte and eight of checksum
_ALPHABET: Final = re.compile(r"[A-Za-z0-9_-]+")
_REMEDY: Final = "pass a cursor exactly as a response gave it, or leave it out to begin a new chain"
_IDENTITY_SHOWN: Final = 40

_ts_of: Final = operator.attrgetter("ts")


class _Document(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    identity: str
    start: int | str
    since: int
    turn: tuple[int, str] | None
    origins: list[str]
    rows: list[tuple[int, int, str | None, int]]  # shard, index into origins, position, key


_decoder: Final = msgspec.msgpack.Decoder(_Document)
_encoder: Final = msgspec.msgpack.Encoder()


class Cursor:
    """Where a chain of polls stands. Treat as immutable: `moved` and `advanced` return others.

    Attributes:
        identity: the store's `Adapter.identity()`.
        start: "tail", "earliest" or nanoseconds, as the first request said.
        since: for "tail", when the chain began on the bus's clock; otherwise 0.
        turn: the stream that begins the next page in `ordering="shard"`, as (shard, origin).
        entries: every stream the chain knows.
    """

    __slots__ = ("_text", "entries", "identity", "since", "start", "turn")

    def __init__(
        self,
        identity: str,
        start: str | int,
        since: int,
        entries: Mapping[Stream, Entry],
        turn: tuple[int, str] | None = None,
        text: str | None = None,
    ) -> None:
        self.identity = identity
        self.start = start
        self.since = since
        self.turn = turn
        self.entries = entries
        self._text = text

    def moved(self, changes: Mapping[Stream, Entry], turn: tuple[int, str] | None) -> Cursor:
        """Return this cursor with some entries replaced or added; itself if that changes nothing."""
        entries = self.entries
        real = {stream: entry for stream, entry in changes.items() if entries.get(stream) != entry}
        if not real and turn == self.turn:
            return self
        return Cursor(self.identity, self.start, self.since, {**entries, **real}, turn)

    def without(self, streams: set[Stream]) -> Cursor:
        """Return this cursor without the entries of `streams`; itself if it has none of them."""
        kept = {stream: entry for stream, entry in self.entries.items() if stream not in streams}
        if len(kept) == len(self.entries):
            return self
        return Cursor(self.identity, self.start, self.since, kept, self.turn)

    def advanced(self, events: Sequence[StoredEvent]) -> Cursor:
        """Return this cursor moved past `events`, consecutive events of a page that began at it."""
        changes: dict[Stream, Entry] = {}
        by_stream: dict[tuple[int, str], list[StoredEvent]] = {}
        for event in events:
            by_stream.setdefault((event.shard, event.origin), []).append(event)
        for (shard, origin), run in by_stream.items():
            stream = Stream(shard, origin)
            key = max(self.entries.get(stream, (None, NO_KEY))[1], *map(_ts_of, run))
            changes[stream] = (run[-1].id, min(key, MAX_KEY))
        return self.moved(changes, self.turn)

    @property
    def text(self) -> str:
        """The string that a consumer keeps. Costs something once, when it is first asked for.

        Raises:
            CursorError: over 1 MiB, which takes tens of thousands of streams.
        """
        if self._text is None:
            self._text = _encode(self)
            if len(self._text) > MAX_CURSOR_CHARS:
                raise CursorError(
                    f"a cursor over {len(self.entries):,} streams exceeds {MAX_CURSOR_CHARS:,} "
                    "characters; spread the consumers over buses with fewer streams"
                )
        return self._text


def _encode(cursor: Cursor) -> str:
    origins = sorted({stream.origin for stream in cursor.entries})
    index = {origin: number for number, origin in enumerate(origins)}
    rows = [
        (stream.shard, index[stream.origin], position, key)
        for stream, (position, key) in cursor.entries.items()
    ]
    rows.sort(key=operator.itemgetter(0, 1))
    body = _encoder.encode(_Document(cursor.identity, cursor.start, cursor.since, cursor.turn, origins, rows))
    packed = _VERSION + xxhash.xxh3_64_digest(_VERSION + body) + body
    return base64.urlsafe_b64encode(packed).rstrip(b"=").decode()


def decode_cursor(text: str, identity: str) -> Cursor:
    """Read a cursor that a poll on the store `identity` returned.

    Size, alphabet, checksum and every type are checked before anything is used, and the result
    must encode to the very same text.

    Raises:
        CursorError: anything else than that; the message says what to do.
    """
    if len(text) > MAX_CURSOR_CHARS:
        raise CursorError(f"the cursor has {len(text):,} characters, more than any cursor has: {_REMEDY}")
    if not _ALPHABET.fullmatch(text):
        raise CursorError(f"{text[:40]!r} is not a cursor (base64url without padding): {_REMEDY}")
    try:
        packed = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError) as error:
        raise CursorError(f"the cursor is cut or altered ({error}): {_REMEDY}") from error
    if len(packed) <= _HEAD or xxhash.xxh3_64_digest(packed[:1] + packed[_HEAD:]) != packed[1:_HEAD]:
        raise CursorError(f"the cursor is cut or altered (its checksum is wrong): {_REMEDY}")
    if packed[:1] != _VERSION:
        raise CursorError(
            f"the cursor has format {packed[0]}, this version of netcore reads {_VERSION[0]}: "
            "poll with the version that made it, or begin a new chain"
        )
    cursor = _build(packed[_HEAD:], text)
    if cursor.identity != identity:
        raise CursorError(_foreign(cursor.identity, identity))
    return cursor


def _build(body: bytes, text: str) -> Cursor:
    try:
        document = _decoder.decode(body)
        start = start_ns(document.start)
    except (msgspec.DecodeError, ConfigError, UnicodeDecodeError, RecursionError) as error:
        raise CursorError(f"the cursor is malformed ({error}): {_REMEDY}") from error
    origins = document.origins
    entries: dict[Stream, Entry] = {}
    for shard, origin, position, key in document.rows:
        if not (0 <= shard <= MAX_SHARD and 0 <= origin < len(origins) and NO_KEY <= key <= MAX_KEY):
            raise CursorError(f"the cursor is malformed (an entry of shard {shard}): {_REMEDY}")
        entries[Stream(shard, origins[origin])] = (position, key)
    if len(entries) != len(document.rows):
        raise CursorError(f"the cursor is malformed (a stream occurs twice): {_REMEDY}")
    cursor = Cursor(document.identity, start, document.since, entries, document.turn, text)
    try:
        again = _encode(cursor)
    except (OverflowError, ValueError) as error:
        raise CursorError(f"the cursor is malformed ({error}): {_REMEDY}") from error
    if again != text:
        raise CursorError(f"the cursor is malformed (not as a response writes it): {_REMEDY}")
    return cursor


def _foreign(theirs: str, ours: str) -> str:
    """Word the mismatch by kinds alone: what follows the kind is nobody else's business."""
    made, here = (identity.partition(":")[0][:_IDENTITY_SHOWN] for identity in (theirs, ours))
    where = f"another {here!r} store" if made == here else f"a {made!r} store"
    return (
        f"the cursor was made on {where}, this bus polls a {here!r} store: "
        "poll a bus on the store it belongs to, or leave it out to begin a new chain"
    )
