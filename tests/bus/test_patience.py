"""What shortens a wait: another shutdown's time-out, and a shutdown itself."""

from __future__ import annotations

import anyio
import pytest

from netcore import AdapterRefusedError, EventBus, EventBusConfig, TransientAdapterError
from netcore.builtin.memory import MemoryAdapter, MemoryConfig
from netcore.testing.faults import FaultyAdapter, plugin_for

pytestmark = pytest.mark.anyio


async def opened() -> tuple[EventBus, FaultyAdapter]:
    """Open a bus whose adapter the test scripts; the test shuts it down."""
    adapter = FaultyAdapter(MemoryAdapter(MemoryConfig()))
    config = EventBusConfig(shards=1, adapter="faulty")
    return await EventBus.open(config, plugins=[plugin_for(adapter)]), adapter


async def test_shutdown_joined_with_a_shorter_timeout_ends_by_it() -> None:
    """Whoever calls, a shutdown ends by the caller's time-out plus one second."""
    bus, adapter = await opened()
    held = adapter.hang_uncancellable("append", store=False)
    bus.ingest_raw(b"x")
    await held.reached()
    async with anyio.create_task_group() as group:
        group.start_soon(bus.shutdown, 60)
        await anyio.wait_all_tasks_blocked()
        with anyio.fail_after(10):
            began = anyio.current_time()
            report = await bus.shutdown(timeout=0.1)
            took = anyio.current_time() - began
    assert took < 2.0
    assert report.lost == 1
    held.release()


@pytest.mark.parametrize("error", [TransientAdapterError, AdapterRefusedError])
async def test_shutdown_cuts_the_wait_between_two_attempts(error: type[Exception]) -> None:
    """An adapter that was mended during a long wait gets the batch before a short shutdown ends."""
    bus, adapter = await opened()
    adapter.fail("append", error("not now"), times=6)
    bus.ingest_raw(b"x")
    calls = 6 if error is TransientAdapterError else 1
    await adapter.called("append", calls)
    if error is AdapterRefusedError:
        adapter.release_all()  # mended; the worker would look again in a second or two
    report = await bus.shutdown(timeout=0.5)
    assert (report.dispatched, report.lost) == (1, 0)
