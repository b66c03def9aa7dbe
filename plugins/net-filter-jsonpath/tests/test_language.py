"""The language: paths, equality, operators, and payloads of every kind."""

from __future__ import annotations

import json
from typing import Any

import pytest
from net_filter_jsonpath import Filter, FilterBuilder

from netcore.contracts.filters import EventFilter, Matcher
from netcore.errors import FilterError


def test_plugin_hook_offers_the_filter_class() -> None:
    """The hook returns the class that names the language and brings its builder."""
    from net_filter_jsonpath.plugin import netcore_filters

    assert netcore_filters() == [Filter]
    assert Filter.name == "jsonpath"
    assert Filter.Builder is FilterBuilder


def test_plugin_is_found_by_its_entry_point() -> None:
    """The installed metadata leads to the hook module."""
    from importlib.metadata import entry_points

    (found,) = [point for point in entry_points(group="netcore") if point.name == "jsonpath"]
    assert found.value == "net_filter_jsonpath.plugin"
    assert found.load().netcore_filters() == [Filter]


def test_filter_and_matcher_follow_the_protocols() -> None:
    """A filter is an EventFilter, what it compiles to a Matcher with a count of its own."""
    built = Filter.eq("a", 1)
    assert isinstance(built, EventFilter)
    first, second = built.compile(), built.compile()
    assert isinstance(first, Matcher)
    first(b"nonsense")
    assert (first.undecodable, second.undecodable) == (1, 0)


# --- paths

PATHS = [
    ("a", {"a": 1}, True),
    ("a.b.c", {"a": {"b": {"c": 1}}}, True),
    ("a.b.c.d.e", {"a": {"b": {"c": {"d": {"e": 1}}}}}, True),
    ("a.b.c.d.e.f.g.h.i.j", {"a": {"b": {"c": {"d": {"e": {"f": {"g": {"h": {"i": {"j": 1}}}}}}}}}}, True),
    ("a.0", {"a": [1, 2]}, True),
    ("a.1", {"a": [2, 1]}, True),
    ("a.2", {"a": [1, 1]}, False),
    ("a.01", {"a": [0, 1]}, True),
    ("a.000", {"a": [1]}, True),
    ("a.-1", {"a": [1]}, False),
    ("a.+0", {"a": [1]}, False),
    ("a.0x", {"a": [1]}, False),
    ("a.0 ", {"a": [1]}, False),
    ("a.\u0660", {"a": [1]}, False),
    ("a.²", {"a": [1, 1, 1]}, False),
    ("a.0", {"a": {"0": 1}}, True),
    ("a.01", {"a": {"1": 1}}, False),
    ("a.01", {"a": {"01": 1}}, True),
    ("a.-1", {"a": {"-1": 1}}, True),
    ("0", [1], True),
    ("0.0.1", [[[0, 1]]], True),
    ("", 1, True),
    ("", {"a": 1}, False),
    (".", {"": {"": 1}}, True),
    ("a.", {"a": {"": 1}}, True),
    (".a", {"": {"a": 1}}, True),
    ("a..b", {"a": {"": {"b": 1}}}, True),
    ("a.b", {"a.b": 1}, False),
    ("a.b", {"a": "b"}, False),
    ("a.0", {"a": "1"}, False),
    ("a.length", {"a": [1]}, False),
    ("a.f0", {"a": {"b": 1}}, False),
    ("a.b", {"a": None}, False),
    ("a.b", {"b": 1}, False),
    ("a", [], False),
    ("$ref", {"$ref": 1}, True),
    ("x.$y", {"x": {"$y": 1}}, True),
    ("a." + "9" * 5000, {"a": [1]}, False),
    ("a." + "9" * 5000, {"a": {"9" * 5000: 1}}, True),
    ("a." + "0" * 5000, {"a": [1]}, True),
]


@pytest.mark.parametrize(("path", "document", "expected"), PATHS)
def test_path_leads_where_the_grammar_says(path: str, document: Any, expected: bool) -> None:
    """Keys, indexes, empty segments and missing ends; a missing path is no match, never an error."""
    raw = json.dumps(document).encode()
    assert Filter.eq(path, 1).matches(raw) is expected
    assert Filter.not_(Filter.eq(path, 1)).matches(raw) is not expected


