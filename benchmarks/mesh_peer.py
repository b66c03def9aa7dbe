"""One side of a mesh benchmark: a process that sends, receives or idles. Driven by `mesh.py`."""

from __future__ import annotations

import asyncio
import json
import resource
import statistics
import sys
import time
from typing import Any

CHUNK = 4000


def payloads(count: int, size: int) -> list[bytes]:
    """Return distinct JSON payloads of `size` bytes."""
    return [json.dumps({"n": n, "pad": ""}).encode()[:-2].ljust(size - 2, b"x") + b'"}' for n in range(count)]


def say(**values: Any) -> None:
    print(json.dumps(values), flush=True)


def hear() -> Any:
    return json.loads(sys.stdin.readline())


async def hear_later() -> Any:
    return json.loads(await asyncio.to_thread(sys.stdin.readline))


async def open_bus(settings: dict[str, Any]) -> Any:
    from netcore import BatchConfig, EventBus, EventBusConfig

    adapter = {"kind": "mesh", "max_events": 4_000_000, "max_bytes": 1 << 30, **settings["adapter"]}
    return await EventBus.open(
        EventBusConfig(
            shards=settings.get("shards", 4),
            ring_capacity=1 << 16,
            adapter=adapter,
            batch=BatchConfig(max_events=1024, max_delay_ms=settings.get("delay_ms", 5)),
        )
    )


async def linked(bus: Any, count: int = 1) -> None:
    while len(bus.stats().adapter["links"]) < count:  # noqa: ASYNC110 # no event tells
        await asyncio.sleep(0.01)


async def send(settings: dict[str, Any]) -> None:
    """Ingest `count` events as fast as the ring takes them; say when the first went in."""
    bus = await open_bus(settings)
    say(address=bus.stats().adapter["listening"])
    await hear_later()
    if settings.get("live", True):
        await linked(bus)
        await asyncio.sleep(0.3)
    chunk = payloads(CHUNK, settings["size"])
    begin = time.time()
    for number in range(settings["count"] // CHUNK):
        bus.ingest_raw_many(chunk)
        await asyncio.sleep(0)
        while number % 2 == 0 and bus.stats().pressure > 0.4:  # noqa: ASYNC110 # no event tells
            await asyncio.sleep(0.001)
    await bus.flush()
    say(begin=begin)
    await hear_later()
    await bus.shutdown()


async def receive(settings: dict[str, Any]) -> None:
    """Poll `count` events; say when the last came."""
    from netcore import ConsumeRequest

    begin = time.time()
    bus = await open_bus(settings)
    say(ready=True)
    got, request = 0, ConsumeRequest(10_000, start="earliest")
    while got < settings["count"]:
        page = await bus.poll(request, wait=1.0)
        got += len(page.events)
        request = request.after(page.cursor)
    say(begin=begin, end=time.time())
    await hear_later()
    await bus.shutdown()


async def ping(settings: dict[str, Any]) -> None:
    """Ingest single events; the other side answers each, by an event of its own."""
    from netcore import ConsumeRequest

    bus = await open_bus(settings)
    say(address=bus.stats().adapter["listening"])
    await hear_later()
    await linked(bus)
    request = ConsumeRequest(10)
    request = request.after((await bus.poll(request)).cursor)
    own = bus.stats().adapter["origin"]
    times = []
    for number in range(settings["count"]):
        begin = time.perf_counter()
        bus.ingest_raw(b"%d" % number)
        answered = False
        while not answered:
            page = await bus.poll(request, wait=1.0)
            request = request.after(page.cursor)
            answered = any(event.origin != own for event in page.events)
        times.append((time.perf_counter() - begin) / 2 * 1000)
    cuts = statistics.quantiles(times, n=100)
    say(p50=cuts[49], p99=cuts[98])
    await hear_later()
    await bus.shutdown()


async def pong(settings: dict[str, Any]) -> None:
    """Answer each foreign event."""
    from netcore import ConsumeRequest

    bus = await open_bus(settings)
    request = ConsumeRequest(10)
    request = request.after((await bus.poll(request)).cursor)
    own = bus.stats().adapter["origin"]
    say(ready=True)
    answered = 0
    while answered < settings["count"]:
        page = await bus.poll(request, wait=1.0)
        request = request.after(page.cursor)
        for event in page.events:
            if event.origin != own:
                bus.ingest_raw(event.raw)
                answered += 1
    await bus.flush()
    await hear_later()
    await bus.shutdown()


async def idle(settings: dict[str, Any]) -> None:
    """Be a member and do nothing; say what share of a core it took."""
    bus = await open_bus(settings)
    say(address=bus.stats().adapter["listening"])
    await hear_later()
    await linked(bus, settings["links"])
    await asyncio.sleep(1.0)
    before, begin = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    await asyncio.sleep(settings["seconds"])
    after = resource.getrusage(resource.RUSAGE_SELF)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    say(share=used / (time.monotonic() - begin))
    await hear_later()
    await bus.shutdown()


def zenoh_session(config: dict[str, Any]) -> Any:
    import zenoh

    settings = zenoh.Config()
    settings.insert_json5("scouting/multicast/enabled", "false")
    for key, value in config.items():
        settings.insert_json5(key, json.dumps(value))
    return zenoh.open(settings)


def zenoh_send(settings: dict[str, Any]) -> None:
    """Publish `count` events, one put each, as its Python pub/sub is used."""
    import zenoh

    with zenoh_session({"listen/endpoints": [settings["endpoint"]]}) as session:
        publisher = session.declare_publisher(
            "bench/events", congestion_control=zenoh.CongestionControl.BLOCK, express=False
        )
        say(address=settings["endpoint"])
        hear()
        while not publisher.matching_status.matching:
            time.sleep(0.01)
        time.sleep(0.3)
        chunk = payloads(CHUNK, settings["size"])
        begin = time.time()
        put = publisher.put
        for _ in range(settings["count"] // CHUNK):
            for payload in chunk:
                put(payload)
        say(begin=begin)
        hear()


def zenoh_receive(settings: dict[str, Any]) -> None:
    """Take `count` events from a subscriber, each as bytes."""
    with zenoh_session({"connect/endpoints": [settings["endpoint"]]}) as session:
        got, count, end = 0, settings["count"], 0.0
        kept = []

        def take(sample: Any) -> None:
            nonlocal got, end
            kept.append(sample.payload.to_bytes())
            got += 1
            if got == count:
                end = time.time()

        with session.declare_subscriber("bench/events", take):
            say(ready=True)
            while not end:
                time.sleep(0.005)
            say(end=end)
            hear()


if __name__ == "__main__":
    role, given = sys.argv[1], json.loads(sys.argv[2])
    work = globals()[role]
    if asyncio.iscoroutinefunction(work):
        asyncio.run(work(given))
    else:
        work(given)
