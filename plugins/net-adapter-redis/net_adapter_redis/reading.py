"""Reading pages, and saying truthfully what a reader can no longer have.

A page is read from its position *inclusively*: if the entry of the position comes back, nothing
behind it was trimmed, and this one XRANGE was all. Otherwise the stream is looked at closely, in
one transaction with the read.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from net_adapter_redis.density import Density
from net_adapter_redis.layout import PackedBatch, decode_alike, decode_each, decode_slice, event_from
from net_adapter_redis.positions import Position, entry_id
from net_adapter_redis.resp import command
from netcore import Gap, ReadRequest, ShardPage, StoredEvent

__all__ = ["Scan", "StreamState", "look", "state_from"]

_CHUNK: Final = 256


class StreamState(msgspec.Struct, frozen=True):
    """What the server knows about a stream.

    Attributes:
        last: id ever given to an entry, (0, 0) if none was.
        length: entries it holds.
        added: entries ever added, or None: the server can't tell.
        intact: no entry was ever deleted but by trimming from the old end.
        incarnation: "" where only others wrote it.
        packed: an entry may hold many events.
        first: id of the oldest entry, or None: it holds none.
    """

    last: tuple[int, int] = (0, 0)
    length: int = 0
    added: int | None = None
    intact: bool = True
    incarnation: str = ""
    packed: bool = False
    first: tuple[int, int] | None = None

    @property
    def trimmed(self) -> int | None:
        """Entries that were there and are gone, if that can be told."""
        return self.added - self.length if self.added is not None and self.intact else None

    def at(self, where: tuple[int, int], count: int | None) -> Position:
        """Return a position, counted if this server and stream can be."""
        if count is None or not self.incarnation:
            return Position(where)
        return Position(where, None, 0, count, self.incarnation)

    @property
    def tail(self) -> Position:
        """Behind everything."""
        return self.at(self.last, self.added)

    @property
    def earliest(self) -> Position:
        """Before the oldest entry."""
        if self.first is None:
            return self.tail
        return self.at(Position(self.first).before().id, self.trimmed)

    def missed(self, after: Position) -> tuple[bool, int | None]:
        """Tell whether events behind `after` are gone, and how many, if that can be told."""
        if after.id > self.last or (self.last == (0, 0) and after.id > (0, 0)):
            return True, None  # it lost what had been read: failed over or flushed
        if self.first is not None and after.reaches(self.first):
            return after.left > 0, after.left
        if after.count is not None and after.incarnation == self.incarnation and self.trimmed is not None:
            gone = self.trimmed - after.count
            if gone >= 0:
                exact = not self.packed or gone == 0
                return gone > 0 or after.left > 0, gone + after.left if exact else None
            return after.left > 0, after.left  # deleted by hand further on
        if after.incarnation and after.incarnation != self.incarnation:
            return True, None
        if self.trimmed == 0 and not after.left:
            return False, 0
        if self.first is None:
            return after.id < self.last, None
        return after.id < self.first or after.left > 0, None


def look(stream: bytes, meta: bytes) -> bytes:
    """Return the commands whose replies `state_from` reads."""
    return command("XINFO", "STREAM", stream) + command("HMGET", meta, "inc", "packed", "lead")


def state_from(info: Any, known: Any) -> StreamState:
    """Read what `look` asked for.

    Raises:
        redis.exceptions.ResponseError: the server refused one of them.
    """
    for reply in (info, known):
        if isinstance(reply, Exception) and "no such key" not in str(reply):
            raise reply
    if isinstance(info, Exception):
        return StreamState()
    fields = dict(zip(info[::2], info[1::2], strict=True))
    deleted, oldest = fields.get(b"max-deleted-entry-id"), fields[b"first-entry"]
    return StreamState(
        last=entry_id(fields[b"last-generated-id"]),
        length=fields[b"length"],
        added=fields.get(b"entries-added"),
        intact=deleted == b"0-0",
        incarnation=known[0].decode() if known[0] else "",
        packed=bool(known[1]),
        first=entry_id(oldest[0]) if oldest else None,
    )


class Scan:
    """One stream's part of a page, in a few round trips at most.

    Args:
        request: what to read.
        after: its position, parsed; None: the beginning.
        stream: key of the stream.
        meta: key of what is known about it.
        density: of this stream.
        ahead: whether nobody waits for it, so that exactly this much is to be read.

    Attributes:
        done: the page is complete.
    """

    __slots__ = (
        "_after",
        "_asked",
        "_careful",
        "_events",
        "_gap",
        "_left",
        "_meta",
        "_more",
        "_position",
        "_rounds",
        "_stopped",
        "_undecodable",
        "density",
        "done",
        "request",
        "stream",
    )  # fmt: skip

    def __init__(
        self,
        request: ReadRequest,
        after: Position | None,
        stream: bytes,
        meta: bytes,
        density: Density,
        *,
        ahead: bool = False,
    ) -> None:
        self.request = request
        self.stream = stream
        self._meta = meta
        self.density = density
        self.done = False
        self._after = after
        self._careful = after is None
        self._position = after
        self._left = request.limit if ahead else density.window(request.after, request.limit)
        self._events: list[StoredEvent] = []
        self._gap: Gap | None = None
        self._more = False
        self._undecodable = 0
        self._stopped = False
        self._rounds = 0
        self._asked = 0
        kept = self.density.kept
        if after is not None and kept and kept[0][0] == after.entry:
            self._take(kept, after, own=True, beyond=True)
            # Short of the limit, the rest is fetched, and that tells whether there is more.
            self.done, self._rounds = self._left == 0 and self._more, 0

    def command(self) -> tuple[bytes, int]:
        """Return the commands of the next round trip, and how many replies they get."""
        # One more than needed says whether there is more; the position's own entry comes first.
        self._asked = self.density.entries_for(self._left) + (1 if self._after is None else 2)
        start = "-" if self._after is None else self._after.entry
        read = command("XRANGE", self.stream, start, "+", "COUNT", self._asked)
        if not self._careful:
            return read, 1
        return command("MULTI") + look(self.stream, self._meta) + read + command("EXEC"), 5

    def accept(self, replies: list[Any]) -> None:
        """Take in the replies.

        Raises:
            redis.exceptions.RedisError: the server refused.
        """
        self.density.listed = False  # until the look behind it, if there is one, is answered
        if self._careful:
            self._accept_careful(replies)
            return
        [entries] = replies
        if isinstance(entries, Exception):
            raise entries
        after = self._after
        assert after is not None
        if not entries or entries[0][0] != after.entry:
            self._careful = True
            return
        self._take(entries, after, own=True, beyond=len(entries) == self._asked)

    def page(self) -> ShardPage:
        """Return the page that was asked for, once `done`; what was read beyond it is kept."""
        return self.density.cut(self.whole(), self.request.limit)

    def whole(self) -> ShardPage:
        """Return all that was read, once `done`."""
        after, position = self.request.after, self._position
        moved = bool(self._events or self._undecodable or self._gap is not None)
        return ShardPage(
            events=self._events,
            position=after if after is not None and not moved else str(position),
            has_more=self._more,
            gap=self._gap,
            undecodable=self._undecodable,
        )

    def _accept_careful(self, replies: list[Any]) -> None:
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        info, known, entries = replies[-1]
        state = state_from(info, known)
        if isinstance(entries, Exception):
            raise entries
        self._careful = False
        after, beyond = self._after, len(entries) == self._asked
        if after is None:
            self._take(entries, state.earliest, own=False, beyond=beyond)
            return
        if entries and entries[0][0] == after.entry:  # it was written meanwhile, after a failover
            self._take(entries, after, own=True, beyond=beyond)
            return
        gone, missed = state.missed(after)
        ahead = state.first is None or after.id < state.first
        if not gone:
            here = state.at(after.id, state.trimmed) if ahead else after
            self._take(entries, here, own=False, beyond=beyond)
            return
        if self._events or self._undecodable:  # a page never goes over a gap: the next read tells of it
            self._more = self.done = True
            return
        if after.id > state.last:
            resumed, entries = state.tail, []
        else:
            resumed = state.earliest if ahead else Position(after.id)
        self._gap = Gap(
            shard=self.request.stream.shard,
            missed=missed,
            resumed_at=str(resumed),
            origin=self.request.stream.origin,
        )
        self._take(entries, resumed, own=False, beyond=beyond and bool(entries))

    def _take(self, entries: list[Any], before: Position, *, own: bool, beyond: bool) -> None:
        """Decode what was read.

        Args:
            entries: as Redis sent them.
            before: the position before the first of them, or in its own first entry.
            own: the first entry is the position's own.
            beyond: the last entry only says that there is more.
        """
        self._rounds += 1
        self._position = before
        start = seen = held = 0
        if own:
            start = 1
            if before.left:
                held, seen = self._entry(entries[0], before), 1
        end = len(entries) - 1 if beyond else len(entries)
        while start < end and self._left and not self._stopped:
            stop = min(end, start + self._left, start + _CHUNK)
            taken = self._alike(entries[start:stop])
            start, seen, held = start + taken, seen + taken, held + taken
            while start < stop and self._left and not self._stopped:
                taken = self._each(entries[start:stop])
                start, seen, held = start + taken, seen + taken, held + taken
                if start < stop and self._left:
                    held += self._entry(entries[start], self._position)
                    if not self._stopped:
                        start, seen = start + 1, seen + 1
        if seen:
            self.density.learn(entries, held / seen)
        self.density.keep(entries[max(start - 1, 0) :])
        self._more = start < len(entries) or self._position.left > 0
        self._after = self._position
        self.done = not self._more or self._left == 0 or self._rounds >= 4 or self._stopped

    def _alike(self, entries: list[Any]) -> int:
        """Decode entries that are all of this library's shape; return how many those were: all or none."""
        at = self._position
        assert at is not None
        events = decode_alike(entries, self.request.stream.shard, at.count, at.incarnation)
        return 0 if events is None else self._add(events, entries, at)

    def _each(self, entries: list[Any]) -> int:
        """Decode leading entries of a known shape; return how many those were."""
        at = self._position
        assert at is not None
        return self._add(
            decode_each(entries, self.request.stream.shard, at.count, at.incarnation), entries, at
        )

    def _add(self, events: list[StoredEvent], entries: list[Any], at: Position) -> int:
        """Take in events, one an entry, and move behind the last of them."""
        if events:
            self._events += events
            self._left -= len(events)
            count = None if at.count is None else at.count + len(events)
            self._position = Position(entry_id(entries[len(events) - 1][0]), None, 0, count, at.incarnation)
        return len(events)

    def _entry(self, entry: Any, before: Position) -> int:
        """Decode one entry of any shape; return how many events it holds."""
        name, fields = entry
        where = entry_id(name)
        inside = where == before.id
        count = before.count if inside or before.count is None else before.count + 1
        fields = dict(zip(fields[::2], fields[1::2], strict=False))
        if (blob := fields.get(b"b")) is not None and (batch := self.density.unpack(name, blob)) is not None:
            index = before.index if inside else -1
            at = Position(where, index, len(batch.raw), count, before.incarnation)
            self._from_packed(name, batch, at)
            return len(batch.raw)
        envelope = fields.get(b"d")
        found = None if envelope is None else event_from(envelope, name)
        if found is None and len(self._events) >= self.request.limit:
            self._stopped = True  # it is counted by the page that passes it, not by reading ahead
            return 0
        self._position = Position(where, None, 0, count, before.incarnation)
        if found is None:
            self._undecodable += 1
            return 0
        self._left -= 1
        self._events.append(StoredEvent(str(self._position), self.request.stream.shard, *found))
        return 1

    def _from_packed(self, name: bytes, batch: PackedBatch, at: Position) -> None:
        """Return events of a packed entry, from behind the index of `at`."""
        index = -1 if at.index is None else at.index
        suffix = "" if at.count is None else f"@{at.count}.{at.incarnation}"
        found = decode_slice(batch, self.request.stream.shard, name.decode(), index, self._left, suffix)
        self._events += found
        self._left -= len(found)
        index += len(found)
        rest = max(0, len(batch.raw) - 1 - index)
        self._position = Position(
            at.id, index if rest else None, len(batch.raw) if rest else 0, at.count, at.incarnation
        )
