"""Where entries are kept: in memory only, or also in SQLite."""

from __future__ import annotations

from collections.abc import Sequence

from net_adapter_mesh.lane import Entry
from net_adapter_mesh.log import Put

__all__ = ["MemoryStore"]


class MemoryStore:
    """Keeps nothing beside what the lanes hold."""

    failure = ""
    unsynced = ""
    gathers = False

    def put(self, group: Sequence[Put]) -> None:
        """Call each `done` at once."""
        for put in group:
            put.done()

    def drop(self, origin: str, entries: Sequence[Entry]) -> None:
        """Do nothing."""

    def body(self, entry: Entry) -> bytes | None:
        """Know nothing."""
        return None

    def cached(self, entry: Entry) -> None:
        """Do nothing."""

    def close(self, timeout: float) -> None:
        """Do nothing."""
