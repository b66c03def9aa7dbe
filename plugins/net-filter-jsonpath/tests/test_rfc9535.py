"""The extension: paths that begin with `$` are RFC 9535 queries."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import pytest
from net_filter_jsonpath import Filter
from net_filter_jsonpath.rfc9535 import compile_query

from netcore.errors import FilterError

pytest.importorskip("jsonpath_rfc9535", reason="the extra rfc9535 is not installed")

STORE = {
    "store": {
        "book": [{"title": "A", "price": 8.95, "tags": ["x"]}, {"title": "B", "price": 12, "isbn": True}],
        "a.b": {"$ref": 1},
    },
    "limit": 10,
}


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("$", STORE, True),
        ("$.limit", 10.0, True),
        ("$.store.book[0].title", "A", True),
        ("$.store.book[-1].title", "B", True),
        ("$.store.book[*].title", "B", True),
        ("$.store.book[*].title", "C", False),
        ("$..title", "A", True),
        ("$..tags[0]", "x", True),
        ("$['store']['a.b']['$ref']", 1, True),
        ("$['store']['a.b']['$ref']", True, False),
        ("$.store.book[?@.price < 10].title", "A", True),
        ("$.store.book[?@.price < 10].title", "B", False),
        ("$.store.book[?@.price > $.limit].title", "B", True),
        ("$.store.book[?count(@.tags[*]) == 1].title", "A", True),
        ("$.store.book[?length(@.title) == 1 && @.isbn].title", "B", True),
        ("$..[?@.isbn].title", "B", True),
        ("$.missing", None, False),
        ("$ .limit", 10, True),
        ("$..book[0:1].price", 8.95, True),
    ],
)
def test_query_matches_when_any_selected_node_equals(path: str, value: Any, expected: bool) -> None:
    """Also when negated, joined with dotted paths, and read back from JSON."""
    raw = json.dumps(STORE).encode()
    built = Filter.eq(path, value)
    assert built.matches(raw) is expected
    assert (~built).matches(raw) is not expected
    assert (built & Filter.eq("limit", 10)).matches(raw) is expected
    assert Filter.from_json(built.to_json()) == built


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("$[", "unbalanced"),
        ("$.", "refused"),
        ("$.a b", "refused"),
        ("$[?nope(@)]", "nope"),
        ("$[?match(@.a, '(a*)*b')]", "'match' is not defined"),
        ("$[?search(@.a, '(a*)*b')]", "'search' is not defined"),
        ("$..a..b", "more than once"),
        ("$[?@..a]", "inside a filter expression"),
        ("$[?count(@..a) > 1]", "inside a filter expression"),
        ("$[?@[?@.a]]", "must not be nested"),
        ("$[?!(@.b || @[?@.a])]", "must not be nested"),
        ("$[?$[*]]", "single node"),
        ("$" + "[0,0]" * 7, "128 ways, at most 64"),
        ("$[?@" + "[0,0]" * 7 + "]", "128 ways, at most 64"),
        ("$." + "a" * 1100, "1,102 characters"),
        ("$[?" + "(" * 500 + "@.a" + ")" * 500 + "]", "refused"),
        ("$[?" + "!" * 60 + "@.a]", "refused"),
        ("$[?" + "&&".join(["@.a"] * 60) + "]", "50 operators"),
        ("$[99999999999999999999]", "refused"),
    ],
)
def test_query_malformed_or_costly_is_refused(path: str, message: str) -> None:
    """What is no query, and what could burn a process, is a FilterError."""
    with pytest.raises(FilterError, match=message):
        Filter.eq(path, 1)


def test_query_without_the_extra_names_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the library a `$` path says what to install; dotted paths go on working."""
    for name in [n for n in sys.modules if n.startswith("jsonpath_rfc9535")] + [
        "net_filter_jsonpath.queries"
    ]:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "jsonpath_rfc9535", None)
    compile_query.cache_clear()
    with pytest.raises(FilterError, match=r"pip install 'net-filter-jsonpath\[rfc9535\]'"):
        Filter.eq("$.without.extra", 1)
    assert Filter.eq("$ref", 1).matches(b'{"$ref":1}')


def test_query_on_deep_payload_is_exact() -> None:
    """No recursion limit and no quadratic cost in the depth of a payload."""
    raw = b'{"a":' * 20_000 + b'{"b":1}' + b"}" * 20_000
    start = time.monotonic()
    assert Filter.eq("$..b", 1).matches(raw)
    assert not Filter.eq("$..b", 2).matches(raw)
    assert not Filter.eq("$.a.b", 1).matches(raw)
    assert time.monotonic() - start < 20


def test_query_worst_allowed_shapes_end_in_time() -> None:
    """The costliest queries let through, on a payload made against them."""
    wide = json.dumps({"a": [[{"b": [0] * 8} for _ in range(8)] for _ in range(200)]}).encode()
    start = time.monotonic()
    for path in ("$..[*,*,*,*]", "$" + "[*,*]" * 6, "$..[?@[*] || @[*][*]]"):
        assert not Filter.eq(path, -5).matches(wide)
    assert time.monotonic() - start < 30


def test_query_payload_not_json_matches_nothing() -> None:
    """Extension or not: no match, no exception, counted."""
    matcher = (~Filter.eq("$..a", 1)).compile()
    assert not matcher(b'{"a":')
    assert matcher.undecodable == 1
