"""Waiting for something new: woken by a message, costing nothing meanwhile.

A core subscription on the subjects hears each message as it is published, which is before it is stored,
so a ring is followed by looking until the stream has moved. The subscription ends itself with the first
message, so that waiting never carries the traffic a second time. Where the account may not
subscribe, and as a watch on everything else that can go wrong, the streams' state is looked at now and then.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any, Final

from net_adapter_jetstream import positions
from net_adapter_jetstream.link import Link
from net_adapter_jetstream.positions import BEGINNING, Position
from net_adapter_jetstream.replies import Reply
from net_adapter_jetstream.streams import Streams, answer_of
from netcore import AdapterClosedError, AdapterError, Stream

__all__ = ["Bell"]

_WATCH_S: Final = (0.005, 0.02, 0.1, 0.5, 2.0, 2.0)
_FIRST_LOOK_S: Final = 0.0005
_LONGEST_LOOK_S: Final = 0.02
_LOOKING_S: Final = 0.25


class Bell:
    """Waits for news of all streams.

    Args:
        link: the connection.
        streams: the streams.
    """

    def __init__(self, link: Link, streams: Streams) -> None:
        self._link = link
        self._streams = streams

    async def wait(self, wanted: Mapping[Stream, str | None], timeout: float) -> None:
        """Return when something newer than `wanted` may exist; see `netcore.Adapter.wait`."""
        known = {s.shard: positions.parse(p) if p is not None else BEGINNING for s, p in wanted.items()}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while not await self._once(known):
                    pass

    async def _once(self, known: dict[int, Position]) -> bool:
        """Wait for one ring, or for a while; True: there may be news."""
        epoch = self._link.epoch
        try:
            rung, subscription = await self._link.subscribe_once(self._streams.subject("*"))
        except AdapterClosedError:
            raise
        except AdapterError:
            await self._link.reconnected()
            return False
        try:
            # The first look comes after the subscription, on the same connection. The further ones are
            # for what was published before it and is stored only now.
            for pause in _WATCH_S:
                if await self._news(known) or epoch != self._link.epoch:
                    return True
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._link.lost_or(rung)
                        break
            if not rung.done():
                return False
        finally:
            await self._end(rung, subscription)
        return await self._look(known)

    async def _look(self, known: dict[int, Position]) -> bool:
        """Look until the message that was published is stored, for a moment; True: it is."""
        loop = asyncio.get_running_loop()
        until, pause = loop.time() + _LOOKING_S, _FIRST_LOOK_S
        while not await self._news(known):
            if loop.time() > until:
                return False
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_LOOK_S)
        return True

    async def _news(self, known: dict[int, Position]) -> bool:
        """Ask whether any stream has moved, or is new."""
        subject, body = self._streams.names_request()
        names = Reply(subject)
        infos = {shard: self._streams.info_request(shard) for shard in known}
        try:
            await self._link.exchange([(names, subject, body), *infos.values()])
            answer = answer_of(names)
            if set(self._streams.shards_in(answer)) - known.keys():
                return True
            if len(answer.names) < answer.total and set(await self._streams.shards()) - known.keys():
                return True
            for shard, (reply, _, _) in infos.items():
                info, position = self._streams.info_of(reply), known[shard]
                if info is None:
                    continue
                if position.place is not None or (position.seq, position.born) != (info.last, info.born):
                    empty = position is BEGINNING and info.first > info.last
                    if not empty:
                        return True
        except AdapterClosedError:
            raise
        except AdapterError:
            # Not to be told apart from news: the poll that follows says what is wrong.
            return True
        return False

    async def _end(self, rung: asyncio.Future[Any], subscription: Any) -> None:
        """End a subscription that did not ring."""
        if rung.done():
            return
        rung.cancel()
        # The connection may be gone, and its subscriptions with it.
        with contextlib.suppress(Exception):
            await subscription.unsubscribe()