def test_path_of_many_segments_reaches_as_deep() -> None:
    """A path may be longer than any recursion limit."""
    raw = b'{"a":' * 5000 + b"1" + b"}" * 5000
    assert Filter.eq(".".join("a" * 5000), 1).matches(raw)
    assert not Filter.eq(".".join("a" * 4999), 1).matches(raw)


# --- equality

EQUAL = [
    ("1", "1.0"), ("1", "1e0"), ("10", "1E+1"), ("0", "-0.0"), ("0", "-0"), ("0", "0e9999999999999999999999"),
    ("9007199254740993", "9007199254740993"), ("1e400", "1E+400"), ("1e400", "1" + "0" * 400), ("0.1", "1e-1"),
    ("-1e400", "-10e399"), ("1" * 5000, "1" * 5000), ("1e5000", "1" + "0" * 5000), ("1e-400", "0"),
    ("null", "null"), ("true", "true"), ('"a"', '"\\u0061"'), ('"/"', '"\\/"'), ('"é"', '"\\u00E9"'),
    ('"\\ud83d\\ude00"', '"😀"'), ('"\\ud800"', '"\\uD800"'), ('""', '""'),
    ('{"a":1,"b":[true]}', '{"b":[true],"a":1.0}'), ("[]", "[ ]"), ("{}", "{\n}"), ("[1,[2]]", "[1.0,[2e0]]"),
    ('{"a":1}', '{"a":2,"a":1}'), ("18446744073709551616", "18446744073709551616.0"),
]  # fmt: skip
DIFFERENT = [
    ("1", "true"), ("true", "1"), ("0", "false"), ("false", "0"), ("false", "0.0"), ("null", "0"), ("null", "false"),
    ("1", '"1"'), ('"1"', "1"), ("[1,2]", "[2,1]"), ("[1]", "[true]"), ('{"a":[1]}', '{"a":[true]}'), ("[]", "{}"),
    ("9007199254740993", "9007199254740992.0"), ("9007199254740993", "9007199254740993.0"), ("1e400", "1e401"),
    ("1e400", "-1e400"), ("1e400", "1e9999999999999999999999"), ('{"a":1}', '{"a":1,"b":2}'), ('{"a":null}', "{}"),
    ('"a"', '"A"'), ('"é"', '"e\\u0301"'), ("[[]]", "[[[]]]"), ('"\\u0000"', '""'), ("[0]", "[false]"),
]  # fmt: skip


@pytest.mark.parametrize(("wanted", "found"), EQUAL)
@pytest.mark.parametrize("shape", ["%s", '{"a":%s}', '{"a":{"b":{"c":%s}}}', '{"a":[%s]}'])
def test_equality_same_value_spelled_differently_matches(shape: str, wanted: str, found: str) -> None:
    """Numbers by value, strings by characters, objects unordered: at the root, in objects, in arrays."""
    path = {"%s": "", '{"a":%s}': "a", '{"a":{"b":{"c":%s}}}': "a.b.c", '{"a":[%s]}': "a.0"}[shape]
    for one, other in ((wanted, found), (found, wanted)):
        if '"a":2,"a":1' in one:
            continue  # a filter refuses a key that stands twice
        built = Filter.from_json(f'{{"path":"{path}","value":{one}}}')
        assert built.matches((shape % other).encode())
        assert not (~built).matches((shape % other).encode())
        assert Filter.from_json(built.to_json()) == built


@pytest.mark.parametrize(("wanted", "found"), DIFFERENT)
@pytest.mark.parametrize("shape", ["%s", '{"a":%s}', '{"a":{"b":{"c":%s}}}', '{"a":[%s]}'])
def test_equality_other_value_does_not_match(shape: str, wanted: str, found: str) -> None:
    """What only looks alike, at the root, in objects, in arrays."""
    path = {"%s": "", '{"a":%s}': "a", '{"a":{"b":{"c":%s}}}': "a.b.c", '{"a":[%s]}': "a.0"}[shape]
    built = Filter.from_json(f'{{"path":"{path}","value":{wanted}}}')
    assert not built.matches((shape % found).encode())
    assert (~built).matches((shape % found).encode())
    if not found.endswith("9999999999"):
        assert built != Filter.from_json(f'{{"path":"{path}","value":{found}}}')


def test_equality_null_is_not_missing() -> None:
    """A null value matches null alone."""
    built = Filter.eq("a.b", None)
    assert built.matches(b'{"a":{"b":null}}')
    for raw in (b"{}", b'{"a":null}', b'{"a":{}}', b'{"a":{"b":0}}', b"null"):
        assert not built.matches(raw)


