"""End to end: what is ingested into one bus is polled from another, through outages."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from net_adapter_jetstream import JetStreamConfig

from netcore import BatchConfig, ConsumeRequest, EventBus, EventBusConfig, TransientAdapterError
from netcore.testing.servers import NatsServer

pytestmark = pytest.mark.anyio

Until = Callable[[Callable[[], bool]], Awaitable[None]]


def config(server: NatsServer, prefix: str, **settings: Any) -> EventBusConfig:
    """Return a bus's settings: four shards, nothing evicted."""
    adapter = JetStreamConfig(url=server.url, prefix=prefix, timeout_ms=2000, **settings)
    return EventBusConfig(
        shards=4, backpressure="block", adapter=adapter, batch=BatchConfig(max_events=500, max_delay_ms=2)
    )


async def collect(bus: EventBus, count: int, cursor: str | None = None) -> list[Any]:
    """Poll until `count` events came, from a cursor or from the beginning."""
    request = ConsumeRequest(500, start="earliest", cursor=cursor)
    found: list[Any] = []
    async with asyncio.timeout(60):
        while len(found) < count:
            try:
                page = await bus.poll(request, wait=1.0)
            except TransientAdapterError:  # the chain knows no stream yet, and they can't be listed
                await asyncio.sleep(0.01)
                continue
            found += [event.decode() for event in page.events]
            assert page.gaps == []
            request = request.after(page.cursor)
    return found


@pytest.mark.parametrize("layout", ["event", "packed"])
async def test_events_reach_another_bus_in_causal_order(nats: NatsServer, prefix: str, layout: str) -> None:
    """All events, once, sorted by the time of their ingestion."""
    async with EventBus(config(nats, prefix, layout=layout)) as one, EventBus(config(nats, prefix)) as two:
        for index in range(5000):
            one.ingest({"n": index})
        await one.flush(timeout=30)
        assert [event["n"] for event in await collect(two, 5000)] == list(range(5000))
        stats = one.stats()
        assert (stats.dispatched, stats.dropped, stats.dead_lettered) == (5000, 0, 0)


async def test_bus_rides_out_a_crash_of_the_server(own_nats: NatsServer, prefix: str) -> None:
    """Producer and consumer go on over a kill and a restart; each event arrives once."""
    async with (
        EventBus(config(own_nats, prefix)) as one,
        EventBus(config(own_nats, prefix)) as two,
    ):
        begun = await two.poll(ConsumeRequest(1, start="earliest"))
        collecting = asyncio.create_task(collect(two, 6000, begun.cursor))
        for index in range(6000):
            await one.put({"n": index}, key=str(index % 40))
            if index % 100 == 0:
                await asyncio.sleep(0.001)
            if index == 2000:
                own_nats.kill()
            if index == 4000:
                await asyncio.to_thread(own_nats.restart)
        await one.flush(timeout=30)
        found = [event["n"] for event in await collecting]
        assert sorted(found) == list(range(6000))
        for key in range(40):
            mine = [n for n in found if n % 40 == key]
            assert mine == sorted(mine)
        assert one.stats().retries > 0


async def test_oversized_event_is_dead_lettered_alone(nats: NatsServer, prefix: str, tmp_path: Path) -> None:
    """Its batch's other events are stored, in order."""
    file = tmp_path / "dead.ndjson"
    settings = config(nats, prefix)
    made = EventBusConfig(shards=1, adapter=settings.adapter, dead_letters=str(file), backpressure="block")
    poison = b'"' + b"x" * (1 << 20) + b'"'
    async with EventBus(made) as bus:
        for index in range(100):
            bus.ingest({"n": index})
            if index == 42:
                bus.ingest_raw(poison)
        await bus.flush(timeout=30)
        found = await collect(bus, 100)
        assert [event["n"] for event in found] == list(range(100))
        assert bus.stats().dead_lettered == 1
    (line,) = file.read_text().splitlines()
    assert base64.b64decode(json.loads(line)["payload_base64"]) == poison


async def test_long_poll_is_woken_by_another_process(nats: NatsServer, prefix: str) -> None:
    """A consumer that waits gets the event as soon as it is stored."""
    async with EventBus(config(nats, prefix)) as one, EventBus(config(nats, prefix)) as two:
        first = await two.poll(ConsumeRequest(10))
        waiting = asyncio.create_task(two.poll(ConsumeRequest(10, cursor=first.cursor), wait=30.0))
        await asyncio.sleep(0.05)
        one.ingest({"n": 1})
        async with asyncio.timeout(10):
            page = await waiting
        assert [event.decode() for event in page.events] == [{"n": 1}]


async def test_full_stream_holds_the_shard_until_mended(
    own_nats: NatsServer, prefix: str, until: Until
) -> None:
    """Refused is not lost: the shard keeps its batch and shows why; room made, it is stored."""
    import nats as client_library

    client = await client_library.connect(own_nats.url)
    name = f"{prefix}_shard_0"

    async def api(verb: str, **body: Any) -> dict[str, Any]:
        data = json.dumps(body).encode() if body else b""
        reply = await client.request(f"$JS.API.STREAM.{verb}.{name}", data, timeout=5)
        answer: dict[str, Any] = json.loads(reply.data)
        return answer

    await api("CREATE", name=name, subjects=[f"{prefix}.shard.0"], max_msgs=5, discard="new")
    settings = config(own_nats, prefix)
    made = EventBusConfig(shards=1, adapter=settings.adapter, backpressure="block")
    async with EventBus(made) as bus:
        for index in range(8):
            bus.ingest({"n": index})
        await until(lambda: "stream is full" in str(bus.stats().shards[0].last_error))
        found = (await api("INFO"))["config"]
        await api("UPDATE", **(found | {"max_msgs": -1}))
        await bus.flush(timeout=20)
        assert [event["n"] for event in await collect(bus, 8)] == list(range(8))
        assert bus.stats().dead_lettered == 0
    await client.close()
