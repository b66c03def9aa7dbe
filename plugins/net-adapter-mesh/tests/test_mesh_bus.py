"""Whole buses on a mesh: what a user of it sees."""

from mesh_cluster import assert_complete
from test_mesh_causality import assert_causal


def buses(cluster, *shards, **config):
    """Start one bus for each number of shards, linked to all before it."""
    nodes = []
    for count in shards:
        peers = [node.address for node in nodes]
        nodes.append(cluster.start(bus=True, peers=peers, options={"shards": count}, **config))
    for node in nodes:
        node.ask("until", expression=f"len(stats['links']) == {len(nodes) - 1}")
    return nodes


def test_bus_nodes_with_different_shards_poll_the_same_in_order(cluster):
    """Every bus polls what all ingested, sorted by time over stored events, once."""
    a, b = buses(cluster, 4, 2)
    tags = [node.begin("load", count=3000, tag=tag) for node, tag in ((a, "a"), (b, "b"))]
    for node, tag in zip((a, b), tags, strict=True):
        node.end(tag)
    seen = [node.ask("gather", count=6000, chain="end") for node in (a, b)]
    for events in seen:
        assert_complete(events, 6000)
    assert sorted(seen[0]) == sorted(seen[1])
    assert {shard for origin, shard, *_ in seen[0] if origin == a.origin} == {0, 1, 2, 3}
    later = a.ask("gather", count=6000, chain="again")
    assert [event[3] for event in later] == sorted(event[3] for event in later)


def test_bus_cursor_of_one_node_resumes_at_another(cluster):
    """A consumer may change nodes: its cursor goes on exactly where it was."""
    a, b = buses(cluster, 2, 2)
    a.ask("load", count=1000)
    b.ask("gather", count=1000, chain="wait")
    first = a.ask("poll", chain="c", limit=400)
    b.ask("resume", chain="c", cursor=first["cursor"])
    rest = b.ask("gather", chain="c", count=600)
    assert_complete(sorted(first["events"] + rest, key=lambda event: event[2]), 1000)


def test_bus_late_tail_consumer_gets_only_new_events(cluster):
    """`start="tail"` at a node that just joined begins now."""
    (a,) = buses(cluster, 3)
    a.ask("load", count=2000)
    late = cluster.start(bus=True, peers=[a.address], options={"shards": 2})
    assert late.ask("poll", chain="t", start="tail")["events"] == []
    a.ask("ingest", payloads=["new"])
    assert [event[4] for event in late.ask("gather", chain="t", count=1)] == ["new"]


def test_bus_tail_consumer_hears_the_first_event_of_an_idle_peer(cluster):
    """A chain at the tail gets what a peer ingests as its very first, although that peer's clock,
    idle so far, may lag a little."""
    a, b = buses(cluster, 2, 2)
    for number in range(3):
        chain = f"tail{number}"
        assert b.ask("poll", chain=chain, start="tail")["events"] == []
        a.ask("ingest", payloads=[f"{number}"])
        assert [event[4] for event in b.ask("gather", chain=chain, count=1)] == [f"{number}"]


def test_bus_earliest_consumer_on_a_fresh_node_gets_the_history(cluster):
    """A chain at the beginning, begun before the history has come, still gets all of it."""
    (a,) = buses(cluster, 3)
    a.ask("load", count=20_000)
    for _ in range(3):
        late = cluster.start(bus=True, listen=None, peers=[a.address], options={"shards": 1})
        assert_complete(late.ask("gather", count=20_000), 20_000)
        late.quit()


def test_bus_tail_consumer_does_not_get_the_history_of_a_node_heard_of_later(cluster):
    """A mesh that joins later brings its past along; a chain at the tail passes over it."""
    a = cluster.start(bus=True, options={"shards": 2})
    b = cluster.start(bus=True, options={"shards": 2})
    b.ask("load", count=5000, tag="old")
    a.ask("sleep", seconds=0.3)  # events of the last quarter of a second would be let in
    assert a.ask("poll", chain="t", start="tail")["events"] == []
    bridge = cluster.start(bus=True, listen=None, peers=[a.address, b.address])
    bridge.ask("gather", count=5000, chain="all")
    b.ask("ingest", payloads=["new"])
    events = a.ask("gather", chain="t", count=1)
    assert [event[4] for event in events] == ["new"]


def test_bus_conversation_is_causal_everywhere(cluster):
    """Three buses answer each other; each page sequence shows causes before effects."""
    nodes = buses(cluster, 3, 2, 1)
    tags = [node.begin("converse", rounds=100) for node in nodes]
    for node, tag in zip(nodes, tags, strict=True):
        node.end(tag)
    for node in nodes:
        shown = node.ask("heard", count=300)
        assert len(shown) == 300
        assert_causal(shown)


def test_bus_flush_with_acks_then_kill_loses_nothing(cluster):
    """After `flush()` with acks=1 the other bus has everything."""
    a, b = buses(cluster, 4, 2, acks=1)
    a.ask("load", count=5000)
    a.kill()
    assert_complete(b.ask("gather", count=5000), 5000)


def test_bus_shutdown_hands_everything_over(cluster):
    """A producer that ingests and shuts down leaves nothing unreplicated."""
    a, b = buses(cluster, 4, 2)
    a.ask("ingest", payloads=[str(number) for number in range(2000)])
    report = a.ask("shutdown")
    assert report == {"lost": 0, "unreplicated": 0, "dispatched": 2000}
    a.kill()
    assert_complete(b.ask("gather", count=2000), 2000)


def test_bus_shutdown_alone_counts_what_nobody_has(cluster):
    """The shutdown report says how many events exist here only."""
    (a,) = buses(cluster, 2)
    a.ask("ingest", payloads=["x"] * 50)
    assert a.ask("shutdown")["unreplicated"] == 50


def test_bus_added_shards_show_up_at_peers(cluster):
    """Events of shards added later are polled at every node."""
    a, b = buses(cluster, 1, 1)
    a.ask("add_shards", count=3)
    a.ask("load", count=400)
    events = b.ask("gather", count=400)
    assert_complete(events, 400)
    assert {event[1] for event in events} == {0, 1, 2, 3}
