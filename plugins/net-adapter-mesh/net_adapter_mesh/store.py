"""Where entries are kept: in memory only, or also in SQLite."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from net_adapter_mesh.lane import Entry
from net_adapter_mesh.log import Mark

__all__ = ["MemoryStore"]


class MemoryStore:
    """Keeps nothing beside what the lanes hold."""

    failure = ""
    unsynced = ""

    def put(
        self, origin: str, entries: Sequence[Entry], done: Callable[[], None], mark: Mark | None = None
    ) -> None:
        """Call `done` at once."""
        done()

    def drop(self, origin: str, entries: Sequence[Entry]) -> None:
        """Do nothing."""

    def body(self, origin: str, lsn: int) -> bytes | None:
        """Know nothing."""
        return None

    def cached(self, entry: Entry) -> None:
        """Do nothing."""

    def close(self, timeout: float) -> None:
        """Do nothing."""
