"""Adapters that change, move or hold back what they store.

Each says in `fails` which clauses find it out: those and no others; where a defect is `broad` (it
makes nearly everything fail), those at least.
"""

from __future__ import annotations

from collections.abc import Sequence

from kit_store import ANY, PAYLOAD, StoreAdapter, clauses

from netcore.events import StoredEvent


class SortsByTime(StoreAdapter):
    """Sorts a batch by timestamp."""

    fails = clauses(
        "append_keeps_the_order_of_batches",
        "append_keeps_timestamp_shard_and_payload",
    )

    def keep(self, shard: int, events: Sequence[StoredEvent]) -> None:
        super().keep(shard, sorted(events, key=lambda event: event.ts))


class KeepsMicroseconds(StoreAdapter):
    """Timestamps go through a datetime."""

    fails = clauses("append_keeps_timestamp_shard_and_payload", "seek_is_never_late")

    def stamp(self, ts: int) -> int:
        return ts // 1000 * 1000


class LosesNuls(StoreAdapter):
    """Payloads are C strings."""

    fails = clauses(
        f"{PAYLOAD}[nul]",
        f"{PAYLOAD}[nuls_inside]",
        f"{PAYLOAD}[all_bytes]",
        f"{PAYLOAD}[msgpack]",
        "payload_of_the_largest_size_comes_back",
        "append_of_the_most_bytes_is_stored",
        ANY,
    )

    def code(self, event: StoredEvent) -> bytes:
        return event.raw.replace(b"\0", b"")


class TakesPayloadsForText(StoreAdapter):
    """Payloads go through UTF-8."""

    fails = clauses(
        f"{PAYLOAD}[all_bytes]",
        f"{PAYLOAD}[invalid_utf8]",
        f"{PAYLOAD}[lone_surrogate]",
        f"{PAYLOAD}[msgpack]",
        "payload_of_the_largest_size_comes_back",
        ANY,
    )

    def code(self, event: StoredEvent) -> bytes:
        return event.raw.decode(errors="replace").encode()


class FindsTheEnvelopesEndTooEarly(StoreAdapter):
    """Cuts at the first thing that looks like the end of its envelope."""

    fails = clauses(
        f"{PAYLOAD}[envelope_tail]", f"{PAYLOAD}[envelope_end]", f"{PAYLOAD}[envelope_whole]", ANY
    )

    def code(self, event: StoredEvent) -> bytes:
        envelope = b'{"r":%b,"t":%d,"s":%d}' % (event.raw, event.ts, event.shard)
        return envelope[5:].split(b',"t":')[0]


class TrimsWhitespace(StoreAdapter):
    """Tidies payloads up."""

    fails = clauses(
        f"{PAYLOAD}[json_spaced]", f"{PAYLOAD}[newlines]", "append_of_the_most_bytes_is_stored", ANY
    )

    def code(self, event: StoredEvent) -> bytes:
        return event.raw.strip()


class BuffersABatch(StoreAdapter):
    """Stores a batch when the next one comes: acknowledged, and not to be seen."""

    broad = True
    fails = clauses("append_returned_makes_events_visible", "durable_events_outlive_the_adapter")

    def keep(self, shard: int, events: Sequence[StoredEvent]) -> None:
        buffered = self.__dict__.setdefault("buffered", {})
        super().keep(shard, buffered.get(shard, []))
        buffered[shard] = events


class FoldsHighShards(StoreAdapter):
    """Puts shards above 60,000 together with shard 10."""

    fails = clauses("append_keeps_shards_apart")

    def keep(self, shard: int, events: Sequence[StoredEvent]) -> None:
        super().keep(10 if shard > 60_000 else shard, events)


class TakesPlainEventsOnly(StoreAdapter):
    """Stumbles over what a bus really sends."""

    fails = clauses("append_takes_the_events_a_bus_sends")

    def judge(self, events: list[StoredEvent]) -> None:
        super().judge(events)
        if any(type(event) is not StoredEvent for event in events):
            raise TypeError("not a StoredEvent")
