"""The merger: pages of single streams in, one page in causal order out. Pure, no input or output.

The merge key of an event is `max(ts, key of its predecessor in its stream)`, so keys never fall
within a stream. A page is a prefix of the k-way merge by (key, shard, origin, position).

What makes a prefix safe: of a stream whose page was truncated nothing is known beyond its last
read key, except that every unread event has a key at least that large. So everything up to the
smallest such key (the *bound*) can go out, and only streams that end at the bound need refilling.

All work per event is done by C code (`map`, `sorted`, `bisect`, slices): Timsort merges
concatenated sorted runs in n log k comparisons and is stable, which settles ties by stream order.

Source: Knuth, The Art of Computer Programming 3, 5.4.1 (multiway merging).
"""

from __future__ import annotations

import operator
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from itertools import accumulate, chain, compress
from typing import Final, NamedTuple

import msgspec

from netcore.consume.cursor import MAX_KEY, Entry
from netcore.contracts.adapter import Gap, ShardPage, Stream
from netcore.events import StoredEvent

__all__ = ["ANY_KEY", "Cut", "Merger", "Run", "ts_of"]

ANY_KEY: Final = 1 << 200
"""Above every key."""

ts_of: Final = operator.attrgetter("ts")
_by_stream: Final = operator.attrgetter("stream")


class Cut(NamedTuple):
    """What may not go out yet.

    Attributes:
        ceiling: the first key that is held back; None: nothing is.
        horizon: keys beyond this come from a clock that is off, so no watermark will ever reach
            them: they are not held back.
    """

    ceiling: int | None = None
    horizon: int = MAX_KEY


class _Mark(msgspec.Struct, frozen=True):
    """One page of a run: events `start` to `end` of its buffer, and what stands at its end."""

    start: int
    end: int
    after: str | None
    position: str
    key: int
    gap: Gap | None
    undecodable: int


class Run:
    """What one poll has read of one stream, and how much of it went out.

    Attributes:
        stream: which.
        position, key: the entry that the cursor will hold: as far as `settle` was told.
        seen: how far was read, whether it went out or not.
        events, keys: the buffer; `done` of it have gone out.
        plain: every key is its event's own ts.
        more: another page may bring something.
        fresh: nothing has been read yet.
        failed: why no more is to be read in this poll, or None.
        gaps, undecodable: found in what went out.
        dropped: events older than the chain's start, and undecodable entries: scanned in vain.
    """

    __slots__ = (
        "_marks", "done", "dropped", "events", "failed", "fresh", "gaps", "key", "keys", "last_key",
        "more", "plain", "position", "seen", "stream", "undecodable",
    )  # fmt: skip

    def __init__(self, stream: Stream, entry: Entry) -> None:
        self.stream = stream
        self.position, self.key = entry
        self.seen = self.position
        self.events: list[StoredEvent] = []
        self.keys: list[int] = []
        self.done = 0
        self.last_key = self.key
        self.plain = self.fresh = self.more = True
        self.failed: Exception | None = None
        self.gaps: list[Gap] = []
        self.undecodable = 0
        self.dropped = 0
        self._marks: list[_Mark] = []

    def fail(self, error: Exception) -> None:
        """Leave this run as it is: its stream cannot be read now."""
        self.failed = error
        self.more = False

    @property
    def entry(self) -> Entry:
        """What the cursor is to remember, after `settle`."""
        return self.position, min(self.key, MAX_KEY)

    def feed(self, page: ShardPage, floor: int | None) -> None:
        """Append a page that was read after `seen`; events with ts < `floor` do not count."""
        if self.done == len(self.events):
            self.settle()  # all of it went out: keep nothing
        events = page.events
        keys: list[int] = []
        if events:
            keys = stamps = list(map(ts_of, events))
            # Comparing a list with its sorted self is the fastest check there is in pure Python:
            # one pass each, and equality of identical objects needs no comparison.
            if stamps[0] < self.last_key or sorted(stamps) != stamps:
                keys = list(accumulate(stamps, max, initial=self.last_key))[1:]
                self.plain = False
            self.last_key = keys[-1]
            if floor is not None and min(stamps) < floor:
                kept = [ts >= floor for ts in stamps]
                events, keys = list(compress(events, kept)), list(compress(keys, kept))
        start = len(self.events)
        self.events = self.events + events if start else events
        self.keys = self.keys + keys if start else keys
        self._marks.append(
            _Mark(
                start,
                start + len(events),
                self.seen,
                page.position,
                self.last_key,
                page.gap,
                page.undecodable,
            )
        )
        self.dropped += len(page.events) - len(events) + page.undecodable
        self.dropped += page.has_more and not page.events
        # A page that is empty, says "more" and stands still would be asked for for ever.
        self.more = page.has_more and (bool(page.events) or page.position != self.seen)
        self.seen = page.position
        self.fresh = False

    def settle(self) -> None:
        """Fold what went out into `position`, `key`, `gaps` and `undecodable`."""
        if not self._marks:
            return
        whole = 0
        for mark in self._marks:
            if mark.end > self.done:
                break
            whole += 1
            self.position, self.key = mark.position, mark.key
            self.undecodable += mark.undecodable
            if mark.gap is not None:
                self.gaps.append(mark.gap)
        del self._marks[:whole]
        if self._marks and (mark := self._marks[0]).start < self.done:
            self.position, self.key = self.events[self.done - 1].id, self.keys[self.done - 1]
            if mark.gap is not None:
                self.gaps.append(mark.gap)
                self._marks[0] = msgspec.structs.replace(mark, gap=None)
        if self.done == len(self.events):
            self.events, self.keys, self.done = [], [], 0

    def torn(self) -> tuple[str | None, int] | None:
        """Tell what to read again to count undecodable entries, in the page that was cut midway.

        Returns:
            The position to read after and the number of events, or None where nothing is unknown.
        """
        for mark in self._marks:
            if mark.start < self.done < mark.end and mark.undecodable:
                return mark.after, self.done - mark.start
        return None

    def stop(self, bound: int, cut: Cut) -> int:
        """Return the index in the buffer where keys over `bound`, or held back ones, begin."""
        if cut.ceiling is None or bound < cut.ceiling:
            return bisect_right(self.keys, bound, self.done)
        stop = bisect_left(self.keys, cut.ceiling, self.done)
        if stop < len(self.keys) and self.keys[stop] > cut.horizon:
            return bisect_right(self.keys, bound, stop)
        return stop


