"""The I/O thread: owns the sockets, the links, the member table; everything timed happens here."""

from __future__ import annotations

import atexit
import logging
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from net_adapter_mesh.config import MeshConfig, host_of
from net_adapter_mesh.exchange import Exchange
from net_adapter_mesh.frames import Bye
from net_adapter_mesh.gossip import Members
from net_adapter_mesh.link import Link, Target
from net_adapter_mesh.log import Log, Store
from net_adapter_mesh.security import Keys
from net_adapter_mesh.transport import Transport

__all__ = ["Node"]

_STARVED: Final = 16
_HAND_OFF_S: Final = 0.002
_FEW: Final = 16
_FEW_HAND_OFF_S: Final = 0.0005
_FEW_PAUSE_S: Final = 0.001
_FEW_FAILED_S: Final = 0.05
_SILENT_BEATS: Final = 4.0
_W_FIRST_S: Final = 0.001
_W_LAST_S: Final = 0.1
_MAX_PAUSE_S: Final = 1.0
_SOON_S: Final = 0.005


class Node:
    """One I/O thread. Other threads only call `start`, `submit`, `appended`, `stop` and read counters.

    Args:
        config: this node's settings.
        keys: CURVE keys, or None.
        log: what is replicated.
        store: where received entries are kept.
        news: called when something that others wait for may have changed; any thread.
        watermark: called when the own watermark ought to move on; must not block.
        causal_wait_s: how long effects wait for causes that nobody reachable holds.
        max_drift_ns: greatest difference of clocks between two nodes.
        logger: for the little that is worth a line.
    """

    def __init__(
        self,
        config: MeshConfig,
        keys: Keys | None,
        log: Log,
        store: Store,
        *,
        news: Callable[[], None],
        watermark: Callable[[], None],
        causal_wait_s: float,
        max_drift_ns: int,
        logger: logging.Logger,
    ) -> None:
        self._config = config
        self._log = log
        self._news = news
        self._watermark = watermark
        self._causal_wait = causal_wait_s
        self._logger = logger
        self._beat = config.heartbeat_ms / 1000
        self._commands: deque[Callable[[], None]] = deque()
        self._unpicked = 0
        self._picked = threading.Event()
        self._next_hand_off = 0.0
        self._stopping = False
        self.failure: BaseException | None = None
        self._transport = Transport(config, keys, self, logger)
        key = keys.public.decode() if keys else ""
        self._keys = keys
        self.members = Members(log.own, "", key)
        self.exchange = Exchange(
            config, log, store, self.members, self.submit, self._hear, self._refuse, max_drift_ns
        )
        self._targets = {peer.address: Target(peer.address, peer.public_key, True) for peer in config.seeds}
        self._refused: set[tuple[str, str]] = set()
        self._next_tick = 0.0
        self._last_tick = 0.0
        self._w_due: float | None = None
        self._w_pause = _W_FIRST_S
        self._holding = False
        self._news_of = (0, 0)
        self._seen: tuple[object, ...] = ()
        self._thread = threading.Thread(target=self._run, name=f"mesh-{log.own}", daemon=True)

    def start(self) -> None:
        """Bind and start the thread.

        Raises:
            OSError: the address cannot be bound; everything is released.
        """
        try:
            self._transport.listen()
        except BaseException:
            self._transport.close()
            raise
        self.members.address = self._advertised()
        self.members.update([], self._log.rows())
        self._thread.start()
        self._pid = os.getpid()
        atexit.register(self._leave)

    def _leave(self) -> None:
        """End the thread of a node that nobody closed: libzmq would wait for its sockets for ever."""
        if os.getpid() == self._pid:
            self.stop(1.0)

    @property
    def transport(self) -> Transport:
        """The sockets, for their counters."""
        return self._transport

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def settled(self) -> bool:
        """Whether each seed has answered or failed once, and the lanes found were subscribed to."""
        links = list(self.exchange.links.values())
        return all(target.tried for target in list(self._targets.values()) if target.seed) and not (
            self.exchange.heads_pending and links
        )

    def submit(self, command: Callable[[], None]) -> None:
        """Run a callback on the I/O thread; from any thread."""
        self._commands.append(command)
        if threading.current_thread() is not self._thread:
            self._transport.wake()

    def appended(self, batches: int, events: int) -> None:
        """Say that the own lane grew. Now and then see to it that the thread really runs.

        A loop thread that keeps the interpreter lock busy starves the others: each release lets
        it be taken again before a waiter wakes. So wait, briefly, until the thread has picked up:
        every few times; and after a few events, which somebody may wait for, before what they set
        off here delays their way out. The latter at most once a millisecond, and seldom while the
        thread does not come to run that soon.
        """
        self._unpicked += batches
        self._transport.wake()
        if not self.exchange.links:
            return
        if self._unpicked >= _STARVED:
            self._picked.clear()
            self._picked.wait(_HAND_OFF_S)
        elif events <= _FEW and (now := time.monotonic()) >= self._next_hand_off:
            self._picked.clear()
            taken = self._unpicked == 0 or self._picked.wait(_FEW_HAND_OFF_S)
            self._next_hand_off = now + (_FEW_PAUSE_S if taken else _FEW_FAILED_S)

    def stop(self, timeout: float) -> bool:
        """Say goodbye and end the thread; True if it ended within `timeout` seconds."""
        atexit.unregister(self._leave)
        self._stopping = True
        self._transport.wake()
        if self._thread.ident is None:
            self._transport.close()
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _advertised(self) -> str:
        if self._config.advertise:
            return self._config.advertise
        address = self._transport.address
        return "" if host_of(address) in ("", "0.0.0.0", "*", "::") else address  # noqa: S104 # compared only

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._turn()
            for link in list(self.exchange.links.values()):
                link.send(Bye())
        except BaseException as error:  # surfaces in health and fails appends
            self.failure = error
            self._logger.exception("the I/O thread of the mesh adapter died")
        finally:
            self._transport.close()
            self._picked.set()
            self._news()

    def _turn(self) -> None:
        """One round: wait for something, handle it, send what may be sent."""
        now = time.monotonic()
        due = min(self._next_tick, self._w_due or self._next_tick)
        idle = not self._commands
        self._transport.poll(max(0.0, due - now) if idle else 0.0)
        self.exchange.keep()
        self._unpicked = 0
        if not self._picked.is_set():
            self._picked.set()
        while self._commands:
            self._commands.popleft()()
        if self.exchange.stale:
            self.exchange.route()
        self.exchange.pump()
        now = time.monotonic()
        self._watch_watermark(now)
        if now >= self._ripe():
            self._tick(now)

    def _ripe(self) -> float:
        """Renew and return the time of the next tick, after whatever came in this turn."""
        exchange, last = self.exchange, self._last_tick
        if exchange.dirty:
            self._next_tick = min(self._next_tick, last + _SOON_S)
        if self._news_of != (self._log.version, self.members.revision):  # tables may have to tell it
            self._next_tick = min(self._next_tick, last + self._beat / 2)
        return self._next_tick

    def _watch_watermark(self, now: float) -> None:
        """Ask for a bare watermark while the last entry's does not cover what was stored."""
        if not self.exchange.links or not self._log.uncovered():
            self._w_due, self._w_pause = None, _W_FIRST_S
        elif self._w_due is None:
            self._w_due = now + self._w_pause
        elif now >= self._w_due:
            self._watermark()
            self._w_pause = min(_W_LAST_S, 2 * self._w_pause)
            self._w_due = now + self._w_pause

    def _tick(self, now: float) -> None:
        exchange = self.exchange
        exchange.dirty = False
        self._last_tick = now
        self._dial(now)
        for link in list(exchange.links.values()):
            if now - link.heard >= _SILENT_BEATS * self._beat:
                self.lost(link, "silent")
        self.members.update(exchange.links, self._log.rows())
        self.members.forget(time.time_ns())
        for link in list(exchange.links.values()):
            exchange.table(link)
        news = (self._log.version, self.members.revision)
        if exchange.stale or exchange.routing.restless or news != self._news_of:
            exchange.route()
        if self._config.max_age_s is not None:
            self._log.expire()
        self._holding = self._log.release(self.members.can_grow, now, self._causal_wait)
        self._news_of = (self._log.version, self.members.revision)
        tried = sum(target.tried for target in list(self._targets.values()))
        seen = (*self._news_of, tried, *exchange.links, *exchange.heads_pending)
        changed, self._seen = seen != self._seen, seen
        if changed:
            self._news()
        self._next_tick = now + max(_SOON_S, self._pause(now, quiet=not changed))

    def _pause(self, now: float, *, quiet: bool) -> float:
        """Return how long the next tick may wait: half a heartbeat; all of it while nothing happens."""
        pause = self._beat if quiet and not self.exchange.routing.restless else self._beat / 2
        if self._holding:
            pause = min(pause, max(_SOON_S, self._causal_wait / 4))
        for link in self.exchange.links.values():
            pause = min(pause, link.told + self._beat - now, link.heard + _SILENT_BEATS * self._beat - now)
        for target in self._targets.values():
            if target.link is None and not self._has(target.node):
                pause = min(pause, target.retry_at - now)
        return pause

    def _has(self, node: str) -> bool:
        """Tell whether there is no need to dial a node: it is this one, or linked."""
        return node == self._log.own or node in self.exchange.links

    def _dial(self, now: float) -> None:
        """Dial seeds, and members heard of that this node is to dial."""
        if self._config.discover:
            self._discover()
        for target in list(self._targets.values()):
            link = target.link
            if link is not None and not link.peer and now - link.since > max(1.0, 4 * self._beat):
                self.lost(link, "no answer")
            if target.link is not None or now < target.retry_at:
                continue
            if self._has(target.node):
                target.tried = True
                target.retry_at = now + self._beat
                continue
            target.retry_at = now + _MAX_PAUSE_S
            target.link = self._transport.dial(target)

    def _discover(self) -> None:
        reach = self.members.distances()
        known = {target.node for target in self._targets.values() if target.node}
        for node, record in list(self.members.records.items()):
            mine = self.members.address
            ours = not mine or self._log.own > node
            trusted = self._keys is None or record.key.encode() in self._keys.authorized
            if (
                node in reach and node not in known and node != self._log.own and record.address and trusted
                and (ours or reach[node] > 1) and record.address not in self._targets
            ):  # fmt: skip
                target = Target(record.address, record.key, False)
                target.node = node
                self._targets[record.address] = target
        for address, target in list(self._targets.items()):
            if not target.seed and target.node not in reach and target.link is None:
                del self._targets[address]

    def connected(self, link: Link) -> None:
        """Greet on a dialed link."""
        self.exchange.greet(link)

    def received(self, link: Link, frame: bytes, more: Sequence[memoryview]) -> None:
        """Pass a message on."""
        target = link.target
        self.exchange.received(link, frame, more)
        if target is not None and link.peer:
            target.pause = 0.02
            target.tried = True

    def lost(self, link: Link, why: str) -> None:
        """Drop a link and dial again after a pause, if it was dialed."""
        target = link.target
        if target is not None and target.link is link:
            target.tried = True
            target.pause = min(_MAX_PAUSE_S, 2 * target.pause)
            target.retry_at = time.monotonic() + target.pause * random.uniform(0.5, 1)  # noqa: S311 # jitter
            self._next_tick = min(self._next_tick, target.retry_at)
            if "refused" in why:
                self._say(target.address, why)
        self.exchange.drop(link)

    def _hear(self) -> None:
        self._news()

    def _refuse(self, link: Link, why: str) -> None:
        """Drop a link for a reason that stays: say so once, dial again at the longest pause."""
        self._say(link.target.address if link.target else link.peer or "a peer that dialed", why)
        if link.target is not None:
            link.target.pause = _MAX_PAUSE_S
        self.lost(link, why)

    def _say(self, who: str, why: str) -> None:
        if (who, why.partition(":")[0][:40]) not in self._refused and len(self._refused) < 256:
            self._refused.add((who, why.partition(":")[0][:40]))
            self._logger.warning("no link with %s: %s", who, why)
