"""Adapters with broken retries and batches.

Each says in `fails` which clauses find it out: those and no others; where a defect is `broad` (it
makes nearly everything fail), those at least.
"""

from __future__ import annotations

import itertools
from typing import Any

import anyio
import anyio.lowlevel
from kit_store import ANY, POISON, StoreAdapter, Suspending, clauses

from netcore.contracts.adapter import (
    Batch,
)
from netcore.errors import (
    TransientAdapterError,
)
from netcore.events import StoredEvent


class StoresHalf(Suspending):
    """A batch goes in in two steps: a cancellation leaves half of it."""

    fails = clauses("append_cancelled_stores_all_or_nothing")

    async def append(self, batch: Batch) -> None:
        half = (len(batch.events) + 1) // 2
        first = Batch(
            producer=batch.producer, shard=batch.shard, first_seq=batch.first_seq, events=batch.events[:half]
        )
        self.judge(self.fresh(batch, self.store.marks.get(self.mark(batch), 0)))
        await StoreAdapter.append(self, first)
        await anyio.lowlevel.checkpoint()
        await StoreAdapter.append(self, batch)


class MarksBeforeStoring(Suspending):
    """The mark moves before the events are in: what a cancellation stopped is taken for stored."""

    fails = clauses("append_cancelled_and_retried_is_stored_once")

    async def append(self, batch: Batch) -> None:
        self.check()
        fresh = self.fresh(batch, self.store.marks.get(self.mark(batch), 0))
        if not fresh:
            return
        self.judge(fresh)
        self.store.marks[self.mark(batch)] = batch.first_seq + len(batch.events)
        await anyio.lowlevel.checkpoint()
        self.keep(batch.shard, fresh)
        self.wake()


class ForgetsRetries(StoreAdapter):
    """Stores whatever comes, as often as it comes."""

    fails = clauses(
        "retry_at_once_stores_nothing_more",
        "late_copy_after_later_batches_stores_nothing",
        "straddling_batch_stores_only_its_tail",
        "skipped_sequence_numbers_lose_nothing",
        "producers_on_one_shard_are_numbered_apart",
        "append_cancelled_and_retried_is_stored_once",
        "retry_is_recognised_before_content_is_judged",
    )

    def fresh(self, batch: Batch, expected: int) -> list[StoredEvent]:
        return batch.events


class StoresStraddlingWhole(StoreAdapter):
    """Knows repeated batches, but not overlapping ones."""

    fails = clauses("straddling_batch_stores_only_its_tail")

    def fresh(self, batch: Batch, expected: int) -> list[StoredEvent]:
        return batch.events if batch.first_seq + len(batch.events) > expected else []


class DropsStraddlingWhole(StoreAdapter):
    """Takes a batch whose first number is known for stored."""

    fails = clauses("straddling_batch_stores_only_its_tail")

    def fresh(self, batch: Batch, expected: int) -> list[StoredEvent]:
        return batch.events if batch.first_seq >= expected else []


class StoresLateCopies(StoreAdapter):
    """Remembers the latest batch only."""

    fails = clauses("late_copy_after_later_batches_stores_nothing")

    def fresh(self, batch: Batch, expected: int) -> list[StoredEvent]:
        older = batch.first_seq + len(batch.events) < expected
        return batch.events if older else super().fresh(batch, expected)


class DemandsConsecutiveNumbers(StoreAdapter):
    """Refuses a batch that starts above the expected number."""

    fails = clauses("skipped_sequence_numbers_lose_nothing", "append_of_poison_stores_nothing")

    def fresh(self, batch: Batch, expected: int) -> list[StoredEvent]:
        if batch.first_seq > expected:
            raise TransientAdapterError("a hole")
        return super().fresh(batch, expected)


class CountsProducersTogether(StoreAdapter):
    """One number a shard, whoever writes."""

    fails = clauses(
        "producers_on_one_shard_are_numbered_apart",
        "wait_returns_when_something_is_appended",
        "durable_events_outlive_the_adapter",
        ANY,
    )

    def mark(self, batch: Batch) -> Any:
        return batch.shard


class CountsShardsTogether(StoreAdapter):
    """One number a producer, whatever the shard."""

    fails = clauses("shards_of_one_producer_are_numbered_apart")

    def mark(self, batch: Batch) -> Any:
        return batch.producer


class JudgesBeforeRecognising(StoreAdapter):
    """Looks at the content first."""

    fails = clauses("retry_is_recognised_before_content_is_judged")

    async def append(self, batch: Batch) -> None:
        self.judge(batch.events)
        await super().append(batch)


class StoresUpToPoison(StoreAdapter):
    """Stores what stands before the poison."""

    fails = clauses("append_of_poison_stores_nothing")

    async def append(self, batch: Batch) -> None:
        good = list(itertools.takewhile(lambda event: event.raw != POISON, batch.events))
        if good and len(good) < len(batch.events):
            await super().append(
                Batch(producer=batch.producer, shard=batch.shard, first_seq=batch.first_seq, events=good)
            )
        await super().append(batch)


class StoresAtMostAThousand(StoreAdapter):
    """Quietly cuts large batches."""

    fails = clauses("append_of_the_largest_batch_is_stored")

    def fresh(self, batch: Batch, expected: int) -> list[StoredEvent]:
        return super().fresh(batch, expected)[:1000]
