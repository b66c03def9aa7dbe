"""Start, drive, stop and kill node processes from a test."""

import asyncio
import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from netcore.testing.proxy import FaultyProxy

SCRIPT = Path(__file__).with_name("mesh_node.py")


class NodeError(Exception):
    """A node answered with an error."""


class Node:
    """A node process. Requests are answered in any order; `ask` waits for its own."""

    def __init__(self, options, config, bus):
        settings = {"config": config, "options": options, "bus": bus}
        argument = base64.b64encode(json.dumps(settings).encode()).decode()
        self.config = config
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT), argument],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        )
        self._answers = {}
        self._new = threading.Condition()
        self._tag = 0
        self._ended = False
        self.err = []
        self._threads = [
            threading.Thread(target=target, daemon=True) for target in (self._collect, self._listen)
        ]
        for thread in self._threads:
            thread.start()

    def _collect(self):
        for line in self.process.stdout:
            document = json.loads(line)
            with self._new:
                self._answers[document.get("tag_")] = document
                self._new.notify_all()
        with self._new:
            self._ended = True
            self._new.notify_all()

    def _listen(self):
        for line in self.process.stderr:
            self.err.append(line.decode())

    def begin(self, op, **arguments):
        """Send a request; `end` gets its answer."""
        self._tag += 1
        line = json.dumps({"op": op, "tag_": self._tag, **arguments}) + "\n"
        self.process.stdin.write(line.encode())
        self.process.stdin.flush()
        return self._tag

    def end(self, tag, timeout=60.0):
        deadline = time.monotonic() + timeout
        with self._new:
            while tag not in self._answers:
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    raise NodeError(f"no answer: {''.join(self.err)[-3000:]}")
                self._new.wait(left)
            document = self._answers.pop(tag)
        if "error" in document:
            raise NodeError(document["error"] + "\n" + document["trace"])
        return document["value"]

    def ask(self, op, **arguments):
        return self.end(self.begin(op, **arguments))

    def logged(self, text, timeout=10.0):
        """Wait for a log line with `text`; return all such lines."""
        deadline = time.monotonic() + timeout
        while not any(text in line for line in self.err) and time.monotonic() < deadline:
            time.sleep(0.005)
        return [line for line in self.err if text in line]

    def ready(self):
        opened = self.end(None)
        self.origin, self.address = opened["origin"], opened["address"]
        return self

    def kill(self):
        """kill -9, and wait until it is gone."""
        self.process.kill()
        self.gone()

    def stop(self):
        """SIGSTOP, and wait until every thread has come to rest."""
        self.process.send_signal(signal.SIGSTOP)
        tasks = Path(f"/proc/{self.process.pid}/task")
        deadline = time.monotonic() + 10
        while any(
            (task / "stat").read_text().rpartition(")")[2].split()[0] != "T" for task in tasks.iterdir()
        ):
            if time.monotonic() > deadline:
                raise NodeError("the process does not stop")
            time.sleep(0.001)

    def cont(self):
        self.process.send_signal(signal.SIGCONT)

    def quit(self):
        """End it in good order."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.gone()

    def gone(self):
        self.process.wait(10)
        for thread in self._threads:
            thread.join(10)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


class Proxy:
    """A faulty TCP proxy in a thread of its own, so that tests may block."""

    def __init__(self, address):
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        host, port = address.removeprefix("tcp://").rsplit(":", 1)
        self._proxy = FaultyProxy(host, int(port))
        self._run(self._proxy.start())
        self.address = f"tcp://{self._proxy.host}:{self._proxy.port}"

    def _run(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def do(self, name, *arguments, **named):
        """Call a method of the proxy."""

        async def call():
            return getattr(self._proxy, name)(*arguments, **named)

        return self._run(call())

    def delay(self, seconds):
        self._proxy.delay = seconds

    def close(self):
        self._run(self._proxy.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


class Cluster:
    """Nodes of one test, ended with it."""

    def __init__(self):
        self.nodes = []
        self.proxies = []

    def proxy(self, node):
        """Put a proxy in front of a node."""
        self.proxies.append(Proxy(node.address))
        return self.proxies[-1]

    def begin(self, *, options=None, bus=False, **config):
        """Start a node without waiting for it."""
        config.setdefault("heartbeat_ms", 100)
        node = Node(options or {}, config, bus)
        self.nodes.append(node)
        return node

    def start(self, *, listen="tcp://127.0.0.1:*", **config):
        """Start a node and wait until it is open."""
        return self.begin(listen=listen, **config).ready()

    def mesh(self, count, **config):
        """Start `count` nodes, each dialing all before it; wait until all are linked to all."""
        nodes = []
        for _ in range(count):
            nodes.append(self.start(peers=[node.address for node in nodes], **config))
        for node in nodes:
            node.ask("until", expression=f"len(stats['links']) == {count - 1}")
        return nodes

    def close(self):
        for node in self.nodes:
            if node.process.stdin and not node.process.stdin.closed:
                node.quit()
        for proxy in self.proxies:
            proxy.close()


def per_stream(events):
    """Group `[origin, shard, position, ts, text]` by stream."""
    streams = {}
    for origin, shard, position, _, text in events:
        streams.setdefault((origin, shard), []).append((position, text))
    return streams


def assert_complete(events, total):
    """Nothing missing, nothing twice, every stream in order."""
    assert len(events) == total
    for items in per_stream(events).values():
        assert [position for position, _ in items] == list(range(1, len(items) + 1))
