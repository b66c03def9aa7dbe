"""Decoders that build only what the paths of a filter need.

A msgspec decoder for a struct skips the fields that the struct lacks, which costs less than half of
building them. For the paths of one filter a tree of structs is generated, one a visited object.
Wherever a struct stands, any other JSON value is allowed too (a union), so a payload of another shape
decodes without an error and is simply not that struct.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final, NamedTuple

import msgspec

from net_filter_jsonpath.paths import ABSENT, Segment

__all__ = ["Route", "Shape", "shape_for"]

# Looking a key up among many fields costs as much as decoding it; deep structs cost time to generate.
_MOST_FIELDS: Final = 12
_MOST_STRUCTS_DEEP: Final = 8
_MOST_STRUCTS: Final = 24
# Keys that msgspec takes as the encoded name of a field.
_PLAIN_KEY: Final = re.compile('[^"\\\\\x00-\x1f\ud800-\udfff]*').fullmatch


class Route(NamedTuple):
    """How to reach the end of one path in a decoded document.

    Attributes:
        steps: the struct type expected, and the name of the field to go into, for each step.
        rest: the segments after that, in plain dicts and lists.
    """

    steps: tuple[tuple[type, str], ...]
    rest: tuple[Segment, ...]


class Shape(NamedTuple):
    """A decoder for a set of paths.

    Attributes:
        decode: the decoder; raises as msgspec does.
        partial: it skips parts of the document, and does not check UTF-8 in what it skips.
        routes: for each path in the order given.
    """

    decode: Callable[[bytes], Any]
    partial: bool
    routes: tuple[Route, ...]


class _Tree:
    """The keys that paths visit below one object; `whole`: everything there is needed."""

    __slots__ = ("children", "struct", "whole")

    def __init__(self) -> None:
        self.children: dict[str, _Tree] = {}
        self.whole = False
        self.struct: type[msgspec.Struct] | None = None

    def add(self, path: tuple[Segment, ...], room: int = _MOST_STRUCTS_DEEP) -> None:
        """Note that a path is needed."""
        if not path or room == 0 or path[0].place is not None or not _PLAIN_KEY(path[0].key):
            self.whole = True
            return
        if path[0].key not in self.children and len(self.children) == _MOST_FIELDS:
            self.whole = True
            return
        self.children.setdefault(path[0].key, _Tree()).add(path[1:], room - 1)

    def structs(self) -> int:
        """Count the structs that `build` would generate."""
        return 0 if self.whole else 1 + sum(child.structs() for child in self.children.values())

    def build(self) -> Any:
        """Return the type to decode into."""
        if self.whole:
            return Any
        fields: list[tuple[str, Any, Any]] = []
        for number, child in enumerate(self.children.values()):
            kind = child.build()
            # An absent object is an instance with nothing set, so the path goes on without a special case.
            default = ABSENT if child.struct is None else child.struct()
            fields.append((f"f{number}", kind, default))
        names = {f"f{number}": key for number, key in enumerate(self.children)}
        self.struct = msgspec.defstruct("Partial", fields, rename=names, frozen=True, gc=False)
        return self.struct | list[Any] | str | int | float | bool | None

    def route(self, path: tuple[Segment, ...]) -> Route:
        """Return how a path that was added runs through the structs."""
        tree = self
        steps: list[tuple[type, str]] = []
        while tree.struct is not None:
            key = path[len(steps)].key
            steps.append((tree.struct, f"f{list(tree.children).index(key)}"))
            tree = tree.children[key]
        return Route(tuple(steps), path[len(steps) :])


# Generating structs takes longer than filtering a small page, and a filter that comes as JSON with
# each request is a new object each time: shapes depend on the paths alone, so they are kept.
@lru_cache(maxsize=256)
def shape_for(paths: tuple[tuple[Segment, ...], ...]) -> Shape:
    """Return a decoder for what lies at these paths."""
    tree = _Tree()
    for path in paths:
        tree.add(path)
    if tree.structs() > _MOST_STRUCTS:
        tree.whole = True
    kind = tree.build()
    routes = tuple(tree.route(path) for path in paths)
    return Shape(msgspec.json.Decoder(kind).decode, tree.struct is not None, routes)
