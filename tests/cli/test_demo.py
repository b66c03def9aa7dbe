from __future__ import annotations

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from netcore import AddShards, ConfigError, EventBus
from netcore.cli import demo

Cli = Any


def test_demo_replays_real_events_and_accounts_for_each(cli: Cli) -> None:
    """Every event in, every event out, once; the filter finds what a look at each event finds."""
    done = cli("demo")
    assert done.returncode == 0, done.stderr
    shown = done.stdout.decode()
    assert "ingested 1,707 == dispatched 1,707 + evicted 0 + dead-lettered 0 + lost 0" in shown
    assert "exactly once: 1,707 of 1,707" in shown
    assert "105 of magType" in shown
    assert "each event: 105" in shown
    assert "shard 0" in shown
    assert "FAIL" not in shown
    assert b"\x1b[" not in done.stdout + done.stderr


def test_demo_shows_shards_pressure_and_scaling_history(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the stats of a bus say of its shards: how full, what each stored, which came and why."""
    from netcore.cli.app import run

    for name in [name for name in os.environ if name.startswith("NETCORE_")]:
        monkeypatch.delenv(name)
    consume = demo._Demo._consume

    async def scale_first(self: object, bus: EventBus, *rest: object) -> None:
        await bus.apply(AddShards(1, "a test says so"))
        await consume(self, bus, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(demo._Demo, "_consume", scale_first)
    assert run(["demo"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"pressure at the end\D*0%", shown)
    assert re.search(r"shard 2 .*events in .*batches", shown)
    assert re.search(r"scaled \+2 .*a test says so", shown)


def test_demo_on_a_terminal_shows_progress(cli: Cli) -> None:
    """A bar for what was ingested and one for what was polled, while it runs."""
    code, shown = cli.on_terminal("demo")
    assert code == 0
    assert b"ingested" in shown
    assert b"polled" in shown
    assert b"1707/1707" in shown


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_demo_interrupted_drains_and_shuts_down(cli: Cli, eventually: Any, number: signal.Signals) -> None:
    """A signal while the adapter is slow: the producers end, the bus is drained, the exit code is the signal's."""
    process = cli.start("demo", *cli.shelf, "--set", "hang=true")
    eventually((cli.folder / "shelf" / "hanging").exists)
    process.send_signal(number)
    assert b"again to leave at once" in process.stderr.readline()
    (cli.folder / "shelf" / "released").touch()
    assert process.wait(20) == 128 + number
    assert process.stderr.read() == b"netcore: interrupted; the bus was drained and shut down\n"
    assert process.stdout.read() == b""


def test_demo_without_the_filter_plugin_says_what_to_install(cli: Cli) -> None:
    """The demo needs no plugin."""
    cli.env["NETCORE_PLUGINS"] = ""
    done = cli("demo")
    assert done.returncode == 0, done.stderr
    assert b"not asked" in done.stdout


def test_demo_through_a_store_that_holds_older_events_counts_its_own(cli: Cli) -> None:
    """What was there before, and a second run, do not confuse the count."""
    for _ in range(2):
        done = cli("demo", "--producers", 2, *cli.shelf)
        assert done.returncode == 0, done.stdout + done.stderr
        assert b"1,707 of 1,707" in done.stdout


def test_demo_of_a_file_with_repeated_events_counts_each(cli: Cli) -> None:
    """Equal payloads are different events."""
    file = cli.folder / "in.ndjson"
    file.write_bytes(b'{"a":1}\n' * 30 + b"\n")
    done = cli("demo", "--file", file)
    assert done.returncode == 0, done.stderr
    assert b"exactly once: 30 of 30" in done.stdout


def test_demo_whose_events_do_not_arrive_fails(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An adapter that discards everything leaves the consumer with nothing: exit code 1, and told."""
    from netcore.cli.app import run

    monkeypatch.setattr(demo, "_PATIENCE", 0.2)
    assert run(["demo", "--adapter", "noop"]) == 1
    assert "FAIL the consumer saw every stored event exactly once: 0 of 1,707" in capsys.readouterr().out


def test_demo_file_empty_is_exit_2(cli: Cli) -> None:
    """Nothing to replay is a mistake."""
    file = cli.folder / "empty.ndjson"
    file.touch()
    done = cli("demo", "--file", file)
    assert done.returncode == 2
    assert b"holds no events" in done.stderr


def test_demo_default_file_is_the_checkouts_or_the_wheels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a checkout around it the package's own copy serves; without either, it says so."""
    assert demo.default_file().parts[-3:] == ("examples", "data", "earthquakes.ndjson")
    package = tmp_path / "site-packages" / "netcore" / "cli"
    package.mkdir(parents=True)
    monkeypatch.setattr(demo, "__file__", str(package / "demo.py"))
    with pytest.raises(ConfigError, match="--file"):
        demo.default_file()
    (package / "earthquakes.ndjson").touch()
    assert demo.default_file() == package / "earthquakes.ndjson"
