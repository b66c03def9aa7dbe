"""Watches the load and asks the scaling policy, now and then.

The monitor is a background task of the loop: it holds the engine, never the bus, and ends with it.
What it remembers is a short window of samples, replaced as a whole at each look, so that stats may
be read from any thread, and reading them (or asking for a suggestion) changes nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

import msgspec

from netcore.config import ScalingConfig
from netcore.contracts.policies import AddShards, NoChange, RemoveShards, ScalingDecision, ScalingPolicy
from netcore.engine import Engine
from netcore.errors import ConfigError, ScalingError, describe
from netcore.plugins.manager import PluginManager
from netcore.runtime import Task
from netcore.scaling.resharding import Resharding
from netcore.stats import EventBusStats, ShardStats, ShardWindow

__all__ = ["Monitor", "windows"]

_log = logging.getLogger("netcore.scaling")
LOOKS: Final = 5

Sample = tuple[float, dict[int, ShardStats]]
"""(monotonic seconds, each shard's counters)"""


class Monitor:
    """Looks at a bus every `interval_ms` and, with `auto_apply`, carries out what the policy decides.

    Args:
        engine: what is watched.
        resharding: what is told.
        manager: knows the policies.
        now: monotonic seconds.
    """

    def __init__(
        self,
        engine: Engine,
        resharding: Resharding,
        manager: PluginManager,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._resharding = resharding
        self._config: Final = engine.config.scaling or ScalingConfig()
        self._policy = _policy(self._config, manager)
        self._now = now
        self._task: Task | None = None
        self._samples: tuple[Sample, ...] = ()
        self._stepped_at: float | None = None
        self._complaints: set[type[BaseException]] = set()

    def start(self) -> None:
        """Begin to watch, if the bus is configured to scale."""
        if self._engine.config.scaling is not None:
            self._look()
            self._task = self._engine.runtime.spawn(self._watch, "netcore scaling monitor")

    async def stop(self) -> None:
        """Stop watching."""
        if self._task is not None:
            self._task.cancel()
            await self._task.join(1.0)

    def rest(self) -> None:
        """Begin a new cooldown: a step is being taken, by the monitor or by an operator."""
        self._stepped_at = self._now()

    def complete(self, stats: EventBusStats) -> EventBusStats:
        """Add the windows' averages to a snapshot."""
        found = windows(self._samples)
        if not found:
            return stats
        shards = tuple(msgspec.structs.replace(s, window=found.get(s.id)) for s in stats.shards)
        return msgspec.structs.replace(stats, shards=shards)

    def suggest(self) -> ScalingDecision:
        """Ask the policy, and keep its decision within bounds; changes nothing."""
        stats = self.complete(self._engine.stats())
        try:
            decision = self._policy.decide(stats)
            if not isinstance(decision, AddShards | RemoveShards | NoChange):
                raise TypeError(f"decide must return a scaling decision, not {decision!r}")
        except Exception as error:
            if type(error) not in self._complaints:
                self._complaints.add(type(error))
                _log.exception("scaling policy %s failed", type(self._policy).__name__)
            return NoChange(f"the policy failed: {describe(error)}")
        return self._bounded(decision, len([shard for shard in stats.shards if not shard.leaving]))

    async def tick(self) -> None:
        """Look, ask, and act if that is wanted and the cooldown is over."""
        self._look()
        decision = self.suggest()
        if isinstance(decision, NoChange) or not self._config.auto_apply:
            return
        if self._stepped_at is not None and self._now() - self._stepped_at < self._config.cooldown_ms / 1e3:
            return
        self.rest()
        try:
            await self._resharding.apply(decision)
        except ScalingError as error:
            _log.warning("the scaling policy's decision was refused: %s", error)
        self.rest()  # the cooldown counts from the end of a step

    async def _watch(self) -> None:
        while True:
            await self._engine.runtime.sleep(self._config.interval_ms / 1e3)
            await self.tick()

    def _look(self) -> None:
        shards = {shard.id: shard for shard in self._engine.shard_stats() if not shard.leaving}
        self._samples = (*self._samples[-LOOKS:], (self._now(), shards))

    def _bounded(self, decision: ScalingDecision, present: int) -> ScalingDecision:
        """Keep a decision within `min_shards` and `max_shards`."""
        low, high = self._config.min_shards, self._config.max_shards
        if isinstance(decision, AddShards):
            count = min(decision.count, high - present)
            if count < 1:
                return NoChange(f"{decision.reason}; but max_shards={high} are there")
            return decision if count == decision.count else AddShards(count, decision.reason)
        if isinstance(decision, RemoveShards):
            spare = present - low
            if spare < 1:
                return NoChange(f"{decision.reason}; but min_shards={low} must stay")
            return RemoveShards(decision.shard_ids[:spare], decision.reason)
        return decision


def windows(samples: tuple[Sample, ...]) -> dict[int, ShardWindow]:
    """Return each shard's averages over `samples`; none for a shard seen fewer than two times."""
    if not samples:
        return {}
    found: dict[int, ShardWindow] = {}
    for shard, last in samples[-1][1].items():
        seen = [(at, shards[shard]) for at, shards in samples if shard in shards]
        (began, first), (ended, _) = seen[0], seen[-1]
        seconds = ended - began
        if seconds <= 0:
            continue
        batches = last.batches - first.batches
        busy_s = last.busy_s - first.busy_s
        found[shard] = ShardWindow(
            seconds=seconds,
            utilisation=sum(stats.utilisation for _, stats in seen) / len(seen),
            busy=min(1.0, max(0.0, busy_s / seconds)),
            push_rate=(last.accepted - first.accepted) / seconds,
            drop_rate=(_dropped(last) - _dropped(first)) / seconds,
            batch_ms=busy_s * 1e3 / batches if batches else 0.0,
        )
    return found


def _dropped(stats: ShardStats) -> int:
    return stats.evicted + stats.rejected + stats.discarded


def _policy(config: ScalingConfig, manager: PluginManager) -> ScalingPolicy:
    if isinstance(config.policy, ScalingPolicy):
        return config.policy
    if not isinstance(config.policy, str):
        raise ConfigError(f"scaling.policy must be a policy's name or a ScalingPolicy, not {config.policy!r}")
    policy = manager.registry.scaling(config.policy)
    try:
        return policy(**config.options)
    except TypeError as error:
        raise ConfigError(f"scaling.options do not fit the policy {config.policy!r}: {error}") from error
