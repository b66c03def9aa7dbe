"""What netcore finds through the entry point `priority`."""

from __future__ import annotations

from netcore import BackpressurePolicy, hookimpl


@hookimpl
def netcore_backpressure_policies() -> list[type[BackpressurePolicy]]:
    """Offer `priority`."""
    from net_backpressure_priority.policy import PriorityPolicy

    return [PriorityPolicy]
