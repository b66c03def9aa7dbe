"""Opening a durable log beside the event loop."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import anyio.to_thread

from net_adapter_mesh.config import MeshConfig
from net_adapter_mesh.durable import SqliteStore
from net_adapter_mesh.log import Kept, Log
from netcore import AdapterContext

__all__ = ["open_log"]


async def open_log(config: MeshConfig, context: AdapterContext) -> tuple[SqliteStore, Log]:
    """Open the store and read its index in a thread: a large one takes a while.

    A task that is cancelled meanwhile may go before the thread has ended. What that opens then has
    no owner, so it is closed: the directory can be opened again.

    Raises:
        AdapterRefusedError: the log is in use, damaged, or of another mesh or node.
    """
    handing = threading.Lock()
    opened: list[SqliteStore] = []
    left = False

    def load() -> tuple[SqliteStore, Log]:
        store = SqliteStore(config, context.logger)
        try:
            lanes = store.load()
            _judge(store, lanes, int(context.max_clock_drift_ms * 1e6))
            log = Log(store.origin, config, store)
            for kept in lanes:
                log.restore(kept)
            log.settle()
        except BaseException:
            store.close(1.0)
            raise
        with handing:
            opened.append(store)
            if left:
                store.close(1.0)
        return store, log

    try:
        return await anyio.to_thread.run_sync(load)
    except BaseException:
        with handing:
            left = True
            for store in opened:
                store.close(1.0)
        raise


def _judge(store: SqliteStore, lanes: Sequence[Kept], max_drift_ns: int) -> None:
    """Begin a new lane if the own one's watermark is further ahead than the bus's clock may be moved.

    The clock was ahead in the last life. Nothing that is ingested now would pass that watermark
    before the time comes, and until it does no other node would show it.
    """
    w = max((kept.w for kept in lanes if kept.origin == store.origin), default=0)
    if w > time.time_ns() + max_drift_ns:
        store.renew()
