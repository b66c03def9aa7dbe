"""What filter plugins implement."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

__all__ = ["EventFilter", "Matcher"]


@runtime_checkable
class Matcher(Protocol):
    """A filter made ready for the events of one poll.

    Attributes:
        undecodable: payloads found not to be JSON so far (a lower bound: those that bytes alone
            ruled out are not looked into).
    """

    undecodable: int

    def __call__(self, raw: bytes, /) -> bool:
        """Tell whether the payload matches. Never raises for any bytes."""
        ...


@runtime_checkable
class EventFilter(Protocol):
    """A predicate over payloads.

    Required: `matches`, `to_json` and, as a classmethod, `from_json`. A class that a plugin offers
    through `netcore_filters` also has `name: str` and may have:

    - `compile() -> Matcher`: called once a poll; without it `matches` serves;
    - `Builder`: the class that `netcore.FilterBuilder` stands for.

    Polls call it on the bus's loop thread, for each event that they look at. One object may serve
    several polls at once. What it raises ends the poll with `FilterError`; the cursor stays.
    """

    def matches(self, raw: bytes, /) -> bool:
        """Tell whether the payload matches. A payload that is not JSON matches nothing."""
        ...

    def to_json(self) -> str:
        """Return the filter as JSON text that `from_json` reads back to the same meaning."""
        ...

    @classmethod
    def from_json(cls, data: str | bytes | dict[str, Any], /) -> EventFilter:
        """Build a filter from its JSON form.

        Raises:
            FilterError: malformed; the message shows the offending part.
        """
        ...
