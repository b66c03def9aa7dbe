from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import click
import pytest

from netcore import BackpressurePolicy, FullShard, PluginError, Verdict, hookimpl
from netcore.plugins.manager import PluginManager

Site = Any


class Spare(BackpressurePolicy):
    name = "spare"

    def on_full(self, shard: FullShard, /) -> Verdict:
        return Verdict.DISCARD


class SparePlugin:
    @hookimpl
    def netcore_backpressure_policies(self) -> list[type[BackpressurePolicy]]:
        return [Spare]


def test_plugin_registered_in_code_serves_one_manager_only(site: Site) -> None:
    """What is registered for one bus is not seen by another; the base's plugins are not loaded again."""
    site.install(
        "counted-one",
        "counted",
        """
        import netcore
        with open(__file__ + ".runs", "a") as log:
            log.write("x")
        @netcore.hookimpl
        def netcore_bus_opened(bus): pass
        """,
        module="made_up_counted",
    )
    base = site.manager()
    manager = PluginManager(plugins=[SparePlugin()], base=base)
    assert manager.registry.backpressure("spare") is Spare
    assert manager.observers("netcore_bus_opened")
    assert [p.name for p in manager.plugins()] == ["netcore", "counted", "SparePlugin"]
    with pytest.raises(PluginError, match="no installed plugin provides the backpressure policy 'spare'"):
        base.registry.backpressure("spare")
    assert (site.folder / "made_up_counted.py.runs").read_text() == "x"


def test_plugin_module_registered_in_code_is_named_after_the_module(site: Site) -> None:
    """A module serves as a plugin as well as an object does."""
    module = types.ModuleType("policies_of_mine")
    module.netcore_backpressure_policies = hookimpl(lambda: [Spare])  # type: ignore[attr-defined]
    manager = PluginManager(plugins=[module], base=site.manager())
    assert manager.plugins()[-1].name == "policies_of_mine"


def test_plugin_registered_in_code_broken_raises_at_once(site: Site) -> None:
    """A plugin given on purpose is not skipped in silence."""

    class Misspelt:
        @hookimpl
        def netcore_bus_open(self, bus: object) -> None: ...

    with pytest.raises(PluginError, match=r"'Misspelt': unknown hook .* did you mean 'netcore_bus_opened'"):
        PluginManager(plugins=[Misspelt()], base=site.manager())
    with pytest.raises(PluginError, match="is a class; a plugin is a module or an object"):
        PluginManager(plugins=[Misspelt], base=site.manager())


def test_plugin_registered_in_code_whose_hook_raises_is_named(site: Site) -> None:
    """The cause of a failing hook stays attached to the error that names the plugin."""

    class Raises:
        @hookimpl
        def netcore_filters(self) -> list[type]:
            raise KeyError("gone")

    with pytest.raises(PluginError, match="'Raises': KeyError: 'gone'") as caught:
        PluginManager(plugins=[Raises()], base=site.manager())
    assert isinstance(caught.value.__cause__, KeyError)


def test_plugin_registered_twice_in_code_counts_once(site: Site) -> None:
    """The same object given twice neither conflicts nor observes twice."""

    class Watcher:
        @hookimpl
        def netcore_bus_opened(self, bus: object) -> None: ...

    watcher = Watcher()
    manager = PluginManager(plugins=[watcher, watcher], base=site.manager())
    assert len(manager.observers("netcore_bus_opened")) == 1


def test_child_manager_finds_what_its_base_finds_later(
    site: Site, policy_source: Callable[[str], str]
) -> None:
    """Asking a bus's manager for a missing name makes the process's manager look again."""
    manager = PluginManager(plugins=[SparePlugin()], base=site.manager())
    assert manager.registry.backpressure("spare") is Spare
    site.install("late-policy", "late", policy_source("late"))
    assert manager.registry.backpressure("late").name == "late"


def test_observers_without_implementations_are_none(site: Site) -> None:
    """A bus calls nobody when nobody listens."""
    assert site.manager().observers("netcore_batch_dispatched") == []


def test_observers_of_an_unknown_hook_are_refused(site: Site) -> None:
    """A slip in the hook's name is an error, not an empty list."""
    with pytest.raises(ValueError, match="'netcore_bus_open' is not an observer hook"):
        site.manager().observers("netcore_bus_open")


def test_observer_that_names_some_arguments_gets_those(site: Site) -> None:
    """An implementation may leave arguments out and order them freely; callers give them all."""
    calls: list[tuple[object, ...]] = []

    class Few:
        @hookimpl
        def netcore_batch_dispatched(self, count: int, shard: int) -> None:
            calls.append(("few", count, shard))

    class All:
        @hookimpl
        def netcore_batch_dispatched(self, bus: object, shard: int, count: int, seconds: float) -> None:
            calls.append(("all", shard, count, seconds))

    manager = PluginManager(plugins=[Few(), All()], base=site.manager())
    for name, observer in manager.observers("netcore_batch_dispatched"):
        assert name in ("Few", "All")
        observer(None, 3, 40, 0.5)
        observer(None, shard=4, count=50, seconds=0.25)
    assert calls == [("few", 40, 3), ("few", 50, 4), ("all", 3, 40, 0.5), ("all", 4, 50, 0.25)]


def test_add_commands_keeps_one_plugins_failure_from_the_others(site: Site) -> None:
    """Each plugin fills a group of its own; one that raises is returned with its exception."""

    class Fine:
        @hookimpl
        def netcore_commands(self, cli: click.Group) -> None:
            cli.add_command(click.Command("hello"))

    class Raises:
        @hookimpl
        def netcore_commands(self, cli: click.Group) -> None:
            raise RuntimeError("boom")

    manager = PluginManager(plugins=[Raises(), Fine()], base=site.manager())
    (first, error), (second, group) = manager.add_commands(click.Group)
    assert (first, str(error)) == ("Raises", "boom")
    assert second == "Fine"
    assert isinstance(group, click.Group)
    assert list(group.commands) == ["hello"]
