"""Reads lines from a file or standard input without holding up the loop."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
import threading
from types import TracebackType
from typing import Final

__all__ = ["LineReader"]

_CHUNK: Final = 1 << 18
_AHEAD: Final = 4
_LONGEST: Final = 1 << 26


class LineReader:
    """Lines of a file, or of standard input for "-", in lists of about 256 KiB.

    A daemon thread reads the bare file descriptor: a pipe that stays silent then holds up neither
    a signal nor the exit (a blocked buffered reader would do both). At most four chunks wait.

    Attributes:
        size: bytes in all, or None where nobody knows.
        taken: bytes handed out so far.
    """

    def __init__(self, file: str) -> None:
        self._own = file != "-"
        if not self._own and sys.stdin is None:  # its number may be another file's by now
            raise OSError("standard input is closed, so there is nothing to read")
        self._descriptor = os.open(file, os.O_RDONLY) if self._own else 0
        status = os.fstat(self._descriptor)
        self.size = status.st_size if stat.S_ISREG(status.st_mode) else None
        self.taken = 0
        self._rest = b""
        self._ended = False
        self._room = threading.Semaphore(_AHEAD)
        self._chunks: asyncio.Queue[bytes | OSError] = asyncio.Queue()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> LineReader:
        loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._read, args=(loop,), name="netcore-lines", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended = True
        self._room.release()

    async def next(self) -> list[bytes]:
        """Return the next lines, without their ends; [] at the end of the file.

        Raises:
            OSError: the file cannot be read, or a line has no end within 64 MiB.
        """
        while not self._ended:
            chunk = await self._chunks.get()
            self._room.release()
            if isinstance(chunk, OSError):
                raise chunk
            self.taken += len(chunk)
            self._ended = not chunk
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            if self._ended and self._rest:
                lines.append(self._rest)
            if lines:
                return lines
            if len(self._rest) > _LONGEST:
                raise OSError(f"a line is longer than {_LONGEST:,} bytes: is this NDJSON?")
        return []

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        chunk: bytes | OSError = b"?"
        while chunk and not isinstance(chunk, OSError):
            self._room.acquire()
            if self._ended:
                break
            try:
                chunk = os.read(self._descriptor, _CHUNK)
            except OSError as error:
                chunk = error
            try:
                loop.call_soon_threadsafe(self._chunks.put_nowait, chunk)
            except RuntimeError:  # the loop is gone: nobody wants more
                break
        if self._own:
            os.close(self._descriptor)