class Merger:
    """One page's merge. Feed the runs; `survey`, and feed what is `hungry`; `peek`, then `consume`.

    Args:
        runs: one a stream.
        cut: what is held back.
    """

    __slots__ = ("_bound", "_keys", "_order", "_total", "_window", "cut", "runs")

    def __init__(self, runs: Iterable[Run], cut: Cut) -> None:
        self.runs = sorted(runs, key=_by_stream)
        self.cut = cut
        self._bound = ANY_KEY
        self._window: list[tuple[Run, int]] = []
        self._order: list[int] | None = None
        self._keys: list[int] = []
        self._total = 0

    def survey(self) -> int:
        """Look at the runs anew, after pages were fed; return how many events could go out."""
        bound = ANY_KEY
        for run in self.runs:
            if run.more and run.last_key < bound:
                bound = run.last_key
        self._bound = bound  # the key up to which every stream is known; ties with it may go out
        self._window = window = []
        total = 0
        for run in self.runs:
            stop = run.stop(bound, self.cut)
            if stop > run.done:
                window.append((run, stop))
                total += stop - run.done
        self._total = total
        return total

    def hungry(self, goal: int) -> list[Run]:
        """Return the runs to refill before `goal` events can go out; none: no others can.

        That is the run at the bound, and those at which the next bounds would be: refilling them
        one by one would cost a round of reads each.
        """
        fresh = [run for run in self.runs if run.fresh and run.more]
        if fresh:
            return fresh
        ends = sorted({run.last_key for run in self.runs if run.more})
        enough = bisect_left(ends, goal, key=self._count)
        reach = ends[enough] if enough < len(ends) else ANY_KEY
        if self.cut.ceiling is not None:
            reach = min(reach, self.cut.ceiling)  # whatever comes behind it is held back
        return [run for run in self.runs if run.more and run.last_key < reach]

    def _count(self, bound: int) -> int:
        """Count the events that could go out with this bound."""
        return sum(run.stop(bound, self.cut) - run.done for run in self.runs)

    def peek(self, goal: int) -> list[StoredEvent]:
        """Return the next events in merge order, at most `goal`, as of the last `survey`."""
        window = self._window
        parts = [run.events[run.done : stop] for run, stop in window]
        self._order = None
        if len(parts) <= 1:
            merged = parts[0] if parts else []
        elif all(run.plain for run, _ in window):
            merged = sorted(chain.from_iterable(parts), key=ts_of)
        else:
            self._keys = keys = list(chain.from_iterable(run.keys[run.done : stop] for run, stop in window))
            events = list(chain.from_iterable(parts))
            self._order = sorted(range(len(keys)), key=keys.__getitem__)
            merged = list(map(events.__getitem__, self._order[:goal]))
        return merged[:goal] if len(merged) > goal else merged

    def consume(self, count: int, last: StoredEvent | None = None) -> None:
        """Let the first `count` events of the last `peek` go out; `last` is the last of them."""
        if count == self._total:
            for run, stop in self._window:
                run.done = stop
        elif len(self._window) == 1:
            self._window[0][0].done += count
        elif count and last is not None:
            key = last.ts if self._order is None else self._keys[self._order[count - 1]]
            lows = [bisect_left(run.keys, key, run.done, stop) for run, stop in self._window]
            ties = count - sum(low - run.done for low, (run, _) in zip(lows, self._window, strict=True))
            for low, (run, stop) in zip(lows, self._window, strict=True):
                equal = min(ties, bisect_right(run.keys, key, low, stop) - low)
                run.done = low + equal
                ties -= equal
        self._window = []
        self._total = 0
