from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

Cli = Any
Here = Any

GOOD = """
shards = 3
[batch]
max_events = 10
[adapter]
kind = "shelf"
folder = "shelf://me:s3cret@host/x"
password = "s3cret"
secret = {a = "s3cret"}
[scaling]
policy = "utilization"
"""


def test_config_check_good_prints_the_effective_settings_masked(cli: Cli) -> None:
    """Defaults filled in, variables applied, credentials hidden; no server is contacted."""
    file = cli.folder / "bus.toml"
    file.write_text(GOOD)
    cli.env["NETCORE_BATCH__MAX_EVENTS"] = "20"
    done = cli("config", "check", file)
    assert done.returncode == 0, done.stderr
    settings = json.loads(done.stdout)
    assert settings["shards"] == 3
    assert settings["batch"] == {"max_events": 20, "max_delay_ms": 5}
    assert settings["adapter"]["kind"] == "shelf"
    assert settings["adapter"]["folder"] == "shelf://***@host/x"
    assert settings["scaling"]["policy"] == "utilization"
    assert b"s3cret" not in done.stdout + done.stderr
    assert not (cli.folder / "shelf:").exists()


def test_config_check_with_a_stray_variable_is_exit_2(
    tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other commands run, and warn; whoever asks for a check is told that a setting would not arrive."""
    file = tmp_path / "bus.toml"
    file.write_text("shards = 2\n")
    monkeypatch.setenv("NETCORE_SHARD", "3")
    done = here("config", "check", file)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"netcore: NETCORE_SHARD names no setting; did you mean NETCORE_SHARDS?\n"


def test_command_with_a_stray_variable_runs_and_warns_once(cli: Cli) -> None:
    """One line, in the tool's own voice."""
    cli.env["NETCORE_SHARD"] = "3"
    done = cli("ingest", *cli.shelf, stdin=b'{"n":1}\n')
    assert done.returncode == 0
    assert done.stderr.splitlines() == [
        b"netcore: NETCORE_SHARD names no setting and is ignored; did you mean NETCORE_SHARDS?",
        b"netcore: 1 events ingested, 1 stored",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("shards = 0", b"shards must be an int from 1 to 1,024, not 0"),
        ("shard = 1", b"unknown key 'shard'; did you mean 'shards'? (it has: shards, ring_capacity, "),
        (
            "[batch]\nmax_event = 1",
            b"unknown key 'batch.max_event'; did you mean 'max_events'? (it has: max_events, ",
        ),
        ("shards = ", b"malformed"),
        ('adapter = "nope"', b"adapter 'nope'"),
        ('adapter = {kind = "shelf", folder = "x", colour = 1}', b"unknown key 'colour'"),
        ('backpressure = "drop_old"', b"did you mean 'drop_oldest'"),
        ('[scaling]\npolicy = "utilisation"', b"did you mean 'utilization'"),
        ("[scaling]\noptions = {colour = 1}", b"colour"),
    ],
)
def test_config_check_bad_is_one_line_and_exit_2(text: str, said: bytes, tmp_path: Path, here: Here) -> None:
    """Whatever is wrong, the line names it."""
    file = tmp_path / "bus.toml"
    file.write_text(text)
    done = here("config", "check", file)
    assert (done.returncode, done.stdout) == (2, b"")
    assert said in done.stderr
    assert done.stderr.count(b"\n") == 1
