"""Names: which plugin provides which adapter, policy and filter; conflicts and suggestions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from netcore.errors import PluginError, PluginNotFoundError

if TYPE_CHECKING:
    import pluggy

    from netcore.config import AdapterConfig, AdapterSetting
    from netcore.contracts.adapter import Adapter
    from netcore.contracts.filters import EventFilter
    from netcore.contracts.policies import BackpressurePolicy, ScalingPolicy

__all__ = ["Group", "Record", "Registry"]


class Group(msgspec.Struct, frozen=True):
    """One sort of thing that plugins offer.

    Attributes:
        hook: the hook that offers it.
        noun: what error messages call it.
        attribute: the class attribute that holds its name.
        official: names that this project publishes -> the distribution to install.
    """

    hook: str
    noun: str
    attribute: str
    official: Mapping[str, str] = {}


ADAPTERS: Final = Group(
    "netcore_adapters",
    "adapter",
    "kind",
    {"mesh": "net-adapter-mesh", "redis": "net-adapter-redis", "jetstream": "net-adapter-jetstream"},
)
BACKPRESSURE: Final = Group("netcore_backpressure_policies", "backpressure policy", "name")
SCALING: Final = Group("netcore_scaling_policies", "scaling policy", "name")
FILTERS: Final = Group("netcore_filters", "filter", "name", {"jsonpath": "net-filter-jsonpath"})
GROUPS: Final = (ADAPTERS, BACKPRESSURE, SCALING, FILTERS)


class Record(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What became of one plugin.

    Attributes:
        name: entry point name, or the name of a plugin registered in code.
        distribution: distribution that brought it; "" when registered in code.
        version: that distribution's version, or "".
        hooks: hook name -> its implementation; empty unless it loaded.
        offers: hook name -> the names and classes it offers; empty unless it loaded.
        error: why it did not load, or None.
        disabled: the environment variable that excluded it, or "".
    """

    name: str
    distribution: str = ""
    version: str = ""
    hooks: Mapping[str, pluggy.HookImpl] = {}
    offers: Mapping[str, Mapping[str, type]] = {}
    error: BaseException | None = None
    disabled: str = ""

    @property
    def label(self) -> str:
        """The plugin as error messages name it: distribution and version, or where it came from."""
        if self.distribution:
            return f"{self.distribution} {self.version}".rstrip()
        return f"{self.name} (registered in code)"

    @property
    def cause(self) -> str:
        """Why it did not load, in one line; "" if it did."""
        if self.error is None:
            return ""
        if isinstance(self.error, PluginError):
            return str(self.error)
        text = " ".join(str(self.error).split())
        return f"{type(self.error).__name__}: {text}" if text else type(self.error).__name__


