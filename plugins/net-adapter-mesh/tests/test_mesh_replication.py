"""Two and more nodes: everything everywhere, in order, once."""

import pytest
from mesh_cluster import assert_complete


def test_mesh_of_two_each_ingesting_both_see_everything(cluster):
    """What either node stores, both read, each stream in order, nothing missing or twice."""
    a, b = cluster.mesh(2)
    a.ask("load", count=3000, shards=4, tag="a")
    b.ask("load", count=2000, shards=3, tag="b")
    seen = [node.ask("gather", count=5000)["events"] for node in (a, b)]
    for events in seen:
        assert_complete(events, 5000)
    assert sorted(seen[0]) == sorted(seen[1])
    assert {(origin, shard) for origin, shard, *_ in seen[0]} == {
        *((a.origin, shard) for shard in range(4)),
        *((b.origin, shard) for shard in range(3)),
    }


def test_mesh_of_three_under_load_all_see_the_same(cluster):
    """Three nodes append at once; each ends with the same events under the same positions."""
    nodes = cluster.mesh(3)
    tags = [
        (node, node.begin("load", count=4000, shards=2 + index, batch=50, tag=f"n{index}-"))
        for index, node in enumerate(nodes)
    ]
    for node, tag in tags:
        node.end(tag)
    seen = [sorted(node.ask("gather", count=12_000)["events"]) for node in nodes]
    assert_complete(seen[0], 12_000)
    assert seen[0] == seen[1] == seen[2]


def test_mesh_late_joiner_gets_history_then_follows_live_without_seam(cluster):
    """A node that joins under load has all that is retained and all that comes after."""
    a = cluster.start()
    a.ask("load", count=20_000, batch=500, tag="old")
    running = a.begin("load", count=10_000, batch=100, pause=0.005, tag="new")
    late = cluster.start(peers=[a.address])
    a.end(running)
    events = late.ask("gather", count=30_000)["events"]
    assert_complete(events, 30_000)
    assert sorted(events) == sorted(a.ask("gather", count=30_000)["events"])


def test_mesh_chain_forwards_through_the_middle_once(cluster):
    """A and C have no link; what either stores reaches the other through B."""
    b = cluster.start()
    a = cluster.start(listen=None, peers=[b.address])
    c = cluster.start(listen=None, peers=[b.address])
    a.ask("load", count=1000, tag="a")
    c.ask("load", count=500, shards=2, tag="c")
    for node in (a, b, c):
        assert_complete(node.ask("gather", count=1500)["events"], 1500)
    assert [link["peer"] for link in a.ask("stats")["links"]] == [b.origin]
    assert [link["peer"] for link in c.ask("stats")["links"]] == [b.origin]


def test_mesh_ring_broken_link_is_routed_around(cluster):
    """In a ring of four, the neighbour's death takes no event from those behind it."""
    a = cluster.start(discover=False)
    b = cluster.start(discover=False, peers=[a.address])
    c = cluster.start(discover=False, peers=[b.address])
    d = cluster.start(discover=False, peers=[c.address, a.address])
    c.ask("until", expression="len(stats['links']) == 2")
    a.ask("load", count=300, tag="one")
    assert_complete(c.ask("gather", count=300)["events"], 300)
    running = a.begin("load", count=3000, batch=20, pause=0.002, tag="two")
    c.ask("gather", count=200)
    b.kill()
    a.end(running)
    for node in (c, d):
        assert_complete(node.ask("gather", count=3300, chain="all")["events"], 3300)


def test_mesh_late_joiner_tail_begins_at_what_peers_hold(cluster):
    """A chain that starts at the tail on a fresh node gets nothing old and everything new."""
    a = cluster.start()
    a.ask("load", count=5000, tag="old")
    late = cluster.start(peers=[a.address])
    assert late.ask("page", chain="tail", start="tail")["events"] == []
    late.ask("gather", count=5000)
    a.ask("append", shard=1, payloads=["new"])
    events = late.ask("gather", chain="tail", count=1)["events"]
    assert [event[4] for event in events] == ["new"]


