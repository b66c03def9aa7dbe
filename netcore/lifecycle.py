"""The states of a bus, and what may follow what."""

from __future__ import annotations

import enum
import os
import weakref
from collections.abc import Callable
from typing import Final

from netcore.errors import ClosedError

__all__ = ["Lifecycle", "State"]


class State(enum.Enum):
    """Where a bus stands in its life."""

    NEW = "is not open yet: use `async with EventBus(...)` or `await EventBus.open(...)`"
    OPENING = "is still opening"
    OPEN = "is open"
    CLOSING = "is shutting down"
    CLOSED = "is shut down; build another"
    ABANDONED = "lost its event loop, or was dropped, without shutdown; build another"
    FORKED = "was left behind in a forked child; build another in the child"


_FOLLOWING: Final[dict[State, frozenset[State]]] = {
    State.NEW: frozenset({State.OPENING, State.CLOSED, State.FORKED}),
    State.OPENING: frozenset({State.OPEN, State.CLOSED, State.FORKED}),
    State.OPEN: frozenset({State.CLOSING, State.ABANDONED, State.FORKED}),
    State.CLOSING: frozenset({State.CLOSED, State.ABANDONED, State.FORKED}),
    State.CLOSED: frozenset(),
    State.ABANDONED: frozenset({State.CLOSING, State.CLOSED, State.FORKED}),
    State.FORKED: frozenset(),
}


class Lifecycle:
    """The state of one bus. The loop's thread moves it; any thread may look.

    Args:
        on_fork: called in a forked child of this process, where the loop's thread does not exist.
    """

    __slots__ = ("__weakref__", "_on_fork", "state")

    def __init__(self, on_fork: Callable[[], None]) -> None:
        self.state = State.NEW
        self._on_fork = on_fork

    def move(self, state: State) -> None:
        """Enter another state.

        Raises:
            ClosedError: it cannot follow the present one; says what the bus is.
        """
        if state not in _FOLLOWING[self.state]:
            raise self.refusal()
        self.state = state
        if state is State.OPENING:
            _watch_forks(self)

    def require_open(self) -> None:
        """Raise `ClosedError` unless the bus is open."""
        if self.state is not State.OPEN:
            raise self.refusal()

    def refusal(self) -> ClosedError:
        """Say why the bus cannot be used now."""
        return ClosedError(f"this bus {self.state.value}")

    def forked(self) -> None:
        """Become useless in a forked child."""
        if State.FORKED in _FOLLOWING[self.state]:
            self.state = State.FORKED
            self._on_fork()


_watched: Final[weakref.WeakSet[Lifecycle]] = weakref.WeakSet()
_registered: list[int] = []


def _watch_forks(lifecycle: Lifecycle) -> None:
    """Have `lifecycle.forked` called in forked children, for as long as it lives.

    Module state, because what `os.register_at_fork` has registered can never be taken back: once a
    process, and only if a bus is opened at all.
    """
    if not _registered and hasattr(os, "register_at_fork"):
        _registered.append(os.getpid())
        os.register_at_fork(after_in_child=_tell_children)
    _watched.add(lifecycle)


def _tell_children() -> None:
    for lifecycle in list(_watched):
        lifecycle.forked()
