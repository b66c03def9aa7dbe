"""Frames, parsing, envelopes, marks and positions, against models."""

from __future__ import annotations

import asyncio
import datetime as dt
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client
from net_adapter_jetstream import client, frames, layout, positions
from net_adapter_jetstream.client import FastClient
from net_adapter_jetstream.marks import Marks
from net_adapter_jetstream.replies import Page, Reply, field

from netcore import CursorError, StoredEvent, TransientAdapterError

_INBOX = b"_INBOX.abc"


def _message(token: str, body: bytes, head: bytes = b"", reply: str = "") -> bytes:
    subject = f"{_INBOX.decode()}.{token}"
    # Old servers write two spaces where there is no reply subject.
    words = f"{subject} 1 {reply}" if reply else f"{subject} 1{' ' if token == '2' else ''}"
    if head:
        return b"HMSG %b %d %d\r\n%b%b\r\n" % (words.encode(), len(head), len(head) + len(body), head, body)
    return b"MSG %b %d\r\n%b\r\n" % (words.encode(), len(body), body)


def _head(**fields: str) -> bytes:
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return f"NATS/1.0\r\n{lines}\r\n".encode()


class _Recorder:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.seen: list[tuple[bytes, bytes]] = []

    def plain(self, body: bytes) -> None:
        self.seen.append((b"", body))

    def headed(self, head: bytes, body: bytes) -> None:
        self.seen.append((head, body))


_bodies = st.one_of(
    st.binary(max_size=60),
    st.sampled_from([b"", b"\r\n", b"MSG _INBOX.abc.1 1 3\r\nxyz\r\n", b"HMSG", b"x" * 70_000]),
)
_traffic = st.lists(
    st.one_of(
        st.tuples(st.just("1"), _bodies, st.just(b""), st.just("")),
        st.tuples(st.sampled_from(["1", "2", "gone"]), _bodies, st.just(_head(A="b")), st.just("")),
        st.tuples(st.sampled_from(["1", "2"]), _bodies, st.just(b""), st.sampled_from(["", "some.reply"])),
        st.tuples(st.just("foreign"), _bodies, st.just(b""), st.just("")),
        st.just(None),
    ),
    max_size=12,
)


@given(traffic=_traffic, sizes=st.lists(st.integers(1, 40_000), min_size=1, max_size=8))
def test_parser_delivers_what_was_sent_however_it_is_cut(traffic: list[Any], sizes: list[int]) -> None:
    """Replies, foreign messages and protocol lines in any order, received in any pieces."""
    stream = b""
    expected: dict[str, list[tuple[bytes, bytes]]] = {"1": [], "2": []}
    foreign: list[bytes] = []
    for item in traffic:
        if item is None:
            stream += b"PONG\r\n"
            continue
        token, body, head, reply = item
        if token == "foreign":
            stream += b"MSG other.subject 2 %d\r\n%b\r\n" % (len(body), body)
            foreign.append(body)
            continue
        stream += _message(token, body, head, reply)
        if token in expected:
            expected[token].append((head, body))

    async def run() -> tuple[dict[str, _Recorder], list[bytes]]:
        made = FastClient(lambda error: None)
        made.inbox, made.inbox_sid = _INBOX + b".", 1
        sinks = {"1": _Recorder(), "2": _Recorder()}
        made.sinks = {token.encode(): sink for token, sink in sinks.items()}
        others: list[bytes] = []

        async def other(
            self: Any, sid: int, subject: bytes, reply: bytes, body: bytes, headers: bytes
        ) -> None:
            others.append(body)

        stock, Client._process_msg = Client._process_msg, other  # type: ignore[method-assign,assignment]
        try:
            rest = stream
            for size in itertools.cycle(sizes):
                cut = max(size, len(stream) // 300)
                await made._ps.parse(rest[:cut])
                rest = rest[cut:]
                if not rest:
                    break
        finally:
            Client._process_msg = stock  # type: ignore[method-assign]
        return sinks, others

    sinks, others = asyncio.run(run())
    assert {token: sink.seen for token, sink in sinks.items()} == expected
    assert others == foreign


@given(
    bodies=st.lists(st.binary(min_size=1, max_size=30), min_size=1, max_size=12),
    base=st.integers(0, 1 << 60),
    skip=st.integers(0, 2000),
    atomic=st.booleans(),
    marks=st.sampled_from(["", "0 abc:5:1"]),
)
def test_frames_say_what_the_headers_say(
    bodies: list[bytes], base: int, skip: int, atomic: bool, marks: str
) -> None:
    """The quick rendering and the headers for the public client are the same messages."""
    shipment = frames.Shipment(
        subject="net.shard.3",
        bodies=bodies,
        ids="producer:3:77:",
        indices=list(range(skip, skip + len(bodies))),
        base=base,
        batch_id="batch.1" if atomic else None,
        marks=marks,
    )
    blob = frames.render(shipment, "_INBOX.r.1")
    for place, body in enumerate(bodies):
        line, _, blob = blob.partition(b"\r\n")
        words = line.split()
        assert words[:2] == [b"HPUB", b"net.shard.3"]
        assert words[2:-2] == ([b"_INBOX.r.1"] if place == len(bodies) - 1 else [])
        cut, total = int(words[-2]), int(words[-1])
        head, sent, blob = blob[:cut], blob[cut:total], blob[total:]
        assert sent == body
        assert blob.startswith(b"\r\n")
        blob = blob[2:]
        lines = head.decode().split("\r\n")
        assert (lines[0], lines[-2:]) == ("NATS/1.0", ["", ""])
        found = dict(text.split(": ", 1) for text in lines[1:-2])
        assert found == frames.headers(shipment, place)
        assert len(head) + 64 < frames.ROOM
    assert blob == b""


_events = st.lists(
    st.tuples(st.integers(-(1 << 62), 1 << 62), st.binary(max_size=80)), min_size=1, max_size=20
)


@given(found=_events, shard=st.integers(0, 65_535))
def test_envelopes_return_the_payload_byte_for_byte(found: list[tuple[int, bytes]], shard: int) -> None:
    """Whatever the payload holds, an envelope's own tail included."""
    events = [StoredEvent("", shard, ts, raw) for ts, raw in found]
    events += [StoredEvent("", shard, ts, raw + b',"t":1,"s":%d}' % shard) for ts, raw in found]
    for event, body in zip(events, layout.envelopes(events, shard), strict=True):
        assert layout.decode(body, layout.envelope_end(shard)) == (event.ts, event.raw)
        assert layout.decode(body, layout.envelope_end(shard + 1)) == (event.ts, event.raw)
        assert layout.unpack(body) is None


@given(found=_events)
def test_packed_returns_the_events(found: list[tuple[int, bytes]]) -> None:
    """And is no envelope."""
    body = layout.pack([StoredEvent("", 0, ts, raw) for ts, raw in found])
    assert layout.unpack(body) == found
    assert body.startswith(layout.PACKED)
    assert layout.decode(body, layout.envelope_end(0)) is None


@given(junk=st.binary(max_size=60))
def test_junk_bodies_are_none(junk: bytes) -> None:
    """Any bytes: an event or nothing, never an exception."""
    for body in (junk, b'{"r":' + junk):
        found = layout.decode(body, layout.envelope_end(0))
        assert found is None or (type(found[0]), type(found[1])) == (int, bytes)
    packed = layout.unpack(junk)
    assert packed is None or all((type(ts), type(raw)) == (int, bytes) for ts, raw in packed)


@given(
    steps=st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 1000)), max_size=30),
    lead=st.one_of(st.none(), st.integers(0, 10**9)),
)
def test_marks_round_trip(steps: list[tuple[str, int]], lead: int | None) -> None:
    """What is rendered is read back; numbers never fall."""
    marks = Marks()
    marks.lead = lead
    model: dict[str, int] = {}
    for producer, following in steps:
        marks.advance(producer * 32, following, 100)
        model[producer * 32] = max(model.get(producer * 32, 0), following)
    read = Marks.parse(marks.render(101))
    assert read is not None
    assert read.lead == lead
    assert {producer: read.next(producer) for producer in model} == model
    assert read.render(101) == marks.render(101)


