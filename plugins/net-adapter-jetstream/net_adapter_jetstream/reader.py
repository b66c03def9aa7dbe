"""Reading pages of one shard's stream. Creates nothing at the server and consumes nothing.

A page is one request: the server sends the messages and says up to which sequence number it read. Where
it can leave out the headers it does, three times faster; the sequence numbers follow from the end
and the count, and a page for which that does not come out even (something was deleted or trimmed)
is asked for again with headers. Servers before 2.11 are asked for each message, many at a time.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec

from net_adapter_jetstream import failures, layout, positions
from net_adapter_jetstream.link import Link
from net_adapter_jetstream.positions import BEGINNING, Position
from net_adapter_jetstream.replies import Page, Reply, Waiter, field
from net_adapter_jetstream.streams import Info, Streams
from netcore import (
    AdapterRefusedError,
    CursorError,
    Gap,
    ReadRequest,
    ShardPage,
    StoredEvent,
    TransientAdapterError,
)

__all__ = ["Reader", "Record"]

_MOST_MESSAGES: Final = 4096
_MOST_BYTES: Final = 8 << 20
_ALL_BYTES: Final = 24 << 20
"""For all pages asked for at once: a server cuts off who has 64 MiB outstanding."""
_LEAST_BYTES: Final = 64 << 10
_SINGLES: Final = 512
_MESSAGE_NOT_FOUND: Final = 10037
_LAG_PAUSE_S: Final = 0.005


class Record(NamedTuple):
    """One stored message with its raw header block."""

    seq: int
    head: bytes
    body: bytes


class _Run(NamedTuple):
    """What a page request brought: bodies with their sequence numbers, ascending.

    `until` is how far the server looked; `gap_to` is where the earliest message is if some before
    it, that were asked for, are trimmed.
    """

    seqs: Sequence[int]
    bodies: Sequence[bytes]
    until: int
    gap_to: int


class _Message(msgspec.Struct):
    seq: int
    hdrs: str = ""
    data: str = ""


class _MessageAnswer(msgspec.Struct):
    error: failures.ApiError | None = None
    message: _Message | None = None


class _Want(NamedTuple):
    """How much to ask for: messages, and bytes (the server sends one message at least)."""

    messages: int
    size: int


class _Shape(msgspec.Struct):
    """What is known of a stream's messages: mean bytes, and events in a packed one."""

    bytes: float
    events: float = 1.0


class _Job:
    """One request of a `read_many`: its position, or why that is none, and what was asked for it."""

    __slots__ = ("after", "error", "info", "page", "request", "share")

    def __init__(self, request: ReadRequest, share: int) -> None:
        self.request = request
        self.share = share
        self.after: Position | None = None
        self.error: Exception | None = None
        self.info: Reply | None = None
        self.page: Page | None = None
        try:
            self.after = None if request.after is None else positions.parse(request.after)
        except CursorError as error:
            self.error = error


