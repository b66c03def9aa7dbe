"""The merger by itself: fed by hand, without adapter or loop."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from netcore.consume.cursor import NO_KEY
from netcore.consume.merger import Cut, Merger, Run
from netcore.contracts.adapter import Gap, ShardPage, Stream
from netcore.events import StoredEvent


def page(
    shard: int, stamps: list[int], first: int = 1, *, more: bool = False, gap: Gap | None = None
) -> ShardPage:
    events = [StoredEvent(id=str(first + n), shard=shard, ts=ts, raw=b"") for n, ts in enumerate(stamps)]
    return ShardPage(events=events, position=str(first + len(stamps) - 1), has_more=more, gap=gap)


def walk(streams: list[list[int]], limit: int) -> list[list[int]]:
    """Page through streams, each page beginning at the entries of the one before."""
    entries: list[tuple[str | None, int]] = [(None, NO_KEY)] * len(streams)
    pages: list[list[int]] = []
    while True:
        runs = [Run(Stream(shard), entry) for shard, entry in enumerate(entries)]
        merger = Merger(runs, Cut())
        while merger.survey() < limit and (hungry := merger.hungry(limit)):
            for run in hungry:
                at = int(run.seen or 0)
                stored = streams[run.stream.shard]
                some = stored[at : at + limit]
                run.feed(page(run.stream.shard, some, at + 1, more=at + len(some) < len(stored)), None)
        found = merger.peek(limit)
        if not found:
            return pages
        merger.consume(len(found), found[-1])
        for run in runs:
            run.settle()
        entries = [run.entry for run in runs]
        pages.append([event.ts for event in found])


def test_merger_streams_100_50_110_and_60_70_page_alike_at_limits_1_2_3() -> None:
    """An event that was stored late, 50, keeps its place behind 100; its key says so at every limit."""
    streams = [[100, 50, 110], [60, 70]]
    assert walk(streams, 1) == [[60], [70], [100], [50], [110]]
    assert walk(streams, 2) == [[60, 70], [100, 50], [110]]
    assert walk(streams, 3) == [[60, 70, 100], [50, 110]]


def test_merger_bound_by_a_truncated_stream_asks_that_stream_alone() -> None:
    """What lies beyond the last read key of a truncated stream waits, and only that is read again."""
    short, long = Run(Stream(0), (None, NO_KEY)), Run(Stream(1), (None, NO_KEY))
    merger = Merger([long, short], Cut())
    assert merger.hungry(9) == [short, long]
    short.feed(page(0, [10, 20], more=True), None)
    long.feed(page(1, [5, 15, 25, 35]), None)
    assert merger.survey() == 4
    assert merger.hungry(9) == [short]
    assert [event.ts for event in merger.peek(9)] == [5, 10, 15, 20]
    short.feed(page(0, [40], 3), None)
    assert merger.survey() == 7
    assert merger.hungry(9) == []
    assert [event.ts for event in merger.peek(9)] == [5, 10, 15, 20, 25, 35, 40]


def test_merger_ties_at_the_limit_are_cut_in_stream_order() -> None:
    """Equal keys go out by shard, and what the limit cuts stays."""
    runs = [Run(Stream(shard), (None, NO_KEY)) for shard in range(3)]
    for run in runs:
        run.feed(page(run.stream.shard, [7, 7]), None)
    merger = Merger(runs, Cut())
    assert merger.survey() == 6
    found = merger.peek(3)
    assert [(event.shard, event.id) for event in found] == [(0, "1"), (0, "2"), (1, "1")]
    merger.consume(3, found[-1])
    assert [run.done for run in runs] == [2, 1, 0]


def test_merger_ceiling_holds_back_keys_from_it_on_but_no_broken_clock() -> None:
    """The cut is exclusive; a key beyond the horizon would wait for ever and is let through."""
    run, off = Run(Stream(0), (None, NO_KEY)), Run(Stream(1), (None, NO_KEY))
    run.feed(page(0, [10, 20, 30]), None)
    off.feed(page(1, [1 << 62]), None)
    merger = Merger([run, off], Cut(20, 1000))
    assert merger.survey() == 2
    assert [event.ts for event in merger.peek(9)] == [10, 1 << 62]


def test_run_gap_is_told_once_when_passed() -> None:
    """A gap belongs to the first event behind it: not told before that goes out, nor again after."""
    gap = Gap(shard=0, missed=3, resumed_at="3")
    run = Run(Stream(0), ("0", NO_KEY))
    run.feed(page(0, [10, 20], 4, gap=gap), None)
    run.settle()
    assert (run.gaps, run.entry) == ([], ("0", NO_KEY))
    run.done = 1
    run.settle()
    assert (run.gaps, run.entry) == ([gap], ("4", 10))
    run.done = 2
    run.settle()
    assert (run.gaps, run.entry) == ([gap], ("5", 20))


def test_run_that_stands_still_and_says_more_is_not_asked_for_ever() -> None:
    """An adapter that promises more and moves nothing cannot hang a poll."""
    run = Run(Stream(0), ("4", NO_KEY))
    run.feed(ShardPage(events=[], position="4", has_more=True), None)
    assert not run.more


@given(
    streams=st.lists(st.lists(st.integers(0, 40), max_size=15), min_size=1, max_size=5),
    limit=st.integers(1, 12),
)
@settings(deadline=None)
def test_merger_pages_at_any_limit_concatenate_to_the_same(streams: list[list[int]], limit: int) -> None:
    """The limit decides where pages end, and nothing about keys: those rise across all pages."""
    pages = walk(streams, limit)
    whole = [ts for page_ in pages for ts in page_]
    assert sorted(whole) == sorted(ts for stream in streams for ts in stream)
    if all(stream == sorted(stream) for stream in streams):
        assert whole == sorted(whole)
    assert all(len(page_) == limit for page_ in pages[:-1])
