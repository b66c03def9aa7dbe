"""Adding and removing shards on a running bus: nothing lost, nothing reordered, all or nothing."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.to_thread
import pytest

from netcore import (
    AddShards,
    BackpressureError,
    BatchConfig,
    ConsumeRequest,
    EventBus,
    EventBusConfig,
    NoChange,
    RemoveShards,
    ScalingConfig,
    ScalingError,
    StoredEvent,
    Stream,
    TransientAdapterError,
)
from netcore.builtin.memory import MemoryAdapter, MemoryConfig
from netcore.ingest.payloads import key_hash
from netcore.ingest.router import MASK, add_shards
from netcore.testing.faults import FaultyAdapter, plugin_for

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def faulty_bus(**settings: object) -> AsyncIterator[tuple[EventBus, FaultyAdapter]]:
    """Open a bus on a memory adapter whose faults the test scripts."""
    adapter = FaultyAdapter(MemoryAdapter(MemoryConfig()))
    config = EventBusConfig(**{"shards": 2, "adapter": "faulty", **settings})  # type: ignore[arg-type]
    async with EventBus(config, plugins=[plugin_for(adapter)]) as bus:
        try:
            yield bus, adapter
        finally:
            adapter.release_all()


async def drain(bus: EventBus, cursor: str | None = None) -> list[StoredEvent]:
    """Poll until nothing is left."""
    request = ConsumeRequest(7, cursor=cursor, start="earliest")
    events: list[StoredEvent] = []
    while True:
        page = await bus.poll(request)
        events += page.events
        request = request.after(page.cursor)
        if not page.has_more:
            return events


def home(bus: EventBus, key: str) -> int:
    """Ingest an event of this key and return the shard it met."""
    accepted = bus.ingest({"key": key}, key=key)
    assert accepted is not None
    return accepted[0]


async def test_add_shards_gives_new_ids_and_keys_to_the_new_ones_only() -> None:
    """About 1/n of the keys move, all of them to the new shards; every other key keeps its shard."""
    keys = [f"key-{number}" for number in range(600)]
    async with EventBus(EventBusConfig(shards=3)) as bus:
        before = {key: home(bus, key) for key in keys}
        assert await bus.add_shards(2) == [3, 4]
        after = {key: home(bus, key) for key in keys}
        moved = [key for key in keys if before[key] != after[key]]
        assert {after[key] for key in moved} == {3, 4}
        assert 0.3 * len(keys) < len(moved) < 0.5 * len(keys)


async def test_remove_shards_moves_only_their_keys_and_ids_are_never_reused() -> None:
    """A removed shard's keys spread over the others, nobody else's move, its id is gone for good."""
    keys = [f"key-{number}" for number in range(600)]
    async with EventBus(EventBusConfig(shards=4)) as bus:
        before = {key: home(bus, key) for key in keys}
        assert await bus.remove_shards([1]) == [1]
        after = {key: home(bus, key) for key in keys}
        assert all(after[key] == before[key] for key in keys if before[key] != 1)
        assert {after[key] for key in keys if before[key] == 1} == {0, 2, 3}
        assert await bus.add_shards(1) == [4]
        assert [shard.id for shard in bus.stats().shards] == [0, 2, 3, 4]


async def test_removed_shard_stays_readable_through_old_and_new_cursors() -> None:
    """Cursors hold positions, not membership: what a removed shard stored is read like anything else."""
    async with EventBus(EventBusConfig(shards=3)) as bus:
        for number in range(60):
            bus.ingest({"n": number})
        await bus.flush(timeout=10)
        first = await bus.poll(ConsumeRequest(20, start="earliest"))
        await bus.remove_shards([0, 2])
        await bus.add_shards(1)
        for number in range(60, 90):
            bus.ingest({"n": number})
        await bus.flush(timeout=10)
        resumed = [event.decode()["n"] for event in await drain(bus, first.cursor)]
        assert [event.decode()["n"] for event in first.events] + resumed == list(range(90))
        assert [event.decode()["n"] for event in await drain(bus)] == list(range(90))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda bus: bus.add_shards(0), "1 or more"),
        (lambda bus: bus.add_shards(True), "1 or more"),
        (lambda bus: bus.add_shards(3), "over the maximum of 4"),
        (lambda bus: bus.remove_shards([]), "no shard ids"),
        (lambda bus: bus.remove_shards([0, 0]), "twice"),
        (lambda bus: bus.remove_shards([7]), "no such shards"),
        (lambda bus: bus.remove_shards(["0"]), "no such shards"),
        (lambda bus: bus.remove_shards(5), "a list of shard ids"),
        (lambda bus: bus.remove_shards([0, 1]), "leave no shard"),
        (lambda bus: bus.apply("more"), "not a scaling decision"),
    ],
)
async def test_scaling_refused_changes_nothing(call: object, message: str) -> None:
    """A step that cannot be taken whole is not taken at all, and says why."""
    scaling = ScalingConfig(max_shards=4, auto_apply=False)
    async with EventBus(EventBusConfig(shards=2, scaling=scaling)) as bus:
        with pytest.raises(ScalingError, match=message):
            await call(bus)  # type: ignore[operator]
        assert [shard.id for shard in bus.stats().shards] == [0, 1]
        assert await bus.add_shards(1) == [2]


async def test_remove_shards_already_leaving_is_refused() -> None:
    """While a removal is under way, another of the same shard is refused once its turn comes."""
    async with faulty_bus(shards=3) as (bus, adapter):
        held = adapter.hold("append", shard=home(bus, "a"))
        leaving = home(bus, "a")
        await held.reached()
        errors: list[ScalingError] = []

        async def again() -> None:
            try:
                await bus.remove_shards([leaving])
            except ScalingError as error:
                errors.append(error)

        async with anyio.create_task_group() as group:
            group.start_soon(bus.remove_shards, [leaving])
            await anyio.wait_all_tasks_blocked()
            assert next(s for s in bus.stats().shards if s.id == leaving).leaving
            group.start_soon(again)
            held.release()
        assert "no such shards" in str(errors[0])


async def test_apply_carries_out_decisions() -> None:
    """`apply` adds, removes, or does nothing; the history says so with the reasons."""
    async with EventBus(EventBusConfig(shards=2)) as bus:
        assert await bus.apply(AddShards(1, "busy")) == [2]
        assert await bus.apply(RemoveShards((0,), "idle")) == [0]
        assert await bus.apply(NoChange("fine")) == []
        history = bus.stats().scaling
        assert [(r.added, r.removed, r.reason, r.error) for r in history] == [
            ((2,), (), "busy", ""),
            ((), (0,), "idle", ""),
        ]


async def test_add_shards_failing_half_way_rolls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the second of two workers cannot start, the first is taken back and routing never changed."""
    async with EventBus(EventBusConfig(shards=2)) as bus:
        engine = bus._engine
        begin = engine.start_worker

        def fail_second(shard: object) -> None:
            if shard.id == 3:  # type: ignore[attr-defined]
                raise RuntimeError("no more tasks")
            begin(shard)  # type: ignore[arg-type]

        monkeypatch.setattr(engine, "start_worker", fail_second)
        routes = engine.router.routes
        with pytest.raises(ScalingError, match="no more tasks"):
            await bus.add_shards(2)
        assert engine.router.routes is routes
        assert [shard.id for shard in bus.stats().shards] == [0, 1]
        monkeypatch.undo()
        added = await bus.add_shards(1)
        assert added[0] >= 3
        assert bus.stats().scaling[0].error


