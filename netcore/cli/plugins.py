"""`netcore plugins`: what is installed, what it provides, and whether it works."""

from __future__ import annotations

import logging
import sys

import click
import msgspec

from netcore.cli.options import debug_option
from netcore.plugins.manager import PluginInfo, default_manager


@click.command("plugins")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list.")
@click.option("--check", is_flag=True, help="Exit with 1 if a plugin is broken.")
@debug_option
def command(as_json: bool, check: bool) -> int:
    """List plugins: version, hooks, what they provide, and what is wrong with them."""
    # The causes are in the listing; the log line for each would say them twice.
    logging.getLogger("netcore.plugins").addFilter(lambda record: False)
    plugins = default_manager().plugins()
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(plugins)))
    else:
        _print_table(plugins)
    return 1 if check and any(plugin.error for plugin in plugins) else 0


def _print_table(plugins: list[PluginInfo]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title="netcore plugins", title_justify="left")
    for column in ("name", "distribution", "version", "hooks", "provides", "health"):
        table.add_column(column, overflow="fold")
    for plugin in plugins:
        if plugin.error:
            health = Text(plugin.error, style="red")
        elif plugin.disabled:
            health = Text(f"off: {plugin.disabled}", style="yellow")
        else:
            health = Text("ok", style="green")
        table.add_row(
            Text(plugin.name),
            Text(plugin.distribution),
            Text(plugin.version),
            Text("\n".join(hook.removeprefix("netcore_") for hook in plugin.hooks)),
            Text("\n".join(plugin.provides)),
            health,
        )
    # In a pipe there is no width to fit into; a line cut at 80 columns would lose the causes.
    Console(width=None if sys.stdout.isatty() else 160).print(table)
