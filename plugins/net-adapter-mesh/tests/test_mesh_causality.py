"""Effects are never shown before their causes, whatever the links do."""

import json

import pytest


def assert_causal(shown):
    """Each event comes after all that its maker had been shown."""
    position = {}
    for origin, shard, at, _, text in shown:
        document = json.loads(text)
        for stream, least in document["seen"].items():
            assert position.get(stream, 0) >= least, f"{origin}/{shard} at {at} before {stream} at {least}"
        position[f"{origin}/{shard}"] = at


def test_causality_effect_waits_for_its_cause_behind_a_stalled_link(cluster):
    """C hears B's effect while A's cause is stuck: it shows the cause first, fetched from B."""
    a = cluster.start(discover=False, heartbeat_ms=400)
    b = cluster.start(discover=False, heartbeat_ms=400, peers=[a.address])
    slow = cluster.proxy(a)
    c = cluster.start(listen=None, discover=False, heartbeat_ms=400, peers=[b.address, slow.address])
    c.ask("until", expression=f"stats['lanes'].get('{a.origin}', {{}}).get('source') == '{a.origin}'")
    slow.do("stall")
    a.ask("append", shard=0, payloads=["cause"])
    assert b.ask("gather", count=1)["events"][0][4] == "cause"
    b.ask("append", shard=1, payloads=["effect"])
    c.ask("until", expression=f"stats['lanes'].get('{b.origin}', {{}}).get('held') == 1")
    assert c.ask("page")["events"] == []
    events = c.ask("gather", count=2)
    assert [event[4] for event in events["events"]] == ["cause", "effect"]
    assert events["gaps"] == []


def test_causality_program_order_holds_across_shards(cluster):
    """A later event of one origin waits at a replica for an earlier one that is not stored yet."""
    a, b = cluster.mesh(2)
    a.ask("ingest", shard=0, payloads=["earlier"])
    a.ask("append", shard=1, payloads=["later"])
    b.ask("until", expression=f"stats['lanes']['{a.origin}']['held'] == 1")
    assert b.ask("page")["events"] == []
    a.ask("send", shard=0)
    assert [event[4] for event in b.ask("gather", count=2)["events"]] == ["earlier", "later"]


def test_causality_evicted_predecessor_holds_nothing_back(cluster):
    """When what an event waits for is given up at its origin, a bare watermark says so."""
    a, b = cluster.mesh(2)
    a.ask("ingest", shard=0, payloads=["evicted"])
    a.ask("append", shard=1, payloads=["kept"])
    b.ask("until", expression=f"stats['lanes']['{a.origin}']['held'] == 1")
    a.ask("discard", shard=0)
    page = b.ask("gather", count=1)
    assert [event[4] for event in page["events"]] == ["kept"]
    assert page["gaps"] == []


def test_causality_lost_cause_is_given_up_after_the_wait_with_a_gap(cluster):
    """Once nobody reachable holds the cause, the effect is shown, with a gap on its stream."""
    a = cluster.start(discover=False, heartbeat_ms=5000)
    b = cluster.start(discover=False, heartbeat_ms=5000, peers=[a.address])
    slow = cluster.proxy(a)
    c = cluster.start(
        listen=None, discover=False, heartbeat_ms=5000, peers=[b.address, slow.address],
        options={"causal_wait_ms": 400},
    )  # fmt: skip
    c.ask("until", expression="len(stats['links']) == 2")
    slow.do("stall")
    a.ask("append", shard=0, payloads=["cause"])
    b.ask("gather", count=1)
    b.ask("append", shard=1, payloads=["effect", "second"])
    c.ask("until", expression=f"stats['lanes'].get('{b.origin}', {{}}).get('held') == 1")
    a.kill()
    b.kill()
    slow.do("cut")
    page = c.ask("gather", count=2)
    assert [event[4] for event in page["events"]] == ["effect", "second"]
    assert [gap[:3] for gap in page["gaps"]] == [[b.origin, 1, None]]
    assert c.ask("page")["gaps"] == []


def test_causality_dead_origin_leaves_nothing_hidden_for_ever(cluster):
    """An event that waited for its dead origin's watermark is shown after the wait, with a gap."""
    b = cluster.start(options={"causal_wait_ms": 300})
    a = cluster.start(peers=[b.address], acks=1)
    a.ask("until", expression="len(stats['links']) == 1")
    a.ask("ingest", shard=0, payloads=["never stored"])
    a.ask("append", shard=1, payloads=["secured"])
    assert b.ask("page")["events"] == []
    a.kill()
    page = b.ask("gather", count=1)
    assert [event[4] for event in page["events"]] == ["secured"]
    assert [gap[:3] for gap in page["gaps"]] == [[a.origin, 1, None]]


@pytest.mark.parametrize("rounds", [120, pytest.param(1500, marks=pytest.mark.faults)])
def test_causality_of_a_conversation_over_uneven_links(cluster, rounds):
    """Three nodes answer each other over links of different speed; each sees every event after all
    that its maker had seen."""
    a = cluster.start(discover=False)
    b = cluster.start(discover=False, peers=[a.address])
    to_a, to_b = cluster.proxy(a), cluster.proxy(b)
    to_a.delay(0.03)
    to_b.delay(0.005)
    c = cluster.start(discover=False, peers=[to_a.address, to_b.address])
    nodes = [a, b, c]
    for node in nodes:
        node.ask("until", expression="len(stats['links']) == 2")
    tags = [
        node.begin("converse", rounds=rounds, pause=pause)
        for node, pause in zip(nodes, (0.002, 0.003, 0.001), strict=True)
    ]
    for node, tag in zip(nodes, tags, strict=True):
        node.end(tag)
    for node in nodes:
        shown = node.ask("heard", count=3 * rounds)
        assert len(shown) == 3 * rounds
        assert_causal(shown)
