"""One link to one peer: what was promised, sent and received on it. I/O thread only."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from net_adapter_mesh.frames import Body, Message, encode

__all__ = ["Link", "Target"]


class Target:
    """An address that this node dials.

    Attributes:
        address: `tcp://host:port`.
        public_key: the listener's key, or "".
        seed: from the configuration, not heard of from others.
        link: the link being made or up, or None.
        retry_at: monotonic time of the next attempt.
        pause: seconds to wait after the next failure.
        tried: an attempt has succeeded or failed.
        node: who answered last, or "".
    """

    __slots__ = ("address", "link", "node", "pause", "public_key", "retry_at", "seed", "tried")

    def __init__(self, address: str, public_key: str, seed: bool) -> None:
        self.address = address
        self.public_key = public_key
        self.seed = seed
        self.link: Link | None = None
        self.retry_at = 0.0
        self.pause = 0.02
        self.tried = False
        self.node = ""


class Link:
    """State of one link, the same at both ends.

    Args:
        post: sends the frames of one message; False if the other side is gone.
        cut: releases the transport under it.
        target: what was dialed, or None at the listening end.
        now: monotonic seconds.

    Attributes:
        peer: the node at the other end, "" until its Hello came.
        heard: when something last came from it.
        granted: bytes of entries that may be sent in all.
        sent: bytes of entries sent.
        received: bytes of entries received.
        stored: of those, bytes that are stored.
        promised: bytes of entries granted to the peer in all.
        feeds: lanes that the peer subscribed to -> number up to which they were sent.
        asked: lanes subscribed to here -> how often, without its Heads having come yet.
        known: member -> version of its record that the peer has.
        told: when a table was last sent to it.
    """

    __slots__ = (
        "asked", "cut", "feeds", "frames_in", "frames_out", "granted", "greeted", "heard", "known", "peer", "post",
        "promised", "received", "sent", "since", "stored", "target", "told",
    )  # fmt: skip

    def __init__(
        self,
        post: Callable[[Sequence[Body]], bool],
        cut: Callable[[], None],
        target: Target | None,
        now: float,
    ) -> None:
        self.post = post
        self.cut = cut
        self.target = target
        self.peer = ""
        self.greeted = False
        self.heard = now
        self.since = now
        self.told = 0.0
        self.granted = 0
        self.sent = 0
        self.received = 0
        self.stored = 0
        self.promised = 0
        self.frames_in = 0
        self.frames_out = 0
        self.feeds: dict[str, int] = {}
        self.asked: dict[str, int] = {}
        self.known: dict[str, int] = {}

    def send(self, message: Message) -> bool:
        """Send a message; False if the other side is gone."""
        self.frames_out += 1
        return self.post([encode(message)])
