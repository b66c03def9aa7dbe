"""The durable log: one SQLite database in WAL mode, written by one thread in group commits."""

from __future__ import annotations

import logging
import os
import queue
import secrets
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import IO, Final

import msgspec

from net_adapter_mesh.config import MeshConfig
from net_adapter_mesh.inplace import InPlace
from net_adapter_mesh.keeper import Keeper
from net_adapter_mesh.lane import Entry
from net_adapter_mesh.log import Kept, Put
from net_adapter_mesh.tables import FORMAT, SCHEMA, Drop, Expected, load, prune_expected, write
from netcore import AdapterRefusedError, TransientAdapterError

try:
    import fcntl
except ImportError:  # not a Unix: nothing guards the directory against a second process
    fcntl = None  # type: ignore[assignment]

__all__ = ["SqliteStore"]

_SYNC: Final = {"batch": "FULL", "interval": "NORMAL", "never": "NORMAL"}
"""Never OFF: a checkpoint that syncs nothing can leave a log that is no database after a crash."""
_PAGE_BYTES: Final = {"batch": 32 << 10, "interval": 64 << 10, "never": 64 << 10}
"""Of a new log. The larger ones cost a batch of 100 KiB a tenth less, and a single event a third more,
which is written in whole pages; where each commit is synced too, that is not worth it."""
_WAL_BYTES: Final = {"batch": 64 << 20, "interval": 512 << 20, "never": 512 << 20}
"""At which SQLite checkpoints of its own accord; without "batch" the keeper does so long before."""
_HOT_KIB: Final = 1024  # of pages kept by each connection: more of a writer's do not stay in a core's cache
_PART_BYTES: Final = 1 << 20
_SLOW_S: Final = 0.01  # for the event loop
_SLOW_IO_S: Final = 0.05  # most of what the I/O thread waits there is for the interpreter lock
_CACHE_BYTES: Final = 16 << 20  # twice the default credit of a link
_GROUP: Final = 512
_GROUP_BYTES: Final = 8 << 20
_RETRY_S: Final = 0.2
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")


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
        self.gathers = config.fsync != "batch"
        """A statement for several entries costs less than one for each."""
        self._queue: queue.SimpleQueue[Put | Drop | None] = queue.SimpleQueue()
        self._ending = False
        self._cache: OrderedDict[int, Entry] = OrderedDict()
        self._cached_bytes = 0
        self._cache_lock = threading.Lock()
        self._read_lock = threading.Lock()
        self._rows_lock = threading.Lock()
        self.failure = ""
        self._unreadable = False
        self._lock: IO[bytes] | None = None
        try:
            _make(self._directory)
            self._lock = self._seize()
            self._reader = self._connect()
            self._reader.executescript(SCHEMA)
            self._loop_here = InPlace(self._connect(timeout=0.0, checkpoint_pages=0), _SLOW_S)
            self._io_here = InPlace(self._connect(timeout=0.0, checkpoint_pages=0), _SLOW_IO_S)
            self.origin = self._identify()
        except (OSError, sqlite3.Error) as error:
            self._release()
            raise AdapterRefusedError(f"the log in {self._directory} cannot be used: {error}") from error
        except BaseException:
            self._release()
            raise
        self._keeper: Keeper | None = None
        if config.fsync != "batch":
            interval_s = config.fsync_interval_ms / 1000 if config.fsync == "interval" else None
            wal = self._directory / "mesh.sqlite3-wal"
            self._keeper = Keeper(wal, self._connect, interval_s, logger, f"mesh-sync-{self.origin}")
        self._thread = threading.Thread(target=self._run, name=f"mesh-log-{self.origin}", daemon=True)
        self._thread.start()

    @property
    def unsynced(self) -> str:
        """Why what was acknowledged is not synced as promised; "" while it is."""
        return self._keeper.unsynced if self._keeper is not None else ""

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

    def _connect(self, timeout: float = 5.0, checkpoint_pages: int | None = None) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self._directory / "mesh.sqlite3", timeout=timeout, isolation_level=None, check_same_thread=False
        )
        fsync = self._config.fsync
        try:
            connection.execute(f"PRAGMA page_size={_PAGE_BYTES[fsync]}")
            connection.execute(f"PRAGMA cache_size=-{_HOT_KIB}")
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(f"PRAGMA synchronous={_SYNC[fsync]}")
            if checkpoint_pages is None:
                [page_bytes] = connection.execute("PRAGMA page_size").fetchone()
                checkpoint_pages = _WAL_BYTES[fsync] // page_bytes
            connection.execute(f"PRAGMA wal_autocheckpoint={checkpoint_pages}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _release(self) -> None:
        for name in ("_loop_here", "_io_here", "_reader"):
            connection: InPlace | sqlite3.Connection | None = getattr(self, name, None)
            if connection is not None:
                connection.close()
        if self._lock is not None:
            if fcntl is not None and not self._lock.closed:
                fcntl.flock(self._lock, fcntl.LOCK_UN)  # closing is not enough: a forked child has it too
            self._lock.close()

    def _identify(self) -> str:
        """Return the origin that this log continues, or a new one; see `docs/explanation/mesh.md`."""
        meta: dict[str, str] = dict(self._reader.execute("SELECT key, value FROM meta"))
        boot = _BOOT.read_text().strip() if _BOOT.exists() else ""
        if meta.get("format", FORMAT) != FORMAT:
            raise AdapterRefusedError(
                f"the log in {self._directory} has format {meta['format']}, this version keeps format {FORMAT}:"
                " read it with the version that wrote it, or name another directory"
            )
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
            "format": FORMAT, "mesh": self._config.name, "node": node, "origin": origin, "boot": boot,
            "fsync": self._config.fsync, "clean": "0",
        }  # fmt: skip
        # On disk before anything is numbered: else the machine goes down, what is read here next is
        # that the log was closed, or kept with "batch", and numbers are used again.
        self._reader.execute("PRAGMA synchronous=FULL")
        self._reader.execute("BEGIN")
        self._reader.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", fresh.items())
        self._reader.execute("COMMIT")
        self._reader.execute(f"PRAGMA synchronous={_SYNC[self._config.fsync]}")
        return origin

    def load(self) -> list[Kept]:
        """Return all lanes, without bodies.

        Raises:
            AdapterRefusedError: it is damaged.
        """
        try:
            lanes, expected = load(self._reader)
            self._expected = prune_expected(self._reader, expected)
        except (sqlite3.Error, msgspec.MsgspecError, LookupError, TypeError, ValueError) as error:
            raise AdapterRefusedError(f"the log in {self._directory} is damaged: {error!r}") from error
        self._rows = count(1 + max((entry.row for lane in lanes for entry in lane.entries), default=0))
        return lanes

    def renew(self) -> None:
        """Write under a new origin from now on. Before anything is put."""
        self.origin = f"{self.origin.partition('~')[0]}~{secrets.token_hex(4)}"
        self._reader.execute("UPDATE meta SET value = ? WHERE key = 'origin'", (self.origin,))

    def expected(self) -> Expected:
        """Return, per (producer, shard), the next sequence number; of the latest producers. After `load`."""
        return self._expected

    def put(self, group: Sequence[Put]) -> None:
        """Write the entries, at once or with the writer thread's next group; then call each `done`.

        At once, in parts of about 1 MiB, where that is no more than handing bytes to the operating
        system: nothing is to be synced, and no checkpoint is in the way. See `InPlace`.
        """
        with self._rows_lock:
            for put in group:
                for entry in put.entries:
                    entry.row = next(self._rows)
        here = self._loop_here if group[0].origin == self.origin else self._io_here
        for part, size in _parts(group):
            keeper = self._keeper
            if keeper and not (keeper.failing or self.failure) and here.write(part, size):
                keeper.wrote(size)
                for put in part:
                    put.done()
            else:
                for put in part:
                    self._queue.put(here.leave(put))

    def drop(self, origin: str, entries: Sequence[Entry]) -> None:
        """Delete trimmed entries with some later group."""
        with self._cache_lock:
            for entry in entries:
                if self._cache.pop(id(entry), None) is not None:
                    self._cached_bytes -= entry.size
        self._queue.put(Drop(origin, entries))

    def body(self, entry: Entry) -> bytes | None:
        """Read a body from disk; None if it was trimmed.

        Raises:
            TransientAdapterError: it cannot be read now.
        """
        with self._read_lock:
            try:
                found = self._reader.execute(
                    "SELECT body FROM entries WHERE row = ?", (entry.row,)
                ).fetchone()
            except sqlite3.Error as error:
                if not self._unreadable:
                    self._logger.error("the log in %s cannot be read: %s", self._directory, error)
                self._unreadable = True
                raise TransientAdapterError(
                    f"the log in {self._directory} cannot be read: {error}"
                ) from error
            self._unreadable = False
        return found[0] if found else None

    def cached(self, entry: Entry) -> None:
        """Keep the bodies of the newest 16 MiB in memory, let go of older ones."""
        if not entry.body:
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
        self._ending = True
        self._queue.put(None)
        self._thread.join(timeout)
        if self._keeper is not None:
            self._keeper.close(timeout)
        with self._read_lock:
            try:
                if not self._thread.is_alive() and not self.failure:
                    self._reader.execute("UPDATE meta SET value = '1' WHERE key = 'clean'")
            except sqlite3.Error as error:  # as if the process had been killed
                self._logger.error("the log in %s could not be marked as closed: %s", self._directory, error)
            finally:
                self._release()

    def _run(self) -> None:
        try:
            self._serve()
        except Exception as error:  # nothing is stored from now on: let everybody know
            self.failure = f"its writer ended: {error!r}"
            self._logger.exception("the log in %s cannot be written any more", self._directory)

    def _serve(self) -> None:
        connection = self._connect()
        try:
            while group := self._gather():
                while not self._write(connection, group):
                    if self._ending:
                        return
                    time.sleep(_RETRY_S)
                if self._keeper is not None:
                    self._keeper.wrote(sum(entry.size for item in group for entry in item.entries))
                for item in group:
                    if isinstance(item, Put):
                        item.done()
        finally:
            connection.close()

    def _gather(self) -> list[Put | Drop]:
        """Wait for something to write; return what there is, up to a limit; nothing at the end."""
        group: list[Put | Drop] = []
        size = 0
        item = self._queue.get()
        while item is not None:
            group.append(item)
            size += sum(entry.size for entry in item.entries)
            if len(group) == _GROUP or size >= _GROUP_BYTES:
                return group
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return group
        if group:
            self._queue.put(None)  # the end comes after this group
        return group

    def _write(self, connection: sqlite3.Connection, group: list[Put | Drop]) -> bool:
        """Commit a group; False if the disk refuses."""
        try:
            write(connection, group)
        except sqlite3.Error as error:
            if not self.failure:
                self._logger.error("the log in %s cannot be written: %s", self._directory, error)
            self.failure = str(error)
            return False
        self.failure = ""
        return True


def _parts(group: Sequence[Put]) -> Iterator[tuple[list[Put], int]]:
    """Yield a group in parts of about 1 MiB, and their sizes."""
    part: list[Put] = []
    size = 0
    for put in group:
        more = sum(entry.size for entry in put.entries)
        if part and size + more > _PART_BYTES:
            yield part, size
            part, size = [], 0
        part.append(put)
        size += more
    if part:
        yield part, size


def _make(directory: Path) -> None:
    """Make a directory so that it is still there after the machine went down."""
    new = [path for path in (directory, *directory.parents) if not path.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    for path in new if os.name == "posix" else ():
        entry = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(entry)
        finally:
            os.close(entry)
