"""Names of the keys, such that all keys of one shard share a cluster's slot.

| key | type | what |
|---|---|---|
| `net:shard:3` | stream | the events, shared with other writers |
| `{net:shard:3}:next:<producer>` | string | sequence number expected next of that producer; expires |
| `{net:shard:3}:meta` | hash | the stream's incarnation and what trimming and seeking need |
| `net:open:3` | stream | what the first is called while a transaction adds to it: never seen |
| `net:shards` | stream | one entry a shard that was ever written |

A key's slot is computed from what stands between its first `{` and the next `}`, or from the whole
of it. So `{net:shard:3}:meta` lands where `net:shard:3` does. With a hash tag in the prefix the
tag decides, and everything of that prefix is in one slot.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["PROBED", "Keys"]

PROBED: Final = 1024
"""Shard ids below this are found without the registry."""


class Keys:
    """The keys of one prefix.

    Args:
        prefix: as in `RedisConfig`.

    Attributes:
        registry: key of the registry.
        one_slot: everything is in one slot of a cluster, since the prefix has a hash tag.
    """

    __slots__ = ("_prefix", "_start", "one_slot", "registry")

    def __init__(self, prefix: str) -> None:
        self.one_slot = re.search(r"\{[^{}]+\}", prefix) is not None
        self.registry = f"{prefix}:shards".encode()
        self._prefix = prefix
        self._start = f"{prefix}:shard:"

    def stream(self, shard: int) -> bytes:
        """Return the key of a shard's stream."""
        return f"{self._start}{shard}".encode()

    def meta(self, shard: int) -> bytes:
        """Return the key of what is known about a shard's stream."""
        return self._beside(shard, "meta")

    def mark(self, shard: int, producer: str) -> bytes:
        """Return the key of the sequence number expected next of `producer`."""
        return self._beside(shard, f"next:{producer}")

    def staging(self, shard: int) -> bytes:
        """Return the key that a shard's stream has while a transaction adds to it.

        Short, since it is sent with each event; so it lies elsewhere in a cluster.
        """
        return f"{self._prefix}:open:{shard}".encode()

    def _beside(self, shard: int, name: str) -> bytes:
        stream = f"{self._start}{shard}"
        return (f"{stream}:{name}" if self.one_slot else f"{{{stream}}}:{name}").encode()
