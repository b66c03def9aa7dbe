"""Rule payloads out by their bytes alone.

A payload can match a condition on a string only if that string stands in it, either as the very bytes
of its UTF-8 form in quotes, or with an escape in it. So: these bytes absent and no escape that could
spell the string means no match, whatever the paths say, valid JSON or not. Nothing of the kind is done
for numbers, which have too many spellings (7, 7.0, 70e-1), nor under `$not`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from net_filter_jsonpath.nodes import Condition, Negation, Node
from net_filter_jsonpath.values import strings

__all__ = ["needles_of", "with_precheck"]

# A string with one of these can be spelled otherwise than by \u, or not without an escape at all; a
# surrogate has no UTF-8 form.
_SEVERAL_SPELLINGS: Final = re.compile('["\\\\/\x00-\x1f\ud800-\udfff]').search
_MOST_NEEDLES: Final = 4
_BACKSLASH: Final = 0x5C

# After so many payloads in a row that the bytes did not rule out, the look is given up for a while.
_PATIENCE: Final = 16
_REST: Final = 1000


def needles_of(node: Node) -> frozenset[bytes] | None:
    """Return quoted strings of which a matching payload must hold one, or None if nothing is known.

    A filter that matches nothing at all needs the empty set.
    """
    if isinstance(node, Condition):
        plain = [text for text in strings(node.value) if not _SEVERAL_SPELLINGS(text)]
        return frozenset([f'"{max(plain, key=len)}"'.encode()]) if plain else None
    if isinstance(node, Negation):
        return None
    parts = [needles_of(item) for item in node.items]
    known = [part for part in parts if part is not None]
    if node.operator == "$and" and known:
        return min(known, key=lambda part: (len(part), -min(map(len, part), default=0)))
    if len(known) < len(parts) or node.operator == "$and":
        return frozenset() if not parts else None
    union = frozenset[bytes]().union(*known)
    return union if len(union) <= _MOST_NEEDLES else None


def with_precheck(evaluate: Callable[[bytes], bool], needles: frozenset[bytes]) -> Callable[[bytes], bool]:
    """Put the look at the bytes in front of an evaluator.

    Where nearly every payload passes, looking costs more than it saves; so it watches its own success
    and pauses. That changes the cost, never the answer, also if threads spoil each other's counts.
    """
    if len(needles) > 1:
        return _several(evaluate, tuple(needles))
    (needle,) = needles
    passed = 0
    pause = 0

    def match(raw: bytes) -> bool:
        nonlocal passed, pause
        if pause > 0:
            pause -= 1
            return evaluate(raw)
        # `partition` is the cheapest search that bytes have: `in` raises and catches an error inside,
        # `find` parses its arguments. A number in `in` goes straight to memchr.
        if not raw.partition(needle)[1] and (_BACKSLASH not in raw or not raw.partition(b"\\u")[1]):
            passed = 0
            return False
        passed += 1
        if passed >= _PATIENCE:
            passed, pause = 0, _REST
        return evaluate(raw)

    return match


def _several(evaluate: Callable[[bytes], bool], needles: tuple[bytes, ...]) -> Callable[[bytes], bool]:
    passed = 0
    pause = 0

    def match(raw: bytes) -> bool:
        nonlocal passed, pause
        if pause > 0:
            pause -= 1
            return evaluate(raw)
        for needle in needles:
            if raw.partition(needle)[1]:
                break
        else:
            if _BACKSLASH not in raw or not raw.partition(b"\\u")[1]:
                passed = 0
                return False
        passed += 1
        if passed >= _PATIENCE:
            passed, pause = 0, _REST
        return evaluate(raw)

    return match
