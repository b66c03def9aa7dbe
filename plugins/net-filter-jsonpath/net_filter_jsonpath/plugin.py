"""What netcore finds through the entry point `jsonpath`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from netcore import hookimpl

if TYPE_CHECKING:
    from netcore import EventFilter

__all__ = ["netcore_filters"]


@hookimpl
def netcore_filters() -> list[type[EventFilter]]:
    """Offer the filter language `jsonpath`."""
    from net_filter_jsonpath.language import Filter

    return [Filter]
