"""Cursors: strict, canonical, compact, never a crash."""

from __future__ import annotations

import base64
import string

import msgspec
import pytest
import xxhash
from hypothesis import example, given, settings
from hypothesis import strategies as st

from netcore.consume.cursor import MAX_KEY, NO_KEY, Cursor, Entry, decode_cursor
from netcore.contracts.adapter import Stream
from netcore.errors import CursorError
from netcore.events import StoredEvent

positions = st.one_of(st.none(), st.text(max_size=30))
entries = st.dictionaries(
    st.builds(Stream, st.integers(0, 65_535), st.sampled_from(["", "a", "node-b"])),
    st.tuples(positions, st.integers(NO_KEY, MAX_KEY)),
    max_size=12,
)
starts = st.one_of(st.sampled_from(["tail", "earliest"]), st.integers(0, 1 << 62))
turns = st.one_of(st.none(), st.tuples(st.integers(0, 65_535), st.text(max_size=5)))


def sample() -> Cursor:
    return Cursor("memory:1f", "tail", 17, {Stream(0): ("5", 100), Stream(3, "b"): (None, NO_KEY)}, (3, "b"))


def seal(body: bytes, version: bytes = b"\x01") -> str:
    packed = version + xxhash.xxh3_64_digest(version + body) + body
    return base64.urlsafe_b64encode(packed).rstrip(b"=").decode()


@given(start=starts, since=st.integers(0, 1 << 62), held=entries, turn=turns)
@settings(deadline=None)
def test_cursor_any_state_comes_back_as_it_was(
    start: str | int, since: int, held: dict[Stream, Entry], turn: tuple[int, str] | None
) -> None:
    """Encoding and decoding lose nothing, and one state has one text whatever the order of its entries."""
    cursor = Cursor("memory:1f", start, since, held, turn)
    back = decode_cursor(cursor.text, "memory:1f")
    assert (back.start, back.since, back.entries, back.turn) == (start, since, held, turn)
    assert back.text == cursor.text
    turned = dict(reversed(list(held.items())))
    assert Cursor("memory:1f", start, since, turned, turn).text == cursor.text


