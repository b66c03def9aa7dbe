"""Snapshots: what a bus says of itself. Plain frozen data; reading them changes nothing."""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = ["EventBusStats", "IngestSummary", "ScalingRecord", "ShardStats", "ShardWindow", "ShutdownReport"]


class IngestSummary(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the events of one `ingest_many` or `ingest_raw_many`.

    `accepted + len(rejected) + len(discarded)` is the number of events given.

    Attributes:
        accepted: how many entered a ring.
        rejected: indices refused (full ring, bad payload, bus closed midway), ascending: retry these.
        discarded: indices that the policy sampled out, ascending.
        error: the first refusal's exception, or None; tells why without raising.
    """

    accepted: int
    rejected: list[int] = []
    discarded: list[int] = []
    error: Exception | None = None


class ShardWindow(msgspec.Struct, frozen=True, kw_only=True):
    """Averages over the scaling monitor's last looks at a shard.

    Attributes:
        seconds: how long a time they cover.
        utilisation: mean share of the ring in use, 0..1.
        busy: share of the time with a batch under way, 0..1.
        push_rate: events accepted a second.
        drop_rate: events evicted, rejected or discarded a second.
        batch_ms: mean duration of a dispatch, ms; 0 if there was none.
    """

    seconds: float
    utilisation: float
    busy: float
    push_rate: float
    drop_rate: float
    batch_ms: float


class ShardStats(msgspec.Struct, frozen=True, kw_only=True):
    """One shard, now and since it was added.

    Attributes:
        id: the shard's id, never reused in a bus's life.
        depth: events in the ring.
        capacity: events the ring can hold.
        utilisation: depth / capacity, 0..1.
        in_flight: events taken from the ring and not yet stored, dead-lettered or lost.
        oldest_age_ms: age of the oldest event in the ring, 0 when empty.
        accepted: events that entered the ring (dispatched + evicted + dead-lettered + lost + waiting).
        dispatched: events the adapter stored.
        evicted: events thrown out by newcomers.
        rejected: newcomers refused.
        discarded: newcomers sampled out.
        dead_lettered: events whose content could not be stored.
        lost: events given up by a shutdown or removal that ran out of time.
        full_hits: how often a newcomer found the ring full.
        batches: batches stored.
        retries: attempts to store a batch after its first.
        last_batch_ms: duration of the last stored batch's dispatch, first attempt to acknowledgement.
        busy_s: seconds spent in dispatching so far, waits between attempts included.
        age_s: seconds since the shard was added.
        wedged: an adapter call outlived its time-out and its cancellation.
        leaving: being removed.
        last_error: the latest refusal of the adapter while its batch is outstanding, else "".
        window: the last seconds' averages; None until the scaling monitor has looked twice.
    """

    id: int
    depth: int
    capacity: int
    utilisation: float
    in_flight: int
    oldest_age_ms: float
    accepted: int
    dispatched: int
    evicted: int
    rejected: int
    discarded: int
    dead_lettered: int
    lost: int
    full_hits: int
    batches: int
    retries: int
    last_batch_ms: float
    busy_s: float = 0.0
    age_s: float = 0.0
    wedged: bool = False
    leaving: bool = False
    last_error: str = ""
    window: ShardWindow | None = None


class ScalingRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One scaling decision that was applied, or tried and refused.

    Attributes:
        at: when, nanoseconds since the epoch.
        added: shard ids added.
        removed: shard ids removed.
        reason: why, in the policy's or operator's words.
        error: "" or why it was not carried out.
    """

    at: int
    added: tuple[int, ...] = ()
    removed: tuple[int, ...] = ()
    reason: str = ""
    error: str = ""


class EventBusStats(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot of a bus; totals include shards since removed.

    Attributes:
        at: when it was taken, nanoseconds since the epoch.
        ingested: events accepted.
        rejected: refused by a policy (each raised or was listed).
        discarded: sampled out by a policy.
        evicted: accepted, then thrown out by newcomers.
        batches_dispatched: batches stored.
        dispatched: events stored.
        retries: attempts to store a batch after its first.
        dead_lettered: events whose content could never be stored.
        lost: accepted events given up by a shutdown or removal that ran out of time.
        clock_anomalies: polled events whose timestamp was too far off to be observed.
        dead_letter_failures: dead letters that no sink took.
        pressure: highest utilisation of any shard, 0..1.
        lossy: accepted events were lost.
        scaling: last applied or refused scaling decisions, oldest first, at most 32.
        adapter: what the adapter reports, its own keys.
        errors: unexpected exception types seen from the adapter, "type: first message" -> count.
        shards: one `ShardStats` a live shard, by id.
    """

    at: int
    ingested: int
    rejected: int
    discarded: int
    evicted: int
    batches_dispatched: int
    dispatched: int
    retries: int
    dead_lettered: int
    lost: int
    clock_anomalies: int
    dead_letter_failures: int
    pressure: float
    lossy: bool
    scaling: tuple[ScalingRecord, ...]
    adapter: dict[str, Any]
    errors: dict[str, int]
    shards: tuple[ShardStats, ...]

    @property
    def dropped(self) -> int:
        """Events that backpressure cost: rejected + discarded + evicted."""
        return self.rejected + self.discarded + self.evicted

    @property
    def in_flight(self) -> int:
        """Accepted events that are not yet stored, evicted, dead-lettered or lost."""
        return sum(shard.depth + shard.in_flight for shard in self.shards)


class ShutdownReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a shutdown left behind. `ingested == dispatched + evicted + dead_lettered + lost`.

    Attributes:
        ingested: events accepted in the bus's life.
        dispatched: events stored.
        evicted: events thrown out by newcomers.
        dead_lettered: events whose content could never be stored.
        lost: accepted events that were given up (some may have been stored without an answer).
        lossy: `lost > 0`.
        unreplicated: events stored here that no peer is known to hold (mesh); otherwise 0.
        seconds: how long it took.
        stuck_shards: shards given up with events outstanding, ascending.
    """

    ingested: int
    dispatched: int
    evicted: int
    dead_lettered: int
    lost: int
    lossy: bool
    unreplicated: int
    seconds: float
    stuck_shards: tuple[int, ...] = ()
