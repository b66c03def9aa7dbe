"""The durable log: what a killed node still has, and how it goes on."""

import contextlib
import os
import sqlite3
from functools import partial

import anyio
import msgspec
import pytest
from mesh_batches import batch_of, stored
from mesh_cluster import assert_complete
from net_adapter_mesh import MeshAdapter, MeshConfig, durable, inplace, keeper
from net_adapter_mesh.keeper import Keeper
from net_adapter_mesh.reserving import reserve

from netcore import AdapterRefusedError, Stream, TransientAdapterError
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


@pytest.mark.parametrize("fsync", ["batch", "interval"])
def test_durable_peer_killed_resumes_from_its_position(cluster, tmp_path, fsync):
    """A replica that was killed has what it stored and fetches only the rest."""
    a = cluster.start()
    a.ask("load", count=10_000, batch=500)
    b = cluster.start(peers=[a.address], log=str(tmp_path / "b"), fsync=fsync)
    b.ask("gather", count=10_000, full=False)
    b.kill()
    a.ask("load", count=1000, batch=100, tag="more")
    again = cluster.start(peers=[a.address], log=str(tmp_path / "b"), fsync=fsync)
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


@pytest.mark.parametrize("share", [0.3, 0.99])
def test_durable_log_whose_end_was_not_written_is_whole_up_to_there(cluster, tmp_path, share):
    """A machine that goes down loses the log's end, wherever it stops, and nothing before it."""
    a = cluster.start(log=str(tmp_path / "a"), fsync="interval", node_id="n")
    a.ask("load", count=5000, shards=1, batch=10)
    a.kill()
    wal = tmp_path / "a" / "mesh.sqlite3-wal"
    frames = len(wal.read_bytes().rstrip(b"\0"))
    cut = int(frames * share)
    with wal.open("r+b") as file:  # reserved and never written: zeros
        file.seek(cut)
        file.write(bytes(frames - cut))
    with contextlib.closing(sqlite3.connect(tmp_path / "a" / "mesh.sqlite3")) as log, log:
        assert log.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        log.execute("UPDATE meta SET value = 'another boot' WHERE key = 'boot'")
        kept = log.execute("SELECT lsn FROM entries WHERE count > 0 ORDER BY row").fetchall()
        assert 0 < len(kept) < 500
    again = cluster.start(log=str(tmp_path / "a"), fsync="interval", node_id="n")
    assert again.origin != a.origin
    assert_complete(again.ask("page")["events"], 10 * len(kept))


def test_reserve_keeps_what_is_there_and_adds_zeros(tmp_path):
    """Only room is added; where there is nothing to add it to, nothing happens."""
    path = tmp_path / "file"
    assert not reserve(path, 0, 1 << 20)
    assert not path.exists()
    path.write_bytes(b"content")
    if not reserve(path, 0, 1 << 20):
        pytest.skip("this file system reserves nothing")
    assert path.read_bytes() == b"content" + bytes((1 << 20) - 7)
    assert reserve(path, 1 << 20, 2 << 20)
    assert path.stat().st_size == 2 << 20 <= path.stat().st_blocks * 512


@pytest.mark.anyio
async def test_durable_log_on_a_disk_that_reserves_nothing_works_the_same(tmp_path, monkeypatch):
    """Reserving only saves time; it is not tried again once it failed."""
    asked = []
    monkeypatch.setattr(keeper, "reserve", lambda *args: bool(asked.append(args)))
    adapter = MeshAdapter(MeshConfig(log=str(tmp_path), fsync="interval", fsync_interval_ms=10))
    await adapter.open(adapter_context())
    for number in range(20):
        await adapter.append(batch_of(number, b"%d" % number))
    assert await stored(adapter) == [b"%d" % number for number in range(20)]
    await adapter.close()
    assert len(asked) == 1


