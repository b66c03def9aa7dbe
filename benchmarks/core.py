"""The in-process rows: ingest, dispatch and polls beside net-mesh and `asyncio.Queue`.

net-mesh (PyPI: a Rust core under Python bindings) is optional: without it its rows are left out.
At least 1,000 distinct payloads, spread over all shards; nothing memoised.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

from harness import Row, json_payloads, main

from netcore import ConsumeRequest, EventBus, EventBusConfig
from netcore.builtin.memory import MemoryConfig

try:
    from net import Net  # net-mesh
except ImportError:
    Net = None

EVENTS = 200_000
SHARDS = EventBusConfig().shards  # the default on this machine, for both
CAPACITY = 131_072  # room for all, so that nobody drops


def repeated(payloads: list[Any]) -> list[Any]:
    """Return EVENTS payloads, in turn."""
    return (payloads * (EVENTS // len(payloads) + 1))[:EVENTS]


def ours(work: Callable[[EventBus], Any], adapter: str = "noop") -> Callable[[], float]:
    """Time `work` (maybe a coroutine) on an open bus; opening and shutting down are not counted."""

    async def run() -> float:
        bus = await EventBus.open(EventBusConfig(shards=SHARDS, ring_capacity=CAPACITY, adapter=adapter))
        start = time.perf_counter()
        pending = work(bus)
        if pending is not None:
            await pending
        seconds = time.perf_counter() - start
        report = await bus.shutdown()
        assert report.ingested == EVENTS, report
        assert report.evicted == report.lost == 0, report
        return seconds

    return lambda: asyncio.run(run())


def theirs(work: Callable[[Any], None], *, with_shutdown: bool = False) -> Callable[[], float]:
    """Time `work` on an open net-mesh bus."""

    def run() -> float:
        bus = Net(num_shards=SHARDS, ring_buffer_capacity=CAPACITY)
        start = time.perf_counter()
        work(bus)
        if with_shutdown:
            bus.shutdown()
        seconds = time.perf_counter() - start
        if not with_shutdown:
            bus.shutdown()
        return seconds

    return run


def one_by_one(events: list[Any], method: str) -> Callable[[Any], None]:
    """Call `bus.method(event)` for each event."""

    def work(bus: Any) -> None:
        call = getattr(bus, method)
        for event in events:
            call(event)

    return work


def all_at_once(events: list[Any], method: str) -> Callable[[Any], None]:
    """Call `bus.method(events)` once."""

    def work(bus: Any) -> None:
        getattr(bus, method)(events)

    return work


def ingest_and_flush(events: list[bytes]) -> Callable[[EventBus], Any]:
    """Ingest in slices, letting the workers run in between, as a producer on the loop does."""

    async def work(bus: EventBus) -> None:
        ingest = bus.ingest_raw
        for first in range(0, len(events), 5000):
            for event in events[first : first + 5000]:
                ingest(event)
            await asyncio.sleep(0)
        await bus.flush()

    return work


def whole_trip(events: list[bytes]) -> Callable[[EventBus], Any]:
    """Ingest, dispatch and poll everything, producer and consumer taking turns on one loop."""

    async def work(bus: EventBus) -> None:
        request = ConsumeRequest(5000, start="earliest")
        seen = 0
        for first in range(0, len(events), 5000):
            bus.ingest_raw_many(events[first : first + 5000])
            await asyncio.sleep(0)
            page = await bus.poll(request)
            seen += len(page.events)
            request = request.after(page.cursor)
        await bus.flush()
        while seen < len(events):
            page = await bus.poll(request, wait=5)
            seen += len(page.events)
            request = request.after(page.cursor)

    return work


def queue_trip(events: list[bytes]) -> Callable[[], float]:
    """Put into and get out of a bounded `asyncio.Queue`, two tasks on one loop."""

    async def run() -> float:
        queue: asyncio.Queue[bytes] = asyncio.Queue(maxsize=CAPACITY)
        start = time.perf_counter()

        async def produce() -> None:
            for event in events:
                await queue.put(event)

        producer = asyncio.create_task(produce())
        for _ in range(len(events)):
            await queue.get()
        await producer
        return time.perf_counter() - start

    return lambda: asyncio.run(run())


PAGES = 200


def pages_of(retained: int) -> Callable[[], float]:
    """Time PAGES polls of 1,000 events from somewhere in a store that keeps so many."""

    async def run() -> float:
        payload = json_payloads(120)
        keep = MemoryConfig(max_events=retained)
        async with EventBus(EventBusConfig(shards=SHARDS, ring_capacity=CAPACITY, adapter=keep)) as bus:
            for first in range(0, retained, 10_000):
                bus.ingest_raw_many([payload[(first + n) % 1000] for n in range(min(10_000, retained))])
                await bus.flush()
            start = await bus.poll(ConsumeRequest(min(retained // 4, 100_000), start="earliest"))
            request = ConsumeRequest(1000, cursor=start.cursor)
            began = time.perf_counter()
            for _ in range(PAGES):
                page = await bus.poll(request)
                assert len(page.events) == 1000
            return time.perf_counter() - began

    return lambda: asyncio.run(run())


def ringed_bytes() -> float:
    """Return the bytes that a ringed event of 120 bytes costs beyond its payload."""

    async def run() -> float:
        count = 100_000
        payloads = [b"%0120d" % n for n in range(count)]
        async with EventBus(EventBusConfig(shards=2, ring_capacity=count, adapter="noop")) as bus:
            tracemalloc.start()
            before = tracemalloc.get_traced_memory()[0]
            for payload in payloads:
                bus.ingest_raw(payload)
            # The payload's own object is the caller's; a bytes object has 33 bytes beside its bytes.
            cost = (tracemalloc.get_traced_memory()[0] - before) / count + 33
            tracemalloc.stop()
            return cost

    return asyncio.run(run())


def start_up(*arguments: str) -> Callable[[], float]:
    """Return a function that times an interpreter with these arguments, above a bare one."""

    def run() -> float:
        def seconds(*command: str) -> float:
            best = 1e9
            for _ in range(5):
                start = time.perf_counter()
                subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
                best = min(best, time.perf_counter() - start)
            return best

        return seconds(*arguments) - seconds("-c", "pass")

    return run


def limits() -> list[Row]:
    """List rows whose rival is a limit: a ratio of 1 or more says that it is kept."""
    return [
        Row(
            "page of 1,000 of 1,000,000 : of 10,000", pages_of(1_000_000), pages_of(10_000), PAGES * 1000, 0.8
        ),
        Row("bytes a ringed event : payload + 160", ringed_bytes, lambda: 160.0, 1, 1.0),
        # The bus, not the package alone, which loads its names when they are used.
        Row("import netcore : 120 ms", start_up("-c", "from netcore import EventBus"), lambda: 0.120, 1, 1.0),
        Row("netcore --help : 250 ms", start_up("-m", "netcore", "--help"), lambda: 0.250, 1, 1.0),
    ]


def rows() -> list[Row]:
    """List the rows; those beside net-mesh only where it is installed."""
    made: list[Row] = []
    raw = repeated(json_payloads(120))
    if Net is not None:
        for size, required in ((9, 0.7), (120, 0.9), (600, 1.2)):
            events = repeated(json_payloads(size))
            texts = [event.decode() for event in events]
            made.append(
                Row(
                    f"ingest_raw/{size} B : net-mesh",
                    ours(one_by_one(events, "ingest_raw")),
                    theirs(one_by_one(texts, "ingest_raw")),
                    EVENTS,
                    required,
                )
            )
        texts = [event.decode() for event in raw]
        dicts = repeated([{"token": f"t{n}", "index": n, "ok": True, "text": "x" * 60} for n in range(1000)])
        made += [
            Row(
                "ingest_raw + flush, noop : net-mesh",
                ours(ingest_and_flush(raw)),
                theirs(one_by_one(texts, "ingest_raw"), with_shutdown=True),
                EVENTS,
                0.8,
            ),
            Row(
                "ingest_raw_many : net-mesh",
                ours(all_at_once(raw, "ingest_raw_many")),
                theirs(all_at_once(texts, "ingest_raw_batch")),
                EVENTS,
                1.3,
            ),
            Row(
                "ingest dict : net-mesh",
                ours(one_by_one(dicts, "ingest")),
                theirs(one_by_one(dicts, "ingest")),
                EVENTS,
                4.0,
            ),
        ]
    made.append(
        Row("ingest, dispatch, poll : Queue", ours(whole_trip(raw), "memory"), queue_trip(raw), EVENTS, 0.8)
    )
    return made


if __name__ == "__main__":
    sys.exit(main(rows() + limits()))
