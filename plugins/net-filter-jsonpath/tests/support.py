"""What the tests of exactness share: an oracle, an encoder that spells freely, and strategies."""

from __future__ import annotations

import json
import math
import random
from decimal import Decimal
from typing import Any

from hypothesis import strategies as st

# --- the oracle: decode everything, walk, compare


def oracle_decode(raw: bytes) -> Any:
    """Decode strictly; numbers beyond the doubles keep their value."""

    def real(text: str) -> Any:
        return float(text) if math.isfinite(float(text)) else Decimal(text)

    def constant(name: str) -> Any:
        raise ValueError(name)

    return json.loads(raw.decode(), parse_float=real, parse_constant=constant)


def oracle_walk(doc: Any, path: str) -> list[Any]:
    """Return what lies at the path, in a list, or an empty list."""
    for segment in path.split(".") if path else []:
        if isinstance(doc, dict) and segment in doc:
            doc = doc[segment]
        elif isinstance(doc, list) and segment.isascii() and segment.isdigit() and int(segment) < len(doc):
            doc = doc[int(segment)]
        else:
            return []
    return [doc]


def oracle_same(a: Any, b: Any) -> bool:
    """JSON structural equality."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(oracle_same(a[k], b[k]) for k in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(oracle_same, a, b))
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)


def oracle_test(doc: Any, form: Any) -> bool:
    """Evaluate the JSON form of a filter on a decoded document."""
    if "path" in form:
        return any(oracle_same(found, form["value"]) for found in oracle_walk(doc, form["path"]))
    ((operator, operand),) = form.items()
    if operator == "$eq":
        return oracle_test(doc, operand)
    if operator == "$not":
        return not oracle_test(doc, operand)
    results = [oracle_test(doc, item) for item in operand]
    return bool(results) and (all(results) if operator == "$and" else any(results))


def oracle(raw: bytes, form: Any) -> bool:
    """Tell whether a payload matches a filter in JSON form."""
    try:
        doc = oracle_decode(raw)
    except ValueError:
        return False
    return oracle_test(doc, form)


# --- an encoder that spells every part in one of the ways JSON has for it


def spell(value: Any, rnd: random.Random, freedom: float) -> str:
    """Encode a value; `freedom` is how often something is spelled unusually."""
    space = rnd.choice([" ", "\n", "\t\r", ""]) if rnd.random() < freedom else ""
    if isinstance(value, dict):
        members = [f"{spell(k, rnd, freedom)}{space}:{space}{spell(v, rnd, freedom)}" for k, v in value.items()]
        if members and rnd.random() < freedom / 2:  # a duplicate key; the last one wins
            key = spell(rnd.choice(list(value)), rnd, freedom)
            members.insert(0, f"{key}:{spell(rnd.choice([None, 1, 'a', {}, [], value]), rnd, 0)}")
        return space + "{" + (space + "," + space).join(members) + "}" + space
    if isinstance(value, list):
        return "[" + ("," + space).join(spell(item, rnd, freedom) for item in value) + space + "]"
    if isinstance(value, str):
        return '"' + "".join(_spell_character(c, rnd, freedom) for c in value) + '"'
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return _spell_number(value, rnd, freedom)


def _spell_character(character: str, rnd: random.Random, freedom: float) -> str:
    must = character in '"\\' or character < " " or "\ud800" <= character <= "\udfff"
    if not must and rnd.random() >= freedom:
        return character
    short = {'"': '\\"', "\\": "\\\\", "/": "\\/", "\b": "\\b", "\n": "\\n", "\t": "\\t"}.get(character)
    if short and rnd.random() < 0.5:
        return short
    units = character.encode("utf-16-be", "surrogatepass").hex()
    if rnd.random() < 0.5:
        units = units.upper()
    return "".join("\\u" + units[i : i + 4] for i in range(0, len(units), 4))


def _spell_number(value: float, rnd: random.Random, freedom: float) -> str:
    plain = json.dumps(value)
    if rnd.random() >= freedom:
        return plain
    if isinstance(value, float):
        return rnd.choice([plain, repr(value).replace("e", "E"), str(Decimal(value)), f"{value:.17e}"])
    return rnd.choice([f"{value}.0", f"{value}e0", f"{value}0E-1", f"{value}.000e+0", f"{value}00e-02"])


# --- strategies, biased so that filters often match or nearly match

KEYS = st.sampled_from(["a", "b", "id", "0", "1", "01", "-1", "é", "a/b", 'q"', "", "\\", "😀", "\n", "$x"])
NUMBERS = st.sampled_from(
    [0, 1, -1, 7, 7.0, 0.0, -0.0, 0.1, 1.5, 1e22, 10**22, 2**53, 2**53 + 1, float(2**53), 2**64, 10**30, 1e-7]
) | st.integers(-3, 300)
STRINGS = st.sampled_from(["", "a", "b", "é", "hello", "a/b", 'q"', "\\u0061", "😀", "x\ny", "1", "\ud800"])
SCALARS = st.none() | st.booleans() | NUMBERS | STRINGS | st.text(max_size=3)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)
DOCUMENTS = st.dictionaries(KEYS, VALUES, max_size=5) | VALUES


@st.composite
def conditions(draw: st.DrawFn, doc: Any) -> dict[str, Any]:
    """Draw a condition that often holds of the document, or nearly does."""
    path: list[str] = []
    found = doc
    while isinstance(found, dict | list) and found and draw(st.integers(0, 4)):
        if isinstance(found, dict):
            key = draw(st.sampled_from(sorted(found)))
            path.append(key)
            found = found[key]
        else:
            index = draw(st.integers(0, len(found) - 1))
            path.append(draw(st.sampled_from(["", "0", "00"])) + str(index))
            found = found[index]
    if draw(st.integers(0, 5)) == 0:
        path.insert(draw(st.integers(0, len(path))), draw(KEYS))
    value = draw(st.just(found) | st.just(found) | near(found) | SCALARS)
    return {"path": ".".join(path), "value": value}


def near(value: Any) -> st.SearchStrategy[Any]:
    """Values that are easily taken for this one."""
    if isinstance(value, bool):
        return st.sampled_from([int(value), float(value), str(value).lower(), not value])
    if isinstance(value, int | float):
        integral = math.isfinite(value) and value == int(value)
        options: list[Any] = [str(value), value + 1, [value]]
        if abs(value) < 1e300:
            options.append(float(value))
        return st.sampled_from(options + ([int(value)] if integral else []) + ([bool(value)] if value in (0, 1) else []))
    if isinstance(value, str):
        return st.sampled_from([value + "a", value[:-1], [value]])
    if isinstance(value, list):
        return st.sampled_from([value[::-1], value[1:], [*value, None]])
    if isinstance(value, dict):
        return st.sampled_from([dict(reversed(value.items())), {**value, "z": None}, list(value.values())])
    return st.sampled_from([False, 0, "null", [], {}])


def filters(doc: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Filters in JSON form about a document."""
    leaf = conditions(doc)
    return st.recursive(
        leaf | leaf.map(lambda c: {"$eq": c}),
        lambda inner: st.lists(inner, max_size=3).map(lambda l: {"$and": l})
        | st.lists(inner, max_size=3).map(lambda l: {"$or": l})
        | inner.map(lambda f: {"$not": f}),
        max_leaves=4,
    )