@pytest.mark.anyio
async def test_durable_log_is_emptied_under_small_commits_without_a_pause(tmp_path, monkeypatch):
    """What a commit writes beside bodies counts too: small events do not grow the log without end."""
    monkeypatch.setattr(keeper, "_CHECKPOINT_BYTES", 2 << 20)
    adapter = MeshAdapter(MeshConfig(log=str(tmp_path), fsync="interval", fsync_interval_ms=10))
    await adapter.open(adapter_context())
    before, number = (tmp_path / "mesh.sqlite3").stat().st_size, 0
    with anyio.fail_after(20):
        while (tmp_path / "mesh.sqlite3").stat().st_size == before:
            await adapter.append(batch_of(number, b"x" * 100))
            number += 1
    assert number * 100 < 1 << 20
    await adapter.close()


@pytest.mark.anyio
@pytest.mark.parametrize(("made", "then"), [("batch", "interval"), ("interval", "batch"), ("never", "batch")])
async def test_durable_log_opened_with_another_fsync_keeps_its_pages_and_goes_on(tmp_path, made, then):
    """A log's pages are as large as its first `fsync` wanted them; another one works with them."""
    for number, fsync in enumerate([made, then, made]):
        adapter = MeshAdapter(MeshConfig(log=str(tmp_path), fsync=fsync))
        await adapter.open(adapter_context())
        await adapter.append(batch_of(number, b"%d" % number))
        assert await stored(adapter) == [b"0", b"1", b"2"][: number + 1]
        await adapter.close()
        with contextlib.closing(sqlite3.connect(tmp_path / "mesh.sqlite3")) as log:
            assert log.execute("PRAGMA page_size").fetchone() == (32_768 if made == "batch" else 65_536,)


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


@pytest.mark.anyio
async def test_durable_log_of_another_format_is_refused_and_left_as_it_is(tmp_path):
    """It says which format it found and which it keeps; the version that wrote it can go on."""
    with contextlib.closing(sqlite3.connect(tmp_path / "mesh.sqlite3")) as log, log:
        log.execute("CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
        log.execute("CREATE TABLE entries (origin TEXT, lsn INT, body BLOB, PRIMARY KEY (origin, lsn))")
        log.execute("INSERT INTO meta VALUES ('format', '2'), ('clean', '1')")
        log.execute("INSERT INTO entries VALUES ('n', 1, 'kept')")
    with pytest.raises(AdapterRefusedError, match="has format 2, this version keeps format 3"):
        await MeshAdapter(MeshConfig(log=str(tmp_path))).open(adapter_context())
    with contextlib.closing(sqlite3.connect(tmp_path / "mesh.sqlite3")) as log:
        assert log.execute("SELECT * FROM entries").fetchall() == [("n", 1, "kept")]
        assert dict(log.execute("SELECT * FROM meta")) == {"format": "2", "clean": "1"}


@pytest.mark.anyio
@pytest.mark.parametrize("fsync", ["batch", "never"])
@pytest.mark.parametrize("max_events", [1, 100])
async def test_durable_log_reopened_stores_no_retry_twice(tmp_path, fsync, max_events):
    """What is expected of a producer outlives the node, also where retention took the batch."""
    config = MeshConfig(log=str(tmp_path), fsync=fsync, max_events=max_events)
    for _ in range(2):
        adapter = MeshAdapter(config)
        await adapter.open(adapter_context())
        await adapter.append(batch_of(0, b"a", b"b"))
        await adapter.append(batch_of(2, b"c"))
        assert await stored(adapter) == ([b"c"] if max_events == 1 else [b"a", b"b", b"c"])
        await adapter.close()
    adapter = MeshAdapter(config)
    await adapter.open(adapter_context())
    await adapter.append(batch_of(2, b"c", b"d"))
    assert (await stored(adapter))[-1] == b"d"
    assert (await adapter.bounds(Stream(0, adapter.origin)))[1] == "4"
    await adapter.close()


@pytest.mark.anyio
@pytest.mark.parametrize("trimmed", [False, True])
async def test_durable_log_with_an_older_own_lane_stores_no_retry_twice(tmp_path, trimmed):
    """The greatest number counts, whichever own lane tells it and whether its batch is still there."""
    config = MeshConfig(log=str(tmp_path), fsync="never", node_id="n")
    adapter = MeshAdapter(config)
    await adapter.open(adapter_context())
    await adapter.append(batch_of(0, b"a"))
    await adapter.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "mesh.sqlite3")) as log, log:  # the machine went down
        for table in ("entries", "lanes", "streams"):
            log.execute(f"UPDATE {table} SET origin = 'n~zzzzzzzz'")
        log.execute("UPDATE meta SET value = 'n~zzzzzzzz' WHERE key = 'origin'")
        log.execute("UPDATE meta SET value = '0' WHERE key IN ('clean', 'boot')")
    adapter = MeshAdapter(config)
    await adapter.open(adapter_context())
    assert adapter.origin != "n~zzzzzzzz"
    await adapter.append(batch_of(1, b"b"))
    if trimmed:
        lane = adapter._log.lanes["n~zzzzzzzz"]
        adapter._store.drop(adapter.origin, adapter._log.lane.entries[:1])
        adapter._store.drop("n~zzzzzzzz", lane.entries[:1])
    await adapter.close()
    adapter = MeshAdapter(config)
    await adapter.open(adapter_context())
    before = (await adapter.bounds(Stream(0, adapter.origin)))[1]
    await adapter.append(batch_of(1, b"b"))
    assert (await adapter.bounds(Stream(0, adapter.origin)))[1] == before == "1"
    await adapter.close()


