"""Clauses on `read`, `read_many`, `bounds`, `seek`, `snapshot` and gaps."""

from __future__ import annotations

import pytest

from netcore.contracts.adapter import Adapter, Gap, ReadRequest, ShardPage, Stream
from netcore.errors import CursorError
from netcore.testing._base import AnyAdapter, ContractBase, OpenAdapter, Writer, drain, payloads, raws

__all__ = ["MALFORMED_POSITIONS", "ReadingClauses"]

MALFORMED_POSITIONS = (
    "",
    " ",
    "junk",
    "\x00",
    "-1",
    "+1",
    "1 ",
    " 1",
    "1_0",
    "1e3",
    "0x1",
    "\u0661\u0662",  # Arabic digits: int() takes them
    "\u00b2",
    "\ud800",
    "None",
    "null",
    "{}",
    "../../etc/passwd",
    "$",
    "*",
    ">",
    "9" * 400,
    "9" * 5000,  # more digits than int() takes
    "-" * 70_000,
)
"""Texts that no adapter may take for a position."""


class ReadingClauses(ContractBase):
    """What reading promises."""

    async def test_pages_of_every_size_return_each_event_once(self, adapter: AnyAdapter) -> None:
        """Whatever the limit, the pages put together are the stream."""
        writer = Writer(adapter)
        for size in (1, 3, 6):
            await writer.write(payloads(size, prefix=f"b{size}"))
        for limit in range(1, 13):
            found = await drain(adapter, limit=limit)
            assert raws(found) == raws(writer.written), f"at limit {limit}"
            assert len({event.id for event in found}) == len(found)

    async def test_has_more_is_exact_at_the_end(self, adapter: AnyAdapter) -> None:
        """It is False when a page ends with the last event, and True one event before."""
        await Writer(adapter).write(payloads(6))
        for limit, more in ((5, True), (6, False), (7, False)):
            page = await adapter.read(Stream(0), None, limit)
            assert page.has_more is more, f"6 events, limit {limit}"
        page = await adapter.read(Stream(0), page.events[3].id, 2)
        assert (len(page.events), page.has_more) == (2, False)

    async def test_resuming_after_any_event_goes_on_with_the_next(self, adapter: AnyAdapter) -> None:
        """Every event's id is an exact position: the merger cuts pages anywhere."""
        writer = Writer(adapter)
        await writer.write(payloads(4, prefix="a"))
        await writer.write(payloads(4, prefix="b"))
        found = await drain(adapter)
        for index, event in enumerate(found):
            assert raws(await drain(adapter, after=event.id)) == raws(writer.written)[index + 1 :]

    async def test_read_at_the_end_keeps_its_position(self, adapter: AnyAdapter) -> None:
        """Nothing new: an empty page whose position goes on with what comes next."""
        writer = Writer(adapter)
        await writer.write(payloads(3))
        end = (await drain(adapter)).position
        page = await adapter.read(Stream(0), end, 10)
        assert (page.events, page.has_more, page.gap, page.position) == ([], False, None, end)
        await writer.write(payloads(2, prefix="new"))
        assert raws(await drain(adapter, after=page.position)) == payloads(2, prefix="new")

    async def test_read_before_anything_was_stored_is_resumable(self, adapter: AnyAdapter) -> None:
        """The position of an empty page of an unknown stream goes on with its first event."""
        page = await adapter.read(Stream(4), None, 10)
        assert (page.events, page.has_more, page.gap) == ([], False, None)
        await Writer(adapter, shard=4).write(payloads(2))
        assert raws(await drain(adapter, 4, after=page.position)) == payloads(2)

    async def test_reading_takes_nothing_away(self, adapter: AnyAdapter) -> None:
        """The same page can be read again, and a look ahead consumes nothing."""
        await Writer(adapter).write(payloads(5))
        first = await adapter.read(Stream(0), None, 2)
        again = await adapter.read(Stream(0), None, 2)
        assert (first.events, first.position) == (again.events, again.position)
        following = await adapter.read(Stream(0), first.position, 2)
        assert raws(following.events) == payloads(5)[2:4]

    async def test_reading_an_unknown_stream_creates_nothing(self, adapter: AnyAdapter) -> None:
        """Consumers leave no trace: `streams` lists what was written only."""
        await Writer(adapter, shard=1).write(payloads(1))
        await adapter.read(Stream(2), None, 10)
        await adapter.read_many([ReadRequest(Stream(3), None, 10)])
        await adapter.bounds(Stream(4))
        await adapter.seek(Stream(5), 10**18)
        assert await adapter.streams() == [Stream(1)]

    async def test_malformed_positions_are_cursor_errors(self, adapter: AnyAdapter) -> None:
        """They raise; none restarts from the beginning or crashes, in an unknown stream neither."""
        await Writer(adapter).write(payloads(3))
        for position in (*MALFORMED_POSITIONS, *self.foreign_positions):
            for stream in (Stream(0), Stream(9)):
                try:
                    page = await adapter.read(stream, position, 10)
                except CursorError:
                    continue
                pytest.fail(f"position {position[:40]!r} of {stream} was taken, and read {page}")

    async def test_read_many_answers_each_request_in_its_place(self, adapter: AnyAdapter) -> None:
        """Pages come in the order asked for and equal single reads; a bad position harms its own only."""
        for shard in (0, 1):
            await Writer(adapter, shard=shard).write(payloads(4, prefix=f"s{shard}"))
        middle = (await drain(adapter, 1))[1].id
        requests = [
            ReadRequest(Stream(1), middle, 1),
            ReadRequest(Stream(0), "junk", 10),
            ReadRequest(Stream(8), None, 10),
            ReadRequest(Stream(0), None, 3),
        ]
        pages = await adapter.read_many(requests)
        assert len(pages) == 4
        assert isinstance(pages[1], CursorError)
        for index in (0, 2, 3):
            page, request = pages[index], requests[index]
            assert isinstance(page, ShardPage)
            single = await adapter.read(request.stream, request.after, request.limit)
            assert (page.events, page.position, page.has_more) == (
                single.events,
                single.position,
                single.has_more,
            )

    async def test_read_listed_is_read_many_and_streams(self, adapter: AnyAdapter) -> None:
        """Pages equal those of `read_many`; the list names every stream there is, read or not."""
        if type(adapter).read_listed is Adapter.read_listed:
            pytest.skip("the adapter has no `read_listed` of its own")
        for shard in (0, 1):
            await Writer(adapter, shard=shard).write(payloads(9, prefix=f"s{shard}"))
        after: str | None = None
        for turn in range(4):  # readers that go on where they stopped may be served from memory
            await Writer(adapter, shard=5 + turn).write(payloads(1))
            requests = [ReadRequest(Stream(0), after, 2), ReadRequest(Stream(1), None, 2)]
            pages, streams = await adapter.read_listed(requests)
            many = await adapter.read_many(requests)
            assert len(pages) == len(many) == 2
            for page, other in zip(pages, many, strict=True):
                assert isinstance(page, ShardPage)
                assert isinstance(other, ShardPage)
                assert (page.events, page.position) == (other.events, other.position)
            first = pages[0]
            assert isinstance(first, ShardPage)
            assert raws(first.events) == payloads(9, prefix="s0")[2 * turn : 2 * turn + 2]
            after = first.position
            assert {Stream(0), Stream(1)} <= set(streams)
        pages, streams = await adapter.read_listed([ReadRequest(Stream(0), after, 9)])
        last = pages[0]
        assert isinstance(last, ShardPage)
        assert (raws(last.events), last.has_more) == (payloads(9, prefix="s0")[8:], False)
        # A page that ends the stream is new, so the list is.
        assert {Stream(shard) for shard in (0, 1, 5, 6, 7, 8)} <= set(streams)

    async def test_bounds_are_the_ends_of_the_stream(self, adapter: AnyAdapter) -> None:
        """After `earliest` everything is read; after `tail` what is stored next; empty: equal."""
        earliest, tail = await adapter.bounds(Stream(0))
        assert earliest == tail
        writer = Writer(adapter)
        await writer.write(payloads(3))
        assert raws(await drain(adapter, after=tail)) == raws(writer.written)
        earliest, tail = await adapter.bounds(Stream(0))
        assert raws(await drain(adapter, after=earliest)) == raws(writer.written)
        assert await drain(adapter, after=tail) == []
        await writer.write(payloads(1, prefix="next"))
        assert raws(await drain(adapter, after=tail)) == payloads(1, prefix="next")

    async def test_seek_is_never_late(self, adapter: AnyAdapter) -> None:
        """Every event at or after the time lies after the position, though stamps go up and down."""
        writer = Writer(adapter)
        now = next(writer._ts) // 1000 * 1000 + 789  # no round number
        stamps = [now + step * 10**6 for step in (0, 50, 10, 90, 30, 200, 120, 121, 60, 300)]
        await writer.write(payloads(6), ts=stamps[:6])
        await writer.write(payloads(4, prefix="b"), ts=stamps[6:])
        for ts in (0, *(stamp + shift for stamp in stamps for shift in (-1, 0, 1)), 1 << 62):
            position = await adapter.seek(Stream(0), ts)
            found = {event.raw for event in await drain(adapter, after=position)}
            assert {event.raw for event in writer.written if event.ts >= ts} <= found

    async def test_seek_in_an_unknown_stream_is_resumable(self, adapter: AnyAdapter) -> None:
        """Its position goes on with the first event."""
        position = await adapter.seek(Stream(3), 10**18)
        await Writer(adapter, shard=3).write(payloads(2))
        assert raws(await drain(adapter, 3, after=position)) == payloads(2)

    async def test_snapshot_hides_what_was_appended_later(self, adapter: AnyAdapter) -> None:
        """All reads of one page see the same state, refills included."""
        writer = Writer(adapter)
        await writer.write(payloads(3))
        snapshot = await adapter.snapshot()
        if snapshot is None:
            pytest.skip("the adapter takes no snapshots")
        await writer.write(payloads(2, prefix="later"))
        await Writer(adapter, shard=1).write(payloads(1))
        for limit in (1, 2, 3, 10):
            assert raws(await drain(adapter, limit=limit, snapshot=snapshot)) == payloads(3)
        assert await drain(adapter, 1, snapshot=snapshot) == []
        requests = [ReadRequest(Stream(0), None, 10), ReadRequest(Stream(1), None, 10)]
        many = await adapter.read_many(requests, snapshot)
        assert [isinstance(page, ShardPage) and len(page.events) for page in many] == [3, 0]
        assert len(await drain(adapter)) == 5

    async def test_gap_on_a_trimmed_stream_is_told_once(self, open_adapter: OpenAdapter) -> None:
        """A position older than the retained events skips to the earliest of them, with a Gap."""
        adapter, writer, position = await self._trimmed(open_adapter)
        found = await drain(adapter, after=position, limit=3)
        assert found, "nothing is retained"
        kept = raws(writer.written)[-len(found) :]
        assert raws(found) == kept
        assert len(found.gaps) == 1, f"{len(found.gaps)} gaps were reported"
        missed = len(writer.written) - len(found) - 1  # the first was read before
        assert found.gaps[0].missed in (None, missed), f"{missed} events are missing"
        assert found.gaps[0].shard == 0

    async def test_gap_tells_where_reading_went_on(self, open_adapter: OpenAdapter) -> None:
        """Reading after `resumed_at` returns what the page with the gap returned, and no gap."""
        adapter, _, position = await self._trimmed(open_adapter)
        page = await adapter.read(Stream(0), position, 1000)
        assert isinstance(page.gap, Gap)
        resumed = await adapter.read(Stream(0), page.gap.resumed_at, 1000)
        assert (resumed.gap, resumed.events) == (None, page.events)

    async def test_earliest_of_a_trimmed_stream_has_no_gap(self, open_adapter: OpenAdapter) -> None:
        """Who asks for what there is misses nothing."""
        adapter, writer, _ = await self._trimmed(open_adapter)
        earliest, tail = await adapter.bounds(Stream(0))
        found = await drain(adapter, after=earliest)
        assert (found.gaps, raws(found)) == ([], raws(writer.written)[-len(found) :])
        assert raws(await drain(adapter)) == raws(found)
        assert await drain(adapter, after=tail) == []

    async def test_seek_in_a_trimmed_stream_is_never_late(self, open_adapter: OpenAdapter) -> None:
        """The time of a trimmed event leads to all that is retained."""
        adapter, writer, _ = await self._trimmed(open_adapter)
        retained = raws(await drain(adapter))
        position = await adapter.seek(Stream(0), writer.written[0].ts)
        assert raws(await drain(adapter, after=position)) == retained

    async def _trimmed(self, open_adapter: OpenAdapter) -> tuple[AnyAdapter, Writer, str]:
        """Write until the stream's beginning is trimmed; also return its first event's position."""
        if self.retention is None:
            pytest.skip("`retention` is not set: nothing is trimmed by count")
        adapter = await open_adapter(**self.retention)
        writer = Writer(adapter)
        await writer.write(payloads(1, prefix="first"))
        position = (await drain(adapter))[0].id
        for index in range(300):
            await writer.write(payloads(10, prefix=f"b{index}-"))
            if len(await drain(adapter)) < len(writer.written) - 1:
                return adapter, writer, position
        pytest.fail(f"with {self.retention} nothing was trimmed after {len(writer.written)} events")
