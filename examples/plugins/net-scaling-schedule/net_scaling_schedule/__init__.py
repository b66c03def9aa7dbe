"""Scale a netcore bus by the time of day."""

from net_scaling_schedule.policy import ScheduleScalingPolicy, Window

__all__ = ["ScheduleScalingPolicy", "Window"]
