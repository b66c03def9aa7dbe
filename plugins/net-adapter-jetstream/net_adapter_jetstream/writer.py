"""Appending to one shard's stream: all or nothing, in order, once.

The rule: every batch names the sequence number that the stream must end with, and the server stores
it only if that holds. So whoever writes has seen what stands before, of several attempts at one batch
at most one can succeed, and a late copy of an attempt finds the stream moved on. After any doubt (a
lost reply, a new connection, somebody else's write) the writer looks at the stream's end again, where
the *marks* tell how far each producer got, and sends what is missing.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import secrets
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from net_adapter_jetstream import failures, frames, layout
from net_adapter_jetstream.config import JetStreamConfig
from net_adapter_jetstream.link import Link
from net_adapter_jetstream.marks import HEADER, Marks
from net_adapter_jetstream.positions import born_of
from net_adapter_jetstream.reader import Reader, Record
from net_adapter_jetstream.replies import NoRespondersError, field
from net_adapter_jetstream.streams import Answer, Info, Streams, answer_of
from netcore import Batch, FatalAdapterError, StoredEvent, TransientAdapterError

__all__ = ["Writer", "marks_of"]

_MOST_ROUNDS: Final = 32
_LOOK_BACK: Final = 2048
"""How many messages are looked at where the last one carries no marks."""
_LOOK_BACK_BYTES: Final = 32 << 20
_PAUSE_S: Final = 0.002
_MOST_OWN: Final = 64
_HOUR_S: Final = 3600
_NS_PER_MS: Final = 1_000_000
_LEAD_SLACK_MS: Final = 1000
_PACKED_COST: Final = 16
"""Bytes that an event takes in a packed body beside its payload, at most (9 + 5)."""


class _Doubt(NamedTuple):
    """An attempt whose answer is not known: its base, and what it stores if it was applied.

    `whole`: it is applied as a whole or not at all.
    """

    base: int
    producer: str
    ids: str
    following: int
    whole: bool


class Writer:
    """The end of one shard's stream, as this process last saw it.

    Args:
        shard: the shard.
        link: the connection.
        streams: the streams.
        reader: reads the stream's end.
        config: the adapter's settings.
        lost: called when the server no longer has what it acknowledged: ("resets", 1) for a stream that
            was deleted, ("rolled_back", n) for n messages at its end.
    """

    def __init__(
        self,
        shard: int,
        link: Link,
        streams: Streams,
        reader: Reader,
        config: JetStreamConfig,
        lost: Callable[[str, int], None],
    ) -> None:
        self._shard = shard
        self._link = link
        self._streams = streams
        self._reader = reader
        self._config = config
        self._lost = lost
        self._lock = asyncio.Lock()
        self._batches = (f"{secrets.token_hex(8)}.{n}" for n in itertools.count(1))
        self._epoch = 0
        self._atomic = False
        self._distrusted = -1
        self._born = ""
        self._skew_ms = 0
        self._base: int | None = None
        self._acked = 0
        self._doubt: _Doubt | None = None
        self._marks = Marks()
        self._own: dict[str, int] = {}

    @property
    def atomic(self) -> bool | None:
        """Whether batches are atomic for readers; None: nothing was written yet."""
        return self._atomic if self._epoch else None

    async def append(self, batch: Batch) -> None:
        """Store a batch; see `netcore.Adapter.append`."""
        async with self._lock:
            deserted = False
            for turn in range(_MOST_ROUNDS):
                if turn > 1:  # another writer is as quick: let chance decide who goes first
                    await asyncio.sleep(random.uniform(0, _PAUSE_S * turn))  # noqa: S311
                try:
                    if await self._round(batch):
                        return
                except NoRespondersError:
                    # Nobody took the batch. If the stream was deleted, looking again makes it anew.
                    if deserted:
                        raise
                    deserted, self._doubt = True, None
            raise TransientAdapterError(
                f"shard {self._shard}: others wrote to the stream {_MOST_ROUNDS} times in between; will try again"
            )

    async def _round(self, batch: Batch) -> bool:
        """Try once; False: the stream was not as expected, look again."""
        if self._epoch != self._link.epoch or self._base is None:
            await self._learn()
        assert self._base is not None, "_learn sets it or raises"
        following = batch.first_seq + len(batch.events)
        skip = max(0, self._next(batch.producer) - batch.first_seq)
        if skip >= len(batch.events):
            return True
        shipment, marks = self._shipment(batch, skip, self._base)
        self._base = None
        whole = self._atomic or len(shipment.bodies) == 1
        self._doubt = _Doubt(shipment.base, batch.producer, shipment.ids, following, whole)
        # From here on until the answer is understood, nobody knows how the stream ends.
        answer = answer_of(await self._link.ship(shipment))
        if answer.error is None:
            if answer.duplicate:
                return await self._is_duplicate(batch)
            return self._stored(answer, batch, shipment, marks)
        self._doubt = None  # it was refused, so it is not there
        code = answer.error.err_code
        if code in (failures.WRONG_LAST_SEQUENCE, failures.WRONG_LAST_ID):
            return False
        if code == failures.DUPLICATE_IN_BATCH:
            return await self._is_duplicate(batch)
        raise failures.from_api(answer.error, f"stream {self._streams.name(self._shard)}")

    def _stored(self, answer: Answer, batch: Batch, shipment: frames.Shipment, marks: Marks) -> bool:
        """Take note of an acknowledged batch; False: look whether it is there."""
        count = len(shipment.bodies)
        if shipment.batch_id is not None and answer.count != count:
            # The server took the messages one by one: it does not know batches, whatever it says.
            self._distrusted = self._link.epoch
            return False
        if answer.seq != shipment.base + count:
            return False
        self._base = self._acked = answer.seq
        self._doubt = None
        self._marks = marks
        self._remember(batch.producer, batch.first_seq + len(batch.events))
        return True

    def _remember(self, producer: str, following: int) -> None:
        known = self._own.pop(producer, 0)
        self._own[producer] = max(known, following)
        while len(self._own) > _MOST_OWN:
            del self._own[next(iter(self._own))]

    def _next(self, producer: str) -> int:
        """Return the number that `producer` goes on with, 0 if nothing is known of it."""
        return max(self._own.get(producer, 0), self._marks.next(producer) or 0)

    async def _is_duplicate(self, batch: Batch) -> bool:
        """Take note that the server has seen an id of this batch, within its window.

        If the marks do not say so (a purge took them away), the batch was stored whole, once.
        """
        await self._learn()
        if self._next(batch.producer) <= batch.first_seq:
            self._remember(batch.producer, batch.first_seq + len(batch.events))
        return False

    # -- what goes out

    def _shipment(self, batch: Batch, skip: int, base: int) -> tuple[frames.Shipment, Marks]:
        self._check_sizes(batch, skip)
        bodies, indices = self._bodies(batch, skip)
        atomic = self._atomic and len(bodies) > 1
        marks = self._marks.copy()
        hour = int(time.time()) // _HOUR_S
        marks.advance(batch.producer, batch.first_seq + len(batch.events), hour)
        if marks.lead is not None:
            marks.lead = max(marks.lead, self._ahead(batch.events))
        shipment = frames.Shipment(
            subject=self._streams.subject(self._shard),
            bodies=bodies,
            ids=f"{batch.producer}:{self._shard}:{batch.first_seq}:",
            indices=indices,
            base=base,
            batch_id=next(self._batches) if atomic else None,
            marks=marks.render(hour),
        )
        return shipment, marks

    def _check_sizes(self, batch: Batch, skip: int) -> None:
        limit = self._link.largest
        for index in range(skip, len(batch.events)):
            if (size := len(batch.events[index].raw)) > limit:
                raise FatalAdapterError(
                    f"event {batch.first_seq + index} of shard {self._shard} has {size:,} bytes; this server "
                    f"takes {limit:,}: raise max_payload in its configuration (now {self._link.max_payload:,})"
                )

    def _bodies(self, batch: Batch, skip: int) -> tuple[list[bytes], list[int]]:
        """Return the messages' bodies, and the index in the batch of each one's first event."""
        events = batch.events[skip:] if skip else batch.events
        if self._config.layout == "event":
            return layout.envelopes(events, self._shard), list(range(skip, skip + len(events)))
        bodies, indices = [], []
        start = size = 0
        for index, event in enumerate(events):
            cost = len(event.raw) + _PACKED_COST
            if index > start and size + cost > self._link.largest:
                bodies.append(layout.pack(events[start:index]))
                indices.append(skip + start)
                start, size = index, 0
            size += cost
        bodies.append(layout.pack(events[start:]))
        indices.append(skip + start)
        return bodies, indices

    def _ahead(self, events: list[StoredEvent]) -> int:
        """Return by how many ms a timestamp here is ahead of the server's clock, at most."""
        latest = max(event.ts for event in events)
        return max(0, latest // _NS_PER_MS - int(time.time() * 1000) - self._skew_ms + _LEAD_SLACK_MS)

    # -- what stands there

    async def _learn(self) -> None:
        """Look at the stream's end: its last sequence number, and how far each producer got."""
        epoch = self._link.epoch
        info = await self._streams.ensure(self._shard)
        if epoch != self._epoch:
            self._skew_ms = _skew_ms(info.now)
        self._atomic = (
            self._streams.batches and bool(info.config.get("allow_atomic")) and self._distrusted != epoch
        )
        self._compare(info)
        self._marks = await self._marks_at(info)
        if self._doubt is not None:
            await self._resolve(self._doubt, info)
        self._base, self._epoch = info.last, epoch

    def _compare(self, info: Info) -> None:
        """Notice that the server no longer has what it acknowledged."""
        if self._born and info.born != self._born:
            self._lost("resets", 1)
            self._acked, self._doubt = 0, None
        elif info.last < self._acked:
            self._lost("rolled_back", self._acked - info.last)
            self._acked = info.last
        self._born = info.born

    async def _marks_at(self, info: Info) -> Marks:
        """Return the marks as of `info.last`."""
        if info.last == 0:
            return Marks()
        record = await self._reader.last_record(self._shard, info.last)
        found = None if record is None else marks_of(record)
        if found is not None:
            return found
        back = max(1, min(_LOOK_BACK, _LOOK_BACK_BYTES // max(1, info.bytes // max(1, info.messages))))
        at = max(info.first, info.last - back + 1)
        marks = Marks()
        marks.lead = 0 if at == 1 else None
        while at <= info.last:
            records = await self._reader.records(self._shard, at, back, last=info.last)
            if not records:
                break
            marks = _fold(marks, records, info.last)
            at = records[-1].seq + 1
        if record is not None and at <= info.last:
            raise TransientAdapterError(
                f"{self._streams.name(self._shard)}: a replica lags behind its leader"
            )
        return marks

    async def _resolve(self, doubt: _Doubt, info: Info) -> None:
        """Decide whether an attempt in doubt is there: it can only stand right after its base.

        The marks say the same, unless so many others wrote since that they have forgotten.
        """
        if doubt.whole and info.first <= doubt.base + 1 <= info.last:
            record = await self._reader.last_record(self._shard, doubt.base + 1)
            found = b"" if record is None else field(record.head, b"Nats-Msg-Id") or b""
            if found.startswith(doubt.ids.encode()):
                self._remember(doubt.producer, doubt.following)


def marks_of(record: Record) -> Marks | None:
    """Return the marks that a message carries, None if it carries none."""
    value = field(record.head, HEADER.encode())
    return None if value is None else Marks.parse(value.decode(errors="replace"))


def _fold(marks: Marks, records: list[Record], last: int) -> Marks:
    """Go on from `marks` with what the messages themselves tell, up to `last`."""
    for record in records:
        if record.seq > last:
            break
        if (found := marks_of(record)) is not None:
            marks = found
            continue
        words = (field(record.head, b"Nats-Msg-Id") or b"").decode(errors="replace").split(":")
        if len(words) == 4 and words[2].isdigit() and words[3].isdigit():
            packed = layout.unpack(record.body) if record.body.startswith(layout.PACKED) else None
            following = int(words[2]) + int(words[3]) + (len(packed) if packed else 1)
            marks.advance(words[0], following, int(time.time()) // _HOUR_S)
        marks.lead = None
    return marks


def _skew_ms(now: str) -> int:
    """Return the server's clock minus ours, ms, at about this moment; 0 if it does not tell."""
    if not now:
        return 0
    return int(born_of(now), 16) // 1000 - int(time.time() * 1000)
