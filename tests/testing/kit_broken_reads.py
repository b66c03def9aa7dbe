"""Adapters broken at reading.

Each says in `fails` which clauses find it out: those and no others; where a defect is `broad` (it
makes nearly everything fail), those at least.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kit_store import ANY, StoreAdapter, clauses

from netcore.contracts.adapter import (
    Gap,
    ReadRequest,
    ShardPage,
    Stream,
)
from netcore.errors import (
    CursorError,
)


class GuessesHasMore(StoreAdapter):
    """A full page is taken for a sign of more."""

    fails = clauses("has_more_is_exact_at_the_end")

    async def read(self, stream: Stream, after: str | None, limit: int, snapshot: object = None) -> ShardPage:
        page = await super().read(stream, after, limit, snapshot)
        page.has_more = len(page.events) == limit
        return page


class RestartsOnBadPosition(StoreAdapter):
    """What it cannot read it takes for the beginning."""

    fails = clauses("malformed_positions_are_cursor_errors", "read_many_answers_each_request_in_its_place")

    def parse(self, stream: Stream, position: str) -> int:
        try:
            return super().parse(stream, position)
        except CursorError:
            return 0


class TakesWhateverIntTakes(StoreAdapter):
    """Leaves the check to int()."""

    fails = clauses("malformed_positions_are_cursor_errors", "read_many_answers_each_request_in_its_place")

    def parse(self, stream: Stream, position: str) -> int:
        return int(position)


class SeeksLate(StoreAdapter):
    """Returns the found event's own position, which reading goes on after."""

    fails = clauses("seek_is_never_late", "seek_in_a_trimmed_stream_is_never_late")

    async def seek(self, stream: Stream, ts: int) -> str | None:
        _, tail = await self.bounds(stream)
        found = await super().seek(stream, ts)
        assert found is not None
        return str(min(int(found) + 1, int(tail)))


class SeeksAsIfSorted(StoreAdapter):
    """Counts the older events, wherever they stand."""

    fails = clauses("seek_is_never_late")

    async def seek(self, stream: Stream, ts: int) -> str | None:
        trimmed = self.store.trimmed.get(stream.shard, 0)
        return str(trimmed + sum(event.ts < ts for event in self.store.events.get(stream.shard, [])))


class ConsumesItsLookAhead(StoreAdapter):
    """The event read to know whether there is more is gone."""

    fails = clauses(
        "pages_of_every_size_return_each_event_once",
        "reading_takes_nothing_away",
        "gap_on_a_trimmed_stream_is_told_once",
        "append_of_the_most_bytes_is_stored",
        "appends_of_shards_overlap_with_reads",
        "append_of_the_largest_batch_is_stored",
        "snapshot_hides_what_was_appended_later",
        ANY,
    )

    async def read(self, stream: Stream, after: str | None, limit: int, snapshot: object = None) -> ShardPage:
        page = await super().read(stream, after, limit, snapshot)
        if page.has_more:
            page.position = str(int(page.position) + 1)
        return page


class ReadsOnlyOnce(StoreAdapter):
    """Reading takes away: what was returned is not returned again."""

    fails = clauses("reading_takes_nothing_away")
    _seen: set[str]

    async def read(self, stream: Stream, after: str | None, limit: int, snapshot: object = None) -> ShardPage:
        page = await super().read(stream, after, limit, snapshot)
        key = f"{stream}{after}{limit}{page.position}"
        seen = self.__dict__.setdefault("_seen", set())
        if key in seen and limit == 2:
            page.events = page.events[1:]
        seen.add(key)
        return page


class IgnoresSnapshots(StoreAdapter):
    """Reads what is there now."""

    fails = clauses("snapshot_hides_what_was_appended_later")

    async def read(self, stream: Stream, after: str | None, limit: int, snapshot: object = None) -> ShardPage:
        return await super().read(stream, after, limit)


class RepeatsGaps(StoreAdapter):
    """Tells of a gap on every page of a trimmed stream."""

    fails = clauses(
        "gap_on_a_trimmed_stream_is_told_once",
        "gap_tells_where_reading_went_on",
        "earliest_of_a_trimmed_stream_has_no_gap",
    )

    async def read(self, stream: Stream, after: str | None, limit: int, snapshot: object = None) -> ShardPage:
        page = await super().read(stream, after, limit, snapshot)
        if trimmed := self.store.trimmed.get(stream.shard, 0):
            page.gap = page.gap or Gap(shard=stream.shard, missed=1, resumed_at=str(trimmed))
        return page


class HidesGaps(StoreAdapter):
    """Skips what is gone without a word."""

    fails = clauses("gap_on_a_trimmed_stream_is_told_once", "gap_tells_where_reading_went_on")

    async def read(self, stream: Stream, after: str | None, limit: int, snapshot: object = None) -> ShardPage:
        page = await super().read(stream, after, limit, snapshot)
        page.gap = None
        return page


