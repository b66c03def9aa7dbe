"""Positions: where a consumer stands in one stream.

`SEQ@BORN` is after message SEQ; `SEQ:INDEX@BORN` after event INDEX of the packed message SEQ, which
holds more. BORN is when the stream was created (hexadecimal microseconds): a stream that was deleted
and made anew counts its messages from 1 again, and only this tells the two apart. `0` alone is the
beginning of a stream that does not exist yet.
"""

from __future__ import annotations

import datetime as dt
import re
from typing import Final, NamedTuple

from netcore import CursorError, position_error

__all__ = ["BEGINNING", "Position", "born_of", "parse"]

_FORM: Final = re.compile(r"(0|[1-9][0-9]{0,18})(?::(0|[1-9][0-9]{0,8}))?@([0-9a-f]{1,16})")
_FRACTION: Final = re.compile(r"(\.[0-9]{1,6})[0-9]*")
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


class Position(NamedTuple):
    """After message `seq` (`place` None), or after event `place` of it. `born` is "" if unknown."""

    seq: int
    place: int | None
    born: str

    def __str__(self) -> str:
        if not self.born:
            return "0"
        inner = "" if self.place is None else f":{self.place}"
        return f"{self.seq}{inner}@{self.born}"


BEGINNING: Final = Position(0, None, "")


def parse(text: str) -> Position:
    """Read a position.

    Raises:
        CursorError: this adapter never issued such a text.
    """
    if text == "0":
        return BEGINNING
    match = _FORM.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise CursorError(position_error("jetstream", text))
    seq, index, born = match.groups()
    return Position(int(seq), None if index is None else int(index), born)


def born_of(created: str) -> str:
    """Shorten a stream's creation time, as the server gives it (RFC 3339), to BORN."""
    moment = dt.datetime.fromisoformat(_FRACTION.sub(r"\1", created))
    return f"{(moment - _EPOCH) // dt.timedelta(microseconds=1):x}"
