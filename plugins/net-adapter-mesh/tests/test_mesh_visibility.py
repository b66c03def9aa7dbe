"""The walk that decides what may be shown, against a plain model; and lanes under retention."""

import time
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from net_adapter_mesh import MeshConfig
from net_adapter_mesh.frames import INFINITY, LaneRow, Record, Table, WireEntry, decode, encode, encode_body
from net_adapter_mesh.gossip import Members
from net_adapter_mesh.lane import Entry, Lane
from net_adapter_mesh.log import Kept, Log
from net_adapter_mesh.reader import Reader
from net_adapter_mesh.store import MemoryStore

from netcore import CursorError, Stream

ORIGINS = ("a", "b", "c")


class World:
    """Origins that append and read each other, each with a log of its own, and what they sent."""

    def __init__(self):
        self.clock = 0
        self.logs = {name: Log(name, MeshConfig(), MemoryStore()) for name in ORIGINS}
        self.readers = {name: Reader(log) for name, log in self.logs.items()}
        self.pending = {name: deque() for name in ORIGINS}  # ingested: (ts, shard, known)
        self.wires = {name: [] for name in ORIGINS}
        self.known = {name: {} for name in ORIGINS}  # what each node was shown: stream -> position
        self.causes = {}  # (origin, shard, position) -> what its maker had been shown
        self.delivered = {(one, two): 0 for one in ORIGINS for two in ORIGINS}
        self.cursors = {name: {} for name in ORIGINS}

    def ingest(self, name, shard):
        self.clock += 1
        self.pending[name].append((self.clock, shard, dict(self.known[name])))

    def append(self, name, index):
        """Store one pending event, not always the oldest; of its shard the oldest."""
        queue = self.pending[name]
        if not queue:
            return
        shard = queue[index % len(queue)][1]
        item = next(entry for entry in queue if entry[1] == shard)
        queue.remove(item)
        self.clock += 1
        w = min([self.clock, *(ts for ts, _, _ in queue)])
        log = self.logs[name]
        entry = log.stage(shard, [item[0]], w, dict(self.readers[name].returned), b"\x92\x91\x01\x91\xc4\x00")
        log.publish([entry])
        self.causes[name, shard, entry.end] = item[2]
        self.wires[name].append(entry)

    def bare(self, name):
        if not self.pending[name]:
            self.clock += 1
            log = self.logs[name]
            entry = log.stage(0, (), self.clock, dict(self.readers[name].returned), b"")
            log.publish([entry])
            self.wires[name].append(entry)

    def deliver(self, source, target, count):
        if source == target:
            return
        done = self.delivered[source, target]
        run = self.wires[source][done : done + count]
        if not run:
            return
        self.delivered[source, target] += len(run)
        log = self.logs[target]
        wire = [
            WireEntry(
                e.lsn, e.shard, e.start, e.count, e.w, e.lo, e.hi, dict(e.deps), b"\x92\x91\x01\x91\xc4\x00"
            )
            for e in run
        ]
        log.receive(source, log.wants(source, wire, [entry.body for entry in wire], 0), run[-1].lsn)

    def poll(self, name):
        """Read everything visible in one snapshot; check that nothing came before its causes."""
        log, reader, cursors = self.logs[name], self.readers[name], self.cursors[name]
        version, shown = log.version, []
        for origin, lane in list(log.lanes.items()):
            for shard in list(lane.streams):
                stream = Stream(shard, origin)
                page = reader.read(stream, cursors.get(stream), 1000, version)
                cursors[stream] = page.position
                shown += [(origin, shard, int(event.id)) for event in page.events]
                assert page.gap is None
        for origin, shard, position in shown:
            self.known[name][origin, shard] = max(position, self.known[name].get((origin, shard), 0))
        for event in shown:
            for stream, least in self.causes[event].items():
                assert self.known[name].get(stream, 0) >= least, f"{event} before {stream} at {least}"


