"""The timetable, and the policy at work on a bus."""

from __future__ import annotations

import datetime as dt

import pytest
from net_scaling_schedule import ScheduleScalingPolicy

from netcore import (
    AddShards,
    ConfigError,
    EventBus,
    EventBusConfig,
    NoChange,
    RemoveShards,
    ScalingConfig,
)

WORK = {"days": "mon-fri", "from": "08:00", "to": "18:00", "shards": 4}
NIGHT = {"days": "fri", "from": "22:00", "to": "02:00", "shards": 3}


def at(text: str) -> dt.datetime:
    return dt.datetime.strptime(text, "%Y-%m-%d %H:%M").replace(tzinfo=dt.UTC)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.parametrize(
    ("when", "wanted"),
    [
        ("2026-11-23 07:59", 1),  # a Monday
        ("2026-11-23 08:00", 4),
        ("2026-11-23 17:59", 4),
        ("2026-11-23 18:00", 1),
        ("2026-11-27 22:00", 3),  # a Friday
        ("2026-11-28 01:59", 3),
        ("2026-11-28 02:00", 1),
        ("2026-11-28 10:00", 1),
    ],
)
@pytest.mark.anyio
async def test_schedule_at_a_time_wants_that_windows_shards(when: str, wanted: int) -> None:
    """The window that covers the time decides, its end excluded, also past midnight."""
    policy = ScheduleScalingPolicy(windows=[WORK, NIGHT], now=lambda: at(when))
    async with EventBus(EventBusConfig(shards=2)) as bus:
        decision = policy.decide(bus.stats())
    present = 2
    if wanted > present:
        assert decision == AddShards(wanted - present, decision.reason)
    elif wanted < present:
        assert decision == RemoveShards((1,), decision.reason)
    else:
        assert isinstance(decision, NoChange)
    assert f"{wanted} shards" in decision.reason


@pytest.mark.anyio
async def test_schedule_zone_counts_local_time() -> None:
    """07:30 UTC is 08:30 in Berlin in winter."""
    policy = ScheduleScalingPolicy(
        windows=[WORK], timezone="Europe/Berlin", now=lambda: at("2026-11-23 07:30")
    )
    async with EventBus(EventBusConfig(shards=2)) as bus:
        assert isinstance(policy.decide(bus.stats()), AddShards)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"windows": [{**WORK, "from": "8 am"}]}, "not a time of day"),
        ({"windows": [{**WORK, "days": "mon-fun"}]}, "are not days"),
        ({"windows": [{**WORK, "until": "19:00"}]}, "until"),
        ({"windows": [{**WORK, "shards": 0}]}, "at least one shard"),
        ({"windows": [], "default": 0}, "at least one shard"),
        ({"windows": [], "timezone": "Mars/Olympus"}, "not a known time zone"),
    ],
)
def test_schedule_malformed_is_a_config_error(options: dict[str, object], message: str) -> None:
    """A wrong timetable is refused when the policy is built, with what is wrong."""
    with pytest.raises(ConfigError, match=message):
        ScheduleScalingPolicy(**options)  # type: ignore[arg-type]


@pytest.mark.anyio
async def test_schedule_by_name_scales_a_bus() -> None:
    """Found through its entry point, the policy moves a running bus to the wanted number."""
    always = {"from": "00:00", "to": "00:00", "shards": 5}
    scaling = ScalingConfig(policy="schedule", options={"windows": [always]}, max_shards=8)
    async with EventBus(EventBusConfig(shards=2, scaling=scaling)) as bus:
        decision = await bus.suggest_scaling()
        assert isinstance(decision, AddShards)
        await bus.apply(decision)
        assert len(bus.stats().shards) == 5
        assert "5 shards until 00:00" in bus.stats().scaling[-1].reason
        assert isinstance(await bus.suggest_scaling(), NoChange)
