"""A lane: the log of one origin, and the streams that polls see in it.

Nothing here locks; `Log` does, around everything that touches its lanes.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Final, Protocol, TypeAlias

from net_adapter_mesh.frames import Body

__all__ = ["Entry", "Lane", "Limits", "Mark", "StreamView", "Vector"]

Vector = Mapping[str, int]
Mark: TypeAlias = tuple[str, int]
"""Producer, and the sequence number expected next of it in the entry's shard."""
_COMPACT: Final = 256


class Limits(Protocol):
    """What bounds a stream; `MeshConfig` is one."""

    @property
    def max_events(self) -> int:
        """Most events."""

    @property
    def max_bytes(self) -> int:
        """Most body bytes."""

    @property
    def max_age_s(self) -> float | None:
        """Greatest age."""


class Entry:
    """One batch of a lane, or (`count` 0) a bare watermark.

    Attributes:
        lsn: number in the lane, from 1, ascending, with holes where entries were trimmed.
        shard: the shard of all its events.
        start: how many events the shard's stream held before it.
        count: events in it.
        w: low watermark of the origin after it: all entries behind it have `lo` >= `w`.
        lo: merge key of the first event.
        hi: merge key of the last event.
        deps: per other origin, the greatest key that polls at this origin had returned.
        body: the events, encoded; None: on disk, or trimmed.
        size: bytes of the body.
        seen: version of the log at which it became visible; 0: not yet.
        gap: shown although what it depends on was not to be had.
        live: retained.
        mark: what is expected next of the producer whose batch it ends, or None.
        row: its key in a durable log.
    """

    __slots__ = (
        "body",
        "count",
        "deps",
        "gap",
        "hi",
        "live",
        "lo",
        "lsn",
        "mark",
        "row",
        "seen",
        "shard",
        "size",
        "start",
        "w",
    )

    def __init__(
        self,
        lsn: int,
        shard: int,
        start: int,
        count: int,
        w: int,
        lo: int,
        hi: int,
        deps: Vector,
        body: Body | None,
    ) -> None:
        self.lsn = lsn
        self.shard = shard
        self.start = start
        self.count = count
        self.w = w
        self.lo = lo
        self.hi = hi
        self.deps = deps
        self.body = body
        self.size = 0 if body is None else len(body)
        self.seen = 0
        self.gap = False
        self.live = True
        self.mark: Mark | None = None
        self.row = 0

    @property
    def end(self) -> int:
        """How many events the stream holds after it."""
        return self.start + self.count


class StreamView:
    """One shard of a lane, by position. `items[first:]` are the retained entries, ascending."""

    __slots__ = ("advertised", "born", "bytes", "events", "first", "items", "key", "next", "visible")

    def __init__(self) -> None:
        self.items: list[Entry] = []
        self.first = 0
        self.next = 0  # position after the last entry stored here
        self.visible = 0  # position after the last entry that polls may see
        self.advertised = 0  # greatest position that a peer says exists
        self.born = 0  # where it begins at the peer it comes from, as long as nothing is stored here
        self.key = 0  # merge key of the last event stored here
        self.events = 0
        self.bytes = 0

    @property
    def earliest(self) -> int:
        """Position after which the earliest retained event stands."""
        if self.first < len(self.items):
            return self.items[self.first].start
        return self.next or self.born

    def index_after(self, position: int) -> int:
        """Return the index of the first retained entry that ends after `position`."""
        return bisect_right(self.items, position, lo=self.first, key=lambda entry: entry.end)

    def index_at_key(self, key: int) -> int:
        """Return the index of the first retained entry whose last key is `key` or more."""
        return bisect_left(self.items, key, lo=self.first, key=lambda entry: entry.hi)

    def add(self, entry: Entry) -> None:
        """Append a stored entry."""
        self.items.append(entry)
        self.next = entry.end
        self.key = entry.hi
        self.events += entry.count
        self.bytes += entry.size

    def overdue(self, limits: Limits, now_ns: int) -> Iterator[Entry]:
        """Remove and yield the oldest entries as long as a limit is passed.

        The newest entry goes by age only, and none goes before it was visible.
        """
        horizon = 0 if limits.max_age_s is None else now_ns - int(limits.max_age_s * 1e9)
        while self.first < len(self.items):
            entry = self.items[self.first]
            more = self.first + 1 < len(self.items)
            full = more and (self.events - entry.count >= limits.max_events or self.bytes > limits.max_bytes)
            if not entry.seen or not (full or entry.hi < horizon):
                break
            self.first += 1
            self.events -= entry.count
            self.bytes -= entry.size
            yield entry
        if self.first > _COMPACT and self.first * 2 > len(self.items):
            del self.items[: self.first]
            self.first = 0


class Lane:
    """The log of one origin: entries by number, streams by shard, and the walk's state.

    Attributes:
        head: number of the last entry stored here.
        floor: nothing above this number was trimmed here: who has reached `floor` misses nothing.
        w: watermark after the last entry.
        v: every event with a merge key below it is visible.
        ready: entries stored, their causes visible, waiting for `w`.
        held: entries from the first one on whose causes are not visible, with `mins`, the
            ascending minima of `lo` over its suffixes.
        heard: wall clock, ns, when a peer first told what the lane holds; 0: since the beginning.
    """

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.entries: list[Entry] = []
        self.dead = 0
        self.streams: dict[int, StreamView] = {}
        self.head = 0
        self.floor = 0
        self.w = 0
        self.v = 0
        self.deps: Vector = {}
        self.ready: list[Entry] = []
        self.held: deque[Entry] = deque()
        self.mins: deque[tuple[int, int]] = deque()
        self.heard = 0
        self.stalled_since: float | None = None
        self.events = 0
        self.gaps = 0

    def stream(self, shard: int) -> StreamView:
        """Return the shard's view, made if need be."""
        view = self.streams.get(shard)
        if view is None:
            view = self.streams[shard] = StreamView()
        return view

    def store(self, entry: Entry) -> None:
        """Append an entry, not yet visible. Its number is above `head`."""
        last = self.entries[-1] if self.entries else None
        if last is not None and not last.count and last.live:
            self.bury(last)  # a bare watermark says nothing that its successor does not
        self.entries.append(entry)
        self.head = entry.lsn
        self.w = max(self.w, entry.w)
        self.deps = entry.deps
        if entry.count:
            self.stream(entry.shard).add(entry)
            self.events += entry.count

    def bury(self, entry: Entry) -> None:
        """Let go of an entry; the list is compacted once half of it is dead."""
        entry.live = False
        entry.body = None
        self.dead += 1
        if self.dead > _COMPACT and self.dead * 2 > len(self.entries):
            self.entries = [kept for kept in self.entries if kept.live]
            self.dead = 0

    def trim(self, shard: int, limits: Limits, now_ns: int) -> list[Entry]:
        """Apply retention to one stream; return what went."""
        gone = list(self.streams[shard].overdue(limits, now_ns))
        for entry in gone:
            self.floor = max(self.floor, entry.lsn)
            self.bury(entry)
        return gone

    def after(self, lsn: int, max_bytes: int, max_entries: int = 1024) -> tuple[list[Entry], int]:
        """Return live entries above `lsn`, up to the one that makes them `max_bytes`, and how far they reach."""
        found: list[Entry] = []
        size = 0
        index = bisect_right(self.entries, lsn, key=lambda entry: entry.lsn)
        while index < len(self.entries):
            entry = self.entries[index]
            if entry.live:
                if size >= max_bytes or len(found) >= max_entries:
                    return found, found[-1].lsn
                found.append(entry)
                size += entry.size
            index += 1
        return found, self.head
