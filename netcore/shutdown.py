"""The order of a shutdown.

Refuse new ingests; settle those in flight; let every worker drain and dispatch; then the adapter's
`flush` and `close`; then count. It ends by its time-out plus one second whatever the adapter does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final

from netcore.contracts.adapter import Adapter, unreplicated
from netcore.contracts.answers import ask
from netcore.engine import Engine
from netcore.lifecycle import State
from netcore.runtime import Task
from netcore.stats import EventBusStats, ShutdownReport

__all__ = ["Deadline", "report_of", "shut_down"]

_log = logging.getLogger("netcore.bus")
GLANCE_S: Final = 0.1
"""How often a shutdown that waits looks whether its deadline was brought forward."""
OVERTIME_S: Final = 0.9
"""What cancelling stuck workers and closing the adapter may take when the time-out has passed."""


class Deadline:
    """When a shutdown must come to its end. Those who join it later may bring that forward.

    Args:
        timeout: seconds from now.
    """

    __slots__ = ("at",)

    def __init__(self, timeout: float) -> None:
        self.at = time.monotonic() + timeout

    def tighten(self, timeout: float) -> None:
        """Let it be no later than `timeout` seconds from now."""
        self.at = min(self.at, time.monotonic() + timeout)

    async def join(self, task: Task, at_least: float = 0.0) -> bool:
        """Wait for a task until the deadline, but `at_least` so many seconds; False if it goes on."""
        began = time.monotonic()
        while not task.done and (left := max(self.at, began + at_least) - time.monotonic()) > 0:
            await task.join(min(left, GLANCE_S))
        return task.done


async def shut_down(
    engine: Engine, stop_reading: Callable[[], Coroutine[Any, Any, None]], deadline: Deadline
) -> tuple[ShutdownReport, list[Exception]]:
    """Shut a bus down; callable again after it was cancelled midway.

    Args:
        engine: the bus's parts.
        stop_reading: ends polls, subscriptions and the monitor.
        deadline: for draining, flush and close together.

    Returns:
        The final accounting, and what the adapter's flush and close raised.
    """
    started = time.monotonic()
    if engine.lifecycle.state is not State.CLOSING:
        engine.lifecycle.move(State.CLOSING)
    engine.router.close()
    for shard in list(engine.shards.values()):
        shard.ring.seal()
        shard.signal.set()
    await stop_reading()
    stuck = await _drain(engine, deadline)
    errors: list[Exception] = []
    for name in ("flush", "close"):
        if error := await _finish(engine, name, deadline):
            errors.append(error)
    engine.stop_clock()
    seconds = time.monotonic() - started
    return report_of(engine.stats(), engine.adapter, seconds=seconds, stuck=stuck), errors


async def _drain(engine: Engine, deadline: Deadline) -> tuple[int, ...]:
    """Let the workers finish; give up those that don't, and return their shards' ids."""
    shards = list(engine.shards.values())
    for shard in shards:
        if engine.workers[shard.id].done and shard.outstanding:
            engine.start_worker(shard)  # it was cancelled from outside, with work left
    for worker in list(engine.workers.values()):
        await deadline.join(worker)
    late = [worker for worker in list(engine.workers.values()) if not worker.done]
    for worker in late:
        worker.cancel()
    patience = time.monotonic() + OVERTIME_S / 3
    for worker in late:
        await worker.join(max(0.0, patience - time.monotonic()))
    stuck = []
    for shard in shards:
        if lost := shard.give_up():
            _log.error(
                "shard %d: shutdown ran out of time with %d events outstanding; they are lost: %s",
                shard.id,
                lost,
                shard.last_error or "its adapter call did not return",
            )
        if shard.lost:  # a removal that met this shutdown may have been first to count it
            stuck.append(shard.id)
    engine.progress.notify()
    return tuple(sorted(stuck))


async def _finish(engine: Engine, name: str, deadline: Deadline) -> Exception | None:
    """Make a last call to the adapter; return what went wrong."""
    began = time.monotonic()
    task = engine.runtime.spawn(partial(ask, engine.adapter, name), f"netcore {name}")
    # A moment even when time is up: most backends need no more to say goodbye.
    if not await deadline.join(task, at_least=OVERTIME_S / 4):
        task.cancel()
        waited = time.monotonic() - began
        error: Exception = TimeoutError(f"the adapter's {name} did not return within {waited:.1f} s")
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
