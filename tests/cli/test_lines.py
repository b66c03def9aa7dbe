from __future__ import annotations

import os
import threading
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netcore.cli import lines
from netcore.cli.lines import LineReader


async def read_all(reader: LineReader) -> list[bytes]:
    found: list[bytes] = []
    with reader:
        while got := await reader.next():
            found += got
    return found


@given(text=st.binary(max_size=400), chunk=st.integers(1, 60))
def test_lines_equal_a_split_whatever_the_chunks(
    text: bytes, chunk: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Lines cut by chunk borders come out whole; a last line needs no end."""
    file: Path = tmp_path_factory.mktemp("lines") / "in"
    file.write_bytes(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "_CHUNK", chunk)
        found = anyio.run(read_all, LineReader(str(file)))
    expected = text.split(b"\n")
    assert found == (expected if expected[-1] else expected[:-1])


def test_lines_from_a_pipe_have_no_size() -> None:
    """Nobody knows how long a pipe is; a regular file's size is known."""

    async def main() -> None:
        read, write = os.pipe()
        os.write(write, b"a\nb")
        os.close(write)
        reader = LineReader(f"/dev/fd/{read}")
        assert reader.size is None
        assert await read_all(reader) == [b"a", b"b"]
        assert reader.taken == 3
        os.close(read)

    anyio.run(main)


def test_lines_without_an_end_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file that is one endless line must not fill the memory."""
    monkeypatch.setattr(lines, "_LONGEST", 1000)
    monkeypatch.setattr(lines, "_CHUNK", 100)
    file = tmp_path / "in"
    file.write_bytes(b"x" * 5000)
    with pytest.raises(OSError, match=r"a line is longer than 1,000 bytes"):
        anyio.run(read_all, LineReader(str(file)))


def test_lines_left_early_end_the_reading_thread(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Who stops reading leaves no thread that waits for room."""
    monkeypatch.setattr(lines, "_CHUNK", 10)
    file = tmp_path / "in"
    file.write_bytes(b"12345678\n" * 1000)

    async def main() -> threading.Thread:
        with LineReader(str(file)) as reader:
            assert await reader.next()
            assert reader._thread is not None
        return reader._thread

    thread = anyio.run(main)
    thread.join(10)
    assert not thread.is_alive()
