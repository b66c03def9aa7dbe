"""Waiting for news: one blocking XREAD over all streams a poll wants, on a connection of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from redis import exceptions as redis_errors

from net_adapter_redis.links import Link
from net_adapter_redis.positions import BEGINNING, Position
from net_adapter_redis.registry import AHEAD, Registry
from net_adapter_redis.resp import command
from net_adapter_redis.session import Session
from netcore import AdapterClosedError, AdapterError, Stream

__all__ = ["Waiter"]

_ROUND_TRIP_S: Final = 0.001
_AFTER_FAILURE_S: Final = 0.1
_CLUSTER_LOOK_S: Final = 0.02


class Waiter:
    """Tells when streams hold something newer than given positions."""

    __slots__ = ("_registry", "_session")

    def __init__(self, session: Session, registry: Registry) -> None:
        self._session = session
        self._registry = registry

    async def wait(self, positions: Mapping[Stream, str | None], timeout: float) -> None:
        """Return when there may be news; at the latest after `timeout` seconds.

        A server that can't be reached is news after 0.1 s: the next read says what is wrong.
        """
        until = asyncio.get_running_loop().time() + timeout
        wanted: dict[int, Position] = {}
        for stream, text in positions.items():
            wanted[stream.shard] = position = BEGINNING if text is None else Position.parse(text)
            if position.left:
                return
        if self._registry.known - wanted.keys():
            return
        try:
            if self._session.lone_registry:
                await self._look_often(wanted, until)
            else:
                await self._block(wanted, until)
        except AdapterClosedError:
            raise
        except (redis_errors.RedisError, AdapterError, OSError):
            left = until - asyncio.get_running_loop().time()
            await asyncio.sleep(max(0.0, min(left, _AFTER_FAILURE_S)))

    async def _block(self, wanted: dict[int, Position], until: float) -> None:
        network, keys = self._session.network, self._session.keys
        link = network.borrow(keys.registry)
        if link is None:  # every connection is waiting for somebody
            await self._look_often(wanted, until)
            return
        try:
            targets = [(keys.registry, self._registry.last)]
            targets += [(keys.stream(shard), position.entry) for shard, position in wanted.items()]
            first = max(self._registry.known | wanted.keys(), default=-1) + 1
            targets += [(keys.stream(shard), b"0-0") for shard in range(first, first + AHEAD)]
            if await self._read_blocking(link, targets, until):
                return
            # One key of a wrong type spoils the whole read: leave it out, reads will report it.
            types = await link.call(b"".join(command("TYPE", key) for key, _ in targets), len(targets))
            sound = [
                target for target, kind in zip(targets, types, strict=True) if kind in (b"stream", b"none")
            ]
            if len(sound) == len(targets) or not await self._read_blocking(link, sound, until):
                raise redis_errors.ResponseError("XREAD is refused")
        finally:
            network.give_back(link)

    async def _read_blocking(self, link: Link, targets: list[tuple[bytes, bytes]], until: float) -> bool:
        """Return False where a key is of the wrong type."""
        left = until - asyncio.get_running_loop().time()
        if left <= 0:
            return True
        names, ids = [key for key, _ in targets], [entry for _, entry in targets]
        block = int((left - _ROUND_TRIP_S) * 1000)
        blocking: tuple[Any, ...] = ("BLOCK", block) if block > 0 else ()
        data = command("XREAD", "COUNT", 1, *blocking, "STREAMS", *names, *ids)
        try:
            [reply] = await link.call(data, timeout=left, patient=True)
        except redis_errors.TimeoutError:
            return True
        if isinstance(reply, Exception):
            if "WRONGTYPE" in str(reply):
                return False
            raise reply
        return True

    async def _look_often(self, wanted: dict[int, Position], until: float) -> None:
        """Look every 20 ms: a cluster can't block on streams of several slots at once."""
        session, loop = self._session, asyncio.get_running_loop()
        by_link: dict[int, tuple[Link, list[bytes]]] = {}
        for shard, position in wanted.items():
            key = session.keys.stream(shard)
            link = session.network.reader(key)
            look = command("XREAD", "COUNT", 1, "STREAMS", key, position.entry)
            by_link.setdefault(id(link), (link, []))[1].append(look)
        while (left := until - loop.time()) > 0:
            for link, looks in by_link.values():
                replies = await session.ask(link, b"".join(looks), len(looks), "wait for news")
                if any(reply is not None for reply in replies):
                    return
            await self._registry.refresh()
            if self._registry.known - wanted.keys():
                return
            await asyncio.sleep(min(left, _CLUSTER_LOOK_S))
