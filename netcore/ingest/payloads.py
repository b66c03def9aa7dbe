"""From what callers give to payload bytes and route hash; and what became of many of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec
import xxhash

from netcore.errors import PayloadError
from netcore.events import Event, RawEvent
from netcore.stats import IngestSummary

__all__ = ["Accepted", "Key", "Summary", "bad_key", "encoded", "normalise", "route_hash"]

route_hash: Final[Callable[[Any], int]] = xxhash.xxh3_64_intdigest
"""Hash a key or payload: xxh3_64, the same in every process and on every machine."""

_encode: Final = msgspec.json.Encoder().encode

Key = str | bytes | None
Accepted = tuple[int, int]


class Summary:
    """Collects what became of many events."""

    def __init__(self) -> None:
        self.accepted = 0
        self.rejected: list[int] = []
        self.discarded: list[int] = []
        self.error: Exception | None = None

    def add(self, index: int, ingest: Callable[[Any], Accepted | None], event: Any) -> None:
        """Ingest one event and note the outcome."""
        try:
            if ingest(event) is None:
                self.discarded.append(index)
            else:
                self.accepted += 1
        except Exception as error:
            self.refuse(index, error)

    def refuse(self, index: int, error: Exception) -> None:
        """Note a refusal."""
        self.rejected.append(index)
        self.error = self.error or error

    def finish(self) -> IngestSummary:
        """Return the summary."""
        return IngestSummary(
            accepted=self.accepted, rejected=self.rejected, discarded=self.discarded, error=self.error
        )


def bad_key(key: object) -> PayloadError:
    """Word the error for a key that cannot be hashed."""
    return PayloadError(f"key must be str, bytes or None, not {type(key).__name__}: {key!r:.60}")


def encoded(event: object) -> bytes:
    """Encode as JSON; raise `PayloadError` where that cannot be done."""
    if isinstance(event, bytes | bytearray | memoryview):
        raise PayloadError(
            "bytes are no JSON value: use ingest_raw to store them as they are, "
            "or Event.from_bytes if they are JSON"
        )
    try:
        return _encode(event)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise PayloadError(f"cannot encode {type(event).__name__} as JSON: {error}") from error


def normalise(event: object, key: Key) -> tuple[bytes, int]:
    """Return payload and route hash of anything `ingest_raw` takes."""
    hash_: int | None = None
    if isinstance(event, RawEvent):
        data, hash_ = event.raw, event.hash
    elif isinstance(event, Event):
        data = event.raw
    elif isinstance(event, bytes | bytearray | memoryview):
        data = bytes(event)
    else:
        raise PayloadError(
            f"ingest_raw takes bytes or RawEvent, not {type(event).__name__}: {event!r:.60}; "
            "use Event.from_str for JSON text, or ingest for objects"
        )
    if key is not None:
        try:
            return data, route_hash(key)
        except TypeError:
            raise bad_key(key) from None
    return data, route_hash(data) if hash_ is None else hash_
