"""What a node tells of itself: the dict behind `stats().adapter`."""

from __future__ import annotations

import time
from bisect import bisect_right
from typing import Any

from net_adapter_mesh.config import MeshConfig
from net_adapter_mesh.log import Log
from net_adapter_mesh.node import Node

__all__ = ["report", "unreplicated"]


def unreplicated(log: Log, node: Node) -> int:
    """Count the own events retained here that no other node is known to hold."""
    best = max(list(node.exchange.acked.values()), default=0)
    count = 0
    with log.lock:
        for view in log.lane.streams.values():
            index = bisect_right(view.items, best, lo=view.first, key=lambda entry: entry.lsn)
            covered = view.items[index].start if index < len(view.items) else view.next
            count += view.next - covered
    return count


def report(config: MeshConfig, log: Log, node: Node) -> dict[str, Any]:
    """Describe the node: identity, peers, links, streams, lags, traffic, refusals."""
    now = time.monotonic()
    links = [
        {
            "peer": link.peer,
            "dialed": link.target.address if link.target else None,
            "up_s": round(now - link.since, 3),
            "silent_ms": round((now - link.heard) * 1000, 1),
            "credit_left": link.granted - link.sent,
            "bytes_received": link.received,
            "bytes_sent": link.sent,
        }
        for link in list(node.exchange.links.values())
    ]
    reach = node.members.reached()
    heads: dict[str, int] = {}
    members = node.members.snapshot()
    for record in members:
        for row in record.lanes:
            heads[row.origin] = max(heads.get(row.origin, 0), row.head)
    return {
        "mesh": config.name,
        "origin": log.own,
        "address": node.members.address,
        "listening": node.transport.address,
        "encrypted": config.encrypted,
        "peers": {
            record.node: {
                "address": record.address,
                "hops": reach.get(record.node),
                "acked": node.exchange.acked.get(record.node, 0),
            }
            for record in members
            if record.node != log.own
        },
        "links": links,
        "lanes": _lanes(log, heads, node),
        "unreplicated": unreplicated(log, node),
        "bytes_in": node.transport.bytes_in,
        "bytes_out": node.transport.bytes_out,
        "gaps": sum(lane.gaps for lane in list(log.lanes.values())),
        "refusals": node.transport.gate.refusals,
        "rejected_peers": dict(node.transport.gate.rejected),
        "failure": repr(node.failure) if node.failure else "",
    }


def _lanes(log: Log, heads: dict[str, int], node: Node) -> dict[str, Any]:
    """Describe each lane and its streams; lag is what is stored or announced and not visible yet."""
    lanes: dict[str, Any] = {}
    wall = time.time_ns()
    sources = dict(node.exchange.routing.sources)
    with log.lock:
        for origin, lane in log.lanes.items():
            streams = {}
            for shard, view in lane.streams.items():
                behind = max(view.next, view.advertised) - view.visible
                hidden = (
                    view.items[index] if (index := view.index_after(view.visible)) < len(view.items) else None
                )
                streams[shard] = {
                    "earliest": view.earliest,
                    "stored": view.next,
                    "visible": view.visible,
                    "lag_events": behind,
                    "lag_ms": round(max(0, wall - hidden.lo) / 1e6, 3) if hidden else 0.0,
                    "bytes": view.bytes,
                }
            lanes[origin] = {
                "head": lane.head,
                "known_head": max(lane.head, heads.get(origin, 0)),
                "floor": lane.floor,
                "gaps": lane.gaps,
                "held": len(lane.held) + len(lane.ready),
                "source": sources[origin].peer if origin in sources else "",
                "streams": streams,
            }
    return lanes
