"""The adapter itself: what netcore's contract asks, handed to the parts that do it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from net_adapter_redis.config import RedisConfig
from net_adapter_redis.driver import unfit_driver
from net_adapter_redis.positions import Position, entry_id
from net_adapter_redis.resp import command
from netcore import (
    Adapter,
    AdapterClosedError,
    AdapterContext,
    AdapterError,
    AdapterRefusedError,
    Batch,
    Capabilities,
    CursorError,
    Health,
    ReadRequest,
    ShardPage,
    Stream,
)

if TYPE_CHECKING:
    from net_adapter_redis.ahead import ReadAhead
    from net_adapter_redis.density import Density
    from net_adapter_redis.links import Link
    from net_adapter_redis.reading import Scan, StreamState
    from net_adapter_redis.registry import Registry
    from net_adapter_redis.session import Session
    from net_adapter_redis.waiting import Waiter
    from net_adapter_redis.writing import Writer

__all__ = ["RedisAdapter"]


class RedisAdapter(Adapter[RedisConfig]):
    """Stores events in Redis Streams, one a shard, each batch in one atomic step.

    Exactly once into the stream: a batch that comes again, also late, partly stored or after later
    ones, is recognised, as long as its producer wrote to the shard within `dedup_ttl_s` and the
    server kept its data. Runs on asyncio.
    """

    kind: ClassVar[str] = "redis"
    Config: ClassVar[type[RedisConfig]] = RedisConfig
    capabilities: ClassVar[Capabilities] = Capabilities(
        durable=True,
        shared=True,
        max_payload_bytes=256 << 20,
        max_batch_events=4096,
        max_batch_bytes=4 << 20,
    )

    def __init__(self, config: RedisConfig) -> None:
        super().__init__(config)
        self._session: Session | None = None
        self._writer: Writer
        self._registry: Registry
        self._waiter: Waiter
        self._ahead: ReadAhead
        self._densities: dict[int, Density] = {}
        self._may_keep = [float(64 << 20)]
        self._closed = False

    def identity(self) -> str:
        """Name the store: the prefix, and the database where it is not 0."""
        database = self.config.database()
        return f"redis:{self.config.prefix}" + (f"/{database}" if database else "")

    async def open(self, context: AdapterContext) -> None:
        """Connect and check; see `Adapter.open`.

        Raises:
            TransientAdapterError: nothing answers within `timeout_ms`.
            AdapterRefusedError: wrong credentials, a missing right, a cluster where none was
                expected or the other way round, too old a server, an unknown redis-py.
            ConfigError: the TLS settings can't be used.
        """
        _require_asyncio()
        try:
            from net_adapter_redis.ahead import ReadAhead
            from net_adapter_redis.network import Network
            from net_adapter_redis.opening import check_server
            from net_adapter_redis.registry import Registry
            from net_adapter_redis.session import Session
            from net_adapter_redis.waiting import Waiter
            from net_adapter_redis.writing import Writer
        except (AttributeError, ImportError) as error:
            raise unfit_driver(error) from error

        timeout = min(self.config.timeout_ms, context.timeout_ms) / 1000
        network = Network(self.config, timeout=timeout, logger=context.logger)
        session = Session(self.config, network, context.logger, context.max_clock_drift_ms)
        self._registry = Registry(session)
        self._waiter = Waiter(session, self._registry)
        self._writer = Writer(session, self._registry)
        self._ahead = ReadAhead(session, self._registry, partial(self._scan, ahead=True))
        try:
            await check_server(session, timeout)
            await self._writer.load()
        except BaseException:
            await network.close()
            raise
        self._session = session

    async def append(self, batch: Batch) -> None:
        """Store `batch` in one server-side step; see `Adapter.append`."""
        self._open_session()
        await self._writer.append(batch)

    async def streams(self) -> list[Stream]:
        """List the streams in the registry, and those that others made (ids below 1,024).

        One that others make with an id far from the known ones is found within a second.
        """
        self._open_session()
        await self._registry.refresh()
        return [Stream(shard) for shard in sorted(self._registry.known)]

    async def read(self, stream: Stream, after: str | None, limit: int, snapshot: object = None) -> ShardPage:
        """Return what stands after a position; see `Adapter.read`."""
        [page] = await self.read_many([ReadRequest(stream, after, limit)], snapshot)
        if isinstance(page, Exception):
            raise page
        return page

    async def read_many(
        self, requests: Sequence[ReadRequest], snapshot: object = None
    ) -> list[ShardPage | Exception]:
        """Read several streams in one round trip; see `Adapter.read_many`."""
        return await self._read(requests, listing=False)

    async def read_listed(
        self, requests: Sequence[ReadRequest]
    ) -> tuple[list[ShardPage | Exception], list[Stream]]:
        """Read, and list the streams, in one round trip or none; see `Adapter.read_listed`."""
        session = self._open_session()
        pages = await self._read(requests, listing=not session.config.cluster)
        if session.config.cluster:
            await self._registry.refresh()
        return pages, [Stream(shard) for shard in sorted(self._registry.known)]

    async def _read(self, requests: Sequence[ReadRequest], *, listing: bool) -> list[ShardPage | Exception]:
        session = self._open_session()
        await session.network.heal()
        densities = [self._density(request.stream) for request in requests]
        results: list[ShardPage | Exception | None] = [None] * len(requests)
        scans: dict[int, Scan] = {}
        coming = self._begin(requests, range(len(requests)), results, scans, patient=True)
        while True:
            pending = {i: scan for i, scan in scans.items() if results[i] is None and not scan.done}
            trips = self._trips(pending, results, listing=listing)
            if coming:
                trips.append(asyncio.wait(set(coming.values())))
            if not trips:
                break
            await (asyncio.gather(*trips) if len(trips) > 1 else trips[0])
            coming = self._begin(requests, list(coming), results, scans, patient=False)
        if listing:
            await self._registry.complete()
            if not all(density.listed for density in densities):
                await self._registry.refresh()
        pages: list[ShardPage | Exception] = []
        for index, result in enumerate(results):
            page = scans[index].page() if result is None else result
            if isinstance(page, ShardPage):
                session.counts["undecodable"] += page.undecodable
                session.counts["gaps"] += page.gap is not None
            pages.append(page)
        if pages and all(isinstance(page, AdapterError) for page in pages):
            raise next(page for page in pages if isinstance(page, AdapterError))
        self._ahead.go_on(densities, listing=listing)
        return pages

    def _begin(
        self,
        requests: Sequence[ReadRequest],
        which: Iterable[int],
        results: list[ShardPage | Exception | None],
        scans: dict[int, Scan],
        *,
        patient: bool,
    ) -> dict[int, asyncio.Task[None]]:
        """Take the pages that were read ahead; make scans for the others.

        Returns:
            What is to be waited for first, where the page wanted is on its way already.
        """
        coming: dict[int, asyncio.Task[None]] = {}
        for index in which:
            request = requests[index]
            density = self._density(request.stream)
            if request.after is not None:
                results[index] = density.ahead(request.after, request.limit)
            if results[index] is not None:
                continue
            if patient and density.fetching is not None and density.follows(request.after):
                coming[index] = density.fetching
                continue
            try:
                scans[index] = self._scan(request)
            except CursorError as error:
                results[index] = error
        return coming

    def _trips(
        self, pending: Mapping[int, Scan], results: list[ShardPage | Exception | None], *, listing: bool
    ) -> list[Coroutine[Any, Any, Any]]:
        """Return a round trip a server."""
        by_link: dict[int, tuple[Link, dict[int, Scan]]] = {}
        for index, scan in pending.items():
            link = self._open_session().network.reader(scan.stream)
            by_link.setdefault(id(link), (link, {}))[1][index] = scan
        return [self._round(link, scans, results, listing) for link, scans in by_link.values()]

    def _density(self, stream: Stream) -> Density:
        from net_adapter_redis.density import Density

        density = self._densities.get(stream.shard)
        if density is None:
            density = self._densities[stream.shard] = Density(stream, self._may_keep)
        return density

    def _scan(self, request: ReadRequest, *, ahead: bool = False) -> Scan:
        from net_adapter_redis.reading import Scan

        session, shard = self._open_session(), request.stream.shard
        density = self._density(request.stream)
        after = None if request.after is None else Position.parse(request.after)
        stream, meta = session.keys.stream(shard), session.keys.meta(shard)
        return Scan(request, after, stream, meta, density, ahead=ahead)

    async def _round(
        self, link: Link, scans: dict[int, Scan], results: list[ShardPage | Exception | None], listing: bool
    ) -> None:
        """Make one round trip for the scans that this link serves."""
        from net_adapter_redis.trips import Trip

        session = self._open_session()
        trip = Trip(list(scans.values()), self._registry if listing else None)
        failure: AdapterError | None = None
        try:
            await session.ask(link, trip.data, trip.replies, "read", sink=trip)
        except AdapterError as error:
            failure = error
        for at, (index, scan) in enumerate(scans.items()):
            if at >= len(trip.outcomes):
                results[index] = failure
            elif (wrong := trip.outcomes[at]) is not None:
                results[index] = self._read_failure(wrong, scan, link)
        if len(trip.outcomes) > len(scans) and (wrong := trip.outcomes[-1]) is not None:
            raise wrong

    def _read_failure(self, error: Exception, scan: Scan, link: Link) -> AdapterError:
        from net_adapter_redis.failures import moved_to

        session = self._open_session()
        if (where := moved_to(error)) is not None:
            session.network.moved(*where)
        failure = session.failure(error, f"read {scan.stream.decode()}", link)
        failure.__cause__ = error
        return failure

    async def bounds(self, stream: Stream) -> tuple[str, str]:
        """Return `(earliest, tail)`; see `Adapter.bounds`."""
        state, _, _ = await self._look(stream, b"", 0)
        return str(state.earliest), str(state.tail)

    async def _look(self, stream: Stream, more: bytes, replies: int) -> tuple[StreamState, Any, list[Any]]:
        """Return a stream's state, how far its timestamps were ahead of its ids, other replies."""
        from net_adapter_redis.reading import look, state_from

        session = self._open_session()
        key, meta = session.keys.stream(stream.shard), session.keys.meta(stream.shard)
        link, doing = session.network.reader(key), f"read {key.decode()}"
        [info, known, *rest] = await session.ask(link, look(key, meta) + more, 2 + replies, doing)
        try:
            state = state_from(info, known)
            for reply in rest:
                if isinstance(reply, Exception):
                    raise reply
        except Exception as error:
            raise session.failure(error, doing, link) from error
        return state, known[2], rest

    async def seek(self, stream: Stream, ts: int) -> str | None:
        """Return a position before every event with a timestamp >= `ts`; see `Adapter.seek`.

        Ids tell when the server stored an entry, by its clock. The server keeps how far a
        timestamp ever was ahead of that; for streams that only others write, the bus's
        `max_clock_drift_ms` is assumed.
        """
        session = self._open_session()
        ms = math.floor(ts / 1_000_000)
        key = session.keys.stream(stream.shard)
        state, lead, _ = await self._look(stream, b"", 0)
        ahead = int(lead or 0) if state.incarnation else math.ceil(session.drift_ms)
        target = ms - ahead - 1
        if state.first is None or target <= state.first[0]:
            return str(state.earliest)
        link, doing = session.network.reader(key), f"read {key.decode()}"
        [found] = await session.ask(link, command("XREVRANGE", key, f"{target}-0", "-", "COUNT", 1), 1, doing)
        if isinstance(found, Exception):
            raise session.failure(found, doing, link) from found
        if not found:
            return str(state.earliest)
        where = entry_id(found[0][0])
        return str(state.tail if where == state.last else Position(where))

    async def wait(self, positions: Mapping[Stream, str | None], timeout: float) -> None:
        """Return when there may be news; costs nothing while idle. See `Adapter.wait`.

        Blocks on the server, on a connection of its own; in a cluster without a hash tag in the
        prefix, or when `pool_size` polls wait already, it looks every 20 ms instead.
        """
        self._open_session()
        await self._waiter.wait(positions, timeout)

    async def health(self) -> Health:
        """Tell whether the server answers a write's connection; see `Adapter.health`."""
        session = self._session
        if session is None or self._closed:
            return Health(ok=False, reason="not open")
        link = session.network.writer(session.keys.registry)
        try:
            [reply] = await session.ask(link, command("PING"), 1, "ping")
            if isinstance(reply, Exception):
                raise session.failure(reply, "ping", link) from reply
        except AdapterError as error:
            return Health(ok=False, reason=str(error))
        lost, resets = session.counts["lost_by_backend"], session.counts["resets"]
        if lost or resets:
            return Health(ok=True, reason=f"the server lost up to {lost} stored events, in {resets} resets")
        return Health(ok=True)

    def stats(self) -> dict[str, Any]:
        """Return counters; any thread.

        Keys: `batches` and `events` stored, `duplicates` (events that were stored already,
        or, seldom, on a shard with several producers, that seemed so),
        `lost_by_backend` (stored events that the server lost, an upper bound), `resets` (streams
        that were deleted or replaced), `forgotten_marks`, `gaps`, `undecodable`, `script_loads`,
        `connects`, `connection_errors`.
        """
        session = self._session
        if session is None:
            return {}
        names = (
            "batches", "events", "duplicates", "lost_by_backend", "resets", "forgotten_marks",
            "gaps", "undecodable", "script_loads", "connection_errors",
        )  # fmt: skip
        return {name: session.counts[name] for name in names} | {"connects": session.network.connects}

    async def close(self) -> None:
        """Close all connections; calls under way raise `AdapterClosedError`."""
        self._closed = True
        if self._session is not None:
            await self._ahead.close()
            await self._session.network.close()

    def _open_session(self) -> Session:
        if self._closed or self._session is None:
            raise AdapterClosedError("the redis adapter is " + ("closed" if self._closed else "not open"))
        return self._session


def _require_asyncio() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError as error:
        raise AdapterRefusedError(
            "the redis adapter runs on asyncio only; under trio, use netcore.blocking.EventBus in a thread"
        ) from error
