"""Stopped peers, cut links, overtaken replicas."""

from pathlib import Path

import pytest
from mesh_cluster import assert_complete


def resident(node):
    """Return a node's resident memory in bytes."""
    for line in Path(f"/proc/{node.process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


def test_faults_stopped_peer_catches_up(cluster):
    """A peer stopped for many heartbeats has everything soon after it goes on."""
    a, b, c = cluster.mesh(3)
    a.ask("load", count=500, tag="before")
    b.ask("gather", count=500, full=False)
    b.stop()
    a.ask("load", count=5000, pause=0.01, tag="during")
    c.ask("load", count=5000, pause=0.01, tag="also")
    c.ask("until", expression=f"'{b.origin}' not in [link['peer'] for link in stats['links']]")
    assert_complete(c.ask("gather", count=10_500)["events"], 10_500)
    b.cont()
    assert len(b.ask("gather", count=10_000)["events"]) == 10_000
    assert_complete(b.ask("gather", count=10_500, chain="again")["events"], 10_500)


def test_faults_stopped_peer_costs_others_no_memory_and_gets_a_gap(cluster):
    """With small retention, what a stopped peer misses is bounded memory elsewhere and a gap there."""
    a, b = cluster.mesh(2, max_bytes=200_000, credit_bytes=65_536)
    a.ask("load", count=2000, shards=1, size=500)
    b.ask("gather", count=300, full=False)
    before = resident(a)
    b.stop()
    a.ask("load", count=100_000, shards=1, size=500, batch=200)
    assert resident(a) - before < 25_000_000  # 50 MB went through
    b.cont()
    b.ask("until", expression=f"stats['lanes']['{a.origin}']['streams'][0]['visible'] == 102_000")
    page = b.ask("page")
    assert page["events"][-1][2] == 102_000
    missed = sum(gap[2] for gap in page["gaps"])
    assert missed > 90_000
    assert b.ask("page")["gaps"] == []


def test_faults_links_cut_and_healed_under_load_lose_nothing(cluster):
    """Links are reset and refused again and again while two nodes append; in the end all is there."""
    a = cluster.start(discover=False)
    proxies = [cluster.proxy(a), cluster.proxy(a)]
    b = cluster.start(discover=False, peers=[proxies[0].address])
    c = cluster.start(discover=False, peers=[proxies[1].address])
    tags = [(n, n.begin("load", count=6000, batch=30, pause=0.002, tag=t)) for n, t in ((a, "a"), (b, "b"))]
    for number in range(12):
        proxy = proxies[number % 2]
        c.ask("until", expression=f"driver.adapter.stats()['bytes_in'] > {number * 5000}")
        proxy.do("refuse")
        proxy.do("cut")
        proxy.do("refuse", False)
    for node, tag in tags:
        node.end(tag)
    for node in (a, b, c):
        assert_complete(node.ask("gather", count=12_000)["events"], 12_000)


def test_faults_dead_link_is_routed_around_within_two_heartbeats(cluster):
    """A black-holed direct link is replaced by the way through a third node."""
    beat = 400
    a = cluster.start(discover=False, heartbeat_ms=beat)
    b = cluster.start(discover=False, heartbeat_ms=beat, peers=[a.address])
    hole = cluster.proxy(a)
    c = cluster.start(discover=False, heartbeat_ms=beat, peers=[hole.address, b.address])
    c.ask("until", expression=f"stats['lanes'].get('{a.origin}', {{}}).get('source') == '{a.origin}'")
    a.ask("append", shard=0, payloads=["direct"])
    c.ask("gather", count=1)
    hole.do("stall")
    sent = a.ask("clock_now")
    a.ask("append", shard=0, payloads=["around"])
    assert [event[4] for event in c.ask("gather", count=1)["events"]] == ["around"]
    took_ms = (c.ask("clock_now") - sent) / 1e6
    assert took_ms < 2 * beat + 200
    hole.do("resume")
    c.ask("until", expression=f"stats['lanes']['{a.origin}']['source'] == '{a.origin}'")


@pytest.mark.faults
def test_faults_repeated_kills_of_a_durable_node_lose_nothing_acknowledged(cluster, tmp_path):
    """Killed and restarted twenty times under load, a durable node keeps all it acknowledged."""
    log = str(tmp_path / "a")
    a = cluster.start(log=log)
    b = cluster.start(peers=[a.address])
    acknowledged = 0
    for _ in range(20):
        kept = len(a.ask("page", chain="check")["events"])
        assert kept >= acknowledged
        a.begin("load", count=1_000_000, shards=3, batch=20, background=True)
        a.ask("until", expression="driver.appended >= 1000")
        acknowledged = kept + 1000
        a.kill()
        a = cluster.start(listen=a.address, log=log)
    events = a.ask("page", chain="check")["events"]
    assert len(events) >= acknowledged
    assert_complete(events, len(events))
    assert_complete(b.ask("gather", count=len(events))["events"], len(events))
