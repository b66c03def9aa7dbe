"""JSON path equality filters: the filter language of netcore.

    from net_filter_jsonpath import Filter, FilterBuilder

    errors = Filter.eq("level", "error") & ~Filter.eq("service.name", "api")
    errors.matches(b'{"level": "error", "service": {"name": "db"}}')     # True

The same classes are `netcore.Filter` and `netcore.FilterBuilder` once this is installed.
"""

from __future__ import annotations

from net_filter_jsonpath.language import Filter, FilterBuilder

__version__ = "0.1.0"

__all__ = ["Filter", "FilterBuilder"]
