"""What the parts of an open adapter share."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from net_adapter_redis.failures import translate
from net_adapter_redis.keys import Keys
from netcore import AdapterClosedError, AdapterError

if TYPE_CHECKING:
    from net_adapter_redis.config import RedisConfig
    from net_adapter_redis.links import Link
    from net_adapter_redis.network import Network

__all__ = ["Session"]


class Session:
    """The settings, connections and counters of one open adapter.

    Attributes:
        config: the adapter's settings.
        keys: names of keys.
        network: connections.
        logger: for messages, rare ones.
        drift_ms: how far clocks may differ.
        counts: what `stats` shows.
        lone_registry: the registry is not in the slot of the streams.
    """

    __slots__ = ("config", "counts", "drift_ms", "keys", "logger", "lone_registry", "network")

    def __init__(
        self, config: RedisConfig, network: Network, logger: logging.Logger, drift_ms: float
    ) -> None:
        self.config = config
        self.keys = Keys(config.prefix)
        self.network = network
        self.logger = logger
        self.drift_ms = drift_ms
        self.counts: Counter[str] = Counter()
        self.lone_registry = config.cluster and not self.keys.one_slot

    async def ask(
        self,
        link: Link,
        data: bytes,
        replies: int | Callable[[list[Any]], bool],
        doing: str,
        *,
        sink: Callable[[Any], Any] | None = None,
    ) -> list[Any]:
        """Send commands over `link`; as `Link.call`, with the adapter's errors.

        Raises:
            AdapterError: the connection failed, or was refused; naming `doing`.
        """
        try:
            return await link.call(data, replies, sink=sink)
        except AdapterClosedError:
            raise
        except Exception as error:
            self.counts["connection_errors"] += 1
            self.network.doubt()
            raise self.failure(error, doing, link) from error

    def failure(self, error: BaseException, doing: str, link: Link) -> AdapterError:
        """Sort one of the driver's errors."""
        return translate(error, doing, link.address)
