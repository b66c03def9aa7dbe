"""SIGINT at awkward moments: while the program loads, and while the interpreter ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import Any

import pytest

AT_IMPORT = """
import os, runpy, signal, sys

class Interrupt:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt)
sys.argv = ["netcore", *{arguments!r}]
"""
AT_EXIT = """
import atexit, os, runpy, signal, sys

atexit.register(os.kill, os.getpid(), signal.SIGINT)
sys.argv = ["netcore", "--version"]
"""
AS_A_MODULE = 'runpy.run_module("netcore", run_name="__main__", alter_sys=True)\n'
AS_A_SCRIPT = "from netcore.cli import main\nsys.exit(main())\n"


def run(cli: Any, source: str) -> subprocess.CompletedProcess[bytes]:
    """Run a program of its own."""
    return subprocess.run(
        [sys.executable, "-c", source],
        capture_output=True,
        env=cli.env,
        cwd=cli.folder,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("entry", [AS_A_MODULE, AS_A_SCRIPT], ids=["module", "script"])
@pytest.mark.parametrize("module", ["click", "msgspec", "netcore.errors", "netcore.cli.app"])
def test_interrupt_while_the_program_loads_is_quiet(cli: Any, module: str, entry: str) -> None:
    """Nothing has begun that would have to end, and a traceback tells the user nothing."""
    done = run(cli, AT_IMPORT.format(module=module, arguments=["--version"]) + entry)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


@pytest.mark.parametrize("module", ["netcore.cli.config", "netcore.bus", "netcore.plugins.settings"])
def test_interrupt_while_a_command_loads_is_one_line(cli: Any, module: str) -> None:
    """Whoever waits at the terminal is told that it was heard."""
    (cli.folder / "bus.toml").write_text("shards = 2\n")
    done = run(cli, AT_IMPORT.format(module=module, arguments=["config", "check", "bus.toml"]) + AS_A_MODULE)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"netcore: interrupted\n")


def test_interrupt_while_the_interpreter_ends_is_quiet(cli: Any) -> None:
    """What was to be printed has been, and nothing is left to stop."""
    done = run(cli, AT_EXIT + AS_A_MODULE)
    assert (done.returncode, done.stderr) == (130, b"")
    assert done.stdout.startswith(b"netcore, version")


def test_interrupt_that_is_ignored_stays_ignored(cli: Any) -> None:
    """As `nohup` and shells without job control start their background commands."""
    ignore = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    done = run(cli, ignore + AT_IMPORT.format(module="click", arguments=["--version"]) + AS_A_MODULE)
    assert (done.returncode, done.stderr) == (0, b"")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # the test's own process
