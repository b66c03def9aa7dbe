"""A batch as the body of an entry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from net_adapter_mesh.frames import MAX_BATCH_BYTES, encode_body
from netcore import FatalAdapterError, StoredEvent

__all__ = ["MAX_PAYLOAD_BYTES", "encode_batch"]

MAX_PAYLOAD_BYTES: Final = MAX_BATCH_BYTES // 2


def encode_batch(events: Sequence[StoredEvent], stamps: Sequence[int]) -> bytes:
    """Encode a batch.

    Raises:
        FatalAdapterError: a payload, or the batch, is larger than a frame may be.
    """
    body = encode_body(stamps, [event.raw for event in events])
    if len(body) > MAX_PAYLOAD_BYTES:  # otherwise no payload can be
        longest = max(len(event.raw) for event in events)
        if longest > MAX_PAYLOAD_BYTES:
            raise FatalAdapterError(f"a payload of {longest:,} bytes; at most {MAX_PAYLOAD_BYTES:,} fit")
        if len(body) > MAX_BATCH_BYTES:
            raise FatalAdapterError(f"a batch of {len(body):,} bytes; at most {MAX_BATCH_BYTES:,} fit")
    return body
