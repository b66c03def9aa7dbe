"""FaultyAdapter: passes the contract when nothing is scripted, and each fault does what it says."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import pytest

from netcore import ConsumeRequest, EventBus, EventBusConfig
from netcore.builtin.memory import MemoryAdapter, MemoryConfig
from netcore.contracts.adapter import ReadRequest, Stream
from netcore.errors import AdapterRefusedError, TransientAdapterError
from netcore.testing.contract import AdapterContract, MakeAdapter, Writer, adapter_context, drain
from netcore.testing.faults import FaultyAdapter, FaultyConfig, plugin_for


class TestFaultyContract(AdapterContract):
    """Without a script it behaves as what it wraps."""

    @pytest.fixture
    def make_adapter(self) -> MakeAdapter:
        """Wrap memory adapters."""

        def make(**overrides: Any) -> FaultyAdapter:
            return FaultyAdapter(MemoryAdapter(MemoryConfig(**overrides)))

        return make


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Both loops."""
    return str(request.param)


async def opened() -> FaultyAdapter:
    faulty = FaultyAdapter(FaultyConfig())
    await faulty.open(adapter_context())
    return faulty


@pytest.mark.anyio
async def test_fail_raises_so_many_times_for_its_shard() -> None:
    """Two appends of shard 1 fail, others do not, and nothing was stored by them."""
    faulty = await opened()
    fault = faulty.fail("append", TransientAdapterError("away"), times=2, shard=1)
    one, two = Writer(faulty, shard=1), Writer(faulty, shard=2)
    await two.write([b"b"])
    batch = one.batch([b"a"])
    for _ in range(2):
        with pytest.raises(TransientAdapterError, match="away"):
            await faulty.append(batch)
    assert await drain(faulty, 1) == []
    await faulty.append(batch)
    assert (fault.hits, faulty.calls["append"]) == (2, 4)
    assert [attempt[1] for attempt in faulty.attempts] == [2, 1, 1, 1]


@pytest.mark.anyio
async def test_fail_without_times_lasts_until_ended() -> None:
    """`times=None` is an outage, `end` its end."""
    faulty = await opened()
    fault = faulty.fail("streams", AdapterRefusedError, times=None)
    for _ in range(3):
        with pytest.raises(AdapterRefusedError):
            await faulty.streams()
    fault.end()
    assert await faulty.streams() == []


@pytest.mark.anyio
async def test_store_and_fail_is_ambiguous() -> None:
    """The caller sees an error, the events are stored; the retry changes nothing."""
    faulty = await opened()
    faulty.store_and_fail("append", TransientAdapterError("no answer"))
    batch = Writer(faulty).batch([b"a"])
    with pytest.raises(TransientAdapterError):
        await faulty.append(batch)
    await faulty.append(batch)
    assert [event.raw for event in await drain(faulty)] == [b"a"]


@pytest.mark.anyio
async def test_hold_waits_for_the_test() -> None:
    """A held call is seen under way, and goes on when released."""
    faulty = await opened()
    held = faulty.hold("append")
    async with anyio.create_task_group() as group:
        group.start_soon(faulty.append, Writer(faulty).batch([b"a"]))
        await held.reached()
        assert held.inside == 1
        assert await drain(faulty.inner) == []
        held.release()
    assert len(await drain(faulty)) == 1
    assert held.inside == 0


@pytest.mark.anyio
async def test_hold_after_has_stored_and_can_be_cancelled() -> None:
    """With `after` the work is done and the answer held; a cancellation ends the call."""
    faulty = await opened()
    held = faulty.hold("append", after=True)
    async with anyio.create_task_group() as group:
        group.start_soon(faulty.append, Writer(faulty).batch([b"a"]))
        await held.reached()
        group.cancel_scope.cancel()
    assert held.cancelled == 1
    assert len(await drain(faulty)) == 1


@pytest.mark.anyio
async def test_hang_uncancellable_outlives_cancel_scopes() -> None:
    """Cancelled or not, it ends only when released."""
    faulty = await opened()
    hang = faulty.hang_uncancellable("append")
    async with anyio.create_task_group() as group:
        group.start_soon(faulty.append, Writer(faulty).batch([b"a"]))
        await hang.reached()
        group.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await anyio.lowlevel.checkpoint()
            assert hang.inside == 1
            hang.release()
    assert len(await drain(faulty)) == 1


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_hang_uncancellable_swallows_task_cancel() -> None:
    """An asyncio task's own `cancel` is swallowed and counted."""
    faulty = await opened()
    hang = faulty.hang_uncancellable("append", store=False)
    task = asyncio.create_task(faulty.append(Writer(faulty).batch([b"a"])))
    await hang.reached()
    task.cancel()
    await hang.abandoned()
    assert not task.done()
    hang.release()
    await task
    assert await drain(faulty) == []


