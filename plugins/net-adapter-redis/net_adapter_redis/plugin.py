"""What netcore finds through the entry point `redis`."""

from __future__ import annotations

from typing import Any

from net_adapter_redis.adapter import RedisAdapter
from netcore.contracts.adapter import Adapter
from netcore.plugins.spec import hookimpl


@hookimpl
def netcore_adapters() -> list[type[Adapter[Any]]]:
    """Offer the adapter `redis`."""
    return [RedisAdapter]
