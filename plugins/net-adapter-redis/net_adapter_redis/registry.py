"""Which shards have streams: a registry that writers keep, and a look at the likely names.

The registry is a stream, so that a poll that waits hears of a new shard at once. Streams that
others made are not in it: ids below 1,024 are tried out instead, in one command; no SCAN.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable
from typing import Final

from net_adapter_redis.keys import PROBED
from net_adapter_redis.positions import entry_id
from net_adapter_redis.resp import command
from net_adapter_redis.session import Session
from netcore import AdapterError

__all__ = ["AHEAD", "Registry"]

AHEAD: Final = 16
"""Ids behind the highest known one that are looked at every time."""
_SWEEP_S: Final = 1.0
_MAX_SHARD: Final = 65_535


class Registry:
    """The shards known so far.

    Args:
        session: the open adapter's.

    Attributes:
        known: their ids; only grows.
        last: id of the registry's newest entry that was read.
    """

    __slots__ = ("_session", "_swept", "_told", "known", "last")

    def __init__(self, session: Session) -> None:
        self._session = session
        self._swept = -_SWEEP_S
        self._told: set[int] = set()
        self.known: set[int] = set()
        self.last = b"0-0"

    async def refresh(self) -> None:
        """Learn of shards that came to be; one round trip, two if there are some.

        All ids below 1,024 are tried out once a second at most, those near the known ones always.

        Raises:
            AdapterError: the server can't be asked.
        """
        session = self._session
        ids = self.unknown()
        data = command("XRANGE", session.keys.registry, self.last, "+")
        link = session.network.reader(session.keys.registry)
        doing = f"list the streams of {session.keys.registry.decode()}"
        if session.config.cluster:
            [entries] = await session.ask(link, data, 1, doing)
            await self._probe(ids, doing)
        else:
            data += command("EXISTS", *map(session.keys.stream, ids))
            entries, found = await session.ask(link, data, 2, doing)
            if isinstance(found, Exception):
                raise session.failure(found, doing, link) from found
            if found:
                await self._probe(ids, doing)
        if isinstance(entries, Exception):
            raise session.failure(entries, doing, link) from entries
        for entry, fields in entries:
            self._take(entry, fields)

    def unknown(self) -> list[int]:
        """Return the ids to try out now."""
        now = time.monotonic()
        end = max(self.known, default=-1) + 1 + AHEAD
        if now - self._swept >= _SWEEP_S:
            self._swept, end = now, max(end, PROBED)
        return [shard for shard in range(min(end, _MAX_SHARD + 1)) if shard not in self.known] or [end]

    async def tell(self, shard: int) -> None:
        """Enter a shard that was just written, where the script could not."""
        self.known.add(shard)
        if not self._session.lone_registry or shard in self._told:
            return
        keys, link = self._session.keys, self._session.network.writer(self._session.keys.registry)
        doing = f"enter shard {shard} into {keys.registry.decode()}"
        with contextlib.suppress(AdapterError):  # it is also found by its name
            [entries] = await self._session.ask(link, command("XRANGE", keys.registry, "-", "+"), 1, doing)
            if isinstance(entries, list) and all(fields[1] != b"%d" % shard for _, fields in entries):
                data = command("XADD", keys.registry, "MAXLEN", "~", 100_000, "*", "shard", shard)
                await self._session.ask(link, data, 1, doing)
            self._told.add(shard)

    def _take(self, entry: bytes, fields: list[bytes]) -> None:
        if entry_id(entry) > entry_id(self.last):
            self.last = entry
        if len(fields) >= 2 and fields[1].isdigit() and int(fields[1]) <= _MAX_SHARD:
            self.known.add(int(fields[1]))

    async def _probe(self, ids: Iterable[int], doing: str) -> None:
        session = self._session
        by_link: dict[object, list[int]] = {}
        links = {}
        for shard in ids:
            link = session.network.reader(session.keys.stream(shard))
            links[id(link)] = link
            by_link.setdefault(id(link), []).append(shard)

        async def look(which: object, shards: list[int]) -> None:
            link = links[which]  # type: ignore[index]
            data = b"".join(command("EXISTS", session.keys.stream(shard)) for shard in shards)
            found = await session.ask(link, data, len(shards), doing)
            self.known.update(shard for shard, there in zip(shards, found, strict=True) if there == 1)

        await asyncio.gather(*(look(which, shards) for which, shards in by_link.items()))
