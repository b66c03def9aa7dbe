"""`acks`, and what a closing producer leaves behind."""

import pytest
from mesh_cluster import NodeError, assert_complete


def test_acks_killed_right_after_append_a_peer_has_everything(cluster):
    """With acks=1 what was acknowledged survives its origin's sudden death, and is shown."""
    b = cluster.start()
    a = cluster.start(peers=[b.address], acks=1)
    a.ask("until", expression="len(stats['links']) == 1")
    a.ask("load", count=5000, batch=250)
    a.kill()
    assert_complete(b.ask("gather", count=5000)["events"], 5000)


def test_acks_with_too_few_peers_acknowledges_nothing_and_stores_once(cluster):
    """Without a peer the append fails as transient; its retry, once a peer is there, stores no copy."""
    a = cluster.start(acks=1, timeout_ms=300)
    a.ask("ingest", shard=0, payloads=["one", "two"])
    for _ in range(3):
        with pytest.raises(NodeError, match="TransientAdapterError: 0 of 1 peers"):
            a.ask("send", shard=0)
    assert a.ask("health")[0] is False
    b = cluster.start(peers=[a.address])
    assert a.ask("until", expression="len(stats['links']) == 1")
    assert a.ask("send", shard=0) == 2
    for node in (a, b):
        assert_complete(node.ask("gather", count=2)["events"], 2)


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_acks_of_a_peer_that_goes_and_comes_back_stores_each_batch_once(cluster, how):
    """An outage of the only peer is transient; what is here can be read all the while, and nothing is lost.

    This is what the contract suite asks in its clauses on outages, which have a backend in mind that
    nothing can be read from while it is away.
    """
    b = cluster.start()
    a = cluster.start(peers=[b.address], acks=1, timeout_ms=300)
    a.ask("until", expression="len(stats['links']) == 1")
    assert a.ask("append", shard=0, payloads=["before"]) == 1
    a.ask("ingest", shard=0, payloads=["during", "too"])
    if how == "stopped":
        b.stop()
    else:
        b.kill()
    for _ in range(2):
        with pytest.raises(NodeError, match="TransientAdapterError: 0 of 1 peers"):
            a.ask("send", shard=0)
    a.ask("until", expression="not stats['links']")
    assert a.ask("health")[0] is False
    assert "before" in [event[4] for event in a.ask("gather", count=1)["events"]]
    if how == "stopped":
        b.cont()
    else:
        b = cluster.start(listen=b.address)
    a.ask("until", expression="len(stats['links']) == 1")
    assert a.ask("health")[0] is True
    assert a.ask("send", shard=0) == 3
    for node in (a, b):
        assert_complete(node.ask("gather", count=3, chain="afterwards")["events"], 3)


def test_acks_of_two_counts_a_peer_behind_another(cluster):
    """A node without a link of its own counts once its table has come round."""
    b = cluster.start(discover=False)
    a = cluster.start(listen=None, peers=[b.address], acks=2)
    c = cluster.start(listen=None, peers=[b.address])
    a.ask("until", expression="len([p for p in stats['peers'].values() if p['hops']]) == 2")
    a.ask("append", shard=0, payloads=["x"])
    assert_complete(c.ask("gather", count=1)["events"], 1)


def test_close_leaves_nothing_unreplicated_while_a_peer_is_connected(cluster):
    """A producer that stores and closes at once has handed everything over."""
    b = cluster.start()
    a = cluster.start(listen=None, peers=[b.address])
    a.ask("until", expression="len(stats['links']) == 1")
    a.ask("load", count=20_000, batch=1000)
    assert a.ask("close")["unreplicated"] == 0
    a.kill()
    assert_complete(b.ask("gather", count=20_000)["events"], 20_000)


def test_close_without_a_peer_counts_what_nobody_else_has(cluster):
    """Alone, everything is unreplicated, and closing does not wait for anybody."""
    a = cluster.start(peers=["tcp://127.0.0.1:9"])
    a.ask("load", count=700, shards=3)
    begin = a.ask("clock_now")
    assert a.ask("close")["unreplicated"] == 700
    assert a.ask("clock_now") - begin < 2e9


def test_close_with_a_stopped_peer_gives_up_in_time(cluster):
    """A peer that does not answer holds a close up no longer than `timeout_ms`."""
    b = cluster.start(heartbeat_ms=2000)
    a = cluster.start(listen=None, peers=[b.address], timeout_ms=500, heartbeat_ms=2000)
    a.ask("until", expression="len(stats['links']) == 1")
    b.stop()
    a.ask("load", count=100)
    begin = a.ask("clock_now")
    assert a.ask("close")["unreplicated"] == 100
    assert a.ask("clock_now") - begin < 2.5e9
    b.cont()
