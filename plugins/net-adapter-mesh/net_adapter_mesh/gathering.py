"""Own entries on their way into the log: one by one, or those of one turn of the loop together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from net_adapter_mesh.bridge import Bell
from net_adapter_mesh.lane import Entry
from net_adapter_mesh.log import Put, Store

__all__ = ["Gatherer"]

_MOST: Final = 1 << 20


class Gatherer:
    """Hands own entries to the store. Loop thread only.

    The shards' batches of one turn are one commit, where that costs less: a store that writes on
    the loop pays for each commit, and each time it lets go of the interpreter lock.

    Args:
        origin: whose entries.
        store: where they are kept.
        stored: called with entries that the store has taken; any thread.
        appended: called with numbers of batches and of events handed over.
        bell: whom appends wait for.
    """

    def __init__(
        self,
        origin: str,
        store: Store,
        stored: Callable[[Sequence[Entry]], None],
        appended: Callable[[int, int], None],
        bell: Bell,
    ) -> None:
        self._origin = origin
        self._store = store
        self._stored = stored
        self._appended = appended
        self._bell = bell
        self._batches: list[list[Entry]] = []
        self._due = False

    def put(self, entries: list[Entry]) -> None:
        """Take a batch's entries, or a bare watermark; they go to the store by the end of the turn."""
        if not self._store.gathers:
            self._hand_over([entries])
            return
        if not self._due:
            self._due = True
            self._bell.soon(self.write)
        self._batches.append(entries)

    def write(self) -> None:
        """Hand over what was gathered, in parts of about 1 MiB."""
        self._due = False
        batches, self._batches = self._batches, []
        part: list[list[Entry]] = []
        size = 0
        for batch in batches:
            more = sum(entry.size for entry in batch)
            if part and size + more > _MOST:
                self._hand_over(part)
                part, size = [], 0
            part.append(batch)
            size += more
        if part:
            self._hand_over(part)
            self._bell.look()
            if not self._due:  # behind those just woken: what they put next waits for no other turn
                self._due = True
                self._bell.soon(self.write)

    def _hand_over(self, batches: list[list[Entry]]) -> None:
        entries = batches[0] if len(batches) == 1 else [entry for batch in batches for entry in batch]
        self._store.put([Put(self._origin, entries, partial(self._stored, entries))])
        if events := sum(entry.count for entry in entries):
            self._appended(len(batches), events)
