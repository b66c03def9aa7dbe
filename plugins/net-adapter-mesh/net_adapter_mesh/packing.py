"""From a batch to the bodies of lane entries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import msgspec

from net_adapter_mesh.frames import MAX_BATCH_BYTES
from netcore import FatalAdapterError

__all__ = ["MAX_PAYLOAD_BYTES", "Packer", "Part"]

MAX_PAYLOAD_BYTES: Final = MAX_BATCH_BYTES // 2
_PART_BYTES: Final = 4 << 20
_SCRATCH_BYTES: Final = 1 << 20


class Part(NamedTuple):
    """What becomes one entry: the timestamps of its events, and its body."""

    stamps: list[int]
    body: bytes


class Packer:
    """Encodes batches, each once, for the log and every peer. One thread only.

    It encodes into a buffer that it keeps, and copies the result: a body's memory is then taken
    once, at its final size. Growing a fresh buffer for each body costs several times as much.
    """

    def __init__(self) -> None:
        self._encode_into = msgspec.msgpack.Encoder().encode_into
        self._scratch = bytearray()

    def pack(self, stamps: list[int], raws: list[bytes]) -> list[Part]:
        """Return the parts of a batch, in order: one, or several of about 4 MiB if it is large.

        Raises:
            FatalAdapterError: a payload is larger than a frame may be.
        """
        if sum(map(len, raws)) <= _PART_BYTES:
            return [Part(stamps, self._encode(stamps, raws))]
        longest = max(map(len, raws))
        if longest > MAX_PAYLOAD_BYTES:
            raise FatalAdapterError(f"a payload of {longest:,} bytes; at most {MAX_PAYLOAD_BYTES:,} fit")
        return [
            Part(stamps[begin:end], self._encode(stamps[begin:end], raws[begin:end]))
            for begin, end in _cuts(raws)
        ]

    def _encode(self, stamps: Sequence[int], raws: Sequence[bytes]) -> bytes:
        scratch = self._scratch
        self._encode_into((stamps, raws), scratch)
        body = bytes(scratch)
        if len(scratch) > _SCRATCH_BYTES:
            self._scratch = bytearray()
        return body


def _cuts(raws: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    """Yield where to cut: as many payloads as fit, at least one."""
    begin = size = 0
    for index, raw in enumerate(raws):
        if size and size + len(raw) > _PART_BYTES:
            yield begin, index
            begin, size = index, 0
        size += len(raw)
    yield begin, len(raws)
