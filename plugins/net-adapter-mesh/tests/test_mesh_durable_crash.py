"""The durable log when the machine goes down, or the disk fails, at the awkward moment."""

import asyncio
import contextlib
import itertools
import os
import shutil
import sqlite3
import threading
import time
from functools import partial

import anyio
import msgspec
import pytest
from mesh_batches import batch_of, stored
from net_adapter_mesh import MeshAdapter, MeshConfig, durable
from net_adapter_mesh.durable import SqliteStore
from net_adapter_mesh.keeper import Keeper

from netcore import AdapterRefusedError, Batch, ReadRequest, Stream, TransientAdapterError
from netcore.testing.contract import adapter_context


async def _opened(**settings):
    adapter = MeshAdapter(MeshConfig(**settings))
    await adapter.open(adapter_context())
    return adapter


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """A log's directory, and a copy of it as it was when SQLite last synced a commit.

    What the machine has after it went down is the copy: nothing else is certain to be on disk.
    """
    log, image = tmp_path / "log", tmp_path / "image"

    class Watched(sqlite3.Connection):
        def execute(self, sql, *args):
            result = super().execute(sql, *args)
            if not self.in_transaction and not sql.startswith("PRAGMA"):
                self._committed()
            return result

        def executemany(self, sql, *args):
            result = super().executemany(sql, *args)
            if not self.in_transaction:
                self._committed()
            return result

        def _committed(self):
            if super().execute("PRAGMA synchronous").fetchone()[0] == 2:  # FULL
                shutil.copytree(log, image, dirs_exist_ok=True)

    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Watched))
    return log, image


@pytest.mark.anyio
@pytest.mark.parametrize("before", ["batch", "never"])
@pytest.mark.parametrize("fsync", ["interval", "never"])
async def test_durable_log_is_known_to_be_open_before_anything_is_numbered(
    disk, tmp_path, monkeypatch, before, fsync
):
    """The machine goes down before anything else was synced: the next life uses no number again."""
    monkeypatch.setattr(Keeper, "_sync", lambda _: None)  # its interval has not passed yet
    log, image = disk
    adapter = MeshAdapter(MeshConfig(log=str(log), fsync=before))
    await adapter.open(adapter_context())
    await adapter.append(batch_of(0, b"kept"))
    await adapter.close()
    shutil.rmtree(image, ignore_errors=True)
    shutil.copytree(log, image)  # the system has written it since

    adapter = MeshAdapter(MeshConfig(log=str(log), fsync=fsync))
    await adapter.open(adapter_context())
    await adapter.append(batch_of(1, b"seen by a peer, not on disk"))
    left = shutil.copytree(image, tmp_path / "left")  # the machine goes down
    await adapter.close()
    with contextlib.closing(sqlite3.connect(left / "mesh.sqlite3")) as database, database:
        database.execute("UPDATE meta SET value = 'another boot' WHERE key = 'boot'")

    again = MeshAdapter(MeshConfig(log=str(left), fsync=fsync))
    await again.open(adapter_context())
    assert again.origin != adapter.origin
    assert await stored(again, origin=adapter.origin) == [b"kept"]
    await again.close()


@pytest.mark.anyio
async def test_durable_log_that_is_never_synced_still_syncs_its_checkpoints(tmp_path):
    """A checkpoint that syncs nothing may leave a file that is no database once the machine went down."""
    adapter = MeshAdapter(MeshConfig(log=str(tmp_path), fsync="never"))
    await adapter.open(adapter_context())
    with contextlib.closing(adapter._store._connect()) as connection:
        assert connection.execute("PRAGMA synchronous").fetchone() == (1,)
    await adapter.close()


@pytest.mark.anyio
async def test_durable_log_that_cannot_be_marked_as_closed_is_released_all_the_same(tmp_path, caplog):
    """The disk refuses the very last write: close says so in the log, and the next life opens it."""
    config = MeshConfig(log=str(tmp_path), fsync="never")
    adapter = MeshAdapter(config)
    await adapter.open(adapter_context())
    await adapter.append(batch_of(0, b"a"))
    adapter._store._reader.execute("PRAGMA query_only=1")
    await adapter.close()
    assert "could not be marked as closed" in caplog.text
    again = MeshAdapter(config)
    await again.open(adapter_context())
    assert await stored(again) == [b"a"]
    await again.close()


@pytest.mark.anyio
async def test_durable_log_closed_is_free_although_a_forked_child_lives_on(tmp_path):
    """A child has a copy of every descriptor: closing this one's is not enough to give the log up."""
    config = MeshConfig(log=str(tmp_path))
    adapter = MeshAdapter(config)
    await adapter.open(adapter_context())
    child = os.dup(adapter._store._lock.fileno())  # as in a child, it refers to the same open file
    await adapter.close()
    again = await _opened(log=str(tmp_path))
    assert again.origin == adapter.origin
    await again.close()
    os.close(child)