async def test_concurrent_steps_take_turns() -> None:
    """Steps asked for at once are carried out one after the other, each whole."""
    async with EventBus(EventBusConfig(shards=4)) as bus:
        async with anyio.create_task_group() as group:
            for shard in (0, 1):
                group.start_soon(bus.remove_shards, [shard])
                group.start_soon(bus.add_shards, 2)
        stats = bus.stats()
        assert len(stats.shards) == 6
        assert len(stats.scaling) == 4
        assert sum(len(record.added) for record in stats.scaling) == 4


async def test_remove_shards_whose_caller_is_cancelled_finishes() -> None:
    """The step belongs to the bus: a cancelled caller leaves no shard half removed."""
    async with faulty_bus() as (bus, adapter):
        leaving = home(bus, "a")
        held = adapter.hold("append", shard=leaving)
        home(bus, "a")
        await held.reached()
        with anyio.move_on_after(0.05):
            await bus.remove_shards([leaving])
        assert len(bus.stats().shards) == 2
        held.release()
        assert await bus.add_shards(1) == [2]  # its turn comes after the removal
        assert leaving not in [shard.id for shard in bus.stats().shards]
        assert bus.stats().lost == 0


async def test_moved_key_waits_in_the_new_shard_for_its_donors_events() -> None:
    """Per-key order across a move holds in the store, however slow the donor is."""
    async with faulty_bus(shards=1, batch=BatchConfig(max_events=4, max_delay_ms=0)) as (bus, adapter):
        held = adapter.hold("append", shard=0)
        keys = [f"k{number}" for number in range(40)]
        for key in keys:
            bus.ingest({"key": key, "n": 1}, key=key)
        await held.reached()
        await bus.add_shards(1)
        moved = []
        for key in keys:
            accepted = bus.ingest({"key": key, "n": 2}, key=key)
            assert accepted is not None
            if accepted[0] == 1:
                moved.append(key)
        assert moved
        await anyio.wait_all_tasks_blocked()
        with pytest.raises(TimeoutError):
            await bus.flush(timeout=0.2)
        assert adapter.calls["append"] == 1  # the new shard has not begun
        held.release()
        await bus.flush(timeout=10)
        first = {
            (event.decode()["key"], event.decode()["n"]): at for at, event in enumerate(await drain(bus))
        }
        assert all(first[key, 1] < first[key, 2] for key in keys)


