"""What goes in (`Event`, `RawEvent`) and what comes out (`StoredEvent`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar, overload

import msgspec

from netcore.errors import PayloadError

__all__ = ["Event", "IndexedEvent", "RawEvent", "StoredEvent"]

T = TypeVar("T")
_decode: Final = msgspec.json.decode


def _check_json(data: bytes | str) -> None:
    try:
        _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        shown = repr(data[:60]) + ("..." if len(data) > 60 else "")
        raise PayloadError(
            f"not valid JSON: {error} in {shown}; RawEvent.from_bytes takes any bytes"
        ) from error


def _as_bytes(data: object, maker: str) -> bytes:
    if isinstance(data, bytes):
        return data
    if isinstance(data, bytearray | memoryview):
        return bytes(data)
    raise PayloadError(f"{maker} takes bytes, not {type(data).__name__}: {data!r:.60}")


class Event(msgspec.Struct, frozen=True, gc=False):
    """A payload known to be valid JSON, encoded once.

    Attributes:
        raw: the payload, exactly the bytes that were given.
    """

    raw: bytes

    @classmethod
    def from_str(cls, text: str) -> Event:
        """Check that `text` is one JSON document and wrap it.

        Raises:
            PayloadError: `text` is not a str or not valid JSON (`NaN` is not).
        """
        if not isinstance(text, str):
            raise PayloadError(f"Event.from_str takes str, not {type(text).__name__}")
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise PayloadError(f"not encodable as UTF-8: {error}") from error
        _check_json(data)
        return cls(data)

    @classmethod
    def from_bytes(cls, data: bytes) -> Event:
        """Check that `data` is one JSON document in UTF-8 and wrap it.

        Raises:
            PayloadError: `data` is not bytes-like or not valid JSON.
        """
        data = _as_bytes(data, "Event.from_bytes")
        _check_json(data)
        return cls(data)


class RawEvent(msgspec.Struct, frozen=True, gc=False):
    """Bytes to be stored as they are, never parsed.

    Attributes:
        raw: the payload.
        hash: route hash, 0..2**64-1, or None to have the payload hashed (xxh3_64) at ingest.
    """

    raw: bytes
    hash: int | None = None

    @classmethod
    def from_bytes(cls, data: bytes, hash: int | None = None) -> RawEvent:
        """Wrap any bytes; no check, no parse.

        Args:
            data: bytes-like; a bytearray or memoryview is copied.
            hash: a precomputed route hash, non-negative, or None.

        Raises:
            PayloadError: `data` is not bytes-like, or `hash` is not a non-negative int.
        """
        if hash is not None and (type(hash) is not int or hash < 0):
            raise PayloadError(f"hash must be a non-negative int or None, not {hash!r}")
        return cls(_as_bytes(data, "RawEvent.from_bytes"), hash)

    @classmethod
    def from_bytes_validated(cls, data: bytes, hash: int | None = None) -> RawEvent:
        """Wrap bytes that must be valid JSON.

        Raises:
            PayloadError: as `from_bytes`, or not valid JSON.
        """
        event = cls.from_bytes(data, hash)
        _check_json(event.raw)
        return event


class StoredEvent(msgspec.Struct, frozen=True, gc=False, eq=False):
    """One stored event, as a poll returns it. Equality is by all five fields.

    Attributes:
        id: position in its stream; reading after it goes on with the next event.
        shard: shard it was ingested on.
        ts: timestamp given at ingest, int nanoseconds since the epoch, UTC.
        raw: the payload, byte for byte as ingested.
        origin: node that ingested it, on a mesh; otherwise "".
    """

    # No cycle can go through an event, so the collector need not see it (gc=False). That is the
    # largest single saving of the ingest path: millions of tracked objects dominate its cost.

    id: str
    shard: int
    ts: int
    raw: bytes
    origin: str = ""

    @overload
    def decode(self) -> Any: ...
    @overload
    def decode(self, type: type[T]) -> T: ...
    def decode(self, type: Any = Any) -> Any:
        """Decode the payload as JSON into `type`.

        Args:
            type: anything msgspec decodes into; default: plain dicts, lists, strings, numbers.

        Raises:
            msgspec.DecodeError: the payload is not JSON.
            msgspec.ValidationError: it does not fit `type`.
        """
        return _decode(self.raw, type=type)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, StoredEvent):
            return NotImplemented
        return (
            self.ts == other.ts
            and self.shard == other.shard
            and self.raw == other.raw
            and self.origin == other.origin
            and self.id == other.id
        )

    def __hash__(self) -> int:
        return hash((self.ts, self.shard, self.origin))

    def __repr__(self) -> str:
        origin = f", origin={self.origin!r}" if self.origin else ""
        return f"StoredEvent(id={self.id!r}, shard={self.shard}, ts={self.ts}, raw={self.raw!r}{origin})"


_slot: Final[Any] = StoredEvent.__dict__["id"]


class IndexedEvent(StoredEvent, frozen=True, gc=False, eq=False):
    """A `StoredEvent` whose id is an int in store, made text only when somebody asks.

    A batch's events are such (`IndexedEvent(0, shard, ts, raw)`): what a batch brings is already
    the object that a store keeps and a poll returns, so nothing is built twice. A store that
    numbers its events calls `set_index(event, n)`; the id is then `str(n)`.
    """

    @property  # type: ignore[misc]  # shadows the slot, which holds the int
    def id(self) -> str:
        """The position as text."""
        return str(_slot.__get__(self))


new_indexed: Final[Callable[[int, int, int, bytes], IndexedEvent]] = IndexedEvent  # type: ignore[assignment]
"""Make an `IndexedEvent` from index, shard, ts and payload (the class itself: C level)."""

get_index: Final = _slot.__get__
"""Return the int that an `IndexedEvent` holds (C level: fit for `map`)."""

set_index: Final = _slot.__set__
"""Set the int of an `IndexedEvent` that no consumer has seen yet (C level: fit for `map`)."""
