"""One round trip: the commands of several reads, and the replies handed to them as they arrive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from net_adapter_redis.reading import Scan

if TYPE_CHECKING:
    from net_adapter_redis.registry import Registry

__all__ = ["Trip"]


class _Asker(Protocol):
    def accept(self, replies: list[Any]) -> None: ...


class Trip:
    """Scans that go to one server together, and maybe a look for new streams behind them.

    An object is the `sink` of its call: replies that are used up at once never pile up.

    Args:
        scans: not done.
        registry: to be looked at, or None.
        fetches: who takes the replies instead of the scans.

    Attributes:
        data: the commands.
        replies: how many there will be.
        outcomes: None, or what went wrong, for each whose replies are complete: the scans, the look.
    """

    __slots__ = ("_askers", "_counts", "_replies", "data", "outcomes", "replies")

    def __init__(
        self, scans: Sequence[Scan], registry: Registry | None, fetches: Sequence[_Asker] | None = None
    ) -> None:
        parts = [scan.command() for scan in scans]
        commands = [data for data, _ in parts]
        self._counts = [count for _, count in parts]
        self._askers: list[_Asker] = list(scans if fetches is None else fetches)
        if registry is not None:
            look = registry.look([scan.density for scan in scans])
            commands.append(look.commands)
            self._counts.append(look.replies)
            self._askers.append(look)
        self.data = b"".join(commands)
        self.replies = sum(self._counts)
        self._replies: list[Any] = []
        self.outcomes: list[Exception | None] = []

    def __call__(self, reply: Any) -> None:
        """Take one reply."""
        at = len(self.outcomes)
        self._replies.append(reply)
        if len(self._replies) < self._counts[at]:
            return
        replies, self._replies = self._replies, []
        try:
            self._askers[at].accept(replies)
        except Exception as error:
            self.outcomes.append(error)
        else:
            self.outcomes.append(None)
