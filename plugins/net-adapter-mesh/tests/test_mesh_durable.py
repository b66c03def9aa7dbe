"""The durable log: what a killed node still has, and how it goes on."""

import contextlib
import os
import sqlite3

import anyio
import pytest
from mesh_cluster import assert_complete
from net_adapter_mesh import MeshAdapter, MeshConfig, durable
from net_adapter_mesh.keeper import Keeper

from netcore import AdapterRefusedError, Batch, Stream, TransientAdapterError
from netcore.testing.contract import adapter_context


@pytest.mark.parametrize("fsync", ["batch", "interval", "never"])
def test_durable_node_killed_has_all_acknowledged_and_goes_on(cluster, tmp_path, fsync):
    """After kill -9 in mid-load every acknowledged event is there, under the same origin, and
    positions continue."""
    a = cluster.start(log=str(tmp_path / "a"), fsync=fsync)
    b = cluster.start(peers=[a.address])
    a.begin("load", count=100_000, shards=3, batch=20, background=True)
    a.ask("until", expression="driver.appended >= 2000")
    acknowledged = a.ask("until", expression="driver.appended >= 3000") and 3000
    a.kill()
    again = cluster.start(listen=a.address, log=str(tmp_path / "a"), fsync=fsync)
    assert again.origin == a.origin
    kept = again.ask("page")["events"]
    assert len(kept) >= acknowledged
    assert_complete(kept, len(kept))
    again.ask("append", shard=0, payloads=["after"])
    total = len(kept) + 1
    for node in (again, b):
        events = node.ask("gather", chain="new", count=total)["events"]
        assert_complete(events, total)
        assert events[-1][4] == "after"


def test_durable_peer_killed_resumes_from_its_position(cluster, tmp_path):
    """A replica that was killed has what it stored and fetches only the rest."""
    a = cluster.start()
    a.ask("load", count=10_000, batch=500)
    b = cluster.start(peers=[a.address], log=str(tmp_path / "b"))
    b.ask("gather", count=10_000, full=False)
    b.kill()
    a.ask("load", count=1000, batch=100, tag="more")
    again = cluster.start(peers=[a.address], log=str(tmp_path / "b"))
    assert_complete(again.ask("gather", count=11_000)["events"], 11_000)
    links = again.ask("stats")["links"]
    assert sum(link["bytes_received"] for link in links) < 2 * 1000 * 120


def test_durable_log_trimmed_and_reopened_keeps_positions(cluster, tmp_path):
    """Retention is applied on disk too, and numbering goes on behind what was trimmed."""
    a = cluster.start(log=str(tmp_path / "a"), max_events=100)
    a.ask("load", count=1000, shards=1, batch=10)
    a.quit()
    with sqlite3.connect(tmp_path / "a" / "mesh.sqlite3") as database:
        assert database.execute("SELECT sum(count) FROM entries").fetchone()[0] <= 110
    database.close()
    again = cluster.start(log=str(tmp_path / "a"), max_events=100)
    again.ask("append", shard=0, payloads=["next"])
    page = again.ask("page")
    assert page["events"][-1][2] == 1001
    assert page["gaps"][0][2] == 1001 - len(page["events"])


def test_durable_log_after_a_crash_of_the_machine_begins_a_new_lane(cluster, tmp_path):
    """Without fsync, another boot means the log's end may be gone: numbers are not used again."""
    a = cluster.start(log=str(tmp_path / "a"), fsync="never", node_id="n")
    a.ask("append", shard=0, payloads=["one"])
    a.kill()
    with sqlite3.connect(tmp_path / "a" / "mesh.sqlite3") as database:
        database.execute("UPDATE meta SET value = 'another boot' WHERE key = 'boot'")
    database.close()
    again = cluster.start(log=str(tmp_path / "a"), fsync="never", node_id="n")
    again.ask("append", shard=0, payloads=["two"])
    assert again.origin != a.origin
    events = again.ask("gather", count=2)["events"]
    assert {(event[0], event[2]) for event in events} == {(a.origin, 1), (again.origin, 1)}


