"""Moments at which a ring's parts meet badly: set-aside room, passed marks, fences, interrupted wake-ups."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from ingest_lab import Bench, Interruptible

from netcore.builtin.backpressure import BlockPolicy
from netcore.dispatch.batcher import Batcher
from netcore.ingest.ring import Fence, Ring, Waiter
from netcore.ingest.router import MASK
from netcore.ingest.shard import Shard


def once(work: object) -> None:
    """Have `work` done before the next append."""

    def interrupt(where: str) -> None:
        Interruptible.interrupt = staticmethod(lambda where: None)  # type: ignore[method-assign]
        work()  # type: ignore[operator]

    Interruptible.interrupt = staticmethod(interrupt)  # type: ignore[method-assign]


def test_push_held_up_while_much_room_was_set_aside_does_not_take_it() -> None:
    """Under `block` nothing is ever evicted: a late push must not use the room that waiters were given."""
    bench = Bench(1, 200, BlockPolicy())
    (ring,) = bench.all_rings
    waiters = [Waiter(int) for _ in range(100)]

    def fill_and_grant() -> None:
        for n in range(200):
            bench.producer.ingest_raw(b"%d" % n)
        with ring.lock:
            for waiter in waiters:
                ring.enqueue(waiter)
        ring.drain(100)
        assert all(waiter.granted for waiter in waiters)

    once(fill_and_grant)
    held_up = threading.Thread(target=bench.producer.ingest_raw, args=(b"held up",), daemon=True)
    held_up.start()
    deadline = time.monotonic() + 10
    while not ring.waiters and held_up.is_alive() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert ring.depth <= ring.capacity
    for n, waiter in enumerate(waiters):
        assert bench.producer._claim(ring, waiter, b"granted%d" % n, 0) is not None
    assert ring.evicted == 0
    ring.drain(1000)
    held_up.join(10)
    assert not held_up.is_alive()


def test_mark_passed_by_a_withdrawal_is_told_of_at_once() -> None:
    """A flush may end by a withdrawal alone: nobody else would wake it."""
    moves: list[int] = []
    ring = Ring(0, 100, wake=int, moved=lambda: moves.append(1))
    with ring.lock:
        ring.push(1, b"its key has moved")
    mark = ring.mark()
    with ring.lock:
        assert ring.withdraw(1)
    assert (mark.settle_at, moves) == (0, [1])


class Slow(int):
    """A fence's position that takes its time to be compared."""

    meanwhile: threading.Thread

    def __gt__(self, other: int) -> bool:
        self.meanwhile.start()
        self.meanwhile.join(0.2)
        return super().__gt__(other)

    __hash__ = int.__hash__


def test_fence_taken_down_during_a_withdrawal_does_not_break_it() -> None:
    """The worker passes its fence while a producer, on its thread, adjusts the fences' positions."""
    shard = Shard(0, 100, None, wake=int, moved=int)  # type: ignore[arg-type]
    batcher = Batcher(
        shard,
        max_events=10,
        max_bytes=None,
        delay_s=0.0,
        progress=None,  # type: ignore[arg-type]
    )
    position = Slow(5)
    position.meanwhile = threading.Thread(target=lambda: asyncio.run(batcher._pass_fences()))
    ring = shard.ring
    ring.fences.append(Fence(position, lambda: True, 0.0))
    with ring.lock:
        ring.push(1, b"x")
        assert ring.withdraw(1)
    position.meanwhile.join(10)
    assert not ring.fences


def test_wake_up_that_was_interrupted_is_done_by_the_next_push() -> None:
    """A KeyboardInterrupt in the middle of waking must not leave the worker asleep for good."""
    woken: list[int] = []

    def wake() -> None:
        woken.append(1)
        if len(woken) == 1:
            raise KeyboardInterrupt

    ring = Ring(0, 1000, wake=wake, moved=int)
    assert ring.doze()
    with ring.lock, pytest.raises(KeyboardInterrupt):
        ring.push(1, b"x")
    assert ring.gate.attention
    with ring.lock:
        ring.push(2, b"y")
    assert len(woken) == 2


def test_many_drained_too_late_are_told_of_for_each_shard_their_keys_went_to() -> None:
    """Each receiver must hold its keys' next events back, not only that of the last event."""
    bench = Bench(1, 5000)
    (old,) = bench.all_rings
    told: set[int] = set()
    bench.router.moved_late = lambda ring, route: told.add(bench.router.routes[route & MASK].shard)

    def after(where: str) -> None:
        if len(old.entries) == 2 * 300:
            Interruptible.interrupt = staticmethod(lambda where: None)  # type: ignore[method-assign]
            bench.add()
            bench.add()
            old.drain(1000)

    Interruptible.interrupt = staticmethod(after)  # type: ignore[method-assign]
    summary = bench.producer.ingest_raw_many([b"%d" % n for n in range(300)])
    assert summary.accepted == 300
    assert len(old.went) == 300
    assert {1, 2} <= told
