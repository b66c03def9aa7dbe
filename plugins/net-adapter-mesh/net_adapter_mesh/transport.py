"""The sockets of a node: one ROUTER if it listens, one DEALER a dialed link, all in the I/O thread.

A dialed socket lives for one connection: when that ends it is thrown away and a new one made, so
nothing queued for a peer's former life reaches its next one.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import zmq
from zmq.utils.monitor import recv_monitor_message

from net_adapter_mesh.config import MeshConfig
from net_adapter_mesh.frames import MAX_FRAME, Body, Reset
from net_adapter_mesh.link import Link, Target
from net_adapter_mesh.security import Gatekeeper, Keys

__all__ = ["Events", "Transport", "Waker"]

_BURST = 64
_FAILURES = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
_DIALER_EVENTS = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED | _FAILURES
# Frames that may wait unread on a socket: more than credit lets a peer send.
RECEIVED_MOST = 1 << 18
_DOWN = zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED | _FAILURES


class Events(Protocol):
    """What a transport tells its node. All calls come from the I/O thread."""

    def connected(self, link: Link) -> None:
        """Greet: a dialed link is up."""

    def received(self, link: Link, frame: bytes, more: Sequence[memoryview]) -> None:
        """Take a message: its first frame, and those behind it, which may be kept."""

    def lost(self, link: Link, why: str) -> None:
        """Forget a link that is gone."""


class Waker:
    """Wakes the I/O thread from any thread, through an inproc socket; wake-ups coalesce."""

    def __init__(self, context: zmq.Context[Any], name: str) -> None:
        self._lock = threading.Lock()
        self._pending = False
        self.inner = context.socket(zmq.PAIR)
        self.inner.bind(f"inproc://wake-{name}")
        self._outer = context.socket(zmq.PAIR)
        self._outer.connect(f"inproc://wake-{name}")

    def __call__(self) -> None:
        """Wake it. Never blocks, does nothing after `close`."""
        if self._pending:
            return
        with self._lock:
            if not self._pending and not self._outer.closed:
                self._pending = True
                self._outer.send(b"", zmq.NOBLOCK)

    def clear(self) -> None:
        """Take the wake-up, the only one there can be; what is asked for from now on wakes again.

        Both under the lock: a wake-up taken here while it counts as under way would be the last.
        """
        with self._lock, contextlib.suppress(zmq.Again):
            self.inner.recv(zmq.NOBLOCK)
            self._pending = False

    def close(self) -> None:
        """Release both ends."""
        with self._lock:
            self._pending = True
            self._outer.close(0)
        self.inner.close(0)


class Transport:
    """Makes, polls and ends the sockets.

    Args:
        config: addresses and heartbeat.
        keys: the CURVE keys, or None.
        events: whom to tell.
        logger: for refusals.
    """

    def __init__(self, config: MeshConfig, keys: Keys | None, events: Events, logger: logging.Logger) -> None:
        self._config = config
        self._keys = keys
        self._events = events
        self._context: zmq.Context[Any] = zmq.Context(io_threads=1)
        self._poller = zmq.Poller()
        self._handlers: dict[Any, Callable[[], None]] = {}
        self._inbound: dict[bytes, Link] = {}
        self._router: zmq.Socket[Any] | None = None
        self.address = ""
        self.wake = Waker(self._context, "io")
        self.gate = Gatekeeper(keys, logger)
        self._monitors = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self._watch(self.wake.inner, self.wake.clear)

    def listen(self) -> None:
        """Bind, if the configuration says so.

        Raises:
            OSError: the address is taken or not ours.
        """
        listen = self._config.listen
        if listen is None:
            return
        router = self._context.socket(zmq.ROUTER)
        self._common(router, listen)
        router.set(zmq.ROUTER_MANDATORY, 1)
        if self._keys is not None:
            self.gate.serve(self._context)
            self._watch(self.gate.socket, self.gate.answer)
            router.curve_server = True
            router.curve_secretkey = self._keys.secret
            router.curve_publickey = self._keys.public
            router.zap_domain = b"mesh"
        monitor = self._monitor(router, zmq.EVENT_ACCEPTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | _DOWN)
        self._router = router
        self._watch(monitor, lambda: self._watch_door(monitor))
        router.bind(listen)
        self.address = router.get_string(zmq.LAST_ENDPOINT)
        self._watch(router, lambda: self._drain_router(router))

    def dial(self, target: Target) -> Link:
        """Begin to connect; `connected` or `lost` follows."""
        dealer = self._context.socket(zmq.DEALER)
        self._common(dealer, target.address)
        dealer.set(zmq.RECONNECT_IVL, -1)
        dealer.set(zmq.IMMEDIATE, 1)
        if self._keys is not None:
            dealer.curve_secretkey = self._keys.secret
            dealer.curve_publickey = self._keys.public
            dealer.curve_serverkey = target.public_key.encode()
        monitor = self._monitor(dealer, _DIALER_EVENTS)

        def post(frames: Sequence[Body]) -> bool:
            return self._send(dealer, frames)

        def cut() -> None:
            self._forget(dealer, monitor)

        link = Link(post, cut, target, time.monotonic())
        self._watch(monitor, lambda: self._watch_dialer(monitor, link))
        self._watch(dealer, lambda: self._drain_dealer(dealer, link))
        dealer.connect(target.address)
        return link

    def poll(self, timeout: float) -> None:
        """Wait for something, at most `timeout` seconds, and pass it on."""
        for socket, _ in self._poller.poll(max(0, int(timeout * 1000 + 0.999))):
            handler = self._handlers.get(socket)
            if handler is not None:
                handler()

    def close(self) -> None:
        """Close every socket; what was sent to live peers gets a moment to leave."""
        self.wake.close()
        for link in list(self._inbound.values()):
            link.cut()
        for socket in list(self._handlers):
            if not socket.closed and socket.type in (zmq.DEALER, zmq.ROUTER):
                socket.monitor(None, 0)
        for socket in list(self._handlers):
            socket.close(200)
        self._handlers.clear()
        self._context.destroy(200)

    def _common(self, socket: zmq.Socket[Any], address: str) -> None:
        beat = int(self._config.heartbeat_ms)
        socket.set(zmq.LINGER, 0)
        socket.set(zmq.SNDHWM, 0)  # credit bounds what is queued
        socket.set(zmq.RCVHWM, RECEIVED_MOST)
        socket.set(zmq.MAXMSGSIZE, MAX_FRAME)
        # No heartbeats of ZeroMQ's own: if a connection fails while libzmq has stopped reading it, its
        # next heartbeat trips an assertion that aborts the process (4.3.5: `timer_event` writes without
        # a look at `_io_error`). Seen at nodes that were stopped for a while. The frames' own suffice.
        socket.set(zmq.HANDSHAKE_IVL, max(1000, 4 * beat))
        socket.set(zmq.IPV6, int("[" in address))

    def _monitor(self, socket: zmq.Socket[Any], events: int) -> zmq.Socket[Any]:
        """Have `socket` report events, to a reader whose queue never blocks the reporter.

        libzmq reports from its own thread and holds a lock meanwhile, which turning the monitor off
        takes too (holding Python's). If the reader were full, or closed first, both would hang.
        """
        self._monitors += 1
        address = f"inproc://monitor-{self._monitors}"
        socket.monitor(address, events)
        reader: zmq.Socket[Any] = self._context.socket(zmq.PAIR)
        reader.set(zmq.RCVHWM, 0)
        reader.set(zmq.LINGER, 0)
        reader.connect(address)
        return reader

    def _watch(self, socket: zmq.Socket[Any], handler: Callable[[], None]) -> None:
        self._poller.register(socket, zmq.POLLIN)
        self._handlers[socket] = handler

    def _forget(self, socket: zmq.Socket[Any], monitor: zmq.Socket[Any]) -> None:
        for each in (monitor, socket):
            if self._handlers.pop(each, None) is not None:
                self._poller.unregister(each)
        if not socket.closed:
            socket.monitor(None, 0)
            monitor.close(0)
            socket.close(100)

    def _send(self, socket: zmq.Socket[Any], parts: Sequence[Body]) -> bool:
        try:
            if socket.closed:
                return False
            socket.send_multipart(parts, zmq.NOBLOCK)
        except zmq.ZMQError:
            return False
        self.bytes_out += sum(map(len, parts))
        return True

    def _drain_dealer(self, dealer: zmq.Socket[Any], link: Link) -> None:
        for _ in range(_BURST):
            if dealer.closed:
                return
            try:
                frames = dealer.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.ZMQError:
                return
            self._received(link, frames)
            if dealer.closed or not int(dealer.get(zmq.EVENTS)) & zmq.POLLIN:
                return  # cheaper to ask than to fail

    def _drain_router(self, router: zmq.Socket[Any]) -> None:
        for _ in range(_BURST):
            try:
                frames = router.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.ZMQError:
                return
            identity = frames[0].bytes
            link = self._inbound.get(identity)
            if link is None:
                self.gate.entered(int(frames[-1].get(zmq.SRCFD)))
                link = self._accept(router, identity)
            self._received(link, frames[1:])
            if not int(router.get(zmq.EVENTS)) & zmq.POLLIN:
                return  # cheaper to ask than to fail

    def _accept(self, router: zmq.Socket[Any], identity: bytes) -> Link:
        def post(frames: Sequence[Body]) -> bool:
            return self._send(router, [identity, *frames])

        def cut() -> None:
            self._inbound.pop(identity, None)

        link = self._inbound[identity] = Link(post, cut, None, time.monotonic())
        return link

    def _received(self, link: Link, frames: list[zmq.Frame]) -> None:
        frame = frames[0].bytes if frames else b""
        more = [part.buffer for part in frames[1:]]
        self.bytes_in += len(frame) + sum(map(len, more))
        self._events.received(link, frame, more)

    def _watch_dialer(self, monitor: zmq.Socket[Any], link: Link) -> None:
        while not monitor.closed and monitor.poll(0):
            event = recv_monitor_message(monitor, zmq.NOBLOCK)["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._events.connected(link)
            elif event & _DOWN:
                refused = event & (zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH)
                self._events.lost(link, "the handshake was refused" if refused else "disconnected")
                return

    def _watch_door(self, monitor: zmq.Socket[Any]) -> None:
        while not monitor.closed and monitor.poll(0):
            message = recv_monitor_message(monitor, zmq.NOBLOCK)
            self.gate.door(message["event"], message["value"])


def reset(link: Link) -> None:
    """Tell an unknown sender to begin again, and forget it."""
    link.send(Reset())
    link.cut()
