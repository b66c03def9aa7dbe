from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Any
Here = Any
LINES = b"".join(b'{"n": %d, "user": {"id": "u%d"}}\n' % (n, n % 7) for n in range(500))


def stored(cli: Cli) -> list[dict[str, Any]]:
    done = cli("poll", *cli.shelf)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_ingest_from_stdin_stores_every_line(cli: Cli) -> None:
    """What was piped in can be polled by another process, in order and unchanged."""
    done = cli("ingest", *cli.shelf, stdin=LINES)
    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr == b"netcore: 500 events ingested, 500 stored\n"
    assert [event["n"] for event in stored(cli)] == list(range(500))


def test_ingest_from_a_file_without_final_newline_stores_every_line(cli: Cli) -> None:
    """A last line without its end counts; blank lines and CRLF ends do not."""
    file = cli.folder / "in.ndjson"
    file.write_bytes(b'{"n": 0}\r\n\n   \n{"n": 1}')
    assert cli("ingest", file, *cli.shelf).returncode == 0
    assert [event["n"] for event in stored(cli)] == [0, 1]


def test_ingest_nothing_is_fine(cli: Cli) -> None:
    """An empty input is no error."""
    done = cli("ingest", *cli.shelf)
    assert (done.returncode, done.stderr) == (0, b"netcore: 0 events ingested, 0 stored\n")


def test_ingest_malformed_lines_are_numbered_and_fail(cli: Cli) -> None:
    """Bad lines are told with their numbers, the good ones are stored, the exit code is 1."""
    lines = b'{"n": 0}\nnope\n{"n": 1}\n\xff\xfe\n' + b"[" * 20000 + b"\n"
    done = cli("ingest", *cli.shelf, stdin=lines)
    assert done.returncode == 1
    assert [line.split(b":")[1] for line in done.stderr.splitlines()[:3]] == [
        b" line 2",
        b" line 4",
        b" line 5",
    ]
    assert b"not valid JSON" in done.stderr
    assert done.stderr.endswith(b"2 events ingested, 2 stored, 3 malformed lines\n")
    assert [event["n"] for event in stored(cli)] == [0, 1]


def test_ingest_malformed_lines_skipped_on_request(cli: Cli) -> None:
    """--skip-bad counts them and succeeds."""
    done = cli("ingest", "--skip-bad", *cli.shelf, stdin=b'{"n": 0}\nnope\n')
    assert done.returncode == 0
    assert done.stderr.endswith(b"1 malformed lines\n")


def test_ingest_many_malformed_lines_are_not_all_told(cli: Cli) -> None:
    """After ten bad lines the rest are counted."""
    done = cli("ingest", *cli.shelf, stdin=b"nope\n" * 25)
    assert done.stderr.count(b"netcore: line") == 10
    assert b"... and 15 more malformed lines" in done.stderr


def test_ingest_with_key_keeps_a_keys_events_in_one_shard(cli: Cli) -> None:
    """The value at the dotted path routes: each key meets one shard, in order."""
    assert cli("ingest", "--key", "user.id", *cli.shelf, stdin=LINES).returncode == 0
    done = cli("poll", "--meta", *cli.shelf)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    shards: dict[str, set[int]] = {}
    for event in events:
        shards.setdefault(event["payload"]["user"]["id"], set()).add(event["shard"])
    assert len(shards) == 7
    assert all(len(where) == 1 for where in shards.values())


def test_ingest_key_absent_is_a_malformed_line(cli: Cli) -> None:
    """A line without the key cannot be routed by it; list indices and non-strings can."""
    lines = b'{"a": [1, {"b": 5}]}\n{"a": [1]}\n{"a": [1, {"b": null}]}\n7\n'
    done = cli("ingest", "--key", "a.1.b", *cli.shelf, stdin=lines)
    assert done.returncode == 1
    assert done.stderr.count(b"nothing at --key a.1.b") == 3
    assert b"1 events ingested" in done.stderr


def test_ingest_waits_for_room_instead_of_dropping(cli: Cli) -> None:
    """A tiny ring and the default policy of a bus would evict; a file can wait."""
    config = cli.folder / "tiny.toml"
    config.write_text('ring_capacity = 4\nshards = 1\nbackpressure = "drop_oldest"\n')
    assert cli("ingest", "--config", config, *cli.shelf, stdin=LINES).returncode == 0
    assert len(stored(cli)) == 500


def test_ingest_refused_events_fail(cli: Cli) -> None:
    """Under a policy that refuses, what was refused is counted and the exit code is 1."""
    config = cli.folder / "tiny.toml"
    config.write_text("ring_capacity = 4\nshards = 1\n")
    done = cli("ingest", "--config", config, "--backpressure", "drop_newest", *cli.shelf, stdin=LINES)
    assert done.returncode == 1
    assert b" refused" in done.stderr


