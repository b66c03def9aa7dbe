"""One mesh node as a process of its own, driven by JSON lines: requests on stdin, answers on stdout.

`Driver` runs the adapter without a bus around it, with a clock and a watermark as a bus has them, so
that tests decide which batch goes out when. `BusDriver` runs a whole bus.
"""

import asyncio
import base64
import json
import logging
import os
import sys
import time
import traceback

from net_adapter_mesh import MeshAdapter, MeshConfig

from netcore import (
    AdapterContext,
    Batch,
    ConsumeRequest,
    EventBus,
    EventBusConfig,
    IndexedEvent,
    Stream,
    TransientAdapterError,
)


class Clock:
    """Strictly rising, at the wall clock, moved on by what it observes."""

    def __init__(self):
        self.last = 0

    def tick(self):
        self.last = max(self.last + 1, time.time_ns())
        return self.last

    def observe(self, ts):
        self.last = max(self.last, ts)


class Driver:
    """The commands; each public method is one."""

    def __init__(self, config):
        self.clock = Clock()
        self.producer = os.urandom(16).hex()
        self.seqs = {}
        self.outstanding = {}
        self.chains = {}
        self.task = None
        self.appended = 0
        self.adapter = MeshAdapter(config)

    async def open(self, causal_wait_ms=1000, drift_ms=60_000):
        logging.basicConfig(level=logging.INFO, stream=sys.stderr)
        await self.adapter.open(
            AdapterContext(
                producer=self.producer,
                timeout_ms=30_000,
                causal_wait_ms=causal_wait_ms,
                max_clock_drift_ms=drift_ms,
                observe=self.clock.observe,
                watermark=self.watermark,
                logger=logging.getLogger("netcore.adapter.mesh"),
            )
        )
        return {"origin": self.adapter.origin, "address": self.adapter.stats()["listening"]}

    def watermark(self, stored):
        lows = [
            events[0].ts
            for shard, events in self.outstanding.items()
            if stored is None or events is not stored.events
        ]
        return min([self.clock.tick(), *lows])

    async def ingest(self, shard, payloads):
        """Give events their timestamps without storing them yet."""
        events = self.outstanding.setdefault(shard, [])
        for text in payloads:
            events.append(IndexedEvent(0, shard, self.clock.tick(), text.encode()))
        return [event.ts for event in events]

    async def send(self, shard):
        """Store what `ingest` prepared, as one batch."""
        events = self.outstanding[shard]
        first = self.seqs.get(shard, 0)
        batch = Batch(producer=self.producer, shard=shard, first_seq=first, events=events)
        await self.adapter.append(batch)
        self.seqs[shard] = first + len(events)
        del self.outstanding[shard]
        self.appended += len(events)
        return self.appended

    async def discard(self, shard):
        """Give up prepared events, as a bus does with evicted ones."""
        return len(self.outstanding.pop(shard))

    async def append(self, shard, payloads):
        await self.ingest(shard, payloads)
        return await self.send(shard)

    async def load(self, count, shards=4, batch=100, size=100, tag="", pause=0.0, background=False):
        """Append `count` events, batch by batch over the shards."""

        async def run():
            made = 0
            while made < count:
                shard = (made // batch) % shards
                take = min(batch, count - made)
                await self.ingest(shard, [f"{tag}{made + i:09d}".ljust(size, ".") for i in range(take)])
                while True:
                    try:
                        await self.send(shard)
                        break
                    except TransientAdapterError:
                        await asyncio.sleep(0.01)
                made += take
                await asyncio.sleep(pause)
            return made

        if background:
            self.task = asyncio.ensure_future(run())
            return 0
        return await run()

    async def loaded(self):
        """Wait for a background load."""
        return await self.task

    async def page(self, chain="main", limit=1_000_000, start="earliest"):
        """One poll: every stream from where the chain stands, merged by key."""
        positions = self.chains.setdefault(chain, {})
        events, gaps, bad = [], [], 0
        snapshot = await self.adapter.snapshot()
        for stream in await self.adapter.streams():
            if stream not in positions:
                positions[stream] = (await self.adapter.bounds(stream))[1] if start == "tail" else None
            key = 0
            while True:
                page = await self.adapter.read(stream, positions[stream], limit, snapshot)
                for event in page.events:
                    key = max(key, event.ts)
                    events.append((key, event.shard, event.origin, int(event.id), event.ts, event.raw))
                if page.gap:
                    gap = page.gap
                    gaps.append([gap.origin, gap.shard, gap.missed, gap.resumed_at])
                bad += page.undecodable
                positions[stream] = page.position
                if not page.has_more:
                    break
        events.sort()
        return {
            "events": [
                [origin, shard, position, ts, raw.decode(errors="replace")]
                for key, shard, origin, position, ts, raw in events
            ],
            "gaps": gaps,
            "undecodable": bad,
        }

    async def gather(self, count, chain="main", timeout=20.0, full=True):
        """Poll until `count` events have come; return them all, or just how many."""
        deadline = time.monotonic() + timeout
        found, gaps = [], []
        while True:
            page = await self.page(chain)
            found += page["events"]
            gaps += page["gaps"]
            left = deadline - time.monotonic()
            if len(found) >= count or left <= 0:
                return {"events": found if full else len(found), "gaps": gaps}
            positions = {s: p if p is not None else "0" for s, p in self.chains[chain].items()}
            await self.adapter.wait(positions, min(1.0, left))

    async def converse(self, rounds, shards=2, pause=0.0, tag=""):
        """Poll and answer in turns; each answer names what this node had been shown when it was made."""
        shown, seen = [], {}

        async def look():
            for event in (await self.page("talk"))["events"]:
                shown.append(event)
                seen[f"{event[0]}/{event[1]}"] = event[2]

        for number in range(rounds):
            await look()
            await self.append(number % shards, [json.dumps({"tag": tag, "n": number, "seen": seen})])
            await asyncio.sleep(pause)
        self.shown, self.look = shown, look
        return len(shown)

    async def heard(self, count, timeout=20.0):
        """Go on polling after `converse` until `count` events were shown; return them in order."""
        deadline = time.monotonic() + timeout
        while len(self.shown) < count and time.monotonic() < deadline:
            await self.look()
            await asyncio.sleep(0.005)
        return self.shown

    async def arrival(self, chain="main", timeout=10.0):
        """Wait for something newer and say when it was seen (wall clock, ns)."""
        await self.adapter.wait(dict(self.chains[chain]), timeout)
        return time.time_ns()

    async def until(self, expression, timeout=10.0):
        """Wait until a Python expression over `stats`, `driver` holds."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            stats = self.adapter.stats()
            if eval(expression, {"stats": stats, "driver": self, "Stream": Stream}):
                return True
            await asyncio.sleep(0.005)
        raise TimeoutError(f"{expression} never came true; stats: {self.adapter.stats()}")

    async def stats(self):
        return self.adapter.stats()

    async def health(self):
        health = await self.adapter.health()
        return [health.ok, health.reason]

    async def clock_now(self):
        return time.time_ns()

    async def close(self):
        await self.adapter.close()
        return self.adapter.stats()

    async def finish(self):
        await self.adapter.close()


class BusDriver:
    """The commands of a node with a real bus around it."""

    def __init__(self, config):
        self.config = config

    async def open(self, **settings):
        self.bus = await EventBus.open(EventBusConfig(adapter=self.config, **settings))
        stats = self.bus.stats().adapter
        self.chains = {}
        return {"origin": stats["origin"], "address": stats["listening"]}

    async def ingest(self, payloads):
        return [self.bus.ingest_raw(text.encode())[1] for text in payloads]

    async def load(self, count, tag=""):
        for number in range(count):
            while self.bus.stats().pressure > 0.5:  # no event tells
                await asyncio.sleep(0.001)
            self.bus.ingest_raw(f"{tag}{number}".encode())
            if number % 500 == 0:
                await asyncio.sleep(0)
        await self.bus.flush()
        return count

    async def flush(self):
        await self.bus.flush()

    async def poll(self, chain="main", limit=1000, start="earliest", wait=0.0, shards=None):
        request = ConsumeRequest(limit, cursor=self.chains.get(chain), start=start, shards=shards)
        page = await self.bus.poll(request, wait=wait)
        self.chains[chain] = page.cursor
        return {
            "events": [[e.origin, e.shard, int(e.id), e.ts, e.raw.decode()] for e in page.events],
            "gaps": [[gap.origin, gap.shard, gap.missed, gap.resumed_at] for gap in page.gaps],
            "failed": list(page.failed_shards),
            "cursor": page.cursor,
        }

    async def gather(self, count, chain="main", timeout=20.0, start="earliest"):
        deadline = time.monotonic() + timeout
        events = []
        while len(events) < count and time.monotonic() < deadline:
            events += (await self.poll(chain, start=start, wait=0.5))["events"]
        return events

    async def resume(self, chain, cursor):
        self.chains[chain] = cursor

    async def converse(self, rounds, tag=""):
        shown, seen = [], {}

        async def look(wait=0.0):
            for event in (await self.poll("talk", wait=wait))["events"]:
                shown.append(event)
                seen[f"{event[0]}/{event[1]}"] = event[2]

        for number in range(rounds):
            await look()
            await self.bus.put(json.dumps({"tag": tag, "n": number, "seen": seen}).encode())
            await asyncio.sleep(0.001)
        await self.bus.flush()
        self.shown, self.look = shown, look
        return len(shown)

    async def heard(self, count, timeout=20.0):
        deadline = time.monotonic() + timeout
        while len(self.shown) < count and time.monotonic() < deadline:
            await self.look(0.2)
        return self.shown

    async def sleep(self, seconds):
        await asyncio.sleep(seconds)

    async def add_shards(self, count):
        return await self.bus.add_shards(count)

    async def until(self, expression, timeout=10.0):
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            stats = self.bus.stats().adapter
            if eval(expression, {"stats": stats, "driver": self}):
                return True
            await asyncio.sleep(0.005)
        raise TimeoutError(f"{expression} never came true; stats: {self.bus.stats()}")

    async def stats(self):
        return self.bus.stats().adapter

    async def shutdown(self, timeout=10.0):
        report = await self.bus.shutdown(timeout=timeout)
        return {"lost": report.lost, "unreplicated": report.unreplicated, "dispatched": report.dispatched}

    async def finish(self):
        await self.bus.shutdown()


async def serve(config, options, kind):
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 28)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    answer(await reply(kind.open, driver := kind(config), options))
    running = set()
    while line := await reader.readline():
        request = json.loads(line)
        op = getattr(kind, request.pop("op"))
        tag = request.pop("tag_", None)

        async def run(op=op, request=request, tag=tag):
            answer({**await reply(op, driver, request), "tag_": tag})

        task = asyncio.ensure_future(run())
        running.add(task)
        task.add_done_callback(running.discard)
    await driver.finish()


async def reply(op, driver, options):
    try:
        return {"value": await op(driver, **options)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}


def answer(document):
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    settings = json.loads(base64.b64decode(sys.argv[1]))
    asyncio.run(
        serve(MeshConfig(**settings["config"]), settings["options"], BusDriver if settings["bus"] else Driver)
    )
