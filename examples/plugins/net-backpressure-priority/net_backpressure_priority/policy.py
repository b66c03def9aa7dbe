"""A backpressure policy that looks into the newcomer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from netcore import BackpressurePolicy, ConfigError, FullShard, Verdict

__all__ = ["PriorityPolicy"]


class PriorityPolicy(BackpressurePolicy):
    """At a full ring, refuses newcomers of low priority; others evict the oldest event.

    The priority is a number in the payload. A payload without it, or that is no JSON object, has
    priority 0. Only what comes while a ring is full is looked at.

    Args:
        field: name of the payload's field; default "priority".
        threshold: least priority that evicts; default 1.

    Raises:
        ConfigError: `field` is empty or `threshold` is not a number.
    """

    name = "priority"

    def __init__(self, field: str = "priority", threshold: float = 1) -> None:
        if not isinstance(field, str) or not field:
            raise ConfigError(f"priority.field must be a field's name, not {field!r}")
        if isinstance(threshold, bool) or not isinstance(threshold, int | float):
            raise ConfigError(f"priority.threshold must be a number, not {threshold!r}")
        self.threshold: Final = threshold
        # Decodes one field and skips the others; the shape is fixed once, here.
        shape = msgspec.defstruct("Newcomer", [("value", object, 0)], rename={"value": field})
        self._decode: Callable[[bytes], Any] = msgspec.json.Decoder(shape).decode

    def on_full(self, shard: FullShard, /) -> Verdict:
        """Say evict or refuse."""
        return Verdict.EVICT if self._priority(shard.newcomer) >= self.threshold else Verdict.REFUSE

    def _priority(self, payload: bytes) -> float:
        try:
            value = self._decode(payload).value
        except (msgspec.DecodeError, RecursionError):
            return 0
        return value if isinstance(value, int | float) and not isinstance(value, bool) else 0
