"""What the bus hands an adapter to store.

A batch has two forms: events, as a poll returns them, and columns, as the ring held them. Each is
made from the other when somebody asks, and kept; an adapter that encodes or counts works on the
columns and never pays for the events.
"""

from __future__ import annotations

from itertools import repeat
from typing import Any

from netcore.events import StoredEvent, new_indexed

__all__ = ["Batch"]


class Batch:
    """Events of one shard, to be stored in this order, all or nothing. Adapters only read it.

    `len(batch)` is the number of events, one or more.

    Args:
        events: the events; or leave them out and give the columns:
        stamps: their timestamps, int nanoseconds since the epoch, and
        payloads: their payloads, as many.

    Attributes:
        producer: the bus that sends it: 32 hex digits, new for each opened bus.
        shard: the shard.
        first_seq: sequence number of the first event among (producer, shard), from 0. The next
            batch starts at `first_seq + len(batch)` or, where events were dead-lettered, later.
    """

    __slots__ = ("_events", "_payloads", "_stamps", "first_seq", "producer", "shard")

    def __init__(
        self,
        *,
        producer: str,
        shard: int,
        first_seq: int,
        events: list[StoredEvent] | None = None,
        stamps: list[int] | None = None,
        payloads: list[bytes] | None = None,
    ) -> None:
        if events is not None:
            fits = stamps is None and payloads is None
        else:
            fits = stamps is not None and payloads is not None and len(stamps) == len(payloads)
        if not fits:
            raise TypeError("a batch takes events, or stamps and as many payloads")
        self.producer = producer
        self.shard = shard
        self.first_seq = first_seq
        self._events = events
        self._stamps = stamps
        self._payloads = payloads

    @property
    def events(self) -> list[StoredEvent]:
        """The events: `ts`, `raw` and `shard` are set, `id` means nothing yet."""
        if self._events is None:
            made: Any = list(map(new_indexed, repeat(0), repeat(self.shard), self.stamps, self.payloads))
            self._events = made
        return self._events

    @property
    def stamps(self) -> list[int]:
        """The events' timestamps."""
        if self._stamps is None:
            self._stamps = [event.ts for event in self.events]
        return self._stamps

    @property
    def payloads(self) -> list[bytes]:
        """The events' payloads."""
        if self._payloads is None:
            self._payloads = [event.raw for event in self.events]
        return self._payloads

    def part(self, first: int, last: int | None = None) -> Batch:
        """Return the events from `first` up to, not including, `last` (default: the end) as a batch.

        Raises:
            ValueError: there are none.
        """
        chosen = slice(first, last)
        begin, end, _ = chosen.indices(len(self))
        if end <= begin:
            raise ValueError(f"no events from {first} to {last} in a batch of {len(self)}")
        seq = self.first_seq + begin
        if self._events is not None:
            return Batch(producer=self.producer, shard=self.shard, first_seq=seq, events=self._events[chosen])
        return Batch(
            producer=self.producer,
            shard=self.shard,
            first_seq=seq,
            stamps=self.stamps[chosen],
            payloads=self.payloads[chosen],
        )

    def __len__(self) -> int:
        column = self._payloads
        return len(column if column is not None else self.events)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Batch):
            return NotImplemented
        mine = (self.producer, self.shard, self.first_seq)
        return mine == (other.producer, other.shard, other.first_seq) and self.events == other.events

    __hash__ = None  # type: ignore[assignment]  # it holds lists

    def __repr__(self) -> str:
        return (
            f"Batch(producer={self.producer!r}, shard={self.shard}, first_seq={self.first_seq}, "
            f"events={self.events!r})"
        )