class Registry:
    """Looks names up. A snapshot of the plugins that were loaded when it was made.

    A name that nobody provides makes it ask for another look at what is installed, once: a plugin
    that failed to load is tried again, one installed meanwhile is found.

    Args:
        records: the plugins, in order of loading.
        refresh: looks again at what is installed and returns the registry of what is there now.
    """

    __slots__ = ("_claims", "_records", "_refresh")

    def __init__(self, records: Iterable[Record], refresh: Callable[[], Registry]) -> None:
        self._records = tuple(records)
        self._refresh = refresh
        self._claims: dict[tuple[str, str], list[Record]] = {}
        for record in self._records:
            for hook, offers in record.offers.items():
                for name in offers:
                    self._claims.setdefault((hook, name), []).append(record)

    def adapter(self, kind: str) -> type[Adapter[Any]]:
        """Return the adapter class registered as `kind`.

        Raises:
            PluginNotFoundError: nobody provides it; the message says what to install, or why the
                plugin that would provide it failed to load.
            PluginError: two plugins claim it; the message names both.
        """
        found: type[Adapter[Any]] = self._find(ADAPTERS, kind)
        return found

    def backpressure(self, name: str) -> type[BackpressurePolicy]:
        """Return the backpressure policy class registered as `name`; raises as `adapter`."""
        found: type[BackpressurePolicy] = self._find(BACKPRESSURE, name)
        return found

    def scaling(self, name: str) -> type[ScalingPolicy]:
        """Return the scaling policy class registered as `name`; raises as `adapter`."""
        found: type[ScalingPolicy] = self._find(SCALING, name)
        return found

    def filter(self, name: str) -> type[EventFilter]:
        """Return the filter class registered as `name`; raises as `adapter`."""
        found: type[EventFilter] = self._find(FILTERS, name)
        return found

    def adapter_config(self, setting: AdapterSetting) -> AdapterConfig:
        """Return an adapter's typed settings, made from any of the forms that a bus takes.

        Args:
            setting: a kind, a mapping with a `kind`, or a plugin's typed config.

        Raises:
            ConfigError: an unknown key, a wrong value, or no settings at all; names the key.
            PluginError: as `adapter`.
        """
        from netcore.plugins.settings import adapter_config

        return adapter_config(self, setting)

    def names(self, group: Group) -> list[str]:
        """Return the names that the loaded plugins offer in `group`, sorted."""
        return sorted(name for hook, name in self._claims if hook == group.hook)

    def conflicts(self, record: Record) -> list[str]:
        """Describe each name of `record` that another plugin claims too."""
        found = []
        for group in GROUPS:
            for name in record.offers.get(group.hook, ()):
                rivals = [other for other in self._rivals(group, name) if other is not record]
                if rivals and record in self._rivals(group, name):
                    labels = ", ".join(other.label for other in rivals)
                    found.append(f"{group.noun} {name!r} is also claimed by {labels}")
        return found

    def _rivals(self, group: Group, name: str) -> list[Record]:
        """Return the plugins that offer *different* classes under one name; [] where all agree."""
        claims = self._claims.get((group.hook, name), [])
        offered = {id(record.offers[group.hook][name]) for record in claims}
        return claims if len(offered) > 1 else []

    def _find(self, group: Group, name: str, *, look_again: bool = True) -> Any:
        claims = self._claims.get((group.hook, name)) if isinstance(name, str) else None
        if not claims:
            if look_again and isinstance(name, str):
                return self._refresh()._find(group, name, look_again=False)
            raise self._missing(group, name)
        if rivals := self._rivals(group, name):
            raise PluginError(
                f"the {group.noun} {name!r} is claimed by {' and by '.join(r.label for r in rivals)}: "
                f"uninstall all but one, or name the plugins you do not want ("
                f"{', '.join(sorted({r.name for r in rivals}))}) in NETCORE_PLUGINS_DISABLE"
            )
        return claims[0].offers[group.hook][name]

    def _missing(self, group: Group, name: object) -> PluginNotFoundError:
        """Word the error for a name that nobody provides."""
        if not isinstance(name, str):
            return PluginNotFoundError(f"{group.noun}: the name must be a str, not {name!r}")
        distribution = group.official.get(name)
        suspects = self._suspects(name, distribution)
        said = f"no installed plugin provides the {group.noun} {name!r}"
        cause: BaseException | None = None
        if suspects and suspects[0].disabled:
            said += f": {suspects[0].label} would, but {suspects[0].disabled} excludes it"
        elif suspects:
            said += f": {suspects[0].label} failed to load: {suspects[0].cause}"
            cause = suspects[0].error
        elif distribution:
            said += f": pip install {distribution}"
        else:
            said += self._advice(group, name)
        error = PluginNotFoundError(said)
        error.__cause__ = cause
        return error

    def _suspects(self, name: str, distribution: str | None) -> Sequence[Record]:
        """Return the plugins not in force that would, by their name, have provided `name`."""
        idle = [record for record in self._records if record.error is not None or record.disabled]
        return [record for record in idle if record.name == name or record.distribution == distribution]

    def _advice(self, group: Group, name: str) -> str:
        """List what there is, what is close, and which plugins are broken."""
        import difflib  # only an error needs it

        known = self.names(group)
        shown = [*known, *(f"{k} (pip install {d})" for k, d in group.official.items() if k not in known)]
        close = difflib.get_close_matches(name, {*known, *group.official}, n=2)
        text = f"; did you mean {' or '.join(map(repr, close))}?" if close else ";"
        text += f" known: {', '.join(shown) or 'none'}"
        for record in self._records:
            if record.error is not None:
                text += f"; {record.label} failed to load, which may be why: {record.cause}"
        return text