def test_mesh_memory_restart_is_a_new_incarnation(cluster):
    """A node restarted without a durable log has another origin; its former events stay."""
    a, b = cluster.mesh(2, node_id=None)
    named = cluster.start(node_id="worker", peers=[a.address])
    named.ask("append", shard=0, payloads=["before"])
    a.ask("gather", count=1)
    named.kill()
    again = cluster.start(node_id="worker", peers=[a.address])
    again.ask("append", shard=0, payloads=["after"])
    events = b.ask("gather", count=2)["events"]
    assert sorted(event[4] for event in events) == ["after", "before"]
    assert {event[0] for event in events} == {named.origin, again.origin}
    assert named.origin != again.origin
    assert named.origin.startswith("worker~")


def test_mesh_poll_is_repeatable_and_old_cursors_stay_good_at_any_node(cluster):
    """Polls take nothing away, and a position read at one node resumes at another."""
    a, b = cluster.mesh(2)
    a.ask("load", count=1000)
    first = a.ask("gather", chain="x", count=1000)["events"]
    assert a.ask("gather", chain="y", count=1000)["events"] == first
    assert b.ask("gather", chain="z", count=1000)["events"] == first


def test_mesh_retention_reports_the_gap_to_old_positions(cluster):
    """A chain that retention has overtaken skips to the earliest event and counts the missed."""
    a, b = cluster.mesh(2, max_events=200)
    a.ask("append", shard=0, payloads=["first"])
    assert len(b.ask("gather", count=1)["events"]) == 1
    a.ask("load", count=1000, shards=1, batch=50)
    b.ask("until", expression=f"stats['lanes']['{a.origin}']['streams'][0]['visible'] == 1001")
    page = b.ask("page")
    (gap,) = page["gaps"]
    assert gap[:2] == [a.origin, 0]
    assert gap[2] + len(page["events"]) == 1000
    assert page["events"][0][2] == gap[2] + 2
    assert b.ask("page") == {"events": [], "gaps": [], "undecodable": 0}


def test_mesh_wait_wakes_promptly_at_a_remote_append(cluster):
    """A waiting poll hears of a remote append without a polling interval in between."""
    a, b = cluster.mesh(2)
    a.ask("append", shard=0, payloads=["warm"])
    b.ask("gather", count=1)
    delays = []
    for number in range(20):
        waiting = b.begin("arrival")
        b.ask("stats")
        sent = a.begin("append", shard=0, payloads=[f"{number}"])
        arrived = b.end(waiting)
        a.end(sent)
        delays.append((arrived - b.ask("gather", count=1)["events"][0][3]) / 1e6)
    assert sorted(delays)[len(delays) // 2] < 20, delays


@pytest.mark.faults
def test_mesh_of_seven_under_load_and_kills_stays_complete(cluster):
    """Seven nodes append, two die: the rest agree on everything that any of them holds."""
    nodes = cluster.mesh(7, heartbeat_ms=200)
    tags = [
        node.begin("load", count=3000, shards=2, batch=30, pause=0.002, tag=f"{index}-")
        for index, node in enumerate(nodes)
    ]
    for node, tag in zip(nodes[2:], tags[2:], strict=True):
        node.end(tag)
    for node in nodes[:2]:
        node.kill()
    alive = nodes[2:]
    for node in alive:
        own = alive[0].ask("stats")
        assert own["failure"] == ""
        node.ask("gather", count=15_000, full=False, timeout=30)
    for node in alive:
        node.ask("until", expression="all(not lane['held'] for lane in stats['lanes'].values())", timeout=20)
    seen = [sorted(node.ask("page", chain="end")["events"]) for node in alive]
    assert all(events == seen[0] for events in seen)
    assert_complete(seen[0], len(seen[0]))
    assert sum(event[0] in {node.origin for node in alive} for event in seen[0]) == 15_000
