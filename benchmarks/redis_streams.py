"""Redis Streams, next to `net-mesh` on the same server and to redis-py's own pipeline.

    python benchmarks/redis_streams.py [--rows PATTERN] [--rounds N] [--json]

A server without an append-only file is started for the rows (redis-server or valkey-server). Events
are 120 bytes of JSON, 1,000 distinct ones, over four shards. "write" is from the first ingest to the
end of a flush, with a turn of the loop behind each 1,024 events; "append" hands the adapter batches
that are ready; "read" is polling everything there is in pages of 1,000. What is compared stores and
returns the same events; emptying the server and opening are not timed.

To ingest 4,096 events takes the loop as long as Redis needs for the four batches of 256 that it has by
then, one a shard; a row of its own shows what that costs.

The server keeps its memory between the runs of a row, as one does that has been up for a while: after
a plain FLUSHALL it hands all of it back to the system, and then the next run's 20 MB are touched for
the first time again, some 5,000 page faults. A row named "memory handed back" measures just that.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import redis.asyncio
from harness import Row, json_payloads, main
from net import Net
from net_adapter_redis import RedisAdapter, RedisConfig

from netcore import BatchConfig, ConsumeRequest, EventBus, EventBusConfig
from netcore.contracts.adapter import Batch, ReadRequest
from netcore.events import StoredEvent
from netcore.testing.contract import adapter_context
from netcore.testing.servers import RedisServer

EVENTS = 100_000
SHARDS = 4
PAGE = 1_000
CHUNK = 1_024
DISTINCT = json_payloads(120)
PAYLOADS = [DISTINCT[index * 7919 % len(DISTINCT)] for index in range(EVENTS)]
TEXTS = [payload.decode() for payload in PAYLOADS]

_server: list[RedisServer] = []


@contextlib.contextmanager
def server() -> Iterator[RedisServer]:
    """Run a server for one row."""
    with RedisServer() as started:
        _server.append(started)
        try:
            yield started
        finally:
            _server.clear()


def empty(*, hand_back: bool = False) -> str:
    """Empty the server, with or without handing its memory back to the system; return its URL."""
    if hand_back:
        _server[0].call("FLUSHALL")
        return _server[0].url
    _server[0].call("FLUSHALL", "ASYNC")
    deadline = time.monotonic() + 30
    while b"lazyfree_pending_objects:0" not in _server[0].call("INFO", "memory"):
        assert time.monotonic() < deadline, "the server does not get done with emptying itself"
        time.sleep(0.001)
    return _server[0].url


def config(layout: str, batch: int) -> EventBusConfig:
    """Return a bus's settings."""
    adapter = RedisConfig(url=_server[0].url, layout=layout)  # type: ignore[arg-type]
    return EventBusConfig(shards=SHARDS, adapter=adapter, batch=BatchConfig(max_events=batch))


def write(layout: str, batch: int, *, chunk: int = CHUNK, hand_back: bool = False) -> Callable[[], float]:
    """Ingest everything, a chunk a turn of the loop, and flush."""

    async def run() -> float:
        empty(hand_back=hand_back)
        async with EventBus(config(layout, batch)) as bus:
            began = time.perf_counter()
            accepted = 0
            for first in range(0, EVENTS, chunk):
                accepted += bus.ingest_raw_many(PAYLOADS[first : first + chunk]).accepted
                await asyncio.sleep(0)
            await bus.flush()
            took = time.perf_counter() - began
        assert accepted == EVENTS
        return took

    return lambda: asyncio.run(run())


def append(layout: str, batch: int) -> Callable[[], float]:
    """Hand the adapter its batches, one at a time a shard, as dispatch does: no rings."""

    async def run() -> float:
        empty()
        adapter = RedisAdapter(config(layout, batch).adapter)  # type: ignore[arg-type]
        await adapter.open(adapter_context())
        producer, now = secrets.token_hex(16), time.time_ns()
        batches: list[list[Batch]] = []
        for shard in range(SHARDS):
            mine = PAYLOADS[shard::SHARDS]
            batches.append(
                [
                    Batch(
                        producer=producer,
                        shard=shard,
                        first_seq=first,
                        events=[
                            StoredEvent("", shard, now + first + index, raw)
                            for index, raw in enumerate(mine[first : first + batch])
                        ],
                    )
                    for first in range(0, len(mine), batch)
                ]
            )

        async def one(mine: list[Batch]) -> None:
            for part in mine:
                await adapter.append(part)

        began = time.perf_counter()
        await asyncio.gather(*(one(mine) for mine in batches))
        took = time.perf_counter() - began
        await adapter.close()
        return took

    return lambda: asyncio.run(run())