class Halted:
    """Stands in for an iterator or a lock, and halts one thread at it until it is let go."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.thread: int | None = None
        self.reached, self.go = threading.Event(), threading.Event()

    def halt(self) -> None:
        """Halt, if this is the thread."""
        if threading.get_ident() == self.thread:
            self.reached.set()
            assert self.go.wait(10)

    def __next__(self) -> int:
        self.halt()
        return next(self.inner)

    def acquire(self, *options: Any, **named: Any) -> bool:
        self.halt()
        return bool(self.inner.acquire(*options, **named))

    def release(self) -> None:
        self.inner.release()

    def __enter__(self) -> object:
        self.halt()
        return self.inner.__enter__()

    def __exit__(self, *error: object) -> None:
        self.inner.__exit__(*error)


async def test_event_that_its_old_shard_drained_after_the_move_holds_the_keys_next_ones_back() -> None:
    """A producer overtaken by the whole move: the new shard waits for what the old one took from it."""
    async with faulty_bus(shards=1, batch=BatchConfig(max_delay_ms=0)) as (bus, adapter):
        engine = bus._engine
        owners = add_shards(engine.router.table[1], [1])
        keys = [f"k{number}" for number in range(100)]
        moving = next(key for key in keys if owners[key_hash(key) & MASK] == 1)
        staying = next(key for key in keys if owners[key_hash(key) & MASK] == 0)
        ring = engine.shards[0].ring
        clock, lock = Halted(engine.clock.counter), Halted(ring.lock)
        engine.clock.counter, ring.lock = clock, lock  # type: ignore[assignment, misc]
        outcome: list[object] = []

        def late() -> None:
            clock.thread = lock.thread = threading.get_ident()
            outcome.append(bus.ingest_raw(b"late", key=moving))

        thread = threading.Thread(target=late)
        thread.start()
        assert await anyio.to_thread.run_sync(clock.reached.wait, 10)  # it has seen the old route
        held = adapter.hold("append", shard=0)
        assert await bus.add_shards(1) == [1]
        clock.go.set()
        assert await anyio.to_thread.run_sync(lock.reached.wait, 10)  # it has pushed
        bus.ingest_raw(b"wake", key=staying)
        await held.reached()
        assert ring.drained == 2
        lock.go.set()
        await anyio.to_thread.run_sync(thread.join)
        assert outcome[0][0] == 0  # type: ignore[index]
        accepted = bus.ingest_raw(b"next", key=moving)
        assert accepted is not None
        assert accepted[0] == 1
        await anyio.wait_all_tasks_blocked()
        assert adapter.calls["append"] == 1  # the new shard waits for the old one
        held.release()
        await bus.flush(timeout=10)
        raws = [event.raw for event in await drain(bus)]
        assert raws.index(b"late") < raws.index(b"next")


async def test_moved_keys_wait_for_the_donor_no_longer_than_the_timeout() -> None:
    """A wedged donor holds the new shard up for the operation's time-out, not for ever."""
    async with faulty_bus(shards=1) as (bus, adapter):
        held = adapter.hold("append", shard=0)
        bus.ingest_raw(b"first")
        await held.reached()
        await bus.add_shards(1, timeout=0.2)
        keys = iter(range(1000))
        while (accepted := bus.ingest({"n": 1}, key=str(next(keys)))) and accepted[0] == 0:
            pass
        await adapter.called("append", 2)
        assert held.inside == 1


