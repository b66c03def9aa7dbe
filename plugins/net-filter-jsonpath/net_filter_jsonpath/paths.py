"""Dotted paths: their segments, and walking a fully decoded document along them."""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

__all__ = ["ABSENT", "Segment", "split", "walk"]


class _Absent:
    """What lies at a path that leads nowhere: equal to no JSON value."""

    __slots__ = ()


ABSENT: Final = _Absent()
_DIGITS: Final = re.compile("[0-9]+").fullmatch
# No payload holds an array so long; int() of more digits would be slow or refused.
_MOST_INDEX_DIGITS: Final = 18


class Segment(NamedTuple):
    """One step of a path.

    Attributes:
        key: the key in an object.
        place: the index in an array; None if the segment is not all ASCII digits.
    """

    key: str
    place: int | None


def split(path: str) -> tuple[Segment, ...]:
    """Split a dotted path; the empty path has no segments, `a..b` has an empty one in the middle."""
    return tuple(Segment(part, _index(part)) for part in path.split(".")) if path else ()


def _index(part: str) -> int | None:
    if _DIGITS(part) is None:
        return None
    significant = part.lstrip("0")
    return int(significant or "0") if len(significant) <= _MOST_INDEX_DIGITS else 10**_MOST_INDEX_DIGITS


def walk(document: Any, segments: tuple[Segment, ...]) -> Any:
    """Return what lies at the end of the path, or ABSENT."""
    for key, place in segments:
        if type(document) is dict:
            if key not in document:
                return ABSENT
            document = document[key]
        elif type(document) is list and place is not None and place < len(document):
            document = document[place]
        else:
            return ABSENT
    return document
