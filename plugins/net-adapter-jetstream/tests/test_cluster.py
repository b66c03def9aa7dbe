"""Three servers, one of which dies; several processes on one store."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from net_adapter_jetstream import JetStreamAdapter
from net_adapter_jetstream.replies import Reply

from netcore import Stream, TransientAdapterError
from netcore.testing.contract import Writer, drain
from netcore.testing.servers import NatsCluster, NatsServer

pytestmark = pytest.mark.anyio

OpenAdapter = Callable[..., Awaitable[JetStreamAdapter]]


async def _retried(call: Callable[[], Awaitable[None]]) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                await call()
            except TransientAdapterError:
                await asyncio.sleep(0.05)
            else:
                return


async def test_leader_killed_loses_nothing_acknowledged(open_adapter: OpenAdapter) -> None:
    """Replicated three times, a stream goes on without its leader; what was acknowledged is there."""
    cluster = NatsCluster(3)
    try:
        await asyncio.to_thread(cluster.start)
        adapter = await open_adapter(cluster.url, replicas=3, timeout_ms=3000)
        other = await open_adapter(cluster.url, replicas=3, timeout_ms=3000)
        writer = Writer(adapter)
        await _retried(lambda: _store(adapter, writer, 1))
        info = await adapter._streams.info(0)
        assert info is not None
        assert info.replicas == 3
        reply = await adapter._link.ask(f"$JS.API.STREAM.INFO.{adapter.config.prefix}_shard_0")
        leader = json.loads(reply.body)["cluster"]["leader"]
        victim = cluster.servers[int(leader.rpartition("-")[2])]
        for index in range(40):
            if index == 12:
                victim.kill()
            if index == 25:
                await asyncio.to_thread(victim.start, ready=False)
            await _retried(lambda: _store(adapter, writer, 25))
            if index % 8 == 0:
                # Read your own writes: a replica that lags is waited for.
                found = await _drained(adapter)
                assert found == [event.raw for event in writer.written]
        expected = [event.raw for event in writer.written]
        assert await _drained(adapter) == expected
        assert await _drained(other) == expected
        assert adapter.stats()["rolled_back"] == 0
    finally:
        cluster.close()


async def _store(adapter: JetStreamAdapter, writer: Writer, count: int) -> None:
    batch = writer.batch(b'{"n":%d}' % (len(writer.written) + index) for index in range(count))
    await _retried(lambda: adapter.append(batch))


async def _drained(adapter: JetStreamAdapter) -> list[bytes]:
    async with asyncio.timeout(60):
        while True:
            try:
                return [event.raw for event in await drain(adapter)]
            except TransientAdapterError:
                await asyncio.sleep(0.05)


_PRODUCER = """
import asyncio, sys
from net_adapter_jetstream import JetStreamAdapter, JetStreamConfig
from netcore.testing.contract import Writer, adapter_context

async def main(url, prefix, tag, count):
    adapter = JetStreamAdapter(JetStreamConfig(url=url, prefix=prefix))
    await adapter.open(adapter_context())
    writers = [Writer(adapter, shard=shard) for shard in range(3)]
    for index in range(count):
        for writer in writers:
            await writer.write([b'{"%b":%d}' % (tag.encode(), index * 10 + n) for n in range(10)])
    await adapter.close()

asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
"""

_CONSUMER = """
import asyncio, json, sys
from net_adapter_jetstream import JetStreamAdapter, JetStreamConfig
from netcore import ReadRequest, Stream
from netcore.testing.contract import adapter_context

async def main(url, prefix, total):
    adapter = JetStreamAdapter(JetStreamConfig(url=url, prefix=prefix))
    await adapter.open(adapter_context())
    positions, found = {}, {}
    while sum(map(len, found.values())) < total:
        for stream in await adapter.streams():
            positions.setdefault(stream, None)
        pages = await adapter.read_many([ReadRequest(s, p, 200) for s, p in positions.items()])
        for stream, page in zip(list(positions), pages):
            positions[stream] = page.position
            found.setdefault(stream.shard, []).extend(event.raw.decode() for event in page.events)
        if not any(page.events for page in pages):
            await adapter.wait(positions, 5.0)
    await adapter.close()
    print(json.dumps(found))

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


async def test_two_producers_and_two_consumers_in_four_processes(nats: NatsServer, prefix: str) -> None:
    """Each consumer sees every event of both producers once, each producer's in order."""
    batches = 12
    total = batches * 10 * 3 * 2

    def spawn(program: str, *arguments: str) -> subprocess.Popen[bytes]:
        line = [sys.executable, "-c", program, nats.url, prefix, *arguments]
        return subprocess.Popen(line, stdout=subprocess.PIPE, cwd=Path(__file__).parent)

    consumers = [spawn(_CONSUMER, str(total)) for _ in range(2)]
    producers = [spawn(_PRODUCER, tag, str(batches)) for tag in ("a", "b")]
    outputs = [
        (await asyncio.to_thread(process.communicate, None, 60))[0] for process in [*producers, *consumers]
    ]
    assert [process.returncode for process in [*producers, *consumers]] == [0, 0, 0, 0]
    for output in outputs[2:]:
        found = json.loads(output)
        assert sorted(found) == ["0", "1", "2"]
        for raws in found.values():
            for tag in ("a", "b"):
                mine = [json.loads(raw)[tag] for raw in raws if f'"{tag}"' in raw]
                assert mine == list(range(batches * 10))


async def test_streams_lists_more_than_one_answer_holds(nats: NatsServer, open_adapter: OpenAdapter) -> None:
    """Other prefixes' streams are not ours, though they look alike."""
    adapter = await open_adapter(nats.url)
    prefix = adapter.config.prefix
    for name in (f"{prefix}_shard_x", f"{prefix}_shard_01", f"{prefix}x_shard_1"):
        subject = f"$JS.API.STREAM.CREATE.{name}"
        reply = Reply(subject)
        body = json.dumps({"name": name, "subjects": [f"{name}.a"]}).encode()
        await adapter._link.exchange([(reply, subject, body)])
        assert reply.error is None
    await Writer(adapter, shard=7).write([b"1"])
    assert await adapter.streams() == [Stream(7)]
