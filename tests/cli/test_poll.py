from __future__ import annotations

import datetime as dt
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from netcore import EventBusConfig, blocking
from netcore.testing.servers import free_port

Cli = Any
Here = Any


def numbers(output: bytes) -> list[int]:
    return [json.loads(line)["n"] for line in output.splitlines()]


def test_poll_prints_everything_in_order_and_ends(filled: Cli) -> None:
    """From the earliest event to the last, payloads as they were ingested."""
    done = filled("poll", *filled.shelf)
    assert (done.returncode, done.stderr) == (0, b"")
    assert numbers(done.stdout) == list(range(2500))
    assert done.stdout.startswith(b'{"n":0,"even":true}\n')


def test_poll_limit_stops_exactly(filled: Cli) -> None:
    """--limit bounds the events, also beyond one page."""
    assert numbers(filled("poll", "--limit", 1203, *filled.shelf).stdout) == list(range(1203))


def test_poll_filter_prints_matches_only(filled: Cli) -> None:
    """--filter takes the filter plugin's JSON."""
    done = filled("poll", "--filter", '{"path":"even","value":true}', *filled.shelf)
    assert done.returncode == 0, done.stderr
    assert numbers(done.stdout) == list(range(0, 2500, 2))


def test_poll_shards_prints_those_shards_only(filled: Cli) -> None:
    """--shards restricts the poll."""
    done = filled("poll", "--shards", "0", "--meta", *filled.shelf)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert 0 < len(events) < 2500
    assert {event["shard"] for event in events} == {0}


def test_poll_cursor_file_resumes_without_loss_or_repeat(filled: Cli) -> None:
    """Each run goes on where the one before ended; no temporary file is left."""
    file: Path = filled.folder / "at.cursor"
    first = filled("poll", "--limit", 1500, "--cursor-file", file, *filled.shelf)
    second = filled("poll", "--cursor-file", file, *filled.shelf)
    third = filled("poll", "--cursor-file", file, *filled.shelf)
    assert numbers(first.stdout + second.stdout) == list(range(2500))
    assert third.stdout == b""
    assert [p.name for p in filled.folder.iterdir() if "cursor" in p.name] == ["at.cursor"]


