"""Adapters whose calls are plain functions or generators are named, by class and call; legal ones work."""

from __future__ import annotations

import functools
import logging
import types
from collections.abc import Awaitable, Callable, Generator
from typing import Any
from unittest.mock import AsyncMock

import anyio
import anyio.lowlevel
import pytest

from netcore import (
    AdapterRefusedError,
    ConsumeRequest,
    EventBus,
    EventBusConfig,
    PluginError,
    TransientAdapterError,
)
from netcore.builtin.memory import MemoryAdapter, MemoryConfig
from netcore.contracts.adapter import Capabilities
from netcore.testing.faults import plugin_for

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class CarelessConfig(MemoryConfig, frozen=True, kw_only=True, tag="careless"):
    """As the memory adapter's."""


class Careless(MemoryAdapter):
    """A memory adapter, to be broken in one call."""

    kind = "careless"
    Config: Any = CarelessConfig


class CarelessAndSlow(Careless):
    """The same, where reads are tasks of their own."""

    capabilities = Capabilities(watermark=True)


CONFIG = EventBusConfig(shards=1, adapter={"kind": "careless"}, adapter_timeout_ms=2000)


def bus_with(adapter: Any) -> EventBus:
    return EventBus(CONFIG, plugins=[plugin_for(adapter)])


async def opened(adapter: Any) -> EventBus:
    return await EventBus.open(CONFIG, plugins=[plugin_for(adapter)])


def careless(call: str, broken: object, base: type[Careless] = Careless) -> Careless:
    """Make an adapter with one call replaced."""
    adapter = base(CarelessConfig())
    setattr(adapter, call, broken)
    return adapter


def plain(*args: Any, **options: Any) -> None:
    """Stand for a call whose author forgot `async`."""


async def everything(bus: EventBus) -> list[int]:
    page = await bus.poll(ConsumeRequest(100, start="earliest"))
    assert page.failed_shards == {}
    return [event.decode() for event in page.events]


async def test_open_that_is_not_async_is_named_when_the_bus_opens(anyio_backend: str) -> None:
    """The earliest moment at which a plain function can be told from a legal one; what it opened is closed."""
    adapter = careless("open", plain)
    adapter.close = AsyncMock()  # type: ignore[method-assign]
    with pytest.raises(
        AdapterRefusedError, match=r"Careless\.open returned None, .* be awaited: make it `async def`$"
    ):
        await opened(adapter)
    adapter.close.assert_awaited_once()


async def test_open_that_fails_is_not_hidden_by_a_close_that_is_not_async(anyio_backend: str) -> None:
    """The first complaint is the one that helps."""
    adapter = careless("close", plain)
    adapter.open = AsyncMock(side_effect=TransientAdapterError("nobody at home"))  # type: ignore[method-assign]
    with pytest.raises(TransientAdapterError, match="nobody at home"):
        await opened(adapter)


async def test_append_that_is_not_async_is_named_and_loses_nothing(anyio_backend: str) -> None:
    """The shard keeps its batch, says why in stats and health, and stores it once it can."""
    called = anyio.Event()
    adapter = careless("append", lambda batch: called.set())
    bus = await opened(adapter)
    for number in range(3):
        bus.ingest(number)
    with anyio.fail_after(10):
        await called.wait()
        while not (error := bus.stats().shards[0].last_error):
            await anyio.lowlevel.checkpoint()
    assert error.endswith("Careless.append returned None, which cannot be awaited: make it `async def`")
    health = await bus.health()
    assert (health.ok, "Careless.append" in health.reason) == (False, True)
    assert bus.stats().errors == {}
    del adapter.append
    report = await bus.shutdown(10)
    assert (report.dispatched, report.dead_lettered, report.lossy) == (3, 0, False)


@pytest.mark.parametrize("call", ["flush", "close"])
async def test_last_call_that_is_not_async_is_named_after_the_accounting(
    anyio_backend: str, call: str
) -> None:
    """A shutdown counts, and ends, whatever the adapter is like."""
    bus = await opened(careless(call, plain))
    bus.ingest(1)
    with pytest.raises(AdapterRefusedError, match=rf"Careless\.{call} returned None.*make it `async def`"):
        await bus.shutdown(10)
    report = await bus.shutdown()
    assert (report.dispatched, report.lossy) == (1, False)


@pytest.mark.parametrize("base", [Careless, CarelessAndSlow])
@pytest.mark.parametrize("call", ["streams", "snapshot", "bounds"])
async def test_call_of_a_first_poll_that_is_not_async_is_named(
    anyio_backend: str, call: str, base: type[Careless]
) -> None:
    """The poll raises the library's own error, and advises no further try."""
    adapter = careless(call, plain, base)
    async with bus_with(adapter) as bus:
        bus.ingest(1)
        await bus.flush(10)
        with pytest.raises(AdapterRefusedError, match=rf"\.{call} returned None.*make it `async def`$"):
            await bus.poll(ConsumeRequest(10, start="earliest"))
        delattr(adapter, call)
        assert await everything(bus) == [1]


@pytest.mark.parametrize("base", [Careless, CarelessAndSlow])
async def test_read_that_is_not_async_fails_its_shard_by_name(
    anyio_backend: str, base: type[Careless]
) -> None:
    """A poll never raises for a failing read; here it says whose fault it is."""
    adapter = careless("read_many", plain, base)
    async with bus_with(adapter) as bus:
        bus.ingest(1)
        await bus.flush(10)
        page = await bus.poll(ConsumeRequest(10, start="earliest"))
        assert page.events == []
        assert ".read_many returned None, which cannot be awaited" in page.failed_shards[0]
        del adapter.read_many
        again = await bus.poll(ConsumeRequest(10, cursor=page.cursor))
        assert [event.decode() for event in again.events] == [1]