# --- operators


def test_empty_groups_match_nothing() -> None:
    """Neither an empty $and nor an empty $or; negated, each matches every JSON payload."""
    for built in (
        Filter.and_([]),
        Filter.or_([]),
        Filter.from_json('{"$and":[]}'),
        Filter.from_json('{"$or":[]}'),
    ):
        assert not built.matches(b"{}")
        assert (~built).matches(b"{}")
        assert not (~built).matches(b"{")
        assert not Filter.and_([Filter.not_(built), built]).matches(b"{}")
    assert Filter.and_([]) == Filter.or_([])
    assert not (Filter.and_([]) & Filter.eq("a", 1)).matches(b'{"a":1}')
    assert (Filter.or_([]) | Filter.eq("a", 1)).matches(b'{"a":1}')


def test_builder_joins_its_conditions() -> None:
    """One condition comes back bare, several are joined, none is an error."""
    one = FilterBuilder().eq("a", 1)
    assert one.build_and().to_json() == one.build_or().to_json() == '{"path":"a","value":1}'
    two = FilterBuilder().eq("a", 1).eq("b", 2)
    assert two.build_and() == Filter.and_([Filter.eq("a", 1), Filter.eq("b", 2)])
    assert two.build_or() == Filter.eq("a", 1) | Filter.eq("b", 2)
    with pytest.raises(FilterError, match="no condition"):
        FilterBuilder().build_and()
    with pytest.raises(FilterError, match="no condition"):
        FilterBuilder().build_or()


def test_from_json_takes_text_bytes_and_dict_alike() -> None:
    """The three forms give equal filters; shorthand and $eq mean the same."""
    form = {"$and": [{"path": "a", "value": [1]}, {"$not": {"$eq": {"path": "b", "value": None}}}]}
    text = json.dumps(form, indent=2)
    assert Filter.from_json(form) == Filter.from_json(text) == Filter.from_json(text.encode())
    assert Filter.from_json('{"path":"é","value":"é"}'.encode()) == Filter.eq("é", "é")
    assert Filter.from_json({"$eq": {"path": "a", "value": 1}}) == Filter.eq("a", 1)


def test_chain_of_operators_stays_flat() -> None:
    """A thousand conditions joined with | are one group, not a thousand levels."""
    built = Filter.eq("id", 0)
    for number in range(1, 1000):
        built = built | Filter.eq("id", number)
    assert built.matches(b'{"id":999}')
    assert not built.matches(b'{"id":1000}')


# --- payloads


NOT_JSON = [
    b"", b" ", b"{", b"hello", b"\xff", b'{"a":1}x', b'{"a":1,}', b'{"a":01}', b'\xef\xbb\xbf{"a":1}', b'{"a":NaN}',
    b'{"a":1}\x00', b"\x00", b'{"b":"\xff","a":1}', b'{"\xff":0,"a":1}', b'{"b":"\xed\xa0\x80","a":1}', b"'a'",
    b'{"b":"\\q","a":1}', b'{"b":"\x01","a":1}', b'{"b":[1,],"a":1}', b'{"b":"\\u12","a":1}', b'{"b":tru,"a":1}',
    '{"a":1}'.encode("utf-16"), b"[" * 20_000, b'{"a":1,"b":' + b"[" * 20_000 + b"}", b'{"a":1 "b":2}',
    b"[" * 20_000 + b"]" * 19_999, b'{"a":1,"\\ud800":}', b'{"a":"\\ud800"',
]  # fmt: skip


@pytest.mark.parametrize("raw", NOT_JSON, ids=range(len(NOT_JSON)))
def test_payload_that_is_not_json_matches_nothing_and_is_counted(raw: bytes) -> None:
    """Not under $not either, and never an exception."""
    a = Filter.eq("a", 1)
    for built in (
        a,
        ~a,
        ~~a,
        a | ~a,
        Filter.eq("", 1),
        ~Filter.eq("", 1),
        ~Filter.and_([]),
        Filter.eq("a.0", 1),
    ):
        matcher = built.compile()
        assert matcher(raw) is False
        assert matcher.undecodable <= 1
    matcher = (~Filter.eq("a", 2)).compile()
    for _ in range(3):
        assert matcher(raw) is False
    assert matcher.undecodable == 3


