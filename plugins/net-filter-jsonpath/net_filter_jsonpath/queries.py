"""RFC 9535 queries, made safe to take from strangers.

Filters come from the network, so no query let through may take more than a small polynomial of the
payload's size and depth:

- the numbers of a query's selectors multiply to at most 64;
- at most one descendant segment (`..`), outside filter expressions;
- filter expressions (`?`) are not nested, have at most 50 operators in one another (`&&` and `||`
  count), and a `$` query inside one selects a single node;
- the functions `match` and `search` are refused: a backtracking engine would run their expressions.

Source: RFC 9535, sections 2.3-2.5 (selectors and segments), 4 (security considerations).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from jsonpath_rfc9535 import JSONPathEnvironment, JSONPathError, JSONPathNode, JSONPathQuery
from jsonpath_rfc9535.filter_expressions import FilterQuery, RootFilterQuery
from jsonpath_rfc9535.segments import JSONPathRecursiveDescentSegment, JSONPathSegment
from jsonpath_rfc9535.selectors import FilterSelector

from net_filter_jsonpath.rfc9535 import Query
from net_filter_jsonpath.values import strict_equal

__all__ = ["build_query"]

_MOST_SELECTORS: Final = 64
_DEEPEST_EXPRESSION: Final = 50
_FUNCTIONS: Final = ("count", "length", "value")


def build_query(path: str) -> Query:
    """Compile a query to a function from the wanted value to a test of documents.

    Raises:
        ValueError: the query is malformed, or it could cost too much.
    """
    environment = JSONPathEnvironment()
    for name in environment.function_extensions.keys() - set(_FUNCTIONS):
        del environment.function_extensions[name]
    try:
        query = environment.compile(path)
    except JSONPathError as error:
        raise ValueError(str(error)) from error
    _check_cost(query)

    def wanting(value: Any) -> Callable[[Any], bool]:
        def test(document: Any) -> bool:
            try:
                return any(strict_equal(value, node.value) for node in _select(query, document))
            except (JSONPathError, RecursionError):
                # Only an expression that compares two parts of the payload with each other, both
                # nested beyond the interpreter's recursion limit, comes here.
                return False

        return test

    return wanting


class _Node(JSONPathNode):
    """A node that does not remember where it is: locations cost the square of the depth."""

    __slots__ = ()

    def new_child(self, value: object, key: int | str, parent: JSONPathNode | None) -> JSONPathNode:
        """Return a node for a part of this one's value."""
        return _Node(value=value, location=(), parent=None, root=self.root)


def _select(query: JSONPathQuery, document: Any) -> Iterable[JSONPathNode]:
    nodes: Iterable[JSONPathNode] = [_Node(value=document, location=(), parent=None, root=document)]
    for segment in query.segments:
        descends = isinstance(segment, JSONPathRecursiveDescentSegment)
        nodes = _descend(segment, nodes) if descends else segment.resolve(nodes)
    return nodes


def _descend(segment: JSONPathSegment, nodes: Iterable[JSONPathNode]) -> Iterator[JSONPathNode]:
    """Apply a descendant segment without recursion, whatever the depth; order does not matter here."""
    for start in nodes:
        pending = [start]
        while pending:
            node = pending.pop()
            for selector in segment.selectors:
                yield from selector.resolve(node)
            value = node.value
            parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
            pending += [node.new_child(part, "", None) for part in parts if isinstance(part, dict | list)]


def _check_cost(query: JSONPathQuery) -> None:
    inner: list[FilterQuery] = []
    for selector in _filters(query):
        inner += _queries(selector.expression)
    if any(next(_filters(part.query), None) for part in inner):
        raise ValueError("filter expressions must not be nested")
    if any(_descents(part.query) for part in inner):
        raise ValueError("'..' must not stand inside a filter expression")
    if any(isinstance(part, RootFilterQuery) and not part.query.singular_query() for part in inner):
        raise ValueError("a '$' query inside a filter expression must select a single node")
    if _descents(query) > 1:
        raise ValueError("'..' must not occur more than once")
    queries = [query, *(part.query for part in inner)]
    combinations = math.prod(len(segment.selectors) for each in queries for segment in each.segments)
    if combinations > _MOST_SELECTORS:
        raise ValueError(f"its selectors combine in {combinations} ways, at most {_MOST_SELECTORS}")


def _descents(query: JSONPathQuery) -> int:
    return sum(isinstance(segment, JSONPathRecursiveDescentSegment) for segment in query.segments)


def _filters(query: JSONPathQuery) -> Iterator[FilterSelector]:
    """Yield the filter selectors of a query, not those inside their expressions."""
    for segment in query.segments:
        for selector in segment.selectors:
            if isinstance(selector, FilterSelector):
                yield selector


def _queries(expression: Any, room: int = _DEEPEST_EXPRESSION) -> Iterator[FilterQuery]:
    """Yield the queries of a filter expression, not those inside them."""
    if room == 0:
        raise ValueError(f"a filter expression has more than {_DEEPEST_EXPRESSION} operators in one another")
    if isinstance(expression, FilterQuery):
        yield expression
    for name in ("expression", "left", "right"):
        if hasattr(expression, name):
            yield from _queries(getattr(expression, name), room - 1)
    for argument in getattr(expression, "args", ()):
        yield from _queries(argument, room - 1)
