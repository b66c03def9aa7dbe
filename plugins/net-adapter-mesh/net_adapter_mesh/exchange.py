"""What nodes say to each other over links: greeting, tables, subscriptions, entries, credit, acks.

Knows no sockets: frames come in through `received`, go out through `Link.post`. I/O thread only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from net_adapter_mesh.config import MeshConfig
from net_adapter_mesh.frames import (
    APART_BYTES,
    MAGIC,
    VERSION,
    Ack,
    Body,
    Bye,
    Credit,
    Entries,
    FrameError,
    Heads,
    Hello,
    Message,
    Refuse,
    Reset,
    Subscribe,
    Table,
    WireEntry,
    bodies,
    decode,
    encode,
)
from net_adapter_mesh.gossip import Members
from net_adapter_mesh.lane import Entry
from net_adapter_mesh.link import Link
from net_adapter_mesh.log import Log, Put, Store
from net_adapter_mesh.routing import Routing
from netcore import TransientAdapterError

__all__ = ["Exchange"]

RUN_BYTES: Final = 256 << 10
_EARLY_BEATS: Final = 0.6
"""A heartbeat may go out that much of one after the last, to go out with others."""
OVERHEAD: Final = 64
"""What an entry counts against credit beside its body."""


class Exchange:
    """The protocol of one node.

    Args:
        config: this node's settings.
        log: what is replicated.
        store: where received entries are kept before they count.
        members: the gossip table.
        post: runs a callback on the I/O thread (from any thread).
        news: called when acks, lanes or visible events may have changed.
        refuse: called with a link and why it was refused, for a log line.
        max_drift_ns: greatest difference between two nodes' clocks.
    """

    def __init__(
        self,
        config: MeshConfig,
        log: Log,
        store: Store,
        members: Members,
        post: Callable[[Callable[[], None]], None],
        news: Callable[[], None],
        refuse: Callable[[Link, str], None],
        max_drift_ns: int,
    ) -> None:
        self._config = config
        self._log = log
        self._store = store
        self.members = members
        self._post = post
        self._news = news
        self._refuse = refuse
        self._max_drift_ns = max_drift_ns
        self._early_s = config.heartbeat_ms / 1000 * _EARLY_BEATS
        self.links: dict[str, Link] = {}
        self.routing = Routing(log, members, self.links, config)
        self.acked: dict[str, int] = {}
        self._arrived: list[Put] = []
        self.dirty = False
        """The table has changed in a way that others should hear of soon."""
        self.stale = False
        """Sources have to be chosen anew."""
        self.heads_pending: set[str] = set()
        self._handlers: dict[type, Callable[[Link, Message], None]] = {
            Table: self._on_table,  # type: ignore[dict-item]
            Subscribe: self._on_subscribe,  # type: ignore[dict-item]
            Heads: self._on_heads,  # type: ignore[dict-item]
            Credit: self._on_credit,  # type: ignore[dict-item]
            Ack: self._on_ack,  # type: ignore[dict-item]
        }

    def greet(self, link: Link) -> None:
        """Say Hello, once a link."""
        if not link.greeted:
            link.greeted = True
            link.send(Hello(MAGIC, VERSION, self._config.name, self._log.own, time.time_ns()))

    def received(self, link: Link, frame: bytes, more: Sequence[memoryview] = ()) -> None:
        """Take one message, and the frames behind it; a link that breaks the rules is dropped."""
        link.heard = time.monotonic()
        link.frames_in += 1
        try:
            message = decode(frame)
            if isinstance(message, Entries) and link.peer:
                self._on_entries(link, message, bodies(message, more))
            elif more and link.peer:
                raise FrameError("frames behind a message that has none")
            elif isinstance(message, Hello):
                self._on_hello(link, message)
            elif isinstance(message, Refuse):
                self._refuse(link, f"the other side refused: {message.reason}")
            elif isinstance(message, Reset | Bye):
                self.drop(link)
            elif not link.peer:
                link.send(Reset())
                self.drop(link)
            else:
                self._handlers[type(message)](link, message)
        except FrameError as error:
            self._refuse(link, str(error))

    def drop(self, link: Link) -> None:
        """Forget a link and everything that hung on it."""
        link.cut()
        if link.target is not None and link.target.link is link:
            link.target.link = None
        if link.peer and self.links.get(link.peer) is link:
            del self.links[link.peer]
            self.routing.lost(link)
            self.dirty = True
            self.stale = True
        self._news()

    def _on_hello(self, link: Link, hello: Hello) -> None:
        drift = abs(hello.clock - time.time_ns())
        why = ""
        if hello.magic != MAGIC or hello.version != VERSION:
            why = f"it speaks {hello.magic!r} version {hello.version}, this node version {VERSION}"
        elif hello.mesh != self._config.name:
            why = f"it belongs to the mesh {hello.mesh!r}, this node to {self._config.name!r}"
        elif drift > self._max_drift_ns:
            why = f"its clock differs by more than max_clock_drift_ms: by {drift / 1e9:.1f} s"
        if why:
            link.send(Refuse(why[:512]))
            self._refuse(link, why)
            return
        if link.peer:
            raise FrameError("a second Hello")
        if link.target is not None:
            link.target.node = hello.node
        if hello.node == self._log.own:
            self.drop(link)
            return
        self.greet(link)
        known = self.links.get(hello.node)
        if known is not None and known is not link:
            if self._keep_old(known, link, hello.node):
                link.peer = ""
                link.send(Bye())
                link.cut()
                if link.target is not None:
                    link.target.link = None
                return
            known.send(Bye())
            self.drop(known)
        link.peer = hello.node
        self.links[hello.node] = link
        self.grant(link)
        self.dirty = True

    def _keep_old(self, old: Link, new: Link, peer: str) -> bool:
        """Of two links between the same nodes keep the one that the greater name dialed."""
        if (old.target is None) == (new.target is None):
            return False
        ours = self._log.own > peer
        return (old.target is not None) == ours

    def table(self, link: Link) -> None:
        """Send the records that the other side lacks; with none, a heartbeat if it is time for one."""
        news = self.members.lacking(link.known)
        now = time.monotonic()
        if not news and now - link.told < self._early_s:
            return
        link.told = now
        for record in news:
            link.known[record.node] = record.version
        if not link.send(Table(time.time_ns(), news)):
            self.drop(link)

    def _on_table(self, link: Link, table: Table) -> None:
        if abs(table.clock - time.time_ns()) > self._max_drift_ns:
            self._refuse(link, "its clock has drifted by more than max_clock_drift_ms")
            return
        for record in table.records:
            link.known[record.node] = max(record.version, link.known.get(record.node, -1))
            before = self.members.records.get(record.node)
            if not self.members.learn(record):
                continue
            self.stale = True
            if before is None or before.links != record.links or len(before.lanes) != len(record.lanes):
                self.dirty = True
        if self.stale:
            for node, head in self.members.stored_by(self._log.own).items():
                self._acknowledge(node, head)

    def route(self) -> None:
        """Subscribe to each lane where it is best had."""
        self.stale = False
        for origin, old, new in self.routing.decide(time.monotonic()):
            if old is not None and old.peer:
                old.send(Subscribe(origin, 0, False))
            if new is not None:
                self.heads_pending.add(origin)
                new.asked[origin] = new.asked.get(origin, 0) + 1
                new.send(Subscribe(origin, self.routing.reached(origin)))

    def _on_subscribe(self, link: Link, message: Subscribe) -> None:
        if not message.on:
            link.feeds.pop(message.origin, None)
            return
        head, _ = self._log.heads(message.origin)
        if message.origin == self._log.own:
            self._require_known(message.after)
        link.feeds[message.origin] = message.after
        link.send(Heads(message.origin, head, self._log.spans(message.origin)))

    def _on_heads(self, link: Link, message: Heads) -> None:
        if link.asked.get(message.origin, 0) > 1:
            link.asked[message.origin] -= 1
        else:
            link.asked.pop(message.origin, None)
        self._log.advertise(message.origin, message.shards)
        self.heads_pending.discard(message.origin)
        self._news()

    def _on_credit(self, link: Link, message: Credit) -> None:
        link.granted = max(link.granted, message.total)

    def _on_ack(self, link: Link, message: Ack) -> None:
        if message.origin == self._log.own:
            self._require_known(message.upto)
            self._acknowledge(link.peer, message.upto)

    def _require_known(self, number: int) -> None:
        """Refuse a peer that holds what the own lane does not: it would take nothing else under those numbers."""
        head = self._log.lane.head
        if number > head:
            raise FrameError(
                f"it holds entries up to {number} of this node's lane, of which there are {head} here: the log is"
                " older than what was sent from it, as after a backup was restored; open a new directory"
            )

    def _acknowledge(self, node: str, upto: int) -> None:
        if upto > self.acked.get(node, 0):
            self.acked[node] = min(upto, self._log.lane.head)
            self._news()

    def _on_entries(self, link: Link, message: Entries, found: list[Body]) -> None:
        origin = message.origin
        size = sum(map(len, found)) + OVERHEAD * len(found)
        link.received += size
        if link.received > link.promised + RUN_BYTES + size:
            raise FrameError("it sends beyond its credit")
        if self.routing.sources.get(origin) is not link or origin in link.asked or origin == self._log.own:
            # From before a change of source, maybe away from this link and back: what was sent
            # between what is stored and this was not taken, and comes again behind the Heads.
            self._settled(link, size)
            return
        fresh = self._log.wants(origin, message.entries, found, self.routing.pending.get(origin, 0))
        if not self.routing.acceptable(origin, link, fresh):
            self._settled(link, size)
            self.stale = True
            return
        upto = max(message.upto, fresh[-1].lsn if fresh else 0)
        self.routing.progress(origin, upto)
        self._arrived.append(Put(origin, fresh, partial(self._stored, link, origin, fresh, upto, size)))
        if not self._store.gathers:
            self.keep()

    def keep(self) -> None:
        """Hand what came in to the store; what came in one turn of the thread together, in parts of some MiB."""
        if self._arrived:
            group, self._arrived = self._arrived, []
            self._store.put(group)

    def _stored(self, link: Link, origin: str, fresh: list[Entry], upto: int, size: int) -> None:
        """Show what the store has taken; any thread."""
        self._log.receive(origin, fresh, upto)
        self._news()
        self._post(partial(self._confirm, link, origin, size))

    def _confirm(self, link: Link, origin: str, size: int) -> None:
        self._settled(link, size)
        author = self.links.get(origin)
        if author is not None:
            author.send(Ack(origin, self._log.lanes[origin].head))

    def _settled(self, link: Link, size: int) -> None:
        link.stored += size
        if link.peer and link.promised - link.received < self._config.credit_bytes // 2:
            self.grant(link)

    def grant(self, link: Link) -> None:
        """Renew the peer's credit: so much may be under way and unstored."""
        total = link.stored + self._config.credit_bytes
        if total > link.promised:
            link.promised = total
            link.send(Credit(total))

    def pump(self) -> None:
        """Send what peers subscribed to, round robin over lanes, as far as their credit goes."""
        lanes = self._log.lanes
        for link in list(self.links.values()):
            busy = True
            while busy and link.sent < link.granted and link.peer:
                busy = False
                for origin, after in list(link.feeds.items()):
                    lane = lanes.get(origin)
                    if lane is None or lane.head <= after:
                        continue  # mostly: a look without the lock, at each turn, for each link and lane
                    if link.sent < link.granted and self._feed(link, origin):
                        busy = True

    def _feed(self, link: Link, origin: str) -> bool:
        """Send one run of a lane; tell whether there was one."""
        after = link.feeds[origin]
        entries, upto = self._log.outgoing(origin, after, RUN_BYTES)
        if upto <= after:
            return False
        wire: list[WireEntry] = []
        frames: list[Body] = [b""]
        size, deps = 0, None
        for entry in entries:
            try:
                body = self._log.body_of(entry) if entry.count else b""
            except TransientAdapterError:
                return False  # the log said so; tried again at the next turn
            if body is None:
                continue  # trimmed meanwhile
            shown = None if entry.deps is deps else dict(entry.deps)
            deps = entry.deps
            size += len(body) + OVERHEAD
            if apart := len(body) >= APART_BYTES:
                frames.append(body)
            wire.append(
                WireEntry(
                    entry.lsn, entry.shard, entry.start, entry.count, entry.w, entry.lo, entry.hi, shown,
                    None if apart else bytes(body),
                )
            )  # fmt: skip
        frames[0] = encode(Entries(origin, upto, wire))
        link.feeds[origin] = upto
        link.sent += size
        link.frames_out += 1
        if not link.post(frames):
            self.drop(link)
            return False
        return True
