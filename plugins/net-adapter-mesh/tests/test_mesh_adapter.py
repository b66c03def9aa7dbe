"""The adapter in this process: both event loops, its thread's death, its settings through a bus."""

import subprocess
import sys
import threading

import anyio
import anyio.lowlevel
import pytest
import zmq
from net_adapter_mesh import MeshAdapter, MeshConfig
from net_adapter_mesh.transport import Waker

from netcore import (
    AdapterClosedError,
    ConfigError,
    EventBus,
    EventBusConfig,
    FatalAdapterError,
    Stream,
    TransientAdapterError,
)
from netcore.testing.contract import Writer, adapter_context


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


@pytest.fixture
async def node(anyio_backend):
    """An open, listening node."""
    adapter = MeshAdapter(MeshConfig(listen="tcp://127.0.0.1:*", heartbeat_ms=100))
    await adapter.open(adapter_context())
    yield adapter
    await adapter.close()


@pytest.mark.anyio
async def test_adapter_two_nodes_replicate_on_either_loop(node):
    """Waiting, reading and observing across nodes work on asyncio and trio."""
    observed = []
    other = MeshAdapter(MeshConfig(peers=[node.stats()["listening"]], heartbeat_ms=100))
    await other.open(adapter_context(observe=observed.append))
    writer = Writer(node)
    batch = await writer.write([b"one", b"two"])
    stream = Stream(0, node.origin)
    with anyio.fail_after(10):
        while not (page := await other.read(stream, None, 10)).events:
            await other.wait({}, 1.0)
    assert [event.raw for event in page.events] == [b"one", b"two"]
    assert [event.origin for event in page.events] == [node.origin] * 2
    with anyio.fail_after(10):
        while max(observed) < batch.events[-1].ts:  # no event tells
            await anyio.lowlevel.checkpoint()
    assert max(observed) == batch.events[-1].ts
    await other.close()


@pytest.mark.anyio
async def test_adapter_death_of_its_thread_shows_in_health_and_fails_appends(node):
    """An I/O thread that died is no silence: health says so, and appends fail as transient."""
    assert (await node.health()).ok

    def die():
        raise RuntimeError("a bug")

    node._node.submit(die)
    node._node._thread.join(10)
    health = await node.health()
    assert not health.ok
    assert "a bug" in health.reason
    assert "a bug" in node.stats()["failure"]
    with pytest.raises(TransientAdapterError, match="a bug"):
        await Writer(node).write([b"x"])


@pytest.mark.anyio
async def test_adapter_address_in_use_is_transient_and_leaves_nothing(node):
    """A taken port is named; opening again elsewhere works."""
    second = MeshAdapter(MeshConfig(listen=node.stats()["listening"]))
    with pytest.raises(TransientAdapterError, match="cannot listen on tcp://127"):
        await second.open(adapter_context())
    await second.close()
    with pytest.raises(AdapterClosedError):
        await second.streams()


@pytest.mark.anyio
async def test_adapter_payload_too_large_is_fatal_and_stores_nothing(node):
    """A payload beyond 16 MiB can never be stored."""
    writer = Writer(node)
    with pytest.raises(FatalAdapterError, match="at most 16,777,216"):
        await writer.write([b"x" * ((16 << 20) + 1)])
    assert await node.streams() == []


@pytest.mark.anyio
async def test_adapter_stats_tell_positions_lag_and_traffic(node):
    """Stats name every stream with where it begins, ends and how far behind it is."""
    await Writer(node, shard=3).write([b"a", b"b"])
    stats = node.stats()
    stream = stats["lanes"][node.origin]["streams"][3]
    assert (stream["earliest"], stream["stored"], stream["visible"]) == (0, 2, 2)
    assert (stream["lag_events"], stream["lag_ms"]) == (0, 0.0)
    assert stats["unreplicated"] == 2
    assert {"peers", "links", "bytes_in", "bytes_out", "gaps", "rejected_peers"} <= stats.keys()


@pytest.mark.anyio
async def test_bus_takes_the_settings_as_a_dict():
    """A bus finds the adapter by its kind, and names a setting that it does not know."""
    async with EventBus(EventBusConfig(adapter={"kind": "mesh", "name": "dict", "max_events": 5})) as bus:
        assert bus.stats().adapter["mesh"] == "dict"
    with pytest.raises(ConfigError, match="lisen"):
        EventBus(EventBusConfig(adapter={"kind": "mesh", "lisen": "tcp://127.0.0.1:1"}))


def test_waker_wakes_again_whenever_it_is_taken():
    """Wake-ups that race with their being taken are never the last: each leaves one to be seen."""
    context = zmq.Context()
    waker = Waker(context, "test")
    stop = threading.Event()
    wanted = [0]

    def ask():
        while not stop.is_set():
            wanted[0] += 1
            waker()

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(100):
        assert waker.inner.poll(5000), "nobody wakes any more"
        waker.clear()
    stop.set()
    for thread in threads:
        thread.join(10)
    waker.close()
    context.term()


def test_adapter_left_open_does_not_hold_up_the_end_of_the_process():
    """A program that ends without closing its node ends."""
    code = """
import anyio
from net_adapter_mesh import MeshAdapter, MeshConfig
from netcore.testing.contract import adapter_context
adapter = MeshAdapter(MeshConfig(listen="tcp://127.0.0.1:*", peers=["tcp://127.0.0.1:9"]))
async def main():
    await adapter.open(adapter_context())
anyio.run(main)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=20).returncode == 0


def test_plugin_module_imports_nothing_heavy():
    """Neither the hooks nor the settings load ZeroMQ."""
    code = "import sys, net_adapter_mesh.plugin, net_adapter_mesh; sys.exit('zmq' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_command_line_offers_the_mesh():
    """`netcore mesh` is there once the plugin is installed."""
    command = [sys.executable, "-m", "netcore", "mesh", "--help"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "keygen" in found.stdout
    assert "status" in found.stdout


@pytest.mark.anyio
async def test_adapter_large_batch_is_stored_as_several_entries(node):
    """A batch of more than 4 MiB is read as it was, and is no single frame."""
    payloads = [bytes([index]) * (1 << 20) for index in range(10)]
    writer = Writer(node)
    batch = await writer.write(payloads)
    page = await node.read(Stream(0, node.origin), None, 100)
    assert [event.raw for event in page.events] == payloads
    assert [event.ts for event in page.events] == batch.stamps
    assert node.stats()["lanes"][node.origin]["head"] == 3
