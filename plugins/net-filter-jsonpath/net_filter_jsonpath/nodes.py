"""The tree behind a filter: conditions under `$and`, `$or` and `$not`, and their limits."""

from __future__ import annotations

import json
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Literal

from net_filter_jsonpath.rfc9535 import Query, compile_query
from net_filter_jsonpath.values import (
    MAX_LEVELS,
    MAX_TEXT_BYTES,
    dumps,
    excerpt,
    freeze,
    join_surrogates,
    levels,
    meaning,
)
from netcore import FilterError

__all__ = ["Condition", "Group", "Negation", "Node", "condition", "group", "is_rfc9535", "negation"]


@dataclass(frozen=True, slots=True, eq=False)
class Condition:
    """`value` is what lies at `path`. `query` is the compiled path if it is an RFC 9535 one."""

    path: str
    value: Any
    query: Query | None
    text: str
    levels: int

    def meaning(self) -> Hashable:
        """Return what is equal for nodes that are found to mean the same."""
        return "eq", self.path, meaning(self.value)


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """All (`$and`) or any (`$or`) of the items; no items match nothing."""

    operator: Literal["$and", "$or"]
    items: tuple[Node, ...]
    text: str
    levels: int

    def meaning(self) -> Hashable:
        """As `Condition.meaning`; order, repetition and grouping of equal operators do not count."""
        keys: set[Any] = set()
        for item in self.items:
            key: Any = item.meaning()
            if key == _NOTHING and self.operator == "$and":
                return _NOTHING
            keys |= key[1] if key[0] == self.operator else {key}
        keys.discard(_NOTHING)
        if not keys:
            return _NOTHING
        return keys.pop() if len(keys) == 1 else (self.operator, frozenset(keys))


@dataclass(frozen=True, slots=True, eq=False)
class Negation:
    """Any JSON payload that the item does not match."""

    item: Node
    text: str
    levels: int

    def meaning(self) -> Hashable:
        """As `Condition.meaning`; two negations cancel."""
        key: Any = self.item.meaning()
        return key[1] if key[0] == "$not" else ("$not", key)


Node = Condition | Group | Negation
_NOTHING = ("$or", frozenset[Any]())


def is_rfc9535(path: str) -> bool:
    """Tell whether a path is an RFC 9535 query: `$` alone, or before `.`, `[` or blank space."""
    return path.startswith("$") and path[1:2] in ("", ".", "[", " ", "\t", "\n", "\r")


def condition(path: object, value: object, where: str = "the filter") -> Condition:
    """Make the condition that `value` lies at `path`.

    Raises:
        FilterError: the path is no string or no valid query, the value is not JSON, or a limit.
    """
    if not isinstance(path, str):
        raise FilterError(f'"path" at {where} must be a string, not {excerpt(path)}')
    path = join_surrogates(str.__str__(path))
    if len(path) > MAX_TEXT_BYTES:
        raise FilterError(f"the path at {where} is too long ({len(path):,} characters): {excerpt(path)}")
    query = None
    if is_rfc9535(path):
        query = compile_query(path)
    frozen = freeze(value, f"{where}.value")
    text = f'{{"path":{json.dumps(path)},"value":{dumps(frozen)}}}'
    return Condition(path, frozen, query, *_limited(text, 1 + levels(frozen), where))


def group(operator: Literal["$and", "$or"], items: tuple[Node, ...], where: str = "the filter") -> Group:
    """Join nodes under `$and` or `$or`.

    Raises:
        FilterError: the result is over a limit.
    """
    text = f'{{"{operator}":[{",".join(item.text for item in items)}]}}'
    depth = 1 + max((item.levels for item in items), default=0)
    return Group(operator, items, *_limited(text, depth, where))


def negation(item: Node, where: str = "the filter") -> Negation:
    """Negate a node.

    Raises:
        FilterError: the result is over a limit.
    """
    return Negation(item, *_limited(f'{{"$not":{item.text}}}', 1 + item.levels, where))


def _limited(text: str, depth: int, where: str) -> tuple[str, int]:
    if depth > MAX_LEVELS:
        raise FilterError(f"{where} is nested over {MAX_LEVELS} levels: {text[:60]}...")
    if len(text) > MAX_TEXT_BYTES:
        raise FilterError(
            f"{where} is too large: {len(text):,} bytes as ASCII JSON, at most {MAX_TEXT_BYTES:,}: {text[:60]}..."
        )
    return text, depth