steps = st.lists(
    st.one_of(
        st.tuples(st.just("ingest"), st.sampled_from(ORIGINS), st.integers(0, 2)),
        st.tuples(st.just("append"), st.sampled_from(ORIGINS), st.integers(0, 5)),
        st.tuples(st.just("bare"), st.sampled_from(ORIGINS)),
        st.tuples(st.just("deliver"), st.sampled_from(ORIGINS), st.sampled_from(ORIGINS), st.integers(1, 4)),
        st.tuples(st.just("poll"), st.sampled_from(ORIGINS)),
    ),
    max_size=80,
)


@settings(max_examples=300, deadline=None)
@given(steps)
def test_visibility_is_causal_and_complete_in_any_schedule(schedule):
    """Whatever is stored, delivered and polled when: causes come first, and in the end all is shown."""
    world = World()
    for name, *arguments in schedule:
        getattr(world, name)(*arguments)
    for name in ORIGINS:
        while world.pending[name]:
            world.append(name, 0)
        world.bare(name)
    for source in ORIGINS:
        for target in ORIGINS:
            world.deliver(source, target, 1000)
    for name in ORIGINS:
        world.poll(name)
        assert not [lane for lane in world.logs[name].lanes.values() if lane.held or lane.ready]
        shown = sum(int(position) for position in world.cursors[name].values())
        assert shown == len(world.causes)


def wire(lsn, start, *, shard=0, count=1, w=INFINITY, key=None, deps=None):
    key = lsn if key is None else key
    return WireEntry(lsn, shard, start, count, w, key, key, deps or {}, b"")


def receive(log, origin, *entries):
    log.receive(origin, log.wants(origin, entries, [entry.body for entry in entries], 0), entries[-1].lsn)


def test_log_receives_nothing_twice_and_takes_holes_as_gaps():
    """Entries at or below the head are passed over; a hole in a stream lifts the floor."""
    log = Log("me", MeshConfig(), MemoryStore())
    receive(log, "a", wire(1, 0), wire(2, 1))
    receive(log, "a", wire(1, 0), wire(2, 1), wire(3, 2))
    lane = log.lanes["a"]
    assert [entry.lsn for entry in lane.entries] == [1, 2, 3]
    assert lane.floor == 0
    receive(log, "a", wire(9, 7))
    assert lane.floor == 8
    assert lane.streams[0].visible == 8


def test_log_refuses_entries_that_go_back_in_their_stream():
    """A position or key behind what the stream holds is not stored."""
    log = Log("me", MeshConfig(), MemoryStore())
    receive(log, "a", wire(1, 0, key=10), wire(2, 0, key=11), wire(3, 1, key=5), wire(4, 1, key=12))
    assert [entry.lsn for entry in log.lanes["a"].entries] == [1, 4]


def test_log_forgets_old_events_by_age():
    """Age trims whole batches, also the last; positions stay."""
    log = Log("me", MeshConfig(max_age_s=60), MemoryStore())
    now = time.time_ns()
    old = log.stage(0, [now - 10**11], 0, {}, b"x")
    new = log.stage(1, [now], 0, {}, b"y")
    log.publish([old, new])
    assert [entry.lsn for entry in log.lane.entries if entry.live] == [2]
    assert log.lane.streams[0].earliest == log.lane.streams[0].next == 1
    following = log.stage(0, [now + 1], 0, {}, b"z")
    assert following.start == 1


def test_log_compacts_what_it_trimmed():
    """A long life under small retention keeps a short list."""
    log = Log("me", MeshConfig(max_events=10), MemoryStore())
    for number in range(5000):
        log.publish([log.stage(0, [number + 1], 0, {}, b"x")])
    assert len(log.lane.entries) < 1000
    assert len(log.lane.streams[0].items) < 1000
    found, upto = log.outgoing("me", 0, 1 << 20)
    assert [entry.lsn for entry in found] == list(range(4991, 5001))
    assert upto == 5000


