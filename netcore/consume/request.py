"""What a poll is asked (`ConsumeRequest`) and what it answers (`ConsumeResponse`)."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from typing import Any, Final

from netcore.contracts.adapter import Gap
from netcore.contracts.answers import MAX_SHARD
from netcore.contracts.filters import EventFilter
from netcore.errors import ConfigError
from netcore.events import StoredEvent

__all__ = ["ConsumeRequest", "ConsumeResponse"]

MAX_LIMIT: Final = 100_000
MAX_TIME: Final = 1 << 62
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def start_ns(start: str | int | dt.datetime) -> str | int:
    """Normalise `start`: "tail", "earliest", or int nanoseconds since the epoch."""
    if isinstance(start, dt.datetime):
        if start.tzinfo is None:
            raise ConfigError(f"start={start!r} has no time zone; give one, e.g. tzinfo=datetime.UTC")
        # A year that no timestamp reaches is still a time: everything, or nothing, is after it.
        return min(MAX_TIME, max(0, (start - _EPOCH) // dt.timedelta(microseconds=1) * 1000))
    if start in ("tail", "earliest") or (type(start) is int and 0 <= start <= MAX_TIME):
        return start
    raise ConfigError(
        f'start must be "tail", "earliest", a datetime with time zone or nanoseconds '
        f"since the epoch, not {start!r}"
    )


class ConsumeRequest:
    """What one poll is asked. Immutable.

    Args:
        limit: most events to return, 1..100,000; with a filter: most matches.
        cursor: where an earlier response ended; None begins a new chain at `start`.
        start: "tail" (from now on), "earliest", or a time (datetime with zone, or ns since the
            epoch; events at that time included). Applies only without a cursor.
        filter: an `EventFilter`, or its JSON form (dict or text) for the installed filter plugin.
        shards: ids to poll, or None for all.
        ordering: "causal" (across shards, by time; every stream in its own order) or "shard"
            (every stream in its own order, nothing said across them; fastest).
        settle_ms: serve only events at least this old; for stores without a watermark.

    Raises:
        ConfigError: a value out of range; the message names it.
    """

    __slots__ = ("cursor", "filter", "limit", "ordering", "settle_ms", "shards", "start")

    limit: int
    cursor: str | None
    start: str | int
    filter: EventFilter | dict[str, Any] | str | bytes | None
    shards: tuple[int, ...] | None
    ordering: str
    settle_ms: float

    def __init__(
        self,
        limit: int,
        *,
        cursor: str | None = None,
        start: str | int | dt.datetime = "tail",
        filter: EventFilter | dict[str, Any] | str | bytes | None = None,
        shards: Iterable[int] | None = None,
        ordering: str = "causal",
        settle_ms: float = 0,
    ) -> None:
        if type(limit) is not int or not 1 <= limit <= MAX_LIMIT:
            raise ConfigError(f"limit must be an int from 1 to {MAX_LIMIT:,}, not {limit!r}")
        if cursor is not None and not isinstance(cursor, str):
            raise ConfigError(f"cursor must be the str of an earlier response, not {cursor!r:.60}")
        if ordering not in ("causal", "shard"):
            raise ConfigError(f'ordering must be "causal" or "shard", not {ordering!r}')
        if (
            isinstance(settle_ms, bool)
            or not isinstance(settle_ms, int | float)
            or not 0 <= settle_ms <= 3.6e6
        ):
            raise ConfigError(f"settle_ms must be a number from 0 to 3,600,000, not {settle_ms!r}")
        values = {
            "limit": limit,
            "cursor": cursor,
            "start": start_ns(start),
            "filter": filter,
            "shards": None if shards is None else _shard_ids(shards),
            "ordering": ordering,
            "settle_ms": settle_ms,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"ConsumeRequest is immutable; build another to change {name!r}")

    def __repr__(self) -> str:
        return f"ConsumeRequest({', '.join(f'{name}={getattr(self, name)!r}' for name in self.__slots__)})"

    def after(self, cursor: str) -> ConsumeRequest:
        """Return the same request resuming at `cursor`."""
        return ConsumeRequest(
            self.limit,
            cursor=cursor,
            start=self.start,
            filter=self.filter,
            shards=self.shards,
            ordering=self.ordering,
            settle_ms=self.settle_ms,
        )


def _shard_ids(shards: Iterable[int]) -> tuple[int, ...]:
    try:
        ids = tuple(shards)
    except TypeError:
        raise ConfigError(f"shards takes a list of ids, not {shards!r:.60}") from None
    for shard in ids:
        if type(shard) is not int or not 0 <= shard <= MAX_SHARD:
            raise ConfigError(f"shards must be ids from 0 to {MAX_SHARD:,}, not {shard!r}")
    if not ids:
        raise ConfigError("shards is empty; leave it out to poll every shard")
    return tuple(sorted(set(ids)))


class ConsumeResponse:
    """What one poll answers.

    Attributes:
        events: what was found, at most `limit`.
        cursor: where to resume; always set, unchanged when nothing was found.
        has_more: stored events that this chain has not returned exist, held-back ones included.
        gaps: events that this chain can no longer have, each reported once.
        failed_shards: shard -> why it could not be read; it keeps its position.
        lagging_shards: shards that no longer hold back the others (`causal_wait_ms`).
        undecodable: payloads or entries found undecodable; a lower bound where bytes alone ruled
            a match out.
    """

    __slots__ = ("cursor", "events", "failed_shards", "gaps", "has_more", "lagging_shards", "undecodable")

    def __init__(
        self,
        events: list[StoredEvent],
        cursor: str,
        *,
        has_more: bool = False,
        gaps: list[Gap] | None = None,
        failed_shards: dict[int, str] | None = None,
        lagging_shards: set[int] | None = None,
        undecodable: int = 0,
    ) -> None:
        self.events = events
        self.cursor = cursor
        self.has_more = has_more
        self.gaps = gaps or []
        self.failed_shards = failed_shards or {}
        self.lagging_shards = lagging_shards or set()
        self.undecodable = undecodable

    def __repr__(self) -> str:
        notes = [f"{len(self.events)} events", f"has_more={self.has_more}"]
        for name in ("gaps", "failed_shards", "lagging_shards", "undecodable"):
            if value := getattr(self, name):
                notes.append(f"{name}={value!r}")
        return f"ConsumeResponse({', '.join(notes)})"
