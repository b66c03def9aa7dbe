"""The connections to a server, or to the members of a cluster: which one serves which key."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable
from typing import Any, Final

from redis import exceptions as redis_errors
from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
    parse_url,
)
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from net_adapter_redis.config import RedisConfig
from net_adapter_redis.links import Link
from net_adapter_redis.resp import command
from netcore import ConfigError, mask_credentials

__all__ = ["Network"]

_WRITE, _READ = "write", "read"
_READ_SIZE: Final = 1 << 18
_HEAL_S: Final = 1.0


class Network:
    """Links by key: one for writes and one for reads a server, and a few for polls that wait.

    Reads have a link of their own so that no poll stands behind four megabytes of appends.

    Args:
        config: the adapter's.
        timeout: seconds for connecting and each call.
        logger: for moved slots.
    """

    def __init__(self, config: RedisConfig, *, timeout: float, logger: logging.Logger) -> None:
        self._timeout = timeout
        self._logger = logger
        self._cluster = config.cluster
        self._kind, self._settings = _settings(config, timeout)
        self._seed = _place(self._settings)
        self._links: dict[tuple[object, str], Link] = {}
        self._owners: list[tuple[str, int] | None] = []
        self._doubtful = False
        self._heal_at = 0.0
        self._spare = config.pool_size - 2
        self._waiting: set[Link] = set()
        self._resting: list[Link] = []

    @property
    def address(self) -> str:
        """The place that the url names, without credentials."""
        return self._seed

    @property
    def connects(self) -> int:
        """How often a link was connected."""
        return sum(link.connects for link in [*self._links.values(), *self._waiting, *self._resting])

    def writer(self, key: bytes) -> Link:
        """Return the link for commands that change `key`."""
        return self._link(self._owner(key), _WRITE)

    def reader(self, key: bytes) -> Link:
        """Return the link for commands that read `key`."""
        return self._link(self._owner(key), _READ)

    def borrow(self, key: bytes) -> Link | None:
        """Return a link of one's own to the server of `key`, or None: all are taken."""
        if self._resting:
            link = self._resting.pop()
            self._waiting.add(link)
            return link
        if len(self._waiting) >= self._spare:
            return None
        link = self._make(self._owner(key))
        self._waiting.add(link)
        return link

    def give_back(self, link: Link) -> None:
        """End the loan. A link on which a command is still under way is given up."""
        self._waiting.discard(link)
        if not link.idle:
            link.drop()
        self._resting.append(link)

    def doubt(self) -> None:
        """Note that a member could not be reached: another one may have taken over its slots."""
        self._doubtful = self._cluster

    async def heal(self) -> None:
        """Learn the slots again if a member could not be reached, at most once a second."""
        now = time.monotonic()
        if self._doubtful and now >= self._heal_at:
            self._heal_at = now + _HEAL_S
            with contextlib.suppress(redis_errors.RedisError, OSError):
                await self.learn_slots()
                self._doubtful = False

    async def learn_slots(self) -> None:
        """Ask the cluster which member serves which slots; nothing to do without a cluster.

        Raises:
            redis.exceptions.RedisError: nobody could be asked.
        """
        if not self._cluster:
            return
        asked = [None, *dict.fromkeys(owner for owner in self._owners if owner)]
        failure: Exception | None = None
        for place in asked:
            try:
                [reply] = await self._link(place, _READ).call(command("CLUSTER", "SLOTS"))
                if isinstance(reply, Exception):
                    raise reply
                self._take_slots(reply, place)
            except (redis_errors.RedisError, OSError) as error:
                failure = error
                continue
            return
        assert failure is not None
        raise failure

    def moved(self, slot: int, host: str, port: int) -> None:
        """Take in the answer of a member that no longer serves a slot."""
        if self._cluster and self._owners:
            self._logger.info("slot %d moved to %s:%d", slot, host, port)
            self._owners[slot] = (host or self._settings["host"], port)

    async def close(self) -> None:
        """Close all links."""
        links = [*self._links.values(), *self._waiting, *self._resting]
        await asyncio.gather(*(link.close() for link in links))

    def _take_slots(self, reply: Iterable[Any], asked: tuple[str, int] | None) -> None:
        owners: list[tuple[str, int] | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        here = asked[0] if asked else self._settings["host"]
        for low, high, member, *_ in reply:
            host = member[0].decode() if member[0] else here
            owners[low : high + 1] = [(host, int(member[1]))] * (high + 1 - low)
        self._owners = owners

    def _owner(self, key: bytes) -> tuple[str, int] | None:
        return self._owners[key_slot(key)] if self._owners else None

    def _link(self, place: tuple[str, int] | None, role: str) -> Link:
        link = self._links.get((place, role))
        if link is None:
            link = self._links[place, role] = self._make(place)
        return link

    def _make(self, place: tuple[str, int] | None) -> Link:
        settings = dict(self._settings)
        if place is not None:
            settings["host"], settings["port"] = place
        return Link(lambda: self._kind(**settings), address=_place(settings), timeout=self._timeout)


def _settings(config: RedisConfig, timeout: float) -> tuple[type[AbstractConnection], dict[str, Any]]:
    """Return the class of connection and its keyword arguments."""
    settings: dict[str, Any] = {"host": "localhost", "port": 6379}
    try:
        settings |= dict(parse_url(config.url))
        if "ssl_min_version" in settings:  # redis-py before 8.1 leaves it text
            settings["ssl_min_version"] = int(settings["ssl_min_version"])
    except ValueError as error:
        raise ConfigError(f"url {mask_credentials(config.url)!r} cannot be used: {error}") from error
    kind = settings.pop("connection_class", Connection)
    if issubclass(kind, UnixDomainSocketConnection):
        del settings["host"], settings["port"]
    settings |= config.tls_options()
    for name in ("username", "password"):
        if (value := getattr(config, name)) is not None:
            settings[name] = value
    settings |= {
        "db": config.database(),
        "protocol": 2,
        # A command whose reply was lost must not be sent again by the driver: it can't know whether
        # that repeats it. The dispatcher retries, and the script recognises a repeat.
        "retry": Retry(NoBackoff(), 0),
        "socket_connect_timeout": timeout,
        "socket_timeout": None,  # replies are awaited with deadlines of the calls' own
        "socket_read_size": _READ_SIZE,
    }
    if issubclass(kind, SSLConnection):
        _check_tls(settings)
    return kind, settings


def _check_tls(settings: dict[str, Any]) -> None:
    """Load the certificates now, so that a wrong path is a wrong setting and not an outage."""
    try:
        probe = SSLConnection(**settings)
        probe.ssl_context.get()
    except (OSError, TypeError, ValueError, redis_errors.RedisError) as error:
        raise ConfigError(f"the ssl_* settings cannot be used: {error}") from error


def _place(settings: dict[str, Any]) -> str:
    return str(settings["path"]) if "path" in settings else f"{settings['host']}:{settings['port']}"