def test_log_own_watermark_never_falls():
    """A watermark that the bus took back (a lagging shard) does not go back on the wire, and keys
    of later entries stay above it."""
    log = Log("me", MeshConfig(), MemoryStore())
    first = log.stage(0, [10], 100, {}, b"x")
    late = log.stage(1, [20], 50, {}, b"x")
    assert (first.w, late.w) == (100, 100)
    assert late.lo == late.hi == 100


@pytest.mark.parametrize("position", ["-1", "x", "", "1" * 20, " 1", "1.0", 7])
def test_reader_refuses_what_cannot_be_a_position(position):
    """Only plain numbers are positions."""
    with pytest.raises(CursorError):
        Reader(Log("me", MeshConfig(), MemoryStore())).position(Stream(0, "a"), position)


def test_reader_waits_for_positions_that_only_lag():
    """A position beyond what this node has of another's stream is valid; beyond its own it is not."""
    reader = Reader(Log("me", MeshConfig(), MemoryStore()))
    page = reader.read(Stream(0, "other"), "70", 10, None)
    assert (page.events, page.position, page.has_more) == ([], "70", False)
    with pytest.raises(CursorError):
        reader.read(Stream(0, "me"), "1", 10, None)


def record(node, *links, version=1, **lanes):
    return Record(
        node, version, "", "", list(links), [LaneRow(name, 0, head) for name, head in lanes.items()]
    )


def test_members_count_links_that_both_ends_list():
    """The record of a node that died connects nobody."""
    members = Members("me", "", "")
    members.update(["b"], [])
    for other in (record("b", "me", "c"), record("c", "b", "d"), record("d")):
        assert members.learn(other)
    assert members.distances() == {"me": 0, "b": 1, "c": 2}
    assert members.hops("b", "c") == 1
    assert members.hops("b", "me") is None
    assert not members.learn(record("c", "b", "d"))
    members.learn(record("d", "c", version=2))
    assert members.distances()["d"] == 3


def test_members_know_what_can_still_come():
    """A lane can grow while its origin, or a holder of more, is reachable."""
    members = Members("me", "", "")
    members.update(["b"], [])
    members.learn(record("b", "me", x=5))
    members.learn(record("far", x=9))
    assert members.can_grow("x", 4)
    assert not members.can_grow("x", 5)
    assert members.can_grow("b", 0)
    assert not members.can_grow("far", 0)


def visible(log, origin, shard=0):
    return log.lanes[origin].streams[shard].visible


def test_visibility_hidden_entry_of_a_smaller_key_keeps_v_down():
    """V speaks for all entries behind a held one: what depends on the smallest of them waits too."""
    log = Log("c", MeshConfig(), MemoryStore())
    cause = {"a": 5}
    receive(log, "b", wire(1, 0, key=20, deps=cause), wire(2, 0, shard=1, key=10, deps=cause))
    receive(log, "d", wire(1, 0, key=30, deps={"b": 10}))
    assert visible(log, "b") == visible(log, "b", 1) == visible(log, "d") == 0
    receive(log, "a", wire(1, 0, key=5))
    assert visible(log, "b") == visible(log, "b", 1) == visible(log, "d") == 1


def test_visibility_dependency_on_a_key_equal_to_v_is_not_met():
    """V is exclusive: an event whose key equals it may be missing still."""
    log = Log("c", MeshConfig(), MemoryStore())
    receive(log, "a", wire(1, 0, key=5, w=7))
    receive(log, "b", wire(1, 0, key=9, deps={"a": 7}))
    assert visible(log, "b") == 0
    receive(log, "a", wire(2, 0, shard=1, key=7, w=8))
    assert visible(log, "b") == 1


def test_visibility_waits_for_a_lane_never_heard_of():
    """An unknown lane meets no dependency; a later one on the same lane is held behind it."""
    log = Log("c", MeshConfig(), MemoryStore())
    receive(log, "b", wire(1, 0, deps={"a": 5}), wire(2, 1, deps={"a": 6}))
    assert visible(log, "b") == 0
    receive(log, "a", wire(1, 0, key=5, w=6))
    assert visible(log, "b") == 1
    receive(log, "a", wire(2, 1, key=6, w=INFINITY))
    assert visible(log, "b") == 2


