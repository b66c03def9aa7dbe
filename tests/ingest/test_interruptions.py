"""Producers that are interrupted at the awkward point of a push: nothing is lost, doubled or stuck.

One thread plays them all: what another thread could do in between happens in the middle of the
push, so that every interleaving found here can be found again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ingest_lab import Bench, Interruptible, Watched, events_of

from netcore.builtin.backpressure import DropNewestPolicy, DropOldestPolicy, SamplePolicy
from netcore.errors import BackpressureError, ClosedError

POLICIES = {
    "drop_oldest": DropOldestPolicy,
    "drop_newest": DropNewestPolicy,
    "sample": lambda: SamplePolicy(2),
}
STEP = st.tuples(
    st.sampled_from(
        ["one"] * 6 + ["many"] * 2 + ["take"] * 3 + ["doze", "fill", "mark", "add", "remove", "close"]
    ),
    st.integers(0, 12),
    st.integers(0, 3),
)


class Play:
    """Runs a script of steps, some of them in the middle of others."""

    def __init__(self, bench: Bench, script: list[tuple[str, int, int]]) -> None:
        self.bench = bench
        self.script = iter(script)
        self.depth = 0
        self.next = 0
        self.closed = False
        self.spans: dict[bytes, tuple[int, int]] = {}
        self.moment = 0
        self.accepted: dict[bytes, tuple[int, int] | None] = {}
        self.refused: set[bytes] = set()
        self.marks: list[tuple[Watched, object, int]] = []
        Interruptible.interrupt = self.interrupt
        self.nested = 0

    def interrupt(self, where: str) -> None:
        """Run the next steps in the middle of a push."""
        if self.depth < 4:
            for _ in range(self.nested):
                self.step()

    def step(self) -> None:
        """Run the next step."""
        name, number, nested = next(self.script, ("", 0, 0))
        if not name:
            return
        before, self.nested = self.nested, nested
        self.depth += 1
        try:
            getattr(self, name)(number)
        finally:
            self.depth -= 1
            self.nested = before
        if self.depth == 0:
            self.check_sleepers()

    def payload(self) -> bytes:
        """Make a payload like no other."""
        self.next += 1
        return b"%d" % self.next

    def one(self, number: int) -> None:
        """Ingest one event under one of four keys."""
        raw, begun = self.payload(), self.tick()
        try:
            outcome = self.bench.producer.ingest_raw(raw, key=f"k{number % 4}")
        except (BackpressureError, ClosedError):
            outcome = None
        if outcome is None:
            self.refused.add(raw)
        else:
            self.accepted[raw] = outcome
        self.spans[raw] = begun, self.tick()

    def many(self, number: int) -> None:
        """Ingest many at once."""
        raws, begun = [self.payload() for _ in range(number)], self.tick()
        summary = self.bench.producer.ingest_raw_many(raws)
        missed = {*summary.rejected, *summary.discarded}
        assert summary.accepted + len(summary.rejected) + len(summary.discarded) == number
        assert len(missed) == number - summary.accepted
        for index, raw in enumerate(raws):
            self.spans[raw] = begun, self.tick()
            if index in missed:
                self.refused.add(raw)
            else:
                self.accepted[raw] = None

    def tick(self) -> int:
        """Say which moment it is."""
        self.moment += 1
        return self.moment

    def take(self, number: int) -> None:
        """Let a worker drain."""
        rings = self.bench.all_rings
        rings[number % len(rings)].drain(1 + number % 5)

    def doze(self, number: int) -> None:
        """Let a worker sleep until anything comes."""
        rings = self.bench.all_rings
        rings[number % len(rings)].sleep(None)

    def fill(self, number: int) -> None:
        """Let a worker sleep until a batch is full."""
        rings = self.bench.all_rings
        rings[number % len(rings)].sleep(1 + number % 4)

    def mark(self, number: int) -> None:
        """Begin a flush of one ring."""
        rings = self.bench.all_rings
        ring = rings[number % len(rings)]
        self.marks.append((ring, ring.mark(), self.tick()))

    def add(self, number: int) -> None:
        """Add a ring."""
        if not self.closed and len(self.bench.all_rings) < 5:
            self.bench.add()

    def remove(self, number: int) -> None:
        """Remove a ring."""
        shards = list(self.bench.rings)
        if not self.closed and len(shards) > 1:
            self.bench.remove(shards[number % len(shards)])

    def close(self, number: int) -> None:
        """Shut down, once in a while."""
        if number == 0 and not self.closed:
            self.closed = True
            self.bench.close()

    def check_sleepers(self) -> None:
        """Nobody sleeps before a full plate: no push is under way any more."""
        for ring in self.bench.all_rings:
            if ring.asleep_for is not None:
                assert ring.count <= ring.asleep_for

    def check(self) -> None:
        """Compare what producers were told with what is there."""
        rings = self.bench.all_rings
        there = [event for ring in rings for event in (*ring.gone, *ring.went, *events_of(ring))]
        counts = Counter(event.raw for event in there)
        assert set(counts) == set(self.accepted)
        assert set(counts.values()) <= {1}
        assert not self.refused & set(counts)
        told = {raw: outcome for raw, outcome in self.accepted.items() if outcome is not None}
        assert {e.raw: (e.shard, e.ts) for e in there if e.raw in told} == told
        assert sum(ring.accepted for ring in rings) == len(self.accepted)
        assert sum(ring.rejected + ring.discarded for ring in rings) <= len(self.refused)
        for ring in rings:
            assert ring.count <= ring.capacity
            self.check_order([event.raw for event in (*ring.went, *events_of(ring))])
        self.check_marks()

    def check_order(self, raws: list[bytes]) -> None:
        """Events that were ingested one after the other lie one after the other."""
        latest_begin = 0
        for raw in raws:
            begun, ended = self.spans[raw]
            assert ended > latest_begin, "it returned before one that lies before it began"
            latest_begin = max(latest_begin, begun)

    def check_marks(self) -> None:
        """Drain everything: each mark asks to settle what came before it and nothing that came after."""
        for ring in self.bench.all_rings:
            ring.drain(10_000)
        for ring, mark, moment in self.marks:
            at_least = at_most = 0
            for number, event in enumerate(ring.went, 1):
                begun, ended = self.spans[event.raw]
                at_least = number if ended < moment else at_least
                at_most = number if begun < moment else at_most
            assert at_least <= mark.settle_at <= at_most  # type: ignore[attr-defined]


@settings(max_examples=150)
@given(
    st.sampled_from(sorted(POLICIES)),
    st.integers(1, 3),
    st.sampled_from([1, 2, 3, 5, 66, 90]),
    st.lists(STEP, min_size=5, max_size=60),
)
def test_producers_interrupted_anywhere_are_told_the_truth(
    policy: str, rings: int, capacity: int, script: list[tuple[str, int, int]]
) -> None:
    """Whatever happens in the middle of a push, each event is where its producer was told, once."""
    play = Play(Bench(rings, capacity, POLICIES[policy]()), script)  # type: ignore[operator]
    try:
        for _ in script:
            play.step()
        play.check()
    finally:
        Interruptible.interrupt = staticmethod(lambda where: None)  # type: ignore[method-assign]


def interrupted_once(work: Callable[[], object]) -> None:
    """Have `work` done before the next append."""

    def interrupt(where: str) -> None:
        Interruptible.interrupt = staticmethod(lambda where: None)  # type: ignore[method-assign]
        work()

    Interruptible.interrupt = staticmethod(interrupt)  # type: ignore[method-assign]


def test_push_overtaken_by_others_wakes_the_worker_at_a_full_batch() -> None:
    """A producer that looked when a batch had room, and pushed when it was full, wakes the worker."""
    bench = Bench(1, 1000)
    (ring,) = bench.all_rings
    ring.sleep(20)  # a batch of 21
    for number in range(11):
        bench.producer.ingest_raw(b"%d" % number)
    interrupted_once(lambda: [bench.producer.ingest_raw(b"other") for _ in range(9)])
    bench.producer.ingest_raw(b"overtaken")
    assert ring.count == 21
    assert ring.wakes == 1


def test_push_that_returns_to_a_drained_and_finished_ring_is_not_accepted() -> None:
    """A producer held up across a whole shutdown is refused, and counts nowhere."""
    bench = Bench(1, 1000)
    (ring,) = bench.all_rings

    def shut_down() -> None:
        bench.close()
        ring.drain(10)
        assert ring.finish()

    interrupted_once(shut_down)
    with pytest.raises(ClosedError, match="closed"):
        bench.producer.ingest_raw(b"late")
    assert ring.accepted == 0
    assert not ring.count


def test_ring_finished_counts_nothing_that_comes_later() -> None:
    """Between a late append and its withdrawal the books of a finished ring stay as they are."""
    bench = Bench(1, 1000)
    (ring,) = bench.all_rings
    bench.producer.ingest_raw(b"early")
    seen: list[tuple[int, int, bool]] = []

    def interrupt(where: str) -> None:
        if where == "before append":
            bench.close()
            ring.drain(10)
            assert ring.finish()
        else:
            seen.append((ring.accepted, ring.abandon(), ring.count == 1))

    Interruptible.interrupt = staticmethod(interrupt)  # type: ignore[method-assign]
    try:
        with pytest.raises(ClosedError, match="closed"):
            bench.producer.ingest_raw(b"late")
    finally:
        Interruptible.interrupt = staticmethod(lambda where: None)  # type: ignore[method-assign]
    assert seen == [(1, 0, True)]
    assert (ring.accepted, ring.count) == (1, 0)


def test_ring_abandoned_gives_up_what_is_there_and_passes_marks() -> None:
    """What is given up counts as drained, for the one who counts it as lost; flushes may end."""
    bench = Bench(1, 1000)
    (ring,) = bench.all_rings
    for number in range(5):
        bench.producer.ingest_raw(b"%d" % number)
    mark = ring.mark()
    bench.close()
    assert (ring.abandon(), ring.abandon()) == (5, 0)
    assert (ring.drained, ring.accepted, mark.settle_at) == (5, 5, 5)


@pytest.mark.parametrize("policy", ["drop_newest", "drop_oldest"])
def test_push_overtaken_until_the_ring_is_full_asks_the_policy(policy: str) -> None:
    """A producer that looked at an empty ring and appended to a full one takes its event back out."""
    bench = Bench(1, 66, POLICIES[policy]())  # type: ignore[operator]
    (ring,) = bench.all_rings
    interrupted_once(lambda: [bench.producer.ingest_raw(b"%d" % n) for n in range(66)])
    if policy == "drop_newest":
        with pytest.raises(BackpressureError, match="is full"):
            bench.producer.ingest_raw(b"overtaken")
        assert [event.raw for event in events_of(ring)] == [b"%d" % n for n in range(66)]
    else:
        assert bench.producer.ingest_raw(b"overtaken") is not None
        assert [event.raw for event in events_of(ring)][-1] == b"overtaken"
        assert [event.raw for event in ring.gone] == [b"0"]
    assert ring.count == 66


def test_push_overtaken_in_a_chunk_until_the_ring_is_full_keeps_the_capacity() -> None:
    """The same for many at once: those that do not fit are listed, and the others keep their order."""
    bench = Bench(1, 80)
    (ring,) = bench.all_rings
    interrupted_once(lambda: [bench.producer.ingest_raw(b"%d" % n) for n in range(75)])
    summary = bench.producer.ingest_raw_many([b"many%d" % n for n in range(10)])
    assert (summary.accepted, summary.rejected) == (5, [5, 6, 7, 8, 9])
    assert ring.count == 80
    assert [e.raw for e in events_of(ring)][75:] == [b"many%d" % n for n in range(5)]
