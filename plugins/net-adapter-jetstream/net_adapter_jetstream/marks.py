"""What the last message of each batch says about the stream up to itself.

The *marks* are the next expected sequence number of each producer that wrote lately. Since every
batch expects the stream to end where its writer last saw it end, a writer that adds its own mark to
those of the message before it keeps them exact: so that a batch is recognised as stored by anybody
who looks at the last message, however long ago it was stored, and whoever stored it.

As a header: `<lead> <producer>:<next>:<hour> ...`, the latest writer first. `lead` is how far any
event's timestamp was ahead of the server's clock (ms, 0 or more; `?` if unknown): see `seek`.
`hour` is the hour of the producer's last batch (since the epoch): old ones are forgotten.
"""

from __future__ import annotations

from typing import Final

__all__ = ["HEADER", "Marks"]

HEADER: Final = "Netcore-Marks"
_MOST: Final = 12
_KEPT_HOURS: Final = 48


class Marks:
    """Next expected sequence numbers, by producer, as of one message of a stream.

    Attributes:
        lead: ms by which timestamps ran ahead of the server's clock, at most; None if unknown.
    """

    __slots__ = ("_next", "lead")

    def __init__(self) -> None:
        self._next: dict[str, tuple[int, int]] = {}  # oldest first
        self.lead: int | None = 0

    def next(self, producer: str) -> int | None:
        """Return the number that `producer` goes on with, None if it is not known."""
        found = self._next.get(producer)
        return None if found is None else found[0]

    def advance(self, producer: str, following: int, hour: int) -> None:
        """Note that `producer` goes on with `following`; never goes back."""
        known = self._next.pop(producer, (0, 0))
        self._next[producer] = (max(known[0], following), max(known[1], hour))
        while len(self._next) > _MOST:
            del self._next[next(iter(self._next))]

    def copy(self) -> Marks:
        """Return an independent copy."""
        made = Marks()
        made._next, made.lead = dict(self._next), self.lead
        return made

    def merge(self, other: Marks) -> None:
        """Take over what `other` knows beyond this."""
        for producer, (following, hour) in other._next.items():
            if following > (self.next(producer) or 0):
                self.advance(producer, following, hour)

    def render(self, now_hour: int) -> str:
        """Return the header's value, without producers that have been silent for long."""
        lead = "?" if self.lead is None else str(self.lead)
        latest = reversed(self._next.items())
        kept = [f"{p}:{n}:{h}" for p, (n, h) in latest if h >= now_hour - _KEPT_HOURS]
        return " ".join([lead, *kept])

    @classmethod
    def parse(cls, value: str) -> Marks | None:
        """Read a header's value; None if it is none."""
        lead, *entries = value.split(" ")
        made = cls()
        try:
            made.lead = None if lead == "?" else int(lead)
            for entry in reversed(entries):
                producer, following, hour = entry.rsplit(":", 2)
                made.advance(producer, int(following), int(hour))
        except ValueError:
            return None
        return made
