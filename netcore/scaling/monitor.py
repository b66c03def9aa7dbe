"""Watches the load and asks the scaling policy, now and then."""

from __future__ import annotations

import logging
import time
from typing import Final

from netcore.config import ScalingConfig
from netcore.contracts.policies import NoChange, ScalingDecision, ScalingPolicy
from netcore.engine import Engine
from netcore.errors import ConfigError, ScalingError
from netcore.plugins.manager import PluginManager
from netcore.runtime import Task
from netcore.scaling.resharding import Resharding

__all__ = ["Monitor"]

_log = logging.getLogger("netcore.scaling")


class Monitor:
    """Samples a bus every `interval_ms` and, with `auto_apply`, carries out what the policy decides.

    Args:
        engine: what is watched.
        resharding: what is told.
        manager: knows the policies.
    """

    def __init__(self, engine: Engine, resharding: Resharding, manager: PluginManager) -> None:
        self._engine = engine
        self._resharding = resharding
        self._config: Final = engine.config.scaling or ScalingConfig()
        self._policy = _policy(self._config, manager)
        self._task: Task | None = None
        self._rested_at = -1e9

    def start(self) -> None:
        """Begin to watch, if the bus is configured to scale."""
        if self._engine.config.scaling is not None:
            self._task = self._engine.runtime.spawn(self._watch, "netcore scaling monitor")

    async def stop(self) -> None:
        """Stop watching."""
        if self._task is not None:
            self._task.cancel()
            await self._task.join(1.0)

    def rest(self) -> None:
        """Begin a new cooldown: somebody scales by hand."""
        self._rested_at = time.monotonic()

    def suggest(self) -> ScalingDecision:
        """Ask the policy; changes nothing."""
        return self._policy.decide(self._engine.stats())

    async def _watch(self) -> None:
        while True:
            await self._engine.runtime.sleep(self._config.interval_ms / 1e3)
            decision = self.suggest()
            if isinstance(decision, NoChange) or not self._config.auto_apply:
                continue
            if time.monotonic() - self._rested_at < self._config.cooldown_ms / 1e3:
                continue
            self.rest()
            try:
                await self._resharding.apply(decision)
            except ScalingError as error:
                _log.warning("the scaling policy's decision was refused: %s", error)


def _policy(config: ScalingConfig, manager: PluginManager) -> ScalingPolicy:
    if isinstance(config.policy, ScalingPolicy):
        return config.policy
    if isinstance(config.policy, str):
        return manager.registry.scaling(config.policy)(**config.options)
    raise ConfigError(f"scaling.policy must be a policy's name or a ScalingPolicy, not {config.policy!r}")
