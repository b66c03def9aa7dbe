"""The built-in backpressure policies, on the same contract as anyone's."""

from __future__ import annotations

import threading
from typing import Final

from netcore.config import check_int
from netcore.contracts.policies import BackpressurePolicy, FullShard, Verdict

__all__ = ["BlockPolicy", "DropNewestPolicy", "DropOldestPolicy", "SamplePolicy"]


class BlockPolicy(BackpressurePolicy):
    """Wait for room: `put()` anywhere, `ingest()` from threads other than the bus's loop."""

    name = "block"

    def on_full(self, shard: FullShard, /) -> Verdict:
        """Say wait."""
        return Verdict.WAIT


class DropOldestPolicy(BackpressurePolicy):
    """Evict the oldest event and accept the newcomer: recent events are worth more."""

    name = "drop_oldest"

    def on_full(self, shard: FullShard, /) -> Verdict:
        """Say evict."""
        return Verdict.EVICT


class DropNewestPolicy(BackpressurePolicy):
    """Refuse the newcomer with `BackpressureError`: early events are worth more."""

    name = "drop_newest"

    def on_full(self, shard: FullShard, /) -> Verdict:
        """Say refuse."""
        return Verdict.REFUSE


class SamplePolicy(BackpressurePolicy):
    """While a ring is full, let one newcomer in `every` in, evicting the oldest; discard the rest.

    The first newcomer at a full ring enters, then every `every`-th, counted for each shard.

    Args:
        every: 1 or more; default 10.

    Raises:
        ConfigError: `every` is not a positive int.
    """

    name = "sample"

    def __init__(self, every: int = 10) -> None:
        check_int("sample.every", every, 1, 1_000_000_000)
        self.every: Final = every
        self._lock = threading.Lock()
        self._seen: dict[int, int] = {}

    def on_full(self, shard: FullShard, /) -> Verdict:
        """Say evict for one in `every`, else discard."""
        with self._lock:
            seen = self._seen.get(shard.id, 0)
            self._seen[shard.id] = seen + 1
        return Verdict.DISCARD if seen % self.every else Verdict.EVICT
