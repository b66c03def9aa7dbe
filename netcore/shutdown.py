"""The order of a shutdown.

Refuse new ingests; settle those in flight; let every worker drain and dispatch; then the adapter's
`flush` and `close`; then count. It ends by its time-out plus one second whatever the adapter does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

from netcore.contracts.adapter import Adapter, unreplicated
from netcore.engine import Engine
from netcore.lifecycle import State
from netcore.stats import EventBusStats, ShutdownReport

__all__ = ["report_of", "shut_down"]

_log = logging.getLogger("netcore.bus")
OVERTIME_S: Final = 0.9
"""What cancelling stuck workers and closing the adapter may take when the time-out has passed."""


async def shut_down(
    engine: Engine, stop_reading: Callable[[], Coroutine[Any, Any, None]], timeout: float
) -> tuple[ShutdownReport, list[Exception]]:
    """Shut a bus down; callable again after it was cancelled midway.

    Args:
        engine: the bus's parts.
        stop_reading: ends polls, subscriptions and the monitor.
        timeout: seconds for draining, flush and close together.

    Returns:
        The final accounting, and what the adapter's flush and close raised.
    """
    started = time.monotonic()
    deadline = started + timeout
    if engine.lifecycle.state is not State.CLOSING:
        engine.lifecycle.move(State.CLOSING)
    engine.router.close()
    for shard in list(engine.shards.values()):
        shard.ring.seal()
        shard.signal.set()
    await stop_reading()
    stuck = await _drain(engine, deadline)
    errors: list[Exception] = []
    last_call = max(deadline, time.monotonic() + OVERTIME_S / 2) if stuck else deadline
    for name, call in (("flush", engine.adapter.flush), ("close", engine.adapter.close)):
        # A fifth of a second even when time is up: most backends need no more to say goodbye.
        left = max(last_call - time.monotonic(), 0.2)
        if error := await _finish(engine, name, call, left):
            errors.append(error)
    engine.stop_clock()
    seconds = time.monotonic() - started
    return report_of(engine.stats(), engine.adapter, seconds=seconds, stuck=stuck), errors


async def _drain(engine: Engine, deadline: float) -> tuple[int, ...]:
    """Let the workers finish; give up those that don't, and return their shards' ids."""
    for shard in list(engine.shards.values()):
        if engine.workers[shard.id].done and shard.outstanding:
            engine.start_worker(shard)  # it was cancelled from outside, with work left
    for worker in list(engine.workers.values()):
        await worker.join(max(0.0, deadline - time.monotonic()))
    late = [worker for worker in list(engine.workers.values()) if not worker.done]
    for worker in late:
        worker.cancel()
    patience = time.monotonic() + OVERTIME_S / 3
    for worker in late:
        await worker.join(max(0.0, patience - time.monotonic()))
    stuck = []
    for shard in list(engine.shards.values()):
        if lost := shard.give_up():
            stuck.append(shard.id)
            _log.error(
                "shard %d: shutdown ran out of time with %d events outstanding; they are lost: %s",
                shard.id,
                lost,
                shard.last_error or "its adapter call did not return",
            )
    engine.progress.notify()
    return tuple(sorted(stuck))


async def _finish(
    engine: Engine, name: str, call: Callable[[], Coroutine[Any, Any, None]], timeout: float
) -> Exception | None:
    """Make a last call to the adapter; return what went wrong."""
    task = engine.runtime.spawn(call, f"netcore {name}")
    if not await task.join(timeout):
        task.cancel()
        error: Exception = TimeoutError(f"the adapter's {name} did not return within {timeout:.1f} s")
    else:
        try:
            task.result()
            return None
        except Exception as raised:
            error = raised
    error.add_note(f"while the {engine.adapter.kind} adapter was asked to {name}")
    return error


def report_of(
    stats: EventBusStats, adapter: Adapter[Any], *, seconds: float, stuck: tuple[int, ...] = ()
) -> ShutdownReport:
    """Word the final accounting."""
    return ShutdownReport(
        ingested=stats.ingested,
        dispatched=stats.dispatched,
        evicted=stats.evicted,
        dead_lettered=stats.dead_lettered,
        lost=stats.lost,
        lossy=stats.lost > 0,
        unreplicated=unreplicated(adapter),
        seconds=seconds,
        stuck_shards=stuck,
    )
