"""A subscription: a chain of long polls, one event at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable
from types import TracebackType
from typing import Final, Protocol

from netcore.consume.cursor import Cursor
from netcore.consume.request import ConsumeRequest, ConsumeResponse
from netcore.contracts.adapter import Gap
from netcore.errors import AdapterError, ClosedError
from netcore.events import StoredEvent
from netcore.runtime import Runtime, Task

__all__ = ["Subscription"]

_LONG_POLL_S: Final = 30.0
_RETRY_FIRST_S: Final = 0.05
_RETRY_LAST_S: Final = 2.0
_GAPS_KEPT: Final = 1024
_GRACE_S: Final = 1.0


class _PageCall(Protocol):
    def __call__(
        self, request: ConsumeRequest, wait: float = 0.0
    ) -> Awaitable[tuple[ConsumeResponse, Cursor]]: ...


class Subscription:
    """Events as they are stored, from where the request starts. Made by `EventBus.subscribe`.

        async with bus.subscribe(ConsumeRequest(100, start="earliest")) as events:
            async for event in events: ...

    Entering pins the chain. While one page is iterated the next one is fetched, never more: a slow
    consumer slows the polls. A shard that cannot be read is left out until it can (see
    `failed_shards`). When the bus shuts down the iteration ends. For one consumer task; a
    cancelled iteration loses nothing and may go on.

    Attributes:
        failed_shards: shard -> why it could not be read, as of the last page.
        lagging_shards: as of the last page.
        undecodable: payloads and entries found undecodable so far.
    """

    def __init__(
        self,
        page: _PageCall,
        runtime: Runtime,
        request: ConsumeRequest,
        long_poll_s: float = _LONG_POLL_S,
    ) -> None:
        self._poll = page
        self._runtime = runtime
        self._request = request
        self._long_poll_s = long_poll_s
        self._page: list[StoredEvent] = []
        self._index = 0  # how many of the page have been yielded
        self._middle: tuple[int, Cursor] | None = None  # a cursor in the page, and its index
        self._end: str | None = None  # the cursor at the page's end
        self._next: Task | None = None
        self._gaps: deque[Gap] = deque(maxlen=_GAPS_KEPT)
        self._entered = self._inside = self._waiting = False
        self.failed_shards: dict[int, str] = {}
        self.lagging_shards: set[int] = set()
        self.undecodable = 0

    @property
    def cursor(self) -> str:
        """Where to resume so that exactly what has been yielded is not seen again.

        Computed when asked for; asking after each event costs little, not asking costs nothing.

        Raises:
            ClosedError: the subscription has not been entered yet.
        """
        if self._end is None:
            raise ClosedError("a subscription has a cursor once it is entered with `async with`")
        if self._index == len(self._page) or self._middle is None:
            return self._end
        at, cursor = self._middle
        if at < self._index:
            cursor = cursor.advanced(self._page[at : self._index])
            self._middle = (self._index, cursor)
        return cursor.text

    @property
    def gaps(self) -> list[Gap]:
        """The gaps met so far, the last 1,024 of them."""
        return list(self._gaps)

    async def __aenter__(self) -> Subscription:
        """Pin the chain.

        Raises:
            NetcoreError: as `EventBus.poll`.
        """
        if self._entered:
            raise ClosedError("a subscription can be entered only once; subscribe again at its cursor")
        self._entered = True
        self._take(await self._poll(self._request))
        self._inside = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end, self._page, self._index = self.cursor, [], 0
        self._inside = False
        task, self._next = self._next, None
        if task is not None and not task.done:
            task.cancel()
            await task.join(_GRACE_S)

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> StoredEvent:
        """Return the next event; wait for it as long as it takes.

        Raises:
            StopAsyncIteration: the bus was shut down.
            ClosedError: not inside `async with`.
            CursorError: a position is no longer valid in this store.
        """
        while (event := self.ready()) is None:
            if not await self.turn():
                raise StopAsyncIteration
        if self._next is None:
            self._prefetch()
        return event

    def ready(self) -> StoredEvent | None:
        """Take the next event of the page at hand; None: it is used up. For `netcore.blocking`."""
        if self._index == len(self._page):
            return None
        event = self._page[self._index]
        self._index += 1
        return event

    async def turn(self) -> bool:
        """Go to the next page; False when the bus is closed. For `netcore.blocking`."""
        if not self._inside:
            raise ClosedError("iterate a subscription inside `async with`")
        if self._waiting:
            raise RuntimeError("a subscription serves one consumer; subscribe once for each task")
        task = self._next or self._prefetch()
        self._waiting = True
        try:
            await self._runtime.checkpoint()  # else a long backlog would starve every other task
            await task.join()  # ends by itself: each poll in it has a deadline
        finally:
            self._waiting = False
        try:
            answer: tuple[ConsumeResponse, Cursor] = task.result()
        except ClosedError:
            return False
        finally:
            self._next = None
        self._take(answer)
        if self._page:
            self._prefetch()
        return True

    def _prefetch(self) -> Task:
        assert self._end is not None
        request = self._request.after(self._end)
        self._next = self._runtime.spawn(lambda: self._fetch(request), "netcore subscription")
        return self._next

    async def _fetch(self, request: ConsumeRequest) -> tuple[ConsumeResponse, Cursor]:
        """Poll; where the adapter cannot even be asked, try again until it can or the bus closes."""
        pause = _RETRY_FIRST_S
        while True:
            try:
                return await self._poll(request, self._long_poll_s)
            except AdapterError:
                await self._runtime.sleep(pause)
                pause = min(2 * pause, _RETRY_LAST_S)

    def _take(self, answer: tuple[ConsumeResponse, Cursor]) -> None:
        response, base = answer
        self._page = response.events
        self._index = 0
        self._middle = (0, base)
        self._end = response.cursor
        self._gaps.extend(response.gaps)
        self.failed_shards = response.failed_shards
        self.lagging_shards = response.lagging_shards
        self.undecodable += response.undecodable
