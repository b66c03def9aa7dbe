"""Filters as values: what is refused, limits, immutability, equality, text."""

from __future__ import annotations

import copy
import enum
import pickle
from typing import Any

import pytest
from net_filter_jsonpath import Filter

from netcore.errors import FilterError

MALFORMED: list[tuple[Any, str]] = [
    ("", "not JSON"),
    ("{", "not JSON"),
    (b"\xff", "not UTF-8"),
    (b"\xef\xbb\xbf{}", "not JSON"),
    ("[]", r"must be an object.*\[\]"),
    ("null", "must be an object.*None"),
    (5, "must be an object.*5"),
    ({}, "exactly one of"),
    ({"path": "a"}, "must hold both \"path\" and \"value\", not {'path': 'a'}"),
    ({"value": 1}, 'must hold both "path" and "value"'),
    ({"path": "a", "value": 1, "extra": 2}, "keys.*extra"),
    ({"path": "a", "value": 1, "$not": {"path": "a", "value": 1}}, r"keys.*\$not"),
    ({"$and": [], "$or": []}, r"keys.*\$and.*\$or"),
    ({"$nor": []}, r"unknown operator '\$nor'"),
    ({"and": []}, "unknown operator 'and'"),
    ({"a": 1}, "unknown operator 'a'"),
    ({1: 2}, "unknown operator 1"),
    ({"$eq": {"path": "a"}}, r"\$eq must be"),
    ({"$eq": [{"path": "a", "value": 1}]}, r"\$eq must be"),
    ({"$eq": {"path": "a", "value": 1, "x": 2}}, r"\$eq must be.*x"),
    ({"$eq": {"$eq": {"path": "a", "value": 1}}}, r"\$eq must be"),
    ({"$and": {"path": "a", "value": 1}}, r"\$and must be an array"),
    ({"$or": "x"}, r"\$or must be an array.*'x'"),
    ({"$and": [{"path": "a", "value": 1}, 7]}, r"\$and\[1\] must be an object.*7"),
    ({"$not": []}, r"\$not must be an object"),
    ({"$not": [{"path": "a", "value": 1}]}, r"\$not must be an object"),
    ({"path": 1, "value": 1}, "must be a string, not 1"),
    ({"path": None, "value": 1}, "must be a string, not None"),
    ({"path": ["a"], "value": 1}, r"must be a string, not \['a'\]"),
    ('{"path":"a","value":NaN}', "NaN is not JSON"),
    ('{"path":"a","value":-Infinity}', "-Infinity is not JSON"),
    ('{"path":"a","value":1e99999999999999999999}', "not a finite number"),
    ({"path": "a", "value": [float("nan")]}, r"nan.*value\[0\] is not a finite number"),
    ({"path": "a", "value": float("inf")}, "inf.*is not a finite number"),
    ({"path": "a", "value": {"b": {1, 2}}}, r"\(set\) at the filter.value.b is not a JSON value"),
    ({"path": "a", "value": b"x"}, r"\(bytes\).*is not a JSON value"),
    ({"path": "a", "value": {1: 2}}, "object key 1 .* is not a string"),
    ('{"path":"a","path":"b","value":1}', "'path' stands twice"),
    ('{"$and":[],"$and":[]}', r"'\$and' stands twice"),
]


@pytest.mark.parametrize(("data", "message"), MALFORMED)
def test_from_json_malformed_raises_and_shows_the_part(data: Any, message: str) -> None:
    """Exactly one shape a node; the error shows what is wrong and where."""
    with pytest.raises(FilterError, match=message):
        Filter.from_json(data)


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), {1}, object(), 1j, b"x", {"a": {2: 3}}, [Filter]]
)
def test_eq_value_that_is_not_json_raises(value: object) -> None:
    """The Python way refuses what the JSON way can't say."""
    with pytest.raises(FilterError):
        Filter.eq("a", value)


