"""What stands around a ring: its gate, its marks, those who wait for room, and what leaves it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from netcore.ingest.ring import Ring

__all__ = ["NOTHING", "Columns", "Fence", "FlushMark", "Gate", "Waiter"]


class Columns(NamedTuple):
    """Events as a ring holds them: their timestamps, and as many payloads."""

    stamps: list[int]
    payloads: list[bytes]

    def part(self, first: int, last: int | None = None) -> Columns:
        """Return the events from `first` up to, not including, `last`."""
        return Columns(self.stamps[first:last], self.payloads[first:last])


NOTHING: Final = Columns([], [])


class Gate:
    """What a producer looks at.

    Attributes:
        limit: while `entries` is shorter than this, push without asking.
        attention: heed this after the push.
        ring: the ring behind the gate.
    """

    __slots__ = ("attention", "limit", "ring")

    def __init__(self, ring: Ring) -> None:
        self.ring: Final = ring
        self.limit = 0
        self.attention = True


class Fence:
    """Keeps keys' order across a move: events from `position` on wait until `passed`.

    Attributes:
        position: ring position of the first event that must wait.
        passed: tells whether the donors' earlier events are settled; loop thread only.
        deadline: monotonic time after which nobody waits any longer.
    """

    __slots__ = ("deadline", "passed", "position")

    def __init__(self, position: int, passed: Callable[[], bool], deadline: float) -> None:
        self.position = position
        self.passed = passed
        self.deadline = deadline


class Waiter:
    """A producer that waits for room.

    Attributes:
        notify: wakes it; any thread.
        granted: room was set aside for it.
    """

    __slots__ = ("granted", "notify")

    def __init__(self, notify: Callable[[], object]) -> None:
        self.notify = notify
        self.granted = False


class FlushMark:
    """A barrier: reached once everything below it has left the ring and is settled.

    Attributes:
        target: ring position that must have left.
        settle_at: count of drained events that must be settled; None until `target` has left.
    """

    __slots__ = ("settle_at", "target")

    def __init__(self, target: int) -> None:
        self.target = target
        self.settle_at: int | None = None
