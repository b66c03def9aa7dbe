"""The mesh between processes: against eclipse-zenoh, encrypted, durable; latency, catch-up, idling.

    python benchmarks/mesh.py [--rows PATTERN] [--rounds N] [--json]

Rows are ratios of two ways measured in turns. Latency, catch-up and idle cost are printed after them,
each with the bound it must keep. Each measurement uses processes of its own on loopback.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import zmq
from harness import Row, main, selects

PEER = Path(__file__).with_name("mesh_peer.py")
COUNT = 1_000_000
SIZE = 120


class Peer:
    """A child process in one role."""

    def __init__(self, role: str, **settings: Any) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(PEER), role, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args} ended early")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def say(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("1\n")
        self.process.stdin.flush()

    def end(self) -> None:
        self.say()
        self.process.wait(60)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def mesh_run(count: int = COUNT, sender: Any = None, receiver: Any = None, server_key: str = "") -> float:
    """Return the seconds from the first ingest at one node to the last event polled at the other."""
    listen = {"listen": "tcp://127.0.0.1:*", **(sender or {})}
    one = Peer("send", count=count, size=SIZE, adapter=listen)
    address = one.hear()["address"]
    peers = [{"address": address, "public_key": server_key} if server_key else address]
    two = Peer("receive", count=count, adapter={"peers": peers, **(receiver or {})})
    two.hear()
    one.say()
    begin, end = one.hear()["begin"], two.hear()["end"]
    for peer in (two, one):
        peer.end()
    return float(end - begin)


def encrypted_run() -> float:
    """The same with CURVE."""
    (server, server_secret), (client, client_secret) = (
        [key.decode() for key in zmq.curve_keypair()] for _ in range(2)
    )
    return mesh_run(
        sender={"secret_key": server_secret, "authorized_keys": [client]},
        receiver={"secret_key": client_secret},
        server_key=server,
    )


def durable_run(*sides: str) -> float:
    """The same with durable logs, `fsync="interval"`, at the nodes named."""
    with tempfile.TemporaryDirectory() as folder:
        logs = {side: {"log": f"{folder}/{side}", "fsync": "interval"} for side in sides}
        return mesh_run(sender=logs.get("sender"), receiver=logs.get("receiver"))


def zenoh_run(count: int = COUNT) -> float:
    """Return the same for zenoh: first put to last event in the subscriber's hands."""
    endpoint = f"tcp/127.0.0.1:{free_port()}"
    one = Peer("zenoh_send", count=count, size=SIZE, endpoint=endpoint)
    one.hear()
    two = Peer("zenoh_receive", count=count, endpoint=endpoint)
    two.hear()
    one.say()
    begin, end = one.hear()["begin"], two.hear()["end"]
    for peer in (two, one):
        peer.end()
    return float(end - begin)


ROWS = [
    Row("mesh/zenoh", mesh_run, zenoh_run, COUNT, required=1.0),
    Row("mesh/encrypted to plain", encrypted_run, mesh_run, COUNT, required=0.8),
    Row("mesh/durable to memory", partial(durable_run, "sender", "receiver"), mesh_run, COUNT, required=0.7),
    Row("mesh/durable, the sender only", partial(durable_run, "sender"), mesh_run, COUNT),
    Row("mesh/durable, the receiver only", partial(durable_run, "receiver"), mesh_run, COUNT),
]


def latency(count: int = 1000) -> dict[str, Any]:
    """Half a round trip of single events, ingest to poll."""
    one = Peer("ping", count=count, delay_ms=0, adapter={"listen": "tcp://127.0.0.1:*"})
    two = Peer("pong", count=count, delay_ms=0, adapter={"peers": [one.hear()["address"]]})
    two.hear()
    one.say()
    found = one.hear()
    for peer in (two, one):
        peer.end()
    return {"latency_ms": found, "must": "p50 < 1, p99 < 5", "ok": found["p50"] < 1 and found["p99"] < 5}


def catch_up(count: int = COUNT) -> dict[str, Any]:
    """Seconds in which a node that joins late has polled everything, its opening included."""
    one = Peer("send", count=count, size=SIZE, live=False, adapter={"listen": "tcp://127.0.0.1:*"})
    address = one.hear()["address"]
    one.say()
    one.hear()
    two = Peer("receive", count=count, adapter={"peers": [address]})
    two.hear()
    times = two.hear()
    for peer in (two, one):
        peer.end()
    seconds = times["end"] - times["begin"]
    return {"catch_up_s": seconds, "events": count, "must": "< 3", "ok": seconds < 3}


def idling(nodes: int = 7, seconds: float = 5.0) -> dict[str, Any]:
    """Share of a core that each member of an idle mesh takes."""
    peers: list[Peer] = []
    addresses: list[str] = []
    for _ in range(nodes):
        adapter = {"listen": "tcp://127.0.0.1:*", "peers": list(addresses)}
        peers.append(Peer("idle", links=nodes - 1, seconds=seconds, adapter=adapter))
        addresses.append(peers[-1].hear()["address"])
    for peer in peers:
        peer.say()
    shares = [peer.hear()["share"] for peer in peers]
    for peer in peers:
        peer.end()
    return {"idle_share_of_a_core": max(shares), "nodes": nodes, "must": "< 0.01", "ok": max(shares) < 0.01}


if __name__ == "__main__":
    pattern = sys.argv[sys.argv.index("--rows") + 1] if "--rows" in sys.argv else "*"
    others = {"latency": latency, "catch_up": catch_up, "idling": idling}
    wanted = [others[name] for name in others if selects(pattern, f"mesh/{name}")]
    # With nothing wanted it says which rows there are.
    status = main(ROWS) if not wanted or any(selects(pattern, row.name) for row in ROWS) else 0
    for measurement in wanted:
        result = measurement()
        print(json.dumps(result))
        status = status or (0 if result["ok"] else 1)
    sys.exit(status)