class MiscountsGaps(StoreAdapter):
    """One off."""

    fails = clauses("gap_on_a_trimmed_stream_is_told_once")

    async def read(self, stream: Stream, after: str | None, limit: int, snapshot: object = None) -> ShardPage:
        page = await super().read(stream, after, limit, snapshot)
        if page.gap is not None and page.gap.missed is not None:
            page.gap = Gap(shard=page.gap.shard, missed=page.gap.missed + 1, resumed_at=page.gap.resumed_at)
        return page


class CreatesStreamsByReading(StoreAdapter):
    """A consumer's look leaves an empty stream behind."""

    fails = clauses("reading_an_unknown_stream_creates_nothing")

    async def read(self, stream: Stream, after: str | None, limit: int, snapshot: object = None) -> ShardPage:
        page = await super().read(stream, after, limit, snapshot)
        if after is None:
            self.store.events.setdefault(stream.shard, [])
            self.store.trimmed.setdefault(stream.shard, 0)
        return page


class FailsTheWholeReadMany(StoreAdapter):
    """One bad position spoils all."""

    fails = clauses("read_many_answers_each_request_in_its_place")

    async def read_many(
        self, requests: Sequence[ReadRequest], snapshot: object = None
    ) -> list[ShardPage | Exception]:
        return [await self.read(r.stream, r.after, r.limit, snapshot) for r in requests]


class AnswersReadManyByShard(StoreAdapter):
    """Pages come sorted, not as asked for."""

    fails = clauses("read_many_answers_each_request_in_its_place")

    async def read_many(
        self, requests: Sequence[ReadRequest], snapshot: object = None
    ) -> list[ShardPage | Exception]:
        return await super().read_many(sorted(requests, key=lambda r: r.stream.shard), snapshot)


class ListsWhatItReadOnly(StoreAdapter):
    """`read_listed` names the streams that were asked for."""

    fails = clauses("read_listed_is_read_many_and_streams")

    async def read_listed(
        self, requests: Sequence[ReadRequest]
    ) -> tuple[list[ShardPage | Exception], list[Stream]]:
        return await self.read_many(requests), [request.stream for request in requests]


class ReadsMoreWhenListing(StoreAdapter):
    """Pages of `read_listed` are longer than asked for."""

    fails = clauses("read_listed_is_read_many_and_streams")

    async def read_listed(
        self, requests: Sequence[ReadRequest]
    ) -> tuple[list[ShardPage | Exception], list[Stream]]:
        return await super().read_listed([ReadRequest(r.stream, r.after, r.limit + 1) for r in requests])


class TailLagsBehind(StoreAdapter):
    """Its tail is one event early."""

    fails = clauses("bounds_are_the_ends_of_the_stream", "earliest_of_a_trimmed_stream_has_no_gap", ANY)

    async def bounds(self, stream: Stream) -> tuple[str, str]:
        earliest, tail = await super().bounds(stream)
        return earliest, str(max(int(earliest), int(tail) - 1))

    async def news(self, positions: Mapping[Stream, str | None]) -> bool:
        return True


class ResumesWithTheEventItself(StoreAdapter):
    """Ids are taken for positions before the event."""

    broad = True
    fails = clauses(
        "resuming_after_any_event_goes_on_with_the_next", "pages_of_every_size_return_each_event_once"
    )

    async def read(self, stream: Stream, after: str | None, limit: int, snapshot: object = None) -> ShardPage:
        start = None if after is None else str(max(0, self.parse(stream, after) - 1))
        return await super().read(stream, start, limit, snapshot)


class ForgetsWhereItStands(StoreAdapter):
    """A page without events points to the beginning."""

    fails = clauses("read_at_the_end_keeps_its_position")

    async def read(self, stream: Stream, after: str | None, limit: int, snapshot: object = None) -> ShardPage:
        page = await super().read(stream, after, limit, snapshot)
        if not page.events:
            page.position = "0"
        return page


class HasNoPositionYet(StoreAdapter):
    """An unknown stream has no position to go on from."""

    fails = clauses("read_before_anything_was_stored_is_resumable")

    async def read(self, stream: Stream, after: str | None, limit: int, snapshot: object = None) -> ShardPage:
        page = await super().read(stream, after, limit, snapshot)
        if stream.shard not in self.store.events:
            page.position = "-"
        return page


class SeeksNowhere(StoreAdapter):
    """Seeking in an unknown stream leads to what is no position."""

    fails = clauses("seek_in_an_unknown_stream_is_resumable")

    async def seek(self, stream: Stream, ts: int) -> str | None:
        return await super().seek(stream, ts) if stream.shard in self.store.events else "-"
