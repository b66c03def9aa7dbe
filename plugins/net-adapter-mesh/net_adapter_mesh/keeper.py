"""The thread beside the durable log's writers: it syncs their write-ahead log, empties it, makes room."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from net_adapter_mesh.reserving import reserve

__all__ = ["Keeper"]

_CHECKPOINT_BYTES: Final = 256 << 20
_COMMIT_BYTES: Final = 128 << 10
"""What a commit writes beside bodies: two pages."""
_AHEAD: Final = 64 << 20
_QUIET_S: Final = 1.0
_PAUSE_S: Final = 0.05


class Keeper:
    """Syncs what was committed, every interval in which anything was; checkpoints in quiet moments.

    While there are none, it checkpoints every 256 MiB: a checkpoint writes and syncs everything a
    second time. It copies most of the log beside those who write, and then, holding them up, only
    what they wrote in that time.

    After a sync that failed, one that succeeds tells nothing of what the failed one should have
    written: the system may hold it for clean. So the log counts as synced again once a checkpoint
    has written all of it elsewhere.

    It reserves the log's space, at least 64 MiB ahead of what is written and twice what came in the
    last interval: a sync then finds the file's size and blocks settled, and neither it nor those
    who write wait for the file system's journal. SQLite reads a log up to the first frame that is
    none, so what is reserved means nothing to it. Where space cannot be reserved, all else is the same.

    Args:
        wal: the write-ahead log.
        connect: makes a connection; called on the thread.
        interval_s: how often to sync; None: never, beyond what SQLite does at checkpoints.
        logger: for failures.

    Source: https://www.sqlite.org/c3ref/wal_checkpoint_v2.html; Rebello et al., "Can Applications Recover
    from fsync Failures?" (USENIX ATC 2020)
    """

    def __init__(
        self,
        wal: Path,
        connect: Callable[[], sqlite3.Connection],
        interval_s: float | None,
        logger: logging.Logger,
        name: str,
    ) -> None:
        self._wal = wal
        self._connect = connect
        self._interval_s = interval_s
        self._logger = logger
        self._unmoved = 0
        self._looked = 0  # what was unmoved at the last look
        self._reserved = 0
        self._reserve()
        self._dirty = threading.Event()
        self._ended = threading.Event()
        self.failing = False
        """The last checkpoint failed, or found no moment at which nobody wrote."""
        self.unsynced = ""
        """Why what was committed is not synced as promised; "" while it is."""
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def wrote(self, size: int) -> None:
        """Take note of `size` bytes committed. Any thread; a count lost to a race does not matter."""
        self._unmoved += size + _COMMIT_BYTES
        if not self._dirty.is_set():
            self._dirty.set()

    def close(self, timeout: float) -> None:
        """End the thread."""
        self._ended.set()
        self._dirty.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        try:
            self._keep()
        except Exception as error:
            self._logger.exception("%s is no longer synced", self._wal)
            self.failing, self.unsynced = True, f"the syncing thread ended: {error!r}"

    def _keep(self) -> None:
        connection = self._connect()
        try:
            while not self._ended.is_set():
                quiet = not self._dirty.wait(_QUIET_S if self._unmoved else None)
                self._dirty.clear()
                self._reserve()
                synced = self._interval_s is None or quiet or self._sync()
                mend = bool(self.unsynced) and synced
                if quiet or mend or self._unmoved >= _CHECKPOINT_BYTES:
                    self._unmoved = 0
                    if self._checkpoint(connection):
                        self.unsynced = "" if synced else self.unsynced
                    elif mend:
                        self._dirty.set()
                self._ended.wait(_PAUSE_S if self._interval_s is None else self._interval_s)
        finally:
            connection.close()

    def _reserve(self) -> None:
        written = self._unmoved
        grown, self._looked = max(0, written - self._looked), written
        wanted = -(-(written + max(_AHEAD, 2 * grown)) // _AHEAD) * _AHEAD
        wanted = min(wanted, _CHECKPOINT_BYTES + _AHEAD)
        if wanted > self._reserved >= 0:
            self._reserved = wanted if reserve(self._wal, self._reserved, wanted) else -1

    def _sync(self) -> bool:
        try:
            with self._wal.open("rb") as file:
                os.fdatasync(file.fileno()) if hasattr(os, "fdatasync") else os.fsync(file.fileno())
        except OSError as error:
            if not self.unsynced:
                self._logger.error("%s cannot be synced: %s; will try again", self._wal, error)
            self.unsynced = str(error)
            self._dirty.set()
            return False
        return True

    def _checkpoint(self, connection: sqlite3.Connection) -> bool:
        try:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            busy = connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()[0]
        except sqlite3.Error as error:
            if not self.failing:
                self._logger.error("%s cannot be emptied: %s", self._wal, error)
            busy = 1
        self.failing = bool(busy)
        return not busy
