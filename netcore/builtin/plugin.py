"""Registers what is built in, through the hooks that anyone uses.

Each hook imports what it offers only when it is asked, so that this module costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from netcore.plugins.spec import hookimpl

if TYPE_CHECKING:
    from netcore.contracts.adapter import Adapter
    from netcore.contracts.policies import BackpressurePolicy, ScalingPolicy

__all__ = ["netcore_adapters", "netcore_backpressure_policies", "netcore_scaling_policies"]


@hookimpl
def netcore_adapters() -> list[type[Adapter[Any]]]:
    """Offer `memory` (the default) and `noop`."""
    from netcore.builtin.memory import MemoryAdapter
    from netcore.builtin.noop import NoopAdapter

    return [MemoryAdapter, NoopAdapter]


@hookimpl
def netcore_backpressure_policies() -> list[type[BackpressurePolicy]]:
    """Offer `block`, `drop_oldest` (the default), `drop_newest` and `sample`."""
    from netcore.builtin.backpressure import BlockPolicy, DropNewestPolicy, DropOldestPolicy, SamplePolicy

    return [BlockPolicy, DropOldestPolicy, DropNewestPolicy, SamplePolicy]


@hookimpl
def netcore_scaling_policies() -> list[type[ScalingPolicy]]:
    """Offer `utilization`."""
    from netcore.builtin.utilization import UtilizationPolicy

    return [UtilizationPolicy]
