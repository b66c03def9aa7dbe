"""The durable log: one SQLite database in WAL mode, written by one thread in group commits."""

from __future__ import annotations

import logging
import os
import secrets
import sqlite3
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Final, NamedTuple

import msgspec

from net_adapter_mesh.config import MeshConfig
from net_adapter_mesh.lane import Entry, Vector
from net_adapter_mesh.log import Kept, Mark
from netcore import AdapterRefusedError

try:
    import fcntl
except ImportError:  # not a Unix: nothing guards the directory against a second process
    fcntl = None  # type: ignore[assignment]

__all__ = ["SqliteStore"]

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS lanes (origin TEXT PRIMARY KEY, head INT, w INT, floor INT);
CREATE TABLE IF NOT EXISTS streams (origin TEXT, shard INT, next INT, key INT, PRIMARY KEY (origin, shard));
CREATE TABLE IF NOT EXISTS expected (producer TEXT, shard INT, next INT, PRIMARY KEY (producer, shard));
CREATE TABLE IF NOT EXISTS entries (
    origin TEXT, lsn INT, shard INT, start INT, count INT, w INT, lo INT, hi INT, deps BLOB, body BLOB,
    PRIMARY KEY (origin, lsn)
);
"""
_FORMAT: Final = "1"
_SYNC: Final = {"batch": "FULL", "interval": "NORMAL", "never": "OFF"}
_CACHE_BYTES: Final = 64 << 20
_GROUP: Final = 512
_RETRY_S: Final = 0.2
_PRODUCERS: Final = 64
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")


class _Put(NamedTuple):
    origin: str
    entries: Sequence[Entry]
    done: Callable[[], None]
    mark: Mark | None


class _Drop(NamedTuple):
    origin: str
    numbers: list[int]
    floor: int


class SqliteStore:
    """Keeps lanes in `<directory>/mesh.sqlite3`.

    `put` answers from the writer thread once its group is committed: with `fsync="batch"` that is
    on disk, otherwise in the care of the operating system. A failing disk is retried for ever;
    `failure` says why, and nothing is answered meanwhile.

    Args:
        config: directory and fsync policy.
        logger: for failures.

    Raises:
        AdapterRefusedError: the directory is in use by another process, unusable, or of another
            mesh or node.

    Source: https://www.sqlite.org/wal.html and https://www.sqlite.org/pragma.html#pragma_synchronous
    """

    def __init__(self, config: MeshConfig, logger: logging.Logger) -> None:
        self._config = config
        self._logger = logger
        self._directory = Path(str(config.log))
        self._queue: deque[_Put | _Drop] = deque()
        self._wanted = threading.Condition()
        self._ending = False
        self._cache: OrderedDict[int, Entry] = OrderedDict()
        self._cached_bytes = 0
        self._cache_lock = threading.Lock()
        self._read_lock = threading.Lock()
        self.failure = ""
        self._lock: IO[bytes] | None = None
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._lock = self._seize()
            self._reader = self._connect()
            self._reader.executescript(_SCHEMA)
            self.origin = self._identify()
        except (OSError, sqlite3.Error) as error:
            self._release()
            raise AdapterRefusedError(f"the log in {self._directory} cannot be used: {error}") from error
        except BaseException:
            self._release()
            raise
        self._dirty = threading.Event()
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._run, name=f"mesh-log-{self.origin}", daemon=True)]
        if config.fsync == "interval":
            self._threads.append(
                threading.Thread(target=self._sync, name=f"mesh-sync-{self.origin}", daemon=True)
            )
        for thread in self._threads:
            thread.start()

    def _seize(self) -> IO[bytes]:
        file = (self._directory / "lock").open("ab")
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                file.close()
                raise AdapterRefusedError(
                    f"the log in {self._directory} is in use by another process"
                ) from error
        return file

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._directory / "mesh.sqlite3", timeout=5, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA page_size=16384")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA synchronous={_SYNC[self._config.fsync]}")
        connection.execute("PRAGMA wal_autocheckpoint=4000")
        return connection

    def _release(self) -> None:
        connection: sqlite3.Connection | None = getattr(self, "_reader", None)
        if connection is not None:
            connection.close()
        if self._lock is not None:
            self._lock.close()

    def _identify(self) -> str:
        """Return the origin that this log continues, or a new one; see `docs/explanation/mesh.md`."""
        meta: dict[str, str] = dict(self._reader.execute("SELECT key, value FROM meta"))
        boot = _BOOT.read_text().strip() if _BOOT.exists() else ""
        if meta.get("format", _FORMAT) != _FORMAT:
            raise AdapterRefusedError(f"the log in {self._directory} has format {meta['format']!r}")
        if meta.get("mesh", self._config.name) != self._config.name:
            raise AdapterRefusedError(
                f"the log in {self._directory} belongs to the mesh {meta['mesh']!r}, not {self._config.name!r}"
            )
        node = meta.get("node") or self._config.node_id or secrets.token_hex(8)
        if self._config.node_id not in (None, node):
            raise AdapterRefusedError(
                f"the log in {self._directory} belongs to the node {node!r}, not {self._config.node_id!r}"
            )
        origin = meta.get("origin", f"{node}~{secrets.token_hex(4)}" if self._config.node_id else node)
        # Written without fsync, the end may be gone if the machine went down; peers may have it.
        # Never number other events the same: begin a new lane.
        safe = meta.get("fsync") == "batch" or meta.get("clean") == "1" or (boot and boot == meta.get("boot"))
        if "origin" in meta and not safe:
            origin = f"{node.partition('~')[0]}~{secrets.token_hex(4)}"
        fresh = {
            "format": _FORMAT, "mesh": self._config.name, "node": node, "origin": origin, "boot": boot,
            "fsync": self._config.fsync, "clean": "0",
        }  # fmt: skip
        self._reader.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", fresh.items())
        return origin

    def load(self) -> list[Kept]:
        """Return all lanes, without bodies."""
        run = self._reader.execute
        lanes = {
            origin: Kept(origin, [], {}, head, w, floor)
            for origin, head, w, floor in run("SELECT origin, head, w, floor FROM lanes")
        }
        for origin, shard, position, key in run("SELECT origin, shard, next, key FROM streams"):
            lanes[origin].ends[shard] = (position, key)
        vectors: dict[bytes, Vector] = {}
        for origin, lsn, shard, start, count, w, lo, hi, deps, size in run(
            "SELECT origin, lsn, shard, start, count, w, lo, hi, deps, length(body) FROM entries"
            " ORDER BY origin, lsn"
        ):
            if deps not in vectors:
                vectors[deps] = msgspec.msgpack.decode(deps, type=dict[str, int])
            entry = Entry(lsn, shard, start, count, w, lo, hi, vectors[deps], None)
            entry.size = size
            lanes[origin].entries.append(entry)
        return list(lanes.values())

    def expected(self) -> dict[tuple[str, int], int]:
        """Return, per (producer, shard), the next sequence number; of the latest producers."""
        rows = self._reader.execute("SELECT producer, shard, next FROM expected ORDER BY rowid").fetchall()
        latest = list(dict.fromkeys(producer for producer, *_ in reversed(rows)))[:_PRODUCERS]
        gone = {producer for producer, *_ in rows} - set(latest)
        self._reader.executemany("DELETE FROM expected WHERE producer = ?", [(name,) for name in gone])
        return {(producer, shard): seq for producer, shard, seq in rows if producer not in gone}

    def put(
        self, origin: str, entries: Sequence[Entry], done: Callable[[], None], mark: Mark | None = None
    ) -> None:
        """Write the entries with the next group, then call `done` on the writer thread."""
        with self._wanted:
            self._queue.append(_Put(origin, entries, done, mark))
            self._wanted.notify()

    def drop(self, origin: str, entries: Sequence[Entry]) -> None:
        """Delete trimmed entries with some later group."""
        with self._wanted:
            numbers = [entry.lsn for entry in entries]
            self._queue.append(_Drop(origin, numbers, max(numbers)))
            self._wanted.notify()

    def body(self, origin: str, lsn: int) -> bytes | None:
        """Read a body from disk; None if it was trimmed."""
        with self._read_lock:
            row = self._reader.execute(
                "SELECT body FROM entries WHERE origin = ? AND lsn = ?", (origin, lsn)
            ).fetchone()
        return row[0] if row else None

    def cached(self, entry: Entry) -> None:
        """Keep the bodies of the newest 64 MiB in memory, let go of older ones."""
        if entry.body is None:
            return
        with self._cache_lock:
            self._cache[id(entry)] = entry
            self._cached_bytes += entry.size
            while self._cached_bytes > _CACHE_BYTES:
                _, old = self._cache.popitem(last=False)
                self._cached_bytes -= old.size
                old.body = None

    def close(self, timeout: float) -> None:
        """Write what is queued, mark the log as cleanly closed, release it."""
        with self._wanted:
            self._ending = True
            self._wanted.notify()
        self._threads[0].join(timeout)
        self._ended.set()
        self._dirty.set()
        for thread in self._threads[1:]:
            thread.join(timeout)
        with self._read_lock:
            if not self._threads[0].is_alive() and not self.failure:
                self._reader.execute("UPDATE meta SET value = '1' WHERE key = 'clean'")
            self._release()

    def _run(self) -> None:
        connection = self._connect()
        try:
            while True:
                with self._wanted:
                    while not self._queue and not self._ending:
                        self._wanted.wait()
                    group = [self._queue[index] for index in range(min(_GROUP, len(self._queue)))]
                    if not group:
                        return
                if self._write(connection, group):
                    self._dirty.set()
                elif self._ending:
                    return
                else:
                    time.sleep(_RETRY_S)
        finally:
            connection.close()

    def _write(self, connection: sqlite3.Connection, group: list[_Put | _Drop]) -> bool:
        """Commit a group and answer it; False if the disk refuses."""
        try:
            connection.execute("BEGIN")
            for item in group:
                if isinstance(item, _Put):
                    _insert(connection, item)
                else:
                    connection.executemany(
                        "DELETE FROM entries WHERE origin = ? AND lsn = ?",
                        ((item.origin, number) for number in item.numbers),
                    )
                    connection.execute(
                        "UPDATE lanes SET floor = max(floor, ?) WHERE origin = ?", (item.floor, item.origin)
                    )
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            if not self.failure:
                self._logger.error("the log in %s cannot be written: %s", self._directory, error)
            self.failure = str(error)
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            return False
        self.failure = ""
        with self._wanted:
            for _ in group:
                self._queue.popleft()
        for item in group:
            if isinstance(item, _Put):
                item.done()
        return True

    def _sync(self) -> None:
        """Have the system write out what was committed, every interval in which anything was.

        Beside the writer, so that commits go on meanwhile; SQLite itself syncs at checkpoints.
        """
        interval = self._config.fsync_interval_ms / 1000
        while not self._ended.is_set():
            self._dirty.wait()
            self._dirty.clear()
            try:
                with (self._directory / "mesh.sqlite3-wal").open("rb") as file:
                    os.fsync(file.fileno())
            except OSError as error:
                self._logger.error("the log in %s cannot be synced: %s", self._directory, error)
            self._ended.wait(interval)


def _insert(connection: sqlite3.Connection, put: _Put) -> None:
    entries = [entry for entry in put.entries if entry.count]
    connection.executemany(
        "INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            (
                put.origin, entry.lsn, entry.shard, entry.start, entry.count, entry.w, entry.lo, entry.hi,
                msgspec.msgpack.encode(entry.deps), entry.body,
            )
            for entry in entries
        ),
    )  # fmt: skip
    ends = {entry.shard: (put.origin, entry.shard, entry.end, entry.hi) for entry in entries}
    connection.executemany("INSERT OR REPLACE INTO streams VALUES (?, ?, ?, ?)", ends.values())
    if put.entries:
        last = put.entries[-1]
        connection.execute(
            "INSERT INTO lanes VALUES (?, ?, ?, 0) ON CONFLICT (origin) DO UPDATE SET"
            " head = max(head, excluded.head), w = max(w, excluded.w)",
            (put.origin, last.lsn, max(entry.w for entry in put.entries)),
        )
    if put.mark is not None:
        connection.execute("INSERT OR REPLACE INTO expected VALUES (?, ?, ?)", put.mark)
