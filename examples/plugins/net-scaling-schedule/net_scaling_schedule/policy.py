"""A scaling policy that follows a timetable."""

from __future__ import annotations

import datetime as dt
import zoneinfo
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec

from netcore import (
    AddShards,
    ConfigError,
    EventBusStats,
    NoChange,
    RemoveShards,
    ScalingDecision,
    ScalingPolicy,
)

__all__ = ["ScheduleScalingPolicy", "Window"]

_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


class Window(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename={"begin": "from"}):
    """A time of day at which the bus should have so many shards.

    Attributes:
        days: when it begins: `"mon"`, `"mon-fri"`, `"sat,sun"`, or `"daily"`.
        begin: "HH:MM"; `from` in the configuration.
        to: "HH:MM"; not after `begin` means on the next day.
        shards: how many, 1 or more.
    """

    begin: str
    to: str
    shards: int
    days: str = "daily"

    def covers(self, now: dt.datetime) -> bool:
        """Tell whether local time `now` lies in the window: from `begin` until before `to`."""
        begin, end, time = _time(self.begin), _time(self.to), now.time()
        today, yesterday = now.weekday(), (now.weekday() - 1) % 7
        days = _days(self.days)
        if begin < end:
            return today in days and begin <= time < end
        return (today in days and time >= begin) or (yesterday in days and time < end)


class ScheduleScalingPolicy(ScalingPolicy):
    """Keeps the number of shards that a timetable says; the first window that covers the time wins.

        [scaling]
        policy = "schedule"
        options.timezone = "Europe/Berlin"
        options.default = 2
        options.windows = [{ days = "mon-fri", from = "08:00", to = "18:00", shards = 8 }]

    Args:
        windows: the timetable: dicts as above, or `Window`s.
        default: shards at all other times; default 1.
        timezone: of the timetable, an IANA name; default "UTC".
        now: the time, with a zone; for tests.

    Raises:
        ConfigError: an unknown zone, day or key, a malformed time, or fewer than one shard.
    """

    name = "schedule"

    def __init__(
        self,
        *,
        windows: Sequence[Mapping[str, Any] | Window],
        default: int = 1,
        timezone: str = "UTC",
        now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        try:
            self._zone = zoneinfo.ZoneInfo(timezone)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError) as error:
            raise ConfigError(f"schedule.timezone={timezone!r} is not a known time zone") from error
        self._windows = [_window(window) for window in windows]
        self._default = default
        self._now = now
        for count in (default, *(window.shards for window in self._windows)):
            if count < 1:
                raise ConfigError(f"schedule: a bus needs at least one shard, not {count!r}")

    def decide(self, stats: EventBusStats, /) -> ScalingDecision:
        """Compare the timetable with the shards that are there."""
        local = self._now().astimezone(self._zone)
        window = next((window for window in self._windows if window.covers(local)), None)
        wanted = self._default if window is None else window.shards
        until = "by default" if window is None else f"until {window.to}"
        reason = f"{wanted} shards {until}, at {local:%a %H:%M}"
        present = sorted(shard.id for shard in stats.shards if not shard.leaving)
        if wanted > len(present):
            return AddShards(wanted - len(present), reason)
        if wanted < len(present):
            return RemoveShards(tuple(present[wanted:]), reason)
        return NoChange(reason)


def _window(given: Mapping[str, Any] | Window) -> Window:
    if isinstance(given, Window):
        window = given
    else:
        try:
            window = msgspec.convert(given, Window)
        except msgspec.ValidationError as error:
            raise ConfigError(f"schedule.windows: {error} in {given!r}") from error
    _time(window.begin)
    _time(window.to)
    _days(window.days)
    return window


def _time(text: str) -> dt.time:
    try:
        return dt.datetime.strptime(text, "%H:%M").time()
    except ValueError as error:
        raise ConfigError(f'schedule: {text!r} is not a time of day like "08:00"') from error


def _days(text: str) -> frozenset[int]:
    if text == "daily":
        return frozenset(range(7))
    days: set[int] = set()
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if first not in _DAYS or (last or first) not in _DAYS:
            raise ConfigError(f'schedule: {text!r} are not days like "mon-fri" or "sat,sun"')
        begin, end = _DAYS.index(first), _DAYS.index(last or first)
        days.update((begin + step) % 7 for step in range((end - begin) % 7 + 1))
    return frozenset(days)
