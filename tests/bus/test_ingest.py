"""Ingesting into a whole bus: what is returned, what is stored, what wakes whom."""

from __future__ import annotations

import itertools
import sys
import threading
import time
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from bus_lab import check_identity, in_thread, lab, until

from netcore import (
    BatchConfig,
    ClosedError,
    ConsumeRequest,
    Event,
    EventBus,
    EventBusConfig,
    PayloadError,
    RawEvent,
)
from netcore.ingest.payloads import route_hash
from netcore.ingest.router import MASK

pytestmark = pytest.mark.anyio


async def test_ingest_returned_pairs_are_what_is_stored() -> None:
    """Each (shard, ts) that `ingest` returned is found, with its payload, in the store and in a poll."""
    async with lab(shards=4) as it:
        told: dict[tuple[int, int], bytes] = {}
        for n in range(50):
            told[it.bus.ingest({"n": n})] = b'{"n":%d}' % n  # type: ignore[index]
            told[it.bus.ingest_raw(b"raw%d" % n)] = b"raw%d" % n  # type: ignore[index]
            told[it.bus.ingest(Event.from_str(f"[{n}]"), key="k")] = b"[%d]" % n  # type: ignore[index]
            told[it.bus.ingest_raw(RawEvent(b"h%d" % n, n))] = b"h%d" % n  # type: ignore[index]
            told[await it.bus.put({"put": n})] = b'{"put":%d}' % n  # type: ignore[index]
            told[await it.bus.put(b"put%d" % n, key=b"k")] = b"put%d" % n  # type: ignore[index]
        await it.bus.flush(10)
        page = await it.bus.poll(ConsumeRequest(1000, start="earliest"))
    assert len(told) == 300
    assert {(e.shard, e.ts): e.raw for log in it.keeper.kept.values() for e in log} == told
    assert {(e.shard, e.ts): e.raw for e in page.events} == told


async def test_ingest_timestamps_strictly_increase_over_all_shards_and_ways_in() -> None:
    """One clock serves all: every call, every shard, those added later, other threads in turn."""
    async with lab(shards=3) as it:
        stamps = []
        for n in range(30):
            stamps.append(it.bus.ingest({"n": n})[1])  # type: ignore[index]
            stamps.append((await it.bus.put(b"x", key=str(n)))[1])  # type: ignore[index]
            stamps.append((await in_thread(it.bus.ingest_raw, b"t%d" % n))[1])
            if n == 15:
                await it.bus.add_shards(2)
        assert stamps == sorted(set(stamps))


async def test_ingest_timestamp_after_idling_is_the_present() -> None:
    """Within 200 ms of the wall clock, though nothing was drawn meanwhile."""
    async with lab() as it:
        it.bus.ingest_raw(b"first")
        await anyio_idle(0.5)
        _, ts = it.bus.ingest_raw(b"later")  # type: ignore[misc]
        assert abs(time.time_ns() - ts) < 200_000_000


async def anyio_idle(seconds: float) -> None:
    """Let time pass: the passing of time is what is tested."""
    import anyio

    await anyio.sleep(seconds)


async def test_ingest_same_key_meets_one_shard_however_it_is_given() -> None:
    """Text and bytes, `ingest`, `ingest_raw` and `put`: one key, one shard, in order."""
    async with lab(shards=8) as it:
        key = "käse"
        pairs = [
            it.bus.ingest({"n": 1}, key),
            it.bus.ingest_raw(b"2", key.encode()),
            await it.bus.put([3], key=key),
            it.bus.ingest_raw(RawEvent(b"4", 99), key),
        ]
        assert len({shard for shard, _ in pairs}) == 1  # type: ignore[misc]
        await it.bus.flush(10)
        (log,) = it.keeper.kept.values()
        assert [e.raw for e in log] == [b'{"n":1}', b"2", b"[3]", b"4"]


async def test_ingest_raw_event_with_hash_routes_by_it() -> None:
    """A precomputed hash stands in for the payload's."""
    async with lab(shards=8) as it:
        owners = it.bus._engine.router.table[1]
        for n in (0, 1, 12345, (1 << 64) - 1):
            assert it.bus.ingest_raw(RawEvent(b"same", n))[0] == owners[n & MASK]  # type: ignore[index]
        assert it.bus.ingest_raw(b"same")[0] == owners[route_hash(b"same") & MASK]  # type: ignore[index]


