"""A full ring under each policy; and calls for many events under each."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ingest_lab import Bench, events_of

from netcore.builtin.backpressure import BlockPolicy, DropNewestPolicy, DropOldestPolicy, SamplePolicy
from netcore.contracts.policies import BackpressurePolicy, FullShard, Verdict
from netcore.errors import BackpressureError, ClosedError, ConfigError, PayloadError
from netcore.events import Event, RawEvent
from netcore.ingest.ring import Waiter


class Scripted(BackpressurePolicy):
    """Says what it is told to, and remembers what it was asked."""

    name = "scripted"

    def __init__(self, *verdicts: Any) -> None:
        self.verdicts = list(verdicts)
        self.asked: list[FullShard] = []

    def on_full(self, shard: FullShard, /) -> Verdict:
        self.asked.append(shard)
        verdict = self.verdicts.pop(0) if len(self.verdicts) > 1 else self.verdicts[0]
        if isinstance(verdict, Exception):
            raise verdict
        return verdict  # type: ignore[no-any-return]


def filled(capacity: int, policy: BackpressurePolicy) -> Bench:
    """Return a bench with one ring, full of b"0", b"1", ..."""
    bench = Bench(1, capacity, policy)
    for number in range(capacity):
        bench.producer.ingest_raw(b"%d" % number)
    return bench


def contents(bench: Bench) -> list[bytes]:
    """List the payloads in the only ring."""
    return [event.raw for event in events_of(bench.rings[0])]


@pytest.mark.parametrize("capacity", [1, 2, 63, 64, 65, 200])
def test_drop_oldest_full_evicts_exactly_the_oldest(capacity: int) -> None:
    """Each newcomer costs the oldest event, no other, and is accepted."""
    bench = filled(capacity, DropOldestPolicy())
    for extra in range(3):
        assert bench.producer.ingest_raw(b"new%d" % extra) is not None
    kept = [b"%d" % n for n in range(capacity)] + [b"new0", b"new1", b"new2"]
    assert contents(bench) == kept[3:]
    ring = bench.rings[0]
    assert (ring.evicted, ring.accepted, ring.full_hits) == (3, capacity + 3, 3)


@pytest.mark.parametrize("capacity", [1, 64, 65, 200])
def test_drop_newest_full_refuses_and_keeps_what_is_there(capacity: int) -> None:
    """The error names shard and capacity; room lets the next one in."""
    bench = filled(capacity, DropNewestPolicy())
    with pytest.raises(BackpressureError, match=rf"shard 0 is full \({capacity} events\)") as caught:
        bench.producer.ingest_raw(b"new")
    assert (caught.value.shard, caught.value.capacity) == (0, capacity)
    assert contents(bench) == [b"%d" % n for n in range(capacity)]
    assert (bench.rings[0].rejected, bench.rings[0].accepted) == (1, capacity)
    bench.rings[0].drain(1)
    assert bench.producer.ingest_raw(b"new") is not None


@pytest.mark.parametrize("every", [1, 3, 10])
def test_sample_full_lets_one_in_n_enter(every: int) -> None:
    """The first newcomer and every n-th after it enter at the oldest's cost; the others are discarded."""
    bench = filled(70, SamplePolicy(every))
    outcomes = [bench.producer.ingest_raw(b"new%d" % n) is not None for n in range(3 * every)]
    assert outcomes == [n % every == 0 for n in range(3 * every)]
    ring = bench.rings[0]
    assert (ring.evicted, ring.discarded, ring.rejected) == (3, 3 * (every - 1), 0)
    assert contents(bench)[-3:] == [b"new%d" % (n * every) for n in range(3)]


@pytest.mark.parametrize("every", [0, -1, 1.5, True, None])
def test_sample_bad_rate_is_refused(every: Any) -> None:
    """One in none is no rate."""
    with pytest.raises(ConfigError, match=r"sample\.every"):
        SamplePolicy(every)