def test_reader_bounds_of_a_stream_heard_of_but_not_received():
    """Until its events come, a stream begins and ends where a peer said."""
    log = Log("me", MeshConfig(), MemoryStore())
    reader = Reader(log)
    log.advertise("a", {0: (40, 70)})
    assert reader.bounds(Stream(0, "a")) == ("40", "70")
    receive(log, "a", wire(9, 40, count=30))
    assert reader.bounds(Stream(0, "a")) == ("40", "70")
    assert reader.read(Stream(0, "a"), "40", 10, None).gap is None


def test_reader_enters_a_new_stream_of_a_known_lane_at_its_beginning():
    """Clocks of other machines may lag: a stream that was not there is new, whatever its timestamps."""
    log = Log("me", MeshConfig(), MemoryStore())
    reader = Reader(log)
    log.advertise("a", {})
    since = time.time_ns() + 1
    receive(log, "a", wire(1, 0, key=since - 10**9))
    assert reader.enter(Stream(0, "a"), since) is None


def test_reader_enters_an_old_stream_of_a_lane_heard_of_later_by_time():
    """Of a lane that is heard of only now, old events are passed over once they are here."""
    log = Log("me", MeshConfig(), MemoryStore())
    reader = Reader(log)
    since = time.time_ns()
    log.advertise("a", {0: (0, 2)})
    assert reader.enter(Stream(0, "a"), since) is ...
    receive(log, "a", wire(1, 0, key=since - 10**10))
    assert reader.enter(Stream(0, "a"), since) is ...
    receive(log, "a", wire(2, 1, key=since + 1))
    assert reader.enter(Stream(0, "a"), since) == "1"


def test_reader_enters_an_old_stream_only_when_what_others_hold_of_it_is_here():
    """The peer that a lane comes from may still be fetching it: the end it tells is no end then."""
    log, members = Log("me", MeshConfig(), MemoryStore()), Members("me", "", "")
    reader, stream = Reader(log), Stream(0, "a")
    since = time.time_ns()
    log.advertise("a", {0: (0, 1)})
    members.learn(Record("relay", 1, "", "", [], [LaneRow("a", 0, 1)]))
    members.learn(Record("a", 1, "", "", [], [LaneRow("a", 0, 2)]))
    receive(log, "a", wire(1, 0, key=since - 10**10))
    assert reader.enter(stream, since, members.head("a")) is ...
    receive(log, "a", wire(2, 1, key=since - 10**10 + 1))
    assert reader.enter(stream, since, members.head("a")) == "2"


def test_lane_run_ends_with_the_entry_that_fills_it():
    """A run has its bytes or a little more, so that entries of half its size do not go one by one."""
    lane = Lane("a")
    for lsn in range(1, 6):
        lane.store(Entry(lsn, 0, lsn - 1, 1, 0, lsn, lsn, {}, bytes(60)))
    assert [[entry.lsn for entry in lane.after(after, 100)[0]] for after in (0, 2, 4, 5)] == [
        [1, 2],
        [3, 4],
        [5],
        [],
    ]
    assert [lane.after(after, 100)[1] for after in (0, 2, 4, 5)] == [2, 4, 5, 5]


def test_watermark_is_looked_at_while_a_shard_appends_for_the_first_time():
    """The I/O thread looks without the lock: that another thread adds a stream does not end it."""
    log = Log("a", MeshConfig(), MemoryStore())

    class Covered:
        @property
        def key(self):  # another thread runs
            log.lane.stream(len(log.lane.streams))
            return -1

    log.lane.streams[0] = Covered()
    assert not log.uncovered()


