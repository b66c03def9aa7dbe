from __future__ import annotations

import json
from typing import Any

Cli = Any


def test_plugins_as_json_tells_everything(cli: Cli) -> None:
    """Name, distribution, version, hooks, what is provided, what is wrong."""
    done = cli("plugins", "--json")
    plugins = {plugin["name"]: plugin for plugin in json.loads(done.stdout)}
    assert plugins["shelf"] == {
        "name": "shelf",
        "distribution": "netcore-test-shelf",
        "version": "1.0",
        "hooks": ["netcore_adapters", "netcore_commands"],
        "provides": ["adapter shelf"],
        "error": "",
        "disabled": "",
    }
    assert "adapter memory" in plugins["netcore"]["provides"]
    assert plugins["redis"]["disabled"] == "NETCORE_PLUGINS"


def test_plugins_as_a_table_shows_causes_whole(cli: Cli) -> None:
    """The table names each plugin and, for a broken one, the real cause."""
    (cli.site / "netcore_test_broken.py").write_text("import no_such_client_library\n")
    cli.install(cli.site, "netcore-test-broken", "broken = netcore_test_broken")
    cli.env["NETCORE_PLUGINS"] = "shelf,broken"
    done = cli("plugins")
    assert done.returncode == 0
    assert b"netcore-test-shelf" in done.stdout
    assert b"no_such_client_library" in done.stdout
    assert b"off: NETCORE_PLUGINS" in done.stdout
    assert done.stderr == b""
    assert cli("plugins", "--check").returncode == 1


def test_plugins_check_sound_is_exit_0(cli: Cli) -> None:
    """--check succeeds where every plugin works."""
    assert cli("plugins", "--check").returncode == 0
