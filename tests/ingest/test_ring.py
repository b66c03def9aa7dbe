"""The ring against a model: an ordinary list and some counters."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from netcore.ingest import ring as ring_module
from netcore.ingest.ring import CUT_ITEMS, FlushMark, Ring, Waiter


class Barrier:
    """What a flush mark promises: all that was accepted before it."""

    def __init__(self, mark: FlushMark, before: list[tuple[int, bytes]], drained: int) -> None:
        self.mark = mark
        self.before = {ts for ts, _ in before}
        self.needed = drained

    def left(self, entries: list[tuple[int, bytes]]) -> bool:
        """Whether none of it is in the ring any more."""
        return not any(ts in self.before for ts, _ in entries)


class RingMachine(RuleBasedStateMachine):
    """Pushes, drains, evicts, withdraws, waits, marks, moves and seals in any order."""

    @initialize(capacity=st.integers(1, 80), cut=st.sampled_from([0, 8, CUT_ITEMS]))
    def begin(self, capacity: int, cut: int) -> None:
        """Make the ring and its model; small lists are also treated as long ones are."""
        ring_module.CUT_ITEMS = cut
        self.wakes = 0
        self.moves = 0
        self.ring = Ring(4, capacity, wake=self.count_wake, moved=self.count_move)
        self.model: list[tuple[int, bytes]] = []
        self.drained = self.evicted = 0
        self.queue: list[Waiter] = []
        self.granted: list[Waiter] = []
        self.told: list[Waiter] = []
        self.barriers: list[Barrier] = []
        self.old_gates: list[Any] = []
        self.dozing = False
        self.awaited = 0
        self.sealed = False
        self.number = 0

    def count_wake(self) -> None:
        """Stand for the worker's signal."""
        self.wakes += 1
        self.dozing = False

    def count_move(self) -> None:
        """Stand for the flushes' signal."""
        self.moves += 1

    def fresh(self) -> tuple[int, bytes]:
        """Make the next event: its timestamp and payload."""
        self.number += 1
        return self.number, b"%d" % self.number

    @rule(count=st.integers(1, 100))
    def push_fast(self, count: int) -> None:
        """Push as `ingest_raw` does while the gate's limit allows it."""
        for _ in range(count):
            gate = self.ring.gate
            if len(self.ring.entries) >= gate.limit:
                return
            assert not self.sealed
            assert not self.queue
            assert not self.granted
            entry = self.fresh()
            self.ring.entries += entry
            self.model.append(entry)
            if gate.attention:
                with self.ring.lock:
                    assert self.ring.depth <= self.ring.capacity
                    if self.ring.wanted:
                        self.ring.rouse()

    @rule(count=st.integers(1, 100))
    def push_slow(self, count: int) -> None:
        """Push with the lock held, while there is room that nobody waits for."""
        for _ in range(count):
            with self.ring.lock:
                room = len(self.model) + len(self.granted) < self.ring.capacity and not self.queue
                assert self.ring.room == room
                if not room or self.sealed:
                    return
                entry = self.fresh()
                self.ring.push(*entry)
                self.model.append(entry)

    @rule(most=st.integers(1, 100))
    def take(self, most: int) -> None:
        """Drain from the old end."""
        taken = self.ring.take(most)
        expected, self.model = self.model[:most], self.model[most:]
        assert list(zip(*taken, strict=True)) == expected
        for ts in taken.stamps:
            self.drained += 1
            for barrier in self.barriers:
                if ts in barrier.before:
                    barrier.needed = self.drained
        self.grant()

    @precondition(lambda self: self.model)
    @rule()
    def evict(self) -> None:
        """Throw out the oldest."""
        passed = [barrier for barrier in self.barriers if barrier.left(self.model)]
        with self.ring.lock:
            self.ring.evict()
        self.model.pop(0)
        self.evicted += 1
        if len([b for b in self.barriers if b.left(self.model)]) > len(passed):
            assert self.moves > 0

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        """Take one back out, from anywhere."""
        entry = data.draw(st.sampled_from(self.model))
        with self.ring.lock:
            assert self.ring.withdraw(entry[0])
            assert not self.ring.withdraw(entry[0])
        self.model = [other for other in self.model if other is not entry]
        for barrier in self.barriers:
            barrier.before.discard(entry[0])
        self.grant()

    @rule()
    def mark(self) -> None:
        """Put a barrier behind all that is here and all that is in flight."""
        self.barriers.append(Barrier(self.ring.mark(), self.model, self.drained))

    @precondition(lambda self: self.barriers)
    @rule(data=st.data())
    def unmark(self, data: st.DataObject) -> None:
        """Forget one."""
        barrier = data.draw(st.sampled_from(self.barriers))
        self.barriers.remove(barrier)
        self.ring.unmark(barrier.mark)

    @precondition(lambda self: not self.sealed)
    @rule()
    def wait_for_room(self) -> None:
        """Queue, as a blocked producer does."""
        with self.ring.lock:
            if self.ring.room:
                return
            waiter = Waiter(lambda: self.told.append(waiter))
            self.ring.enqueue(waiter)
        self.queue.append(waiter)

    def grant(self) -> None:
        """Give room to who waits, oldest first."""
        while self.queue and len(self.model) + len(self.granted) < self.ring.capacity:
            self.granted.append(self.queue.pop(0))
        assert [w for w in self.granted if not w.granted] == []
        assert [w for w in self.queue if w.granted] == []
        assert set(map(id, self.granted)) <= set(map(id, self.told))

    @precondition(lambda self: self.granted)
    @rule(data=st.data(), keep=st.booleans())
    def claim(self, data: st.DataObject, keep: bool) -> None:
        """Use the room, or give it up."""
        waiter = data.draw(st.sampled_from(self.granted))
        self.granted.remove(waiter)
        with self.ring.lock:
            assert self.ring.leave(waiter)
            if keep and not self.sealed:
                entry = self.fresh()
                self.ring.push(*entry)
                self.model.append(entry)
            self.ring.grant()
        self.grant()

    @precondition(lambda self: self.queue)
    @rule(data=st.data())
    def stop_waiting(self, data: st.DataObject) -> None:
        """Leave the queue before it is one's turn."""
        waiter = data.draw(st.sampled_from(self.queue))
        self.queue.remove(waiter)
        with self.ring.lock:
            assert not self.ring.leave(waiter)
            self.ring.grant()
        self.grant()

    @rule(fill=st.none() | st.integers(0, 100))
    def doze(self, fill: int | None) -> None:
        """Go to sleep as the worker does, for the first event or for a full batch."""
        before = self.wakes
        wanted = 0 if fill is None else min(fill, self.ring.capacity - 1)
        asleep = self.ring.doze(fill)
        assert asleep == (not self.sealed and len(self.model) <= wanted)
        assert self.wakes == before
        self.dozing, self.awaited = asleep, wanted

    @rule()
    def awake(self) -> None:
        """Get up, for whatever reason."""
        self.ring.awake()
        self.dozing = False

    @rule()
    def renew_gate(self) -> None:
        """Move slots: the gate is closed for good."""
        self.old_gates.append(self.ring.gate)
        assert self.ring.renew_gate() is self.ring.gate

    @rule()
    def seal(self) -> None:
        """Let nothing more in; who waits is told."""
        before = self.wakes
        self.ring.seal()
        assert self.wakes == before + 1
        self.sealed, self.dozing = True, False
        assert set(map(id, self.queue)) <= set(map(id, self.told))
        self.queue.clear()

    @invariant()
    def matches_the_model(self) -> None:
        """Order, counts, room, gates and barriers are what the model says."""
        if not hasattr(self, "ring"):
            return
        ring = self.ring
        there = ring.entries[ring.start :]
        assert list(zip(there[::2], there[1::2], strict=True)) == self.model
        assert set(ring.entries[: ring.start]) <= {None}
        assert ring.start <= 2 * ring.capacity
        assert ring.counts() == (self.drained, self.evicted, len(self.model), there[0] if there else None)
        assert ring.depth == len(self.model) + len(self.granted) <= ring.capacity
        assert (ring.drained, ring.evicted) == (self.drained, self.evicted)
        assert ring.accepted == self.drained + self.evicted + len(self.model)
        assert ring.gate.limit <= ring.start + 2 * ring.capacity
        if self.sealed or self.queue or self.granted:
            assert ring.gate.limit == 0
        if self.sealed:
            assert ring.gate.attention
        assert all(gate.limit == 0 and gate.attention for gate in self.old_gates)
        for barrier in self.barriers:
            if barrier.left(self.model):
                assert barrier.mark.settle_at == barrier.needed
            else:
                assert barrier.mark.settle_at is None

    @invariant()
    def nobody_oversleeps(self) -> None:
        """A worker that sleeps has no more before it than it sleeps for."""
        if hasattr(self, "ring") and self.dozing:
            assert len(self.model) <= self.awaited
            assert len(self.model) < self.ring.capacity

    def teardown(self) -> None:
        """Treat lists as usual again."""
        ring_module.CUT_ITEMS = CUT_ITEMS


