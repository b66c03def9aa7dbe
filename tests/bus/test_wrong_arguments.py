"""Arguments of another type: refused in plain words, before anything is begun."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from netcore import ClosedError, ConfigError, EventBus, EventBusConfig, blocking

CALLS: dict[str, Callable[[EventBus, Any], Awaitable[object]]] = {
    "flush": lambda bus, timeout: bus.flush(timeout),
    "add_shards": lambda bus, timeout: bus.add_shards(1, timeout=timeout),
    "remove_shards": lambda bus, timeout: bus.remove_shards([0], timeout=timeout),
    "shutdown": lambda bus, timeout: bus.shutdown(timeout),
}


@pytest.mark.anyio
@pytest.mark.parametrize("timeout", ["5", math.nan, True, [1]])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_timeout_that_is_no_number_changes_nothing(
    call: Callable[[EventBus, Any], Awaitable[object]], timeout: object
) -> None:
    """The bus keeps its shards, and stores and shuts down as if nobody had asked."""
    bus = await EventBus.open(EventBusConfig(shards=2))
    with pytest.raises(ConfigError, match="timeout must be a number of seconds, not"):
        await call(bus, timeout)
    assert [shard.id for shard in bus.stats().shards] == [0, 1]
    bus.ingest({"n": 1})
    assert (await bus.shutdown(timeout=math.inf)).dispatched == 1


@pytest.mark.anyio
async def test_shutdown_whose_time_is_over_still_shuts_down() -> None:
    """A time left that somebody computed may be below 0; that is no reason to leave a bus open."""
    bus = await EventBus.open()
    await bus.shutdown(timeout=-1.0)
    with pytest.raises(ClosedError, match="shut down"):
        bus.ingest({"n": 1})


@pytest.mark.anyio
async def test_poll_of_something_else_than_a_request_is_refused() -> None:
    """Whoever passes a limit alone is told what to write."""
    async with EventBus() as bus:
        with pytest.raises(
            ConfigError, match=r"takes a ConsumeRequest, e\.g\. ConsumeRequest\(100\), not 100"
        ):
            await bus.poll(100)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="takes a ConsumeRequest"):
            bus.subscribe("earliest")  # type: ignore[arg-type]


def test_blocking_shutdown_with_a_timeout_that_is_no_number_can_be_repeated() -> None:
    """Its thread goes on until a shutdown that was meant."""
    bus = blocking.EventBus()
    with bus:
        with pytest.raises(ConfigError, match="timeout must be a number"):
            bus.shutdown(None)  # type: ignore[arg-type]
        bus.ingest({"n": 1})
        assert bus.shutdown().dispatched == 1