@given(bit=st.integers(0, 10_000))
@settings(deadline=None)
def test_cursor_with_one_bit_flipped_is_refused(bit: int) -> None:
    """No single altered bit goes unnoticed."""
    text = sample().text
    packed = bytearray(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    bit %= len(packed) * 8
    packed[bit // 8] ^= 1 << (bit % 8)
    altered = base64.urlsafe_b64encode(bytes(packed)).rstrip(b"=").decode()
    with pytest.raises(CursorError, match="begin a new chain"):
        decode_cursor(altered, "memory:1f")


def test_cursor_with_any_character_changed_or_cut_is_refused() -> None:
    """Every character matters, the last one's spare bits too."""
    text = sample().text
    for index in range(len(text)):
        for new in "Ab_-9":
            if text[index] != new:
                with pytest.raises(CursorError):
                    decode_cursor(text[:index] + new + text[index + 1 :], "memory:1f")
        with pytest.raises(CursorError):
            decode_cursor(text[:index], "memory:1f")
    for junk in ("=", "\n", " ", "A", "AAAA"):
        with pytest.raises(CursorError):
            decode_cursor(text + junk, "memory:1f")


@given(text=st.one_of(st.text(), st.text(string.ascii_letters + string.digits + "-_", max_size=200)))
@example("")
@example("\ud800")
@example("A" * ((1 << 20) + 1))
@example("é" * 10)
@settings(deadline=None)
def test_cursor_from_random_text_is_refused(text: str) -> None:
    """Random text is an error that says what to do, never a crash."""
    with pytest.raises(CursorError, match="begin a new chain"):
        decode_cursor(text, "memory:1f")


@given(body=st.binary(max_size=80))
@settings(deadline=None)
def test_cursor_with_right_checksum_over_random_bytes_is_refused(body: bytes) -> None:
    """The checksum is no signature: what lies behind it is checked all the same."""
    with pytest.raises(CursorError, match="begin a new chain"):
        decode_cursor(seal(body), "memory:1f")


@pytest.mark.parametrize(
    "document",
    [
        ["memory:1f", "later", 0, None, [], []],
        ["memory:1f", -1, 0, None, [], []],
        ["memory:1f", 1 << 63, 0, None, [], []],
        ["memory:1f", "tail", 0, None, [], [], "extra"],
        ["memory:1f", "tail", 0, None, []],
        ["memory:1f", "tail", 0.5, None, [], []],
        ["memory:1f", "tail", 0, None, [""], [[70_000, 0, "1", 1]]],
        ["memory:1f", "tail", 0, None, [""], [[-1, 0, "1", 1]]],
        ["memory:1f", "tail", 0, None, [""], [[1, 1, "1", 1]]],
        ["memory:1f", "tail", 0, None, [""], [[1, -1, "1", 1]]],
        ["memory:1f", "tail", 0, None, [""], [[1, 0, 5, 1]]],
        ["memory:1f", "tail", 0, None, [""], [[1, 0, "1", (1 << 64) - 1]]],
        ["memory:1f", "tail", 0, None, [""], [[1, 0, "1", 1], [1, 0, "2", 2]]],
        ["memory:1f", "tail", 0, None, [""], [[2, 0, "1", 1], [1, 0, "2", 2]]],
        ["memory:1f", "tail", 0, None, ["", ""], [[1, 0, "1", 1], [2, 1, "2", 2]]],
        ["memory:1f", "tail", 0, None, ["unused"], []],
        ["memory:1f", "tail", 0, [1], [], []],
        {"identity": "memory:1f"},
        "text",
        None,
        [[[[]]]] * 6,
    ],
)
def test_cursor_with_a_malformed_document_is_refused(document: object) -> None:
    """Types, ranges, duplicates, order and unused parts: only what a response writes is read."""
    with pytest.raises(CursorError, match="begin a new chain"):
        decode_cursor(seal(msgspec.msgpack.encode(document)), "memory:1f")


def test_cursor_nested_deeply_is_refused() -> None:
    """Nesting beyond any recursion limit is an error like others."""
    with pytest.raises(CursorError, match="malformed"):
        decode_cursor(seal(b"\x91" * 100_000), "memory:1f")


def test_cursor_of_another_version_is_refused_by_its_number() -> None:
    """A later format is named as such, not as damage."""
    with pytest.raises(CursorError, match="format 2"):
        decode_cursor(seal(b"anything", b"\x02"), "memory:1f")


def test_cursor_of_another_store_names_both_kinds_and_no_address() -> None:
    """The message tells which kind of store is needed; namespaces stay private."""
    text = Cursor("redis:secret-namespace", "tail", 0, {}).text
    with pytest.raises(CursorError, match=r"'redis'.*'memory'") as caught:
        decode_cursor(text, "memory:1f")
    assert "secret" not in str(caught.value)
    with pytest.raises(CursorError, match="another 'redis' store"):
        decode_cursor(text, "redis:other")


def test_cursor_over_five_thousand_streams_is_far_from_the_limit() -> None:
    """Many streams with long positions fit."""
    held: dict[Stream, Entry] = {
        Stream(shard, f"node-{shard % 5}"): ("1700000000000-123456:1023", 1_700_000_000_000_000_000 + shard)
        for shard in range(5000)
    }
    cursor = Cursor("redis:net", "earliest", 0, held)
    assert len(cursor.text) < 400_000
    assert decode_cursor(cursor.text, "redis:net").entries == held


def test_cursor_over_too_many_streams_is_refused_when_written() -> None:
    """A cursor that no poll would take back is not handed out."""
    held: dict[Stream, Entry] = {Stream(shard): ("x" * 100, 1) for shard in range(10_000)}
    with pytest.raises(CursorError, match="10,000 streams"):
        _ = Cursor("redis:net", "earliest", 0, held).text


def test_cursor_too_large_is_refused_before_any_parsing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that is sound otherwise: nobody is made to decode what a request happened to bring."""
    document = ["memory:1f", "tail", 0, None, [""], [[n, 0, "x" * 200, 1] for n in range(5000)]]
    text = seal(msgspec.msgpack.encode(document))
    assert len(text) > 1 << 20
    monkeypatch.setattr(base64, "urlsafe_b64decode", lambda text: pytest.fail("it was decoded"))
    with pytest.raises(CursorError, match="characters, more than any cursor has"):
        decode_cursor(text, "memory:1f")


def test_cursor_moved_by_nothing_is_itself() -> None:
    """What does not change is not encoded again."""
    cursor = sample()
    assert cursor.moved({Stream(0): ("5", 100)}, (3, "b")) is cursor
    assert cursor.without({Stream(9)}) is cursor
    assert cursor.moved({Stream(0): ("6", 100)}, (3, "b")).text != cursor.text
    assert cursor.without({Stream(0)}).entries == {Stream(3, "b"): (None, NO_KEY)}


def test_cursor_advanced_over_events_holds_last_id_and_largest_key() -> None:
    """Each stream moves to its last event; keys never fall."""
    cursor = sample()
    events = [
        StoredEvent(id="6", shard=0, ts=50, raw=b""),
        StoredEvent(id="1", shard=3, ts=70, raw=b"", origin="b"),
        StoredEvent(id="2", shard=3, ts=60, raw=b"", origin="b"),
    ]
    moved = cursor.advanced(events)
    assert moved.entries == {Stream(0): ("6", 100), Stream(3, "b"): ("2", 70)}
    assert moved.turn == cursor.turn
