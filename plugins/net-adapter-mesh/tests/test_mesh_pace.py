"""When a node's threads wake, and what for: counted and read off, not timed."""

import logging
import threading
import time

import anyio
import pytest
from net_adapter_mesh import MeshConfig
from net_adapter_mesh.bridge import Bell
from net_adapter_mesh.frames import LaneRow, Record
from net_adapter_mesh.link import Link, Target
from net_adapter_mesh.log import Log
from net_adapter_mesh.node import Node
from net_adapter_mesh.report import report
from net_adapter_mesh.store import MemoryStore

BEAT = 0.5


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param


class Desk:
    """A node whose thread never runs: the test is its thread, and its clock."""

    def __init__(self):
        config, store = MeshConfig(heartbeat_ms=BEAT * 1000), MemoryStore()
        self.log = Log("me", config, store)
        self.news = self.sent = 0
        self.node = Node(
            config,
            None,
            self.log,
            store,
            news=self._ring,
            watermark=lambda: None,
            causal_wait_s=1.0,
            max_drift_ns=1 << 62,
            logger=logging.getLogger("test"),
        )
        self.now = time.monotonic()

    def _ring(self):
        self.news += 1

    def _post(self, frame):
        self.sent += 1
        return True

    def link(self, peer):
        """Have a link to a peer that was heard just now."""
        link = Link(self._post, lambda: None, None, self.now)
        link.peer = peer
        self.node.exchange.links[peer] = link
        return link

    def tick(self):
        """Tick when it is due; return how long the next one waits."""
        self.now = max(self.now, self.node._next_tick)
        self.node._tick(self.now)
        return self.node._next_tick - self.now

    def append(self):
        """Publish a batch of one event."""
        now = time.time_ns()
        self.log.publish([self.log.stage(0, [now], now + 1, {}, b"")])


@pytest.fixture
def desk(monkeypatch):
    made = Desk()
    monkeypatch.setattr(time, "monotonic", lambda: made.now)
    yield made
    made.node.transport.close()


def test_idle_node_ticks_once_a_heartbeat_and_wakes_nobody(desk):
    """Without news there is the heartbeat, and nothing for the event loop to do."""
    links = [desk.link(peer) for peer in ("a", "b", "c")]
    for _ in range(4):  # the links themselves are news
        desk.tick()
    rung, sent, began, ticks = desk.news, desk.sent, desk.now, 0
    while desk.now < began + 100 * BEAT - 0.001:
        for link in links:
            link.heard = desk.now
        desk.tick()
        ticks += 1
    assert ticks == 100
    assert desk.sent == sent + 100 * len(links)
    assert desk.news == rung


def test_news_bring_the_next_tick_to_half_a_heartbeat(desk):
    """What a node stores, and what it hears of others, is told on within half a heartbeat."""
    desk.tick()
    desk.tick()
    last = desk.now
    assert desk.node._ripe() == pytest.approx(last + BEAT)
    desk.append()
    assert desk.node._ripe() == pytest.approx(last + BEAT / 2)
    desk.tick()
    desk.tick()
    last = desk.now
    assert desk.node._ripe() == pytest.approx(last + BEAT)
    desk.node.members.learn(Record("other", 1, "", "", [], [LaneRow("other", 0, 5)]))
    assert desk.node._ripe() == pytest.approx(last + BEAT / 2)


def test_silent_link_is_dropped_after_four_heartbeats_on_time(desk):
    """Ticking seldom does not make a dead link live longer."""
    heard = desk.link("a").heard
    while "a" in desk.node.exchange.links:
        desk.tick()
    assert desk.now - heard == pytest.approx(4 * BEAT, abs=0.01)


def test_linked_member_that_was_heard_of_is_no_reason_to_tick(desk):
    """Its address is known and need not be dialed; once its link is gone, it is."""
    desk.link("a").told = desk.now
    target = Target("tcp://127.0.0.1:1", "", False)
    target.node, target.retry_at = "a", desk.now + 0.01
    desk.node._targets[target.address] = target
    assert desk.node._pause(desk.now, quiet=True) == pytest.approx(BEAT)
    del desk.node.exchange.links["a"]
    assert desk.node._pause(desk.now, quiet=True) == pytest.approx(0.01)


