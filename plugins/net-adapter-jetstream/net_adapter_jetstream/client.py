"""nats-py's client, with a shorter way for the replies to our own inbox and for ready frames.

Parsing one reply costs the stock client 3 to 13 µs and a trip through a task; a page has thousands.
Here a run of replies to one request is cut out of the received bytes in a loop. It rests on names
that nats-py keeps private, all of them in this module: `usable` tells whether they are there, and
`link` goes on with the public client where they are not.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Callable
from typing import Any, Final, Protocol

import nats.errors
from nats.aio.client import Client
from nats.protocol import parser as protocol

__all__ = ["FastClient", "Sink", "abandon", "usable"]

_CRLF: Final = b"\r\n"
_LARGE: Final = 65_536
"""A message above this is left to the stock parser, whose buffer grows without being copied."""
_CLOSE_S: Final = 1.0
_TASKS: Final = ("_reading_task", "_ping_interval_task", "_flusher_task", "_reconnection_task")
_PRIVATE: Final = (
    "_send_command",
    "_flush_pending",
    "_process_msg",
    "_process_op_err",
    "_close",
    "_process_info",
)


class Sink(Protocol):
    """Whoever waits for the replies to one request."""

    def plain(self, body: bytes) -> None:
        """Take a message without headers."""

    def headed(self, head: bytes, body: bytes) -> None:
        """Take a message with its raw header block."""


def usable() -> bool:
    """Tell whether the installed nats-py has the private parts that `FastClient` rests on."""
    made = Client()
    parts = (getattr(Client, name, None) for name in _PRIVATE)
    arguments = list(inspect.signature(Client._process_msg).parameters)
    return (
        all(inspect.iscoroutinefunction(part) for part in parts)
        and arguments == ["self", "sid", "subject", "reply", "data", "headers"]
        and isinstance(getattr(made, "_ps", None), protocol.Parser)
        and all(hasattr(made._ps, name) for name in ("buf", "state", "needed", "header_needed"))
        and hasattr(made, "_flush_queue")
        and hasattr(made, "_pending")
    )


class FastClient(Client):
    """A client that hands the replies to its inbox straight to their sinks.

    Args:
        lost: called, at once and maybe more than once, when the connection is gone.
    """

    def __init__(self, lost: Callable[[Exception | None], None]) -> None:
        super().__init__()
        self.sinks: dict[bytes, Sink] = {}
        self.inbox_sid = 0
        self.inbox = b""
        self._lost = lost
        self._ps = _Parser(self)

    async def open_inbox(self, prefix: str) -> None:
        """Subscribe to `{prefix}.*`; the last token names the sink."""
        self.inbox = prefix.encode() + b"."
        subscription = await self.subscribe(f"{prefix}.*", cb=_ignore)
        self.inbox_sid = subscription._id

    async def send(self, blob: bytes) -> None:
        """Queue ready frames and have them flushed; never suspends."""
        await self._send_command(blob)
        if self._flush_queue is not None and self._flush_queue.empty():
            await self._flush_pending()

    def deliver(self, token: bytes, head: bytes | None, body: bytes) -> None:
        """Hand one reply to its sink, if that still waits."""
        sink = self.sinks.get(token)
        if sink is None:
            return
        if head:
            sink.headed(head, body)
        else:
            sink.plain(body)

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        if sid == self.inbox_sid:
            self.deliver(bytes(subject)[len(self.inbox) :], headers, data)
        else:
            await super()._process_msg(sid, subject, reply, data, headers)

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        server = self._current_server
        if (
            initial_connection
            and server is not None
            and ("tls" in self.options or server.uri.scheme == "tls")
        ):
            # The stock client would go on in plain text, credentials included.
            if info.get("tls_available"):
                info["tls_required"] = True
            if not info.get("tls_required"):
                raise nats.errors.SecureConnWantedError
        await super()._process_info(info, initial_connection)

    async def _process_op_err(self, e: Exception) -> None:
        self._lost(e)
        await super()._process_op_err(e)

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        self._lost(self._err)
        await super()._close(status, do_cbs)


async def abandon(client: Client) -> None:
    """Tear a client down without waiting for its peer: nothing is flushed, no task or socket left.

    Its own `close` would wait for a peer that does not read, so the socket goes first.
    """
    client._pending, client._pending_data_size = [], 0
    transport = getattr(client, "_transport", None)
    for name in ("_io_writer", "_bare_io_writer"):
        writer = getattr(transport, name, None)
        if writer is not None:
            writer.transport.abort()
    tasks = [getattr(client, name, None) for name in _TASKS]
    tasks += [
        getattr(one, "_wait_for_msgs_task", None) for one in list(getattr(client, "_subs", {}).values())
    ]
    with contextlib.suppress(Exception):
        async with asyncio.timeout(_CLOSE_S):
            await client.close()
    alive = [task for task in tasks if task is not None and not task.done()]
    for task in alive:
        task.cancel()
    if alive:
        await asyncio.wait(alive, timeout=_CLOSE_S)


async def _ignore(msg: object) -> None:
    """Take what `FastClient` did not deliver: nothing."""


class _Parser(protocol.Parser):
    """Cuts replies to our inbox out of the received bytes; leaves the rest to the stock parser.

    Invariant: between two calls the stock parser's buffer is empty, unless it holds part of one
    message's payload; what else is incomplete waits in `_rest`.
    """

    def __init__(self, client: FastClient) -> None:
        self._rest = b""
        super().__init__(client)
        self._client = client

    def reset(self) -> None:
        super().reset()
        self._rest = b""

    async def parse(self, data: bytes = b"") -> None:
        if self.state == protocol.AWAITING_MSG_PAYLOAD:
            cut = self.needed + len(_CRLF) - len(self.buf)
            await super().parse(data[:cut])
            data = data[cut:]
        if self._rest:
            data, self._rest = self._rest + data, b""
        pos, end = 0, len(data)
        while pos < end:
            pos = self._take(data, pos)
            eol = data.find(_CRLF, pos)
            if eol < 0 or (self._ours(data, pos) and not self._large(data[pos:eol])):
                self._rest = data[pos:]
                return
            await super().parse(data[pos : eol + 2])
            pos = eol + 2
            if self.state == protocol.AWAITING_MSG_PAYLOAD:
                cut = pos + self.needed + len(_CRLF)
                await super().parse(data[pos:cut])
                pos = cut

    def _ours(self, data: bytes, pos: int) -> bool:
        inbox = self._client.inbox
        return bool(inbox) and (data.startswith(inbox, pos + 4) or data.startswith(inbox, pos + 5))

    @staticmethod
    def _large(line: bytes) -> bool:
        words = line.split()
        # With a reply subject it is none of the replies that `_take` knows.
        return len(words) != (4 if line.startswith(b"MSG") else 5) or int(words[-1]) > _LARGE

    def _take(self, data: bytes, pos: int) -> int:
        """Deliver the complete replies that stand at `pos`; return where they end."""
        while self._ours(data, pos):
            eol = data.find(_CRLF, pos)
            words = data[pos:eol].split() if eol >= 0 else []
            if len(words) == 4 and words[0] == b"MSG":
                after = self._run(data, pos, eol, words)
            elif len(words) == 5 and words[0] == b"HMSG":
                after = self._headed(data, pos, eol, words)
            else:
                return pos
            if after == pos:
                return pos
            pos = after
        return pos

    def _headed(self, data: bytes, pos: int, eol: int, words: list[bytes]) -> int:
        start, cut = eol + 2, int(words[3])
        stop = start + int(words[4])
        if stop + 2 > len(data):
            return pos
        token = words[1][len(self._client.inbox) :]
        self._client.deliver(token, data[start : start + cut], data[start + cut : stop])
        return stop + 2

    def _run(self, data: bytes, pos: int, eol: int, words: list[bytes]) -> int:
        """Take as many messages as follow each other with one subject and no headers."""
        sink = self._client.sinks.get(words[1][len(self._client.inbox) :])
        head = data[pos : data.rindex(b" ", pos, eol) + 1]  # old servers write two spaces
        length, end = len(head), len(data)
        startswith, find = data.startswith, data.find
        while startswith(head, pos):
            eol = find(_CRLF, pos + length)
            if eol < 0:
                break
            size = data[pos + length : eol]
            if not size.isdigit():
                break  # it has a reply subject
            start = eol + 2
            stop = start + int(size)
            if stop + 2 > end:
                break
            if sink is not None:
                sink.plain(data[start:stop])
            pos = stop + 2
        return pos