async def test_removed_shards_keys_wait_for_its_last_events() -> None:
    """What comes for a leaving shard's keys is dispatched only after what it still holds."""
    async with faulty_bus(shards=2) as (bus, adapter):
        leaving = home(bus, "a")
        held = adapter.hold("append", shard=leaving)
        home(bus, "a")
        await held.reached()
        begun = adapter.calls["append"]
        async with anyio.create_task_group() as group:
            group.start_soon(bus.remove_shards, [leaving])
            await anyio.wait_all_tasks_blocked()
            assert home(bus, "a") != leaving
            await anyio.wait_all_tasks_blocked()
            assert adapter.calls["append"] == begun
            held.release()
        await bus.flush(timeout=10)
        assert [event.shard == leaving for event in await drain(bus)].count(True) == 2
        assert (await drain(bus))[-1].shard != leaving


async def test_remove_shards_of_a_wedged_adapter_ends_at_its_timeout_and_counts_losses() -> None:
    """A removal never hangs, never sends twice, and says what it lost."""
    async with faulty_bus(shards=2, ring_capacity=200) as (bus, adapter):
        leaving = home(bus, "a")
        await bus.flush(timeout=10)
        stuck = adapter.hang_uncancellable("append", shard=leaving, store=False)
        home(bus, "a")
        await stuck.reached()
        for _ in range(5):
            home(bus, "a")
        began = anyio.current_time()
        await bus.remove_shards([leaving], timeout=0.3)
        assert anyio.current_time() - began < 2.0
        stats = bus.stats()
        assert stats.lost == 6
        assert stats.lossy
        assert "6 events lost" in stats.scaling[-1].reason
        appends = [attempt for attempt in adapter.attempts if attempt[1] == leaving]
        assert len(appends) == len(set(appends))
        assert home(bus, "a") != leaving
        stuck.release()


