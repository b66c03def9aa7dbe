"""The adapter: what a bus calls, each call handed to the part that knows how."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

import msgspec

from net_adapter_jetstream.config import JetStreamConfig
from net_adapter_jetstream.positions import BEGINNING, Position
from netcore import (
    Adapter,
    AdapterClosedError,
    AdapterContext,
    AdapterError,
    Batch,
    Capabilities,
    Health,
    ReadRequest,
    ShardPage,
    Stream,
)

if TYPE_CHECKING:
    from net_adapter_jetstream.bell import Bell
    from net_adapter_jetstream.link import Link
    from net_adapter_jetstream.reader import Reader
    from net_adapter_jetstream.streams import Streams
    from net_adapter_jetstream.writer import Writer

__all__ = ["JetStreamAdapter"]

_MOST_BATCH_BYTES: Final = 8 << 20
_SLACK_MS: Final = 1000


class JetStreamAdapter(Adapter[JetStreamConfig]):
    """Stores events in NATS JetStream: a stream a shard, a batch an atomic step.

    Runs on asyncio only (nats-py does). All calls raise what `netcore.Adapter` names; the README
    tells what each server version guarantees.
    """

    kind: ClassVar[str] = "jetstream"
    Config = JetStreamConfig
    capabilities: ClassVar[Capabilities] = Capabilities(
        durable=True,
        shared=True,
        max_batch_events=1000,
        max_batch_bytes=_MOST_BATCH_BYTES,
    )

    fast: ClassVar[bool] = True
    """Use nats-py's private parts where the installed version has them (see `client`)."""

    def __init__(self, config: JetStreamConfig) -> None:
        super().__init__(config)
        self._closed = False
        self._writers: dict[int, Writer] = {}
        self._counts = {"rolled_back": 0, "resets": 0}

    def identity(self) -> str:
        """Name the store: kind, prefix, and the domain if there is one."""
        domain = f"@{self.config.domain}" if self.config.domain else ""
        return f"{self.kind}:{self.config.prefix}{domain}"

    async def open(self, context: AdapterContext) -> None:
        """Connect within `timeout_ms` and check that there is a JetStream.

        Raises:
            TransientAdapterError: nothing answers. AdapterRefusedError: with the remedy.
        """
        # The client library loads here: 140 ms that a process without this adapter never pays.
        from net_adapter_jetstream.bell import Bell
        from net_adapter_jetstream.link import Link
        from net_adapter_jetstream.reader import Reader
        from net_adapter_jetstream.streams import Streams

        self._logger = context.logger
        self._link: Link = Link(self.config, context.logger, fast=self.fast)
        self._streams: Streams = Streams(self._link, self.config)
        self._reader: Reader = Reader(self._link, self._streams)
        self._bell: Bell = Bell(self._link, self._streams)
        try:
            await self._link.open()
            await self._streams.check()
        except BaseException:
            await self._link.close()
            raise
        # What a server takes is known only now.
        known = msgspec.structs.replace(self.capabilities, max_payload_bytes=self._link.largest)
        self.capabilities = known  # type: ignore[misc]  # this object's, beside the class's

    async def append(self, batch: Batch) -> None:
        """Store a batch in one atomic step (before nats-server 2.12.1: in one chain)."""
        self._check_open()
        writer = self._writers.get(batch.shard)
        if writer is None:
            from net_adapter_jetstream.writer import Writer

            writer = Writer(batch.shard, self._link, self._streams, self._reader, self.config, self._on_lost)
            self._writers[batch.shard] = writer
        await writer.append(batch)

    async def streams(self) -> list[Stream]:
        """List the streams that exist under the prefix."""
        self._check_open()
        return [Stream(shard) for shard in await self._streams.shards()]

    async def read(self, stream: Stream, after: str | None, limit: int, snapshot: object = None) -> ShardPage:
        """Return what stands after a position."""
        (page,) = await self.read_many([ReadRequest(stream, after, limit)])
        if isinstance(page, Exception):
            raise page
        return page

    async def read_many(
        self, requests: Sequence[ReadRequest], snapshot: object = None
    ) -> list[ShardPage | Exception]:
        """Read several streams; all requests are under way at once."""
        self._check_open()
        return await self._reader.read_many(requests)

    async def bounds(self, stream: Stream) -> tuple[str, str]:
        """Return the positions before the earliest and after the latest message."""
        self._check_open()
        info = await self._streams.info(stream.shard)
        if info is None:
            return str(BEGINNING), str(BEGINNING)
        return str(Position(info.first - 1, None, info.born)), str(Position(info.last, None, info.born))

    async def seek(self, stream: Stream, ts: int) -> str | None:
        """Return a position before every event with a timestamp >= `ts`.

        The server finds messages by its own clock. The last message of each batch tells how far
        timestamps ran ahead of that clock at most; where it does not (somebody else wrote), the
        answer is the beginning.
        """
        self._check_open()
        info = await self._streams.info(stream.shard)
        if info is None or info.first > info.last or not self._streams.pages:
            return None
        from net_adapter_jetstream.writer import marks_of

        record = await self._reader.last_record(stream.shard, info.last)
        marks = None if record is None else marks_of(record)
        if marks is None or marks.lead is None:
            return None
        ms = max(0, ts // 1_000_000 - marks.lead - _SLACK_MS)
        moment = dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(milliseconds=ms)
        found = await self._reader.after_time(stream.shard, moment.isoformat())
        return str(Position(info.last if found is None else found - 1, None, info.born))

    async def wait(self, positions: Mapping[Stream, str | None], timeout: float) -> None:
        """Return when something newer may exist; woken by the message itself."""
        self._check_open()
        await self._bell.wait(positions, timeout)

    async def close(self) -> None:
        """Send what is queued and disconnect, within `timeout_ms`."""
        if not self._closed:
            self._closed = True
            if hasattr(self, "_link"):
                await self._link.close()

    async def health(self) -> Health:
        """Ask JetStream; name what is worth knowing of the server's version."""
        self._check_open()
        try:
            await self._streams.check()
        except AdapterError as error:
            return Health(ok=False, reason=str(error))
        if not self._streams.batches:
            return Health(
                ok=True,
                reason=f"{self._link.server} has no atomic batches (2.12.1 has): nothing is lost or stored "
                "twice, but a reader may see the first part of a batch before the rest",
            )
        plain = [shard for shard, writer in self._writers.items() if writer.atomic is False]
        if plain:
            return Health(ok=True, reason=f"streams without atomic batches: shards {plain[:16]}")
        return Health(ok=True)

    def stats(self) -> dict[str, Any]:
        """Return the connection's state and counters."""
        if not hasattr(self, "_link"):
            return {}
        cause = self._link.cause
        return {
            "connected": self._link.up,
            "server": self._link.server,
            "reconnects": self._link.reconnects,
            "last_error": None if cause is None else str(cause),
            **self._counts,
        }

    def _check_open(self) -> None:
        if self._closed or not hasattr(self, "_link"):
            raise AdapterClosedError("the jetstream adapter is closed" if self._closed else "not open yet")

    def _on_lost(self, kind: str, count: int) -> None:
        """Count, and say, that the server no longer has what it acknowledged."""
        self._counts[kind] += count
        self._logger.error("JetStream lost acknowledged events (%s): %s", kind, self._counts)
