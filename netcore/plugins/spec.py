"""The hooks that plugins may implement. Project name and entry point group: `netcore`.

A plugin is any module (or object) with functions of these names, marked with
`netcore.hookimpl`, listed in its distribution's metadata:

    [project.entry-points.netcore]
    redis = "net_adapter_redis.plugin"

That module should import nothing heavy: it is loaded when the first bus is built.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    import click

    from netcore.bus import EventBus
    from netcore.contracts.adapter import Adapter
    from netcore.contracts.filters import EventFilter
    from netcore.contracts.policies import BackpressurePolicy, ScalingPolicy
    from netcore.stats import ShutdownReport

__all__ = ["PROJECT", "hookimpl", "hookspec"]

PROJECT = "netcore"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def netcore_adapters() -> list[type[Adapter[Any]]]:
    """Offer adapters.

    When: once for each process, when the first bus is built or plugins are listed.
    Order: none among plugins. Several results: joined; two classes claiming one `kind` are an
    error that names both distributions, raised when that kind is asked for.
    A raise: reported by `netcore plugins` and when one of the plugin's names is asked for.

    Returns:
        Adapter classes, each with `kind` and `Config`.
    """
    raise AssertionError("a specification is never called")


@hookspec
def netcore_backpressure_policies() -> list[type[BackpressurePolicy]]:
    """Offer backpressure policies: classes with `name`, built without arguments.

    When, order, several results, a raise: as `netcore_adapters`, by `name`.
    """
    raise AssertionError("a specification is never called")


@hookspec
def netcore_scaling_policies() -> list[type[ScalingPolicy]]:
    """Offer scaling policies: classes with `name`, built with `ScalingConfig.options`.

    When, order, several results, a raise: as `netcore_adapters`, by `name`.
    """
    raise AssertionError("a specification is never called")


@hookspec
def netcore_filters() -> list[type[EventFilter]]:
    """Offer filter languages: classes with `name`. `jsonpath` is what `netcore.Filter` stands for.

    When, order, several results, a raise: as `netcore_adapters`, by `name`.
    """
    raise AssertionError("a specification is never called")


@hookspec
def netcore_bus_opened(bus: EventBus) -> None:
    """Learn that a bus is open, its adapter connected.

    When: once a bus, on its loop thread, before `open` returns. Order: none.
    A raise: logged once for each plugin, otherwise ignored.
    """


@hookspec
def netcore_batch_dispatched(bus: EventBus, shard: int, count: int, seconds: float) -> None:
    """Learn that a batch was stored.

    When: once a stored batch, on the loop thread: be quick, do not block.
    Args: the shard's id, the number of events, the time from first attempt to acknowledgement.
    A raise: logged once for each plugin, otherwise ignored.
    """


@hookspec
def netcore_dead_letter(bus: EventBus, shard: int, ts: int, payload: bytes, error: Exception) -> None:
    """Take an event whose content can never be stored.

    When: once a dead-lettered event, on the loop thread. Several: all are called.
    A raise: logged, counted in `stats().dead_letter_failures`; blocks nothing.
    """


@hookspec
def netcore_shards_changed(bus: EventBus, added: list[int], removed: list[int], reason: str) -> None:
    """Learn that shards were added or removed, after it is done, on the loop thread.

    A raise: logged once for each plugin, otherwise ignored.
    """


@hookspec
def netcore_bus_closed(bus: EventBus, report: ShutdownReport) -> None:
    """Learn that a bus was shut down, on the loop thread, before `shutdown` returns.

    A raise: logged once for each plugin, otherwise ignored.
    """


@hookspec
def netcore_commands(cli: click.Group) -> None:
    """Add subcommands to the command line: `cli.add_command(...)`.

    When: at each start of the command line that needs more than its own commands.
    A raise: reported on stderr; the other commands work.
    """