class Reader:
    """Reads streams.

    Args:
        link: the connection.
        streams: the streams.
    """

    def __init__(self, link: Link, streams: Streams) -> None:
        self._link = link
        self._streams = streams
        self._shapes: dict[int, _Shape] = {}
        self._gets = f"{streams.api}.DIRECT.GET"

    async def read_many(self, requests: Sequence[ReadRequest]) -> list[ShardPage | Exception]:
        """Read several streams, their requests overlapping; see `netcore.Adapter.read_many`."""
        share = max(_LEAST_BYTES, min(_MOST_BYTES, _ALL_BYTES // max(1, len(requests))))
        jobs = [_Job(request, share) for request in requests]
        asked: list[tuple[Waiter, str, bytes]] = []
        for job in jobs:
            if job.error is not None:
                continue
            shard = job.request.stream.shard
            job.info, *rest = self._streams.info_request(shard)
            asked.append((job.info, *rest))  # type: ignore[arg-type]
            if shard in self._shapes and self._streams.bare_pages:
                job.page, *rest = self._page_request(shard, _start(job.after), self._want(job))
                asked.append((job.page, *rest))  # type: ignore[arg-type]
        await self._link.exchange(asked)
        results = await asyncio.gather(*map(self._finish, jobs), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, Exception):
                raise result
        return results  # type: ignore[return-value]  # the loop above leaves pages and Exceptions

    async def _finish(self, job: _Job) -> ShardPage:
        if job.error is not None or job.info is None:
            raise job.error or TransientAdapterError("nothing was asked")
        request, after, page = job.request, job.after, job.page
        info = self._streams.info_of(job.info)
        shard = request.stream.shard
        if info is None:
            self._shapes.pop(shard, None)
            return ShardPage(events=[], position=request.after or str(BEGINNING), has_more=False)
        if not info.config.get("allow_direct"):
            raise AdapterRefusedError(
                f"stream {self._streams.name(shard)} has allow_direct=false, which reading needs: set it "
                "(nats stream edit --allow-direct); a bus that writes to it does so itself"
            )
        self._learn_shape(shard, info)
        missed: int | None = 0
        start, index = _start(after), None if after is None else after.place
        if after is not None and after.born and after.born != info.born:
            start, index, missed, page = 1, None, None, None
        elif start > info.last + 1:
            if info.replicas > 1:  # the one that was asked may lag behind
                return ShardPage(events=[], position=str(after), has_more=False)
            start, missed = info.last + 1, None
        first = max(start, info.first)
        run = await self._run(shard, first, self._want(job), info, page)
        if run.gap_to > start and after is not None and missed is not None:
            packed = index is not None or self._streams.packed(info) or self._shapes[shard].events > 1
            missed = None if packed else run.gap_to - start
        if run.gap_to > start:
            index = None
        built = self._build(request, run, index, info)
        if missed != 0 and after is not None:
            resumed = max(run.gap_to, start) - 1
            built.gap = Gap(shard=shard, missed=missed, resumed_at=str(Position(resumed, None, info.born)))
        return built

    def _build(self, request: ReadRequest, run: _Run, index: int | None, info: Info) -> ShardPage:
        """Decode a run into a page of at most `limit` events; `index` are skipped in the first message."""
        shard, limit = request.stream.shard, request.limit
        end, suffix = layout.envelope_end(shard), f"@{info.born}"
        events: list[StoredEvent] = []
        add, decode, undecodable = events.append, layout.decode, 0
        for seq, body in zip(run.seqs, run.bodies, strict=True):
            found = decode(body, end)
            if found is not None:
                add(StoredEvent(f"{seq}{suffix}", shard, found[0], found[1]))
            elif (packed := layout.unpack(body)) is not None:
                skip = index + 1 if index is not None and seq == run.seqs[0] else 0
                stop = min(len(packed), skip + limit - len(events))
                for place in range(skip, stop):
                    ts, raw = packed[place]
                    inner = "" if place == len(packed) - 1 else f":{place}"
                    add(StoredEvent(f"{seq}{inner}{suffix}", shard, ts, raw))
                self._learn_packed(shard, len(packed))
                if stop < len(packed):
                    return ShardPage(
                        events=events,
                        position=str(Position(seq, stop - 1, info.born)),
                        has_more=True,
                        undecodable=undecodable,
                    )
            else:
                undecodable += 1
            if len(events) == limit:
                return ShardPage(
                    events=events,
                    position=f"{seq}{suffix}",
                    has_more=seq < info.last or seq != run.seqs[-1],
                    undecodable=undecodable,
                )
        return ShardPage(
            events=events,
            position=f"{run.until}{suffix}",
            has_more=run.until < info.last,
            undecodable=undecodable,
        )

    # -- fetching

    async def _run(self, shard: int, first: int, want: _Want, info: Info, page: Page | None) -> _Run:
        """Return what stands from `first` on, at most as much as wanted."""
        if first > info.last:
            return _Run((), (), info.last, first)
        if not self._streams.bare_pages:
            return await self._run_with_headers(shard, first, want, info)
        if page is None or page.error is not None:
            page, *request = self._page_request(shard, first, want)
            await self._link.exchange([(page, *request)])  # type: ignore[list-item]
        if page.error is not None:
            raise page.error
        got = len(page.bodies)
        if got and not page.heads and page.last - first + 1 == got:
            return _Run(range(first, page.last + 1), page.bodies, page.last, first)
        return await self._run_with_headers(shard, first, want, info)

    async def _run_with_headers(self, shard: int, first: int, want: _Want, info: Info) -> _Run:
        """Do the same where messages are missing: tell holes from what was trimmed meanwhile."""
        records = await self._fresh_records(shard, first, want, info)
        now = await self._streams.info(shard)
        trimmed_to = now.first if now is not None and now.born == info.born else info.first
        kept: list[Record] = []
        expected = first
        for record in records:
            if record.seq > expected and kept and trimmed_to > expected:
                break  # trimmed while the page was read: the next page reports the gap
            kept.append(record)
            expected = record.seq + 1
        gap_to = min(kept[0].seq if kept else info.last + 1, max(trimmed_to, first))
        # Without records all up to `last` is gone; with them, how far the server looked is the last.
        until = kept[-1].seq if kept else info.last
        return _Run([r.seq for r in kept], [r.body for r in kept], until, gap_to)

    async def _fresh_records(self, shard: int, first: int, want: _Want, info: Info) -> list[Record]:
        """Read records; if a replica that lags behind has none, wait for it."""
        deadline = asyncio.get_running_loop().time() + self._link.timeout
        while True:
            records = await self.records(shard, first, *want, last=info.last)
            if records or info.replicas == 1 or await self.last_record(shard, first, following=True) is None:
                return records
            if asyncio.get_running_loop().time() > deadline:
                raise TransientAdapterError(f"{self._streams.name(shard)}: a replica lags behind its leader")
            await asyncio.sleep(_LAG_PAUSE_S)

    async def records(
        self, shard: int, first: int, count: int, size: int = _MOST_BYTES, *, last: int
    ) -> list[Record]:
        """Return at most `count` messages from `first` on, up to about `last`, with their headers."""
        if not self._streams.pages:
            return await self._single_records(shard, range(first, min(first + count, last + 1)))
        subject = f"{self._gets}.{self._streams.name(shard)}"
        page = Page(subject)
        body = {"seq": first, "batch": count, "max_bytes": size}
        await self._link.exchange([(page, subject, msgspec.json.encode(body))])
        if page.error is not None:
            raise page.error
        return sorted(map(_record, page.heads, page.bodies))

    async def _single_records(self, shard: int, seqs: range) -> list[Record]:
        subject = f"{self._gets}.{self._streams.name(shard)}"
        found: list[Record] = []
        for start in range(0, len(seqs), _SINGLES):
            replies = [
                (Reply(subject), subject, b'{"seq":%d}' % seq) for seq in seqs[start : start + _SINGLES]
            ]
            await self._link.exchange(replies)
            for reply, _, _ in replies:
                if reply.error is not None:
                    raise reply.error
                if reply.head and not reply.status:
                    found.append(_record(reply.head, reply.body))
        return sorted(found)

    async def last_record(self, shard: int, seq: int, *, following: bool = False) -> Record | None:
        """Ask the stream's leader for message `seq` (or the first one from there on), None if gone."""
        subject = f"{self._streams.api}.STREAM.MSG.GET.{self._streams.name(shard)}"
        reply = Reply(subject)
        asked: dict[str, Any] = {"seq": seq}
        if following:
            asked["next_by_subj"] = self._streams.subject(shard)
        await self._link.exchange([(reply, subject, msgspec.json.encode(asked))])
        if reply.error is not None:
            raise reply.error
        try:
            answer = msgspec.json.decode(reply.body, type=_MessageAnswer)
        except msgspec.MsgspecError as error:
            raise TransientAdapterError(f"{subject}: not a JetStream answer") from error
        if answer.error is not None:
            if answer.error.err_code == _MESSAGE_NOT_FOUND:
                return None
            raise failures.from_api(answer.error, subject)
        if answer.message is None:
            return None
        found = answer.message
        return Record(found.seq, base64.b64decode(found.hdrs), base64.b64decode(found.data))

    async def after_time(self, shard: int, rfc3339: str) -> int | None:
        """Return the first sequence number stored at or after a server's time, None if none was."""
        subject = f"{self._gets}.{self._streams.name(shard)}"
        page = Page(subject)
        body = msgspec.json.encode({"start_time": rfc3339, "batch": 1})
        await self._link.exchange([(page, subject, body)])
        if page.error is not None:
            raise page.error
        return _record(page.heads[0], page.bodies[0]).seq if page.heads else None

    def _page_request(self, shard: int, first: int, want: _Want) -> tuple[Page, str, bytes]:
        subject = f"{self._gets}.{self._streams.name(shard)}"
        body = b'{"seq":%d,"batch":%d,"max_bytes":%d,"no_hdr":true}' % (first, *want)
        return Page(subject), subject, body

    # -- how much to ask for

    def _want(self, job: _Job) -> _Want:
        shape = self._shapes.get(job.request.stream.shard) or _Shape(_MOST_BYTES)
        most = min(_MOST_MESSAGES, max(1, int(job.share / shape.bytes)))
        needed = int(job.request.limit / shape.events) + (2 if shape.events > 1 else 0)
        return _Want(max(1, min(most, needed)), job.share)

    def _learn_shape(self, shard: int, info: Info) -> None:
        size = max(1.0, info.bytes / max(1, info.messages))
        if shard in self._shapes:
            self._shapes[shard].bytes = size
        else:
            self._shapes[shard] = _Shape(size)

    def _learn_packed(self, shard: int, events: int) -> None:
        shape = self._shapes[shard]
        shape.events += (events - shape.events) / 4


def _start(after: Position | None) -> int:
    if after is None:
        return 1
    return after.seq + 1 if after.place is None else after.seq


def _record(head: bytes, body: bytes) -> Record:
    return Record(int(field(head, b"Nats-Sequence") or 0), head, body)
