"""Storing batches: all or nothing, once."""

from __future__ import annotations

import contextlib
import secrets
from typing import Any, Final

import msgspec
from redis import exceptions as redis_errors

from net_adapter_redis.failures import moved_to
from net_adapter_redis.layout import encode_events, encode_packed
from net_adapter_redis.links import Link
from net_adapter_redis.registry import Registry
from net_adapter_redis.resp import array, bulk, command
from net_adapter_redis.script import BRACKET, SCRIPT, SHA
from net_adapter_redis.session import Session
from net_adapter_redis.transaction import Transactions
from netcore import AdapterError, AdapterRefusedError, Batch, FatalAdapterError, TransientAdapterError

__all__ = ["Writer"]

_MAX_PAYLOAD_BYTES: Final = 256 << 20
_AROUND: Final = 256  # what an entry holds beside its payload
_RUN: Final = bulk(b"EVALSHA") + bulk(SHA)
_LOAD_AND_RUN: Final = bulk(b"EVAL") + bulk(SCRIPT)


class _Acknowledged(msgspec.Struct):
    """What the server acknowledged of one shard.

    Attributes:
        next: sequence number expected next.
        since: the first one stored in this incarnation of the stream.
        incarnation: the stream's.
    """

    next: int
    since: int
    incarnation: bytes


