"""Finds plugins, once, and stands in front of pluggy with real signatures.

Nothing is looked for when `netcore` is imported: the first bus that is built, or `netcore plugins`,
asks. One plugin's failure is recorded with its distribution, version and cause, and stops no other.
"""

from __future__ import annotations

import importlib
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, get_args

import msgspec

from netcore.errors import PluginError
from netcore.plugins.discovery import InstalledPlugin, Selection, admit, installed_plugins
from netcore.plugins.registry import GROUPS, Record, Registry
from netcore.plugins.spec import PROJECT

if TYPE_CHECKING:
    import click
    import pluggy

    from netcore.config import AdapterConfig, AdapterSetting

__all__ = [
    "Observer",
    "ObserverHook",
    "PluginInfo",
    "PluginManager",
    "default_manager",
    "manager_for",
]

Observer: TypeAlias = Callable[..., object]
ObserverHook: TypeAlias = Literal[
    "netcore_bus_opened",
    "netcore_batch_dispatched",
    "netcore_dead_letter",
    "netcore_shards_changed",
    "netcore_bus_closed",
]

_log: Final = logging.getLogger("netcore.plugins")


class PluginInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What `netcore plugins` says of one plugin.

    Attributes:
        name: entry point name, or the name of a plugin registered in code.
        distribution: distribution that brought it; "" when registered in code.
        version: that distribution's version, or "".
        hooks: hooks it implements, in the order of the specification.
        provides: what it offers, as "adapter redis", "filter jsonpath", ...
        error: what is wrong with it, or "".
        disabled: the environment variable that excluded it, or "".
    """

    name: str
    distribution: str
    version: str
    hooks: tuple[str, ...] = ()
    provides: tuple[str, ...] = ()
    error: str = ""
    disabled: str = ""


class PluginManager:
    """Built-ins, installed plugins and, for one bus, plugins registered in code.

    Safe to use from several threads. What has loaded is never loaded again; what failed is tried
    again at the next `load`, or when one of its names is asked for.

    Args:
        plugins: modules or objects with hooks, registered besides what is installed.
        base: a manager whose plugins are taken over as they are; default: none, look for ourselves.
        discover: lists what is installed.
        environ: where `NETCORE_PLUGINS` and `NETCORE_PLUGINS_DISABLE` are read.

    Raises:
        PluginError: one of `plugins` is broken (they were given on purpose: no silence for them).
    """

    def __init__(
        self,
        *,
        plugins: Sequence[object] = (),
        base: PluginManager | None = None,
        discover: Callable[[], Iterable[InstalledPlugin]] = installed_plugins,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._base = base
        self._discover = discover
        self._environ = os.environ if environ is None else environ
        self._lock = threading.RLock()
        self._loading = False
        self._complete = False
        self._records: dict[tuple[str, str], Record] = {}
        self._registry: Registry | None = None
        self._own = tuple(_registered_in_code(plugins))

    @property
    def registry(self) -> Registry:
        """The names that the loaded plugins provide; loads them on first use."""
        if self._registry is None:
            self.load()
        assert self._registry is not None
        return self._registry

    def load(self) -> None:
        """Load what is installed and not yet loaded; failures of earlier calls are tried again."""
        self._load(force=False)

    def adapter_config(self, setting: AdapterSetting) -> AdapterConfig:
        """Return an adapter's typed settings; see `Registry.adapter_config`."""
        return self.registry.adapter_config(setting)

    def observers(self, hook: ObserverHook) -> list[tuple[str, Observer]]:
        """Return who wants to hear of a lifecycle event: (plugin name, function); [] for nobody.

        Each function takes the hook's arguments, by position or by keyword, also where the
        plugin's implementation leaves some of them out. Ask once a bus, not once an event.
        """
        if hook not in get_args(ObserverHook):
            raise ValueError(f"{hook!r} is not an observer hook: {', '.join(get_args(ObserverHook))}")
        self.registry  # noqa: B018  # loads
        return [(r.name, _adapt(r.hooks[hook], hook)) for r in self._all() if hook in r.hooks]

    def add_commands(
        self, make_group: Callable[[], click.Group]
    ) -> list[tuple[str, click.Group | Exception]]:
        """Let each plugin that implements `netcore_commands` add to a group of its own.

        Returns:
            (plugin name, the group it filled or the exception it raised), in order of loading.
        """
        self.registry  # noqa: B018  # loads
        filled: list[tuple[str, click.Group | Exception]] = []
        for record in self._all():
            if "netcore_commands" in record.hooks:
                group = make_group()
                try:
                    _adapt(record.hooks["netcore_commands"], "netcore_commands")(group)
                    filled.append((record.name, group))
                except Exception as error:
                    filled.append((record.name, error))
        return filled

    def plugins(self) -> list[PluginInfo]:
        """Describe every plugin: the built-in one first, then by name; broken ones included."""
        registry = self.registry
        return [_info(record, registry, self._all()) for record in self._all()]

    def _all(self) -> list[Record]:
        """Return every record: built-in, installed by name, registered in code."""
        with self._lock:
            if self._base is not None:
                return [*self._base._all(), *self._own]
            installed = sorted(self._records.items(), key=lambda item: (item[0] != _BUILT_IN, item[0]))
            return [*(record for _, record in installed), *self._own]

    def _load(self, *, force: bool) -> Registry | None:
        if self._base is not None:
            self._base._load(force=force)
        with self._lock:
            if self._loading:  # a plugin asks while it is being imported: what is there so far
                self._registry = Registry(self._all(), self._refreshed)
            elif force or not self._complete:
                self._loading = True
                try:
                    if self._base is None:
                        self._load_installed()
                finally:
                    self._loading = False
                self._registry = Registry(self._all(), self._refreshed)
                self._complete = all(record.error is None for record in self._records.values())
            return self._registry

    def _refreshed(self) -> Registry:
        registry = self._load(force=True)
        assert registry is not None
        return registry

    def _load_installed(self) -> None:
        selection = Selection(self._environ)
        importlib.invalidate_caches()  # a package installed since the last look must be importable
        earlier = {key: r for key, r in self._records.items() if r.error is not None or r.disabled}
        for key in earlier:
            del self._records[key]
        if _BUILT_IN not in self._records:
            from netcore import __version__
            from netcore.builtin import plugin

            self._records[_BUILT_IN] = admit(
                InstalledPlugin(
                    name=PROJECT, distribution="netcore-bus", version=__version__, load=lambda: plugin
                )
            )
        for item in self._discover():
            key = (item.name, item.distribution)
            if key not in self._records:
                self._records[key] = selection.excluded(item) or admit(item)
                _report(self._records[key], earlier.get(key))
        for record in selection.unknown(name for name, _ in self._records):
            self._records[record.name, record.distribution] = record