async def test_remove_shards_several_wedged_end_at_the_timeout_together() -> None:
    """The second of grace is for the step, not for each of its shards."""
    async with faulty_bus(shards=5) as (bus, adapter):
        stuck = adapter.hang_uncancellable("append", times=None, store=False)
        keys = iter(range(1000))
        while not all(shard.in_flight for shard in bus.stats().shards):
            home(bus, str(next(keys)))
            await anyio.sleep(0.001)
        began = anyio.current_time()
        await bus.remove_shards([0, 1, 2, 3], timeout=0.2)
        assert anyio.current_time() - began < 2.0
        stats = bus.stats()
        assert [shard.id for shard in stats.shards] == [4]
        assert stats.ingested == stats.lost + stats.in_flight
        stuck.release()


async def test_remove_shards_whose_append_hangs_gives_up_that_shard_and_nothing_else() -> None:
    """A store that gives no answer, and can be cancelled: at the time-out the bus goes on without the shard."""
    async with faulty_bus(shards=2) as (bus, adapter):
        leaving = home(bus, "a")
        await bus.flush(timeout=10)
        held = adapter.hold("append", shard=leaving)
        home(bus, "a")
        await held.reached()
        with anyio.fail_after(5):
            assert await bus.remove_shards([leaving], timeout=0.2) == [leaving]
        assert (bus.stats().lost, bus.stats().lossy) == (1, True)
        assert home(bus, "a") != leaving
        await bus.flush(timeout=10)
        assert bus.stats().dispatched == 2
        assert await bus.add_shards(1) == [2]
        held.release()


async def test_remove_shards_during_an_outage_loses_nothing_once_it_ends() -> None:
    """Transient failures only delay a removal."""
    async with faulty_bus(shards=2) as (bus, adapter):
        leaving = home(bus, "a")
        adapter.fail("append", TransientAdapterError("away"), times=3, shard=leaving)
        home(bus, "a")
        await bus.remove_shards([leaving])
        assert bus.stats().lost == 0
        await bus.flush(timeout=10)
        assert len(await drain(bus)) == 2


async def test_blocked_producers_of_a_leaving_shard_are_served_elsewhere() -> None:
    """A thread and a `put` that wait for room in a leaving shard's ring get into another one."""
    async with faulty_bus(shards=2, ring_capacity=2, backpressure="block") as (bus, adapter):
        leaving = home(bus, "a")
        held = adapter.hold("append", shard=leaving)
        await bus.put({"n": 0}, key="a")
        await held.reached()
        for number in (1, 2):
            bus.ingest({"n": number}, key="a")
        with pytest.raises(BackpressureError, match="put"):
            bus.ingest({"n": 3}, key="a")
        outcomes: list[tuple[int, int] | None] = []
        thread = threading.Thread(target=lambda: outcomes.append(bus.ingest({"n": 4}, key="a")))
        thread.start()

        async def put() -> None:
            outcomes.append(await bus.put({"n": 5}, key="a"))

        async with anyio.create_task_group() as group:
            group.start_soon(put)
            ring = bus._engine.shards[leaving].ring
            with anyio.fail_after(10):
                while len(ring.waiters) < 2:
                    await anyio.sleep(0.001)
            group.start_soon(bus.remove_shards, [leaving])
            await anyio.wait_all_tasks_blocked()
            held.release()
        await anyio.to_thread.run_sync(thread.join)
        assert len(outcomes) == 2
        assert all(outcome is not None and outcome[0] != leaving for outcome in outcomes)
        await bus.flush(timeout=10)
        stored = sorted(event.decode()["n"] for event in await drain(bus) if "n" in event.decode())
        assert stored == [0, 1, 2, 4, 5]


