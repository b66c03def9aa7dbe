"""The extension: a path that begins with `$` is an RFC 9535 JSONPath query.

This is the door to it: the library behind (extra `rfc9535`) is imported by the first such path.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final

from net_filter_jsonpath.values import excerpt
from netcore import FilterError

__all__ = ["Query", "compile_query"]

_MOST_CHARACTERS: Final = 1024

# From the wanted value to a test of decoded documents.
Query = Callable[[Any], Callable[[Any], bool]]


@functools.lru_cache(maxsize=256)
def compile_query(path: str) -> Query:
    """Compile a query.

    Raises:
        FilterError: the extra is not installed, the query is malformed, or it could cost too much.
    """
    try:
        from net_filter_jsonpath.queries import build_query
    except ImportError as error:
        raise FilterError(
            f"path {excerpt(path)} is an RFC 9535 JSONPath, which needs an extra: "
            "pip install 'net-filter-jsonpath[rfc9535]'"
        ) from error
    if len(path) > _MOST_CHARACTERS:
        raise FilterError(
            f"JSONPath of {len(path):,} characters, at most {_MOST_CHARACTERS:,}: {excerpt(path)}"
        )
    try:
        return build_query(path)
    except (ValueError, RecursionError) as error:
        raise FilterError(f"JSONPath {excerpt(path)} is refused: {error}") from error