@pytest.mark.parametrize(
    ("call", "args"),
    [
        ("ingest", (object(),)),
        ("ingest", (b"bytes",)),
        ("ingest", ("\ud800",)),
        ("ingest", ({"a": 1}, 7)),
        ("ingest_raw", ("text",)),
        ("ingest_raw", (None,)),
        ("ingest_raw", (b"x", 1.5)),
        ("ingest_raw", (b"x", "\ud800")),
        ("ingest_raw", (RawEvent("text"),)),  # type: ignore[arg-type]
    ],
    ids=repr,
)
async def test_ingest_bad_input_is_refused_and_counts_nowhere(call: str, args: Any) -> None:
    """Bad input is a `PayloadError`, from `put` too; the bus goes on as if it had not been asked."""
    async with lab() as it:
        with pytest.raises(PayloadError):
            getattr(it.bus, call)(*args)
        if call == "ingest" and args[0] != b"bytes":
            with pytest.raises(PayloadError):
                await it.bus.put(*args)
        assert it.stats.ingested == it.stats.dropped == 0
        it.bus.ingest({"fine": True})
        await it.bus.flush(10)
    assert it.keeper.payloads.total() == 1


async def test_ingest_takes_what_msgspec_encodes() -> None:
    """Structs, datetimes, NaN: encoded once, as msgspec writes them."""

    class Token(msgspec.Struct):
        token: str

    async with lab(shards=1) as it:
        for value in (Token("a"), datetime(2024, 1, 1, tzinfo=UTC), float("nan"), None, [1, "x"]):
            it.bus.ingest(value)
        await it.bus.flush(10)
    assert [e.raw for e in it.keeper.kept[0]] == [
        b'{"token":"a"}',
        b'"2024-01-01T00:00:00Z"',
        b"null",
        b"null",
        b'[1,"x"]',
    ]


@pytest.mark.parametrize("where", ["loop", "thread"])
async def test_ingest_burst_wakes_a_sleeping_worker_once(where: str) -> None:
    """A thousand events into an idle shard are one wake-up, not a thousand, from any thread."""
    async with lab(shards=1, batch=BatchConfig(max_events=100_000, max_delay_ms=200)) as it:
        ring = it.bus._engine.shards[0].ring
        await until(lambda: ring.asleep)
        wakes: list[int] = []
        wake = ring.wake

        def counted() -> object:
            wakes.append(threading.get_ident())
            return wake()

        ring.wake = counted

        def burst() -> None:
            for n in range(1000):
                it.bus.ingest_raw(b"%d" % n)

        if where == "loop":
            burst()
        else:
            await in_thread(burst)
        assert len(wakes) == 1
        await it.bus.flush(10)
        assert it.stats.dispatched == 1000


async def test_ingest_many_wakes_each_sleeping_worker_once() -> None:
    """One look at each ring's attention a chunk, not one an event."""
    async with lab(shards=3, batch=BatchConfig(max_events=100_000, max_delay_ms=200)) as it:
        rings = [shard.ring for shard in it.bus._engine.shards.values()]
        await until(lambda: all(ring.asleep for ring in rings))
        wakes: list[int] = []
        for ring in rings:
            ring.wake = lambda ring=ring, wake=ring.wake: (wakes.append(ring.shard), wake())  # type: ignore[misc]
        assert it.bus.ingest_raw_many([b"%d" % n for n in range(900)]).accepted == 900
        assert sorted(wakes) == [0, 1, 2]
        await it.bus.flush(10)