@pytest.mark.anyio
async def test_durable_append_while_the_log_is_locked_waits_and_keeps_the_order(tmp_path):
    """The loop does not wait for a lock: it leaves the batch, and those behind it, to the writer."""
    adapter = MeshAdapter(MeshConfig(log=str(tmp_path), fsync="never"))
    await adapter.open(adapter_context())
    await adapter.append(batch_of(0, b"a"))
    other = sqlite3.connect(tmp_path / "mesh.sqlite3", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(adapter.append, batch_of(1, b"b"))
        await anyio.wait_all_tasks_blocked()
        assert await stored(adapter) == [b"a"]
        other.execute("ROLLBACK")
    other.close()
    await adapter.append(batch_of(2, b"c"))
    assert await stored(adapter) == [b"a", b"b", b"c"]
    await adapter.close()


@pytest.fixture
def commits(monkeypatch):
    """What was committed in place: for each commit the numbers of its entries."""
    seen = []
    write = inplace.write

    def watched(connection, group):
        write(connection, group)
        seen.append([entry.lsn for put in group for entry in put.entries])

    monkeypatch.setattr(inplace, "write", watched)
    return seen


@pytest.mark.anyio
async def test_durable_appends_of_one_turn_are_one_commit_and_continue_after_it(tmp_path, commits):
    """Shards that append at once share a commit; each of their retries is known after a restart."""
    config = MeshConfig(log=str(tmp_path), fsync="interval")
    for _ in range(2):  # the second time all of it is a retry
        adapter = MeshAdapter(config)
        await adapter.open(adapter_context())
        async with anyio.create_task_group() as tasks:
            for shard in range(4):
                tasks.start_soon(adapter.append, batch_of(0, b"%d" % shard, shard=shard))
        for shard in range(4):
            assert await stored(adapter, shard) == [b"%d" % shard]
        assert commits[0] == [1, 2, 3, 4]
        await adapter.close()
    assert sum(lsn in (1, 2, 3, 4) for commit in commits for lsn in commit) == 4


@pytest.mark.anyio
async def test_durable_append_cancelled_before_its_commit_is_stored_once(tmp_path):
    """It has its number, so it is stored; its retry stores nothing again."""
    adapter = MeshAdapter(MeshConfig(log=str(tmp_path), fsync="never"))
    await adapter.open(adapter_context())
    with anyio.CancelScope() as scope:
        scope.cancel()
        await adapter.append(batch_of(0, b"a"))
    assert scope.cancelled_caught
    await adapter.append(batch_of(0, b"a", b"b"))
    assert await stored(adapter) == [b"a", b"b"]
    await adapter.close()


@pytest.mark.anyio
async def test_durable_append_under_way_at_the_close_is_in_the_log(tmp_path):
    """What was numbered is written before the log is released."""
    config = MeshConfig(log=str(tmp_path), fsync="never")
    adapter = MeshAdapter(config)
    await adapter.open(adapter_context())
    with anyio.CancelScope() as scope:
        scope.cancel()
        await adapter.append(batch_of(0, b"a"))
    adapter._node.failure = RuntimeError("gone")
    await adapter.close()
    adapter = MeshAdapter(config)
    await adapter.open(adapter_context())
    assert await stored(adapter) == [b"a"]
    await adapter.close()


@pytest.mark.anyio
async def test_durable_gathered_appends_are_committed_in_parts(tmp_path, commits):
    """The loop commits about 1 MiB at a time; a larger batch and all behind it go to the writer."""
    adapter = MeshAdapter(MeshConfig(log=str(tmp_path), fsync="never"))
    await adapter.open(adapter_context())
    large = bytes(400_000)
    async with anyio.create_task_group() as tasks:
        for shard in range(5):
            payloads = [large] * (4 if shard == 3 else 1)
            tasks.start_soon(partial(adapter.append, batch_of(0, *payloads, shard=shard)))
    assert commits == [[1, 2], [3]]
    assert [len(await stored(adapter, shard)) for shard in range(5)] == [1, 1, 1, 4, 1]
    await adapter.append(batch_of(1, b"after"))
    with anyio.fail_after(10):
        while len(commits) == 2:  # until the writer has answered for the last time
            await adapter.append(batch_of(len(await stored(adapter)), b"after"))
    await adapter.close()


@pytest.mark.anyio
async def test_durable_received_entries_wait_for_a_locked_log_and_keep_their_order(tmp_path):
    """The I/O thread does not wait for a lock either; it writes itself again once the writer is through."""
    origin = MeshAdapter(MeshConfig(listen="tcp://127.0.0.1:*"))
    await origin.open(adapter_context())
    peer = MeshConfig(peers=[origin.stats()["listening"]], log=str(tmp_path), fsync="interval")
    replica = MeshAdapter(peer)
    await replica.open(adapter_context())

    async def until(*payloads):
        with anyio.fail_after(10):
            while await stored(replica, origin=origin.origin) != list(payloads):
                await anyio.sleep(0.005)

    await origin.append(batch_of(0, b"a"))
    await until(b"a")
    with contextlib.closing(sqlite3.connect(tmp_path / "mesh.sqlite3", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        await origin.append(batch_of(1, b"b"))
        with anyio.fail_after(10):
            while replica.stats()["links"][0]["bytes_received"] < origin.stats()["links"][0]["bytes_sent"]:
                await anyio.sleep(0.005)
        assert await stored(replica, origin=origin.origin) == [b"a"]
        other.execute("ROLLBACK")
    await origin.append(batch_of(2, b"c"))
    await until(b"a", b"b", b"c")
    await replica.close()
    again = MeshAdapter(msgspec.structs.replace(peer, peers=[]))
    await again.open(adapter_context())
    assert await stored(again, origin=origin.origin) == [b"a", b"b", b"c"]
    await again.close()
    await origin.close()


@pytest.mark.anyio
async def test_durable_lanes_that_share_a_log_are_read_and_trimmed_by_their_own_rows(tmp_path):
    """Rows are numbered as they come; each lane finds its own after a restart, also behind deletions."""
    origin = MeshAdapter(MeshConfig(listen="tcp://127.0.0.1:*"))
    await origin.open(adapter_context())
    config = MeshConfig(peers=[origin.stats()["listening"]], log=str(tmp_path), fsync="never", max_events=4)
    replica = MeshAdapter(config)
    await replica.open(adapter_context())
    for number in range(10):
        await origin.append(batch_of(number, b"theirs %d" % number))
        await replica.append(batch_of(number, b"mine %d" % number))
    with anyio.fail_after(10):
        while (await stored(replica, origin=origin.origin))[-1:] != [b"theirs 9"]:
            await anyio.sleep(0.005)
    await replica.close()
    again = MeshAdapter(msgspec.structs.replace(config, peers=[]))
    await again.open(adapter_context())
    assert await stored(again) == [b"mine %d" % number for number in range(6, 10)]
    assert await stored(again, origin=origin.origin) == [b"theirs %d" % number for number in range(6, 10)]
    await again.append(batch_of(10, b"mine 10"))
    assert (await stored(again))[-1] == b"mine 10"
    await again.close()
    await origin.close()


@pytest.mark.anyio
@pytest.mark.parametrize("fsync", ["batch", "interval"])
async def test_durable_writer_that_ended_is_told_of(tmp_path, monkeypatch, fsync):
    """An append says why it fails, and so does the node's health, whatever ended the writer."""
    adapter = MeshAdapter(MeshConfig(log=str(tmp_path), timeout_ms=200, fsync=fsync))
    await adapter.open(adapter_context())
    await adapter.append(batch_of(0, b"a"))

    def broken(*_):
        raise OverflowError("too large")

    monkeypatch.setattr(durable, "write", broken)
    monkeypatch.setattr(inplace, "write", broken)
    for _ in range(2):
        with pytest.raises(TransientAdapterError, match="writer ended: OverflowError"):
            await adapter.append(batch_of(1, b"b"))
    assert await stored(adapter) == [b"a"]
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
    await adapter.append(batch_of(0, b"a"))
    assert "cannot be synced" in await until(False)
    monkeypatch.setattr(os, "fdatasync", sync)
    await until(True)  # tried again by itself
    assert caplog.text.count("cannot be synced") == 1
    await adapter.close()


@pytest.mark.anyio
async def test_durable_log_is_synced_again_once_all_of_it_was_written_elsewhere(tmp_path, monkeypatch):
    """A sync that succeeds after one that failed says nothing of what that one left out."""
    adapter = MeshAdapter(MeshConfig(log=str(tmp_path), fsync="interval", fsync_interval_ms=10))
    await adapter.open(adapter_context())
    sync, calls = os.fdatasync, []

    def first_broken(descriptor):
        calls.append(descriptor)
        if len(calls) == 1:
            raise OSError(5, "Input/output error")
        sync(descriptor)

    monkeypatch.setattr(os, "fdatasync", first_broken)
    checkpoint, in_the_way = Keeper._checkpoint, [True]
    monkeypatch.setattr(Keeper, "_checkpoint", lambda *args: not in_the_way and checkpoint(*args))
    await adapter.append(batch_of(0, b"a"))
    with anyio.fail_after(10):
        while len(calls) < 4:
            await anyio.sleep(0.005)
    assert "cannot be synced" in (await adapter.health()).reason
    in_the_way.clear()
    with anyio.fail_after(10):
        while not (await adapter.health()).ok:
            await anyio.sleep(0.005)
    await adapter.close()


@pytest.mark.anyio
async def test_durable_syncing_thread_that_ended_is_told_of(tmp_path, monkeypatch, caplog):
    """Whatever ends it: appends go on, and health says that nothing is synced any more."""
    monkeypatch.setattr(Keeper, "_sync", lambda _: 1 / 0)
    adapter = MeshAdapter(MeshConfig(log=str(tmp_path), fsync="interval", fsync_interval_ms=10))
    await adapter.open(adapter_context())
    await adapter.append(batch_of(0, b"a"))
    with anyio.fail_after(10):
        while (await adapter.health()).ok:
            await anyio.sleep(0.005)
    await adapter.append(batch_of(1, b"b"))
    assert "ZeroDivisionError" in (await adapter.health()).reason
    assert "no longer synced" in caplog.text
    assert await stored(adapter) == [b"a", b"b"]
    await adapter.close()


@pytest.fixture
def anyio_backend():
    return "asyncio"
