"""The dead-letter file on a disk that fills up."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec


def test_line_that_only_half_fits_is_an_error_and_spoils_no_other(tmp_path: Path) -> None:
    """The stump of a line is told as a failure, and the next line begins on its own."""
    program = """
        import resource, signal, sys
        from netcore.dispatch.dead_letters import DeadLetterFile
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        file = DeadLetterFile(sys.argv[1])
        write = lambda seq: file.write(ts=1, shard=0, producer="p", seq=seq, error="e", payload=b"x" * 50)
        write(0)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, resource.RLIM_INFINITY))
        try:
            write(1)
        except OSError as error:
            print("failed", error.errno)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        write(2)
        write(3)
    """
    import textwrap

    path = tmp_path / "dead.ndjson"
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), path],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "failed 28\n"
    whole = []
    for line in path.read_bytes().splitlines():
        try:
            whole.append(msgspec.json.decode(line)["seq"])
        except msgspec.DecodeError:
            whole.append("stump")
    assert whole == [0, "stump", 2, 3]
