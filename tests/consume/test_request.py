"""What a poll may be asked: ranges, times, and that a request does not change."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netcore import ConfigError, ConsumeRequest, EventBus, EventBusConfig

ZONES = st.sampled_from([dt.UTC, dt.timezone(dt.timedelta(hours=14)), dt.timezone(dt.timedelta(hours=-12))])


@pytest.mark.parametrize("limit", [0, -1, 100_001, 1 << 70, 1.0, "5", True, None])
def test_limit_out_of_range_is_refused_with_its_value(limit: Any) -> None:
    """Zero, negative, huge, and what is no int."""
    with pytest.raises(ConfigError, match="limit must be an int from 1 to 100,000") as raised:
        ConsumeRequest(limit)
    assert repr(limit) in str(raised.value)


@pytest.mark.parametrize("limit", [1, 100_000])
def test_limit_at_its_edges_is_taken(limit: int) -> None:
    """Both ends are inside."""
    assert ConsumeRequest(limit).limit == limit


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("cursor", [b"bytes", 5]),
        (
            "start",
            ["", "head", -1, (1 << 62) + 1, 1.5, True, None, dt.datetime(2024, 1, 1), dt.date(2024, 1, 1)],
        ),
        ("shards", [[], [-1], [65_536], [1.0], [True], ["0"]]),
        ("ordering", ["", "time", None]),
        ("settle_ms", [-1, 3_600_001, float("nan"), float("inf"), "5", True, None]),
    ],
)
def test_option_out_of_range_is_refused_by_name(option: str, values: list[Any]) -> None:
    """The message has the option."""
    for value in values:
        with pytest.raises(ConfigError, match=option):
            ConsumeRequest(1, **{option: value})


def test_request_is_immutable_and_resumes_as_it_was() -> None:
    """A chain keeps what it asked for; `after` changes the cursor alone."""
    request = ConsumeRequest(
        7,
        start="earliest",
        filter={"path": "a", "value": 1},
        shards=[3, 1, 3],
        ordering="shard",
        settle_ms=2.5,
    )
    assert request.shards == (1, 3)
    with pytest.raises(AttributeError, match="build another to change 'limit'"):
        request.limit = 8
    resumed = request.after("cursor")
    assert resumed.cursor == "cursor"
    others = set(ConsumeRequest.__slots__) - {"cursor"}
    assert {name: getattr(resumed, name) for name in others} == {n: getattr(request, n) for n in others}


@given(st.datetimes(timezones=ZONES))
def test_start_time_of_any_year_lies_within_what_a_cursor_holds(time: dt.datetime) -> None:
    """Before 1970 it means the first event; in a far future, none; in between, that very microsecond."""
    start = ConsumeRequest(1, start=time).start
    assert isinstance(start, int)
    assert 0 <= start <= 1 << 62
    since = time - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    if dt.timedelta() <= since <= dt.timedelta(days=365 * 140):
        assert start == since // dt.timedelta(microseconds=1) * 1000


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
@pytest.mark.parametrize(("year", "expected"), [(1, 3), (1969, 3), (2400, 0), (9999, 0)])
async def test_chain_from_a_far_time_can_be_resumed(year: int, expected: int, anyio_backend: str) -> None:
    """The cursor of its first page is taken back."""
    async with EventBus(EventBusConfig(shards=1)) as bus:
        for number in range(3):
            bus.ingest({"n": number})
        await bus.flush(timeout=10)
        request = ConsumeRequest(2, start=dt.datetime(year, 1, 1, tzinfo=dt.UTC))
        events = []
        for _ in range(3):
            page = await bus.poll(request)
            events += page.events
            request = request.after(page.cursor)
        assert len(events) == expected
