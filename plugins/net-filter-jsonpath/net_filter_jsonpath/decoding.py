"""Decode any valid JSON, also what the fast decoder refuses.

`msgspec.json.decode` is the decoder of choice. It refuses some texts that RFC 8259 calls valid:
numbers beyond the range of a double, integers of more than 4,300 digits, escaped surrogates without
their other half, and nesting deeper than the interpreter's recursion limit. Whether a payload matches
must depend on none of these, so what it refuses is read again here, slowly and exactly.
"""

from __future__ import annotations

import json
import math
import re
from decimal import Decimal
from typing import Any, Final

import msgspec

__all__ = ["REFUSED", "NotJSONError", "decode_refused", "loads_exact"]

# What a msgspec decoder raises for bytes. Invalid UTF-8 comes as UnicodeDecodeError.
REFUSED: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class NotJSONError(ValueError):
    """The bytes are not a JSON text."""


def decode_refused(raw: bytes, cause: Exception) -> Any:
    """Decode what msgspec refused with `cause`.

    Raises:
        NotJSONError: it is really not JSON.
    """
    # A plain DecodeError on a text without \u escapes is a syntax error: no second look is needed.
    # (ValidationError is a number out of range; only a surrogate makes msgspec stricter than JSON.)
    if isinstance(cause, UnicodeDecodeError) or (type(cause) is msgspec.DecodeError and b"\\u" not in raw):
        raise NotJSONError(str(cause))
    try:
        return loads_exact(raw.decode())
    except ValueError as error:
        raise NotJSONError(str(error)) from error


def loads_exact(text: str, *, pairs: Any = None) -> Any:
    """Decode JSON text of any depth, every number by its value.

    Integers are exact. Numbers with a fraction or an exponent are doubles, except those that no
    double can hold (`1e400`): these, and integers too long for `int`, are `Decimal`, which compares
    exactly with both.

    Args:
        text: what may be JSON.
        pairs: `object_pairs_hook` of `json.loads`; given one, deep nesting raises RecursionError.

    Raises:
        ValueError: not JSON; NaN and Infinity are not.
    """
    try:
        return json.loads(
            text,
            parse_float=_real,
            parse_int=_integer,
            parse_constant=_no_constant,
            object_pairs_hook=pairs,
        )
    except RecursionError:
        if pairs is not None:
            raise
        return _loads_deep(text)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _integer(digits: str) -> int | Decimal:
    try:
        return int(digits)
    except ValueError:  # longer than sys.get_int_max_str_digits()
        return Decimal(digits)


def _real(spelling: str) -> float | Decimal:
    number = float(spelling)
    if math.isfinite(number):
        return number
    try:
        return Decimal(spelling)
    except ArithmeticError:
        # An exponent of nineteen digits and more: no filter can hold such a value, so one that equals
        # nothing stands for it.
        return math.nan


_TOKEN: Final = re.compile(
    r"[ \t\n\r]*+(?:([{}\[\],:])"
    r'|("[^"\\]*+(?:\\.[^"\\]*+)*+"|[-0-9][-+.0-9eE]*+|true|false|null))'
)
_SPACE: Final = re.compile(r"[ \t\n\r]*+")


def _loads_deep(text: str) -> Any:
    """Decode without recursion: one token at a time, open containers on a list."""
    root: list[Any] = []
    open_containers: list[list[Any] | dict[str, Any]] = [root]
    keys: list[str] = []
    position = 0
    # What may come next: V a value, v a value or "]", K a key, k a key or "}", "," a comma or an end.
    state = "V"
    while len(open_containers) > 1 or not root:
        found = _TOKEN.match(text, position)
        if found is None:
            raise ValueError(f"malformed JSON at character {position}")
        position = found.end()
        mark, scalar = found.groups()
        container = open_containers[-1]
        if state in "Vv" and (scalar or mark in "[{"):
            value: Any = _scalar(scalar) if scalar else [] if mark == "[" else {}
            if type(container) is dict:
                container[keys.pop()] = value
            else:
                container.append(value)  # type: ignore[union-attr]
            state = ","
            if not scalar:
                open_containers.append(value)
                state = "v" if mark == "[" else "k"
        elif state in "Kk" and scalar and scalar[0] == '"':
            keys.append(_scalar(scalar))
            position = _after_colon(text, position)
            state = "V"
        elif state == "," and mark == ",":
            state = "K" if type(container) is dict else "V"
        elif state in ",vk" and mark == ("}" if type(container) is dict else "]"):
            open_containers.pop()
            state = ","
        else:
            raise ValueError(f"malformed JSON at character {found.start()}")
    if _SPACE.match(text, position).end() != len(text):  # type: ignore[union-attr]
        raise ValueError(f"trailing characters at {position}")
    return root[0]


def _after_colon(text: str, position: int) -> int:
    found = _TOKEN.match(text, position)
    if found is None or found[1] != ":":
        raise ValueError(f"expected ':' at character {position}")
    return found.end()


def _scalar(spelling: str) -> Any:
    return json.loads(spelling, parse_float=_real, parse_int=_integer, parse_constant=_no_constant)
