"""`Filter` and `FilterBuilder`: how filters are written in Python."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any, ClassVar, Final, Literal, NoReturn

from net_filter_jsonpath.matcher import compile_matcher
from net_filter_jsonpath.nodes import Group, Node, condition, group, negation
from net_filter_jsonpath.parse import parse
from net_filter_jsonpath.values import excerpt
from netcore import FilterError, Matcher

__all__ = ["Filter", "FilterBuilder"]


class FilterBuilder:
    """Collect conditions, then join them.

    `build_and` and `build_or` may be called more than once; the builder goes on collecting.
    """

    __slots__ = ("_conditions",)

    def __init__(self) -> None:
        self._conditions: list[Filter] = []

    def eq(self, path: str, value: Any) -> FilterBuilder:
        """Add the condition that `value` lies at `path`; return the builder.

        Raises:
            FilterError: as `Filter.eq`.
        """
        self._conditions.append(Filter.eq(path, value))
        return self

    def build_and(self) -> Filter:
        """Return a filter that wants every condition; a single one comes back as it is.

        Raises:
            FilterError: there is no condition.
        """
        return self._build("$and")

    def build_or(self) -> Filter:
        """Return a filter that wants at least one condition; a single one comes back as it is.

        Raises:
            FilterError: there is no condition.
        """
        return self._build("$or")

    def _build(self, operator: Literal["$and", "$or"]) -> Filter:
        if not self._conditions:
            raise FilterError("the builder has no condition: call eq(path, value) first")
        if len(self._conditions) == 1:
            return self._conditions[0]
        return _join(operator, self._conditions)


class Filter:
    """A predicate over payloads: equality at paths under `$and`, `$or` and `$not`.

    Immutable and safe to share between threads: what is passed in is copied. Two filters are equal,
    with equal hashes, if they are the same up to the order of object keys, the spelling of numbers
    (1 and 1.0), the order, repetition and grouping of operands, and double negation; equal filters
    match the same payloads. (Equivalence that takes more logic than this is not found.)

    A filter takes at most 64 KiB as JSON and 64 levels; every way to make one keeps to that.
    """

    __slots__ = ("_key", "_matcher", "_node")

    name: ClassVar[str] = "jsonpath"
    Builder: ClassVar[type[FilterBuilder]] = FilterBuilder

    _node: Node
    _key: Hashable
    _matcher: Matcher | None

    def __init__(self) -> None:
        raise TypeError("make a filter with Filter.eq, and_, or_, not_ or from_json")

    @classmethod
    def eq(cls, path: str, value: Any) -> Filter:
        """Match payloads in which `value` lies at `path`.

        Args:
            path: dot-separated keys; a segment of digits is an index where it meets an array; the
                empty path is the whole payload. One that begins with `$.` or `$[`, or is `$`, is an
                RFC 9535 query (extra `rfc9535`) and matches when any node it selects equals `value`.
            value: None, bool, int, finite float, str, or a list, tuple or dict (str keys) of these.

        Raises:
            FilterError: not such a path or value, or over a limit.
        """
        return _wrap(condition(path, value))

    @classmethod
    def and_(cls, filters: Iterable[Filter]) -> Filter:
        """Match payloads that every one of the filters matches; without filters, none.

        Raises:
            FilterError: an operand is not a Filter, or the result is over a limit.
        """
        return _join("$and", filters)

    @classmethod
    def or_(cls, filters: Iterable[Filter]) -> Filter:
        """Match payloads that at least one of the filters matches; without filters, none.

        Raises:
            FilterError: an operand is not a Filter, or the result is over a limit.
        """
        return _join("$or", filters)

    @classmethod
    def not_(cls, filter: Filter) -> Filter:
        """Match JSON payloads that the filter does not match. What is not JSON still matches nothing.

        Raises:
            FilterError: the operand is not a Filter, or the result is over a limit.
        """
        return _wrap(negation(_checked(filter, "not_")._node))

    @classmethod
    def from_json(cls, data: str | bytes | dict[str, Any], /) -> Filter:
        """Build a filter from its JSON form: text, UTF-8 bytes, or the decoded dict.

        Raises:
            FilterError: malformed or over a limit; the message shows the offending part.
        """
        return _wrap(parse(data))

    def to_json(self) -> str:
        """Return the filter as one line of compact ASCII JSON; equal input gives equal text.

        `from_json` reads it back to an equal filter. Fit for a header.
        """
        return self._node.text

    def matches(self, raw: bytes, /) -> bool:
        """Tell whether a payload matches. Never raises for any bytes; what is not JSON matches nothing."""
        if self._matcher is None:
            object.__setattr__(self, "_matcher", self.compile())
        assert self._matcher is not None
        return self._matcher(raw)

    def compile(self) -> Matcher:
        """Return a matcher with a count of its own, for the events of one poll."""
        return compile_matcher(self._node)

    def __and__(self, other: Filter) -> Filter:
        return _chain("$and", self, other) if isinstance(other, Filter) else NotImplemented

    def __or__(self, other: Filter) -> Filter:
        return _chain("$or", self, other) if isinstance(other, Filter) else NotImplemented

    def __invert__(self) -> Filter:
        return Filter.not_(self)

    def __eq__(self, other: object) -> bool:
        return self._meaning() == other._meaning() if isinstance(other, Filter) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._meaning())

    def __repr__(self) -> str:
        text = self.to_json()
        return f"<Filter {text if len(text) <= 200 else text[:197] + '...'}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return Filter.from_json, (self.to_json(),)

    def __copy__(self) -> Filter:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Filter:
        return self

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a Filter is immutable: {name} can't be set")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a Filter is immutable: {name} can't be deleted")

    def _meaning(self) -> Hashable:
        if self._key is None:
            object.__setattr__(self, "_key", self._node.meaning())
        return self._key


_set: Final = object.__setattr__


def _wrap(node: Node) -> Filter:
    result = Filter.__new__(Filter)
    _set(result, "_node", node)
    _set(result, "_key", None)
    _set(result, "_matcher", None)
    return result


def _checked(candidate: object, operation: str) -> Filter:
    if not isinstance(candidate, Filter):
        raise FilterError(f"{operation} takes filters, not {excerpt(candidate)}: see Filter.from_json")
    return candidate


def _join(operator: Literal["$and", "$or"], filters: Iterable[Filter]) -> Filter:
    if isinstance(filters, Filter | str | bytes | dict) or not isinstance(filters, Iterable):
        raise FilterError(f"{operator} takes a list of filters, not {excerpt(filters)}")
    return _wrap(group(operator, tuple(_checked(item, operator)._node for item in filters)))


def _chain(operator: Literal["$and", "$or"], left: Filter, right: Filter) -> Filter:
    """Join two filters; `a & b & c` becomes one group of three, so that long chains stay flat."""
    items: tuple[Node, ...] = ()
    for node in (left._node, right._node):
        # An empty group matches nothing; merged into another it would no longer say so.
        mergeable = isinstance(node, Group) and node.operator == operator and node.items
        items += node.items if mergeable and isinstance(node, Group) else (node,)
    return _wrap(group(operator, items))
