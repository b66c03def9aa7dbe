"""The matcher gives the answer of full decoding, for every document, spelling and filter."""

from __future__ import annotations

import contextlib
import json
import math
import random
from decimal import Decimal
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from net_filter_jsonpath import Filter

# Six times what the Hypothesis profile gives to others: examples are cheap here, and the claim is large.
MANY = settings(max_examples=settings().max_examples * 6)

# --- the oracle: decode everything, walk, compare


def oracle_decode(raw: bytes) -> Any:
    """Decode strictly; numbers beyond the doubles keep their value."""

    def real(text: str) -> Any:
        with contextlib.suppress(ArithmeticError):  # an exponent that nothing can hold: equal to nothing
            return float(text) if math.isfinite(float(text)) else Decimal(text)
        return math.nan

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
        members = [
            f"{spell(k, rnd, freedom)}{space}:{space}{spell(v, rnd, freedom)}" for k, v in value.items()
        ]
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
        return st.sampled_from(
            options + ([int(value)] if integral else []) + ([bool(value)] if value in (0, 1) else [])
        )
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
        lambda inner: (
            st.lists(inner, max_size=3).map(lambda items: {"$and": items})
            | st.lists(inner, max_size=3).map(lambda items: {"$or": items})
            | inner.map(lambda f: {"$not": f})
        ),
        max_leaves=4,
    )


# --- the properties


def encodings(doc: Any, seed: int) -> list[bytes]:
    """Encode a document in many ways."""
    rnd = random.Random(seed)
    texts = [
        json.dumps(doc),
        json.dumps(doc, indent=1),
        json.dumps(doc, ensure_ascii=False, separators=(",", ":")),
    ]
    texts += [spell(doc, rnd, freedom) for freedom in (0.05, 0.3, 0.9)]
    payloads = [text.encode("utf-8", "surrogatepass") for text in texts]
    with contextlib.suppress(UnicodeEncodeError, OverflowError):  # lone surrogates, long integers
        payloads.append(msgspec.json.encode(doc))
    return payloads


@MANY
@given(st.data(), st.integers(0, 2**32))
def test_matcher_any_document_and_filter_agrees_with_full_decoding(data: st.DataObject, seed: int) -> None:
    """Documents, near-matching filters, every encoder and spelling: the answer of the oracle."""
    doc = data.draw(DOCUMENTS)
    form = data.draw(filters(doc))
    matcher = Filter.from_json(form).compile()
    for raw in encodings(doc, seed):
        assert matcher(raw) == oracle(raw, form), (raw, form)


@MANY
@given(st.data(), st.integers(0, 2**32))
def test_matcher_damaged_payloads_agree_with_full_decoding(data: st.DataObject, seed: int) -> None:
    """Bytes changed, lost or put in: what is not JSON matches nothing, the rest as decoded."""
    doc = data.draw(DOCUMENTS)
    form = data.draw(filters(doc))
    matcher = Filter.from_json(form).compile()
    rnd = random.Random(seed)
    for raw in encodings(doc, seed):
        damaged = bytearray(raw)
        for _ in range(rnd.choice([1, 1, 2])):
            at = rnd.randrange(len(damaged) + 1)
            damaged[at : at + rnd.choice([0, 1, 1])] = rnd.choice(
                [
                    b"",
                    b'"',
                    b"\\",
                    b"\xff",
                    b"\xed\xa0\x80",
                    b"0",
                    b"e",
                    b".",
                    b",",
                    b"\x00",
                    b"{",
                    b"]",
                    b"\\ud800",
                    b"-",
                ]
            )
        assert matcher(bytes(damaged)) == oracle(bytes(damaged), form), (damaged, form)


@MANY
@given(st.data(), st.integers(0, 2**32))
def test_matcher_long_mixed_stream_agrees_with_full_decoding(data: st.DataObject, seed: int) -> None:
    """One matcher over runs of matching, missing and broken payloads: adapting changes no answer."""
    docs = data.draw(st.lists(DOCUMENTS, min_size=1, max_size=4))
    form = data.draw(filters(docs[0]))
    rnd = random.Random(seed)
    payloads = [raw for doc in docs for raw in encodings(doc, seed)] + [b"", b"{", b'{"a":\xff}']
    expected = {raw: oracle(raw, form) for raw in payloads}
    matcher = Filter.from_json(form).compile()
    for _ in range(12):
        raw = rnd.choice(payloads)
        for _ in range(rnd.choice([1, 20])):
            assert matcher(raw) == expected[raw], (raw, form)


@MANY
@given(st.data(), st.binary(max_size=40))
def test_matcher_arbitrary_bytes_never_raises_and_counts(data: st.DataObject, raw: bytes) -> None:
    """Any bytes: no exception; a negated filter, which has to look, counts what is not JSON."""
    form = {"$not": data.draw(filters({"a": "b"}))}
    matcher = Filter.from_json(form).compile()
    assert matcher(raw) == oracle(raw, form)
    assert matcher.undecodable == (not oracle(raw, {"$not": {"$and": []}}))


@MANY
@given(st.data())
def test_to_json_any_filter_round_trips_to_an_equal_filter(data: st.DataObject) -> None:
    """Text and meaning survive; equal filters have equal hashes."""
    doc = data.draw(DOCUMENTS)
    built = Filter.from_json(data.draw(filters(doc)))
    again = Filter.from_json(built.to_json())
    assert again == built
    assert hash(again) == hash(built)
    assert again.to_json() == built.to_json()
    assert built.to_json().isascii()


@MANY
@given(st.data(), st.integers(0, 2**32))
def test_equality_of_filters_implies_the_same_answers(data: st.DataObject, seed: int) -> None:
    """Filters that compare equal match the same payloads."""
    doc = data.draw(DOCUMENTS)
    forms = [data.draw(filters(doc)) for _ in range(3)]
    forms += [
        {"$and": forms[:2]},
        {"$and": forms[1::-1]},
        {"$not": {"$not": forms[0]}},
        {"$or": [forms[0], forms[0]]},
    ]
    built = [Filter.from_json(form) for form in forms]
    assert built[3] == built[4]
    assert built[0] == built[5] == built[6]
    raw = encodings(doc, seed)[3]
    for one in built:
        for other in built:
            if one == other:
                assert hash(one) == hash(other)
                assert one.matches(raw) == other.matches(raw)


@MANY
@given(st.data())
def test_operators_agree_with_the_json_form(data: st.DataObject) -> None:
    """`&`, `|` and `~` build what `$and`, `$or` and `$not` say, also in chains with empty groups."""
    doc = data.draw(DOCUMENTS)
    a, b, c = (data.draw(filters(doc)) for _ in range(3))
    x, y, z = map(Filter.from_json, (a, b, c))
    raw = encodings(doc, 0)[0]
    for built, form in [
        (x & y & z, {"$and": [{"$and": [a, b]}, c]}),
        (x & (y & z), {"$and": [a, {"$and": [b, c]}]}),
        (x | y | z, {"$or": [a, b, c]}),
        (~(x | y) & z, {"$and": [{"$not": {"$or": [a, b]}}, c]}),
    ]:
        assert built == Filter.from_json(form)
        assert built.matches(raw) == oracle(raw, form)
