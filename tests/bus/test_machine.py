"""A whole bus against a model: whatever is asked of it, in any order, the books balance and nothing is doubled."""

from __future__ import annotations

import contextlib
import threading
from typing import Any
from unittest import mock

import anyio
import anyio.lowlevel
from anyio.from_thread import start_blocking_portal
from bus_lab import Lab, check_identity
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from netcore import (
    AdapterRefusedError,
    BackpressureError,
    BatchConfig,
    ConsumeRequest,
    FatalAdapterError,
    FlushTimeoutError,
    ScalingError,
    TransientAdapterError,
)
from netcore.contracts.adapter import Batch
from netcore.dispatch.dispatcher import Backoff

MODES = ["well", "slow", "transient", "ambiguous", "refusing"]
KEYS = ["a", "b", "c", None]


class Chain:
    """One consumer."""

    def __init__(self) -> None:
        self.request: ConsumeRequest | None = None
        self.seen: list[tuple[int, int, bytes]] = []


class BusMachine(RuleBasedStateMachine):
    """Ingests, polls, flushes, scales and breaks a bus."""

    backend = "asyncio"

    def __init__(self) -> None:
        super().__init__()
        self.patch = mock.patch.object(Backoff, "seconds", return_value=0.001)
        self.patch.start()
        self.portal_scope = start_blocking_portal(self.backend)
        self.portal = self.portal_scope.__enter__()
        self.mode = "well"
        self.number = 0
        self.keys: dict[bytes, str | None] = {}
        self.accepted: dict[bytes, tuple[int, int] | None] = {}
        self.order: list[bytes] = []
        self.chains = [Chain() for _ in range(3)]
        self.it: Lab | None = None

    @initialize(
        shards=st.integers(1, 3),
        capacity=st.sampled_from([1, 3, 20, 100]),
        policy=st.sampled_from(["drop_oldest", "drop_newest", "sample"]),
        max_events=st.sampled_from([1, 3, 50]),
        delay=st.sampled_from([0, 1, 3_600_000]),
    )
    def begin(self, shards: int, capacity: int, policy: str, max_events: int, delay: float) -> None:
        """Open a bus."""
        self.it = Lab(
            shards=shards,
            ring_capacity=capacity,
            backpressure=policy,
            batch=BatchConfig(max_events=max_events, max_delay_ms=delay),
            causal_wait_ms=3_600_000,
        )
        inner = self.it.keeper.append

        async def append(batch: Batch) -> None:
            if self.mode == "transient":
                raise TransientAdapterError("away")
            if self.mode == "refusing":
                raise AdapterRefusedError("no")
            if any(event.raw.startswith(b"poison") for event in batch.events):
                raise FatalAdapterError("poison")
            if self.mode == "slow":
                for _ in range(5):
                    await anyio.lowlevel.checkpoint()
            await inner(batch)
            self.order += [event.raw for event in batch.events if event.raw not in self.order]
            if self.mode == "ambiguous":
                raise TransientAdapterError("the answer was lost")

        self.it.keeper.append = append  # type: ignore[method-assign]
        self.portal.call(self.it.bus.__aenter__)

    def fresh(self, poison: bool, key: str | None) -> bytes:
        """Make a payload like no other."""
        self.number += 1
        raw = b"%s%d" % (b"poison" if poison else b"e", self.number)
        self.keys[raw] = key
        return raw

    @rule(key=st.sampled_from(KEYS), poison=st.integers(0, 9).map(lambda n: n == 0), put=st.booleans())
    def ingest_one(self, key: str | None, poison: bool, put: bool) -> None:
        """One event, on the loop or from another thread."""
        raw = self.fresh(poison, key)
        try:
            call = self.bus.ingest_raw
            outcome = self.portal.call(self.bus.put, raw, key) if put else call(raw, key)
        except BackpressureError:
            return
        if outcome is not None:
            self.accepted[raw] = outcome

    @rule(count=st.integers(0, 30), poison=st.integers(0, 60))
    def ingest_many(self, count: int, poison: int) -> None:
        """Many at once."""
        raws = [self.fresh(n == poison, None) for n in range(count)]
        summary = self.bus.ingest_raw_many(raws)
        missed = {*summary.rejected, *summary.discarded}
        assert summary.accepted == count - len(missed)
        self.accepted.update((raw, None) for n, raw in enumerate(raws) if n not in missed)

    @rule(mode=st.sampled_from(MODES))
    def change_mode(self, mode: str) -> None:
        """Break or mend the adapter."""
        self.mode = mode

    @rule()
    def flush(self) -> None:
        """With a working adapter it ends, and all is settled; otherwise it gives up or had nothing to do."""
        try:
            self.portal.call(self.bus.flush, 20 if self.works else 0.02)
        except FlushTimeoutError:
            assert not self.works
        else:
            assert self.bus.stats().in_flight == 0

    @rule(chain=st.integers(0, 2), limit=st.integers(1, 40))
    def poll(self, chain: int, limit: int) -> None:
        """Read on."""
        self.read(self.chains[chain], limit)

    def read(self, chain: Chain, limit: int) -> bool:
        """Poll one page; True if there may be more."""
        request = chain.request or ConsumeRequest(limit, start="earliest")

        async def poll() -> Any:
            # It waits where an empty page is all that the watermark allows; cancelled, it has no effect.
            with anyio.move_on_after(0.02 if self.bus.stats().in_flight else 20):
                return await self.bus.poll(request)

        page = self.portal.call(poll)
        if page is None:
            return False
        assert len(page.events) <= request.limit
        assert not page.gaps
        assert not page.failed_shards
        chain.seen += [(event.ts, event.shard, event.raw) for event in page.events]
        chain.request = ConsumeRequest(limit, cursor=page.cursor)
        return bool(page.events) or page.has_more

    @precondition(lambda self: self.mode == "well")
    @rule(count=st.integers(1, 2))
    def add(self, count: int) -> None:
        """Add shards."""
        if len(self.bus.stats().shards) < 5:
            self.portal.call(self.bus.add_shards, count)

    @rule(
        threads=st.integers(1, 3),
        each=st.integers(1, 20),
        step=st.sampled_from(["add", "remove", "poll", "flush"]),
    )
    def under_fire(self, threads: int, each: int, step: str) -> None:
        """Threads ingest, each a key of its own, while the bus is scaled, polled or flushed."""
        outcomes: dict[bytes, tuple[int, int] | None] = {}

        def produce(raws: list[bytes]) -> None:
            for raw in raws:
                with contextlib.suppress(BackpressureError):
                    outcomes[raw] = self.bus.ingest_raw(raw, self.keys[raw])

        loads = [[self.fresh(False, KEYS[number]) for _ in range(each)] for number in range(threads)]
        producers = [threading.Thread(target=produce, args=(raws,)) for raws in loads]
        for producer in producers:
            producer.start()
        shards = [shard.id for shard in self.bus.stats().shards]
        if step == "add" and len(shards) < 5:
            self.portal.call(self.bus.add_shards, 1)
        elif step == "remove" and len(shards) > 1 and self.works:
            self.portal.call(self.bus.remove_shards, shards[:1])
        elif step == "poll":
            self.read(self.chains[0], 7)
        elif self.works:
            self.portal.call(self.bus.flush, 20)
        for producer in producers:
            producer.join()
        self.accepted.update((raw, pair) for raw, pair in outcomes.items() if pair is not None)

    @property
    def works(self) -> bool:
        """Whether the adapter stores what it is given."""
        return self.mode in ("well", "slow")

    @precondition(lambda self: self.works)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        """Remove one; the last one stays."""
        shards = [shard.id for shard in self.bus.stats().shards]
        gone = data.draw(st.sampled_from(shards))
        try:
            self.portal.call(self.bus.remove_shards, [gone])
        except ScalingError:
            assert len(shards) == 1

    @property
    def bus(self) -> Any:
        """The bus."""
        assert self.it is not None
        return self.it.bus

    @invariant()
    def books_balance(self) -> None:
        """Accepted = stored + evicted + dead-lettered + lost + in flight, at any moment."""
        if self.it is None:
            return
        stats = self.bus.stats()
        settled = stats.dispatched + stats.evicted + stats.dead_lettered + stats.lost
        assert stats.ingested == len(self.accepted) == settled + stats.in_flight
        assert stats.lost == 0
        assert stats.errors == {}
        assert not stats.lossy

    def teardown(self) -> None:
        """Mend, read everything, shut down, and compare with what producers were told."""
        try:
            if self.it is not None:
                self.mode = "well"
                self.portal.call(self.bus.flush, 20)
                for chain in self.chains:
                    while self.read(chain, 25):
                        pass
                report = self.portal.call(self.bus.shutdown, 20)
                self.compare(report)
        finally:
            self.portal_scope.__exit__(None, None, None)
            self.patch.stop()

    def compare(self, report: Any) -> None:
        """Compare store, consumers and producers."""
        assert self.it is not None
        check_identity(report)
        assert (report.lost, report.ingested) == (0, len(self.accepted))
        stored = {(e.ts, e.shard, e.raw) for log in self.it.keeper.kept.values() for e in log}
        assert len(stored) == sum(map(len, self.it.keeper.kept.values())) == report.dispatched
        raws = {raw for _, _, raw in stored}
        assert len(raws) == len(stored)
        assert raws <= set(self.accepted)
        assert {(s, ts, raw) for ts, s, raw in stored if self.accepted[raw]} <= {
            (*pair, raw) for raw, pair in self.accepted.items() if pair
        }
        assert not any(raw.startswith(b"poison") for raw in raws)
        for chain in self.chains:
            assert set(chain.seen) == stored
            assert [ts for ts, _, _ in chain.seen] == sorted(ts for ts, _, _ in stored)
        for key in KEYS[:-1]:
            mine = [raw for raw in self.order if self.keys[raw] == key]
            assert mine == sorted(mine, key=lambda raw: int(raw.lstrip(b"poisne")))


class TrioBusMachine(BusMachine):
    """The same on trio."""

    backend = "trio"


TestBusOnAsyncio = BusMachine.TestCase
TestBusOnTrio = TrioBusMachine.TestCase
TestBusOnAsyncio.settings = TestBusOnTrio.settings = settings(
    stateful_step_count=30, max_examples=max(10, settings.default.max_examples // 4)
)
