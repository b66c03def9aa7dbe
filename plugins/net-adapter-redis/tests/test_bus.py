"""Through a whole bus: outages, accounts, several processes, and a stream shared with `net-mesh`."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import textwrap
import time
from typing import Any

import pytest
from net_adapter_redis import RedisAdapter, RedisConfig

from netcore import BatchConfig, ConsumeRequest, EventBus, EventBusConfig
from netcore.contracts.adapter import Gap, Stream
from netcore.errors import CursorError
from netcore.events import StoredEvent
from netcore.testing.contract import Writer, adapter_context, drain
from netcore.testing.servers import RedisServer

pytestmark = pytest.mark.anyio


def settings(url: str, *, shards: int = 3, **adapter: Any) -> EventBusConfig:
    """Return a bus's settings."""
    return EventBusConfig(
        shards=shards,
        adapter={"kind": "redis", "url": url, **adapter},
        batch=BatchConfig(max_events=64, max_delay_ms=1),
    )


async def poll_all(bus: EventBus, count: int, request: Any = None) -> tuple[list[StoredEvent], Any]:
    """Poll until `count` events came, and once more; return them and the last page."""
    request = request or ConsumeRequest(500, start="earliest")
    events: list[StoredEvent] = []
    async with asyncio.timeout(60):
        while True:
            page = await bus.poll(request, wait=0.2)
            events += page.events
            request = request.after(page.cursor)
            if len(events) >= count and not page.events:
                return events, page


@pytest.mark.parametrize("layout", ["event", "packed"])
async def test_bus_what_was_ingested_is_polled_once_in_order(server: RedisServer, layout: str) -> None:
    """A producer's order comes back over all shards, by another bus too."""
    async with (
        EventBus(settings(server.url, layout=layout)) as bus,
        EventBus(settings(server.url, shards=1)) as other,
    ):
        for index in range(3_000):
            bus.ingest({"n": index})
        await bus.flush()
        for reader in (bus, other):
            events, _ = await poll_all(reader, 3_000)
            assert [event.decode()["n"] for event in events] == list(range(3_000))
        assert bus.stats().adapter["events"] == 3_000


async def test_bus_long_poll_hears_of_another_process_at_once(server: RedisServer) -> None:
    """The wait ends with the event, not with a timer."""
    async with EventBus(settings(server.url)) as writing, EventBus(settings(server.url)) as reading:
        page = await reading.poll(ConsumeRequest(10))
        for index in range(5):
            waiting = asyncio.ensure_future(reading.poll(ConsumeRequest(10, cursor=page.cursor), wait=20))
            await asyncio.sleep(0.05)
            began = time.monotonic()
            writing.ingest({"n": index})
            page = await waiting
            assert [event.decode()["n"] for event in page.events] == [index]
            assert time.monotonic() - began < 5


@pytest.mark.parametrize("layout", ["event", "packed"])
@pytest.mark.parametrize("kills", [2, pytest.param(15, marks=pytest.mark.faults)])
async def test_bus_server_killed_under_fire_loses_and_repeats_nothing(layout: str, kills: int) -> None:
    """Everything accepted is stored exactly once, in each producer's order, over `kill -9` and restart."""
    with RedisServer(appendonly=True) as server:
        async with EventBus(settings(server.url, layout=layout, timeout_ms=2_000)) as bus:
            count = 0
            for _ in range(kills):
                restarting = asyncio.ensure_future(asyncio.to_thread(server.restart))
                pauses = 0
                while not restarting.done() or pauses < 30:
                    for _ in range(20):
                        bus.ingest({"n": count})
                        count += 1
                    pauses += 1
                    await asyncio.sleep(0.002)
                await restarting
            await bus.flush(timeout=30)
            events, page = await poll_all(bus, count)
            assert [event.decode()["n"] for event in events] == list(range(count))
            assert not page.gaps
            stats = bus.stats()
            assert (stats.dead_lettered, stats.evicted, stats.adapter["lost_by_backend"]) == (0, 0, 0)
            assert stats.retries > 0


async def test_bus_frozen_server_repeats_nothing(server: RedisServer) -> None:
    """SIGSTOP for longer than the timeout, then SIGCONT: late attempts and retries add up to once."""
    async with EventBus(settings(server.url, timeout_ms=100)) as bus:
        for index in range(200):
            bus.ingest({"n": index})
        await bus.flush()
        server.pause()
        for index in range(200, 1_000):
            bus.ingest({"n": index})
        async with asyncio.timeout(20):
            while bus.stats().retries < 6:  # a counter, not an event
                await asyncio.sleep(0.02)
        server.resume()
        await bus.flush(timeout=30)
        events, _ = await poll_all(bus, 1_000)
        assert [event.decode()["n"] for event in events] == list(range(1_000))


