"""Empty options, folders that are not there, and a terminal that went away."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from typing import Any


def test_empty_start_is_refused_and_does_not_read_everything_again(here: Any, cli: Any) -> None:
    """`--from "$CURSOR"` with a variable that was never set must not be `earliest`."""
    ended = here("poll", *cli.shelf, "--from", "")
    assert (ended.returncode, ended.stdout) == (2, b"")
    assert ended.stderr.splitlines() == [
        b"netcore: --from is empty; it takes earliest, tail, a time or a cursor"
    ]


def test_empty_key_path_is_refused(here: Any, cli: Any) -> None:
    """Routing by something else than was meant would go unnoticed."""
    for path in ("", ".", "a..b"):
        ended = here("ingest", *cli.shelf, "--key", path)
        assert ended.returncode == 2
        assert b"--key takes a dotted path" in ended.stderr
        assert len(ended.stderr.splitlines()) == 1


def test_cursor_file_in_a_missing_folder_is_refused_before_anything_is_printed(here: Any, cli: Any) -> None:
    """Events printed with no cursor kept would be printed again."""
    ended = here("poll", *cli.shelf, "--cursor-file", "missing/cursor")
    assert (ended.returncode, ended.stdout) == (2, b"")
    assert b"the folder of missing/cursor does not exist" in ended.stderr


def test_ingest_goes_on_when_nobody_reads_its_complaints(
    cli: Any, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    """`netcore ingest ... |& head -1` must not drop the lines behind the first malformed one."""
    reading, writing = os.pipe()
    process = cli.start("ingest", *cli.shelf, stderr=writing, stdin=subprocess.PIPE)
    os.close(writing)
    os.close(reading)
    process.stdin.write(b"bad\n" * 5 + b'{"n":1}\n' * 1000)
    process.stdin.close()
    process.stdin = None
    assert process.wait(60) == 1
    stored = cli("poll", *cli.shelf)
    assert stored.returncode == 0
    assert stored.stdout == b'{"n":1}\n' * 1000


def test_error_that_nobody_can_read_still_has_its_exit_code(cli: Any) -> None:
    """A closed standard error changes nothing about what happened."""
    reading, writing = os.pipe()
    os.close(reading)
    process = cli.start("ingest", "--adapter", "nonsense", stderr=writing)
    os.close(writing)
    assert process.wait(60) == 2


def without(descriptor: int) -> Callable[[], None]:
    """Close a standard stream before the program begins, as `>&-` does."""
    return lambda: os.close(descriptor)


def test_closed_standard_streams_are_named(cli: Any) -> None:
    """Daemons start programs so; the number of the stream may by then be another file's."""
    process = cli.start("ingest", *cli.shelf, stdin=None, preexec_fn=without(0))
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (
        1,
        b"netcore: standard input is closed, so there is nothing to read\n",
    )
    process = cli.start("poll", *cli.shelf, stdout=None, preexec_fn=without(1))
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said.startswith(b"netcore: standard output is closed")


def test_ingest_succeeds_without_a_standard_output(cli: Any) -> None:
    """It prints nothing there."""
    process = cli.start("ingest", *cli.shelf, stdout=None, preexec_fn=without(1))
    _, said = process.communicate(b'{"n":1}\n', timeout=60)
    assert (process.returncode, said) == (0, b"netcore: 1 events ingested, 1 stored\n")
