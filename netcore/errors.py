"""Every error that netcore raises, one tree.

NetcoreError
├── ConfigError (ValueError)            a setting is wrong: raised when a bus is built
├── IngestError
│   ├── BackpressureError               the ring is full and the policy refused
│   └── PayloadError (ValueError)       the payload can't be taken as it is
├── ClosedError (RuntimeError)          the bus is not open (not yet, or no longer)
├── FlushTimeoutError (TimeoutError)    flush() gave up; names the shards
├── ScalingError (ValueError)           a scaling step was refused and changed nothing
├── CursorError (ValueError)            a cursor or position can't be used here
├── FilterError (ValueError)            a filter is malformed, or failed
├── PluginError
│   └── PluginNotFoundError (LookupError)   nothing installed provides this name
└── AdapterError
    ├── TransientAdapterError           try again: the dispatcher does
    ├── FatalAdapterError               this content can never be stored
    ├── AdapterRefusedError             the backend or account refuses: mend it, nothing is lost
    └── AdapterClosedError              the adapter was closed under the call
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = [
    "AdapterClosedError",
    "AdapterError",
    "AdapterRefusedError",
    "BackpressureError",
    "ClosedError",
    "ConfigError",
    "CursorError",
    "FatalAdapterError",
    "FilterError",
    "FlushTimeoutError",
    "IngestError",
    "NetcoreError",
    "PayloadError",
    "PluginError",
    "PluginNotFoundError",
    "ScalingError",
    "TransientAdapterError",
]


class NetcoreError(Exception):
    """Base of every error that netcore raises on purpose."""


class ConfigError(NetcoreError, ValueError):
    """A setting is wrong. The message names the key, the value and what is allowed."""


class IngestError(NetcoreError):
    """An event was not accepted."""


class BackpressureError(IngestError):
    """The shard's ring is full and the backpressure policy refused the newcomer.

    Attributes:
        shard: id of the full shard.
        capacity: its capacity in events.
    """

    def __init__(self, shard: int, capacity: int, advice: str) -> None:
        super().__init__(f"shard {shard} is full ({capacity} events): {advice}")
        self.shard = shard
        self.capacity = capacity


class PayloadError(IngestError, ValueError):
    """The payload can't be taken as it is; the event was not accepted."""


class ClosedError(NetcoreError, RuntimeError):
    """The bus is not open: not yet, shutting down, shut down, or left behind by a fork or its event loop.

    Also: a call that belongs to the bus's own event loop was made on another.
    """


class FlushTimeoutError(NetcoreError, TimeoutError):
    """`flush` gave up. What it waited for is still in flight, and nothing is lost by this.

    Attributes:
        timeout: seconds waited.
        shards: ids of the shards not yet flushed, ascending.
    """

    def __init__(self, timeout: float, shards: Iterable[int]) -> None:
        self.timeout = timeout
        self.shards = sorted(shards)
        names = ", ".join(map(str, self.shards[:16])) + (", ..." if len(self.shards) > 16 else "")
        super().__init__(
            f"not flushed after {timeout:g} s: shards {names}; their events stay in flight: "
            "see stats().shards[...].last_error for the cause, then flush again"
        )


class ScalingError(NetcoreError, ValueError):
    """A scaling step was refused; nothing changed. The message says why."""


class CursorError(NetcoreError, ValueError):
    """A cursor or position can't be used here: malformed, altered, or made on another store."""


class FilterError(NetcoreError, ValueError):
    """A filter is malformed (the message shows the offending part), or failed at an event."""


class PluginError(NetcoreError):
    """A plugin is broken or two plugins conflict; the message names the distribution."""


class PluginNotFoundError(PluginError, LookupError):
    """No installed plugin provides the name; the message says what to install."""


class AdapterError(NetcoreError):
    """An adapter could not do what it was asked."""


class TransientAdapterError(AdapterError):
    """The backend is away or busy for now; the same call may succeed later."""


class FatalAdapterError(AdapterError):
    """The *content* of this batch can never be stored, whoever tries and whenever."""


class AdapterRefusedError(AdapterError):
    """The backend or account refuses (authentication, permission, wrong type of key, ...).

    Somebody has to mend something; the message says what. Nothing is dead-lettered for it. Also where
    the adapter's own code is at fault: a call is not async, or its answer has the wrong shape.
    """


class AdapterClosedError(AdapterError):
    """The adapter was closed before or during the call."""


def message_of(error: BaseException) -> str:
    """Return an exception's own words, fit to be stored: never raises, and is valid UTF-8."""
    try:
        text = str(error)
    except Exception:
        text = "its message cannot be shown"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def describe(error: BaseException) -> str:
    """Return an exception's type and words."""
    text = message_of(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
