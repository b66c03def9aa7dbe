"""Calls the observer hooks of one bus. Resolved once, when it opens; costs nothing if nobody listens."""

from __future__ import annotations

import logging
import weakref
from typing import TYPE_CHECKING, Any

from netcore.plugins.manager import Observer, PluginManager
from netcore.stats import ShutdownReport

if TYPE_CHECKING:
    from netcore.bus import EventBus

__all__ = ["Observers"]

_log = logging.getLogger("netcore.plugins")


class Observers:
    """Everyone who listens to one bus.

    Holds the bus weakly: background tasks hold the observers, and must not keep a dropped bus.

    Args:
        manager: knows who implements what.
        bus: what hooks get as their first argument.
    """

    def __init__(self, manager: PluginManager, bus: EventBus) -> None:
        self._bus = weakref.ref(bus)
        self._complaints: set[tuple[str, str]] = set()
        self._opened = manager.observers("netcore_bus_opened")
        self._dispatched = manager.observers("netcore_batch_dispatched")
        self._dead_letter = manager.observers("netcore_dead_letter")
        self._shards_changed = manager.observers("netcore_shards_changed")
        self._closed = manager.observers("netcore_bus_closed")

    @property
    def wants_batches(self) -> bool:
        """Whether anybody asked to hear of dispatched batches."""
        return bool(self._dispatched)

    def opened(self) -> None:
        """Tell that the bus is open."""
        self._call("netcore_bus_opened", self._opened)

    def dispatched(self, shard: int, count: int, seconds: float) -> None:
        """Tell that a batch was stored."""
        self._call("netcore_batch_dispatched", self._dispatched, shard, count, seconds)

    def dead_letter(self, shard: int, ts: int, payload: bytes, error: Exception) -> tuple[int, int]:
        """Hand a dead letter on; return how many plugins took it and how many raised."""
        taken = self._call("netcore_dead_letter", self._dead_letter, shard, ts, payload, error)
        return taken, len(self._dead_letter) - taken

    def shards_changed(self, added: list[int], removed: list[int], reason: str) -> None:
        """Tell that shards came or went."""
        self._call("netcore_shards_changed", self._shards_changed, added, removed, reason)

    def closed(self, report: ShutdownReport) -> None:
        """Tell that the bus was shut down."""
        self._call("netcore_bus_closed", self._closed, report)

    def _call(self, hook: str, observers: list[tuple[str, Observer]], *args: Any) -> int:
        """Call everyone, and return how many did not raise."""
        bus = self._bus() if observers else None
        taken = 0
        for plugin, function in observers:
            try:
                function(bus, *args)
                taken += 1
            except Exception:
                if (plugin, hook) not in self._complaints:
                    self._complaints.add((plugin, hook))
                    _log.exception("plugin %r failed in %s; further failures are not logged", plugin, hook)
        return taken
