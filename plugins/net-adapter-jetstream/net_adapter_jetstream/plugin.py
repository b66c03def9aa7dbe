"""What netcore finds through the entry point `jetstream`."""

from __future__ import annotations

from typing import Any

from netcore import Adapter, hookimpl

__all__ = ["netcore_adapters"]


@hookimpl
def netcore_adapters() -> list[type[Adapter[Any]]]:
    """Offer the adapter; its client library loads when it is opened."""
    from net_adapter_jetstream.adapter import JetStreamAdapter

    return [JetStreamAdapter]
