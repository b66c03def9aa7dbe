"""Adapters broken at waiting, closing, naming themselves, and in outages.

Each says in `fails` which clauses find it out: those and no others; where a defect is `broad` (it
makes nearly everything fail), those at least.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anyio
import anyio.lowlevel
from kit_store import Store, StoreAdapter, StoreConfig, Suspending, clauses

from netcore.contracts.adapter import (
    AdapterContext,
    Batch,
    Health,
    ShardPage,
    Stream,
)
from netcore.errors import (
    FatalAdapterError,
    TransientAdapterError,
)


class SleepsThroughAppends(StoreAdapter):
    """Waits for the whole time-out."""

    fails = clauses(
        "wait_returns_when_something_is_appended",
        "wait_returns_when_a_stream_appears",
        "wait_returns_when_the_first_stream_appears",
        "wait_returns_when_something_newer_is_there_already",
        "another_adapter_on_the_store_reads_the_same",
        "close_during_calls_ends_them",
    )

    async def wait(self, positions: Mapping[Stream, str | None], timeout: float) -> None:
        await anyio.sleep(max(0, timeout))


class OverlooksNewStreams(StoreAdapter):
    """Waits for the streams it was told of."""

    fails = clauses("wait_returns_when_a_stream_appears", "wait_returns_when_the_first_stream_appears")

    async def news(self, positions: Mapping[Stream, str | None]) -> bool:
        known = [stream for stream in await self.streams() if stream in positions]
        return any([(positions[s] or "0") != (await self.bounds(s))[1] for s in known])


class WakesOnlyOne(StoreAdapter):
    """The first who waits takes the news with it."""

    fails = clauses("wait_returns_when_something_is_appended")

    def wake(self) -> None:
        if self.store.waiting:
            self.store.waiting.pop(0).set()


class WaitsPastItsTimeout(StoreAdapter):
    """Never gives up."""

    fails = clauses("wait_returns_by_its_timeout")

    async def wait(self, positions: Mapping[Stream, str | None], timeout: float) -> None:
        await super().wait(positions, 3600)


class TakesStaleReplies(Suspending):
    """A cancelled read leaves its reply for the next one."""

    fails = clauses("calls_cancelled_anywhere_leave_the_adapter_usable")

    async def read(self, stream: Stream, after: str | None, limit: int, snapshot: object = None) -> ShardPage:
        replies = self.__dict__.setdefault("replies", [])
        replies.append(await StoreAdapter.read(self, stream, after, limit, snapshot))
        await anyio.lowlevel.checkpoint()
        page: ShardPage = replies.pop(0)
        return page


class ClosesOnlyOnce(StoreAdapter):
    """A second close is an error."""

    fails = clauses(
        "close_is_idempotent_and_ends_the_adapter",
        "close_during_calls_ends_them",
        "close_during_an_outage_is_bounded",
        "durable_events_outlive_the_adapter",
    )

    async def close(self) -> None:
        if self.closed and not self.__dict__.setdefault("told", False):
            self.told = True
            raise RuntimeError("closed twice")
        await super().close()


class WorksWhenClosed(StoreAdapter):
    """Closing changes nothing."""

    fails = clauses("close_is_idempotent_and_ends_the_adapter")

    async def close(self) -> None:
        self.wake()


class LeaksItsAddress(StoreAdapter):
    """Its identity is its URL."""

    fails = clauses("identity_names_the_store_and_no_address")

    def identity(self) -> str:
        return self.store.name + self.config.url


class ChangesItsIdentity(StoreAdapter):
    """A shared store that every adapter names anew."""

    fails = clauses("identity_names_the_store_and_no_address", "durable_events_outlive_the_adapter")

    def identity(self) -> str:
        return f"store:{id(self)}"


class LetsASecondOneIn(StoreAdapter):
    """Says that a store is one adapter's alone, and lets others open it."""

    fails = clauses("another_adapter_on_the_store_reads_the_same")
    exclusive = True


class KeepsEventsToItself(StoreAdapter):
    """Says it is shared, and is not."""

    fails = clauses("another_adapter_on_the_store_reads_the_same", "durable_events_outlive_the_adapter")

    def __init__(self, config: StoreConfig, store: Store) -> None:
        name, away = store.name, store
        super().__init__(config, Store())
        self.store.name, self.backend = name, away

    def check(self) -> None:
        self.store.away = self.backend.away
        super().check()

    async def health(self) -> Health:
        return Health(ok=not self.backend.away)


class SuspendsThoughInline(StoreAdapter):
    """Promises `inline` and yields."""

    fails = clauses("inline_adapter_never_suspends")

    async def streams(self) -> list[Stream]:
        await anyio.lowlevel.checkpoint()
        return await super().streams()


class CallsOutagesFatal(StoreAdapter):
    """Would have a bus dead-letter everything while the backend is away."""

    fails = clauses("outage_is_transient_and_loses_nothing")

    async def append(self, batch: Batch) -> None:
        try:
            await super().append(batch)
        except TransientAdapterError as error:
            raise FatalAdapterError("away") from error


class OpensInAnOutage(StoreAdapter):
    """Does not look whether anybody answers."""

    fails = clauses("open_during_an_outage_is_transient_and_leaves_nothing")

    async def open(self, context: AdapterContext) -> None:
        return


class ClosesOnlyWhenAnswered(StoreAdapter):
    """Says goodbye to a backend that does not hear it."""

    fails = clauses(
        "close_during_an_outage_is_bounded", "open_during_an_outage_is_transient_and_leaves_nothing"
    )

    async def close(self) -> None:
        while self.store.away:  # a defect on purpose
            await anyio.sleep(0.01)
        await super().close()


class FeelsFineInAnOutage(StoreAdapter):
    """Health is always good."""

    fails = clauses("outage_is_transient_and_loses_nothing")

    async def health(self) -> Health:
        return Health(ok=True)


class CannotTellItsStats(StoreAdapter):
    """Its stats are no plain data."""

    fails = clauses("health_and_stats_answer_while_open")

    def stats(self) -> dict[str, Any]:
        return {"store": self.store}


class CannotCloseUnopened(StoreAdapter):
    """Closing what never opened is an error."""

    fails = clauses("close_before_open_is_harmless", "open_during_an_outage_is_transient_and_leaves_nothing")

    async def open(self, context: AdapterContext) -> None:
        await super().open(context)
        self.opened = True

    async def close(self) -> None:
        if not self.opened:
            raise RuntimeError("not open")
        await super().close()

    opened = False
