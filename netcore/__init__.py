"""An event bus that teams extend instead of replacing.

Producers `ingest` into sharded in-memory rings without blocking; one worker a shard hands batches
to an *adapter*; consumers `poll` it by cursor, merged across shards in causal order. Adapters,
backpressure policies, scaling policies, filters and observers are plugins (`netcore.plugins.spec`).

    async with EventBus(EventBusConfig(shards=4)) as bus:
        bus.ingest({"token": "hello"})
        await bus.flush()
        page = await bus.poll(ConsumeRequest(100, start="earliest"))
"""

from __future__ import annotations

# Each name is loaded when it is first used: a plugin's hook module needs `hookimpl` and no bus, and the
# command line must be able to answer an interrupt before it has loaded anything.
TYPE_CHECKING = False  # what type checkers take for true; to import `typing` would take as long as the rest
if TYPE_CHECKING:
    from typing import Any

    from net_filter_jsonpath import Filter as Filter
    from net_filter_jsonpath import FilterBuilder as FilterBuilder

    from netcore.bus import EventBus
    from netcore.config import AdapterConfig, BatchConfig, EventBusConfig, ScalingConfig, mask_credentials
    from netcore.consume.request import ConsumeRequest, ConsumeResponse
    from netcore.contracts.adapter import (
        Adapter,
        AdapterContext,
        Batch,
        Capabilities,
        Gap,
        Health,
        ReadRequest,
        ShardPage,
        Stream,
        position_error,
    )
    from netcore.contracts.filters import EventFilter, Matcher
    from netcore.contracts.policies import (
        AddShards,
        BackpressurePolicy,
        FullShard,
        NoChange,
        RemoveShards,
        ScalingDecision,
        ScalingPolicy,
        Verdict,
    )
    from netcore.errors import (
        AdapterClosedError,
        AdapterError,
        AdapterRefusedError,
        BackpressureError,
        ClosedError,
        ConfigError,
        CursorError,
        FatalAdapterError,
        FilterError,
        FlushTimeoutError,
        IngestError,
        NetcoreError,
        PayloadError,
        PluginError,
        PluginNotFoundError,
        ScalingError,
        TransientAdapterError,
    )
    from netcore.events import Event, IndexedEvent, RawEvent, StoredEvent
    from netcore.plugins.spec import hookimpl
    from netcore.stats import (
        EventBusStats,
        IngestSummary,
        ScalingRecord,
        ShardStats,
        ShardWindow,
        ShutdownReport,
    )

__version__ = "0.1.0"

# Without `Filter` and `FilterBuilder`: a plugin provides them, and `from netcore import *` needs none.
__all__ = [
    "Adapter",
    "AdapterClosedError",
    "AdapterConfig",
    "AdapterContext",
    "AdapterError",
    "AdapterRefusedError",
    "AddShards",
    "BackpressureError",
    "BackpressurePolicy",
    "Batch",
    "BatchConfig",
    "Capabilities",
    "ClosedError",
    "ConfigError",
    "ConsumeRequest",
    "ConsumeResponse",
    "CursorError",
    "Event",
    "EventBus",
    "EventBusConfig",
    "EventBusStats",
    "EventFilter",
    "FatalAdapterError",
    "FilterError",
    "FlushTimeoutError",
    "FullShard",
    "Gap",
    "Health",
    "IndexedEvent",
    "IngestError",
    "IngestSummary",
    "Matcher",
    "NetcoreError",
    "NoChange",
    "PayloadError",
    "PluginError",
    "PluginNotFoundError",
    "RawEvent",
    "ReadRequest",
    "RemoveShards",
    "ScalingConfig",
    "ScalingDecision",
    "ScalingError",
    "ScalingPolicy",
    "ScalingRecord",
    "ShardPage",
    "ShardStats",
    "ShardWindow",
    "ShutdownReport",
    "StoredEvent",
    "Stream",
    "TransientAdapterError",
    "Verdict",
    "hookimpl",
    "mask_credentials",
    "position_error",
]

_MODULES = (
    "errors", "events", "config", "stats", "plugins.spec",
    "contracts.filters", "contracts.policies", "contracts.adapter", "consume.request", "bus",
)  # fmt: skip
"""Where the public names are defined; what takes longest to load stands last."""


if not TYPE_CHECKING:  # type checkers know the names from above, and can tell one that is not there

    def __getattr__(name: str) -> Any:
        """Load a public name on first use; `Filter` and `FilterBuilder` from the installed filter plugin."""
        if name in ("Filter", "FilterBuilder"):
            from netcore.plugins.manager import default_manager

            language: Any = default_manager().registry.filter("jsonpath")
            return language if name == "Filter" else language.Builder
        if name in __all__:
            from importlib import import_module

            for module in _MODULES:
                value = vars(import_module(f"netcore.{module}")).get(name)
                if value is not None:
                    globals()[name] = value  # the next look-up costs what any global's does
                    return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names, loaded or not; a plugin's only where it is installed.

    `help(netcore)` looks each of them up, and must not end with what there is to install.
    """
    from importlib.util import find_spec

    lent = ("Filter", "FilterBuilder") if find_spec("net_filter_jsonpath") else ()
    return sorted({*globals(), *__all__, *lent})