@pytest.mark.anyio
async def test_durable_log_in_use_is_refused(tmp_path):
    """Two nodes cannot share a directory."""
    one = MeshAdapter(MeshConfig(log=str(tmp_path)))
    await one.open(adapter_context())
    two = MeshAdapter(MeshConfig(log=str(tmp_path)))
    with pytest.raises(AdapterRefusedError, match="in use by another process"):
        await two.open(adapter_context())
    await two.close()
    await one.close()


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("change", "match"), [({"name": "other"}, "mesh 'net'"), ({"node_id": "b"}, "node 'a'")]
)
async def test_durable_log_of_another_node_or_mesh_is_refused(tmp_path, change, match):
    """A directory is bound to its mesh and node."""
    settings = {"log": str(tmp_path), "node_id": "a"}
    one = MeshAdapter(MeshConfig(**settings))
    await one.open(adapter_context())
    await one.close()
    two = MeshAdapter(MeshConfig(**{**settings, **change}))
    with pytest.raises(AdapterRefusedError, match=match):
        await two.open(adapter_context())
    await two.close()


def _batch(first_seq, *payloads):
    stamps = list(range(1000 + first_seq, 1000 + first_seq + len(payloads)))
    return Batch(producer="p" * 32, shard=0, first_seq=first_seq, stamps=stamps, payloads=list(payloads))


async def _stored(adapter):
    page = await adapter.read(Stream(0, adapter.origin), None, 100)
    return [event.raw for event in page.events]


@pytest.mark.anyio
@pytest.mark.parametrize("fsync", ["batch", "never"])
@pytest.mark.parametrize("max_events", [1, 100])
async def test_durable_log_reopened_stores_no_retry_twice(tmp_path, fsync, max_events):
    """What is expected of a producer outlives the node, also where retention took the batch."""
    config = MeshConfig(log=str(tmp_path), fsync=fsync, max_events=max_events)
    for _ in range(2):
        adapter = MeshAdapter(config)
        await adapter.open(adapter_context())
        await adapter.append(_batch(0, b"a", b"b"))
        await adapter.append(_batch(2, b"c"))
        assert await _stored(adapter) == ([b"c"] if max_events == 1 else [b"a", b"b", b"c"])
        await adapter.close()
    adapter = MeshAdapter(config)
    await adapter.open(adapter_context())
    await adapter.append(_batch(2, b"c", b"d"))
    assert (await _stored(adapter))[-1] == b"d"
    assert (await adapter.bounds(Stream(0, adapter.origin)))[1] == "4"
    await adapter.close()


@pytest.mark.anyio
@pytest.mark.parametrize("trimmed", [False, True])
async def test_durable_log_with_an_older_own_lane_stores_no_retry_twice(tmp_path, trimmed):
    """The greatest number counts, whichever own lane tells it and whether its batch is still there."""
    config = MeshConfig(log=str(tmp_path), fsync="never", node_id="n")
    adapter = MeshAdapter(config)
    await adapter.open(adapter_context())
    await adapter.append(_batch(0, b"a"))
    await adapter.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "mesh.sqlite3")) as log, log:  # the machine went down
        for table in ("entries", "lanes", "streams"):
            log.execute(f"UPDATE {table} SET origin = 'n~zzzzzzzz'")
        log.execute("UPDATE meta SET value = 'n~zzzzzzzz' WHERE key = 'origin'")
        log.execute("UPDATE meta SET value = '0' WHERE key IN ('clean', 'boot')")
    adapter = MeshAdapter(config)
    await adapter.open(adapter_context())
    assert adapter.origin != "n~zzzzzzzz"
    await adapter.append(_batch(1, b"b"))
    if trimmed:
        lane = adapter._log.lanes["n~zzzzzzzz"]
        adapter._store.drop(adapter.origin, adapter._log.lane.entries[:1])
        adapter._store.drop("n~zzzzzzzz", lane.entries[:1])
    await adapter.close()
    adapter = MeshAdapter(config)
    await adapter.open(adapter_context())
    before = (await adapter.bounds(Stream(0, adapter.origin)))[1]
    await adapter.append(_batch(1, b"b"))
    assert (await adapter.bounds(Stream(0, adapter.origin)))[1] == before == "1"
    await adapter.close()


