"""Read streams out of the log: pages, bounds, times. Loop thread only."""

from __future__ import annotations

from collections import OrderedDict
from itertools import repeat
from types import EllipsisType
from typing import Final

from net_adapter_mesh.frames import FrameError, decode_body
from net_adapter_mesh.lane import Entry
from net_adapter_mesh.log import Log
from netcore import CursorError, Gap, IndexedEvent, ShardPage, StoredEvent, Stream, position_error

__all__ = ["Reader"]

_DECODED_EVENTS: Final = 32_768
_DECODED_BYTES: Final = 32 << 20
_KIND: Final = "mesh"
_CLOCK_LAG_NS: Final = 250_000_000


class Reader:
    """Pages over the visible prefix of each stream, and what they returned.

    Args:
        log: the node's log.
    """

    def __init__(self, log: Log) -> None:
        self._log = log
        self._decoded: OrderedDict[tuple[str, int], tuple[list[StoredEvent], int]] = OrderedDict()
        self._decoded_events = self._decoded_bytes = 0
        self.returned: dict[str, int] = {}
        """Per other origin, the greatest merge key that reads returned."""

    def position(self, stream: Stream, after: str | None) -> int:
        """Parse a position of `stream`.

        Raises:
            CursorError: it cannot be one: not a number, or past what this very node has stored.
        """
        if after is None:
            return 0
        if not (isinstance(after, str) and after.isascii() and after.isdigit() and len(after) <= 19):
            raise CursorError(position_error(_KIND, after))
        position = int(after)
        if stream.origin == self._log.own:
            view = self._log.view(stream.origin, stream.shard)
            if position > (view.next if view else 0):
                raise CursorError(position_error(_KIND, after))
        return position

    def read(self, stream: Stream, after: str | None, limit: int, snapshot: int | None) -> ShardPage:
        """Return a page of one stream, as `Adapter.read` has it."""
        log = self._log
        with log.lock:
            position = self.position(stream, after)
            view = log.view(stream.origin, stream.shard)
            if view is None or position == view.next:  # by far the most frequent answer
                return ShardPage(events=[], position=str(position), has_more=False)
            version = log.version if snapshot is None else snapshot
            found: list[Entry] = []
            begin, wanted, more = position, position + limit, False
            gap: Gap | None = None
            index = view.index_after(position)
            while index < len(view.items):
                entry = view.items[index]
                if not entry.seen or entry.seen > version:
                    break
                if entry.start >= wanted and found:
                    more = True
                    break
                broken = entry.start > position or (entry.gap and entry.start == position)
                if broken and found:
                    more = True
                    break
                if broken:
                    missed = entry.start - position
                    gap = Gap(
                        shard=stream.shard,
                        missed=missed or None,
                        resumed_at=str(entry.start),
                        origin=stream.origin,
                    )
                    begin, wanted = entry.start, entry.start + limit
                found.append(entry)
                position = entry.end
                index += 1
            if not found and view.earliest > position and view.visible >= view.earliest:
                gap = Gap(
                    shard=stream.shard,
                    missed=view.earliest - position,
                    resumed_at=str(view.earliest),
                    origin=stream.origin,
                )
                return ShardPage(events=[], position=str(view.earliest), has_more=False, gap=gap)
        page = self._page(stream, found, begin, limit, more, gap)
        # Trimmed since the look, before anything was read: look again, for the gap that it is now.
        return self.read(stream, after, limit, snapshot) if page is None else page

    def _page(
        self, stream: Stream, found: list[Entry], begin: int, limit: int, more: bool, gap: Gap | None
    ) -> ShardPage | None:
        """Return what `found` holds; None if its first entry is gone meanwhile."""
        events: list[StoredEvent] = []
        position, bad = begin, 0
        for entry in found:
            decoded = self._events(stream, entry)
            if len(decoded) != entry.count:
                if not entry.live:
                    if entry is found[0]:
                        return None
                    more = True  # the next page begins with the gap
                    break
                bad += 1
                position = entry.end
                continue
            part = decoded[position - entry.start :] if position > entry.start else decoded
            room = limit - len(events)
            if len(part) > room:
                part, more = part[:room], True
            events += part
            position += len(part)
        if found and events and stream.origin != self._log.own:
            key = found[-1].hi
            if key > self.returned.get(stream.origin, -1):
                self.returned[stream.origin] = key
        return ShardPage(events=events, position=str(position), has_more=more, gap=gap, undecodable=bad)

    def _events(self, stream: Stream, entry: Entry) -> list[StoredEvent]:
        """Decode an entry, or recall it; an empty list if its body is not to be had."""
        key = (stream.origin, entry.lsn)
        known = self._decoded.get(key)
        if known is not None:
            return known[0]
        body = self._log.body_of(entry)
        if body is None:
            return []
        try:
            stamps, raws = decode_body(body, entry.count)
        except FrameError:
            return []
        ids = range(entry.start + 1, entry.end + 1)
        origin = stream.origin
        events: list[StoredEvent] = list(
            map(IndexedEvent, ids, repeat(stream.shard), stamps, raws, repeat(origin))  # type: ignore[arg-type]
        )
        self._decoded[key] = events, len(body)
        self._decoded_events += len(events)
        self._decoded_bytes += len(body)
        while (self._decoded_events > _DECODED_EVENTS or self._decoded_bytes > _DECODED_BYTES) and len(
            self._decoded
        ) > 1:
            _, (old, size) = self._decoded.popitem(last=False)
            self._decoded_events -= len(old)
            self._decoded_bytes -= size
        return events

    def bounds(self, stream: Stream) -> tuple[str, str]:
        """Return where the stream begins and where it ends, as far as is known here."""
        with self._log.lock:
            view = self._log.view(stream.origin, stream.shard)
            if view is None:
                return "0", "0"
            tail = max(view.next, view.advertised)
            return str(min(view.earliest, tail)), str(tail)

    def seek(self, stream: Stream, ts: int) -> str | None:
        """Return the position before the first event whose timestamp is `ts` or more."""
        with self._log.lock:
            view = self._log.view(stream.origin, stream.shard)
            if view is None:
                return None
            index = view.index_at_key(ts)
            if index == len(view.items):
                return str(view.next)
            entry = view.items[index]
            if entry.lo >= ts:
                return str(entry.start)
        for offset, event in enumerate(self._events(stream, entry)):
            if event.ts >= ts:
                return str(entry.start + offset)
        return str(entry.start)

    def enter(self, stream: Stream, since: int, head: int = 0) -> str | EllipsisType | None:
        """Return where a chain that began at `since` enters, or ... while that is not known yet.

        It is not while old events are still to come: up to `head`, which members are said to hold,
        for the peer that this node has them from may be behind itself. If the lane was heard of
        before the chain began and the stream was not, the stream is new: None, its beginning.
        Otherwise the timestamps tell, with a margin by which a clock may lag.
        """
        with self._log.lock:
            lane = self._log.lanes.get(stream.origin)
            view = lane.streams.get(stream.shard) if lane is not None else None
            if lane is None or view is None or lane.heard < since:
                return None
            if (view.next < view.advertised or lane.head < head) and view.key < since - _CLOCK_LAG_NS:
                return ...
        return self.seek(stream, since - _CLOCK_LAG_NS)