@pytest.mark.anyio
async def test_delay_past_cancellation_delivers_late() -> None:
    """The cancelled call's work happens when the test delivers it, after later ones."""
    faulty = await opened()
    fault = faulty.delay_past_cancellation("append")
    writer = Writer(faulty)
    async with anyio.create_task_group() as group:
        group.start_soon(faulty.append, writer.batch([b"a"]))
        await fault.reached()
        group.cancel_scope.cancel()
    await Writer(faulty).write([b"b"])
    assert await fault.deliver() == 1
    assert await fault.deliver() == 0
    assert [event.raw for event in await drain(faulty)] == [b"b", b"a"]


@pytest.mark.anyio
async def test_slow_lets_others_run_first() -> None:
    """A slow append is overtaken by a fast one of another shard."""
    faulty = await opened()
    faulty.slow("append", 20, shard=1)
    ended: list[int] = []

    async def write(shard: int) -> None:
        await Writer(faulty, shard=shard).write([b"x"])
        ended.append(shard)

    async with anyio.create_task_group() as group:
        group.start_soon(write, 1)
        await faulty.called("append", 1)
        group.start_soon(write, 2)
    assert ended == [2, 1]


@pytest.mark.anyio
async def test_overlapping_appends_of_a_shard_are_counted() -> None:
    """Two appends of one shard at a time are an overlap; of two shards they are not."""
    faulty = await opened()
    held = faulty.hold("append", times=3)
    async with anyio.create_task_group() as group:
        for shard in (1, 2, 1):
            group.start_soon(faulty.append, Writer(faulty, shard=shard).batch([b"a"]))
        await held.reached(3)
        held.release()
    assert faulty.overlaps == 1


@pytest.mark.anyio
async def test_read_fault_happens_to_read_many_too() -> None:
    """A failing shard fails in its place only."""
    faulty = await opened()
    await Writer(faulty, shard=2).write([b"a"])
    faulty.fail("read", TransientAdapterError("away"), shard=1)
    pages = await faulty.read_many([ReadRequest(Stream(1), None, 9), ReadRequest(Stream(2), None, 9)])
    assert isinstance(pages[0], TransientAdapterError)
    assert not isinstance(pages[1], Exception)
    assert len(pages[1].events) == 1


@pytest.mark.anyio
async def test_release_all_ends_every_fault() -> None:
    """Whatever was scripted is over."""
    faulty = await opened()
    faulty.fail("append", TransientAdapterError, times=None)
    held = faulty.hold("streams")
    async with anyio.create_task_group() as group:
        group.start_soon(faulty.streams)
        await held.reached()
        faulty.release_all()
    await Writer(faulty).write([b"a"])
    assert len(await drain(faulty)) == 1


@pytest.mark.anyio
async def test_waiting_for_what_does_not_happen_times_out() -> None:
    """Every wait has a deadline."""
    faulty = await opened()
    with pytest.raises(TimeoutError):
        await faulty.hold("append").reached(timeout=0.01)


def test_scripting_an_unknown_call_is_an_error() -> None:
    """A misspelt call does not pass silently."""
    with pytest.raises(ValueError, match="no call 'apend'"):
        FaultyAdapter(FaultyConfig()).fail("apend", TransientAdapterError)  # type: ignore[arg-type]


def test_plugin_for_an_object_gives_that_object() -> None:
    """What a bus builds from the offered class is the test's own adapter."""
    faulty = FaultyAdapter(MemoryAdapter(MemoryConfig()))
    (offered,) = plugin_for(faulty).netcore_adapters()  # type: ignore[attr-defined]
    assert (offered.kind, offered.Config) == ("faulty", FaultyConfig)
    assert offered.capabilities.watermark
    assert offered(FaultyConfig()) is faulty
    assert faulty.calls == {}


def test_plugin_for_a_class_offers_it() -> None:
    """A class is offered as it is."""
    (offered,) = plugin_for(FaultyAdapter).netcore_adapters()  # type: ignore[attr-defined]
    assert offered is FaultyAdapter


def test_plugin_for_passes_the_plugin_checks() -> None:
    """netcore accepts it as a plugin."""
    from netcore.plugins.manager import manager_for

    faulty = FaultyAdapter(FaultyConfig())
    manager = manager_for([plugin_for(faulty)])
    assert manager.registry.adapter("faulty")(FaultyConfig()) is faulty


@pytest.mark.anyio
async def test_bus_on_a_scripted_adapter_retries_and_stores_once() -> None:
    """A bus takes the test's own adapter; a lost answer and an outage cost nothing."""
    faulty = FaultyAdapter(MemoryAdapter(MemoryConfig()))
    faulty.store_and_fail("append", TransientAdapterError("no answer"))
    faulty.fail("append", TransientAdapterError("away"), times=2)
    config = EventBusConfig(shards=1, adapter="faulty")
    async with EventBus(config, plugins=[plugin_for(faulty)]) as bus:
        for n in range(5):
            bus.ingest_raw(b"%d" % n)
        await bus.flush(timeout=30)
        page = await bus.poll(ConsumeRequest(100, start="earliest"))
        assert [event.raw for event in page.events] == [b"0", b"1", b"2", b"3", b"4"]
        assert bus.stats().retries == 3
    assert faulty.overlaps == 0
    assert faulty.calls["close"] == 1