async def test_scaling_under_fire_keeps_every_event_and_every_keys_order() -> None:
    """Threads ingest flat out while shards come and go: all is stored once, each key in order."""
    threads, each = 4, 3000
    accepted: list[list[tuple[int, int]]] = [[] for _ in range(threads)]

    def produce(bus: EventBus, number: int) -> None:
        for index in range(each):
            pair = bus.ingest({"k": f"{number}-{index % 7}", "n": index}, key=f"{number}-{index % 7}")
            assert pair is not None
            accepted[number].append(pair)

    config = EventBusConfig(shards=2, batch=BatchConfig(max_events=64, max_delay_ms=1))
    async with EventBus(config) as bus:
        workers = [threading.Thread(target=produce, args=(bus, number)) for number in range(threads)]
        for worker in workers:
            worker.start()
        steps = 0
        while any(worker.is_alive() for worker in workers) or steps < 4:
            ids = await bus.add_shards(2)
            await bus.remove_shards([ids[0], min(s.id for s in bus.stats().shards)])
            steps += 1
        await bus.flush(timeout=30)
        events = await drain(bus)
        stored = sorted((event.shard, event.ts) for event in events)
        assert stored == sorted(pair for pairs in accepted for pair in pairs)
        order: dict[str, list[int]] = defaultdict(list)
        for event in events:
            order[event.decode()["k"]].append(event.decode()["n"])
        assert all(numbers == sorted(numbers) for numbers in order.values())
        stats = bus.stats()
        assert stats.ingested == stats.dispatched == threads * each


async def test_polls_during_a_removal_see_each_event_once() -> None:
    """Whether a poll comes before, during or after: what is stored is returned exactly once."""
    async with faulty_bus(shards=3) as (bus, adapter):
        leaving = home(bus, "a")
        for number in range(30):
            bus.ingest({"n": number})
        await bus.flush(timeout=10)
        held = adapter.hold("append", shard=leaving)
        home(bus, "a")
        await held.reached()
        seen: list[StoredEvent] = []
        request = ConsumeRequest(4, start="earliest", ordering="shard")
        async with anyio.create_task_group() as group:
            group.start_soon(bus.remove_shards, [leaving])
            await anyio.wait_all_tasks_blocked()
            for _ in range(3):
                page = await bus.poll(request)
                seen += page.events
                request = request.after(page.cursor)
            held.release()
        await bus.flush(timeout=10)
        seen += await drain(bus, request.cursor)
        assert len(seen) == len({(event.shard, event.id) for event in seen}) == 32
        assert Stream(leaving) in await adapter.inner.streams()


async def test_shards_changed_hook_hears_of_each_step() -> None:
    """Observers learn what was added and removed, and why."""
    from netcore import hookimpl

    heard: list[tuple[list[int], list[int], str]] = []

    class Watcher:
        @hookimpl
        def netcore_shards_changed(self, added: list[int], removed: list[int], reason: str) -> None:
            heard.append((added, removed, reason))

    async with EventBus(EventBusConfig(shards=2), plugins=[Watcher()]) as bus:
        await bus.add_shards(1, reason="more")
        await bus.remove_shards([0], reason="less")
    assert heard == [([2], [], "more"), ([], [0], "less")]


async def test_blocked_producers_whose_key_moved_to_a_new_shard_go_there() -> None:
    """A producer that waits at a full ring is let in elsewhere once its key lives elsewhere."""
    async with faulty_bus(shards=1, ring_capacity=1, backpressure="block") as (bus, adapter):
        held = adapter.hold("append", shard=0)
        await bus.put({"n": 0}, key="first")
        await held.reached()
        await bus.put({"n": 1}, key="second")
        outcomes: dict[str, int] = {}

        async def put(key: str) -> None:
            accepted = await bus.put({"key": key}, key=key)
            assert accepted is not None
            outcomes[key] = accepted[0]

        async with anyio.create_task_group() as group:
            for number in range(12):
                group.start_soon(put, f"k{number}")
            ring = bus._engine.shards[0].ring
            with anyio.fail_after(10):
                while len(ring.waiters) < 12:
                    await anyio.sleep(0.001)
            await bus.add_shards(1, timeout=0.1)
            with anyio.fail_after(10):
                while 1 not in outcomes.values():
                    await anyio.sleep(0.001)
            assert held.inside == 1  # the donor never had room
            held.release()
        assert set(outcomes.values()) == {0, 1}
