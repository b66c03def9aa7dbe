"""Positions: where in a stream a reader stands.

    1764000000000-7                    behind this entry
    1764000000000-7@42.9f3c01ab        the same; 42 entries were added up to and including it, in
                                       the incarnation 9f3c01ab of the stream
    1764000000000-7:3/256@42.9f3c01ab  behind the event with index 3 of a packed entry of 256

Count and incarnation let a reader say exactly how many entries were trimmed before it came back,
and keep it from saying so when the stream is no longer the one it had read.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from netcore import CursorError, position_error

__all__ = ["BEGINNING", "Position", "entry_id"]

_MAX: Final = (1 << 64) - 1
_PATTERN: Final = re.compile(
    r"([0-9]{1,20})-([0-9]{1,20})(?::([0-9]{1,9})/([0-9]{1,9}))?(?:@([0-9]{1,19})\.([0-9a-f]{8}))?"
)


def entry_id(text: bytes) -> tuple[int, int]:
    """Return an entry's id as numbers, which is how ids compare."""
    ms, _, seq = text.partition(b"-")
    return int(ms), int(seq)


class Position(msgspec.Struct, frozen=True):
    """A parsed position.

    Attributes:
        id: the entry's id, two numbers.
        index: index of the event in a packed entry, or None: behind the whole entry.
        size: events in that packed entry; 0 without an index.
        count: entries added to the stream up to and including this one, or None: unknown.
        incarnation: the stream's incarnation; "" where count is None.
    """

    id: tuple[int, int]
    index: int | None = None
    size: int = 0
    count: int | None = None
    incarnation: str = ""

    @classmethod
    def parse(cls, text: object) -> Position:
        """Read a position.

        Raises:
            CursorError: it is not one.
        """
        match = _PATTERN.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise CursorError(position_error("redis", text))
        ms, seq, index, size, count, incarnation = match.groups()
        where = (int(ms), int(seq))
        inside = None if index is None else int(index)
        if max(where) > _MAX or (inside is not None and inside >= int(size)):
            raise CursorError(position_error("redis", text))
        if inside is not None and inside == int(size) - 1:  # behind the last one is behind the entry
            inside, size = None, None
        return cls(where, inside, int(size or 0), None if count is None else int(count), incarnation or "")

    @property
    def entry(self) -> bytes:
        """The entry's id as Redis writes it."""
        return b"%d-%d" % self.id

    @property
    def left(self) -> int:
        """Events of a packed entry that stand behind this position."""
        return 0 if self.index is None else self.size - 1 - self.index

    def __str__(self) -> str:
        inside = "" if self.index is None else f":{self.index}/{self.size}"
        counted = "" if self.count is None else f"@{self.count}.{self.incarnation}"
        return f"{self.id[0]}-{self.id[1]}{inside}{counted}"

    def before(self) -> Position:
        """Return the position right before this entry: reading after it begins with the entry."""
        ms, seq = self.id
        where = (ms, seq - 1) if seq else (max(ms - 1, 0), _MAX if ms else 0)
        count = None if self.count is None else self.count - 1
        return Position(where, None, 0, count, self.incarnation)

    def reaches(self, first: tuple[int, int]) -> bool:
        """Tell whether no id fits between this position and the entry `first`."""
        return Position(first).before().id <= self.id


BEGINNING: Final = Position((0, 0))
