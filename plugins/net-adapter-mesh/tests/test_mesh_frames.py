"""The wire codec, and what a node makes of hostile frames."""

import time

import msgspec
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st
from net_adapter_mesh.frames import (
    INFINITY,
    MAGIC,
    MAX_FRAME,
    VERSION,
    Ack,
    Bye,
    Credit,
    Entries,
    FrameError,
    Heads,
    Hello,
    LaneRow,
    Record,
    Refuse,
    Reset,
    Subscribe,
    Table,
    WireEntry,
    bodies,
    decode,
    decode_body,
    encode,
    encode_body,
)

numbers = st.integers(0, INFINITY)
names = st.text(min_size=1, max_size=128)
shards = st.integers(0, 65_535)
rows = st.builds(LaneRow, names, numbers, numbers)
records = st.builds(
    Record, names, numbers, st.text(max_size=512), st.text(max_size=512),
    st.lists(names, max_size=5), st.lists(rows, max_size=5),
)  # fmt: skip
entries = st.builds(
    WireEntry, numbers, shards, st.integers(0, INFINITY - (1 << 24)), st.integers(0, 1 << 24), numbers, numbers, numbers,
    st.none() | st.dictionaries(names, numbers, max_size=5), st.binary(max_size=300),
)  # fmt: skip
messages = st.one_of(
    st.builds(Hello, names, numbers, names, names, numbers),
    st.builds(Refuse, st.text(max_size=512)),
    st.just(Reset()),
    st.builds(Table, numbers, st.lists(records, max_size=4)),
    st.builds(Subscribe, names, numbers, st.booleans()),
    st.builds(Heads, names, numbers, st.dictionaries(shards, st.tuples(numbers, numbers), max_size=5)),
    st.builds(Credit, numbers),
    st.builds(Entries, names, numbers, st.lists(entries, max_size=4)),
    st.builds(Ack, names, numbers),
    st.just(Bye()),
)


@given(messages)
def test_frames_round_trip(message):
    """Every message comes back as it went."""
    assert decode(encode(message)) == message


@given(st.binary(max_size=400))
def test_frames_of_noise_are_refused_or_valid(noise):
    """Any bytes are a message or a FrameError, nothing else."""
    try:
        message = decode(noise)
    except FrameError:
        return
    assert decode(encode(message)) == message


@given(messages, st.integers(0, 1000), st.integers(0, 255))
def test_frames_damaged_are_refused_or_valid(message, place, byte):
    """A message with one byte changed, or cut short, never gets past the types."""
    frame = bytearray(encode(message))
    frame[place % len(frame)] = byte
    for damaged in (bytes(frame), bytes(frame[: place % len(frame)])):
        try:
            message = decode(damaged)
        except FrameError:
            continue
        assert decode(encode(message)) == message


@pytest.mark.parametrize(
    "document",
    [
        [1, "netmesh", 1, "net", "n" * 129, 0],
        [1, "netmesh", 1, "net", "", 0],
        [5, "lane", -1, True],
        [5, "lane", 1 << 63, True],
        [6, "lane", 1, {65_536: [0, 1]}],
        [6, "lane", 1, {1: 1}],
        [7, "many"],
        [8, "lane", 1, [[1, 0, 0, (1 << 24) + 1, 0, 0, 0, None, b""]]],
        [8, "lane", 1, [[1, 0, (1 << 63) - 1, 1, 0, 0, 0, None, b""]]],
        [99],
        [],
        {},
        7,
    ],
)
def test_frames_out_of_bounds_are_refused(document):
    """Every field has its bounds."""
    with pytest.raises(FrameError):
        decode(msgspec.msgpack.encode(document))


def test_frames_too_long_are_refused_unread():
    """A frame above the cap is not even decoded."""
    with pytest.raises(FrameError, match="at most"):
        decode(bytes(MAX_FRAME + 1))


@given(st.lists(st.tuples(st.integers(0, 1 << 62), st.binary(max_size=50)), min_size=1, max_size=20))
def test_bodies_round_trip_and_wrong_counts_are_refused(pairs):
    """A body holds as many timestamps and payloads as its entry says, or is refused."""
    body = encode_body([ts for ts, _ in pairs], [raw for _, raw in pairs])
    assert decode_body(body, len(pairs)) == ([ts for ts, _ in pairs], [raw for _, raw in pairs])
    with pytest.raises(FrameError):
        decode_body(body, len(pairs) + 1)
    with pytest.raises(FrameError):
        decode_body(body[:-1], len(pairs))


class Speaker:
    """A raw socket that talks to a node."""

    def __init__(self, address, *, greet=True, node="speaker"):
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.linger = 200
        self.socket.connect(address)
        if greet:
            self.say(Hello(MAGIC, VERSION, "net", node, time.time_ns()))

    def say(self, message):
        self.socket.send(message if isinstance(message, bytes) else encode(message))

    def hear(self, kind, timeout=5.0):
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            if self.socket.poll(int(left * 1000) + 1):
                message = decode(self.socket.recv())
                if isinstance(message, kind):
                    return message
        raise AssertionError(f"no {kind.__name__}")

    def close(self):
        self.socket.close()
        self.context.term()


@pytest.fixture
def speak():
    speakers = []

    def make(*arguments, **named):
        speakers.append(Speaker(*arguments, **named))
        return speakers[-1]

    yield make
    for speaker in speakers:
        speaker.close()


