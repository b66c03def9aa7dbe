"""The command group: built-in commands, then plugins', and how errors reach the user."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Final, NoReturn, TextIO

import click

from netcore.cli.interrupts import leave_quietly, raise_again
from netcore.cli.options import debug_option, note
from netcore.errors import ConfigError, CursorError, FilterError, NetcoreError, PluginError

__all__ = ["app", "main"]

BUILT_IN: Final = ("demo", "ingest", "poll", "plugins", "config")
USAGE: Final = 2
FAILURE: Final = 1
INTERRUPTED: Final = 130
_COMPLETION: Final = "_NETCORE_COMPLETE"


class _Group(click.Group):
    """Finds built-in commands by module and, only for a name that none of them has, asks plugins.

    Plugins are not loaded for `netcore --help`: it must answer at once, also where an installed
    plugin is slow or broken. `netcore plugins` shows which of them bring commands.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(BUILT_IN)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in BUILT_IN:
            module = importlib.import_module(f"netcore.cli.{cmd_name}")
            command: click.Command = module.command
            return command
        return _from_plugins(cmd_name)


def _from_plugins(name: str) -> click.Command | None:
    from netcore.plugins.manager import default_manager

    found: dict[str, click.Command] = {}
    for plugin, group in default_manager().add_commands(click.Group):
        if isinstance(group, Exception):
            click.echo(f"netcore: the commands of plugin {plugin!r} failed to load: {group!r}", err=True)
        elif name in group.commands:
            found[plugin] = group.commands[name]
    if len(found) > 1:
        raise PluginError(f"the command {name!r} is claimed by the plugins {', '.join(sorted(found))}")
    return next(iter(found.values()), None)


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Plugins may bring further commands: `netcore plugins` shows which.",
)
@click.version_option(package_name="netcore-bus", prog_name="netcore")
@debug_option
def app() -> None:
    """Try out, feed, read and inspect netcore event buses."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit; see `netcore.cli.main`."""
    # The library's warnings (a plugin that did not load, a bus that retries) in the tool's own voice.
    logging.basicConfig(level=logging.WARNING, format="netcore: %(message)s")
    code = INTERRUPTED
    with contextlib.suppress(KeyboardInterrupt):  # one that meets these two lines, and not the command
        raise_again()
        code = run(sys.argv[1:] if arguments is None else arguments)
    leave_quietly()
    try:
        if sys.stderr is not None:
            sys.stderr.flush()
    except (OSError, ValueError):
        _silence(sys.stderr)  # nobody reads the complaints; the exit code still tells
    sys.exit(code)


def run(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code; errors are one line on stderr."""
    if _COMPLETION in os.environ:  # a shell asks what may come next; click knows how to answer
        app.main(args=list(arguments), prog_name="netcore", complete_var=_COMPLETION)
    try:
        # Not click's `main`: it turns a closed pipe into a failure, and errors into several lines.
        with app.make_context("netcore", list(arguments) or ["--help"]) as context:
            code = app.invoke(context)
        if sys.stdout is not None:  # as it is where the output was closed before we began
            sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except BrokenPipeError:
        return _had_enough()
    except (Exception, KeyboardInterrupt) as error:
        message, code = _explain(error)
        if "--debug" in arguments:
            traceback.print_exc()
        note(" ".join(message.split()))
        return code


def _explain(error: BaseException) -> tuple[str, int]:
    """Return what to tell the user of an error, and the exit code."""
    if isinstance(error, click.Abort | KeyboardInterrupt):
        return "interrupted", INTERRUPTED
    if isinstance(error, click.UsageError):
        path = error.ctx.command_path if error.ctx else "netcore"
        return f"{error.format_message()} (see {path} --help)", USAGE
    if isinstance(error, click.ClickException):
        return error.format_message(), USAGE
    if isinstance(error, ConfigError | CursorError | FilterError | PluginError):
        return str(error), USAGE
    if isinstance(error, NetcoreError | OSError):
        return str(error), FAILURE
    return f"{type(error).__name__}: {error} (a bug? --debug shows where)", FAILURE


def _had_enough() -> int:
    """End quietly: whoever read the output closed the pipe, which is no failure."""
    _silence(sys.stdout)
    return 0


def _silence(stream: TextIO) -> None:
    """Lead a stream whose pipe is closed nowhere, or the interpreter's last flush meets the pipe again."""
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, stream.fileno())
    except (OSError, ValueError):  # it is no real file, as in tests
        pass
    finally:
        os.close(null)
