"""The command line: `netcore`, one module a command.

Command modules import click and nothing heavier at their top, so that `netcore --help` is quick.
"""

from __future__ import annotations

from netcore.cli.app import main

__all__ = ["main"]
