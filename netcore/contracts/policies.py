"""What policy plugins implement: backpressure (at a full ring) and scaling (now and then)."""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, TypeAlias

import msgspec

from netcore.errors import ConfigError

if TYPE_CHECKING:
    from netcore.stats import EventBusStats

__all__ = [
    "AddShards",
    "BackpressurePolicy",
    "FullShard",
    "NoChange",
    "RemoveShards",
    "ScalingDecision",
    "ScalingPolicy",
    "Verdict",
]


class Verdict(enum.Enum):
    """What becomes of a newcomer at a full ring."""

    EVICT = "evict"
    """Throw out the oldest event of the ring and accept the newcomer."""
    REFUSE = "refuse"
    """Raise `BackpressureError` (or list the index in `rejected`)."""
    DISCARD = "discard"
    """Drop the newcomer quietly: `ingest` returns None."""
    WAIT = "wait"
    """Wait for room; on the bus's own loop thread `ingest` raises instead, `put` waits."""


class FullShard(msgspec.Struct, frozen=True, gc=False):
    """What a backpressure policy is shown.

    Attributes:
        id: the full shard.
        depth: events in its ring.
        capacity: events it can hold.
        newcomer: the payload that wants in.
    """

    id: int
    depth: int
    capacity: int
    newcomer: bytes


class BackpressurePolicy(ABC):
    """Decides what happens when a ring is full. Runs only then; costs the fast path nothing.

    One object serves a whole bus. `on_full` is called from producers' threads, maybe from several
    at once, with no lock held: guard shared state of your own. It must not block. An exception
    counts as `REFUSE` and is logged once per type.

    Chosen by `name` it is built without arguments; passed as an object it is used as it is.
    """

    name: ClassVar[str]

    @abstractmethod
    def on_full(self, shard: FullShard, /) -> Verdict:
        """Say what becomes of `shard.newcomer`."""


class AddShards(msgspec.Struct, frozen=True):
    """Add `count` shards (1 or more)."""

    count: int
    reason: str = ""

    def __post_init__(self) -> None:
        if type(self.count) is not int or self.count < 1:
            raise ConfigError(f"AddShards needs a count of 1 or more, not {self.count!r}")


class RemoveShards(msgspec.Struct, frozen=True):
    """Drain and remove the shards with these ids."""

    shard_ids: tuple[int, ...]
    reason: str = ""

    def __post_init__(self) -> None:
        try:
            ids = tuple(self.shard_ids)
        except TypeError:
            raise ConfigError(f"RemoveShards takes a list of shard ids, not {self.shard_ids!r}") from None
        msgspec.structs.force_setattr(self, "shard_ids", ids)


class NoChange(msgspec.Struct, frozen=True):
    """Leave the shards as they are."""

    reason: str = ""


ScalingDecision: TypeAlias = AddShards | RemoveShards | NoChange


class ScalingPolicy(ABC):
    """Decides how many shards a bus should have.

    The monitor calls `decide` every `interval_ms`, on the bus's loop thread and with no lock held;
    `suggest_scaling` calls it too, so two calls on one state must give equal decisions: let it be a
    function of `stats`, which hold the averages of the last looks (`ShardStats.window`) and the
    steps taken so far (`scaling`), and of a clock. It must not block. An exception is logged once
    per type and counts as `NoChange`. The monitor keeps to `min_shards`, `max_shards` and, for steps
    of its own, `cooldown_ms`, whatever the policy says.

    Chosen by `name` it is built with `ScalingConfig.options` as keyword arguments.
    """

    name: ClassVar[str]

    @abstractmethod
    def decide(self, stats: EventBusStats, /) -> ScalingDecision:
        """Return a decision whose `reason` says what crossed what."""