def test_sample_shards_are_counted_apart_and_threads_share_the_count() -> None:
    """Eight threads at a full ring: exactly one in ten enters."""
    bench = filled(4, SamplePolicy(10))
    entered: list[int] = []

    def ingest() -> None:
        entered.append(sum(bench.producer.ingest_raw(b"x") is not None for _ in range(250)))

    threads = [threading.Thread(target=ingest) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(entered) == 200
    assert (bench.rings[0].evicted, bench.rings[0].discarded) == (200, 1800)


def test_policy_is_never_asked_while_there_is_room() -> None:
    """What a policy costs, it costs at a full ring; it is shown shard, depth, capacity and newcomer."""
    policy = Scripted(Verdict.DISCARD)
    bench = filled(100, policy)
    assert policy.asked == []
    assert bench.producer.ingest_raw(b"new") is None
    assert policy.asked == [FullShard(0, 100, 100, b"new")]


def test_policy_that_changes_its_mind_is_obeyed_each_time() -> None:
    """Each newcomer at a full ring asks anew."""
    bench = filled(2, Scripted(Verdict.EVICT, Verdict.DISCARD, Verdict.REFUSE, Verdict.EVICT))
    assert bench.producer.ingest_raw(b"a") is not None
    assert bench.producer.ingest_raw(b"b") is None
    with pytest.raises(BackpressureError, match="the policy refused"):
        bench.producer.ingest_raw(b"c")
    assert bench.producer.ingest_raw(b"d") is not None
    assert contents(bench) == [b"a", b"d"]


@pytest.mark.parametrize("verdict", [RuntimeError("no idea"), "evict", None, 1], ids=repr)
def test_policy_that_raises_or_babbles_refuses_and_is_logged_once(
    verdict: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A broken policy costs newcomers, not the producer's nerves."""
    bench = filled(1, Scripted(verdict))
    for _ in range(3):
        with pytest.raises(BackpressureError, match="the policy refused"):
            bench.producer.ingest_raw(b"x")
    assert len([record for record in caplog.records if "Scripted failed" in record.message]) == 1
    assert bench.rings[0].rejected == 3


def test_policy_may_ingest_itself() -> None:
    """It is asked with no lock held."""
    inner: list[Any] = []

    class Nosy(BackpressurePolicy):
        name = "nosy"

        def on_full(self, shard: FullShard, /) -> Verdict:
            if shard.newcomer == b"new":
                inner.append(bench.producer.ingest_raw(b"nosy"))
            return Verdict.EVICT

    bench = filled(2, Nosy())
    assert bench.producer.ingest_raw(b"new") is not None
    assert inner[0] is not None
    assert contents(bench) == [b"nosy", b"new"]


def blocked(bench: Bench, count: int = 1) -> tuple[list[threading.Thread], list[Any]]:
    """Start threads that ingest at the full ring, and wait until each of them waits."""
    outcomes: list[Any] = []

    def ingest(number: int) -> None:
        try:
            outcomes.append((number, bench.producer.ingest_raw(b"blocked%d" % number)))
        except Exception as error:
            outcomes.append((number, error))

    threads = []
    for number in range(count):
        threads.append(threading.Thread(target=ingest, args=(number,), daemon=True))
        threads[-1].start()
        until(lambda: len(bench.rings[0].waiters) == number + 1)  # noqa: B023
    return threads, outcomes


def until(condition: Callable[[], bool]) -> None:
    """Wait until it holds, five seconds at most."""
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_block_thread_waits_for_room_in_order() -> None:
    """Blocked threads enter in the order in which they came, as room appears; newcomers queue behind."""
    bench = filled(2, BlockPolicy())
    threads, outcomes = blocked(bench, 3)
    for number in range(3):
        bench.rings[0].drain(1)
        threads[number].join(5)
        assert [n for n, _ in outcomes] == list(range(number + 1))
    assert contents(bench) == [b"blocked1", b"blocked2"]
    assert {(shard, ts) for _, (shard, ts) in outcomes} == {
        (e.shard, e.ts) for e in (*bench.rings[0].went, *events_of(bench.rings[0])) if e.raw.startswith(b"b")
    }


def test_block_room_for_all_lets_all_in_and_opens_the_fast_path_again() -> None:
    """After the rush nothing is set aside."""
    bench = filled(70, BlockPolicy())
    threads, outcomes = blocked(bench, 4)
    bench.rings[0].drain(70)
    for thread in threads:
        thread.join(5)
    assert len(outcomes) == 4
    assert (bench.rings[0].reserved, len(bench.rings[0].waiters)) == (0, 0)
    assert bench.rings[0].gate.limit > 0


def test_block_sealed_while_waiting_raises_closed_and_accepts_nothing() -> None:
    """A shutdown wakes blocked producers; their events are not accepted."""
    bench = filled(2, BlockPolicy())
    threads, outcomes = blocked(bench, 3)
    bench.close()
    for thread in threads:
        thread.join(5)
    assert [type(outcome) for _, outcome in outcomes] == [ClosedError] * 3
    assert bench.rings[0].accepted == 2


def test_block_waiting_while_the_key_moves_enters_at_its_new_home() -> None:
    """A producer whose shard leaves while it waits goes where its key went."""
    bench = Bench(2, 1, BlockPolicy())
    raw = next(b"%d" % n for n in range(100) if bench.ring_of(f"{n}") is bench.rings[0])
    bench.producer.ingest_raw(raw)
    outcomes: list[Any] = []
    thread = threading.Thread(target=lambda: outcomes.append(bench.producer.ingest_raw(raw)), daemon=True)
    thread.start()
    until(lambda: len(bench.rings[0].waiters) == 1)
    bench.remove(0)
    thread.join(5)
    assert outcomes[0][0] == 1
    assert [event.raw for event in events_of(bench.rings[1])] == [raw]


def test_evict_while_all_room_is_set_aside_keeps_the_capacity() -> None:
    """A policy that evicts where others wait: who was granted the room finds it, and nothing is exceeded."""
    bench = filled(1, Scripted(Verdict.EVICT))
    ring = bench.rings[0]
    waiter = Waiter(lambda: None)
    with ring.lock:
        ring.enqueue(waiter)
    ring.drain(1)
    assert (waiter.granted, ring.count) == (True, 0)
    assert bench.producer.ingest_raw(b"evictor") is not None
    assert bench.producer._claim(ring, waiter, b"waited", 0) is not None
    assert contents(bench) == [b"waited"]
    assert [event.raw for event in ring.gone] == [b"evictor"]
    assert ring.accepted == 3


# -- many ----------------------------------------------------------------------------------------

POLICIES: dict[str, Callable[[], BackpressurePolicy]] = {
    "drop_oldest": DropOldestPolicy,
    "drop_newest": DropNewestPolicy,
    "sample": lambda: SamplePolicy(3),
}


@given(
    st.sampled_from(sorted(POLICIES)),
    st.integers(1, 4),
    st.sampled_from([1, 2, 5, 64, 65, 70, 100, 2000]),
    st.lists(st.integers(0, 40), max_size=6),
    st.integers(0, 2500),
)
def test_ingest_raw_many_acts_as_single_calls(
    policy: str, rings: int, capacity: int, repeats: list[int], count: int
) -> None:
    """Same shards, same order in each, same refusals, same evictions as one by one."""
    events = [b"%d" % number for number in [*range(count), *repeats]]
    many, single = (Bench(rings, capacity, POLICIES[policy]()) for _ in range(2))
    summary = many.producer.ingest_raw_many(events)
    rejected, discarded, accepted = [], [], 0
    for index, event in enumerate(events):
        try:
            if single.producer.ingest_raw(event) is None:
                discarded.append(index)
            else:
                accepted += 1
        except BackpressureError:
            rejected.append(index)
    assert (summary.accepted, summary.rejected, summary.discarded) == (accepted, rejected, discarded)
    for shard, ring in many.rings.items():
        twin = single.rings[shard]
        assert [e.raw for e in events_of(ring)] == [e.raw for e in events_of(twin)]
        assert [e.raw for e in ring.gone] == [e.raw for e in twin.gone]
        assert (ring.evicted, ring.rejected, ring.discarded) == (twin.evicted, twin.rejected, twin.discarded)
        stamps = [e.ts for e in events_of(ring)]
        assert stamps == sorted(set(stamps))
    assert isinstance(summary.error, BackpressureError) == bool(rejected)


def test_ingest_raw_many_retrying_exactly_the_rejected_stores_each_once() -> None:
    """What was listed as rejected, and nothing else, has to come again."""
    bench = Bench(2, 5, DropNewestPolicy())
    left = [b"%d" % n for n in range(40)]
    for _ in range(40):
        summary = bench.producer.ingest_raw_many(left)
        left = [left[index] for index in summary.rejected]
        for ring in bench.all_rings:
            ring.drain(10)
        if not left:
            break
    assert sorted(e.raw for ring in bench.all_rings for e in ring.went) == sorted(
        b"%d" % n for n in range(40)
    )


def test_ingest_many_bad_payloads_in_the_middle_are_rejected_alone() -> None:
    """The others enter; the first refusal's cause is told."""
    bench = Bench(2, 100)
    summary = bench.producer.ingest_many(
        [{"a": 1}, object(), Event(b"2"), b"bytes", RawEvent(b"raw"), "text"]
    )
    assert (summary.accepted, summary.rejected, summary.discarded) == (4, [1, 3], [])
    assert isinstance(summary.error, PayloadError)
    assert "object" in str(summary.error)
    summary = bench.producer.ingest_raw_many([b"a", "text", RawEvent(b"b"), None, Event(b"3")])  # type: ignore[list-item]
    assert (summary.accepted, summary.rejected) == (3, [1, 3])
    there = sorted(e.raw for ring in bench.all_rings for e in events_of(ring))
    assert there == sorted([b'{"a":1}', b"2", b"raw", b'"text"', b"a", b"b", b"3"])


@pytest.mark.parametrize(
    "single", [b"x", bytearray(b"x"), memoryview(b"x"), "text", Event(b"1"), RawEvent(b"1")]
)
def test_ingest_many_of_one_event_is_refused(single: Any) -> None:
    """A single event is no sequence of events: its bytes or characters must not be ingested."""
    bench = Bench(1, 100)
    for call in (bench.producer.ingest_many, bench.producer.ingest_raw_many):
        with pytest.raises(PayloadError, match="takes a sequence"):
            call(single)
    with pytest.raises(PayloadError, match="takes a sequence"):
        bench.producer.ingest_many({"a": 1})
    assert bench.rings[0].accepted == 0


def test_ingest_many_iterable_that_fails_accepts_nothing() -> None:
    """An error of the caller's own iterable reaches it before anything was accepted."""
    bench = Bench(1, 100)

    def events() -> Any:
        yield Event(b"1")
        raise LookupError("the caller's own")

    for call in (bench.producer.ingest_many, bench.producer.ingest_raw_many):
        with pytest.raises(LookupError, match="the caller's own"):
            call(events())
    assert bench.rings[0].accepted == 0


def test_ingest_many_closed_in_the_middle_rejects_the_rest() -> None:
    """Those before the close are in; those after it are listed."""
    bench = Bench(1, 100)

    class ClosingPolicy(BackpressurePolicy):
        name = "closing"

        def on_full(self, shard: FullShard, /) -> Verdict:
            bench.close()
            return Verdict.EVICT

    bench = Bench(1, 3, ClosingPolicy())
    summary = bench.producer.ingest_raw_many([b"%d" % n for n in range(6)])
    assert (summary.accepted, summary.rejected) == (3, [3, 4, 5])
    assert isinstance(summary.error, ClosedError)
    assert contents(bench) == [b"0", b"1", b"2"]


def test_ingest_raw_many_block_from_a_thread_waits_for_room_and_loses_none() -> None:
    """Tiny ring, many events, a slow worker: all get in, in order."""
    bench = Bench(1, 2, BlockPolicy())
    done: list[Any] = []
    events = [b"%d" % n for n in range(50)]
    thread = threading.Thread(target=lambda: done.append(bench.producer.ingest_raw_many(events)), daemon=True)
    thread.start()
    deadline = time.monotonic() + 10
    while not done:
        assert time.monotonic() < deadline
        bench.rings[0].drain(1)
        time.sleep(0)
    bench.rings[0].drain(10)
    assert (done[0].accepted, done[0].rejected, done[0].discarded) == (50, [], [])
    assert [e.raw for e in bench.rings[0].went] == events
