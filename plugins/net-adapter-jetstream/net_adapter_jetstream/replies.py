"""Who waits for what comes back on the inbox."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import Final

from netcore import AdapterError, TransientAdapterError

__all__ = ["Page", "Reply", "Waiter", "field"]

_STATUS_AT: Final = len("NATS/1.0 ")
_NOT_FOUND: Final = 404
_END: Final = 204
_NO_RESPONDERS: Final = 503


def field(head: bytes, name: bytes) -> bytes | None:
    """Return a header's value out of a raw header block."""
    start = head.find(b"\r\n" + name + b":")
    if start < 0:
        return None
    start += len(name) + 3
    return head[start : head.find(b"\r\n", start)].strip()


def status_of(head: bytes) -> int:
    """Return the status of a raw header block, 0 if it has none."""
    text = head[_STATUS_AT : _STATUS_AT + 3]
    return int(text) if head[_STATUS_AT - 1 : _STATUS_AT] == b" " and text.isdigit() else 0


class Waiter(ABC):
    """Someone who waits for replies.

    Attributes:
        subject: what was asked.
        done: set when nothing more will come.
        error: why there is no answer, or None.
    """

    def __init__(self, subject: str) -> None:
        self.subject = subject
        self.done = asyncio.Event()
        self.error: AdapterError | None = None

    @abstractmethod
    def plain(self, body: bytes) -> None:
        """Take a message without headers."""

    @abstractmethod
    def headed(self, head: bytes, body: bytes) -> None:
        """Take a message with its raw header block."""

    def fail(self, error: AdapterError) -> None:
        """End the wait without an answer; the first outcome stays."""
        if not self.done.is_set():
            self.error = error
            self.done.set()

    def no_responders(self) -> None:
        """End the wait: the server knows nobody who would answer."""
        self.fail(
            NoRespondersError(f"{self.subject}: no responders (no such stream, no leader, or no JetStream)")
        )


class NoRespondersError(TransientAdapterError):
    """Nobody serves that subject."""


class Reply(Waiter):
    """One reply.

    Attributes:
        head: its raw header block, or None.
        body: its body.
        status: its status, 0 if it has none.
    """

    def __init__(self, subject: str) -> None:
        super().__init__(subject)
        self.head: bytes | None = None
        self.body = b""
        self.status = 0

    def plain(self, body: bytes) -> None:
        """Take the reply."""
        self.body = body
        self.done.set()

    def headed(self, head: bytes, body: bytes) -> None:
        """Take the reply."""
        self.status = 0 if body else status_of(head)
        if self.status == _NO_RESPONDERS:
            self.no_responders()
            return
        self.head, self.body = head, body
        self.done.set()


class Page(Waiter):
    """A run of messages, closed by a status without a body.

    Attributes:
        bodies: what came, in the order sent.
        heads: raw header blocks, one a body where headers were asked for.
        last: the sequence number up to which the server read; 0 if nothing was found.
    """

    def __init__(self, subject: str) -> None:
        super().__init__(subject)
        self.bodies: list[bytes] = []
        self.heads: list[bytes] = []
        self.last = 0
        # Called once a message, so without a frame of its own.
        self.plain = self.bodies.append  # type: ignore[method-assign, assignment]

    def plain(self, body: bytes) -> None:
        """Take a message."""
        self.bodies.append(body)

    def headed(self, head: bytes, body: bytes) -> None:
        """Take a message, or the end."""
        status = 0 if body else status_of(head)
        if not status:
            self.heads.append(head)
            self.bodies.append(body)
        elif status == _NO_RESPONDERS:
            self.no_responders()
        elif status == _END:
            self.last = int(field(head, b"Nats-Last-Sequence") or 0)
            self.done.set()
        elif status == _NOT_FOUND:
            self.done.set()
        else:
            what = head.split(b"\r\n", 1)[0].decode(errors="replace")
            self.fail(TransientAdapterError(f"{self.subject}: {what}"))
