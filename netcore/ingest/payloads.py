"""From what callers give to payload bytes and route hash; and what became of many of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec
import xxhash

from netcore.errors import PayloadError
from netcore.events import Event, RawEvent
from netcore.stats import IngestSummary

__all__ = [
    "ENCODE_ERRORS",
    "Accepted",
    "Key",
    "Summary",
    "encode",
    "encoded",
    "key_hash",
    "normalise",
    "route_hash",
]

route_hash: Final[Callable[[Any], int]] = xxhash.xxh3_64_intdigest
"""Hash a key or payload: xxh3_64, the same in every process and on every machine."""

encode: Final = msgspec.json.Encoder().encode
"""Encode as JSON (C level); raises one of `ENCODE_ERRORS`."""

ENCODE_ERRORS: Final = (TypeError, ValueError, OverflowError, RecursionError)

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


def key_hash(key: str | bytes) -> int:
    """Hash a routing key; text counts as its UTF-8, so `"k"` and `b"k"` are one key.

    Raises:
        PayloadError: not text or bytes, or text that has no UTF-8 form.
    """
    try:
        return route_hash(key.encode() if isinstance(key, str) else key)
    except UnicodeEncodeError as error:
        raise PayloadError(f"key cannot be encoded as UTF-8: {error}") from error
    except TypeError:
        raise PayloadError(f"key must be str, bytes or None, not {type(key).__name__}: {key!r:.60}") from None


def encoded(event: object) -> bytes:
    """Encode as JSON; raise `PayloadError` where that cannot be done."""
    if isinstance(event, bytes | bytearray | memoryview):
        raise PayloadError(
            "bytes are no JSON value: use ingest_raw to store them as they are, "
            "or Event.from_bytes if they are JSON"
        )
    try:
        return encode(event)
    except Exception as error:  # also what an object's own properties raise
        raise PayloadError(f"cannot encode {type(event).__name__} as JSON: {error}") from error


def normalise(event: object, key: Key) -> tuple[bytes, int]:
    """Return payload and route hash of anything `ingest_raw` takes."""
    hash_: Any = None
    data: Any = event
    if isinstance(event, RawEvent):
        data, hash_ = event.raw, event.hash
    elif isinstance(event, Event):
        data = event.raw
    if type(data) is not bytes:
        data = _as_bytes(data)
    if key is not None:
        return data, key_hash(key)
    if hash_ is None:
        return data, route_hash(data)
    if type(hash_) is not int:
        raise PayloadError(f"a route hash must be an int or None, not {hash_!r:.60}")
    return data, hash_


def _as_bytes(data: object) -> bytes:
    if isinstance(data, bytes | bytearray | memoryview):
        return bytes(data)
    raise PayloadError(
        f"ingest_raw takes bytes or RawEvent, not {type(data).__name__}: {data!r:.60}; "
        "use Event.from_str for JSON text, or ingest for objects"
    )