def test_payload_valid_json_that_decoders_refuse_is_decided_exactly() -> None:
    """Huge numbers, lone surrogates and any depth, in the part looked at or elsewhere."""
    a = Filter.eq("a", 1)
    deep = b"[" * 20_000 + b"]" * 20_000
    nested = b'{"k":' * 20_000 + b'{"k":[null,{}]}' + b"}" * 20_000
    for part in (
        b"1e400",
        b"-1E999",
        b"1" * 6000,
        b'"\\ud800"',
        b'"\\udc00x"',
        b'{"\\udfff":[]}',
        deep,
        nested,
    ):
        for raw in (
            b'{"a":1,"z":' + part + b"}",
            b'{"z":' + part + b' , "a" : 1.0 }',
            b'[{"a":1},' + part + b"]",
        ):
            matcher = (~a).compile()
            assert a.matches(raw) is raw.startswith(b"{")
            assert matcher(raw) is raw.startswith(b"[")
            assert matcher.undecodable == 0
        assert not a.matches(b'{"a":' + part + b"}")
    assert Filter.eq("z", "\ud800").matches(b'{"z":"\\uD800"}')
    assert Filter.eq("0.1", []).matches(b"[" + deep[:19_999] + b",[]" + b"]" * 19_999 + b"]") is False


def test_payload_duplicate_keys_the_last_one_wins() -> None:
    """At every level, whatever the first one was."""
    for raw, expected in [
        (b'{"a":2,"a":1}', True),
        (b'{"a":1,"a":2}', False),
        (b'{"a":1,"\\u0061":2}', False),
        (b'{"\\u0061":2,"a":1}', True),
        (b'{"a":1,"a":null}', False),
    ]:
        assert Filter.eq("a", 1).matches(raw) is expected
    for raw, expected in [
        (b'{"a":{"b":1},"a":{"c":1}}', False),
        (b'{"a":{"c":1},"a":{"b":1}}', True),
        (b'{"a":5,"a":{"b":1}}', True),
        (b'{"a":{"b":1},"a":5}', False),
        (b'{"a":{"b":1},"a":[]}', False),
        (b'{"a":{"b":2,"b":1}}', True),
    ]:
        assert Filter.eq("a.b", 1).matches(raw) is expected


def test_precheck_escaped_spellings_are_not_missed() -> None:
    """A string can stand in a payload without its bytes."""
    for value, spellings in {
        "hello": [r"hello", r"\u0068ello", r"hell\u006F", r"\u0068\u0065\u006c\u006c\u006f"],
        "a/b": [r"a/b", r"a\/b", r"a\u002fb"],
        'q"\\\n': [r"q\"\\\n", r"q\u0022\u005c\u000A"],
        "é😀": ["é😀", r"\u00e9\ud83d\uDE00", r"é\ud83d\ude00"],
        "": [""],
    }.items():
        for spelling in spellings:
            raw = f'{{"a": "{spelling}", "n": "\\n"}}'.encode()
            for form in (value, [value], {"k": value}):
                inside = {"str": b"%s", "list": b"[%s]", "dict": b'{"k":%s}'}[type(form).__name__]
                text = raw.replace(f'"{spelling}"'.encode(), inside % f'"{spelling}"'.encode(), 1)
                matcher = Filter.eq("a", form).compile()
                assert all(matcher(text) for _ in range(40))


def test_large_filter_compiles_without_generating_a_type_for_each_path() -> None:
    """Hundreds of paths fall back to decoding whole documents, and answer the same."""
    built = Filter.or_([Filter.eq(f"a{i}.b{i}.c{i}", i) for i in range(800)])
    assert built.matches(b'{"a799":{"b799":{"c799":799}}}')
    assert not built.matches(b'{"a799":{"b799":{"c799":798}}}')


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("value", [7, "x", 1, True, None, [2], {"k": "v"}])
def test_payload_invalid_utf8_in_a_skipped_part_matches_nothing(depth: int, value: Any) -> None:
    """Decoders that skip a string do not check it; a match is confirmed, and the payload counted."""
    document: Any = value
    for _ in range(depth):
        document = {"a": document, "z": "?!"}
    good = json.dumps(document).encode()
    bad = good.replace(b"?!", b"\xc3\x28")
    matcher = Filter.eq(".".join("a" * depth), value).compile()
    assert matcher(good)
    assert matcher(good.replace(b"?!", "é".encode()))
    assert not matcher(bad)
    assert not matcher(bad.replace(b'"z": "\xc3\x28"', b'"\xff": 0'))
    assert matcher.undecodable == 2
