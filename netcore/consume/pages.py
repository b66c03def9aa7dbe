"""Collecting one page: read, merge or rotate, filter, stop at the limit."""

from __future__ import annotations

import operator
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import compress, count, islice
from math import isqrt
from typing import Any, Final

from netcore.consume.cursor import Cursor
from netcore.consume.merger import ANY_KEY, Cut, Merger, Run
from netcore.consume.reader import Reader
from netcore.contracts.adapter import ReadRequest, ShardPage, Stream
from netcore.contracts.answers import ask
from netcore.errors import FilterError, describe
from netcore.events import StoredEvent

__all__ = ["Collector", "opening", "scan_budget"]

_raw_of: Final = operator.attrgetter("raw")
_MIN_SCAN: Final = 10_000
_SCAN_FACTOR: Final = 20
_FIRST_CHUNK: Final = 32
_LAST_CHUNK: Final = 4096
_GROUP: Final = 64


def scan_budget(limit: int) -> int:
    """Return how many events one poll looks at before it returns what it has found."""
    return max(_MIN_SCAN, _SCAN_FACTOR * limit)


def opening(limit: int, streams: int, *, filtered: bool) -> int:
    """Return how much a causal page reads of each stream to begin with."""
    return _quota(max(limit, _FIRST_CHUNK) if filtered else limit, streams)


