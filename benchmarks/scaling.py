"""What shards cost: ingest with few and many of them, and the stall while one is added."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from harness import Row, json_payloads, main

from netcore import EventBus, EventBusConfig

EVENTS = 200_000
FEW = 4
STALL_S = 0.020
STEPS = 40


def ingest_on(shards: int, slice_: int = EVENTS) -> Callable[[], float]:
    """Time EVENTS single ingests on a bus with so many shards, drained after each slice.

    In one slice, the rings hold them all. In several, what counts is the same calls, but each
    slice meets sleeping workers and wakes them all: that is in the figure, the draining is not.
    """
    payloads = json_payloads(120, count=4096)
    events = (payloads * (EVENTS // len(payloads) + 1))[:EVENTS]

    async def run() -> float:
        async with EventBus(EventBusConfig(shards=shards, ring_capacity=1 << 18, adapter="noop")) as bus:
            ingest = bus.ingest_raw
            seconds = 0.0
            for first in range(0, EVENTS, slice_):
                part = events[first : first + slice_]
                start = time.perf_counter()
                for event in part:
                    ingest(event)
                seconds += time.perf_counter() - start
                if slice_ < EVENTS:
                    await bus.flush()
            assert bus.stats().ingested == EVENTS
        return seconds

    return lambda: asyncio.run(run())


def stall_while_adding() -> float:
    """Return the 99th percentile of the longest pause of a producer around each of many additions.

    A thread ingests flat out; for each step, the longest gap between two of its ingests that
    overlaps the step counts.
    """
    marks: list[tuple[float, float]] = []
    gaps: list[tuple[float, float]] = []
    stop = threading.Event()

    def produce(bus: Any) -> None:
        ingest, clock = bus.ingest_raw, time.perf_counter
        payloads = json_payloads(120)
        last = clock()
        while not stop.is_set():
            for payload in payloads:
                ingest(payload)
                now = clock()
                if now - last > 0.0005:
                    gaps.append((last, now))
                last = now

    async def run() -> None:
        async with EventBus(EventBusConfig(shards=FEW, adapter="noop")) as bus:
            thread = threading.Thread(target=produce, args=(bus,))
            thread.start()
            try:
                for _ in range(STEPS):
                    await asyncio.sleep(0.02)
                    start = time.perf_counter()
                    (added,) = await bus.add_shards(1)
                    marks.append((start, time.perf_counter()))
                    await bus.remove_shards([added])
            finally:
                stop.set()
                await asyncio.to_thread(thread.join)

    asyncio.run(run())
    stalls = sorted(
        max((end - begin for begin, end in gaps if end > first and begin < last), default=0.0)
        for first, last in marks
    )
    return max(stalls[min(len(stalls) - 1, int(len(stalls) * 0.99))], 1e-9)


ROWS = [
    *(
        Row(f"ingest_raw on {shards} shards : {FEW}", ingest_on(shards), ingest_on(FEW), EVENTS, 0.85)
        for shards in (1, 16, 64, 256)
    ),
    *(
        Row(
            f"the same, drained every 20,000, on {shards} : {FEW}",
            ingest_on(shards, 20_000),
            ingest_on(FEW, 20_000),
            EVENTS,
            0.85,
        )
        for shards in (1, 16, 64, 256)
    ),
    # The rival is the limit itself: a ratio of 1 or more says that the stall stays below it.
    Row("stall while adding, p99 : 20 ms", stall_while_adding, lambda: STALL_S, 1, 1.0),
]

if __name__ == "__main__":
    sys.exit(main(ROWS))