async def test_bus_password_changed_and_restored_loses_nothing() -> None:
    """A refusal keeps the batch and shows its cause; nothing is dead-lettered."""
    with RedisServer(password="one") as server:
        async with EventBus(settings(server.url)) as bus:
            bus.ingest({"n": 0})
            await bus.flush()
            server.call("CONFIG", "SET", "requirepass", "two")
            server.password = "two"
            server.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            for index in range(1, 100):
                bus.ingest({"n": index})
            async with asyncio.timeout(20):
                while not any("invalid username" in shard.last_error for shard in bus.stats().shards):
                    await asyncio.sleep(0.02)
            server.call("CONFIG", "SET", "requirepass", "one")
            await bus.flush(timeout=30)
            events, _ = await poll_all(bus, 100)
            assert [event.decode()["n"] for event in events] == list(range(100))
            assert bus.stats().dead_lettered == bus.stats().lost == 0


async def test_bus_consumer_survives_a_flushed_server(server: RedisServer) -> None:
    """FLUSHALL: each stream that was read reports one gap of unknown size, and polling goes on."""
    async with EventBus(settings(server.url, shards=2)) as bus:
        for index in range(200):
            bus.ingest({"n": index})
        await bus.flush()
        _, page = await poll_all(bus, 200)
        server.call("FLUSHALL")
        for index in range(200, 300):
            bus.ingest({"n": index})
        await bus.flush()
        request = ConsumeRequest(500, cursor=page.cursor)
        events: list[StoredEvent] = []
        gaps: list[Gap] = []
        async with asyncio.timeout(20):
            while len(events) < 100:
                page = await bus.poll(request, wait=0.2)
                events += page.events
                gaps += page.gaps
                request = request.after(page.cursor)
        assert [event.decode()["n"] for event in events] == list(range(200, 300))
        assert sorted((gap.shard, gap.missed) for gap in gaps) == [(0, None), (1, None)]
        assert bus.stats().adapter["resets"] == 2
        assert bus.stats().adapter["lost_by_backend"] == 200


async def test_bus_slow_consumer_of_trimmed_streams_adds_up(server: RedisServer) -> None:
    """What it got and what its gaps say are together what was ingested."""
    async with EventBus(settings(server.url, shards=2, max_events=300)) as bus:
        request: Any = ConsumeRequest(50, start="earliest")
        got = missed = count = 0
        page = await bus.poll(request)
        for _ in range(12):
            request = request.after(page.cursor)
            for _ in range(200):
                bus.ingest({"n": count})
                count += 1
            await bus.flush()
            page = await bus.poll(request)
            got += len(page.events)
            missed += sum(gap.missed or 0 for gap in page.gaps)
        while page.events:
            request = request.after(page.cursor)
            page = await bus.poll(request)
            got += len(page.events)
            missed += sum(gap.missed or 0 for gap in page.gaps)
        assert got + missed == count


async def test_bus_cursor_of_another_prefix_is_refused(server: RedisServer) -> None:
    """A cursor belongs to a namespace, not to an address."""
    async with EventBus(settings(server.url)) as bus, EventBus(settings(server.url, prefix="other")) as other:
        page = await bus.poll(ConsumeRequest(10))
        with pytest.raises(CursorError):
            await other.poll(ConsumeRequest(10, cursor=page.cursor))


PRODUCER = """
    import asyncio, sys
    from netcore import BatchConfig, EventBus, EventBusConfig

    async def main(url, name, count):
        config = EventBusConfig(shards=3, adapter={"kind": "redis", "url": url}, batch=BatchConfig(max_events=50))
        async with EventBus(config) as bus:
            for index in range(count):
                bus.ingest({"from": name, "n": index}, key=f"{name}{index % 7}")
                if index % 100 == 0:
                    await asyncio.sleep(0.005)

    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""
CONSUMER = """
    import asyncio, json, sys
    from netcore import ConsumeRequest, EventBus, EventBusConfig

    async def main(url, count):
        seen = {}
        async with EventBus(EventBusConfig(shards=1, adapter={"kind": "redis", "url": url})) as bus:
            request, total = ConsumeRequest(200, start="earliest"), 0
            while total < count:
                page = await bus.poll(request, wait=1.0)
                request = request.after(page.cursor)
                total += len(page.events)
                for event in page.events:
                    found = event.decode()
                    seen.setdefault(f"{found['from']}{found['n'] % 7}", []).append(found["n"])
        print(json.dumps(seen))

    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