def write_net_mesh() -> float:
    """Ingest everything and shut down, with net-mesh: its flush returns before all is stored."""
    bus = Net(num_shards=SHARDS, redis_url=empty(), ring_buffer_capacity=1 << 17)
    began = time.perf_counter()
    accepted = bus.ingest_raw_batch(TEXTS)
    bus.shutdown()
    took = time.perf_counter() - began
    assert accepted == EVENTS
    assert sum(_server[0].call("XLEN", f"net:shard:{shard}") for shard in range(SHARDS)) == EVENTS
    return took


def write_redis_py(batch: int, *, hand_back: bool = False) -> Callable[[], float]:
    """Add every event with redis-py, `batch` XADDs a transaction: entries as the adapter writes them."""

    async def run() -> float:
        client = redis.asyncio.Redis.from_url(empty(hand_back=hand_back))
        producer = secrets.token_hex(16)
        await client.ping()
        began = time.perf_counter()
        for first in range(0, EVENTS, batch):
            async with client.pipeline(transaction=True) as pipeline:
                shard = first // batch % SHARDS
                key, source = f"net:shard:{shard}", f"{producer}:{shard}:{first}"
                for index, payload in enumerate(PAYLOADS[first : first + batch]):
                    ts = 1_764_000_000_000_000_000 + first + index
                    envelope = b'{"r":%b,"t":%d,"s":%d}' % (payload, ts, shard)
                    pipeline.xadd(key, {"d": envelope, "dedup_id": f"{source}:{index}"})
                await pipeline.execute()
        took = time.perf_counter() - began
        await client.aclose()
        return took

    return lambda: asyncio.run(run())


def filled(*layouts: str) -> Callable[[], contextlib.AbstractContextManager[object]]:
    """Return a context: a server that holds all events, in each of the layouts under its name."""

    @contextlib.contextmanager
    def context() -> Iterator[None]:
        with server() as started:
            for layout in layouts:
                asyncio.run(fill(started.url, layout))
            yield

    return context


async def fill(url: str, layout: str) -> None:
    """Write all events under the layout's name as prefix."""
    adapter = RedisConfig(url=url, layout=layout, prefix=layout)  # type: ignore[arg-type]
    async with EventBus(EventBusConfig(shards=SHARDS, adapter=adapter)) as bus:
        bus.ingest_raw_many(PAYLOADS)
        await bus.flush()


def poll(prefix: str, ordering: str) -> Callable[[], float]:
    """Poll everything through a bus."""

    async def run() -> float:
        adapter = RedisConfig(url=_server[0].url, prefix=prefix)
        async with EventBus(EventBusConfig(shards=SHARDS, adapter=adapter)) as bus:
            began = time.perf_counter()
            request: Any = ConsumeRequest(PAGE, start="earliest", ordering=ordering)
            count, more = 0, True
            while more:
                page = await bus.poll(request)
                count, more = count + len(page.events), page.has_more
                request = request.after(page.cursor)
            took = time.perf_counter() - began
        assert count == EVENTS
        return took

    return lambda: asyncio.run(run())


def read(prefix: str) -> Callable[[], float]:
    """Read everything from the adapter, all shards in one round trip a page: no merging."""

    async def run() -> float:
        adapter = RedisAdapter(RedisConfig(url=_server[0].url, prefix=prefix))
        await adapter.open(adapter_context())
        began = time.perf_counter()
        requests = [ReadRequest(stream, None, PAGE) for stream in await adapter.streams()]
        count = 0
        while requests:
            pages = await adapter.read_many(requests)
            following = []
            for request, page in zip(requests, pages, strict=True):
                assert not isinstance(page, Exception)
                count += len(page.events)
                if page.has_more:
                    following.append(ReadRequest(request.stream, page.position, PAGE))
            requests = following
        took = time.perf_counter() - began
        await adapter.close()
        assert count == EVENTS
        return took

    return lambda: asyncio.run(run())