def test_joining_what_is_no_filter_raises() -> None:
    """Groups and negations take filters; operators leave others to Python."""
    for call in (Filter.and_, Filter.or_):
        with pytest.raises(FilterError, match="takes filters, not"):
            call([{"path": "a", "value": 1}])  # type: ignore[list-item]
        with pytest.raises(FilterError, match="takes a list"):
            call(Filter.eq("a", 1))  # type: ignore[arg-type]
        with pytest.raises(FilterError, match="takes a list"):
            call(5)  # type: ignore[arg-type]
    with pytest.raises(FilterError, match="takes filters"):
        Filter.not_("x")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Filter.eq("a", 1) & 5  # type: ignore[operator]
    with pytest.raises(TypeError, match=r"Filter\.eq"):
        Filter()


def test_size_limit_holds_for_text_and_for_built_filters() -> None:
    """64 KiB is allowed, one byte more is not; what is built can always be read back."""
    room = 64 * 1024 - len('{"path":"a","value":""}')
    fits = Filter.eq("a", "x" * room)
    assert len(fits.to_json()) == 64 * 1024
    assert Filter.from_json(fits.to_json()) == fits
    with pytest.raises(FilterError, match="too large: 65,537 bytes"):
        Filter.eq("a", "x" * (room + 1))
    with pytest.raises(FilterError, match=r"65,537 bytes, at most 65,536"):
        Filter.from_json(" " + fits.to_json())
    with pytest.raises(FilterError, match=r"65,537 bytes, at most 65,536"):
        Filter.from_json((" " + fits.to_json()).encode())
    with pytest.raises(FilterError, match="too large"):
        Filter.not_(fits)
    with pytest.raises(FilterError, match="too large"):
        _ = fits & fits
    with pytest.raises(FilterError, match=r"too large|too long"):
        Filter.eq("a" * 70_000, 1)


@pytest.mark.parametrize(
    ("left", "right"), [('{"$not":', "}"), ('{"$and":[', "]}"), ('{"$or":[{"$and":[', "]}]}")]
)
def test_depth_limit_holds_and_is_never_a_recursion_error(left: str, right: str) -> None:
    """64 levels are allowed, more are not, however many."""
    condition = '{"path":"a","value":1}'
    per = left.count("$")
    fits = 63 // per
    assert Filter.from_json(left * fits + condition + right * fits)
    for depth in (fits + 1, 100, 1000, 3000):
        with pytest.raises(FilterError, match="nested over 64 levels"):
            Filter.from_json(left * depth + condition + right * depth)


def test_depth_limit_counts_values_and_python_objects() -> None:
    """Values count by their containers; self-containing and hugely shared structures end in an error."""
    deep: Any = 1
    for _ in range(63):
        deep = [deep]
    fits = Filter.eq("a", deep)
    assert fits.matches(b'{"a":' + b"[" * 63 + b"1" + b"]" * 63 + b"}")
    with pytest.raises(FilterError, match="64 levels"):
        Filter.eq("a", [deep])
    with pytest.raises(FilterError, match="64 levels"):
        Filter.not_(fits)
    with pytest.raises(FilterError, match="64 levels"):
        Filter.from_json('{"path":"a","value":' + "[" * 30_000 + "]" * 30_000 + "}")
    for _ in range(20_000):
        deep = [deep]
    with pytest.raises(FilterError, match="64 levels"):
        Filter.from_json({"path": "a", "value": deep})
    loop: dict[str, Any] = {}
    loop["$not"] = loop
    with pytest.raises(FilterError, match="64 levels"):
        Filter.from_json(loop)
    shared: Any = [1]
    for _ in range(60):
        shared = [shared, shared]
    with pytest.raises(FilterError, match="too large"):
        Filter.eq("a", shared)
    group: Any = {"path": "a", "value": 1}
    for _ in range(60):
        group = {"$and": [group, group]}
    with pytest.raises(FilterError, match="too large"):
        Filter.from_json(group)


# --- identity, immutability


