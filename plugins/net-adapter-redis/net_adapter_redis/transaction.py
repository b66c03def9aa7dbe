"""Storing a batch with plain XADDs, which cost the server three quarters of those in a script.

    CLIENT REPLY OFF
    MULTI
    EVALSHA <bracket> ... open     if the batch is new: RENAME net:shard:3 net:open:3
    XADD net:open:3 * d <envelope> dedup_id <id>
    ...
    EVALSHA <bracket> ... close    RENAME net:open:3 net:shard:3, advance the mark
    EXEC
    CLIENT REPLY ON
    HGET {net:shard:3}:meta open   what "close" noted

The commands of a transaction cannot depend on each other. But if "open" did not rename, for whatever
reason, the XADDs make a stream of their own, which "close" deletes, and the script that knows every
case is asked instead. Nobody else sees anything in between (a stream to be deleted, if "close" is
not known or not allowed either, until the next call).

Two replies an event would cost both sides more than all else, hence none before the last two. What
"close" noted may have been overwritten by another producer's transaction; then, too, the script is
asked, and finds the batch stored.
"""

from __future__ import annotations

import math
import re
import secrets
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Final

from redis import exceptions as redis_errors

from net_adapter_redis.layout import encode_events
from net_adapter_redis.links import Link
from net_adapter_redis.resp import array, bulk, command
from net_adapter_redis.script import BRACKET, BRACKET_SHA
from net_adapter_redis.session import Session
from netcore import AdapterError, Batch

__all__ = ["Transactions"]

_LEAST: Final = 32
"""Events from which two calls of a script a batch cost less than they spare."""
_TRIES: Final = 3
"""Transactions in a row that stored nothing, after which batches go by the script for a while."""
_REST_S: Final = 60.0
_LEARN_S: Final = 60.0
_WIDEN_S: Final = 1.0
_WIDEN_BYTES: Final = 2 << 20
_WIDEN: Final = command("SCRIPT", "EXISTS", b" " * (192 << 10))
"""Makes Redis read more at a time: some 16 KiB, until an argument was larger than that.

With two or three batches at a time it spends a twentieth to a tenth less. It takes the room away
again when less is sent, hence this every now and then. By itself, and not in a transaction: nothing
answers if a server becomes busy between two reads of one.
"""
_BEGIN: Final = command("CLIENT", "REPLY", "OFF") + command("MULTI")
_END: Final = command("EXEC") + command("CLIENT", "REPLY", "ON")
_FACTS: Final = (("CONFIG", "GET", "aof-load-truncated"), ("INFO", "server"), ("INFO", "persistence"))
_OPEN, _CLOSE, _MEND = bulk(b"open"), bulk(b"close"), bulk(b"mend")
_REPLIES: Final = 2  # once the server is not silent any more
_BESIDE: Final = 7  # commands beside the XADDs


