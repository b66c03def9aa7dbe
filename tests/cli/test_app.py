from __future__ import annotations

from typing import Any

import pytest

import netcore
from netcore.cli.app import BUILT_IN, run

Cli = Any


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    """Help shows all built-in commands and says where plugins' commands are listed."""
    assert run(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name}" in shown for name in BUILT_IN)
    assert "`netcore plugins`" in shown


@pytest.mark.parametrize("name", BUILT_IN)
def test_command_help_is_there(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command explains itself."""
    assert run([name, "--help"]) == 0
    assert f"Usage: netcore {name}" in capsys.readouterr().out


def test_version_as_a_module_is_the_distributions(cli: Cli) -> None:
    """`python -m netcore --version` names the distribution's version."""
    done = cli("--version")
    assert done.returncode == 0
    assert netcore.__version__.encode() in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [["no-such-command"], ["ingest", "--no-such-option"], ["poll", "--limit", "none"], ["demo", "x"]],
)
def test_usage_wrong_is_one_line_and_exit_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A slip on the command line is answered with one line on stderr."""
    assert run(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("netcore: ")
    assert err.count("\n") == 1
    assert "--help" in err


def test_command_of_a_plugin_runs(cli: Cli) -> None:
    """A name that no built-in command has is looked for among the plugins'."""
    done = cli("greet", "netcore")
    assert (done.returncode, done.stdout) == (0, b"hello netcore\n")


def test_command_of_a_plugin_claimed_twice_is_refused(cli: Cli) -> None:
    """Two plugins with one command: neither wins by chance."""
    source = (cli.site / "netcore_test_shelf.py").read_text()
    (cli.site / "netcore_test_rival.py").write_text(source.replace('"shelf"', '"rival"'))
    cli.install(cli.site, "netcore-test-rival", "rival = netcore_test_rival")
    cli.env["NETCORE_PLUGINS"] = "shelf,rival"
    done = cli("greet")
    assert done.returncode == 2
    assert b"the command 'greet' is claimed by the plugins rival, shelf" in done.stderr


def test_commands_of_a_broken_plugin_leave_the_others(cli: Cli) -> None:
    """A plugin whose commands cannot be built is reported, and the others' commands run."""
    (cli.site / "netcore_test_broken.py").write_text(
        "import netcore\n@netcore.hookimpl\ndef netcore_commands(cli): raise RuntimeError('boom')\n"
    )
    cli.install(cli.site, "netcore-test-broken", "broken = netcore_test_broken")
    cli.env["NETCORE_PLUGINS"] = "shelf,broken"
    done = cli("greet")
    assert (done.returncode, done.stdout) == (0, b"hello you\n")
    assert b"the commands of plugin 'broken' failed to load: RuntimeError('boom')" in done.stderr


def test_help_loads_no_plugin(cli: Cli) -> None:
    """Help answers also where a plugin would hang or break at import."""
    (cli.site / "netcore_test_shelf.py").write_text("raise SystemExit('loaded')\n")
    done = cli("--help")
    assert (done.returncode, done.stderr) == (0, b"")


def test_error_unexpected_is_one_line_and_a_traceback_with_debug(cli: Cli) -> None:
    """No traceback, unless it is asked for."""
    done = cli("stumble")
    assert done.returncode == 1
    assert done.stderr.startswith(b"netcore: RuntimeError: stumbled in a plugin")
    assert done.stderr.count(b"\n") == 1
    assert b"Traceback" in cli("--debug", "stumble").stderr
