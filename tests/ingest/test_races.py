"""Many threads against a ring that is drained, moved and sealed; threads take turns as often as they can."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from ingest_lab import Bench

from netcore.builtin.backpressure import BlockPolicy, DropNewestPolicy, DropOldestPolicy
from netcore.contracts.policies import BackpressurePolicy
from netcore.errors import BackpressureError, ClosedError
from netcore.ingest import ring as ring_module
from netcore.ingest.ring import CUT_ITEMS


@pytest.fixture(autouse=True)
def tiny_switch_interval() -> Iterator[None]:
    """Let threads take turns as often as the interpreter can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


class Producers:
    """Threads that ingest flat out, singly and in chunks, until they are refused as closed."""

    def __init__(self, bench: Bench, count: int) -> None:
        self.bench = bench
        self.accepted: list[list[bytes]] = [[] for _ in range(count)]
        self.errors: list[BaseException] = []
        self.threads = [threading.Thread(target=self.run, args=(n,)) for n in range(count)]
        for thread in self.threads:
            thread.start()

    def run(self, me: int) -> None:
        """Ingest."""
        mine, n = self.accepted[me], 0
        try:
            while True:
                raw = b"%d:%d" % (me, n := n + 1)
                try:
                    if n % 50:
                        self.bench.producer.ingest_raw(raw, key=raw if n % 2 else f"key{me}")
                        mine.append(raw)
                    else:
                        raws = [b"%d:many:%d:%d" % (me, n, k) for k in range(30)]
                        summary = self.bench.producer.ingest_raw_many(raws)
                        bad = set(summary.rejected)
                        mine += [r for k, r in enumerate(raws) if k not in bad]
                except BackpressureError:
                    continue
        except ClosedError:
            return
        except BaseException as error:
            self.errors.append(error)

    def join(self) -> None:
        """Wait until all have been refused."""
        for thread in self.threads:
            thread.join(20)
            assert not thread.is_alive()
        assert not self.errors


@pytest.mark.parametrize("cut", [0, CUT_ITEMS])
@pytest.mark.parametrize("capacity", [3, 80, 5000])
@pytest.mark.parametrize("policy", [DropOldestPolicy, DropNewestPolicy, BlockPolicy])
def test_threads_against_drains_moves_and_a_seal_nothing_lost_or_doubled(
    policy: Callable[[], BackpressurePolicy], capacity: int, cut: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was accepted is drained or evicted, exactly once; what was refused is nowhere; capacity holds."""
    monkeypatch.setattr(ring_module, "CUT_ITEMS", cut)
    bench = Bench(2, capacity, policy())
    producers = Producers(bench, 4)
    turns = 0
    ends = time.monotonic() + 0.5
    while time.monotonic() < ends:
        turns += 1
        for ring in bench.all_rings:
            if turns % 7 == 0:
                ring.sleep(20)
            ring.drain(100)
            assert min(ring.count, ring.capacity) <= capacity
        if turns % 20 == 0 and len(bench.all_rings) < 12:
            bench.add() if len(bench.rings) < 3 else bench.remove(min(bench.rings))
    bench.close()
    for ring in bench.rings.values():
        while not ring.finish():
            ring.drain(100)
    for ring in bench.left:
        ring.drain(1_000_000)
        assert ring.finish() or ring.count  # a producer may still be about to take its own back out
    producers.join()
    there = Counter(event.raw for ring in bench.all_rings for event in (*ring.went, *ring.gone))
    told = Counter(raw for mine in producers.accepted for raw in mine)
    assert sum(told.values()) > 100
    assert there == told
    assert not any(ring.count for ring in bench.all_rings)
    assert sum(ring.accepted for ring in bench.all_rings) == sum(told.values())
    for ring in bench.all_rings:
        by_thread: dict[bytes, int] = {}
        for event in ring.went:
            who, _, number = event.raw.partition(b":")
            if b":" not in number:
                assert by_thread.get(who, 0) < int(number)
                by_thread[who] = int(number)


def test_threads_at_a_full_ring_never_exceed_its_capacity() -> None:
    """Once everybody has had their say, no ring holds more than it may: exact, not about."""
    for _ in range(20):
        bench = Bench(1, 100, DropNewestPolicy())
        (ring,) = bench.all_rings
        threads = [
            threading.Thread(target=lambda: bench.producer.ingest_raw_many([b"%d" % n for n in range(60)]))  # noqa: B023
            for _ in range(5)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert ring.count == 100 == ring.accepted
        assert ring.rejected == 200
