"""The command line: `netcore`, one module a command.

Command modules import click and nothing heavier at their top, so that `netcore --help` is quick.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 done, 1 failed, 2 used or configured wrongly, 128+n by signal n.

    Args:
        arguments: default: the process's.
    """
    # Before anything is loaded: who thinks better of a command at once should not see a traceback.
    from netcore.cli.interrupts import leave_quietly

    leave_quietly()
    from netcore.cli.app import main as command_line

    command_line(arguments)
