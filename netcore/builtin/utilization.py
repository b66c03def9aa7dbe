"""The built-in scaling policy."""

from __future__ import annotations

from netcore.contracts.policies import NoChange, ScalingDecision, ScalingPolicy
from netcore.stats import EventBusStats

__all__ = ["UtilizationPolicy"]


class UtilizationPolicy(ScalingPolicy):
    """Scales by how full the rings are."""

    name = "utilization"

    def decide(self, stats: EventBusStats, /) -> ScalingDecision:
        """Leave things as they are."""
        return NoChange("thresholds are not implemented yet")
