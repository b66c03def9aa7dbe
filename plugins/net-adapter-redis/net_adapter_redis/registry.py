"""Which shards have streams: a registry that writers keep, and a look at the likely names.

The registry is a stream, so that a poll that waits hears of a new shard at once. Streams that
others made are not in it: ids below 1,024 are tried out instead, in one command; no SCAN.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from net_adapter_redis.keys import PROBED
from net_adapter_redis.positions import entry_id
from net_adapter_redis.resp import command
from net_adapter_redis.session import Session
from netcore import AdapterError

if TYPE_CHECKING:
    from net_adapter_redis.density import Density

__all__ = ["AHEAD", "Look", "Registry"]

AHEAD: Final = 16
"""Ids behind the highest known one that are looked at every time."""
_SWEEP_S: Final = 1.0
_MAX_SHARD: Final = 65_535


class Look:
    """One look at the registry and at likely names, in the round trip of reads.

    Attributes:
        commands: to send behind the reads.
        replies: how many there will be.
    """

    __slots__ = ("_ids", "_registry", "_seen", "commands", "replies")

    def __init__(self, registry: Registry, ids: list[int], commands: bytes, seen: Sequence[Density]) -> None:
        self._registry = registry
        self._ids = ids
        self._seen = seen
        self.commands = commands
        self.replies = 2

    def accept(self, replies: list[Any]) -> None:
        """Take in the replies.

        Raises:
            AdapterError: the server refused.
        """
        [entries, found] = replies
        certain = self._registry.accept(entries, found, self._ids)
        for density in self._seen:
            density.listed = True if certain else None
        if not certain:
            self._registry.unsure += self._seen


class Registry:
    """The shards known so far.

    Args:
        session: the open adapter's.

    Attributes:
        known: their ids; only grows.
        last: id of the registry's newest entry that was read.
        found: ids of which some exist, to be tried out one by one.
        unsure: what was read before that was known.
    """

    __slots__ = ("_named", "_session", "_swept", "_told", "found", "known", "last", "unsure")

    def __init__(self, session: Session) -> None:
        self._session = session
        self._swept = -_SWEEP_S
        self._told: set[int] = set()
        self._named: tuple[list[int], bytes] = ([], b"")  # the names tried out last, as a command
        self.known: set[int] = set()
        self.last = b"0-0"
        self.found: set[int] = set()
        self.unsure: list[Density] = []

    async def refresh(self) -> None:
        """Learn of shards that came to be; one round trip, two if there are some.

        All ids below 1,024 are tried out once a second at most, those near the known ones always.

        Raises:
            AdapterError: the server can't be asked.
        """
        session = self._session
        link = session.network.reader(session.keys.registry)
        if session.config.cluster:
            ids = self.unknown()
            data = command("XRANGE", session.keys.registry, self.last, "+")
            [entries] = await session.ask(link, data, 1, self.doing)
            self.accept(entries, 0, ())
            await self._probe(ids, self.doing)
            return
        look = self.look()
        look.accept(await session.ask(link, look.commands, look.replies, self.doing))
        await self.complete()

    def look(self, seen: Sequence[Density] = ()) -> Look:
        """Return what asks one server for new shards, to go out behind reads.

        Args:
            seen: what those reads are for: once the answer is here, every stream that there was
                when they were made is known.
        """
        ids = self.unknown()
        keys = self._session.keys
        if self._named[0] != ids:
            self._named = (ids, command("EXISTS", *map(keys.stream, ids)))
        return Look(self, ids, command("XRANGE", keys.registry, self.last, "+") + self._named[1], seen)

    async def complete(self) -> None:
        """Find out which of the names tried out it was that exist.

        Raises:
            AdapterError: the server can't be asked.
        """
        if self.found:
            found, self.found = self.found, set()
            unsure, self.unsure = self.unsure, []
            try:
                await self._probe(sorted(found), self.doing)
            except BaseException:
                self.found |= found
                raise
            for density in unsure:
                if density.listed is None and density not in self.unsure:  # nothing newer was read
                    density.listed = True

    def accept(self, entries: Any, found: Any, ids: Iterable[int]) -> bool:
        """Take in the answer to a `look`; tell whether it says all.

        Raises:
            AdapterError: the server refused.
        """
        for reply in (entries, found):
            if isinstance(reply, Exception):
                link = self._session.network.reader(self._session.keys.registry)
                raise self._session.failure(reply, self.doing, link) from reply
        for entry, fields in entries:
            self._take(entry, fields)
        if found:
            self.found.update(ids)
        return not self.found

    @property
    def doing(self) -> str:
        """What errors name."""
        return f"list the streams of {self._session.keys.registry.decode()}"

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