class Transactions:
    """Stores batches of streams that exist, at servers that are no cluster.

    Args:
        session: the adapter's.
        limits: `max_events` and the age in ms, each 0 for none, as arguments in wire format.
        life: milliseconds for which a mark lives, likewise.
    """

    FACTS: ClassVar[bytes] = b"".join(command(*words) for words in _FACTS)
    """Commands whose replies `learn` takes."""

    __slots__ = (
        "_connects", "_failed", "_guard", "_learn_at", "_least", "_life", "_limits", "_possible", "_rest_until",
        "_sent", "_session", "_unwidened", "_usable", "_widen_at",
    )  # fmt: skip

    def __init__(self, session: Session, limits: bytes, life: bytes) -> None:
        self._session = session
        self._limits = limits
        self._life = life
        self._least = _LEAST
        self._possible = session.config.layout == "event" and not session.config.cluster
        self._usable = False
        self._guard = bulk(b"")
        self._connects = 0
        self._learn_at = 0.0
        self._sent = 0
        self._widen_at = 0.0
        self._unwidened = 0
        self._failed = 0
        self._rest_until = 0.0

    def learn(self, replies: Sequence[Any], link: Link) -> None:
        """Use no transactions where half of one could be carried out after a crash, or that is not known.

        A Redis that loads an append-only file whose end is missing (seen with 7.0.15) leaves the
        beginning of the last transaction in the file. What it writes next completes that at the start
        after: the stream would be renamed, and not back. Valkey 9.1 cuts the file off before it.

        Args:
            replies: to the commands `FACTS`, errors for what may not be seen.
            link: where they came from.
        """
        load, *parts = replies
        info = b"\n".join(part for part in parts if isinstance(part, bytes))
        cuts = re.search(rb"^valkey_version:(\d+)\.(\d+)", info, re.MULTILINE)
        safe = load == [b"aof-load-truncated", b"no"] or (
            cuts is not None and (int(cuts[1]), int(cuts[2])) >= (9, 1)
        )
        self._usable = self._possible and (
            safe or re.search(rb"^aof_enabled:0", info, re.MULTILINE) is not None
        )
        self._guard = bulk(b"" if safe else b"unlogged")
        if self._connects != link.connects:
            self._connects = link.connects
            self._sent = 0
            self._widen_at = 0.0
        self._learn_at = time.monotonic() + _LEARN_S

    def suit(self, batch: Batch) -> bool:
        """Tell whether a batch is worth it, and transactions did not fail of late."""
        return self._possible and len(batch) >= self._least and time.monotonic() >= self._rest_until

    async def store(self, batch: Batch, expected: int, incarnation: bytes, link: Link, doing: str) -> bool:
        """Store the whole batch and return True, or return False: ask the script.

        Args:
            batch: it begins at the mark, or behind it.
            expected: the mark that was acknowledged last. If it is another, nothing is stored.
            incarnation: the stream's that was acknowledged last, likewise.
            link: to the stream's server.
            doing: for errors.

        Raises:
            AdapterError: the connection failed; the batch may have been stored.
        """
        session, shard, count = self._session, batch.shard, len(batch)
        if not await self._allowed(link, doing):
            return False
        staging, meta = session.keys.staging(shard), session.keys.meta(shard)
        keys = [session.keys.stream(shard), session.keys.mark(shard, batch.producer), meta, staging]
        run = b"".join((bulk(b"EVALSHA"), bulk(BRACKET_SHA), bulk(b"4"), *map(bulk, keys)))
        token = secrets.token_hex(4).encode()
        first, newest = b"%d" % batch.first_seq, b"%d" % (max(batch.stamps) // 1_000_000)
        last = map(bulk, (token, b"%d" % expected, incarnation))
        rest = b"".join((bulk(first), self._life, bulk(newest), self._limits, *last, self._guard))
        add = b"".join((array(7), *map(bulk, (b"XADD", staging, b"*", b"d"))))
        adds = encode_events(batch, add)
        end = _END + command("HGET", meta, "open")
        begin = (array(17), run, _OPEN, rest)
        data = b"".join((_BEGIN, *begin, *adds, array(17), run, _CLOSE, rest, end))
        await self._widen(link, len(data), doing)
        try:
            replies = await session.ask(link, data, partial(_complete, count + _BESIDE), doing)
        except AdapterError:
            self._count_failure()  # something in between that knows no transactions may swallow them
            raise
        if replies[-1] == b"%b=%d" % (token, count):
            self._failed = 0
            return True
        await self._recover(array(17) + run + _MEND + rest, link, doing)
        return False

    async def _allowed(self, link: Link, doing: str) -> bool:
        """Tell whether the server was found able; look again after a reconnect, and once a minute."""
        if not link.connected or link.connects != self._connects or time.monotonic() >= self._learn_at:
            self._learn_at = time.monotonic() + _LEARN_S  # the other shards' batches need not look too
            try:
                self.learn(await self._session.ask(link, self.FACTS, len(_FACTS), doing), link)
            except BaseException:
                self._learn_at = 0.0
                raise
        return self._usable

    async def _widen(self, link: Link, sending: int, doing: str) -> None:
        """See to it, once in a while, that a server to which much is sent reads much at a time."""
        self._sent += sending
        if self._sent >= _WIDEN_BYTES and time.monotonic() >= self._widen_at and self._unwidened < _TRIES:
            self._sent = 0
            self._widen_at = time.monotonic() + _WIDEN_S
            try:
                [reply] = await self._session.ask(link, _WIDEN, 1, doing)
            except AdapterError:
                self._unwidened += 1  # maybe something in between bears no large argument
                raise
            self._unwidened = 0
            if isinstance(reply, redis_errors.NoPermissionError):
                self._widen_at = math.inf  # each refusal is an entry in the server's log of refusals

    async def _recover(self, mend: bytes, link: Link, doing: str) -> None:
        """See to it that the next transaction finds what it needs; rest if several found nothing."""
        self._count_failure()
        self._learn_at = 0.0  # maybe it begins to keep a log
        scripts = command("SCRIPT", "EXISTS", BRACKET_SHA) + command("SCRIPT", "LOAD", BRACKET)
        there, _, _ = await self._session.ask(link, scripts + mend, 3, doing)
        self._session.counts["script_loads"] += there == [0]

    def _count_failure(self) -> None:
        self._failed += 1
        if self._failed % _TRIES == 0:
            self._rest_until = time.monotonic() + _REST_S


def _complete(commands: int, replies: list[Any]) -> bool:
    """Tell whether these are all replies: two, or one a command if the server was not silenced."""
    return len(replies) == (commands if isinstance(replies[0], Exception) else _REPLIES)
