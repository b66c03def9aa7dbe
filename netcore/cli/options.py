"""Options that several commands share, and the bus settings made from them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from netcore.config import EventBusConfig
from netcore.errors import ConfigError
from netcore.plugins.manager import default_manager

if TYPE_CHECKING:
    from netcore.config import AdapterConfig
    from netcore.contracts.adapter import Capabilities

__all__ = ["adapter_of", "bus_options", "debug_option", "load_config", "note"]

F = TypeVar("F", bound=Callable[..., Any])


def debug_option(function: F) -> F:
    """Add `--debug`; what it does is up to the error handler, which looks at the command line."""
    return click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")(
        function
    )


def bus_options(function: F) -> F:
    """Add `--config`, `--adapter`, `--set` and `--debug`."""
    for option in (
        debug_option,
        click.option(
            "--set",
            "settings",
            multiple=True,
            metavar="KEY=VALUE",
            help="An adapter setting, e.g. url=redis://db:6379; dots step into tables. Repeatable.",
        ),
        click.option("--adapter", metavar="KIND", help="Where events go; default: the file's, else memory."),
        click.option(
            "--config",
            "config_file",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="Settings as TOML or JSON; NETCORE_* variables override them.",
        ),
    ):
        function = option(function)
    return function


def note(message: str) -> None:
    """Tell the user something beside the output: one line on stderr.

    Where nobody reads it (a closed pipe, a full disk) the work goes on all the same.
    """
    with contextlib.suppress(OSError):
        click.echo(f"netcore: {message}", err=True)


def load_config(config_file: Path | None, adapter: str | None, settings: Sequence[str]) -> EventBusConfig:
    """Read the file, if any, and the environment; then apply `--adapter` and `--set`.

    Raises:
        ConfigError: as `EventBusConfig.load`, or `--set` is not KEY=VALUE.
    """
    if config_file is None:
        config = EventBusConfig.from_dict({}, env=os.environ, source="environment")
    else:
        config = EventBusConfig.load(config_file)
    if adapter is None and not settings:
        return config
    table = _as_table(config.adapter)
    if adapter is not None and adapter != table["kind"]:
        table = {"kind": adapter}  # the file's settings are another adapter's
    for setting in settings:
        _put(table, setting)
    return msgspec.structs.replace(config, adapter=table)


def _as_table(setting: Any) -> dict[str, Any]:
    if isinstance(setting, str):
        return {"kind": setting}
    if not isinstance(setting, dict) or not isinstance(setting.get("kind"), str):
        raise ConfigError("adapter in the settings must be a kind or a table with a 'kind'")
    return dict(setting)


def _put(table: dict[str, Any], setting: str) -> None:
    """Put `key.inner=value` at its place; lists and tables are given as JSON."""
    import msgspec

    path, equals, text = setting.partition("=")
    if not equals or not path.strip("."):
        raise ConfigError(f"--set takes KEY=VALUE, not {path!r}")
    *tables, key = path.split(".")
    for name in tables:
        inner = table.setdefault(name, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {path} steps into {name!r}, which is not a table")
        table[name] = table = dict(inner)
    value: Any = text
    if text[:1] in ("[", "{"):
        try:
            value = msgspec.json.decode(text)
        except msgspec.DecodeError as error:
            raise ConfigError(f"--set {path} is not valid JSON: {error}") from error
    table[key] = value


def adapter_of(config: EventBusConfig) -> tuple[AdapterConfig, Capabilities]:
    """Return the settings of the adapter that `config` chooses, and what it can do with these."""
    registry = default_manager().registry
    settings = registry.adapter_config(config.adapter)
    return settings, registry.adapter(settings.kind)(settings).capabilities
