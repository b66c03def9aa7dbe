"""What netcore finds through the entry point `redis`."""

from __future__ import annotations

from typing import Any

from net_adapter_redis.adapter import RedisAdapter
from netcore import Adapter, hookimpl


@hookimpl
def netcore_adapters() -> list[type[Adapter[Any]]]:
    """Offer the adapter `redis`."""
    return [RedisAdapter]
