"""Where events go that can never be stored."""

from __future__ import annotations

import base64
import errno
import os
from typing import Final

import msgspec

from netcore.errors import ConfigError

__all__ = ["DeadLetterFile"]


class DeadLetterFile:
    """The built-in sink: one NDJSON line an event, `{ts, shard, producer, seq, error, payload_base64}`.

    Opened for appending at each write and written with a single call, so that several processes
    may share a file and a rotated one is let go.

    Args:
        path: the file; its folder must exist.

    Raises:
        ConfigError: the folder does not exist or the file cannot be opened for appending.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path: Final = os.fspath(path)
        self._torn = False
        try:
            with open(self.path, "ab"):
                pass
        except OSError as error:
            raise ConfigError(
                f"dead_letters={self.path!r} cannot be opened for appending: {error.strerror or error}"
            ) from error

    def write(self, *, ts: int, shard: int, producer: str, seq: int, error: str, payload: bytes) -> None:
        """Append one line.

        Raises:
            OSError: it could not be written; the caller counts it.
        """
        line = msgspec.json.encode(
            {
                "ts": ts,
                "shard": shard,
                "producer": producer,
                "seq": seq,
                "error": error,
                "payload_base64": base64.b64encode(payload).decode(),
            }
        )
        line += b"\n"
        with open(self.path, "ab", buffering=0) as file:
            if self._torn:  # not to lose this line too, to the stump of the one before
                line = b"\n" + line
            written = file.write(line)
        self._torn = written != len(line)
        if self._torn:
            raise OSError(errno.ENOSPC, f"only {written} of {len(line)} bytes could be written")
