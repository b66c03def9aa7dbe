"""`netcore config check`: says whether a settings file can build a bus, and what it amounts to."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
import msgspec

from netcore.bus import EventBus
from netcore.cli.options import adapter_of, debug_option
from netcore.config import EventBusConfig, stray_variables
from netcore.errors import ConfigError
from netcore.plugins.settings import show_settings


@click.group("config", no_args_is_help=False)
def command() -> None:
    """Work with settings files."""


@command.command("check")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@debug_option
def check(file: Path) -> int:
    """Check FILE (TOML or JSON) with NETCORE_* variables applied; print the effective settings.

    Builds a bus from it and opens nothing: keys, values, plugins and policies are looked at, no
    server is contacted. Credentials are masked in what is printed. A variable that names no setting,
    which a bus only warns of, is an error here.
    """
    if stray := stray_variables(os.environ):
        raise ConfigError("; ".join(f"{name} names no setting{guess}" for name, guess in stray.items()))
    config = EventBusConfig.load(file)
    EventBus(config)
    adapter, _ = adapter_of(config)
    effective: dict[str, Any] = msgspec.to_builtins(msgspec.structs.replace(config, adapter="", scaling=None))
    effective["adapter"] = show_settings(adapter)
    effective["scaling"] = None if config.scaling is None else msgspec.to_builtins(config.scaling)
    click.echo(msgspec.json.format(msgspec.json.encode(effective)))
    click.echo(f"netcore: {file} is fine", err=True)
    return 0
