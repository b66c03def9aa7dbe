"""Redis Streams adapter for netcore: exactly once into the stream, at the speed of the server.

    from net_adapter_redis import RedisConfig

    EventBusConfig(adapter=RedisConfig(url="redis://127.0.0.1:6379/0"))

Runs on asyncio, with `redis` and `hiredis`; those are imported when an adapter is opened.
"""

from __future__ import annotations

from net_adapter_redis.adapter import RedisAdapter
from net_adapter_redis.config import RedisConfig
from net_adapter_redis.dedup import RedisStreamDedup

__all__ = ["RedisAdapter", "RedisConfig", "RedisStreamDedup"]