async def test_health_that_is_not_async_is_said_in_health(anyio_backend: str) -> None:
    """`health` never raises."""
    async with bus_with(careless("health", plain)) as bus:
        health = await bus.health()
        assert not health.ok
        assert "Careless.health returned None" in health.reason


async def test_wait_that_is_not_async_is_logged_once_and_stops_no_long_poll(
    anyio_backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A poll can do without the adapter's waiting; its author should know nevertheless."""
    async with bus_with(careless("wait", plain)) as bus:
        with caplog.at_level(logging.ERROR, "netcore.consume"), anyio.fail_after(10):
            for number in range(2):
                page = await bus.poll(ConsumeRequest(10, start="tail"), wait=0.2)
                assert (number, page.events) == (number, [])
        assert [
            record.message for record in caplog.records if "Careless.wait returned None" in record.message
        ]
        assert len(caplog.records) == 1


def of_a_partial(call: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
    return functools.partial(call)


def of_a_mock(call: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
    return AsyncMock(side_effect=call)


def of_a_plain_decorator(call: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
    return lambda *args, **options: call(*args, **options)


def of_a_generator_coroutine(call: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
    @types.coroutine
    def wrapped(*args: Any, **options: Any) -> Generator[Any, Any, Any]:
        result = yield from call(*args, **options).__await__()
        return result

    return wrapped


class Promise:
    """An awaitable that is no coroutine, as drivers return."""

    def __init__(self, call: Awaitable[Any]) -> None:
        self.call = call

    def __await__(self) -> Generator[Any, Any, Any]:
        return self.call.__await__()


def of_a_promise(call: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
    return lambda *args, **options: Promise(call(*args, **options))


LEGAL = [of_a_partial, of_a_mock, of_a_plain_decorator, of_a_generator_coroutine, of_a_promise]
CALLS = [
    "open",
    "append",
    "streams",
    "bounds",
    "snapshot",
    "read_many",
    "enter",
    "wait",
    "flush",
    "close",
    "health",
]


@pytest.mark.parametrize("wrap", LEGAL)
@pytest.mark.parametrize("base", [Careless, CarelessAndSlow])
async def test_calls_that_return_awaitables_of_any_kind_work(
    anyio_backend: str, wrap: Callable[[Any], Any], base: type[Careless]
) -> None:
    """Only what a call returns decides: no partial, mock or decorator is refused."""
    adapter = base(CarelessConfig())
    for call in CALLS:
        setattr(adapter, call, wrap(getattr(adapter, call)))
    async with bus_with(adapter) as bus:
        for number in range(3):
            bus.ingest(number)
        await bus.flush(10)
        assert await everything(bus) == [0, 1, 2]
        assert (await bus.health()).ok
        page = await bus.poll(ConsumeRequest(10, start="tail"), wait=0.01)
        assert page.events == []
        assert bus.stats().retries == 0


@pytest.mark.parametrize("wrap", LEGAL)
def test_class_whose_calls_are_legal_wrappers_is_let_in(wrap: Callable[[Any], Any]) -> None:
    """The look at the class refuses only what can be right in no way."""
    wrapped: Any = type("Wrapped", (Careless,), {call: wrap(getattr(Careless, call)) for call in CALLS})
    assert bus_with(wrapped).stats().ingested == 0


def generator(self: object, *args: object) -> Generator[None, None, None]:
    yield


async def async_generator(self: object, *args: object) -> Any:
    yield


@pytest.mark.parametrize(
    "call", ["open", "append", "read", "read_many", "wait", "bounds", "streams", "close"]
)
@pytest.mark.parametrize("broken", [generator, async_generator])
def test_class_with_a_generator_for_a_call_is_refused_when_the_bus_is_built(
    broken: object, call: str
) -> None:
    """That can be right in no way, so nobody need wait for the first batch to learn of it."""
    wrong: Any = type("Wrong", (Careless,), {call: broken})
    with pytest.raises(
        PluginError, match=rf"Wrong: {call} is a generator.*make it `async def` without `yield`"
    ):
        bus_with(wrong)


def test_class_with_a_call_that_is_no_method_is_refused_when_the_bus_is_built() -> None:
    """`append = None` satisfies `ABC`, and nobody else."""
    with pytest.raises(PluginError, match="Wrong: append must be a method, made with `async def`, not None"):
        bus_with(type("Wrong", (Careless,), {"append": None}))


@pytest.mark.parametrize("call", ["identity", "stats"])
def test_class_with_an_async_call_that_is_not_awaited_is_refused_when_the_bus_is_built(call: str) -> None:
    """The contrary slip."""

    async def broken(self: object) -> str:
        return ""

    with pytest.raises(PluginError, match=f"Wrong: {call} is async, but it is called and not awaited"):
        bus_with(type("Wrong", (Careless,), {call: broken}))


async def test_generator_of_an_object_is_named_when_it_is_called(anyio_backend: str) -> None:
    """What a class does not show is found at the call."""
    adapter = careless("open", lambda context: generator(context))
    with pytest.raises(
        AdapterRefusedError, match=r"returned <generator.*make it `async def` without `yield`"
    ):
        await opened(adapter)