class Collector:
    """Collects one page.

    Args:
        reader: reads the adapter.
        cursor: where the chain stands; not changed.
        streams: what to read, all of them in the cursor.
        limit: most events, or matches.
        cut: what is held back.
        snapshot: for every read of this page.
        match: decides on a payload, or None: everything goes out.
        rest: called now and then while scanning, lets other tasks run.
        primed: pages that were read already, right behind the cursor.
    """

    __slots__ = (
        "_budget", "_chunk", "_floor", "_limit", "_match", "_merged", "_primed", "_reader", "_rest",
        "_snapshot",
        "cut", "events", "exhausted", "runs", "turn",
    )  # fmt: skip

    def __init__(
        self,
        *,
        reader: Reader,
        cursor: Cursor,
        streams: Sequence[Stream],
        limit: int,
        cut: Cut,
        snapshot: object,
        match: Callable[[bytes], bool] | None,
        rest: Callable[[], Any],
        primed: Mapping[Stream, ShardPage | Exception] | None = None,
    ) -> None:
        self._reader = reader
        self._chunk = _FIRST_CHUNK
        self._limit = limit
        self._snapshot = snapshot
        self._match = match
        self._primed = primed or {}
        self._rest = rest
        self._floor = cursor.start if isinstance(cursor.start, int) else None
        self._budget = scan_budget(limit)
        self.cut = cut
        self.events: list[StoredEvent] = []
        self.exhausted = False
        self._merged = False
        self.turn = cursor.turn
        self.runs = [Run(stream, cursor.entries[stream]) for stream in sorted(streams)]

    @property
    def has_more(self) -> bool:
        """Whether stored events that did not go out are known to exist."""
        return any(map(self._known_more, self.runs))

    @property
    def oldest_held(self) -> int | None:
        """Return the smallest key that the cut held back, if it held back anything."""
        ceiling = self.cut.ceiling
        if ceiling is None:
            return None
        heads = (run.keys[run.done] for run in self.runs if run.done < len(run.keys))
        return min((key for key in heads if key >= ceiling), default=None)

    @property
    def rising(self) -> bool:
        """Whether the page is known to be in the order of the events' own timestamps."""
        return self._merged and all(run.plain for run in self.runs)

    async def causal(self) -> None:
        """Fill the page in merge order."""
        self._merged = True
        merger = Merger(self.runs, self.cut)
        spent = 0
        while (room := self._limit - len(self.events)) > 0:
            goal = room
            if self._match is not None:
                goal = min(max(room, self._next_chunk()), self._budget - spent)
            dry = await self._refill(merger, goal, spent)
            chunk = merger.peek(goal)
            taken = self._sift(chunk, room)
            merger.consume(taken, chunk[taken - 1] if taken else None)
            spent += taken
            if not taken or (not dry and len(self.events) < self._limit and self._match is None):
                break
            if spent >= self._budget:
                self.exhausted = True
                break
            if self._match is not None:
                await self._rest()
        await self._finish()

    async def _refill(self, merger: Merger, goal: int, spent: int) -> bool:
        """Read until `goal` events can go out; False if no more than there is can come."""
        while (ready := merger.survey()) < goal and (hungry := merger.hungry(goal)):
            if spent + sum(run.dropped for run in self.runs) >= self._budget:
                self.exhausted = True
                break
            quota = _quota(goal - ready, len(hungry))
            if any(run.dropped for run in hungry):
                quota = max(quota, self._next_chunk())
            await self._fetch(hungry, quota)
        return ready >= goal

    def _next_chunk(self) -> int:
        """Return how far to look for a rare event: twice as far each time, up to some thousands."""
        chunk = self._chunk
        self._chunk = min(chunk * 2, _LAST_CHUNK)
        return chunk

    async def sharded(self) -> None:
        """Fill the page stream after stream, beginning where the last page left off.

        With at least `limit` streams each busy one gets an event in its turn; with fewer each
        gets its share of every page, and what is left of the page goes round again.
        """
        order = self.runs
        if self.turn is not None and order:
            at = bisect_left(order, Stream(*self.turn), key=operator.attrgetter("stream")) % len(order)
            order = order[at:] + order[:at]
        share = max(1, self._limit // max(1, len(order)))
        spent = await self._round(order, share, 0, first=True)
        while not self.exhausted and len(self.events) < self._limit:
            active = [run for run in order if self._servable(run)]
            if not active:
                break
            share = -(-(self._limit - len(self.events)) // len(active))
            spent = await self._round(active, share, spent, first=False)
            await self._rest()
        await self._look_further()
        await self._finish()

    async def _look_further(self) -> None:
        """Settle `has_more` where the page was full before every stream had been looked at."""
        fresh = [run for run in self.runs if run.fresh and run.more]
        while fresh and not any(self._known_more(run) for run in self.runs):
            group, fresh = fresh[:_GROUP], fresh[_GROUP:]
            await self._fetch(group, 1)

    @staticmethod
    def _known_more(run: Run) -> bool:
        return len(run.events) > run.done or (run.more and not run.fresh)

    async def _round(self, order: Sequence[Run], share: int, spent: int, *, first: bool) -> int:
        """Serve each run its share, in order, until the page is full or the budget is spent."""
        at, size = 0, max(_GROUP, self._limit)
        reach = share if self._match is None else max(share, self._next_chunk())
        while at < len(order):
            group = order[at : at + size]
            if empty := [run for run in group if run.more and run.done == len(run.events)]:
                await self._fetch(empty, max(reach, *(min(run.dropped, _LAST_CHUNK) for run in empty)))
            for run in group:
                before = len(self.events)
                spent += self._serve(run, min(share, self._limit - before))
                at += 1
                if len(self.events) >= self._limit or spent >= self._budget:
                    self.exhausted = spent >= self._budget
                    if first:
                        self._pass_turn(order[at % len(order)])
                    return spent
            size *= 2  # few of many streams have data: find them in few round trips
        if first and self.events:
            self._pass_turn(order[1 % len(order)])
        return spent

    def _pass_turn(self, run: Run) -> None:
        self.turn = (run.stream.shard, run.stream.origin)

    def _serve(self, run: Run, room: int) -> int:
        """Let up to `room` events of a run's buffer go out; return how many were looked at."""
        stop = run.stop(ANY_KEY, self.cut)
        if self._match is None:
            stop = min(stop, run.done + room)
        taken = self._sift(run.events[run.done : stop], room)
        run.done += taken
        dropped, run.dropped = run.dropped, 0
        return taken + dropped

    def _servable(self, run: Run) -> bool:
        if run.done < len(run.events):
            return run.stop(ANY_KEY, self.cut) > run.done
        return run.more

    def _sift(self, chunk: list[StoredEvent], room: int) -> int:
        """Put what matches into the page, at most `room`; return how many were looked at.

        No event is looked at twice: the lazy chain stops at the match that fills the page.
        """
        if self._match is None:
            self.events = self.events + chunk if self.events else chunk
            return len(chunk)
        try:
            found = list(islice(compress(count(), map(self._match, map(_raw_of, chunk))), room))
        except Exception as error:
            raise FilterError(
                f"the filter failed on an event ({describe(error)}); it must answer for any payload"
            ) from error
        self.events += map(chunk.__getitem__, found)
        return found[-1] + 1 if len(found) == room else len(chunk)

    async def _fetch(self, runs: Sequence[Run], limit: int) -> None:
        """Read a page for each run; one that cannot be read takes no further part."""
        pages, self._primed = dict(self._primed), {}
        requests = [ReadRequest(run.stream, run.seen, limit) for run in runs if run.stream not in pages]
        if requests:
            answers = await self._reader.read(requests, self._snapshot)
            pages |= {asked.stream: page for asked, page in zip(requests, answers, strict=True)}
        for run in runs:
            page = pages[run.stream]
            if not isinstance(page, ShardPage):
                run.fail(page)
                continue
            try:
                run.feed(page, self._floor)
            except (AttributeError, TypeError) as error:  # an event that is none; the run is as before
                run.fail(self._reader.misread(error))

    async def _finish(self) -> None:
        for run in self.runs:
            run.settle()
            if (torn := run.torn()) is not None:
                await self._recount(run, *torn)

    async def _recount(self, run: Run, after: str | None, length: int) -> None:
        """Count the undecodable entries in the part of a page that went out.

        The page told only their number as a whole; a page that ends where the cut is tells the
        part. Rare, and a lower bound is allowed, so whatever goes wrong here is let be.
        """
        call = partial(ask, self._reader.adapter, "read", run.stream, after, length, self._snapshot)
        (page,) = await self._reader.gather([call])
        if isinstance(page, ShardPage) and page.events and page.events[-1].id == run.position:
            run.undecodable += page.undecodable
            run.position = page.position


def _quota(missing: int, streams: int) -> int:
    """Return how much to read of each stream for a page of `missing` events.

    Its even share and two and a half standard deviations of a random one, so that one round of
    reads mostly suffices and little is read in vain.
    """
    share = -(-missing // max(1, streams))
    return min(missing, share + (5 * isqrt(share) + 1) // 2) or 1
