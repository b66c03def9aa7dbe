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