def test_marks_forget_the_oldest_and_the_silent() -> None:
    """They stay short: twelve producers, of the last two days."""
    marks = Marks()
    for index in range(20):
        marks.advance(f"{index:032x}", index + 1, index)
    assert marks.next(f"{7:032x}") is None
    assert marks.next(f"{8:032x}") == 9
    assert marks.render(19 + 40).count(":") == 2 * 9
    assert marks.render(19 + 100) == "0"
    assert len(marks.render(19)) < 1000


@pytest.mark.parametrize("text", ["", "x", "0 a", "0 a:b:c", "0 a:1", "1.5", "0  a:1:1"])
def test_marks_of_others_are_none(text: str) -> None:
    """A header that is not ours is not misread."""
    assert Marks.parse(text) is None


@given(
    seq=st.integers(0, 10**18),
    place=st.one_of(st.none(), st.integers(0, 10**6)),
    born=st.integers(0, 1 << 60),
)
def test_positions_round_trip(seq: int, place: int | None, born: int) -> None:
    """Text and back."""
    position = positions.Position(seq, place, f"{born:x}")
    assert positions.parse(str(position)) == position


def test_position_of_an_unknown_stream_is_the_beginning() -> None:
    """`0`, and nothing else without an incarnation."""
    assert positions.parse("0") is positions.BEGINNING
    with pytest.raises(CursorError):
        positions.parse("1")


@pytest.mark.parametrize(
    ("text", "micros"),
    [
        ("2026-11-23T05:17:09.903150736Z", 903150),
        ("2026-11-23T05:17:09.9Z", 900000),
        ("2026-11-23T05:17:09Z", 0),
        ("2026-11-23T06:17:09.9031+01:00", 903100),
    ],
)
def test_creation_times_of_any_length_are_read(text: str, micros: int) -> None:
    """Servers drop trailing zeros."""
    moment = dt.datetime(2026, 11, 23, 5, 17, 9, micros, tzinfo=dt.UTC)
    assert int(positions.born_of(text), 16) == round(moment.timestamp() * 1_000_000)


def test_page_ends_with_its_status() -> None:
    """The closing status tells how far the server read; others end the page otherwise."""
    page = Page("s")
    page.plain(b"a")
    page.headed(_head(Nats_Sequence="7"), b"")
    assert not page.done.is_set()
    page.headed(b"NATS/1.0 204 EOB\r\nNats-Num-Pending: 3\r\nNats-Last-Sequence: 7\r\n\r\n", b"")
    assert (page.bodies, page.last, page.error) == ([b"a", b""], 7, None)
    assert field(page.heads[0], b"Nats-Sequence") == b"7"
    bad = Page("s")
    bad.headed(b"NATS/1.0 408 Bad Request\r\n\r\n", b"")
    assert "408" in str(bad.error)
    nobody = Reply("s")
    nobody.headed(b"NATS/1.0 503\r\n\r\n", b"")
    assert isinstance(nobody.error, TransientAdapterError)


def test_private_parts_of_the_client_are_there() -> None:
    """With the nats-py that is tested the quick way is open."""
    assert client.usable()


def test_changed_private_parts_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A nats-py without them makes the adapter use the public client."""
    monkeypatch.delattr(Client, "_send_command")
    assert not client.usable()