class Picked:
    """Stands for the event that the I/O thread sets; remembers who waited, and for how long."""

    def __init__(self, answer):
        self.answer = answer
        self.waits = []

    def is_set(self):
        return False

    def set(self):
        pass

    def clear(self):
        pass

    def wait(self, timeout):
        self.waits.append(timeout)
        return self.answer


@pytest.mark.parametrize(("picked", "waits"), [(True, 2), (False, 1)])
def test_small_batch_is_handed_to_the_thread_but_not_time_and_again(desk, picked, waits):
    """A wait for a single event at most once a millisecond; seldom if the thread does not come to run."""
    node, event = desk.node, Picked(picked)
    node._picked = event
    node.appended(1, 1)
    assert event.waits == []  # nobody to send it to
    desk.link("a")
    node._unpicked = 0
    node.appended(1, 1)
    node.appended(1, 1)
    assert len(event.waits) == 1
    desk.now += 0.002
    node.appended(1, 1)
    assert len(event.waits) == waits
    desk.now += 1.0
    node._unpicked = 0
    node.appended(1, 1000)
    assert len(event.waits) == waits  # a large batch takes its turn
    assert max(event.waits) <= 0.0005


@pytest.mark.anyio
async def test_bell_wakes_only_those_whose_condition_holds(anyio_backend):
    """Acknowledgements and ticks resume no task that waits for something else."""
    looks, answers, ready = [], [], False

    def condition():
        looks.append(threading.get_ident())
        return ready

    bell = Bell(lambda: answers.append(1))
    results = []

    async def waiter():
        results.append(await bell.until(condition, 10.0))

    async with anyio.create_task_group() as group:
        group.start_soon(waiter)
        await anyio.wait_all_tasks_blocked()
        assert len(looks) == 1
        for rung in range(1, 4):
            thread = threading.Thread(target=bell.ring)
            thread.start()
            thread.join()
            with anyio.fail_after(5):
                while len(answers) < rung:
                    await anyio.sleep(0.001)
            assert len(looks) == 1 + rung  # looked at by the callback, not by the task
            assert results == []
        ready = True
        bell.ring()
    assert results == [True]
    assert set(looks) == {threading.get_ident()}


@pytest.mark.anyio
async def test_bell_passes_a_failing_condition_on_to_its_waiter(anyio_backend):
    """The callback on the loop survives it."""
    calls = []

    def condition():
        calls.append(1)
        if len(calls) > 1:
            raise LookupError("gone")
        return False

    bell = Bell(lambda: None)
    async with anyio.create_task_group() as group:

        async def waiter():
            with pytest.raises(LookupError, match="gone"):
                await bell.until(condition, 10.0)

        group.start_soon(waiter)
        await anyio.wait_all_tasks_blocked()
        bell.ring()


@pytest.mark.anyio
async def test_bell_gives_up_in_time(anyio_backend):
    """False after the time-out, and nobody is left waiting."""
    bell = Bell(lambda: None)
    with anyio.fail_after(5):
        assert await bell.until(lambda: False, 0.01) is False
    assert not bell._waiting


def test_node_described_while_links_change_still_knows_of_the_change(desk, monkeypatch):
    """Another thread that describes the node puts no older picture in the place of what was learnt."""
    members = desk.node.members
    members.update(["you"], [])
    spread = members._spread

    def slow(*arguments):
        reach = spread(*arguments)
        members.learn(Record("you", 1, "", "", ["me"], []))  # the node's own thread, meanwhile
        return reach

    monkeypatch.setattr(members, "_spread", slow)
    assert report(MeshConfig(), desk.log, desk.node)["origin"] == "me"
    monkeypatch.undo()
    assert members.distances() == {"me": 0, "you": 1}
