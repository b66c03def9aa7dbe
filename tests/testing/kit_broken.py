"""All adapters that the kit is tested with."""

from __future__ import annotations

import kit_broken_appends
import kit_broken_calls
import kit_broken_payloads
import kit_broken_reads
from kit_store import ListsWhileReading, OneAtATime, StoreAdapter, Suspending

GOOD: tuple[type[StoreAdapter], ...] = (StoreAdapter, Suspending, ListsWhileReading, OneAtATime)
BROKEN: tuple[type[StoreAdapter], ...] = tuple(
    value
    for module in (kit_broken_appends, kit_broken_payloads, kit_broken_reads, kit_broken_calls)
    for value in vars(module).values()
    if isinstance(value, type) and issubclass(value, StoreAdapter) and value.fails
)
