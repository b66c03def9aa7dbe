"""Backpressure for netcore by a priority in the payload."""

from net_backpressure_priority.policy import PriorityPolicy

__all__ = ["PriorityPolicy"]
