"""JSON values inside filters: checked and copied on the way in, compared by meaning, written as text."""

from __future__ import annotations

import itertools
import json
import math
import re
import reprlib
from collections.abc import Hashable, Iterator
from decimal import Decimal
from typing import Any, Final

from netcore import FilterError

__all__ = [
    "MAX_LEVELS",
    "MAX_TEXT_BYTES",
    "dumps",
    "excerpt",
    "freeze",
    "is_confusable",
    "join_surrogates",
    "levels",
    "meaning",
    "strict_equal",
    "strings",
]

MAX_TEXT_BYTES: Final = 64 * 1024
MAX_LEVELS: Final = 64
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
# Python refuses to print integers of more than 4,300 digits, and Decimal does not.
_LONGEST_INT_BITS: Final = 14_000

_short = reprlib.Repr()
_short.maxlevel = 3
_short.maxstring = _short.maxother = _short.maxlong = 60


def excerpt(value: object) -> str:
    """Show a value in an error message: short, whatever its size or depth."""
    try:
        return _short.repr(value)
    except ValueError:  # an integer too long to print
        return f"<{type(value).__name__}>"


def freeze(value: object, where: str) -> Any:
    """Copy a JSON value so that nothing outside can change it.

    Exact builtins come out: subclasses are reduced, tuples become lists.

    Raises:
        FilterError: not a JSON value, too deep or too large; shows the part and where it is.
    """
    return _freeze(value, where, MAX_LEVELS, itertools.count(1))


def _freeze(value: object, where: str, room: int, counter: Iterator[int]) -> Any:
    # Every node takes a byte of text or more; counting them stops a small structure that refers to
    # its parts many times before it is unfolded.
    if next(counter) > MAX_TEXT_BYTES:
        raise FilterError(f"the value at {where} is too large: over {MAX_TEXT_BYTES:,} bytes as JSON")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return join_surrogates(str.__str__(value))
    if isinstance(value, int):
        number = int(value)
        return Decimal(number) if number.bit_length() > _LONGEST_INT_BITS else number
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, Decimal) and value.is_finite() and abs(value) > Decimal(2) ** 1023:
        return value  # only what `loads_exact` makes of numbers beyond the doubles
    if isinstance(value, list | tuple | dict):
        if room == 0:
            raise FilterError(f"nested over {MAX_LEVELS} levels at {where}: {excerpt(value)}")
        if not isinstance(value, dict):
            return [_freeze(item, f"{where}[{i}]", room - 1, counter) for i, item in enumerate(value)]
        return {
            _key(key, where): _freeze(item, f"{where}.{str(key)[:40]}", room - 1, counter)
            for key, item in value.items()
        }
    kind = "is not a finite number" if isinstance(value, float | Decimal) else "is not a JSON value"
    raise FilterError(f"{excerpt(value)} ({type(value).__name__}) at {where} {kind}")


def _key(key: object, where: str) -> str:
    if not isinstance(key, str):
        raise FilterError(f"object key {excerpt(key)} at {where} is not a string")
    return join_surrogates(str.__str__(key))


def join_surrogates(text: str) -> str:
    """Join surrogate pairs, which Python keeps apart and JSON does not."""
    if _SURROGATE.search(text) is None:
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def dumps(value: Any) -> str:
    """Write a frozen value as compact ASCII JSON, object keys sorted."""
    if type(value) is dict:
        return "{" + ",".join(f"{json.dumps(key)}:{dumps(value[key])}" for key in sorted(value)) + "}"
    if type(value) is list:
        return "[" + ",".join(map(dumps, value)) + "]"
    return str(value) if type(value) is Decimal else json.dumps(value)


def levels(value: Any) -> int:
    """Count how many containers lie inside one another."""
    if type(value) is dict:
        return 1 + max(map(levels, value.values()), default=0)
    if type(value) is list:
        return 1 + max(map(levels, value), default=0)
    return 0


def meaning(value: Any) -> Hashable:
    """Return a key that is equal for two frozen values exactly if they are equal as JSON."""
    if type(value) is dict:
        return "object", frozenset((key, meaning(item)) for key, item in value.items())
    if type(value) is list:
        return "array", tuple(map(meaning, value))
    return ("boolean", value) if type(value) is bool else ("scalar", value)


def strict_equal(wanted: Any, found: Any) -> bool:
    """Compare as JSON: as `==`, but true is not 1 and false is not 0, at every depth.

    Recursion is bounded by the depth of `wanted`, which a filter bounds, not by the payload's.
    """
    if type(wanted) is dict:
        return (
            type(found) is dict
            and len(wanted) == len(found)
            and all(key in found and strict_equal(item, found[key]) for key, item in wanted.items())
        )
    if type(wanted) is list:
        return type(found) is list and len(wanted) == len(found) and all(map(strict_equal, wanted, found))
    if type(wanted) is bool or type(found) is bool:
        return wanted is found
    return bool(wanted == found)


def is_confusable(value: Any) -> bool:
    """Tell whether `==` could take a boolean for a number in this value, or a number for a boolean."""
    if type(value) is dict:
        return any(map(is_confusable, value.values()))
    if type(value) is list:
        return any(map(is_confusable, value))
    return type(value) is not str and value in (0, 1)


def strings(value: Any) -> Iterator[str]:
    """Yield every string of a frozen value, object keys included."""
    if type(value) is str:
        yield value
    elif type(value) is list:
        for item in value:
            yield from strings(item)
    elif type(value) is dict:
        for key, item in value.items():
            yield key
            yield from strings(item)
