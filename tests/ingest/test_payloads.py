"""What producers may give, and how what they may not is refused."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from netcore.errors import PayloadError
from netcore.events import Event, RawEvent
from netcore.ingest.payloads import encoded, key_hash, normalise, route_hash


class Unstorable:
    """Nothing that msgspec knows."""


class Unset(msgspec.Struct):
    """A struct whose field is gone."""

    field: int


def emptied() -> Unset:
    """Return a struct that has lost its field."""
    value = Unset(1)
    del value.field
    return value


def nested(depth: int) -> list[Any]:
    """Return a list in a list in a list, ..."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("key", "same"),
    [("user-42", b"user-42"), ("käse", "käse".encode()), ("", b""), (b"\xff", b"\xff")],
)
def test_key_hash_text_and_its_bytes_are_one_key(key: str | bytes, same: bytes) -> None:
    """Text counts as its UTF-8; an empty key is a key."""
    assert key_hash(key) == route_hash(same)
    assert normalise(b"payload", key) == (b"payload", route_hash(same))


@pytest.mark.parametrize("key", [7, 1.5, ("a",), object()])
@pytest.mark.parametrize("event", [b"x", RawEvent(b"x"), Event(b"1")])
def test_normalise_key_of_another_type_is_refused(event: Any, key: Any) -> None:
    """A key that is neither text nor bytes is named in the error."""
    with pytest.raises(PayloadError, match="key must be str, bytes or None, not " + type(key).__name__):
        normalise(event, key)


def test_key_hash_lone_surrogate_is_refused() -> None:
    """Text that has no UTF-8 form is a payload error, not a Unicode error."""
    with pytest.raises(PayloadError, match="key cannot be encoded as UTF-8"):
        key_hash("\ud800")


def test_normalise_raw_event_with_hash_routes_by_it() -> None:
    """A precomputed hash is used as it is; a key goes before it."""
    assert normalise(RawEvent(b"x", 77), None) == (b"x", 77)
    assert normalise(RawEvent(b"x", 0), None) == (b"x", 0)
    assert normalise(RawEvent(b"x", 77), "k") == (b"x", route_hash(b"k"))
    assert normalise(RawEvent(b"x"), None) == (b"x", route_hash(b"x"))


@pytest.mark.parametrize("data", [bytearray(b"ab"), memoryview(b"ab"), memoryview(b"a-b-")[::2]])
def test_normalise_bytes_like_is_copied(data: Any) -> None:
    """A mutable buffer is stored as what it held at ingest."""
    payload, route = normalise(data, None)
    assert type(payload) is bytes
    assert payload == b"ab"
    assert route == route_hash(b"ab")


class Text(bytes):
    """A subclass of bytes, as libraries make them."""


def test_normalise_bytes_subclass_is_stored_as_plain_bytes() -> None:
    """Nobody's subclass lives on in a ring."""
    payload, _ = normalise(Text(b"ab"), None)
    assert type(payload) is bytes


@pytest.mark.parametrize("event", ["text", 5, None, {"a": 1}, [b"x"], RawEvent("text"), Event("{}")])  # type: ignore[arg-type]
def test_normalise_no_bytes_is_refused_with_advice(event: Any) -> None:
    """Neither text nor objects slip into a ring, not even wrapped by hand."""
    with pytest.raises(PayloadError, match=r"takes bytes or RawEvent, not .*use Event.from_str"):
        normalise(event, None)


@pytest.mark.parametrize("hash_", ["77", 1.5, b"7"])
def test_normalise_raw_event_with_bad_hash_is_refused(hash_: Any) -> None:
    """A hash that is no int cannot route."""
    with pytest.raises(PayloadError, match="route hash must be an int"):
        normalise(RawEvent(b"x", hash_), None)


@pytest.mark.parametrize(
    ("value", "json"),
    [
        ({"b": 1, "a": [None, True]}, b'{"b":1,"a":[null,true]}'),
        ("text", b'"text"'),
        (12, b"12"),
        (float("nan"), b"null"),
        ([float("inf"), float("-inf")], b"[null,null]"),
        ({1: 2}, b'{"1":2}'),
    ],
)
def test_encoded_value_is_json(value: Any, json: bytes) -> None:
    """What msgspec encodes is taken; NaN and infinities become null, as documented."""
    assert encoded(value) == json


@pytest.mark.parametrize(
    "value",
    [
        Unstorable(),
        {"a": Unstorable()},
        {(1, 2): 3},
        "\ud800",
        {"\udfff": 1},
        emptied(),
        nested(200_000),
    ],
    ids=lambda value: type(value).__name__,
)
def test_encoded_value_that_is_no_json_is_refused(value: Any) -> None:
    """Unserialisable, surrogates, too deep, half made: all one kind of error with its cause."""
    with pytest.raises(PayloadError, match="cannot encode " + type(value).__name__) as caught:
        encoded(value)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("value", [b"{}", bytearray(b"{}"), memoryview(b"{}")])
def test_encoded_bytes_are_refused_with_advice(value: Any) -> None:
    """Bytes are no JSON value: nothing is guessed (base64, text)."""
    with pytest.raises(PayloadError, match="use ingest_raw"):
        encoded(value)


def test_encoded_struct_is_encoded_once() -> None:
    """The bytes of a struct are msgspec's own."""

    class Token(msgspec.Struct):
        token: str

    assert encoded(Token("hello")) == b'{"token":"hello"}'
