"""Writing to the durable log on the thread that has something to write."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from functools import partial
from typing import Final

from net_adapter_mesh.log import Put
from net_adapter_mesh.tables import write

__all__ = ["InPlace"]

_MOST: Final = 1 << 20
_CREDIT_S: Final = 0.05
_SHARE: Final = 10


class InPlace:
    """One thread's own connection to the log, for commits that only hand bytes to the operating system.

    Handing such a commit to another thread and waiting for it costs more than making it. It is
    left to the writer thread where it might hold up this one: if it is large, if the writer still
    has earlier ones from here, if somebody else is writing, and while slow commits here have taken
    more than a tenth of the time, and 50 ms. One thread only, but for `done`.

    Args:
        connection: one that waits for nobody.
        slow_s: seconds from which on a commit counts as slow.
    """

    def __init__(self, connection: sqlite3.Connection, slow_s: float) -> None:
        self._connection = connection
        self._slow_s = slow_s
        self._left = self._answered = 0  # puts left to the writer thread; those of them that it answered
        self._paid = 0.0  # when a tenth of the time will have made up for the slow commits

    def write(self, group: Sequence[Put], size: int) -> bool:
        """Commit a group; False if it is to be left to the writer thread: nothing is committed."""
        began = time.monotonic()
        if size > _MOST or self._left != self._answered or self._paid - began > _SHARE * _CREDIT_S:
            return False
        try:
            write(self._connection, group)
        except Exception:
            return False  # the thread waits for what is in the way, or says what is wrong
        now = time.monotonic()
        if now - began > self._slow_s:
            self._paid = max(self._paid, began) + _SHARE * (now - began)
        return True

    def leave(self, put: Put) -> Put:
        """Return a put for the writer thread: nothing is written here until it has answered."""
        self._left += 1
        return put._replace(done=partial(self._answer, put))

    def _answer(self, put: Put) -> None:
        put.done()
        self._answered += 1

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