@pytest.mark.parametrize("step", ["os.fsync", "os.replace"])
def test_poll_cursor_file_is_replaced_in_one_step(
    step: str, filled: Cli, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ended in the middle of it, the old cursor stands whole: the page is printed again, nothing is skipped."""
    file: Path = filled.folder / "at.cursor"
    assert here("poll", "--limit", 1000, "--cursor-file", file, *filled.shelf).returncode == 0
    before = file.read_text()
    seen: list[str] = []

    def die(*arguments: object) -> None:
        seen.append(file.read_text())  # what another process, or the next start, would find
        raise KeyboardInterrupt

    monkeypatch.setattr(step, die)
    ended = here("poll", "--limit", 1000, "--cursor-file", file, *filled.shelf)
    monkeypatch.undo()
    assert ended.returncode == 130
    assert [*seen, file.read_text()] == [before, before]
    assert [p.name for p in filled.folder.iterdir() if "cursor" in p.name] == ["at.cursor"]
    again = filled("poll", "--limit", 1000, "--cursor-file", file, *filled.shelf)
    assert numbers(again.stdout) == numbers(ended.stdout) == list(range(1000, 2000))
    assert file.read_text() != before


def test_poll_from_a_cursor_goes_on_after_it(filled: Cli) -> None:
    """--from takes a cursor as well."""
    file: Path = filled.folder / "at.cursor"
    filled("poll", "--limit", 2490, "--cursor-file", file, *filled.shelf)
    done = filled("poll", "--from", file.read_text().strip(), *filled.shelf)
    assert numbers(done.stdout) == list(range(2490, 2500))


def test_poll_from_a_time_skips_what_is_older(filled: Cli) -> None:
    """--from takes a time, as text or in nanoseconds."""
    last = json.loads(filled("poll", "--meta", *filled.shelf).stdout.splitlines()[-1])["ts"]
    assert numbers(filled("poll", "--from", last, *filled.shelf).stdout)[-1:] == [2499]
    later = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    before = dt.datetime(2020, 1, 1)
    assert filled("poll", "--from", later.isoformat(), *filled.shelf).returncode == 0
    assert len(numbers(filled("poll", "--from", before.isoformat(), *filled.shelf).stdout)) == 2500


def test_poll_from_the_tail_prints_nothing_old(filled: Cli) -> None:
    """Without --follow there is nothing at the tail."""
    done = filled("poll", "--from", "tail", *filled.shelf)
    assert (done.returncode, done.stdout) == (0, b"")


def test_poll_payload_that_is_not_one_line_of_json_is_made_one(cli: Cli) -> None:
    """Bytes that are not JSON are wrapped, JSON with line ends is written on one line."""
    import base64

    shelf = cli.folder / "shelf"
    shelf.mkdir()
    payloads = [b"\xff\x00", b'{\n "n": 1\n}', b'"plain"']
    (shelf / "0.shelf").write_text(
        "".join(json.dumps([n + 1, base64.b64encode(raw).decode()]) + "\n" for n, raw in enumerate(payloads))
    )
    lines = cli("poll", *cli.shelf).stdout.splitlines()
    assert [json.loads(line) for line in lines] == [{"payload_base64": "/wA="}, {"n": 1}, "plain"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--from", "yesterday"],
            b"--from takes earliest, tail, a time (2026-01-31T12:00:00Z) or a cursor, and 'yest",
        ),
        (["--cursor-file", "bad.cursor"], b"--cursor-file bad.cursor: 'not a cursor'"),
        (["--shards", "0,x"], b"--shards takes ids separated by commas, not '0,x'"),
        (["--shards", "70000"], b"65,535"),
        (["--filter", "{"], b"--filter is not a JSON object"),
        (["--filter", '{"nonsense": 1}'], b"nonsense"),
        (["--cursor-file", "empty.cursor"], b"empty.cursor is empty"),
    ],
)
def test_poll_asked_wrongly_is_exit_2(arguments: list[str], said: bytes, cli: Cli, here: Here) -> None:
    """A cursor, filter or shard that cannot be used is one line on stderr."""
    (cli.folder / "empty.cursor").touch()
    (cli.folder / "bad.cursor").write_text("not a cursor")
    done = here("poll", *arguments, *cli.shelf)
    assert (done.returncode, done.stdout) == (2, b"")
    assert said in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_poll_without_events_says_what_the_adapter_knows_of_it(cli: Cli) -> None:
    """Without peers nothing can come; an empty store is as quiet as an empty file."""
    done = cli("poll", *cli.shelf)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    done = cli("poll", *cli.shelf, "--set", "alone=1")
    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr == b"netcore: no events: 0 peers are linked\n"


def test_poll_of_a_mesh_waits_for_what_the_peers_hold(cli: Cli) -> None:
    """A node that opened a moment ago has none of it yet: an empty page is not the end."""
    mesh = pytest.importorskip("net_adapter_mesh")
    cli.env["NETCORE_PLUGINS"] = "mesh"
    address = f"tcp://127.0.0.1:{free_port()}"
    with blocking.EventBus(EventBusConfig(adapter=mesh.MeshConfig(listen=address))) as bus:
        for n in range(2500):
            bus.ingest({"n": n})
        bus.flush()
        for _ in range(3):
            done = cli("poll", "--adapter", "mesh", "--set", f'peers=["{address}"]')
            assert (done.returncode, done.stderr) == (0, b"")
            assert sorted(numbers(done.stdout)) == list(range(2500))


@pytest.mark.parametrize("adapter", ["memory", "noop"])
def test_poll_of_a_private_adapter_is_refused(adapter: str, here: Here) -> None:
    """A poll that can never see anything says so instead of printing nothing."""
    done = here("poll", "--adapter", adapter)
    assert done.returncode == 2
    assert f"the {adapter} adapter keeps events inside one process".encode() in done.stderr


def test_poll_follow_prints_what_comes_and_ends_well_when_interrupted(cli: Cli) -> None:
    """--follow begins at the tail, waits for new events, and SIGINT is its normal end."""
    cli("ingest", *cli.shelf, stdin=b'{"n":-1}\n')
    file: Path = cli.folder / "at.cursor"
    process = cli.start("poll", "--follow", "--from", "earliest", "--cursor-file", file, *cli.shelf)
    assert numbers(process.stdout.readline()) == [-1]
    cli("ingest", *cli.shelf, stdin=b'{"n":0}\n{"n":1}\n')
    assert numbers(process.stdout.readline() + process.stdout.readline()) == [0, 1]
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    assert process.stdout.read() == b""
    assert cli("poll", "--cursor-file", file, *cli.shelf).stdout == b""


def test_poll_broken_pipe_is_quiet_and_leaves_the_cursor(
    filled: Cli, eventually: Callable[..., None]
) -> None:
    """`netcore poll | head -1` says nothing, and the cursor does not cover what nobody read."""
    file: Path = filled.folder / "at.cursor"
    read, write = os.pipe()
    os.close(read)
    process = filled.start("poll", "--cursor-file", file, *filled.shelf, stdout=write)
    os.close(write)
    assert process.wait(20) == 0
    assert process.stderr.read() == b""
    assert not file.exists()


def test_poll_shard_unreadable_is_told_and_fails(filled: Cli) -> None:
    """A shard that cannot be read is named; the others are printed; the exit code is 1."""
    file: Path = filled.folder / "at.cursor"
    assert filled("poll", "--limit", 1, "--cursor-file", file, *filled.shelf).returncode == 0
    (filled.folder / "shelf" / "0.shelf").write_text("not a line of the shelf\n")
    done = filled("poll", "--cursor-file", file, *filled.shelf)
    assert done.returncode == 1
    assert b"shard 0 cannot be read" in done.stderr
