"""The adapter: the loop's side of a mesh node."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Mapping, Sequence
from types import EllipsisType
from typing import Any, ClassVar, Final

import msgspec
import zmq

from net_adapter_mesh.bridge import Bell
from net_adapter_mesh.config import MeshConfig
from net_adapter_mesh.frames import INFINITY, MOST
from net_adapter_mesh.gathering import Gatherer
from net_adapter_mesh.lane import Entry, Vector
from net_adapter_mesh.log import Log, Store
from net_adapter_mesh.node import Node
from net_adapter_mesh.opening import open_log
from net_adapter_mesh.packing import MAX_PAYLOAD_BYTES, Packer
from net_adapter_mesh.reader import Reader
from net_adapter_mesh.report import report
from net_adapter_mesh.security import load_keys
from net_adapter_mesh.store import MemoryStore
from netcore import (
    Adapter,
    AdapterClosedError,
    AdapterContext,
    Batch,
    Capabilities,
    CursorError,
    Health,
    ReadRequest,
    ShardPage,
    Stream,
    TransientAdapterError,
)

__all__ = ["MeshAdapter"]

_FIRST_TABLES_S: Final = 1.0


class MeshAdapter(Adapter[MeshConfig]):
    """A node of a brokerless mesh: what any node ingests, every node can poll.

    `docs/explanation/mesh.md` tells how; `docs/reference/mesh-protocol.md` what goes over the wire.

    Args:
        config: the node's settings.

    Raises:
        ConfigError: a key or a key file is unusable.
    """

    kind: ClassVar[str] = "mesh"
    Config = MeshConfig
    capabilities: ClassVar[Capabilities] = Capabilities(
        shared=True,
        watermark=True,
        inline=True,
        max_payload_bytes=MAX_PAYLOAD_BYTES,
        max_batch_events=16_384,
    )

    def __init__(self, config: MeshConfig) -> None:
        super().__init__(config)
        self._keys = load_keys(config)
        if config.log is not None:
            self.capabilities = msgspec.structs.replace(type(self).capabilities, durable=True)  # type: ignore[misc]
        self._node: Node | None = None
        self._closed = False
        self._expected: dict[tuple[str, int], int] = {}
        self._last: dict[int, int] = {}  # shard -> number of its last entry
        self._deps: Vector = {}
        self._packer = Packer()
        self._final: dict[str, Any] = {}

    def identity(self) -> str:
        """Name the mesh: a cursor is valid at each of its nodes."""
        return f"mesh:{self.config.name}"

    async def open(self, context: AdapterContext) -> None:
        """Start the node; wait, a second at most, for what the peers already know.

        Raises:
            TransientAdapterError: `listen` cannot be bound.
            AdapterRefusedError: the durable log is in use or damaged.
        """
        self._context = context
        self._pid = os.getpid()
        await self._open_log(context)
        self._own = self._log.own
        context.observe(self._log.greatest)
        self._reader = Reader(self._log)
        self._bell = Bell(self._answer)
        self._observed = 0
        self._asked = False
        self._reader.returned.update(self._log.lane.deps)
        try:
            await self._start(context)
        except BaseException:
            if self._node is not None:
                self._node.stop(1.0)
                self._node = None
            self._store.close(1.0)
            raise

    async def _start(self, context: AdapterContext) -> None:
        node = Node(
            self.config,
            self._keys,
            self._log,
            self._store,
            news=self._news,
            watermark=self._ask_watermark,
            causal_wait_s=context.causal_wait_ms / 1000,
            max_drift_ns=int(context.max_clock_drift_ms * 1e6),
            logger=context.logger,
        )
        try:
            node.start()
        except zmq.ZMQError as error:
            raise TransientAdapterError(f"cannot listen on {self.config.listen}: {error}") from error
        self._node = node
        self._gatherer = Gatherer(self._own, self._store, self._stored, node.appended, self._bell)
        if self.config.peers:
            await self._bell.until(lambda: node.settled, _FIRST_TABLES_S)

    async def _open_log(self, context: AdapterContext) -> None:
        """Make the log, or load it; reading a large one does not block the loop."""
        if self.config.log is None:
            self._store: Store = MemoryStore()
            self._log = Log(self._new_origin(), self.config, self._store)
            return

        store, self._log = await open_log(self.config, context)
        self._store, self._expected = store, store.expected()

    def _new_origin(self) -> str:
        """Name a new incarnation; a configured name gets a suffix, so that restarts differ."""
        if self.config.node_id is None:
            return secrets.token_hex(8)
        return f"{self.config.node_id}~{secrets.token_hex(4)}"

    @property
    def origin(self) -> str:
        """The origin that this node's events carry."""
        return self._own

    def _live(self) -> Node:
        node = self._node
        if self._closed or node is None:
            raise AdapterClosedError("the mesh adapter is not open")
        if self._pid != os.getpid():
            raise AdapterClosedError("the mesh adapter was opened in another process; open one here")
        if node.failure is not None:
            raise TransientAdapterError(f"the I/O thread of the mesh node died: {node.failure!r}") from None
        return node

    async def append(self, batch: Batch) -> None:
        """Store `batch` here, and wait until `acks` peers have it.

        Atomic; encoded once, for the log and every peer. With `acks` unmet the batch stays in the
        log, unacknowledged, and its retry goes on waiting without storing it again.

        Raises:
            FatalAdapterError: a payload is larger than 16 MiB.
            TransientAdapterError: too few peers stored it within `timeout_ms`, or the log failed.
        """
        node = self._live()
        key = (batch.producer, batch.shard)
        expected = self._expected.get(key, 0)
        after = batch.first_seq + len(batch)
        if after > expected:
            rest = batch if batch.first_seq >= expected else batch.part(expected - batch.first_seq)
            parts = self._packer.pack(rest.stamps, rest.payloads)
            w, deps = self._context.watermark(batch), self._vector()
            entries = [
                # The batch's watermark holds once all of it is stored, so its last entry tells it.
                self._log.stage(batch.shard, part.stamps, w if part is parts[-1] else 0, deps, part.body)
                for part in parts
            ]
            self._expected[key] = after
            self._last[batch.shard] = entries[-1].lsn
            entries[-1].mark = (batch.producer, after)
            self._gatherer.put(entries)
        await self._settled(node, self._last.get(batch.shard, 0))

    def _vector(self) -> Vector:
        """Return what polls here have seen of others, the same object as long as it is the same."""
        if len(self._deps) != len(self._reader.returned) or self._deps != self._reader.returned:
            returned = self._reader.returned
            while len(returned) > MOST:  # what an entry may carry: the oldest is visible everywhere by now
                del returned[min(returned, key=returned.__getitem__)]
            self._deps = dict(returned)
        return self._deps

    def _stored(self, entries: Sequence[Entry]) -> None:
        """Publish own entries that the store has taken; any thread."""
        self._log.publish(entries)
        if self._node is not None:
            self._node.transport.wake()
        self._news()

    async def _settled(self, node: Node, lsn: int) -> None:
        acks = self.config.acks
        if not lsn or (self._log.lane.head >= lsn and not acks):
            return

        def enough() -> bool:
            stored = self._log.lane.head >= lsn
            return node.failure is not None or (stored and self._count(node, lsn) >= acks)

        if not await self._bell.until(enough, self.config.timeout_ms / 1000):
            if self._log.lane.head < lsn:
                why = self._store.failure or "it is behind"
                raise TransientAdapterError(f"the log has not taken the batch yet: {why}")
            raise TransientAdapterError(
                f"{self._count(node, lsn)} of {acks} peers have stored the batch; it stays in the log"
            )
        self._live()

    @staticmethod
    def _count(node: Node, lsn: int) -> int:
        return sum(upto >= lsn for upto in list(node.exchange.acked.values()))

    def _news(self) -> None:
        bell = self._bell
        bell.eager = self._log.greatest > self._observed
        bell.ring()

    def _answer(self) -> None:
        """On the loop: move the bus's clock past what came from elsewhere; renew the watermark."""
        self._bell.eager = False
        greatest = self._log.greatest
        if greatest > self._observed:
            self._observed = greatest
            self._context.observe(greatest)
        if self._asked and not self._closed:
            self._asked = False
            self._watermark(self._context.watermark(None))

    def _ask_watermark(self) -> None:
        """From the I/O thread: have the loop look at the watermark, which only it may."""
        self._asked = True
        self._bell.eager = True
        self._bell.ring()

    def _watermark(self, w: int) -> None:
        # With own entries still on their way to the log there is another occasion, and one is enough.
        if w > self._log.lane.w and self._log.uncovered() and not self._log.staged():
            self._gatherer.put([self._log.stage(0, (), w, self._vector(), b"")])

    async def streams(self) -> list[Stream]:
        """List every stream heard of, from any node."""
        self._live()
        with self._log.lock:
            return [
                Stream(shard, origin) for origin, lane in self._log.lanes.items() for shard in lane.streams
            ]

    async def snapshot(self) -> object:
        """Return the version of what is visible."""
        self._live()
        with self._log.lock:
            return self._log.version

    async def read(self, stream: Stream, after: str | None, limit: int, snapshot: object = None) -> ShardPage:
        """Return visible events after a position; what it returns counts as seen by this node."""
        self._live()
        return self._reader.read(stream, after, limit, snapshot if isinstance(snapshot, int) else None)

    async def read_many(
        self, requests: Sequence[ReadRequest], snapshot: object = None
    ) -> list[ShardPage | Exception]:
        """Read several streams in one go."""
        self._live()
        version = snapshot if isinstance(snapshot, int) else None
        read = self._reader.read
        pages: list[ShardPage | Exception] = []
        for request in requests:
            try:
                pages.append(read(request.stream, request.after, request.limit, version))
            except (CursorError, TransientAdapterError) as error:
                pages.append(error)
        return pages

    async def bounds(self, stream: Stream) -> tuple[str, str]:
        """Return where a stream begins and ends; its end as far as any peer has told."""
        self._live()
        return self._reader.bounds(stream)

    async def seek(self, stream: Stream, ts: int) -> str | None:
        """Return the position before the first event at or after `ts`."""
        self._live()
        return self._reader.seek(stream, ts)

    async def enter(self, stream: Stream, since: int) -> str | None:
        """Enter a stream that may be old and was only not heard of: at `since`.

        While its history is still coming in, that cannot be told: waits, a second at most, and
        then enters where the stream stood when it was heard of.
        """
        members = self._live().members

        def place() -> str | EllipsisType | None:
            return self._reader.enter(stream, since, members.head(stream.origin))

        await self._bell.until(lambda: place() is not ..., _FIRST_TABLES_S)
        found = place()
        return found if not isinstance(found, EllipsisType) else self._reader.bounds(stream)[1]

    async def wait(self, positions: Mapping[Stream, str | None], timeout: float) -> None:
        """Return as soon as something newer is visible; costs nothing while idle."""
        self._live()

        position = self._reader.position
        known = {
            (stream.origin, stream.shard): position(stream, after) for stream, after in positions.items()
        }

        def newer() -> bool:
            ended = self._closed or (self._node is not None and self._node.failure is not None)
            return ended or self._log.newer(known)

        await self._bell.until(newer, timeout)

    async def flush(self) -> None:
        """Return once the log has taken everything; `append` has waited for it already."""
        node = self._live()
        await self._settled(node, max(self._last.values(), default=0))

    async def close(self) -> None:
        """Seal the own lane, wait until every connected peer has it, say goodbye, release."""
        node, closed = self._node, self._closed
        self._closed = True
        if closed or node is None or self._pid != os.getpid():
            return
        deadline = time.monotonic() + self.config.timeout_ms / 1000
        try:
            if node.failure is None and node.alive:
                await self._part(node, deadline)
        finally:
            self._gatherer.write()
            self._final = report(self.config, self._log, node)
            node.stop(max(0.5, deadline - time.monotonic()))
            self._store.close(max(0.5, deadline - time.monotonic()))
            self._bell.ring()

    async def _part(self, node: Node, deadline: float) -> None:
        self._gatherer.put([self._log.stage(0, (), self._seal(), self._vector(), b"")])
        self._gatherer.write()

        def everybody() -> bool:
            head = self._log.lane.head
            peers = list(node.exchange.links)
            return not node.alive or all(node.exchange.acked.get(peer, 0) >= head for peer in peers)

        await self._bell.until(everybody, deadline - time.monotonic())

    def _seal(self) -> int:
        """Return the last watermark: a lane in memory ends here, a durable one may go on."""
        if self.config.log is None:
            return INFINITY
        return 1 + max((view.key for view in list(self._log.lane.streams.values())), default=0)

    async def health(self) -> Health:
        """Tell whether the I/O thread lives and how many peers are linked."""
        node = self._node
        if self._closed or node is None:
            return Health(ok=False, reason="closed")
        if node.failure is not None:
            return Health(ok=False, reason=f"the I/O thread died: {node.failure!r}")
        if self._store.failure:
            return Health(ok=False, reason=f"the log cannot be written: {self._store.failure}")
        if self._store.unsynced:
            return Health(ok=False, reason=f"the log cannot be synced: {self._store.unsynced}")
        linked = len(node.exchange.links)
        if self.config.acks > linked:
            return Health(ok=False, reason=f"{linked} peers are linked, acks={self.config.acks}")
        return Health(ok=True, reason=f"{linked} peers are linked")

    def stats(self) -> dict[str, Any]:
        """Return peers, links, positions, lags, bytes, gaps, refusals; any thread."""
        if self._node is None:
            return {}
        return self._final or report(self.config, self._log, self._node)