def test_node_survives_hostile_frames(cluster, speak):
    """Noise, damaged and rule-breaking frames over real sockets: the node goes on serving others."""
    a, b = cluster.mesh(2)

    @settings(max_examples=60, deadline=None, database=None)
    @given(st.lists(st.one_of(st.binary(max_size=200), messages), min_size=1, max_size=6), st.booleans())
    def talk(said, greet):
        speaker = Speaker(a.address, greet=greet)
        for message in said:
            speaker.say(message)
        speaker.close()

    talk()
    a.ask("load", count=500)
    assert len(b.ask("gather", count=500)["events"]) >= 500
    stats = a.ask("stats")
    assert stats["failure"] == ""
    assert [b.origin] == [link["peer"] for link in stats["links"] if link["peer"] == b.origin]


def test_node_answers_an_unknown_sender_with_reset(cluster, speak):
    """Who has not said Hello is told to begin again."""
    a = cluster.start()
    speaker = speak(a.address, greet=False)
    speaker.say(Credit(5))
    speaker.hear(Reset)


@pytest.mark.parametrize(
    ("hello", "match"),
    [
        (Hello(MAGIC, VERSION, "other", "n", 0), "belongs to the mesh 'other'"),
        (Hello(MAGIC, 99, "net", "n", 0), "version 99"),
        (Hello(MAGIC, VERSION, "net", "n", 1), "clock differs"),
    ],
)
def test_node_refuses_other_meshes_versions_and_clocks(cluster, speak, hello, match):
    """A greeting that does not fit is refused with the reason, which is logged once."""
    a = cluster.start()
    clock = hello.clock or time.time_ns()
    for _ in range(2):
        speaker = speak(a.address, greet=False)
        speaker.say(msgspec.structs.replace(hello, clock=clock))
        assert match in speaker.hear(Refuse).reason
    assert len(a.logged("no link with")) == 1
    assert a.ask("stats")["links"] == []


def test_node_drops_a_peer_that_sends_beyond_its_credit(cluster, speak):
    """Credit binds: entries beyond it end the link."""
    a = cluster.start(credit_bytes=65_536)
    speaker = speak(a.address)
    speaker.say(Table(time.time_ns(), [Record("speaker", 1, "", "", [a.origin], [LaneRow("speaker", 0, 9)])]))
    subscription = speaker.hear(Subscribe)
    assert subscription.origin == "speaker"
    body = bytes(60_000)
    for number in range(1, 20):
        entry = WireEntry(number, 0, number - 1, 1, 0, number, number, {}, body)
        speaker.say(Entries("speaker", number, [entry]))
        speaker.say(Entries("nobody", number, [entry]))
    a.ask("until", expression="not stats['links']")


@pytest.mark.parametrize("frames", [0, 1, 3])
def test_bodies_of_another_number_than_asked_for_are_refused(frames):
    """Each entry without a body has a frame, in order, and no frame is left over."""
    asking = WireEntry(1, 0, 0, 1, 0, 1, 1, {}, None)
    run = Entries("o", 3, [asking, WireEntry(2, 0, 1, 1, 0, 1, 1, {}, b"here"), asking])
    assert bodies(run, [memoryview(b"a"), memoryview(b"b")]) == [b"a", b"here", b"b"]
    with pytest.raises(FrameError, match="want another number"):
        bodies(run, [memoryview(b"x")] * frames)


def test_node_takes_bodies_in_frames_of_their_own_and_no_others(cluster, speak):
    """A body behind the message is read like one in it; a frame too few or too many ends the link."""
    a = cluster.start()
    table = Table(time.time_ns(), [Record("speaker", 1, "", "", [a.origin], [LaneRow("speaker", 0, 9)])])
    for refused, extra in enumerate((1, 0, 2)):
        speaker = speak(a.address)
        speaker.say(table)
        reached = speaker.hear(Subscribe).after
        speaker.say(Heads("speaker", 9, {}))
        body = encode_body([5], [b"apart"])
        entry = WireEntry(reached + 1, 0, reached, 1, 1 << 60, 5, 5, {}, None)
        message = encode(Entries("speaker", reached + 1, [entry]))
        speaker.socket.send_multipart([message, *[body] * extra])
        if extra == 1:
            a.ask("until", expression="stats['lanes'].get('speaker', {}).get('head') == 1")
            speaker.say(Bye())
        else:
            deadline = time.monotonic() + 10
            while len(a.logged("frames behind entries")) < refused:
                assert time.monotonic() < deadline, "it was not refused"
                a.ask("stats")
        a.ask("until", expression="not stats['links']")
    assert [event[4] for event in a.ask("page")["events"]] == ["apart"]
    assert a.ask("stats")["failure"] == ""


def test_node_skips_an_entry_whose_body_is_garbage(cluster, speak):
    """An undecodable entry is counted and passed over; what follows is read."""
    a = cluster.start()
    speaker = speak(a.address)
    speaker.say(Table(time.time_ns(), [Record("speaker", 1, "", "", [a.origin], [LaneRow("speaker", 0, 9)])]))
    speaker.hear(Subscribe)
    speaker.say(Heads("speaker", 9, {}))
    good = encode_body([5], [b"fine"])
    run = [
        WireEntry(1, 0, 0, 1, 1 << 60, 4, 4, {}, b"garbage"),
        WireEntry(2, 0, 1, 1, 1 << 60, 5, 5, None, good),
    ]
    speaker.say(Entries("speaker", 2, run))
    a.ask("until", expression="stats['lanes'].get('speaker', {}).get('head') == 2")
    page = a.ask("page")
    assert [event[4] for event in page["events"]] == ["fine"]
    assert page["undecodable"] == 1
