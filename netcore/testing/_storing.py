"""Clauses on `append`: order, idempotence, atomicity, cancellation, batches of any size."""

from __future__ import annotations

import secrets

import anyio
import anyio.lowlevel
import pytest

from netcore.contracts.adapter import Batch, Stream
from netcore.errors import FatalAdapterError
from netcore.events import IndexedEvent, StoredEvent
from netcore.testing._base import (
    TURNS,
    AnyAdapter,
    ContractBase,
    Writer,
    append,
    cancel_after,
    drain,
    payloads,
    raws,
)

__all__ = ["StoringClauses"]

_LARGEST_BATCH = 4096
_LARGEST_BYTES = 16 << 20
_ARRIVAL_S = 1.0


class StoringClauses(ContractBase):
    """What `append` promises."""

    async def test_append_keeps_the_order_of_batches(self, adapter: AnyAdapter) -> None:
        """Events come back in the order they were appended in, whatever their timestamps."""
        writer = Writer(adapter)
        for batch in (payloads(3, prefix="a"), payloads(1, prefix="b"), payloads(40, prefix="c")):
            stamps = [ts := next(writer._ts) - 3000 * index for index in range(len(batch))]
            assert ts > 0
            await writer.write(batch, ts=stamps)
        assert raws(await drain(adapter)) == raws(writer.written)

    async def test_append_returned_makes_events_visible(self, adapter: AnyAdapter) -> None:
        """A read that starts after `append` returned sees the batch."""
        writer = Writer(adapter)
        for _ in range(5):
            await writer.write(payloads(2))
            assert len(await drain(adapter)) == len(writer.written)

    async def test_append_keeps_timestamp_shard_and_payload(self, adapter: AnyAdapter) -> None:
        """All three survive exactly, timestamps to the nanosecond."""
        writer = Writer(adapter, shard=7)
        stamps = [10**18 + 1, 1 << 62, 1_763_874_000_123_456_789, 9_007_199_254_740_993 * 200 + 7]
        await writer.write(payloads(4), ts=stamps)
        found = await drain(adapter, 7)
        assert [(e.ts, e.shard, e.raw) for e in found] == [(e.ts, e.shard, e.raw) for e in writer.written]

    async def test_append_takes_the_events_a_bus_sends(self, adapter: AnyAdapter) -> None:
        """A bus's events are `IndexedEvent`s; they are stored like others, their ids are text."""
        events: list[StoredEvent] = [
            IndexedEvent(0, 3, 10**18 + n, raw)  # type: ignore[arg-type]  # as rings build them
            for n, raw in enumerate(payloads(5))
        ]
        await append(adapter, Batch(producer=secrets.token_hex(16), shard=3, first_seq=0, events=events))
        found = await drain(adapter, 3)
        assert raws(found) == payloads(5)
        assert all(type(event.id) is str for event in found)
        assert raws(await drain(adapter, 3, after=found[1].id)) == payloads(5)[2:]

    async def test_append_keeps_shards_apart(self, adapter: AnyAdapter) -> None:
        """Each shard is a stream of its own, up to the highest id, and `streams` lists it once."""
        shards = (0, 1, 10, 65_535)
        for shard in shards:
            await Writer(adapter, shard=shard).write(payloads(2, prefix=f"s{shard}"))
        for shard in shards:
            assert raws(await drain(adapter, shard)) == payloads(2, prefix=f"s{shard}")
        listed = await adapter.streams()
        assert sorted(stream.shard for stream in listed) == list(shards)
        assert len(set(listed)) == len(listed)

    async def test_retry_at_once_stores_nothing_more(self, adapter: AnyAdapter) -> None:
        """The same batch again, as after a lost answer, is stored already."""
        writer = Writer(adapter)
        batch = await writer.write(payloads(3))
        await append(adapter, batch)
        await append(adapter, batch)
        assert raws(await drain(adapter)) == raws(writer.written)

    async def test_late_copy_after_later_batches_stores_nothing(self, adapter: AnyAdapter) -> None:
        """An attempt that was thought dead may arrive after its successors."""
        writer = Writer(adapter)
        batches = [await writer.write(payloads(2, prefix=f"b{index}")) for index in range(4)]
        for late in (batches[0], batches[2], batches[3]):
            await append(adapter, late)
        assert sorted(raws(await drain(adapter))) == sorted(raws(writer.written))

    async def test_straddling_batch_stores_only_its_tail(self, adapter: AnyAdapter) -> None:
        """A batch that begins with stored events adds the others, once."""
        writer = Writer(adapter)
        first = await writer.write(payloads(3, prefix="a"))
        tail = writer.batch(payloads(2, prefix="b"))
        both = Batch(
            producer=first.producer,
            shard=0,
            first_seq=first.first_seq + 1,
            events=first.events[1:] + tail.events,
        )
        await append(adapter, both)
        await append(adapter, both)
        await writer.write(payloads(1, prefix="c"))
        assert sorted(raws(await drain(adapter))) == sorted(raws(writer.written))

    async def test_skipped_sequence_numbers_lose_nothing(self, adapter: AnyAdapter) -> None:
        """Numbers of dead-lettered events never come; what follows is stored whole, and once."""
        writer = Writer(adapter)
        writer.next_seq = 5
        await writer.write(payloads(2, prefix="a"))
        writer.next_seq += 3
        skipping = await writer.write(payloads(2, prefix="b"))
        await append(adapter, skipping)
        await writer.write(payloads(1, prefix="c"))
        assert sorted(raws(await drain(adapter))) == sorted(raws(writer.written))

    async def test_producers_on_one_shard_are_numbered_apart(self, adapter: AnyAdapter) -> None:
        """Two producers use the same numbers; neither's events pass for the other's."""
        one, two = Writer(adapter), Writer(adapter)
        for index in range(3):
            await one.write(payloads(2, prefix=f"one{index}"))
            repeated = await two.write(payloads(3, prefix=f"two{index}"))
            await append(adapter, repeated)
        found = raws(await drain(adapter))
        assert sorted(found) == sorted(raws(one.written) + raws(two.written))

    async def test_shards_of_one_producer_are_numbered_apart(self, adapter: AnyAdapter) -> None:
        """Each shard counts from 0."""
        one = Writer(adapter, shard=1)
        two = Writer(adapter, shard=2, producer=one.producer)
        await one.write(payloads(5))
        await two.write(payloads(3))
        await append(adapter, two.batch(payloads(1, prefix="more")))
        assert (len(await drain(adapter, 1)), len(await drain(adapter, 2))) == (5, 4)

    async def test_append_cancelled_and_retried_is_stored_once(self, adapter: AnyAdapter) -> None:
        """Wherever a call is cancelled, its retry leaves the batch stored once, in order."""
        writer = Writer(adapter)
        for count in TURNS:
            batch = writer.batch(payloads(3, prefix=f"turn{count}-"))
            await cancel_after(count, lambda batch=batch: adapter.append(batch))  # type: ignore[misc]
            await append(adapter, batch)
        assert raws(await drain(adapter)) == raws(writer.written)

    async def test_append_cancelled_stores_all_or_nothing(self, adapter: AnyAdapter) -> None:
        """A cancelled call leaves no part of its batch: what the backend was sent may still be arriving."""
        for count in TURNS:
            writer = Writer(adapter, shard=count)
            batch = writer.batch(payloads(50))
            returned = await cancel_after(count, lambda batch=batch: adapter.append(batch))  # type: ignore[misc]
            allowed = (50,) if returned else (0, 50)
            deadline = anyio.current_time() + _ARRIVAL_S
            while (stored := len(await drain(adapter, count))) not in allowed:
                assert anyio.current_time() < deadline, f"{stored} of 50 events were stored"
                await anyio.sleep(0.01)

    async def test_append_of_poison_stores_nothing(self, adapter: AnyAdapter) -> None:
        """A batch with a payload that can never be stored is refused as a whole, as fatal."""
        poison = self._poison(adapter)
        writer = Writer(adapter)
        await writer.write(payloads(2))
        before = raws(writer.written)
        bad = writer.batch([b"1", poison, b"3"])
        with pytest.raises(FatalAdapterError):
            await append(adapter, bad)
        assert raws(await drain(adapter)) == before
        for index in (0, 2):  # what a bisection does
            await append(
                adapter,
                Batch(
                    producer=bad.producer,
                    shard=0,
                    first_seq=bad.first_seq + index,
                    events=[bad.events[index]],
                ),
            )
        assert raws(await drain(adapter)) == [*before, b"1", b"3"]

    async def test_retry_is_recognised_before_content_is_judged(self, adapter: AnyAdapter) -> None:
        """A batch whose numbers are stored already returns, whatever it holds."""
        poison = self._poison(adapter)
        writer = Writer(adapter)
        stored = await writer.write(payloads(2))
        events = [*stored.events[:1], StoredEvent(id="", shard=0, ts=10**18, raw=poison)]
        await append(adapter, Batch(producer=stored.producer, shard=0, first_seq=0, events=events))
        assert raws(await drain(adapter)) == raws(writer.written)

    async def test_append_of_the_largest_batch_is_stored(self, adapter: AnyAdapter) -> None:
        """A batch of `max_batch_events` (4,096 if there is no limit) fits."""
        size = min(adapter.capabilities.max_batch_events or _LARGEST_BATCH, 20_000)
        writer = Writer(adapter)
        await writer.write(payloads(size))
        assert raws(await drain(adapter)) == raws(writer.written)

    async def test_append_of_the_most_bytes_is_stored(self, adapter: AnyAdapter) -> None:
        """A batch of `max_batch_bytes` (16 MiB if there is no limit, or more) fits."""
        limits = adapter.capabilities
        total = min(limits.max_batch_bytes or _LARGEST_BYTES, _LARGEST_BYTES)
        each = max(1, min(self.max_payload, limits.max_payload_bytes or self.max_payload, total))
        count = max(1, min(total // each, limits.max_batch_events or _LARGEST_BATCH))
        writer = Writer(adapter)
        await writer.write(bytes([index % 251]) * each for index in range(count))
        assert raws(await drain(adapter, limit=7)) == raws(writer.written)

    async def test_appends_of_shards_overlap_with_reads(self, adapter: AnyAdapter) -> None:
        """While eight shards are written, whatever is read of each is a prefix of what it will hold."""
        writers = [Writer(adapter, shard=shard) for shard in range(8)]
        done = anyio.Event()
        left = len(writers)

        async def write(writer: Writer) -> None:
            nonlocal left
            for index in range(10):
                await writer.write(payloads(7, prefix=f"{writer.shard}-{index}"))
                await anyio.lowlevel.checkpoint()
            left -= 1
            if not left:
                done.set()

        async def read() -> None:
            while not done.is_set():
                for writer in writers:
                    found = raws(await drain(adapter, writer.shard, limit=11))
                    assert found == raws(writer.written)[: len(found)]
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as group:
            for writer in writers:
                group.start_soon(write, writer)
            group.start_soon(read)
        for writer in writers:
            assert raws(await drain(adapter, writer.shard)) == raws(writer.written)
        assert {Stream(shard) for shard in range(8)} <= set(await adapter.streams())

    def _poison(self, adapter: AnyAdapter) -> bytes:
        poison = self.poison(adapter)
        if poison is None:
            pytest.skip("the adapter names no payload that it can never store")
        return poison