@pytest.mark.anyio
async def test_durable_append_while_the_log_is_locked_waits_and_keeps_the_order(tmp_path):
    """The loop does not wait for a lock: it leaves the batch, and those behind it, to the writer."""
    adapter = MeshAdapter(MeshConfig(log=str(tmp_path), fsync="never"))
    await adapter.open(adapter_context())
    await adapter.append(_batch(0, b"a"))
    other = sqlite3.connect(tmp_path / "mesh.sqlite3", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(adapter.append, _batch(1, b"b"))
        await anyio.wait_all_tasks_blocked()
        assert await _stored(adapter) == [b"a"]
        other.execute("ROLLBACK")
    other.close()
    await adapter.append(_batch(2, b"c"))
    assert await _stored(adapter) == [b"a", b"b", b"c"]
    await adapter.close()


@pytest.mark.anyio
async def test_durable_writer_that_ended_is_told_of(tmp_path, monkeypatch):
    """An append says why it fails, and so does the node's health, whatever ended the writer."""
    adapter = MeshAdapter(MeshConfig(log=str(tmp_path), timeout_ms=200))
    await adapter.open(adapter_context())
    await adapter.append(_batch(0, b"a"))

    def broken(*_):
        raise OverflowError("too large")

    monkeypatch.setattr(durable, "write", broken)
    for _ in range(2):
        with pytest.raises(TransientAdapterError, match="writer ended: OverflowError"):
            await adapter.append(_batch(1, b"b"))
    assert await _stored(adapter) == [b"a"]
    assert not (await adapter.health()).ok
    await adapter.close()


@pytest.mark.anyio
async def test_durable_log_that_cannot_be_synced_is_told_of_until_it_can(tmp_path, monkeypatch, caplog):
    """With `interval` an append does not wait for the disk, so health says when the disk fails."""
    adapter = MeshAdapter(MeshConfig(log=str(tmp_path), fsync="interval", fsync_interval_ms=10))
    await adapter.open(adapter_context())
    sync = os.fdatasync

    def broken(_):
        raise OSError(5, "Input/output error")

    async def until(ok):
        with anyio.fail_after(10):
            while (health := await adapter.health()).ok != ok:
                await anyio.sleep(0.005)
        return health.reason

    monkeypatch.setattr(os, "fdatasync", broken)
    await adapter.append(_batch(0, b"a"))
    assert "cannot be synced" in await until(False)
    monkeypatch.setattr(os, "fdatasync", sync)
    await until(True)  # tried again by itself
    assert caplog.text.count("cannot be synced") == 1
    await adapter.close()


@pytest.mark.anyio
async def test_durable_syncing_thread_that_ended_is_told_of(tmp_path, monkeypatch, caplog):
    """Whatever ends it: appends go on, and health says that nothing is synced any more."""
    monkeypatch.setattr(Keeper, "_sync", lambda keeper: 1 / 0)
    adapter = MeshAdapter(MeshConfig(log=str(tmp_path), fsync="interval", fsync_interval_ms=10))
    await adapter.open(adapter_context())
    await adapter.append(_batch(0, b"a"))
    with anyio.fail_after(10):
        while (await adapter.health()).ok:
            await anyio.sleep(0.005)
    await adapter.append(_batch(1, b"b"))
    assert "ZeroDivisionError" in (await adapter.health()).reason
    assert "no longer synced" in caplog.text
    assert await _stored(adapter) == [b"a", b"b"]
    await adapter.close()


@pytest.fixture
def anyio_backend():
    return "asyncio"
