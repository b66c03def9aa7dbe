"""Compile a filter's tree to one flat function over payload bytes.

Three layers, each a closure: the look at the bytes (`precheck`), decoding what the paths need
(`shape`), and comparing. The function returned carries the count `undecodable` as an attribute:
calling a plain function costs a third less than calling an object.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Any, cast

from net_filter_jsonpath.decoding import REFUSED, NotJSONError, decode_refused
from net_filter_jsonpath.nodes import Condition, Negation, Node
from net_filter_jsonpath.paths import Segment, split, walk
from net_filter_jsonpath.precheck import needles_of, with_precheck
from net_filter_jsonpath.shape import Route, Shape, shape_for
from net_filter_jsonpath.values import is_confusable, strict_equal
from netcore import Matcher

__all__ = ["compile_matcher"]

Predicate = Callable[[Any], bool]
Evaluator = Callable[[bytes], bool]
# Decides about what the decoder refused: (payload, the decoder's exception).
Refused = Callable[[bytes, Exception], bool]


def compile_matcher(node: Node) -> Matcher:
    """Return a matcher of its own count. It may be called from several threads; the count may then lag."""

    def undecodable() -> bool:
        matcher.undecodable += 1
        return False

    matcher = cast(Matcher, _build(node, undecodable))
    matcher.undecodable = 0
    return matcher


def _build(node: Node, undecodable: Callable[[], bool]) -> Evaluator:
    needles = needles_of(node)
    if needles is not None and not needles:
        return lambda raw: False
    conditions = tuple(_conditions(node))
    # An RFC 9535 query may need any part of the document: then the "paths" are the root.
    paths = tuple(() if condition.query else split(condition.path) for condition in conditions)
    shape = shape_for(paths)
    refused = _refused(node, undecodable)
    if isinstance(node, Condition) and node.query is None:
        evaluate = _single(shape, node.value, refused, undecodable)
    else:
        evaluate = _general(shape, _predicate(node, iter(shape.routes)), refused, undecodable)
    return with_precheck(evaluate, needles) if needles else evaluate


def _conditions(node: Node) -> Iterator[Condition]:
    if isinstance(node, Condition):
        yield node
    elif isinstance(node, Negation):
        yield from _conditions(node.item)
    else:
        for item in node.items:
            yield from _conditions(item)


def _refused(node: Node, undecodable: Callable[[], bool]) -> Refused:
    """Return the slow second look at what the decoder refused; built when it is first needed."""
    predicate: Predicate | None = None

    def refused(raw: bytes, cause: Exception) -> bool:
        nonlocal predicate
        try:
            document = decode_refused(raw, cause)
        except NotJSONError:
            return undecodable()
        if predicate is None:
            whole = (Route((), split(condition.path)) for condition in _conditions(node))
            predicate = _predicate(node, whole)
        return predicate(document)

    return refused


def _general(
    shape: Shape, predicate: Predicate, refused: Refused, undecodable: Callable[[], bool]
) -> Evaluator:
    decode, partial = shape.decode, shape.partial

    def evaluate(raw: bytes) -> bool:
        try:
            document = decode(raw)
        except REFUSED as cause:
            return refused(raw, cause)
        if predicate(document):
            return not partial or raw.isascii() or is_utf8(raw) or undecodable()
        return False

    return evaluate


def _single(shape: Shape, value: Any, refused: Refused, undecodable: Callable[[], bool]) -> Evaluator:
    """Return the evaluator for one condition; short paths are unrolled."""
    ((steps, rest),) = shape.routes
    if rest or not 1 <= len(steps) <= 3:
        return _general(shape, _holds(steps, rest, value), refused, undecodable)
    plain = not is_confusable(value)
    decode = shape.decode
    one: object = steps[0][0]
    two: object = steps[1][0] if len(steps) > 1 else None
    three: object = steps[2][0] if len(steps) > 2 else None

    # Every struct has one field here, `f0`. An exception would cost more than these tests of type.
    def at_one(raw: bytes) -> bool:
        try:
            found: Any = decode(raw)
        except REFUSED as cause:
            return refused(raw, cause)
        if type(found) is one and found.f0 == value and (plain or strict_equal(value, found.f0)):
            return raw.isascii() or is_utf8(raw) or undecodable()
        return False

    def at_two(raw: bytes) -> bool:
        try:
            found: Any = decode(raw)
        except REFUSED as cause:
            return refused(raw, cause)
        if type(found) is one:
            found = found.f0
            if type(found) is two and found.f0 == value and (plain or strict_equal(value, found.f0)):
                return raw.isascii() or is_utf8(raw) or undecodable()
        return False

    def at_three(raw: bytes) -> bool:
        try:
            found: Any = decode(raw)
        except REFUSED as cause:
            return refused(raw, cause)
        if type(found) is one:
            found = found.f0
            if type(found) is two:
                found = found.f0
                if type(found) is three and found.f0 == value and (plain or strict_equal(value, found.f0)):
                    return raw.isascii() or is_utf8(raw) or undecodable()
        return False

    return (at_one, at_two, at_three)[len(steps) - 1]


def _predicate(node: Node, routes: Iterator[Route]) -> Predicate:
    """Return the test of a decoded document; takes a route for each condition, in order."""
    if isinstance(node, Condition):
        steps, rest = next(routes)
        if node.query is not None:
            return node.query(node.value)
        return _holds(steps, rest, node.value)
    if isinstance(node, Negation):
        negated = _predicate(node.item, routes)
        return lambda document: not negated(document)
    parts = tuple(_predicate(item, routes) for item in node.items)
    return _every(parts) if node.operator == "$and" and parts else _any(parts)


def _every(parts: tuple[Predicate, ...]) -> Predicate:
    def every(document: Any) -> bool:
        for part in parts:  # noqa: SIM110 - a generator inside all() costs twice as much
            if not part(document):
                return False
        return True

    return every


def _any(parts: tuple[Predicate, ...]) -> Predicate:
    def some(document: Any) -> bool:
        for part in parts:  # noqa: SIM110 - as above
            if part(document):
                return True
        return False

    return some


def _holds(steps: tuple[tuple[type, str], ...], rest: tuple[Segment, ...], value: Any) -> Predicate:
    """Return the test of what lies at a path.

    `==` comes first: it is quick, and false where JSON equality is; only where a boolean could pass
    for a number does a true answer need the second, strict look.
    """
    getters = tuple((kind, attrgetter(field)) for kind, field in steps)
    plain = not is_confusable(value)

    def holds(found: Any) -> bool:
        for kind, get in getters:
            if type(found) is not kind:
                return False
            found = get(found)
        if rest:
            found = walk(found, rest)
        equal: bool = found == value
        return equal and (plain or strict_equal(value, found))

    return holds


def is_utf8(raw: bytes) -> bool:
    """Tell whether bytes are valid UTF-8: a decoder that skips a string does not look."""
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True
