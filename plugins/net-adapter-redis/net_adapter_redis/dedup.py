"""Recognise repeats in streams that others write."""

from __future__ import annotations

from collections import OrderedDict

__all__ = ["RedisStreamDedup"]


class RedisStreamDedup:
    """Remembers the last `capacity` dedup ids, for consumers of streams written by others.

    What netcore writes is never stored twice. Other writers of the same layout may repeat an entry
    after a retry, with the same `dedup_id` and another entry id. Ask `is_duplicate` about each entry
    and skip those it knows:

        dedup = RedisStreamDedup()
        for entry_id, fields in await client.xrange("net:shard:0"):
            if not dedup.is_duplicate(fields[b"dedup_id"]):
                handle(fields[b"d"])

    A repeat is recognised if fewer than `capacity` different ids came since its first copy; choose
    at least what all producers together write to the streams you feed in during their longest
    retry. Memory is bounded by it (about 200 bytes an id). Lookups are O(1). It remembers
    nothing across restarts and belongs to one thread or loop.

    Args:
        capacity: ids remembered, 1 or more; the least recently seen goes first.
    """

    __slots__ = ("_seen", "capacity")

    def __init__(self, capacity: int = 65_536) -> None:
        if type(capacity) is not int or capacity < 1:
            raise ValueError(f"capacity must be an int of at least 1, not {capacity!r}")
        self.capacity = capacity
        self._seen: OrderedDict[bytes, None] = OrderedDict()

    def is_duplicate(self, dedup_id: bytes | str) -> bool:
        """Tell whether `dedup_id` is among the ids remembered, and remember it.

        A repeat counts as seen just now.
        """
        key = dedup_id.encode() if isinstance(dedup_id, str) else bytes(dedup_id)
        if key in self._seen:
            self._seen.move_to_end(key)
            return True
        self._seen[key] = None
        if len(self._seen) > self.capacity:
            self._seen.popitem(last=False)
        return False

    def clear(self) -> None:
        """Forget all ids."""
        self._seen.clear()

    def __len__(self) -> int:
        return len(self._seen)

    def __repr__(self) -> str:
        return f"RedisStreamDedup(capacity={self.capacity}, remembered={len(self._seen)})"
