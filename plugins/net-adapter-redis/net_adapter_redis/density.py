"""What a stream's entries are like, and what was read of it and not used up: reading ahead."""

from __future__ import annotations

import asyncio
import math
from typing import Any, Final

from net_adapter_redis.layout import PackedBatch, unpack
from netcore import ReadRequest, ShardPage, StoredEvent, Stream

__all__ = ["Density"]

_FIRST_LOOK: Final = 8
_PAGE_BYTES: Final = 16 << 20
_KEPT_BYTES: Final = 4 << 20
_AHEAD_EVENTS: Final = 2048
_RUN_EVENTS: Final = 4 * _AHEAD_EVENTS
# A reply of so few entries is used up before its small lists would set off the garbage collector,
# which costs more than a round trip that nobody waits for.
_CHUNK_EVENTS: Final = 336
_RUN_BYTES: Final = 2 << 20
_AHEAD_BYTES: Final = 512 << 10


class Density:
    """What entries of a stream were like lately, and those that were fetched and not yet used up.

    A packed entry holds more events than most pages: what was fetched is kept, so that it is
    fetched and decoded about once and not once a page.

    Args:
        stream: which.
        budget: bytes that all streams together may still keep, in a list of one.

    Attributes:
        events: an entry's, on average; None before anything was read.
        bytes: an entry's, on average.
        fetching: the task that reads ahead now, if any.
        listed: all streams that there were when the run was read are known; None: all but those that
            the registry is to find out yet.
        kept: entries of the last read, from the one its page ended in to the look-ahead.
        batch: the name and content of the packed entry that was decoded last.
    """

    __slots__ = (
        "_budget",
        "_end",
        "_expected",
        "_following",
        "_limit",
        "_more",
        "_run",
        "_run_size",
        "_size",
        "_stream",
        "batch",
        "bytes",
        "events",
        "fetching",
        "kept",
        "listed",
    )

    def __init__(self, stream: Stream, budget: list[float]) -> None:
        self._stream = stream
        self._limit = 0
        self._more = False
        self._following = False
        self.fetching: asyncio.Task[None] | None = None
        self.listed: bool | None = False
        self._run: list[StoredEvent] = []
        self._end = 0
        self._expected: str | None = None
        self._run_size = 0.0
        self._budget = budget
        self._size = 0.0
        self.events: float | None = None
        self.bytes = 256.0
        self.kept: list[Any] = []
        self.batch: tuple[bytes, PackedBatch] | None = None

    def keep(self, entries: list[Any]) -> None:
        """Keep what the next page begins with, if that saves anything."""
        self._budget[0] += self._size
        size = self.bytes * len(entries)
        worth = self.packed and size < min(_KEPT_BYTES, self._budget[0])
        self._size = size if worth else 0.0
        self._budget[0] -= self._size
        self.kept = entries if worth else []
        if not worth:
            self.batch = None

    def unpack(self, name: bytes, blob: bytes) -> PackedBatch | None:
        """Decode a packed entry, unless it was the last one decoded."""
        if self.batch is not None and self.batch[0] == name:
            return self.batch[1]
        batch = unpack(blob)
        self.batch = None if batch is None else (name, batch)
        return batch

    def ahead(self, after: str, limit: int) -> ShardPage | None:
        """Return a page of events that were read ahead, if there are enough and more is known to come."""
        if self._end == len(self._run):
            return None
        start = self._find(after)
        if start is None or len(self._run) - start < limit + (not self._more):
            return None
        self._end = start + limit
        self._limit = limit
        self._following = True
        events = self._run[start : self._end]
        self._expected = events[-1].id
        return ShardPage(events=events, position=self._expected, has_more=True)

    def wanting(self, *, early: bool) -> ReadRequest | None:
        """Return what to fetch while the reader is busy with its page, or None: enough is there.

        Args:
            early: fetch also if half of what is read at a time is still there beside the next page;
                else a quarter, which lasts until the answer is here.
        """
        run = self._run
        if not self._more or not self._following or not run or self.fetching is not None:
            return None
        enough = self._limit + self._chunk(self._limit) // (2 if early else 4)
        if len(run) - self._end > enough:
            return None
        chunk = self._chunk(self._limit)
        return ReadRequest(self._stream, run[-1].id, chunk) if chunk >= self._limit else None

    def follows(self, after: str | None) -> bool:
        """Tell whether `after` is in what was handed out last."""
        return after is not None and (after == self._expected or self._find(after) is not None)

    def extend(self, after: str, page: ShardPage) -> None:
        """Take in what was fetched behind `after`, if that is still where the run ends.

        What somebody has to be told of (a gap, entries that are no events) is left to a real read.
        """
        run = self._run
        if not run or run[-1].id != after:
            return
        if page.gap is not None or page.undecodable or not page.events:
            self._more = False
            return
        # What the next page may begin in stays: mergers go back behind what they cut off.
        kept = run[max(0, self._end - self._limit) :]
        self._hold(kept + page.events, self._end - (len(run) - len(kept)), more=page.has_more)

    def window(self, after: str | None, limit: int) -> int:
        """Return how many events to read: more than asked for, if reads follow each other."""
        self._following = self.follows(after)
        if not self._following:
            return limit
        return max(limit, self._chunk(limit))

    def _chunk(self, limit: int) -> int:
        """Return how many events are read ahead at a time."""
        most = min(_AHEAD_EVENTS, int(_AHEAD_BYTES * max(1.0, self.events or 1.0) / self.bytes))
        return most if self.packed else min(most, max(_CHUNK_EVENTS, limit))

    @property
    def packed(self) -> bool:
        """Entries hold many events."""
        return self.events is not None and self.events > 1

    def cut(self, page: ShardPage, limit: int) -> ShardPage:
        """Return the page that was asked for, and keep what was read ahead."""
        run = page.events
        # Also a page without more is kept: a merger's next read begins inside it.
        self._hold(run, min(limit, len(run)), more=page.has_more)
        self._limit = limit
        if len(run) > limit:
            page.events = run[:limit]
            page.position, page.has_more = page.events[-1].id, True
        self._expected = page.position
        return page

    def _hold(self, run: list[StoredEvent], end: int, *, more: bool) -> None:
        """Keep a run of which `end` events were handed out, if there is room for it."""
        self._budget[0] += self._run_size
        size = len(run) * self.bytes / max(1.0, self.events or 1.0)
        fits = len(run) <= _RUN_EVENTS and size < min(_RUN_BYTES, self._budget[0])
        self._run_size = size if fits else 0.0
        self._budget[0] -= self._run_size
        self._run, self._end = (run, end) if fits else ([], 0)
        self._more = fits and more

    def _find(self, after: str) -> int | None:
        """Return the index behind the event with this id: mergers cut pages short of their end."""
        run = self._run
        for index in range(self._end - 1, -1, -1):
            if run[index].id == after:
                return index + 1
        return None

    def entries_for(self, limit: int) -> int:
        """Return how many entries to ask for, to get `limit` events."""
        if self.events is None:
            return min(limit, _FIRST_LOOK)
        fitting = max(1, int(_PAGE_BYTES / self.bytes))
        return min(math.ceil(limit / self.events), fitting)

    def learn(self, entries: list[Any], events: float) -> None:
        """Take in what a read returned: entries, and how many events each held on average."""
        some = entries[:: len(entries) // 8 + 1]
        self.bytes = max(1.0, sum(len(fields[1]) for _, fields in some) / len(some))
        self.events = max(1.0, events)