def test_filter_is_not_changed_through_what_was_passed_in() -> None:
    """Lists and dicts are copied on the way in, groups too."""
    value: dict[str, Any] = {"b": [1]}
    built = Filter.eq("a", value)
    form: dict[str, Any] = {"$and": [{"path": "a", "value": value}]}
    parsed = Filter.from_json(form)
    parts = [built]
    joined = Filter.and_(parts)
    before = (built.to_json(), parsed.to_json(), joined.to_json(), hash(built))
    value["b"].append(2)
    form["$and"].append({"$or": []})
    parts.append(Filter.or_([]))
    assert (built.to_json(), parsed.to_json(), joined.to_json(), hash(built)) == before
    assert built.matches(b'{"a":{"b":[1]}}')
    assert parsed.matches(b'{"a":{"b":[1]}}')


def test_filter_attributes_cannot_be_set_or_deleted() -> None:
    """Immutable also to a determined caller."""
    built = Filter.eq("a", 1)
    with pytest.raises(AttributeError, match="immutable"):
        built.name = "x"  # type: ignore[misc]
    with pytest.raises(AttributeError, match="immutable"):
        del built._node


def test_filter_copies_and_pickles_to_an_equal_filter() -> None:
    """Filters travel between processes."""
    built = Filter.eq("a", {"b": [1, 10**400]}) & ~Filter.eq("c", "é")
    assert pickle.loads(pickle.dumps(built)) == built
    assert copy.copy(built) is built
    assert copy.deepcopy(built) is built


def test_equality_goes_by_meaning() -> None:
    """Numbers by value, keys unordered, true is not 1; paths by their text."""
    a, b = Filter.eq("a", 1), Filter.eq("b", 2)
    same = [
        (Filter.eq("a", 1.0), a),
        (Filter.eq("a", {"x": 1, "y": [2]}), Filter.eq("a", {"y": [2.0], "x": 1.0})),
        (a & b, b & a),
        (a & a, a),
        (Filter.or_([a]), a),
        (~~a, a),
        (Filter.eq("a", (1, 2)), Filter.eq("a", [1, 2])),
        (Filter.eq("a", "\ud83d\ude00"), Filter.eq("a", "😀")),
    ]
    for one, other in same:
        assert one == other
        assert hash(one) == hash(other)
    different = [
        (Filter.eq("a", True), a),
        (Filter.eq("a", [0]), Filter.eq("a", [False])),
        (Filter.eq("a", "1"), a),
        (Filter.eq("0", 1), Filter.eq("00", 1)),
        (a & b, a | b),
        (~a, a),
        (Filter.eq("a", [1, 2]), Filter.eq("a", [2, 1])),
        (Filter.eq("a", {}), Filter.eq("a", [])),
        (Filter.eq("a", None), Filter.eq("a", False)),
    ]
    for one, other in different:
        assert one != other
    assert a != '{"path":"a","value":1}'


def test_eq_subclasses_of_builtins_become_builtins() -> None:
    """Enums and other subclasses count as what they are in JSON."""

    class Level(enum.StrEnum):
        ERROR = "error"

    class Code(enum.IntEnum):
        OK = 200

    assert Filter.eq(Level.ERROR, Level.ERROR).to_json() == '{"path":"error","value":"error"}'
    assert Filter.eq("a", [Code.OK]).to_json() == '{"path":"a","value":[200]}'


def test_to_json_is_stable_ascii_with_sorted_keys() -> None:
    """The text can stand in a header: one line, ASCII, no control characters."""
    built = ~(Filter.eq("é\n", {"b": 1.5, "a": [None, True, "\u2028\x7f"]}) | Filter.and_([]))
    assert built.to_json() == (
        r'{"$not":{"$or":[{"path":"\u00e9\n","value":{"a":[null,true,"\u2028\u007f"],"b":1.5}},{"$and":[]}]}}'
    )
    assert Filter.from_json(built.to_json()).to_json() == built.to_json()
    assert repr(built) == f"<Filter {built.to_json()}>"