def test_ingest_dead_letters_fail(cli: Cli) -> None:
    """An event that can never be stored is counted and the exit code is 1."""
    done = cli("ingest", *cli.shelf, "--set", 'poison="n": 3}', stdin=b'{"n": 1}\n{"n": 3}\n')
    assert done.returncode == 1
    assert b"2 events ingested, 1 stored, 1 dead-lettered" in done.stderr


def test_ingest_into_a_private_adapter_warns(cli: Cli) -> None:
    """Events that nobody can ever read are worth a word."""
    done = cli("ingest", stdin=b"1\n")
    assert done.returncode == 0
    assert b"warning: the memory adapter keeps events inside this process" in done.stderr


def test_ingest_that_no_other_node_has_fails(cli: Cli) -> None:
    """They were stored, but in a process that is over: whoever wrote them must hear of it."""
    done = cli("ingest", *cli.shelf, "--set", "alone=2", stdin=b"1\n2\n3\n")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        b"netcore: 3 events ingested, 3 stored",
        b"netcore: 2 of them ended with this process: no other node has them; were its peers up?",
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no-such-file"], b"no-such-file"),
        (["--adapter", "shelv"], b"did you mean 'shelf'"),
        (["--adapter", "shelf"], b"missing required field `folder`"),
        (["--adapter", "shelf", "--set", "folder"], b"--set takes KEY=VALUE"),
        (["--adapter", "shelf", "--set", "folder=x", "--set", "fodler=y"], b"did you mean 'folder'"),
        (["--adapter", "shelf", "--set", "folder=x", "--set", "secret={"], b"--set secret is not valid JSON"),
        (["--adapter", "shelf", "--set", "folder=x", "--set", "folder.a=1"], b"steps into 'folder'"),
        (["--adapter", "redis"], b"pip install net-adapter-redis"),
        (["--backpressure", "blok"], b"did you mean 'block'"),
    ],
)
def test_ingest_configured_wrongly_is_exit_2(arguments: list[str], said: bytes, here: Here) -> None:
    """A wrong setting is one line that names it."""
    done = here("ingest", *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_ingest_interrupted_drains_and_says_where(cli: Cli, eventually: Callable[..., None]) -> None:
    """SIGTERM while standard input is silent: what was read is stored, the rest is told."""
    process = cli.start("ingest", *cli.shelf)
    process.stdin.write(LINES)
    process.stdin.flush()
    shelf: Path = cli.folder / "shelf"
    eventually(lambda: sum(f.read_text().count("\n") for f in shelf.glob("*.shelf")) == 500)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 128 + signal.SIGTERM
    told = process.stderr.read()
    assert b"SIGTERM: shutting down" in told
    assert b"500 events ingested, 500 stored" in told
    assert b"interrupted after line 500" in told


def test_ingest_second_signal_leaves_at_once(cli: Cli, eventually: Callable[..., None]) -> None:
    """A shutdown that waits for a stuck adapter ends with the second signal."""
    process = cli.start("ingest", *cli.shelf, "--set", "hang=true")
    process.stdin.write(LINES)
    process.stdin.flush()
    eventually((cli.folder / "shelf" / "hanging").exists)
    process.send_signal(signal.SIGINT)
    assert b"again to leave at once" in process.stderr.readline()
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 128 + signal.SIGINT
    assert time.monotonic() - began < 5


def test_ingest_interrupted_while_it_waits_for_room_ends(cli: Cli, eventually: Callable[..., None]) -> None:
    """The wait for room in a full ring ends with the signal; what is not accepted is not counted."""
    config = cli.folder / "tiny.toml"
    config.write_text("ring_capacity = 4\nshards = 1\n[batch]\nmax_events = 1\n")
    process = cli.start("ingest", "--config", config, *cli.shelf, "--set", "hang=true")
    process.stdin.write(LINES)
    process.stdin.flush()
    eventually((cli.folder / "shelf" / "hanging").exists)
    process.send_signal(signal.SIGTERM)
    assert b"again to leave at once" in process.stderr.readline()
    (cli.folder / "shelf" / "released").touch()
    assert process.wait(20) == 128 + signal.SIGTERM
    assert re.search(rb"([45]) events ingested, \1 stored", process.stderr.read())


def test_ingest_shows_progress_on_a_terminal_only(cli: Cli) -> None:
    """A bar for people, nothing for pipes."""
    file = cli.folder / "in.ndjson"
    file.write_bytes(LINES)
    code, shown = cli.on_terminal("ingest", file, *cli.shelf)
    assert code == 0
    assert b"ingesting" in shown
    assert b"\x1b[" not in cli("ingest", file, *cli.shelf).stderr
