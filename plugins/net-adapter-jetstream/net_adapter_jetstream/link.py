"""Asking over the connection: requests, pages and batches, each with a deadline."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Final

from nats.aio.client import Client

from net_adapter_jetstream import frames
from net_adapter_jetstream.client import FastClient
from net_adapter_jetstream.connection import Connection
from net_adapter_jetstream.replies import Reply, Waiter
from netcore import TransientAdapterError

__all__ = ["Link"]

_MOST_UNSENT: Final = 64 << 20


class Link(Connection):
    """A connection over which one asks. All calls raise `TransientAdapterError` while it is down."""

    _tokens = itertools.count(1)

    @property
    def largest(self) -> int:
        """The largest payload that fits a message of the connected server, bytes."""
        return max(0, self.max_payload - frames.ROOM)

    async def ask(self, subject: str, body: bytes = b"") -> Reply:
        """Send a request and return its one reply.

        Raises:
            TransientAdapterError: no connection, no responder, or no reply in time.
        """
        reply = Reply(subject)
        await self.exchange([(reply, subject, body)])
        return reply

    async def exchange(self, requests: Sequence[tuple[Waiter, str, bytes]]) -> None:
        """Send several requests at once and wait until each has its answer.

        A failed one has it in its `error`; this raises nothing for it, unless there is no
        connection at all.
        """
        with self._awaiting([waiter for waiter, _, _ in requests]) as replies:
            await self._post([(s, r, b) for (_, s, b), r in zip(requests, replies, strict=True)])
            await self._settle([waiter for waiter, _, _ in requests])

    async def ship(self, shipment: frames.Shipment) -> Reply:
        """Send a batch and return the reply to its last message.

        Raises:
            TransientAdapterError: no connection, no responder, or no reply in time: the batch may
                or may not be stored.
        """
        reply = Reply(shipment.subject)
        with self._awaiting([reply]) as (inbox,):
            client = self._usable_client()
            if isinstance(client, FastClient):
                await client.send(frames.render(shipment, inbox))
            else:
                last = len(shipment.bodies) - 1
                for place, body in enumerate(shipment.bodies):
                    to = inbox if place == last else ""
                    await client.publish(shipment.subject, body, to, frames.headers(shipment, place))
            await self._settle([reply])
        return reply

    async def subscribe_once(self, subject: str) -> tuple[asyncio.Future[Any], Any]:
        """Subscribe for one message; return its future and the subscription (`unsubscribe` it)."""
        client = self._usable_client()
        rung: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        subscription = await client.subscribe(subject, future=rung, max_msgs=1)
        await subscription.unsubscribe(limit=1)
        return rung, subscription

    @contextlib.contextmanager
    def _awaiting(self, waiters: Sequence[Waiter]) -> Iterator[list[str]]:
        self._usable_client()
        tokens = [b"%d" % next(self._tokens) for _ in waiters]
        self._sinks.update(zip(tokens, waiters, strict=True))
        try:
            yield [f"{self._inbox}.{token.decode()}" for token in tokens]
        finally:
            for token in tokens:
                self._sinks.pop(token, None)

    async def _settle(self, waiters: Sequence[Waiter]) -> None:
        try:
            async with asyncio.timeout(self.timeout):
                for waiter in waiters:
                    await waiter.done.wait()
        except TimeoutError:
            for waiter in waiters:
                if not waiter.done.is_set():
                    text = f"{waiter.subject}: no reply within {self.timeout:g} s"
                    waiter.fail(TransientAdapterError(text))

    async def _post(self, messages: Sequence[tuple[str, str, bytes]]) -> None:
        client = self._usable_client()
        if isinstance(client, FastClient):
            await client.send(
                b"".join(
                    b"PUB %b %b %d\r\n%b\r\n" % (s.encode(), r.encode(), len(b), b) for s, r, b in messages
                )
            )
            return
        for subject, reply, body in messages:
            await client.publish(subject, body, reply)

    def _usable_client(self) -> Client:
        client = self._client
        if not self.up or client is None:
            raise self._trouble()
        if client.pending_data_size > _MOST_UNSENT:
            raise TransientAdapterError("the NATS server does not read what it is sent")
        return client
