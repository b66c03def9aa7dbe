"""`EventBus`: the four operations (construct, ingest, poll, shutdown) and what goes with them."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any

from netcore.config import EventBusConfig, check_timeout
from netcore.consume.poller import Poller
from netcore.consume.request import ConsumeRequest, ConsumeResponse
from netcore.consume.subscription import Subscription
from netcore.contracts.adapter import Health
from netcore.contracts.answers import ask
from netcore.contracts.filters import EventFilter
from netcore.contracts.policies import BackpressurePolicy, ScalingDecision
from netcore.engine import Engine
from netcore.errors import ClosedError, ConfigError, describe
from netcore.ingest.clock import Clock
from netcore.ingest.producer import Producer
from netcore.ingest.router import Router
from netcore.lifecycle import Lifecycle, State
from netcore.observers import Observers
from netcore.plugins.manager import PluginManager, manager_for
from netcore.runtime import CallTimeoutError, Task, current_runtime
from netcore.scaling.monitor import Monitor
from netcore.scaling.resharding import Resharding
from netcore.shutdown import Deadline, report_of, shut_down
from netcore.stats import EventBusStats, ShutdownReport

__all__ = ["EventBus"]


class EventBus(Producer):
    """An event bus: producers ingest, workers dispatch to an adapter, consumers poll.

    `ingest*` and `stats` may be called from any thread, and `put` awaited on any event loop. Everything
    else belongs to the loop that opened the bus (asyncio or trio) and raises `ClosedError` elsewhere;
    `netcore.blocking.EventBus` is for code without a loop.

        async with EventBus(config) as bus: ...

    Args:
        config: settings; default: `EventBusConfig()`.
        plugins: modules or objects with hooks, registered for this bus besides what is installed.

    Raises:
        ConfigError: a setting is wrong.
        PluginNotFoundError: no installed plugin provides the adapter's kind or a policy's name.
        PluginError: two plugins claim it, or a plugin given in code is broken.
    """

    __slots__ = (
        "__weakref__",
        "_deadline",
        "_engine",
        "_lifecycle",
        "_manager",
        "_monitor",
        "_poller",
        "_report",
        "_resharding",
        "_stopping",
        "config",
    )

    def __init__(self, config: EventBusConfig | None = None, *, plugins: Sequence[object] = ()) -> None:
        config = EventBusConfig() if config is None else config
        if not isinstance(config, EventBusConfig):
            raise ConfigError(f"EventBus takes an EventBusConfig, not {type(config).__name__}")
        self.config = config
        self._manager: PluginManager = manager_for(plugins)
        policy = _policy(config.backpressure, self._manager)
        settings = self._manager.adapter_config(config.adapter)
        adapter = self._manager.registry.adapter(settings.kind)(settings)
        router = Router(Clock(max_drift_ms=config.max_clock_drift_ms))
        self._lifecycle = Lifecycle(on_fork=router.close)
        super().__init__(router, policy, self._lifecycle.refusal)
        self._engine = Engine(config, adapter, router, self._lifecycle)
        self._resharding = Resharding(self._engine)
        self._monitor = Monitor(self._engine, self._resharding, self._manager)
        self._poller: Poller | None = None
        self._stopping: Task | None = None
        self._deadline = Deadline(0.0)
        self._report: ShutdownReport | None = None

    # -- opening and closing ---------------------------------------------------------------------

    @classmethod
    async def open(cls, config: EventBusConfig | None = None, *, plugins: Sequence[object] = ()) -> EventBus:
        """Build a bus and connect its adapter; `await bus.shutdown()` must follow.

        Raises:
            AdapterError: the adapter could not be opened, or its `open` is not async; nothing is left behind.
            ConfigError, PluginError: as the constructor.
        """
        bus = cls(config, plugins=plugins)
        await bus._open()
        return bus

    async def __aenter__(self) -> EventBus:
        await self._open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.shutdown()

    async def _open(self) -> None:
        runtime = current_runtime()
        self._lifecycle.move(State.OPENING)
        self._runtime = runtime
        observers = Observers(self._manager, self)
        await self._engine.open(runtime, observers)
        self._find_gone = self._engine.find_gone
        self._poller = Poller(
            adapter=self._engine.adapter,
            runtime=runtime,
            clock=self._clock,
            view=self._engine,
            resolve_filter=functools.partial(_filter, self._manager),
            timeout_s=self._engine.timeout_s,
            causal_wait_s=self.config.causal_wait_ms / 1e3,
        )
        self._monitor.start()
        observers.opened()

    async def shutdown(self, timeout: float = 30.0) -> ShutdownReport:
        """Stop, in order: refuse ingests, drain and dispatch, flush and close the adapter, count.

        Ends by `timeout` plus one second whatever the adapter does. Idempotent; callable from any
        task of the loop, by several at once, and again after a cancellation: the work goes on in
        the background and the next call joins it (the shortest time-out given holds).

        Args:
            timeout: seconds for everything together.

        Returns:
            The final accounting: `ingested == dispatched + evicted + dead_lettered + lost`.

        Raises:
            Exception: what the adapter's `flush` or `close` raised (both: an `ExceptionGroup`),
                after the accounting; a further call returns the report.
            ClosedError: called in a forked child, or on another loop than the bus's; or still opening.
            ConfigError: `timeout` is no number; nothing was stopped.
        """
        check_timeout(timeout)
        if self._lifecycle.state is State.NEW:
            self._lifecycle.move(State.CLOSED)
        if self._lifecycle.state is State.FORKED:
            raise self._lifecycle.refusal()
        if self._report is None and self._lifecycle.state is State.CLOSED:
            self._report = report_of(self.stats(), self._engine.adapter, seconds=0.0)
        if self._report is not None:
            return self._report
        runtime = self._runtime
        if runtime is None or not runtime.here:
            return self._close_elsewhere()
        if self._stopping is None or self._stopping.done:
            self._deadline = Deadline(timeout)
            self._stopping = runtime.spawn(self._shut_down, "netcore shutdown")
        self._deadline.tighten(timeout)
        await self._stopping.join()
        report: ShutdownReport = self._stopping.result()
        return report

    def _close_elsewhere(self) -> ShutdownReport:
        """Account for a bus whose loop is gone; refuse if it is merely another one's."""
        self._engine.find_gone()
        if self._lifecycle.state is not State.ABANDONED:
            raise ClosedError("shutdown must be called on the event loop that opened the bus")
        for shard in list(self._engine.shards.values()):
            shard.give_up()
        self._lifecycle.move(State.CLOSED)
        self._report = report_of(self.stats(), self._engine.adapter, seconds=0.0)
        return self._report

    async def _shut_down(self) -> ShutdownReport:
        report, errors = await shut_down(self._engine, self._stop_reading, self._deadline)
        self._report = report
        self._lifecycle.move(State.CLOSED)
        self._engine.observers.closed(report)
        if len(errors) > 1:
            raise ExceptionGroup("the adapter's flush and close failed", errors)
        if errors:
            raise errors[0]
        return report

    async def _stop_reading(self) -> None:
        await self._monitor.stop()
        if self._poller is not None:
            self._poller.close()
            await self._poller.aclose()

    def __del__(self) -> None:
        lifecycle = getattr(self, "_lifecycle", None)
        if lifecycle is not None and lifecycle.state in (State.OPEN, State.ABANDONED):
            lost = sum(shard.outstanding for shard in list(self._engine.shards.values()))
            warnings.warn(
                f"an EventBus was dropped without shutdown; {lost} events are lost",
                ResourceWarning,
                source=self,
                stacklevel=2,
            )
            if lifecycle.state is State.OPEN:
                self._engine.drop()

    # -- consuming -------------------------------------------------------------------------------

    async def poll(self, request: ConsumeRequest, wait: float = 0.0) -> ConsumeResponse:
        """Return what stands after the request's cursor, merged across shards.

        Non-destructive; a cancelled poll has no effect. A shard whose read fails is named in
        `failed_shards` and keeps its position; the others are served.

        Args:
            request: what to return; see `ConsumeRequest`.
            wait: seconds to wait for something to return if there is nothing now.

        Raises:
            CursorError: the cursor is malformed, altered, or of another store.
            FilterError, PluginNotFoundError: the filter is malformed or failed, or no plugin reads it.
            ConfigError: a shard id that nothing is known of, or an argument of another type.
            AdapterError: a new chain of polls could not learn where the streams stand.
            ClosedError: the bus is not open, or a shutdown began while this waited.
        """
        return await self._reading().poll(request, wait)

    def subscribe(self, request: ConsumeRequest) -> Subscription:
        """Follow the streams: an async context manager that iterates over events.

            async with bus.subscribe(ConsumeRequest(100, start="earliest")) as events:
                async for event in events: ...

        `events.cursor` covers what has been yielded. Ends cleanly at shutdown.

        Raises:
            ClosedError: the bus is not open.
        """
        return self._reading().subscribe(request)

    def _reading(self) -> Poller:
        if self._runtime is not None and not self._runtime.here:
            self._engine.find_gone()
        self._lifecycle.require_open()
        assert self._poller is not None
        return self._poller

    # -- watching and flushing -------------------------------------------------------------------

    def stats(self) -> EventBusStats:
        """Return a snapshot; any thread, also before `open` and after `shutdown`. Resets nothing."""
        return self._monitor.complete(self._engine.stats())

    async def health(self) -> Health:
        """Tell whether events get stored: the adapter's own answer, and what stalls a shard.

        Never raises for a sick adapter; bounded by `adapter_timeout_ms`.
        """
        try:
            self._engine.require_here("health")
        except ClosedError as error:
            return Health(ok=False, reason=str(error))
        for shard in self._engine.shard_stats():
            if shard.wedged:
                return Health(ok=False, reason=f"shard {shard.id}: an adapter call outlived its cancellation")
            if shard.last_error:
                return Health(ok=False, reason=f"shard {shard.id}: {shard.last_error}")
        engine = self._engine
        try:
            call = functools.partial(ask, engine.adapter, "health")
            health: Health = await engine.runtime.bounded(call, engine.timeout_s, "netcore health")
            return health
        except CallTimeoutError as error:
            return Health(ok=False, reason=f"the adapter's health gave {error}")
        except Exception as error:
            return Health(ok=False, reason=describe(error))

    async def flush(self, timeout: float | None = None) -> None:
        """Wait until exactly what was accepted before this call is settled.

        Settled means stored, evicted, dead-lettered or lost. Cuts the batches' delay. Later
        traffic neither delays nor hastens it.

        Args:
            timeout: seconds, or None to wait as long as it takes (the caller's own choice).

        Raises:
            FlushTimeoutError: time ran out; names the shards. Nothing is lost by it.
            ConfigError: `timeout` is no number.
            ClosedError: the bus is not open.
        """
        self._engine.require_here("flush")
        if timeout is not None:
            check_timeout(timeout)
        await self._engine.flush(timeout)

    # -- scaling ---------------------------------------------------------------------------------

    async def add_shards(self, count: int, *, timeout: float = 30.0, reason: str = "") -> list[int]:
        """Add shards; each takes about 1/n of the keys, nobody else's key moves.

        Args:
            count: 1 or more.
            timeout: seconds that a new shard waits, at most, for the old shards' earlier events.
            reason: for the scaling history.

        Returns:
            The new ids, ascending, never used before in this bus's life.

        Raises:
            ScalingError: refused; nothing changed; the message says why.
            ConfigError: `timeout` is no number; nothing changed.
            ClosedError: the bus is not open.
        """
        self._engine.require_here("add_shards")
        self._monitor.rest()
        return await self._resharding.add(count, timeout=timeout, reason=reason)

    async def remove_shards(
        self, shard_ids: Iterable[int], *, timeout: float = 30.0, reason: str = ""
    ) -> list[int]:
        """Drain shards, dispatch what they hold, and remove them; what they stored stays readable.

        Args:
            shard_ids: which; at least one shard must remain.
            timeout: seconds; what cannot be dispatched by then is counted as lost.
            reason: for the scaling history.

        Returns:
            The ids removed.

        Raises:
            ScalingError: refused; nothing changed; the message says why.
            ConfigError: `timeout` is no number; nothing changed.
            ClosedError: the bus is not open.
        """
        self._engine.require_here("remove_shards")
        self._monitor.rest()
        return await self._resharding.remove(shard_ids, timeout=timeout, reason=reason)

    async def suggest_scaling(self) -> ScalingDecision:
        """Ask the scaling policy what it would do now; changes nothing.

        Returns:
            `AddShards`, `RemoveShards` or `NoChange`, each with its `reason`.

        Raises:
            ClosedError: the bus is not open.
        """
        self._engine.require_here("suggest_scaling")
        return self._monitor.suggest()

    async def apply(self, decision: ScalingDecision, *, timeout: float = 30.0) -> list[int]:
        """Carry out a decision; see `add_shards` and `remove_shards`.

        Returns:
            The ids added or removed; [] for `NoChange`.

        Raises:
            ScalingError: refused, or not a decision; nothing changed.
            ClosedError: the bus is not open.
        """
        self._engine.require_here("apply")
        self._monitor.rest()
        return await self._resharding.apply(decision, timeout=timeout)


def _policy(setting: Any, manager: PluginManager) -> BackpressurePolicy:
    """Resolve the backpressure setting: a policy's name, or a policy object."""
    if isinstance(setting, BackpressurePolicy):
        return setting
    if isinstance(setting, str):
        policy = manager.registry.backpressure(setting)
        try:
            return policy()
        except TypeError as error:
            raise ConfigError(
                f"the backpressure policy {setting!r} cannot be built by its name alone ({error}): "
                "give an object of it"
            ) from error
    raise ConfigError(f"backpressure must be a policy's name or a BackpressurePolicy, not {setting!r}")


def _filter(manager: PluginManager, given: Any) -> EventFilter:
    """Resolve a request's filter: an `EventFilter`, or its JSON form for the installed plugin."""
    if isinstance(given, dict | str | bytes):
        return manager.registry.filter("jsonpath").from_json(given)
    if not isinstance(given, EventFilter):
        raise ConfigError(f"filter must be an EventFilter or its JSON form, not {type(given).__name__}")
    return given