TestRing = RingMachine.TestCase


def test_ring_draining_a_long_backlog_moves_each_event_at_most_once() -> None:
    """What is left is moved only when that is no more than what goes, or next to nothing."""
    ring = Ring(0, 1 << 20, wake=int, moved=int)
    backlog = 50_000
    with ring.lock:
        for n in range(backlog):
            ring.push(n, b"x")
    moved = 0
    while ring.count:
        before = ring.start
        ring.take(1024)
        if before > ring.start and 2 * ring.count > CUT_ITEMS:
            moved += ring.count
        assert ring.start <= 2 * backlog
    assert 0 < moved <= backlog


def test_ring_evicting_from_a_full_ring_keeps_its_list_bounded() -> None:
    """What was blanked never outgrows the ring: the list is cut before."""
    ring = Ring(0, 100, wake=int, moved=int)
    with ring.lock:
        for n in range(100):
            ring.push(n, b"x")
        for n in range(100, 1000):
            ring.evict()
            ring.push(n, b"x")
            assert len(ring.entries) <= 2 * 2 * 100
            assert ring.oldest() == n - 99
    assert ring.take(1000).stamps == list(range(900, 1000))


def test_mark_passed_by_an_eviction_is_told_of_at_once() -> None:
    """A flush may end by an eviction alone: nobody else would wake it."""
    moves: list[int] = []
    ring = Ring(0, 100, wake=int, moved=lambda: moves.append(1))
    with ring.lock:
        for n in range(3):
            ring.push(n, b"x")
    mark = ring.mark()
    with ring.lock:
        ring.push(3, b"later")
        ring.evict()
        ring.evict()
    assert (mark.settle_at, moves) == (None, [])
    with ring.lock:
        ring.evict()
    assert (mark.settle_at, moves) == (0, [1])
    with ring.lock:
        ring.evict()
    assert moves == [1]
