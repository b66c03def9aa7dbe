"""Finds what is installed, reads what the environment excludes, and loads one plugin at a time."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

import msgspec

from netcore.errors import PluginError
from netcore.plugins.registry import Record
from netcore.plugins.spec import PROJECT

__all__ = ["ALLOW", "DENY", "InstalledPlugin", "Selection", "admit", "installed_plugins"]

ALLOW: Final = "NETCORE_PLUGINS"
DENY: Final = "NETCORE_PLUGINS_DISABLE"


class InstalledPlugin(msgspec.Struct, frozen=True, kw_only=True):
    """A plugin as installed metadata describes it; nothing of it is imported.

    Attributes:
        name: entry point name.
        distribution: distribution that declares it.
        version: that distribution's version.
        load: imports the plugin and returns it.
    """

    name: str
    distribution: str
    version: str
    load: Callable[[], object]


def installed_plugins(path: Sequence[str] | None = None) -> Iterator[InstalledPlugin]:
    """List the entry points of the group `netcore`, without importing any.

    A distribution whose metadata is malformed yields an `InstalledPlugin` whose `load` raises: one
    unreadable file must not hide the others.

    Args:
        path: folders to look in; default: `sys.path`.
    """
    import importlib.metadata as metadata

    seen: set[str] = set()
    found = metadata.distributions() if path is None else metadata.distributions(path=list(path))
    for distribution in found:
        try:
            if PROJECT not in (distribution.read_text("entry_points.txt") or ""):
                continue
            name, version = str(distribution.metadata["Name"]), str(distribution.version)
            entries = list(distribution.entry_points.select(group=PROJECT))
        except Exception as error:
            name = str(getattr(distribution, "_path", distribution))
            yield InstalledPlugin(name="?", distribution=name, version="", load=_raiser(error))
            continue
        normalised = re.sub(r"[-_.]+", "-", name).lower()
        if normalised in seen:  # shadowed by an earlier folder of the path, as for imports
            continue
        seen.add(normalised)
        for entry in entries:
            yield InstalledPlugin(name=entry.name, distribution=name, version=version, load=entry.load)


def _raiser(error: Exception) -> Callable[[], object]:
    def load() -> object:
        raise PluginError(f"its metadata is malformed: {type(error).__name__}: {error}") from error

    return load


class Selection:
    """Which plugins the environment allows, by entry point name; decided before anything is imported.

    Args:
        environ: `NETCORE_PLUGINS` allows only what it names (set and empty: nothing),
            `NETCORE_PLUGINS_DISABLE` excludes what it names; both are separated by commas.
    """

    __slots__ = ("_allowed", "_denied")

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._allowed = _names(environ.get(ALLOW))
        self._denied = _names(environ.get(DENY)) or []

    def excluded(self, item: InstalledPlugin) -> Record | None:
        """Return the record of a plugin that is not to be loaded, or None."""
        if item.name in self._denied:
            variable = DENY
        elif self._allowed is not None and item.name not in self._allowed:
            variable = ALLOW
        else:
            return None
        return Record(name=item.name, distribution=item.distribution, version=item.version, disabled=variable)

    def unknown(self, installed: Iterable[str]) -> Iterator[Record]:
        """Yield a record for each name that is allowed but not installed: most likely a slip."""
        present = set(installed)
        for name in self._allowed or ():
            if name not in present:
                error = PluginError(f"{ALLOW} names it, but no installed distribution has this entry point")
                yield Record(name=name, distribution="-", error=error)


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def admit(item: InstalledPlugin) -> Record:
    """Import and check one plugin; its failure becomes part of its record."""
    from netcore.plugins.vetting import vet

    try:
        hooks, offers = vet(item.load(), item.name)
    except (Exception, SystemExit) as error:  # a module that calls sys.exit must not end the host
        _let_go(error)
        return Record(name=item.name, distribution=item.distribution, version=item.version, error=error)
    return Record(
        name=item.name,
        distribution=item.distribution,
        version=item.version,
        hooks=hooks,
        offers=offers,
    )


def _let_go(error: BaseException | None) -> None:
    """Turn an error's traceback into a note on it.

    The error is kept for as long as the process lives, and with its frames everything that their
    callers hold: the very bus whose making loaded the plugins would never be let go of.
    """
    if error is not None and error.__traceback__ is not None:
        error.add_note("".join(traceback.format_tb(error.__traceback__)).rstrip())
        error.__traceback__ = None
        _let_go(error.__cause__)
        _let_go(error.__context__)