async def test_fast_path_takes_no_lock_and_makes_few_calls() -> None:
    """With room and the worker awake, `ingest_raw` runs no Python function but itself, and no lock."""
    async with lab(shards=1) as it:
        ring = it.bus._engine.shards[0].ring
        await until(lambda: ring.asleep)
        it.bus.ingest_raw(b"wake")
        assert not ring.gate.attention
        calls: list[str] = []

        def profile(frame: Any, event: str, arg: Any) -> None:
            calls.append(f"{event} {getattr(arg, '__name__', frame.f_code.co_name)}")

        sys.setprofile(profile)
        it.bus.ingest_raw(b"x")
        sys.setprofile(None)
    python = [call for call in calls if call.startswith("call ")]
    c_level = [call for call in calls if call.startswith("c_call ")]
    assert python == ["call ingest_raw"]
    # The profiler does not see the struct's own construction; setprofile itself is seen.
    assert {call.removeprefix("c_call ") for call in c_level} <= {
        "xxh3_64_intdigest", "len", "next", "append", "setprofile",
    }  # fmt: skip
    assert len(c_level) <= 6


async def test_ingest_many_threads_at_once_all_stored_once_and_counted_exactly() -> None:
    """Stats read all the while never tell nonsense, and are exact in the end."""
    async with lab(shards=3, ring_capacity=1 << 16) as it:
        stop = threading.Event()
        seen: list[Any] = []

        def watch() -> None:
            while not stop.is_set():
                seen.append(it.bus.stats())

        def produce(thread: int) -> list[tuple[int, int]]:
            pairs = [it.bus.ingest_raw(b"%d:%d" % (thread, n)) for n in range(1500)]
            summary = it.bus.ingest_raw_many([b"%d:many%d" % (thread, n) for n in range(1500)])
            assert summary.accepted == 1500
            return pairs  # type: ignore[return-value]

        import anyio

        results: list[list[tuple[int, int]]] = []
        async with anyio.create_task_group() as group:
            watcher = threading.Thread(target=watch)
            watcher.start()

            async def one(thread: int) -> None:
                results.append(await in_thread(produce, thread))

            for thread in range(4):
                group.start_soon(one, thread)
        await it.bus.flush(10)
        stop.set()
        watcher.join()
        stats = it.stats
        assert stats.ingested == stats.dispatched == 12_000
        assert stats.in_flight == 0
        check_identity(stats)
        for before, after in itertools.pairwise(seen):
            assert before.ingested <= after.ingested
            assert before.dispatched <= after.dispatched
        for snapshot in seen:
            settled = snapshot.dispatched + snapshot.evicted + snapshot.dead_lettered + snapshot.lost
            assert snapshot.ingested == settled + snapshot.in_flight
    assert it.keeper.payloads.total() == len(it.keeper.payloads) == 12_000
    assert {pair for pairs in results for pair in pairs} <= it.keeper.pairs


async def test_calls_before_open_and_after_shutdown_raise_closed() -> None:
    """Every call says what the bus is, and what to do; stats and a repeated shutdown still answer."""
    bus = EventBus(EventBusConfig(shards=1))
    await refuses_everything(bus, "not open yet")
    assert bus.stats().ingested == 0
    async with bus:
        bus.ingest({"a": 1})
    await refuses_everything(bus, "is shut down")
    assert bus.stats().ingested == 1
    assert (await bus.shutdown()).dispatched == 1


async def refuses_everything(bus: EventBus, why: str) -> None:
    """Call everything that needs an open bus."""
    for call in (bus.ingest, bus.ingest_raw):
        with pytest.raises(ClosedError, match=why):
            call(Event(b"1"))
    for many in (bus.ingest_many, bus.ingest_raw_many):
        summary = many([Event(b"1"), Event(b"2")])
        assert (summary.accepted, summary.rejected) == (0, [0, 1])
        assert isinstance(summary.error, ClosedError)
    for awaitable in (
        bus.put({"a": 1}),
        bus.poll(ConsumeRequest(1)),
        bus.flush(),
        bus.add_shards(1),
        bus.remove_shards([0]),
        bus.suggest_scaling(),
    ):
        with pytest.raises(ClosedError, match=why):
            await awaitable
    with pytest.raises(ClosedError, match=why):
        bus.subscribe(ConsumeRequest(1))
    health = await bus.health()
    assert not health.ok
    assert why in health.reason


async def test_bus_opened_twice_is_refused() -> None:
    """A bus has one life."""
    async with lab() as it:
        with pytest.raises(ClosedError, match="is open"):
            await it.bus.__aenter__()
        assert it.bus.ingest_raw(b"x") is not None
    with pytest.raises(ClosedError, match="is shut down"):
        await it.bus.__aenter__()
