"""The built-in scaling policy: by how loaded the shards are."""

from __future__ import annotations

import math
from typing import Final

from netcore.config import check_number
from netcore.contracts.policies import AddShards, NoChange, RemoveShards, ScalingDecision, ScalingPolicy
from netcore.errors import ConfigError
from netcore.stats import EventBusStats, ShardStats

__all__ = ["UtilizationPolicy"]


class UtilizationPolicy(ScalingPolicy):
    """Adds shards above `high`, removes them below `low`, and aims between the two.

    A shard's load is the larger of how full its ring was and how busy its worker was, averaged over
    the monitor's window: a ring alone says nothing until it is too late, since it stays empty for
    as long as the worker keeps up. Newcomers dropped at full rings count as full load.

    No oscillation: a step aims at the middle of the band, shards are removed only if the rest stays
    at or below the middle with their share, and after a step (by whomever) nothing is decided for
    `warm_up_s`, or until the averages hold nothing from before it, whichever is longer.

    Args:
        high: load at or above which shards are added, 0..1; default 0.7.
        low: load at or below which shards are removed, 0..high; default 0.2.
        max_step: most shards added or removed at once, as a share of those present, 0..16, but at
            least one; default 0.5.
        warm_up_s: seconds after a step until its effect is trusted, 0..86,400; default 10.
        min_looks_s: shortest window that is trusted, in seconds, 0..86,400; default 2.

    Raises:
        ConfigError: a value out of range.
    """

    name = "utilization"

    def __init__(
        self,
        *,
        high: float = 0.7,
        low: float = 0.2,
        max_step: float = 0.5,
        warm_up_s: float = 10.0,
        min_looks_s: float = 2.0,
    ) -> None:
        check_number("utilization.high", high, 0, 1)
        check_number("utilization.low", low, 0, 1)
        check_number("utilization.max_step", max_step, 0, 16)
        check_number("utilization.warm_up_s", warm_up_s, 0, 86_400)
        check_number("utilization.min_looks_s", min_looks_s, 0, 86_400)
        if low >= high:
            raise ConfigError(f"utilization.low={low} must be below utilization.high={high}")
        self.high: Final = high
        self.low: Final = low
        self.max_step: Final = max_step
        self.warm_up_s: Final = warm_up_s
        self.min_looks_s: Final = min_looks_s

    def decide(self, stats: EventBusStats, /) -> ScalingDecision:
        """Compare the shards' mean load with the band; `reason` says what crossed what."""
        shards = [shard for shard in stats.shards if not shard.leaving]
        settling = max(self.warm_up_s, max((_seconds(shard) for shard in shards), default=0.0))
        since = min((stats.at - record.at for record in stats.scaling if not record.error), default=None)
        if since is not None and since < settling * 1e9:
            # No running time in it: suggestions on one state are equal, whenever they are asked for.
            return NoChange(f"the last step was less than {settling:g} s ago: settling")
        loads = {shard.id: _load(shard) for shard in shards if shard.window is not None}
        if len(loads) < len(shards) or min(_seconds(shard) for shard in shards) < self.min_looks_s:
            return NoChange(f"looked for less than min_looks_s={self.min_looks_s:g} seconds")
        present = len(shards)
        load = sum(loads.values()) / present
        said = f"mean load {load:.2f} of {present} shards"
        if load >= self.high:
            wanted = math.ceil(present * load / self._middle) - present
            return AddShards(max(1, min(wanted, self._step(present))), f"{said} >= high={self.high:g}")
        if load <= self.low:
            return self._fewer(loads, load, said)
        return NoChange(f"{said} is between low={self.low:g} and high={self.high:g}")

    @property
    def _middle(self) -> float:
        return (self.low + self.high) / 2

    def _step(self, present: int) -> int:
        return max(1, math.floor(present * self.max_step))

    def _fewer(self, loads: dict[int, float], load: float, said: str) -> ScalingDecision:
        """Remove the least loaded shards, the newest of equals, if the rest can carry their share."""
        present = len(loads)
        carriers = max(1, math.ceil(present * load / self._middle))
        count = min(present - carriers, self._step(present))
        if count < 1:
            return NoChange(f"{said} <= low={self.low:g}, but none can be spared")
        idlest = sorted(loads, key=lambda shard: (loads[shard], -shard))[:count]
        return RemoveShards(tuple(sorted(idlest)), f"{said} <= low={self.low:g}")


def _load(shard: ShardStats) -> float:
    window = shard.window
    assert window is not None
    return 1.0 if window.drop_rate > 0 else max(window.utilisation, window.busy)


def _seconds(shard: ShardStats) -> float:
    return 0.0 if shard.window is None else shard.window.seconds