_BUILT_IN: Final = (PROJECT, "netcore-bus")


def _registered_in_code(plugins: Sequence[object]) -> Iterator[Record]:
    from netcore.plugins.vetting import vet

    if isinstance(plugins, str) or not isinstance(plugins, Iterable):
        raise PluginError(f"plugins takes a list of modules or objects with hooks, not {plugins!r:.80}")
    seen: list[object] = []
    for plugin in plugins:
        if any(plugin is other for other in seen):
            continue
        seen.append(plugin)
        name = getattr(plugin, "__name__", None) or type(plugin).__name__
        try:
            hooks, offers = vet(plugin, name)
        except Exception as error:
            cause = Record(name=name, error=error).cause
            raise PluginError(f"plugin {name!r}: {cause}") from error
        yield Record(name=name, hooks=hooks, offers=offers)


def _report(record: Record, earlier: Record | None) -> None:
    """Log a failure, unless the last look met the same."""
    if record.error is not None and (earlier is None or earlier.cause != record.cause):
        _log.warning("plugin %r of %s did not load: %s", record.name, record.label, record.cause)


def _adapt(implementation: pluggy.HookImpl, hook: str) -> Observer:
    """Return a function of all the hook's arguments for one that may name only some of them."""
    from netcore.plugins import spec

    code = getattr(spec, hook).__code__
    names: tuple[str, ...] = code.co_varnames[: code.co_argcount]
    wanted: tuple[str, ...] = tuple(implementation.argnames)
    function: Observer = implementation.function
    if wanted == names:
        return function

    def call(*args: Any, **kwargs: Any) -> object:
        given = dict(zip(names, args, strict=False)) | kwargs
        return function(*(given[name] for name in wanted))

    return call


def _info(record: Record, registry: Registry, everyone: Sequence[Record]) -> PluginInfo:
    troubles = [record.cause] if record.error is not None else registry.conflicts(record)
    namesakes = [r.label for r in everyone if r.name == record.name and r is not record and r.distribution]
    if namesakes and record.distribution:
        troubles.append(f"the entry point name {record.name!r} is also used by {', '.join(namesakes)}")
    return PluginInfo(
        name=record.name,
        distribution=record.distribution,
        version=record.version,
        hooks=tuple(record.hooks),
        provides=tuple(f"{g.noun} {name}" for g in GROUPS for name in record.offers.get(g.hook, ())),
        error="; ".join(troubles),
        disabled=record.disabled,
    )


# The one piece of module state here: what is installed is a property of the process, and importing
# every plugin again for each bus would cost far more than the bus.
_default: PluginManager | None = None
_default_lock: Final = threading.Lock()


def default_manager() -> PluginManager:
    """Return the process's manager: built-ins and installed plugins, loaded on first use."""
    global _default
    with _default_lock:
        if _default is None:
            _default = PluginManager()
        return _default


def manager_for(plugins: Sequence[object] = ()) -> PluginManager:
    """Return a manager with what the process's has, and these plugins besides, for one bus.

    Cheap: nothing that has loaded is imported again.

    Args:
        plugins: modules or objects with hooks.

    Raises:
        PluginError: one of them is broken.
    """
    base = default_manager()
    base.load()
    return PluginManager(plugins=plugins, base=base) if plugins else base
