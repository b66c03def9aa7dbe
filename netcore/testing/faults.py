"""An adapter that fails exactly as a test scripts it, around any other.

    faulty = FaultyAdapter(MemoryAdapter(MemoryConfig()))
    faulty.fail("append", TransientAdapterError("away"), times=2, shard=3)
    held = faulty.hold("append")              # the next append waits for the test
    bus = EventBus(EventBusConfig(adapter="faulty"), plugins=[plugin_for(faulty)])
    ...
    await held.reached()                      # it is under way
    held.release()                            # and goes on

Nothing here sleeps: what is held is held until the test lets it go.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final, Literal, TypeAlias, TypeVar

import anyio
import anyio.lowlevel
import msgspec

from netcore.builtin.memory import MemoryAdapter, MemoryConfig
from netcore.config import AdapterConfig
from netcore.contracts.adapter import Adapter, AdapterContext, Batch, Health, ShardPage, Stream
from netcore.plugins.spec import hookimpl
from netcore.testing._fault import Fault, Moved, Thunk

__all__ = ["Fault", "FaultyAdapter", "FaultyConfig", "plugin_for"]

T = TypeVar("T")
Call: TypeAlias = Literal[
    "open", "append", "streams", "read", "bounds", "snapshot", "seek", "wait", "flush", "close", "health"
]
CALLS: Final[tuple[str, ...]] = (
    "open",
    "append",
    "streams",
    "read",
    "bounds",
    "snapshot",
    "seek",
    "wait",
    "flush",
    "close",
    "health",
)
_REMEMBERED: Final = 10_000


class FaultyConfig(AdapterConfig, frozen=True, kw_only=True, tag="faulty"):
    """Settings of an adapter whose faults are scripted in code: none."""


class FaultyAdapter(Adapter[Any]):
    """Passes every call on to another adapter, except where a fault is scripted.

    Of several faults that apply to a call, the one scripted first happens. What the adapter
    promises is what the other one promises, except `inline`. `read_many` is made of `read`s, so a
    fault on "read" happens to both.

    Args:
        inner: the adapter that does the work; given a `FaultyConfig`: a new memory adapter.

    Attributes:
        inner: the adapter that does the work; tests may look past the faults with it.
        calls: how often each call was begun.
        attempts: the last 10,000 appends begun, as `(producer, shard, first_seq, events)`.
        overlaps: appends begun while another of the same shard was under way here.
    """

    kind = "faulty"
    Config = FaultyConfig

    def __init__(self, inner: Adapter[Any] | FaultyConfig) -> None:
        if isinstance(inner, FaultyConfig):
            super().__init__(inner)
            inner = MemoryAdapter(MemoryConfig())
        else:
            super().__init__(FaultyConfig())
        self.inner: Adapter[Any] = inner
        # A class attribute for others; here it depends on what is wrapped.
        self.capabilities = msgspec.structs.replace(inner.capabilities, inline=False)  # type: ignore[misc]
        self.calls: Counter[str] = Counter()
        self.attempts: deque[tuple[str, int, int, int]] = deque(maxlen=_REMEMBERED)
        self.overlaps = 0
        self._appending: Counter[int] = Counter()
        self._faults: dict[str, list[Fault]] = {call: [] for call in CALLS}
        self._moved = Moved()

    def fail(
        self,
        call: Call,
        error: Exception | type[Exception],
        *,
        times: int | None = 1,
        shard: int | None = None,
    ) -> Fault:
        """Raise `error` instead of doing anything.

        Args:
            call: which call.
            error: what to raise.
            times: the next so many calls; None: all, until `end`.
            shard: only calls for this shard (append, read, bounds, seek); None: all.
        """

        async def effect(fault: Fault, inner: Thunk) -> Any:
            raise error

        return self._script(call, effect, times, shard)

    def store_and_fail(
        self,
        call: Call,
        error: Exception | type[Exception],
        *,
        times: int | None = 1,
        shard: int | None = None,
    ) -> Fault:
        """Do the work, then raise `error`: the answer was lost. Arguments as `fail`."""

        async def effect(fault: Fault, inner: Thunk) -> Any:
            await inner()
            raise error

        return self._script(call, effect, times, shard)

    def hold(
        self, call: Call, *, times: int | None = 1, shard: int | None = None, after: bool = False
    ) -> Fault:
        """Hang until released, then go on; a cancellation ends it. Arguments as `fail`.

        Args:
            call: which call.
            times: as `fail`.
            shard: as `fail`.
            after: do the work first and hold back the answer.
        """

        async def effect(fault: Fault, inner: Thunk) -> Any:
            result = await inner() if after else None
            try:
                await fault.wait_released()
            except anyio.get_cancelled_exc_class():
                fault.count_cancelled()
                raise
            return result if after else await inner()

        return self._script(call, effect, times, shard)

    def hang_uncancellable(
        self, call: Call, *, times: int | None = 1, shard: int | None = None, store: bool = True
    ) -> Fault:
        """Hang until released and swallow every cancellation, as a broken driver does.

        A task that runs such a call cannot be ended but by `release`: do so before the test ends.
        Arguments as `fail`.

        Args:
            call: which call.
            times: as `fail`.
            shard: as `fail`.
            store: do the work once released; otherwise return None without.
        """

        async def effect(fault: Fault, inner: Thunk) -> Any:
            # The shield keeps cancel scopes out, the loop a task's own cancel().
            with anyio.CancelScope(shield=True):
                while not fault.open:
                    try:
                        await fault.wait_released()
                    except anyio.get_cancelled_exc_class():
                        fault.count_cancelled()
                return await inner() if store else None

        return self._script(call, effect, times, shard)

    def delay_past_cancellation(
        self, call: Call, *, times: int | None = 1, shard: int | None = None
    ) -> Fault:
        """Hang until cancelled, and keep the call for `Fault.deliver`: a packet that arrives late.

        Arguments as `fail`. If released instead, the call goes on.
        """

        async def effect(fault: Fault, inner: Thunk) -> Any:
            try:
                await fault.wait_released()
            except anyio.get_cancelled_exc_class():
                fault.late.append(inner)
                fault.count_cancelled()
                raise
            return await inner()

        return self._script(call, effect, times, shard)

    def slow(self, call: Call, turns: int, *, times: int | None = None, shard: int | None = None) -> Fault:
        """Let the loop turn `turns` times before going on. Other arguments as `fail`, for all calls."""

        async def effect(fault: Fault, inner: Thunk) -> Any:
            for _ in range(turns):
                await anyio.lowlevel.checkpoint()
            return await inner()

        return self._script(call, effect, times, shard)

    def release_all(self) -> None:
        """End every fault and let go of all that is held."""
        for faults in self._faults.values():
            for fault in faults:
                fault.end()
            faults.clear()

    async def called(self, call: Call, count: int, *, timeout: float = 10.0) -> None:
        """Wait until a call was begun `count` times in all.

        Raises:
            TimeoutError: fewer times, within `timeout` seconds.
        """
        await self._moved.until(lambda: self.calls[call] >= count, timeout)

    def identity(self) -> str:
        """Name the other adapter's store."""
        return self.inner.identity()

    async def open(self, context: AdapterContext) -> None:
        """Open the other adapter."""
        await self._run("open", None, lambda: self.inner.open(context))

    async def append(self, batch: Batch) -> None:
        """Append to the other adapter."""
        self.attempts.append((batch.producer, batch.shard, batch.first_seq, len(batch.events)))
        if self._appending[batch.shard]:
            self.overlaps += 1
        self._appending[batch.shard] += 1
        try:
            await self._run("append", batch.shard, lambda: self.inner.append(batch))
        finally:
            self._appending[batch.shard] -= 1

    async def streams(self) -> list[Stream]:
        """List the other adapter's streams."""
        return await self._run("streams", None, self.inner.streams)

    async def read(self, stream: Stream, after: str | None, limit: int, snapshot: object = None) -> ShardPage:
        """Read from the other adapter."""
        return await self._run("read", stream.shard, lambda: self.inner.read(stream, after, limit, snapshot))

    async def bounds(self, stream: Stream) -> tuple[str, str]:
        """Return the other adapter's bounds."""
        return await self._run("bounds", stream.shard, lambda: self.inner.bounds(stream))

    async def snapshot(self) -> object:
        """Take the other adapter's snapshot."""
        return await self._run("snapshot", None, self.inner.snapshot)

    async def seek(self, stream: Stream, ts: int) -> str | None:
        """Seek in the other adapter."""
        return await self._run("seek", stream.shard, lambda: self.inner.seek(stream, ts))

    async def enter(self, stream: Stream, since: int) -> str | None:
        """Ask the other adapter; no fault applies."""
        return await self.inner.enter(stream, since)

    async def retired(self, streams: Iterable[Stream]) -> set[Stream]:
        """Ask the other adapter; no fault applies."""
        return await self.inner.retired(streams)

    async def wait(self, positions: Mapping[Stream, str | None], timeout: float) -> None:
        """Wait in the other adapter."""
        await self._run("wait", None, lambda: self.inner.wait(positions, timeout))

    async def flush(self) -> None:
        """Flush the other adapter."""
        await self._run("flush", None, self.inner.flush)

    async def close(self) -> None:
        """Close the other adapter. Releases nothing: what hangs goes on hanging."""
        await self._run("close", None, self.inner.close)

    async def health(self) -> Health:
        """Ask the other adapter."""
        return await self._run("health", None, self.inner.health)

    def stats(self) -> dict[str, Any]:
        """Return the other adapter's stats."""
        return self.inner.stats()

    def _script(
        self,
        call: Call,
        effect: Callable[[Fault, Thunk], Awaitable[Any]],
        times: int | None,
        shard: int | None,
    ) -> Fault:
        if call not in self._faults:
            raise ValueError(f"no call {call!r} to script; there are {', '.join(CALLS)}")
        fault = Fault(effect, times=times, matches=lambda of: shard is None or of == shard)
        self._faults[call].append(fault)
        return fault

    async def _run(self, call: Call, shard: int | None, inner: Callable[[], Awaitable[T]]) -> T:
        self.calls[call] += 1
        self._moved.notify()
        for fault in self._faults[call]:
            if fault.takes(shard):
                result: T = await fault.happen(inner)
                return result
        return await inner()


def plugin_for(adapter: Adapter[Any] | type[Adapter[Any]]) -> object:
    """Return a plugin object that offers one adapter, for `EventBus(config, plugins=[...])`.

    Args:
        adapter: a class, offered as it is; or an object, which the bus then gets under its `kind`
            instead of a new one (for one bus only: an adapter is opened once).
    """
    return _Plugin(adapter if isinstance(adapter, type) else _class_of(adapter))


class _Plugin:
    """Offers one adapter class."""

    def __init__(self, offered: type[Adapter[Any]]) -> None:
        self._offered = offered

    @hookimpl
    def netcore_adapters(self) -> list[type[Adapter[Any]]]:
        """Offer it."""
        return [self._offered]


def _class_of(adapter: Adapter[Any]) -> type[Adapter[Any]]:
    """Make a class that, called with a config, returns `adapter`."""

    class Given(type(adapter)):  # type: ignore[misc]  # a class that depends on the argument
        capabilities = adapter.capabilities

        def __new__(cls, config: AdapterConfig) -> Any:
            # No instance of this class, so `__init__` does not run on it again.
            return adapter

    return Given
