"""Reading ahead: what comes next is fetched and decoded while the reader works on its page."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from net_adapter_redis.density import Density
from net_adapter_redis.links import Link
from net_adapter_redis.reading import Scan
from net_adapter_redis.registry import Registry
from net_adapter_redis.session import Session
from net_adapter_redis.trips import Trip
from netcore import AdapterError, ReadRequest

__all__ = ["ReadAhead"]


class _Fetch:
    """One stream's part of what is fetched."""

    __slots__ = ("scan",)

    def __init__(self, scan: Scan) -> None:
        self.scan = scan

    def accept(self, replies: list[Any]) -> None:
        """Take in the replies; what more round trips would bring is left to a real read."""
        self.scan.accept(replies)
        self.keep()

    def keep(self) -> None:
        """Hand over what was read."""
        after = self.scan.request.after
        assert after is not None  # reading ahead goes on behind something
        self.scan.density.extend(after, self.scan.whole())


class ReadAhead:
    """Fetches for readers that go on where they stopped. One fetch a stream at a time.

    Args:
        session: the open adapter's.
        registry: looked at behind each fetch, so that no stream is unknown that is as old as it.
        scan: makes a stream's part of a read.
    """

    def __init__(self, session: Session, registry: Registry, scan: Callable[[ReadRequest], Scan]) -> None:
        self._session = session
        self._registry = registry
        self._scan = scan
        self._tasks: set[asyncio.Task[None]] = set()

    def go_on(self, densities: Sequence[Density], *, listing: bool) -> None:
        """Start fetching once little is left of a stream, then also for others that will want it soon.

        Args:
            densities: of the streams that were just read.
            listing: look for new streams too.
        """
        by_link: dict[int, tuple[Link, list[Scan]]] = {}
        if all(density.wanting(early=False) is None for density in densities):
            return
        for density in densities:
            if (request := density.wanting(early=True)) is None:
                continue
            scan = self._scan(request)
            if scan.done:  # a packed entry that is here already holds enough
                _Fetch(scan).keep()
                continue
            link = self._session.network.reader(scan.stream)
            by_link.setdefault(id(link), (link, []))[1].append(scan)
        for link, scans in by_link.values():
            fetch = self._fetch(link, scans, self._registry if listing else None)
            task = asyncio.get_running_loop().create_task(fetch, name="netcore-redis-ahead")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            for scan in scans:
                scan.density.fetching = task

    async def _fetch(self, link: Link, scans: list[Scan], registry: Registry | None) -> None:
        trip = Trip(scans, registry, [_Fetch(scan) for scan in scans])
        try:
            with contextlib.suppress(AdapterError):  # whoever reads next is told
                await self._session.ask(link, trip.data, trip.replies, "read ahead", sink=trip)
        finally:
            for scan in scans:
                scan.density.fetching = None

    async def close(self) -> None:
        """End what is under way."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1.0)