@pytest.mark.anyio
async def test_durable_log_that_cannot_be_read_fails_reads_and_not_the_node(tmp_path, monkeypatch, caplog):
    """A read that fails is a failing read: the I/O thread lives, and peers get the entry later."""
    monkeypatch.setattr(durable, "_CACHE_BYTES", 0)
    adapter = MeshAdapter(MeshConfig(log=str(tmp_path), listen="tcp://127.0.0.1:*", heartbeat_ms=50))
    await adapter.open(adapter_context())
    await adapter.append(batch_of(0, b"a"))
    reader = adapter._store._reader
    with contextlib.closing(sqlite3.connect(":memory:", check_same_thread=False)) as broken:
        adapter._store._reader = broken
        peer = MeshAdapter(MeshConfig(peers=[adapter.stats()["listening"]], heartbeat_ms=50))
        await peer.open(adapter_context())
        with pytest.raises(TransientAdapterError, match="cannot be read: no such table"):
            await stored(adapter)
        [page] = await adapter.read_many([ReadRequest(Stream(0, adapter.origin), None, 10)])
        assert isinstance(page, TransientAdapterError)
        with anyio.fail_after(10):
            while len(adapter._node.exchange.links[peer.origin].feeds) == 0:
                await anyio.sleep(0.005)
        assert (await adapter.health()).ok
        adapter._store._reader = reader
    with anyio.fail_after(10):
        while await stored(peer, origin=adapter.origin) != [b"a"]:
            await anyio.sleep(0.005)
    assert (await adapter.health()).ok
    assert caplog.text.count("cannot be read") == 1
    await peer.close()
    await adapter.close()


