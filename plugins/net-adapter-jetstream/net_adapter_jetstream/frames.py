"""A batch as it goes over the wire: one run of HPUB frames, or the same for the public client.

Two ways to make several messages one step (the server's rules: ADR-50, "JetStream Batch Publishing"):

- *atomic*: each message names its batch and its place in it, the last one commits; the server
  stores all or nothing.
- *chain*, for servers that know no batches, and for a single message: each expects the one before
  it to be the stream's last, by its number and by its id, so that a torn chain has no hole and its
  re-sending completes it. The number alone would let somebody else's chain with the same base go on
  in the middle of this one.

Only the last message asks for a reply. It also carries the *marks* (see `marks`).
"""

from __future__ import annotations

from typing import Final, NamedTuple

from net_adapter_jetstream.marks import HEADER as MARKS_HEADER

__all__ = ["ROOM", "Shipment", "headers", "render"]

_EXPECTED: Final = "Nats-Expected-Last-Sequence"
_EXPECTED_ID: Final = "Nats-Expected-Last-Msg-Id"
ROOM: Final = 4096
"""More than the headers and the envelope of any message take, ids and marks included, bytes."""


class Shipment(NamedTuple):
    """Messages to be stored at once.

    Attributes:
        subject: where to.
        bodies: one or more.
        ids: start of each message id, `{producer}:{shard}:{first_seq}:`.
        indices: rest of each message's id: the index in its batch of the body's first event.
        base: the stream's last sequence number, expected.
        batch_id: None for a chain.
        marks: value of the header that the last message carries, or "" for none.
    """

    subject: str
    bodies: list[bytes]
    ids: str
    indices: list[int]
    base: int
    batch_id: str | None
    marks: str


def headers(shipment: Shipment, place: int) -> dict[str, str]:
    """Return the headers of message `place` (from 0)."""
    last = place == len(shipment.bodies) - 1
    made: dict[str, str] = {}
    if shipment.batch_id is not None:
        made["Nats-Batch-Id"] = shipment.batch_id
        made["Nats-Batch-Sequence"] = str(place + 1)
        if place == 0:
            made[_EXPECTED] = str(shipment.base)
        if last:
            made["Nats-Batch-Commit"] = "1"
    else:
        made[_EXPECTED] = str(shipment.base + place)
        if place > 0:
            made[_EXPECTED_ID] = f"{shipment.ids}{shipment.indices[place - 1]}"
    made["Nats-Msg-Id"] = f"{shipment.ids}{shipment.indices[place]}"
    if last and shipment.marks:
        made[MARKS_HEADER] = shipment.marks
    return made


def _frame(shipment: Shipment, place: int, reply: str) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers(shipment, place).items())
    head = f"NATS/1.0\r\n{lines}\r\n".encode()
    body = shipment.bodies[place]
    start = f"HPUB {shipment.subject} {reply}{' ' if reply else ''}{len(head)} {len(head) + len(body)}\r\n"
    return b"%b%b%b\r\n" % (start.encode(), head, body)


def render(shipment: Shipment, reply: str) -> bytes:
    """Render all frames; about a microsecond a message.

    Args:
        shipment: the messages.
        reply: where the server answers the last one.
    """
    bodies, count = shipment.bodies, len(shipment.bodies)
    if count == 1:
        return _frame(shipment, 0, reply)
    command = b"HPUB %b " % shipment.subject.encode()
    ids = shipment.ids.encode()
    if shipment.batch_id is not None:
        start = b"\r\nNATS/1.0\r\nNats-Batch-Id: %b\r\nNats-Batch-Sequence: " % shipment.batch_id.encode()
        number = 1
        before = b""
    else:
        start = b"\r\nNATS/1.0\r\n%b: " % _EXPECTED.encode()
        number = shipment.base
        before = b"\r\n%b: %b" % (_EXPECTED_ID.encode(), ids)
    middle = b"\r\nNats-Msg-Id: %b" % ids
    parts = [_frame(shipment, 0, "")]
    indices = shipment.indices
    for place in range(1, count - 1):
        body = bodies[place]
        former = b"%b%d" % (before, indices[place - 1]) if before else b""
        head = b"%b%d%b%b%d\r\n\r\n" % (start, number + place, former, middle, indices[place])
        size = len(head) - 2  # its line break ends the command
        parts.append(b"%b%d %d%b%b\r\n" % (command, size, size + len(body), head, body))
    parts.append(_frame(shipment, count - 1, reply))
    return b"".join(parts)
