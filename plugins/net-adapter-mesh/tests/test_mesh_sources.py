"""Which of two links a lane's entries are taken from, and what happens to those under way at a change."""

import time

import pytest
from net_adapter_mesh import MeshConfig
from net_adapter_mesh.exchange import Exchange
from net_adapter_mesh.frames import (
    Credit,
    Entries,
    Heads,
    LaneRow,
    Record,
    Reset,
    Subscribe,
    Table,
    WireEntry,
    decode,
    encode,
)
from net_adapter_mesh.gossip import Members
from net_adapter_mesh.link import Link
from net_adapter_mesh.log import Log
from net_adapter_mesh.store import MemoryStore


class SlowStore(MemoryStore):
    """Takes everything, and answers when told."""

    def __init__(self):
        self.slow = False
        self.taken = []

    def put(self, group):
        self.taken += group
        if not self.slow:
            self.answer()

    def answer(self):
        taken, self.taken = self.taken, []
        for put in taken:
            put.done()


class Desk:
    """One node's side of its links, no thread and no socket behind it."""

    def __init__(self):
        config, self.store = MeshConfig(), SlowStore()
        self.log = Log("me", config, self.store)
        self.said = {}
        self.exchange = Exchange(
            config, self.log, self.store, Members("me", "", ""), lambda command: command(),
            lambda: None, self._refuse, 1 << 62,
        )  # fmt: skip
        self.refused = []

    def _refuse(self, link, why):
        self.refused.append(why)
        self.exchange.drop(link)

    def link(self, peer=""):
        said = []
        link = Link(lambda frames: said.append(frames[0]) or True, lambda: None, None, time.monotonic())
        self.said[link] = said
        link.peer = peer
        if peer:
            self.exchange.links[peer] = link
            self.exchange.grant(link)
        return link

    def hear(self, link, message, *more):
        self.exchange.received(link, encode(message), more)

    def table(self, link, *records):
        self.hear(link, Table(time.time_ns(), list(records)))
        self.exchange.members.update(self.exchange.links, self.log.rows())
        self.exchange.route()

    def heard(self, link, kind):
        return [message for message in map(decode, self.said[link]) if isinstance(message, kind)]


@pytest.fixture
def desk():
    return Desk()


def _record(node, head, *links, floor=0):
    return Record(node, time.time_ns(), "", "", ["me", *links], [LaneRow("o", floor, head)])


def _run(first, last):
    """Entries of one event each, number and position alike, each covered by its successor's watermark."""
    wire = [WireEntry(n, 0, n - 1, 1, 10 * n, 10 * n, 10 * n, {}, b"\x92\x91\x01\x91\xc4\x00") for n in
            range(first, last + 1)]  # fmt: skip
    return Entries("o", last, wire)


def test_entries_from_before_a_change_of_source_and_back_make_no_hole(desk):
    """What a relay sent before it was left is not taken once it is chosen again: something is missing
    before it."""
    relay, origin = desk.link("relay"), desk.link("o")
    desk.table(relay, _record("relay", 30))
    assert desk.exchange.routing.sources["o"] is origin
    desk.exchange.drop(origin)
    desk.table(relay, _record("relay", 30))
    assert [message.after for message in desk.heard(relay, Subscribe) if message.on] == [0]
    desk.hear(relay, Heads("o", 30, {0: (0, 30)}))
    desk.hear(relay, _run(1, 10))

    origin = desk.link("o")  # the origin is back, then gone again; 11 to 30 are under way meanwhile
    desk.table(relay, _record("relay", 30))
    desk.hear(relay, _run(11, 20))
    desk.exchange.drop(origin)
    desk.table(relay, _record("relay", 30))
    desk.hear(relay, _run(21, 30))
    assert desk.log.heads("o") == (10, {0: 10})

    assert desk.heard(relay, Subscribe)[-1] == Subscribe("o", 10)
    desk.hear(relay, Heads("o", 30, {0: (0, 30)}))
    desk.hear(relay, _run(11, 30))
    assert desk.log.heads("o") == (30, {0: 30})
    assert desk.log.lanes["o"].floor == 0
    assert desk.heard(relay, Credit)


def test_entries_wait_for_the_answer_to_the_last_of_several_subscriptions(desk):
    """Left and chosen again twice before the peer has answered once: only its last answer counts."""
    relay = desk.link("relay")
    desk.table(relay, _record("relay", 30))
    for _ in range(2):
        origin = desk.link("o")
        desk.table(relay, _record("relay", 30))
        desk.exchange.drop(origin)
        desk.table(relay, _record("relay", 30))
    assert sum(message.on for message in desk.heard(relay, Subscribe)) == 3
    for _ in range(2):
        desk.hear(relay, Heads("o", 30, {0: (0, 30)}))
        desk.hear(relay, _run(11, 20))
    assert desk.log.heads("o")[0] == 0
    desk.hear(relay, Heads("o", 30, {0: (0, 30)}))
    desk.hear(relay, _run(1, 30))
    assert desk.log.heads("o") == (30, {0: 30})


def test_entries_behind_others_that_are_not_stored_yet_are_no_hole(desk):
    """While the store is behind, a relay's next run follows what is under way, and the relay is kept."""
    one, other = desk.link("one"), desk.link("other")
    for _ in range(2):
        desk.table(one, _record("one", 30))
        desk.table(other, _record("other", 30))
    source = desk.exchange.routing.sources["o"]
    assert source in (one, other)
    desk.hear(source, Heads("o", 30, {0: (0, 30)}))
    desk.store.slow = True
    desk.hear(source, _run(1, 10))
    desk.hear(source, _run(11, 20))
    assert desk.exchange.routing.sources["o"] is source
    desk.store.answer()
    assert desk.log.heads("o") == (20, {0: 20})
    desk.hear(source, _run(25, 30))  # a hole that the other one can fill
    assert "o" not in desk.exchange.routing.sources


def test_entries_from_a_stranger_are_answered_with_reset(desk):
    """Whoever thinks there is a link hears that there is none, whether bodies come apart or not."""
    for more in ([], [memoryview(b"a body")]):
        stranger = desk.link()
        desk.hear(stranger, _run(1, 1), *more)
        assert desk.heard(stranger, Reset) == [Reset()]
    assert desk.refused == []