def _garble(kept, path):
    """Write over all but the first bytes; the first page of the log, 32 KiB here, holds the schema."""
    content = path.read_bytes()
    path.write_bytes(content[:kept] + b"garbage!" * ((len(content) - kept) // 8))


def _misplace(path):
    with contextlib.closing(sqlite3.connect(path)) as log, log:
        log.execute("INSERT INTO streams VALUES ('nobody', 0, 1, 1)")
        log.execute("UPDATE entries SET deps = 'x'")


@pytest.mark.anyio
@pytest.mark.parametrize(
    "damage", [partial(_garble, 0), partial(_garble, 4096), partial(_garble, 32_768), _misplace]
)
async def test_durable_log_that_is_damaged_is_refused_and_released(tmp_path, damage):
    """Whatever is wrong with it, the error is the refusal that a bus reports, and nothing is left open."""
    config = MeshConfig(log=str(tmp_path))
    adapter = MeshAdapter(config)
    await adapter.open(adapter_context())
    await adapter.append(batch_of(0, b"a"))
    await adapter.close()
    damage(tmp_path / "mesh.sqlite3")
    for _ in range(2):
        with pytest.raises(AdapterRefusedError, match=r"is damaged|cannot be used"):
            await MeshAdapter(config).open(adapter_context())


@pytest.mark.anyio
async def test_durable_open_cancelled_while_it_reads_the_log_leaves_it_free(tmp_path, monkeypatch):
    """A bus gives up on a large log: the thread that reads it closes what it opened."""
    config = MeshConfig(log=str(tmp_path))
    load, entered, go = SqliteStore.load, threading.Event(), threading.Event()

    def slow(store):
        entered.set()
        go.wait(10)
        return load(store)

    monkeypatch.setattr(SqliteStore, "load", slow)
    opening = asyncio.ensure_future(MeshAdapter(config).open(adapter_context()))
    with anyio.fail_after(10):
        while not entered.is_set():
            await anyio.sleep(0.005)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    go.set()
    monkeypatch.undo()
    with anyio.fail_after(10):
        while True:
            adapter = MeshAdapter(config)
            with contextlib.suppress(AdapterRefusedError):
                await adapter.open(adapter_context())
                break
            await anyio.sleep(0.005)
    await adapter.close()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("mesh")]


@pytest.mark.anyio
async def test_durable_log_holds_nothing_in_memory_of_what_was_trimmed(tmp_path):
    """Retention bounds the memory of small events too."""
    adapter = MeshAdapter(MeshConfig(log=str(tmp_path), fsync="never", max_events=10))
    await adapter.open(adapter_context())
    for number in range(100):
        await adapter.append(batch_of(number, b"x"))
    cache = adapter._store._cache
    assert len(cache) == 10
    assert adapter._store._cached_bytes == sum(entry.size for entry in cache.values())
    await adapter.close()


@pytest.mark.anyio
async def test_durable_log_that_cannot_be_written_collects_no_watermarks(tmp_path):
    """While the disk refuses, the node asks for its watermark again and again: one entry waits, not many."""
    adapter = MeshAdapter(MeshConfig(log=str(tmp_path), fsync="never", timeout_ms=50))
    await adapter.open(adapter_context(watermark=lambda batch: next(clock)))
    clock = itertools.count(1)
    await adapter.append(batch_of(0, b"a"))
    with contextlib.closing(sqlite3.connect(tmp_path / "mesh.sqlite3", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(TransientAdapterError, match="has not taken the batch"):
            await adapter.append(batch_of(1, b"b"))
        for _ in range(10):
            adapter._ask_watermark()
            await anyio.sleep(0.005)
        assert adapter._store._queue.qsize() <= 2
        other.execute("ROLLBACK")
    with anyio.fail_after(10):
        while await stored(adapter) != [b"a", b"b"]:
            await anyio.sleep(0.005)
    await adapter.close()


def _held(adapter, origin):
    lane = adapter.stats()["lanes"].get(origin)
    return lane["streams"].get(0, {}).get("stored") if lane else 0


@pytest.mark.anyio
async def test_durable_replica_reopened_still_says_where_it_has_a_hole(tmp_path):
    """A gap that was taken once is not advertised as complete after a restart."""
    origin = MeshAdapter(MeshConfig(listen="tcp://127.0.0.1:*", max_events=1))
    await origin.open(adapter_context())
    config = MeshConfig(peers=[origin.stats()["listening"]], log=str(tmp_path))
    for first in (0, 5):
        replica = MeshAdapter(config)
        await replica.open(adapter_context())
        await origin.append(batch_of(first, b"%d" % first))
        with anyio.fail_after(10):
            while _held(replica, origin.origin) != first + 1:
                await anyio.sleep(0.005)
        await replica.close()
        for number in range(first + 1, first + 5):
            await origin.append(batch_of(number, b"missed"))
    floor = replica.stats()["lanes"][origin.origin]["floor"]
    assert floor > 0
    again = MeshAdapter(msgspec.structs.replace(config, peers=[]))
    await again.open(adapter_context())
    assert again.stats()["lanes"][origin.origin]["floor"] == floor
    await again.close()
    await origin.close()


@pytest.mark.anyio
async def test_durable_log_from_a_clock_far_ahead_begins_a_new_lane(tmp_path):
    """The clock was a day ahead and is right now: what is ingested does not wait a day to be shown."""
    config, day = MeshConfig(log=str(tmp_path)), 86_400 * 10**9
    origins = []
    for ahead in (day, 0, 0):
        adapter = MeshAdapter(config)
        await adapter.open(adapter_context(watermark=lambda _, ahead=ahead: time.time_ns() + ahead))
        now = time.time_ns() + ahead
        await adapter.append(
            Batch(producer="p", shard=0, first_seq=len(origins), stamps=[now], payloads=[b"a"])
        )
        assert not adapter._log.uncovered()
        origins.append(adapter.origin)
        await adapter.close()
    assert origins[0] != origins[1] == origins[2]


@pytest.mark.anyio
async def test_append_names_no_more_dependencies_than_an_entry_may_have():
    """After polling events of thousands of origins that came and went, peers still take what is appended."""
    adapter = MeshAdapter(MeshConfig())
    await adapter.open(adapter_context())
    adapter._reader.returned.update((f"o{n}", n) for n in range(5000))
    await adapter.append(batch_of(0, b"a"))
    assert set(adapter._log.lane.deps) == {f"o{n}" for n in range(904, 5000)}
    await adapter.close()


@pytest.mark.anyio
async def test_a_new_directory_is_synced_into_those_above_it(tmp_path, monkeypatch):
    """A log acknowledged as on disk is found there: so are the directories that lead to it."""
    synced = []
    sync = os.fsync

    def fsync(descriptor):
        synced.append(os.fstat(descriptor).st_ino)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    adapter = MeshAdapter(MeshConfig(log=str(tmp_path / "above" / "log")))
    await adapter.open(adapter_context())
    await adapter.close()
    assert {os.stat(path).st_ino for path in (tmp_path, tmp_path / "above")} <= set(synced)


@pytest.mark.anyio
async def test_a_log_restored_from_a_backup_is_told_of_by_whoever_has_more(tmp_path, caplog):
    """A peer would never take what is numbered again, so the link is refused instead, with the remedy."""
    log, backup = tmp_path / "log", tmp_path / "backup"
    node = await _opened(log=str(log), listen="tcp://127.0.0.1:*")
    address = node.stats()["listening"]
    peer = await _opened(peers=[address], heartbeat_ms=100)

    async def write(number):
        await node.append(batch_of(number, b"%d" % number))
        with anyio.fail_after(10):
            while len(await stored(peer, origin=node.origin)) <= number:
                await anyio.sleep(0.01)
        await node.close()

    await write(0)
    shutil.copytree(log, backup)
    node = await _opened(log=str(log), listen=address)
    await write(1)
    shutil.rmtree(log)
    shutil.copytree(backup, log)
    node = await _opened(log=str(log), listen=address)
    with anyio.fail_after(10):
        while "open a new directory" not in caplog.text:
            await anyio.sleep(0.01)
    await node.close()
    await peer.close()


@pytest.fixture
def anyio_backend():
    return "asyncio"