async def test_bus_two_producers_and_two_consumers_in_four_processes(server: RedisServer) -> None:
    """Each consumer gets each event once, and each key's events in order."""
    count = 2_000

    def start(code: str, *args: object) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", textwrap.dedent(code), server.url, *map(str, args)]
        return subprocess.Popen(command, stdout=subprocess.PIPE)

    consumers = [start(CONSUMER, 2 * count) for _ in range(2)]
    producers = [start(PRODUCER, name, count) for name in ("a", "b")]
    try:
        outputs = [await asyncio.to_thread(process.communicate, timeout=40) for process in consumers]
        for process in producers:
            await asyncio.to_thread(process.communicate, timeout=60)
    finally:
        for process in [*consumers, *producers]:
            process.kill()
            process.communicate()
    expected = {f"{name}{key}": list(range(key, count, 7)) for name in ("a", "b") for key in range(7)}
    for output, _ in outputs:
        assert json.loads(output) == expected


def _net() -> Any:
    """Return net-mesh's bus, or skip where there is no wheel."""
    net = pytest.importorskip("net", reason="no net-mesh wheel for this Python or machine")
    if not hasattr(net, "RedisStreamDedup"):
        pytest.skip("this net-mesh was built without Redis")
    return net.Net


async def test_net_mesh_reads_what_netcore_wrote(server: RedisServer) -> None:
    """One entry an event: the other package polls it like its own."""
    async with EventBus(settings(server.url)) as bus:
        for index in range(500):
            bus.ingest({"n": index})
        await bus.flush()

    def read() -> list[int]:
        other = _net()(num_shards=3, redis_url=server.url)
        found, page = [], other.poll(100)
        found += [json.loads(event.raw)["n"] for event in page.events]
        while page.has_more:
            page = other.poll(100, cursor=page.next_id)
            found += [json.loads(event.raw)["n"] for event in page.events]
        other.shutdown()
        return found

    assert sorted(await asyncio.to_thread(read)) == list(range(500))


async def test_netcore_reads_what_net_mesh_wrote_into_the_same_streams(server: RedisServer) -> None:
    """Byte for byte, at the time the server stored it, beside events of its own; gaps stay truthful."""

    def write(start: int) -> None:
        other = _net()(num_shards=2, redis_url=server.url)
        for index in range(start, start + 100):
            other.ingest_raw('{"n": %d, "other":  true}' % index)  # noqa: UP031  # braces
        other.shutdown()

    began = time.time_ns()
    await asyncio.to_thread(write, 0)
    async with EventBus(settings(server.url, shards=2)) as bus:
        for index in range(100, 200):
            bus.ingest({"n": index})
        await bus.flush()
        await asyncio.to_thread(write, 200)
        events, page = await poll_all(bus, 300)
        assert sorted(event.decode()["n"] for event in events) == list(range(300))
        foreign = [event for event in events if b"other" in event.raw]
        assert all(event.raw.endswith(b', "other":  true}') for event in foreign)
        assert all(began - 10**9 < event.ts < time.time_ns() + 10**9 for event in events)
        assert page.undecodable == 0
        since = await poll_all(bus, 300, ConsumeRequest(100, start=began - 10**9))
        assert len(since[0]) == 300


async def test_net_mesh_writing_between_keeps_counts_exact(server: RedisServer) -> None:
    """Entries that others add are counted by the server like our own."""
    adapter = RedisAdapter(RedisConfig(url=server.url))
    await adapter.open(adapter_context())
    try:
        writer = Writer(adapter)
        await writer.write([b"1"] * 10)
        found = await drain(adapter)

        def write() -> None:
            other = _net()(num_shards=1, redis_url=server.url)
            for index in range(50):
                other.ingest_raw(json.dumps({"n": index}))
            other.shutdown()

        await asyncio.to_thread(write)
        server.call("XTRIM", "net:shard:0", "MAXLEN", 20)
        page = await adapter.read(Stream(0), found[4].id, 100)
        assert page.gap is not None
        assert page.gap.missed == 35
        assert len(page.events) == 20
    finally:
        await adapter.close()
