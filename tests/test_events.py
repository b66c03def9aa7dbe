"""What goes in and what comes out."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netcore import Event, IndexedEvent, PayloadError, RawEvent, StoredEvent
from netcore.events import get_index, new_indexed, set_index

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(JSON)
def test_event_from_str_any_document_keeps_its_bytes(value: Any) -> None:
    """Valid JSON is kept exactly as it was written, whitespace included."""
    text = "  " + msgspec.json.encode(value).decode() + "\n"
    assert Event.from_str(text).raw == text.encode()
    assert Event.from_bytes(text.encode()) == Event.from_str(text)


@pytest.mark.parametrize("text", ["", "{", "{'a': 1}", "NaN", "[1,]", "1 2", "nul", "\ud800", '"\x01"'])
def test_event_from_str_no_json_is_refused(text: str) -> None:
    """Every malformed document is a payload error."""
    with pytest.raises(PayloadError, match=r"not valid JSON|not encodable"):
        Event.from_str(text)


@pytest.mark.parametrize("data", [b"", b'"\xff"', b"{", b"[" * 200_000])
def test_event_from_bytes_no_json_is_refused(data: bytes) -> None:
    """Invalid UTF-8 and documents nested too deep too; a long one is not shown whole."""
    with pytest.raises(PayloadError, match=r"RawEvent\.from_bytes takes any bytes") as caught:
        Event.from_bytes(data)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("value", [b"{}", None, {}])
def test_event_from_str_no_text_is_refused(value: Any) -> None:
    """Only str."""
    with pytest.raises(PayloadError, match="takes str"):
        Event.from_str(value)


@pytest.mark.parametrize("value", ["{}", None, 5])
@pytest.mark.parametrize("make", [Event.from_bytes, RawEvent.from_bytes, RawEvent.from_bytes_validated])
def test_from_bytes_no_bytes_is_refused(make: Any, value: Any) -> None:
    """Only bytes-like."""
    with pytest.raises(PayloadError, match="takes bytes"):
        make(value)


@given(st.binary())
def test_raw_event_any_bytes_are_kept(data: bytes) -> None:
    """No check, no parse; mutable buffers are copied."""
    buffer = bytearray(data)
    event = RawEvent.from_bytes(buffer, hash=3)
    buffer += b"!"
    assert event.raw == data
    assert event.hash == 3


@pytest.mark.parametrize("hash_", [-1, "1", 1.0, True])
def test_raw_event_bad_hash_is_refused(hash_: Any) -> None:
    """A hash is a non-negative int."""
    with pytest.raises(PayloadError, match="hash must be a non-negative int"):
        RawEvent.from_bytes(b"x", hash=hash_)


def test_raw_event_validated_checks_and_keeps_the_hash() -> None:
    """The validated form differs in the check alone."""
    assert RawEvent.from_bytes_validated(b"[1]", hash=9) == RawEvent.from_bytes(b"[1]", hash=9)
    with pytest.raises(PayloadError, match="not valid JSON"):
        RawEvent.from_bytes_validated(b"[1")


def test_stored_event_decode_gives_plain_data_or_a_type() -> None:
    """`decode` is msgspec's."""

    class Token(msgspec.Struct):
        token: str

    event = StoredEvent(id="1", shard=0, ts=1, raw=b'{"token":"hello"}')
    assert event.decode() == {"token": "hello"}
    assert event.decode(Token) == Token("hello")
    with pytest.raises(msgspec.ValidationError, match="Expected `int`"):
        event.decode(dict[str, int])


def test_indexed_event_equals_the_stored_event_of_the_same_fields() -> None:
    """An id made lazily is the same id: equality, hash, repr and copies agree."""
    lazy = new_indexed(7, 2, 99, b"x")
    plain = StoredEvent(id="7", shard=2, ts=99, raw=b"x")
    assert lazy.id == "7"
    assert lazy == plain
    assert plain == lazy
    assert hash(lazy) == hash(plain)
    assert repr(lazy) == repr(plain)
    assert lazy != StoredEvent(id="8", shard=2, ts=99, raw=b"x")
    assert lazy != "7"
    set_index(lazy, 8)
    assert (lazy.id, get_index(lazy)) == ("8", 8)


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))])
def test_indexed_event_copied_keeps_its_fields(again: Any) -> None:
    """Consumers may copy and pickle what a poll returned."""
    event = IndexedEvent(7, 2, 99, b"x")  # type: ignore[arg-type]
    assert again(event) == event
    assert again(event).id == "7"


def test_stored_event_origin_tells_events_apart() -> None:
    """The same position at another origin is another event, and shows."""
    here = StoredEvent(id="1", shard=0, ts=1, raw=b"x")
    there = StoredEvent(id="1", shard=0, ts=1, raw=b"x", origin="other")
    assert here != there
    assert "origin='other'" in repr(there)