def test_entries_trimmed_while_a_page_is_made_of_them_are_a_gap():
    """Retention overtakes a reader between its look and its reading: it is told of a gap, with a number."""
    log = Log("me", MeshConfig(max_events=3), MemoryStore())
    reader = Reader(log)

    def store(first, last):
        for n in range(first, last + 1):
            log.publish([log.stage(0, [n], n + 1, {}, encode_body([n], [b"%d" % n]))])

    def overtaken(entry):
        log.body_of = body_of
        if entry.start == trigger:
            store(trigger + 4, trigger + 5)
        else:
            log.body_of = overtaken
        return body_of(entry)

    body_of = log.body_of
    store(1, 3)
    trigger, log.body_of = 0, overtaken
    page = reader.read(Stream(0, "me"), None, 10, None)
    assert ([event.raw for event in page.events], page.undecodable) == ([b"3", b"4", b"5"], 0)
    assert (page.gap.missed, page.gap.resumed_at) == (2, "2")

    reader = Reader(log)
    trigger, log.body_of = 3, overtaken
    page = reader.read(Stream(0, "me"), "2", 10, None)
    store(9, 9)
    assert ([event.raw for event in page.events], page.undecodable, page.has_more) == ([b"3"], 0, True)
    page = reader.read(Stream(0, "me"), page.position, 10, None)
    assert [event.raw for event in page.events] == [b"7", b"8", b"9"]
    assert page.gap.missed == 2


def test_decoded_events_are_kept_up_to_so_many_bytes():
    """Large payloads are not all held twice because they are few."""
    log = Log("me", MeshConfig(), MemoryStore())
    reader = Reader(log)
    large = bytes(1 << 20)
    for n in range(1, 65):
        log.publish([log.stage(0, [n], n + 1, {}, encode_body([n], [large]))])
    assert len(reader.read(Stream(0, "me"), None, 100, None).events) == 64
    assert 0 < sum(len(event.raw) for events, _ in reader._decoded.values() for event in events) <= 32 << 20


def test_members_answer_an_own_record_from_a_life_whose_clock_was_ahead():
    """A node that comes back under its name with an earlier clock is listened to all the same."""
    me, you = Members("me", "", ""), Members("you", "", "")
    ahead = time.time_ns() + 10**12
    you.learn(Record("me", ahead, "", "", ["gone"], []))
    me.learn(you.records["me"])
    assert you.learn(me.records["me"])
    assert you.records["me"].links == []
    me.update(["you"], [])
    assert you.learn(me.records["me"])
    assert you.records["me"].links == ["you"]


def test_members_do_not_answer_an_own_record_with_a_version_that_no_frame_may_carry():
    """A peer that claims the greatest version there is cannot make this node send invalid records."""
    me = Members("me", "", "")
    me.learn(Record("me", INFINITY, "", "", [], []))
    me.update(["you"], [])
    assert me.records["me"].version < INFINITY - 1


def test_causes_that_were_shown_by_force_are_shown_again_after_a_restart():
    """Own entries are visible at once, so what they depend on is too: no effect before its cause."""
    body = encode_body([5], [b"x"])
    log = Log("me", MeshConfig(), MemoryStore())
    cause = Entry(1, 0, 0, 1, 5, 5, 5, {"lost": 3}, body)  # its own cause and its watermark never came
    later = Entry(2, 0, 1, 1, 5, 7, 7, {"lost": 6}, body)
    log.restore(Kept("o", [cause, later], {0: (2, 7)}, 2, 5, 0))
    log.restore(Kept("me", [Entry(1, 0, 0, 1, 9, 8, 8, {"o": 5}, body)], {0: (1, 8)}, 1, 9, 0))
    log.settle()
    assert log.lane.streams[0].visible == 1
    assert log.lanes["o"].streams[0].visible == 1


def test_lanes_beyond_what_a_record_may_have_are_told_of_newest_first():
    """Nodes that came and went leave lanes behind; a table with all of them would end every link."""
    log = Log("me", MeshConfig(), MemoryStore())
    for n in range(5000):
        log.restore(Kept(f"o{n}", [], {0: (1, n)}, 1, n + 1, 0))
    rows = log.rows()
    assert len(rows) == 4096
    assert {row.origin for row in rows} == {"me", *(f"o{n}" for n in range(905, 5000))}
    decode(encode(Table(0, [Record("me", 1, "", "", [], rows)])))
