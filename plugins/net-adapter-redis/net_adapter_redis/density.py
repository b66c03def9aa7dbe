"""What a stream's entries are like, and what was read of it and not used up: reading ahead."""

from __future__ import annotations

import math
from typing import Any, Final

from net_adapter_redis.layout import PackedBatch, unpack
from netcore import ShardPage, StoredEvent

__all__ = ["Density"]

_FIRST_LOOK: Final = 8
_PAGE_BYTES: Final = 16 << 20
_KEPT_BYTES: Final = 4 << 20
_AHEAD_EVENTS: Final = 1024
_RUN_BYTES: Final = 1 << 20
_AHEAD_BYTES: Final = 256 << 10


class Density:
    """What entries of a stream were like lately, and those that were fetched and not yet used up.

    A packed entry holds more events than most pages: what was fetched is kept, so that it is
    fetched and decoded about once and not once a page.

    Args:
        budget: bytes that all streams together may still keep, in a list of one.

    Attributes:
        events: an entry's, on average; None before anything was read.
        bytes: an entry's, on average.
        kept: entries of the last read, from the one its page ended in to the look-ahead.
        batch: the name and content of the packed entry that was decoded last.
    """

    __slots__ = (
        "_budget",
        "_end",
        "_expected",
        "_run",
        "_run_size",
        "_size",
        "_window",
        "batch",
        "bytes",
        "events",
        "kept",
    )

    def __init__(self, budget: list[float]) -> None:
        self._run: list[StoredEvent] = []
        self._end = 0
        self._expected: str | None = None
        self._window = 0
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
        worth = self.events is not None and self.events > 1 and size < min(_KEPT_BYTES, self._budget[0])
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
        """Return a page of events that were read ahead, if there are more than enough of them."""
        if self._end == len(self._run):
            return None
        start = self._find(after)
        if start is None or len(self._run) - start <= limit:
            return None
        self._end = start + limit
        events = self._run[start : self._end]
        self._expected = events[-1].id
        return ShardPage(events=events, position=self._expected, has_more=True)

    def window(self, after: str | None, limit: int) -> int:
        """Return how many events to read: more than asked for, if reads follow each other."""
        follows = after is not None and (after == self._expected or self._find(after) is not None)
        most = min(_AHEAD_EVENTS, int(_AHEAD_BYTES * max(1.0, self.events or 1.0) / self.bytes))
        self._window = min(max(self._window, limit) * 2, most) if follows else 0
        return self._window if self._window >= 2 * limit else limit

    def cut(self, page: ShardPage, limit: int) -> ShardPage:
        """Return the page that was asked for, and keep what was read ahead."""
        run = page.events
        self._budget[0] += self._run_size
        size = len(run) * self.bytes / max(1.0, self.events or 1.0)
        fits = len(run) <= 2 * _AHEAD_EVENTS and size < min(_RUN_BYTES, self._budget[0])
        self._run_size = size if fits else 0.0
        self._budget[0] -= self._run_size
        # Also a page without more is kept: a merger's next read begins inside it.
        self._run, self._end = (run, min(limit, len(run))) if fits else ([], 0)
        if len(run) > limit:
            page.events = run[:limit]
            page.position, page.has_more = page.events[-1].id, True
        self._expected = page.position
        return page

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