class Writer:
    """Runs the script that stores a batch, and notices when the server forgot an earlier one.

    Attributes:
        largest: bytes of the largest payload that the server takes.
    """

    __slots__ = ("_acknowledged", "_registry", "_session", "_settings", "_transactions", "largest")

    def __init__(self, session: Session, registry: Registry) -> None:
        config = session.config
        self._session = session
        self._registry = registry
        self.largest = _MAX_PAYLOAD_BYTES
        self._acknowledged: dict[int, _Acknowledged] = {}
        self._settings = (
            bulk(b"%d" % (config.max_events or 0)) + bulk(b"%d" % int((config.max_age_s or 0) * 1000)),
            bulk(b"%d" % int(config.dedup_ttl_s * 1000)),
            bulk(config.layout.encode()),
        )
        self._transactions = Transactions(session, *self._settings[:2])

    async def load(self) -> None:
        """Hand the scripts to the server, and learn how large a value it takes, and what it does after a crash.

        Raises:
            AdapterError: it can't be had, or refuses.
        """
        link = self._session.network.writer(self._session.keys.registry)
        commands: list[tuple[bytes | str, ...]] = [("SCRIPT", "LOAD", script) for script in (SCRIPT, BRACKET)]
        commands.append(("CONFIG", "GET", "proto-max-bulk-len"))
        data = b"".join(command(*words) for words in commands) + self._transactions.FACTS
        replies = await self._session.ask(link, data, 6, "load the script")
        *loaded, limit = replies[:3]
        self._transactions.learn(replies[3:], link)
        for reply in loaded:
            if isinstance(reply, Exception):
                raise self._session.failure(reply, "load the script", link) from reply
        # A larger one would cost the connection, maybe before the error is read. Not every account
        # may ask; then the usual limit is assumed.
        if isinstance(limit, list) and len(limit) == 2:
            self.largest = min(self.largest, int(limit[1]) - _AROUND)

    async def append(self, batch: Batch) -> None:
        """Store `batch` as the adapter's contract says."""
        whole = len(batch)
        if max(map(len, batch.payloads)) > self.largest:
            await self._refuse_content(batch)
            return
        for _ in range(3):
            reply = await self._run(batch)
            stored, before, _, incarnation = reply
            if stored >= 0:
                break
            # Packed, and its first part is stored already: send the rest. Another attempt of this
            # very batch may complete in between, hence the loop.
            batch = batch.part(int(before) - batch.first_seq)
        else:
            raise TransientAdapterError(f"append to shard {batch.shard}: attempts of one batch overlap")
        self._settle(batch, stored, None if before is None else int(before), incarnation)
        self._session.counts["duplicates"] += whole - stored
        if batch.shard not in self._registry.known or self._session.lone_registry:
            await self._registry.tell(batch.shard)

    async def _run(self, batch: Batch) -> list[Any]:
        """Run the script for the whole batch; return its reply."""
        session, shard = self._session, batch.shard
        key = session.keys.stream(shard)
        doing = f"append to {key.decode()}"
        await session.network.heal()
        last = self._acknowledged.get(shard)
        if last is not None and self._transactions.suit(batch):
            link = session.network.writer(key)
            if await self._transactions.store(batch, last.next, last.incarnation, link, doing):
                return [len(batch), b"%d" % last.next, b"", last.incarnation]
        head, body = self._arguments(batch)
        for again in (False, True):
            link = session.network.writer(key)
            [reply] = await session.ask(link, b"".join((head, _RUN, body)), 1, doing)
            if isinstance(reply, redis_errors.NoScriptError):
                session.counts["script_loads"] += 1
                [reply] = await session.ask(link, b"".join((head, _LOAD_AND_RUN, body)), 1, doing)
            if (where := moved_to(reply)) is not None and not again:
                session.network.moved(*where)
                continue
            if isinstance(reply, Exception):
                raise await self._explain(reply, batch, link, doing) from reply
            return list(reply)
        raise TransientAdapterError(f"{doing}: the slot moved twice")

    def _arguments(self, batch: Batch) -> tuple[bytes, bytes]:
        """Return what stands before and behind the name of the command's script."""
        session, config, shard = self._session, self._session.config, batch.shard
        keys = [
            session.keys.stream(shard),
            session.keys.mark(shard, batch.producer),
            session.keys.meta(shard),
        ]
        if not session.lone_registry:
            keys.append(session.keys.registry)
        if config.layout == "packed":
            entries = [bulk(encode_packed(batch))]
            count = 1
        else:
            entries = encode_events(batch)
            count = 2 * len(batch)
        newest = max(batch.stamps) // 1_000_000
        limits, ttl, layout = self._settings
        head = [bulk(b"%d" % len(keys)), *map(bulk, keys), bulk(b"%d" % batch.first_seq)]
        head += [
            bulk(b"%d" % len(batch)),
            ttl,
            bulk(b"%d" % newest),
            bulk(secrets.token_hex(4).encode()),
        ]
        head += [limits, bulk(b"%d" % shard), layout, *entries]
        return array(2 + 1 + len(keys) + 9 + count), b"".join(head)

    def _settle(self, batch: Batch, stored: int, before: int | None, incarnation: bytes) -> None:
        """Count, and compare with what the server had acknowledged."""
        counts, shard = self._session.counts, batch.shard
        end = batch.first_seq + len(batch)
        counts["batches"] += 1
        counts["events"] += stored
        last = self._acknowledged.get(shard)
        if last is None:
            self._acknowledged[shard] = _Acknowledged(end, batch.first_seq, incarnation)
            return
        if incarnation != last.incarnation:
            counts["resets"] += 1
            self._count_lost(shard, last.next - last.since, "its stream was deleted or replaced")
            last.since, last.incarnation = batch.first_seq, incarnation
        elif before is None:
            counts["forgotten_marks"] += 1
            self._session.logger.warning(
                "shard %d: the server forgot which batches it has (dedup_ttl_s ran out, or it evicts keys); "
                "nothing was lost by it",
                shard,
            )
        elif before < last.next:
            self._count_lost(shard, last.next - before, "it fell back behind what it had acknowledged")
        last.next = max(end, before or 0)

    def _count_lost(self, shard: int, events: int, why: str) -> None:
        self._session.counts["lost_by_backend"] += events
        self._session.logger.error("shard %d: the server lost up to %d stored events: %s", shard, events, why)

    async def _refuse_content(self, batch: Batch) -> None:
        """Raise for a payload that is too large, unless the batch is stored already."""
        session = self._session
        key = session.keys.mark(batch.shard, batch.producer)
        [mark] = await session.ask(
            session.network.writer(key), command("GET", key), 1, f"read {key.decode()}"
        )
        if isinstance(mark, bytes) and batch.first_seq + len(batch) <= int(mark):
            return
        largest = max(map(len, batch.payloads))
        raise FatalAdapterError(
            f"a payload of {largest:,} bytes is too large for Redis: at most {self.largest:,}"
        )

    async def _explain(self, error: Exception, batch: Batch, link: Link, doing: str) -> AdapterError:
        """Sort an error reply; say which key is meant where Redis does not."""
        keys = self._session.keys
        used = [keys.stream(batch.shard), keys.mark(batch.shard, batch.producer), keys.meta(batch.shard)]
        if "WRONGTYPE" in str(error):
            expected = [b"stream", b"string", b"hash"]
            if not self._session.lone_registry:
                used.append(keys.registry)
                expected.append(b"stream")
            with contextlib.suppress(AdapterError):
                types = await self._session.ask(
                    link, b"".join(command("TYPE", key) for key in used), len(used), doing
                )
                for key, kind, wanted in zip(used, types, expected, strict=True):
                    if kind not in (wanted, b"none") and isinstance(kind, bytes):
                        return AdapterRefusedError(
                            f"{doing}: Redis at {link.address} refuses: {key.decode()} is a {kind.decode()}, "
                            f"not a {wanted.decode()}; move that key away, or choose another prefix"
                        )
        failure = self._session.failure(error, doing, link)
        if isinstance(failure, AdapterRefusedError):
            names = ", ".join(key.decode() for key in [*used, keys.registry])
            return AdapterRefusedError(f"{failure} (keys: {names})")
        return failure