def poll_net_mesh(prefix: str) -> Callable[[], float]:
    """Poll everything with net-mesh."""

    def run() -> float:
        bus = Net(num_shards=SHARDS, redis_url=_server[0].url, redis_prefix=prefix)
        began = time.perf_counter()
        page = bus.poll(PAGE)
        count = len(page.events)
        while page.has_more:
            page = bus.poll(PAGE, cursor=page.next_id)
            count += len(page.events)
        took = time.perf_counter() - began
        bus.shutdown()
        assert count == EVENTS
        return took

    return run


async def _delays(count: int) -> list[float]:
    """Return seconds from before an ingest in one bus to the event's arrival in another's poll."""
    settings = config("event", 256)
    quick = EventBusConfig(shards=SHARDS, adapter=settings.adapter, batch=BatchConfig(max_delay_ms=0))
    found: list[float] = []
    async with EventBus(quick) as writing, EventBus(quick) as reading:
        page = await reading.poll(ConsumeRequest(10))
        for _ in range(count):
            waiting = asyncio.ensure_future(reading.poll(ConsumeRequest(10, cursor=page.cursor), wait=5))
            await asyncio.sleep(0.01)
            began = time.perf_counter()
            writing.ingest_raw(DISTINCT[0])
            page = await waiting
            found.append(time.perf_counter() - began)
    return found


def latency() -> None:
    """Print how soon a long poll has an event that another bus ingested."""
    with server():
        empty()
        delays = sorted(asyncio.run(_delays(200)))
    print(f"ingest to long poll: median {delays[100] * 1e3:.2f} ms, p99 {delays[198] * 1e3:.2f} ms")


def written(name: str, project: Callable[[], float], rival: Callable[[], float], least: float | None) -> Row:
    """Return a row on an empty server."""
    return Row(name, project, rival, EVENTS, least, context=server)


def polled(name: str, project: Callable[[], float], least: float | None) -> Row:
    """Return a row that reads, next to net-mesh reading the event layout."""
    context = filled("event", "packed")
    return Row(f"read/{name} vs net-mesh", project, poll_net_mesh("event"), EVENTS, least, context=context)


def rows() -> list[Row]:
    """Return the rows; those with a required ratio carry the budget."""
    mesh = write_net_mesh
    return [
        written("write/event 1024 vs net-mesh", write("event", 1024), mesh, 0.7),
        written("write/event 256 vs net-mesh", write("event", 256), mesh, None),
        written("write/packed 1024 vs net-mesh", write("packed", 1024), mesh, 2.0),
        written("write/event 256 vs redis-py", write("event", 256), write_redis_py(256), 8.0),
        written(
            "write/event 256 vs redis-py, 4,096 a turn",
            write("event", 256, chunk=4_096),
            write_redis_py(256),
            None,
        ),
        written(
            "write/event 256 vs redis-py, memory handed back",
            write("event", 256, hand_back=True),
            write_redis_py(256, hand_back=True),
            None,
        ),
        written("append/event 1024 vs net-mesh", append("event", 1024), mesh, None),
        written("append/event 256 vs net-mesh", append("event", 256), mesh, None),
        written("append/event 256 vs redis-py", append("event", 256), write_redis_py(256), 8.0),
        written("append/packed 1024 vs net-mesh", append("packed", 1024), mesh, None),
        polled("event", poll("event", "causal"), 1.6),
        polled("event by shard", poll("event", "shard"), None),
        polled("event, adapter", read("event"), None),
        polled("packed", poll("packed", "causal"), 5.0),
        polled("packed, adapter", read("packed"), None),
    ]


if __name__ == "__main__":
    status = main(rows())
    if not sys.argv[1:]:
        latency()
    sys.exit(status)
