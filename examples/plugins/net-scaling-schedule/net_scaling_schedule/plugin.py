"""What netcore finds through the entry point `schedule`."""

from __future__ import annotations

from netcore import ScalingPolicy, hookimpl


@hookimpl
def netcore_scaling_policies() -> list[type[ScalingPolicy]]:
    """Offer `schedule`."""
    from net_scaling_schedule.policy import ScheduleScalingPolicy

    return [ScheduleScalingPolicy]
