"""A batch's two forms: events and columns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netcore import Batch, StoredEvent

COLUMNS = st.lists(st.tuples(st.integers(0, 1 << 62), st.binary(max_size=8)), min_size=1, max_size=12)


def both(pairs: list[tuple[int, bytes]]) -> tuple[Batch, Batch]:
    """Make one batch of columns and the same of events."""
    stamps, payloads = [ts for ts, _ in pairs], [raw for _, raw in pairs]
    events = [StoredEvent("", 3, ts, raw) for ts, raw in pairs]
    return (
        Batch(producer="p", shard=3, first_seq=7, stamps=stamps, payloads=payloads),
        Batch(producer="p", shard=3, first_seq=7, events=events),
    )


@given(COLUMNS)
def test_batch_of_columns_and_of_events_say_the_same(pairs: list[tuple[int, bytes]]) -> None:
    """Either form is made from the other."""
    for batch in both(pairs):
        assert len(batch) == len(pairs)
        assert list(zip(batch.stamps, batch.payloads, strict=True)) == pairs
        assert [(event.shard, event.ts, event.raw) for event in batch.events] == [
            (3, ts, raw) for ts, raw in pairs
        ]
        assert batch.events is batch.events
        assert batch.stamps is batch.stamps
        assert batch.payloads is batch.payloads


@given(COLUMNS, st.integers(0, 14), st.none() | st.integers(0, 14))
def test_batch_part_holds_what_a_slice_holds_and_goes_on_counting(
    pairs: list[tuple[int, bytes]], first: int, last: int | None
) -> None:
    """A part starts at its own sequence number; an empty one is refused."""
    for batch in both(pairs):
        if not pairs[first:last]:
            with pytest.raises(ValueError, match="no events from"):
                batch.part(first, last)
            continue
        part = batch.part(first, last)
        assert (part.producer, part.shard, part.first_seq) == ("p", 3, 7 + first)
        assert list(zip(part.stamps, part.payloads, strict=True)) == pairs[first:last]
        assert len(part) == len(part.events) == len(pairs[first:last])


def test_batch_equal_by_content() -> None:
    """Two batches of the same events are equal; another number, order or type makes them differ."""
    one, two = (
        Batch(producer="p", shard=1, first_seq=first, stamps=[1, 2], payloads=[b"a", b"b"])
        for first in (0, 2)
    )
    assert one == Batch(producer="p", shard=1, first_seq=0, stamps=[1, 2], payloads=[b"a", b"b"])
    assert one != two
    assert one != Batch(producer="p", shard=1, first_seq=0, stamps=[1, 2], payloads=[b"b", b"a"])
    assert one != "batch"
    assert "first_seq=0" in repr(one)
    assert "raw=b'a'" in repr(one)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"stamps": [1]},
        {"payloads": [b"x"]},
        {"stamps": [1, 2], "payloads": [b"x"]},
        {"events": [], "stamps": [], "payloads": []},
    ],
)
def test_batch_of_neither_or_uneven_columns_is_refused(content: dict[str, list[object]]) -> None:
    """The error says what a batch takes."""
    with pytest.raises(TypeError, match="takes events, or stamps and as many payloads"):
        Batch(producer="p", shard=0, first_seq=0, **content)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "columns", [{"stamps": [1, 2]}, {"payloads": [b"", b""]}, {"stamps": [1, 2], "payloads": [b""]}]
)
def test_batch_of_events_and_stray_columns_is_refused(columns: dict[str, list[object]]) -> None:
    """Half a pair of columns beside the events, or columns that do not match, would contradict them."""
    with pytest.raises(TypeError, match="events, or stamps"):
        Batch(producer="p", shard=0, first_seq=0, events=[StoredEvent("", 0, 1, b"")], **columns)  # type: ignore[arg-type]
