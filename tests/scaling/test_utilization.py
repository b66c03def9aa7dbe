"""The built-in policy against simulated loads and simulated time."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from netcore import (
    AddShards,
    EventBus,
    EventBusConfig,
    EventBusStats,
    NoChange,
    RemoveShards,
    ScalingDecision,
    ScalingRecord,
    ShardStats,
    ShardWindow,
)
from netcore.builtin.utilization import UtilizationPolicy

CAPACITY = 10_000
RATE = 1000.0  # events a second that one shard can dispatch
EMPTY = EventBus(EventBusConfig(shards=1)).stats()


def stats_of(shards: list[ShardStats], scaling: tuple[ScalingRecord, ...] = ()) -> EventBusStats:
    """Make a snapshot with these shards."""
    return msgspec.structs.replace(EMPTY, shards=tuple(shards), scaling=scaling)


def shard(number: int, load: float = 0.0, **changes: Any) -> ShardStats:
    """Make a shard's snapshot with a window of this load."""
    window = ShardWindow(
        seconds=5,
        utilisation=changes.pop("utilisation", 0.0),
        busy=load,
        push_rate=0,
        drop_rate=0,
        batch_ms=0,
    )
    values: dict[str, Any] = dict.fromkeys(ShardStats.__struct_fields__, 0)
    values.update(
        id=number, capacity=CAPACITY, age_s=100.0, window=window, leaving=False, wedged=False, last_error=""
    )
    return ShardStats(**(values | changes))


def loads(*values: float) -> EventBusStats:
    """Make a snapshot of shards with these loads."""
    return stats_of([shard(number, load) for number, load in enumerate(values)])


def test_utilization_between_the_thresholds_leaves_things() -> None:
    """Inside the band nothing is decided, and the reason names both thresholds."""
    decision = UtilizationPolicy().decide(loads(0.5, 0.5))
    assert decision == NoChange("mean load 0.50 of 2 shards is between low=0.2 and high=0.7")


def test_utilization_at_the_high_threshold_adds() -> None:
    """At `high` it adds towards the middle of the band, and says what crossed what."""
    decision = UtilizationPolicy().decide(loads(0.7, 0.7, 0.7, 0.7))
    assert decision == AddShards(2, "mean load 0.70 of 4 shards >= high=0.7")


def test_utilization_at_the_low_threshold_removes_the_idlest() -> None:
    """At `low` it removes the least loaded shards, as many as the rest can stand in for."""
    decision = UtilizationPolicy().decide(loads(0.3, 0.05, 0.25, 0.1))
    assert decision == RemoveShards((1, 3), "mean load 0.17 of 4 shards <= low=0.2")


def test_utilization_high_and_low_are_effective() -> None:
    """Other thresholds, other decisions."""
    assert isinstance(UtilizationPolicy(high=0.9).decide(loads(0.8, 0.8)), NoChange)
    assert isinstance(UtilizationPolicy(high=0.4).decide(loads(0.5, 0.5)), AddShards)
    assert isinstance(UtilizationPolicy(low=0.05).decide(loads(0.1, 0.1)), NoChange)


def test_utilization_max_step_bounds_a_step() -> None:
    """No more than this share of the shards comes or goes at once, but always one."""
    assert UtilizationPolicy(max_step=0.25).decide(loads(*[1.0] * 8)).count == 2  # type: ignore[union-attr]
    assert len(UtilizationPolicy(max_step=0.25).decide(loads(*[0.0] * 8)).shard_ids) == 2  # type: ignore[union-attr]
    assert UtilizationPolicy(max_step=0).decide(loads(1.0)).count == 1  # type: ignore[union-attr]


def test_utilization_waits_until_a_step_has_settled() -> None:
    """While a step has not shown its effect, nothing is decided."""
    record = ScalingRecord(at=1_000_000_000, added=(1,), reason="x")
    later = msgspec.structs.replace(stats_of([shard(0, 1.0), shard(1, 1.0)], (record,)), at=7_500_000_000)
    assert UtilizationPolicy().decide(later) == NoChange("the last step was less than 10 s ago: settling")
    assert isinstance(UtilizationPolicy(warm_up_s=6).decide(later), AddShards)
    sooner = msgspec.structs.replace(later, at=5_000_000_000)  # the averages reach back before the step
    assert "less than 5 s ago: settling" in UtilizationPolicy(warm_up_s=0).decide(sooner).reason


def test_utilization_refused_steps_need_no_warm_up() -> None:
    """A step that was refused changed nothing, so nothing need settle."""
    record = ScalingRecord(at=1, reason="x", error="over the maximum")
    snapshot = msgspec.structs.replace(stats_of([shard(0, 1.0)], (record,)), at=2)
    assert isinstance(UtilizationPolicy().decide(snapshot), AddShards)


def test_utilization_trusts_no_short_window() -> None:
    """Too few looks decide nothing."""
    short = msgspec.structs.replace(shard(0, 1.0), window=None)
    assert "min_looks_s=2" in UtilizationPolicy().decide(stats_of([short])).reason
    assert isinstance(UtilizationPolicy(min_looks_s=6).decide(loads(1.0)), NoChange)
    assert isinstance(UtilizationPolicy(min_looks_s=5).decide(loads(1.0)), AddShards)


def test_utilization_counts_a_full_ring_and_drops_as_load() -> None:
    """A ring that fills counts though the worker idles; a ring that drops counts as full load."""
    assert isinstance(UtilizationPolicy().decide(stats_of([shard(0, 0.0, utilisation=0.8)])), AddShards)
    window = ShardWindow(seconds=5, utilisation=0, busy=0, push_rate=0, drop_rate=1, batch_ms=0)
    assert isinstance(UtilizationPolicy().decide(stats_of([shard(0, window=window)])), AddShards)


def test_utilization_ignores_leaving_shards_and_never_removes_the_last() -> None:
    """A shard on its way out is not counted; one shard stays."""
    snapshot = stats_of([shard(0, 0.0), shard(1, 1.0, leaving=True)])
    assert "none can be spared" in UtilizationPolicy().decide(snapshot).reason


class Simulation:
    """Shards of equal speed under an offered load, looked at once a second."""

    def __init__(self, policy: UtilizationPolicy, shards: int, low: int, high: int) -> None:
        self.policy = policy
        self.ages = dict.fromkeys(range(shards), 100.0)
        self.depth = dict.fromkeys(self.ages, 0.0)
        self.next = shards
        self.history: list[ScalingRecord] = []
        self.steps: list[tuple[int, int]] = []
        self.bounds = (low, high)
        self.seconds = 0
        self.window: list[dict[int, tuple[float, float]]] = []

    def second(self, offered: float) -> None:
        """Let a second pass, then ask the policy and do what it says."""
        self.seconds += 1
        share = offered / len(self.ages)
        looks = {}
        for number in self.ages:
            backlog = self.depth[number] + share
            done = min(backlog, RATE)
            self.depth[number] = min(CAPACITY, backlog - done)
            self.ages[number] += 1
            looks[number] = (self.depth[number] / CAPACITY, done / RATE)
        self.window = [*self.window[-4:], looks]
        self.apply(self.policy.decide(self.snapshot()))

    def snapshot(self) -> EventBusStats:
        shards = []
        for number, age in self.ages.items():
            seen = [look[number] for look in self.window if number in look]
            window = ShardWindow(
                seconds=float(len(seen)),
                utilisation=sum(fill for fill, _ in seen) / len(seen),
                busy=sum(busy for _, busy in seen) / len(seen),
                push_rate=0,
                drop_rate=0,
                batch_ms=0,
            )
            shards.append(shard(number, age_s=age, window=window))
        snapshot = stats_of(shards, tuple(self.history[-32:]))
        return msgspec.structs.replace(snapshot, at=self.seconds * 1_000_000_000)

    def apply(self, decision: ScalingDecision) -> None:
        present, (low, high) = len(self.ages), self.bounds
        if isinstance(decision, AddShards):
            new = list(range(self.next, self.next + min(decision.count, high - present)))
            self.next += len(new)
            self.ages.update(dict.fromkeys(new, 0.0))
            self.depth.update(dict.fromkeys(new, 0.0))
            self.record(added=tuple(new), reason=decision.reason)
        elif isinstance(decision, RemoveShards):
            gone = decision.shard_ids[: present - low]
            for number in gone:
                del self.ages[number], self.depth[number]
            self.record(removed=tuple(gone), reason=decision.reason)

    def record(self, **values: Any) -> None:
        if values.get("added") or values.get("removed"):
            self.history.append(ScalingRecord(at=self.seconds * 1_000_000_000, **values))
            self.steps.append((len(values.get("added", ())), len(values.get("removed", ()))))


@pytest.mark.parametrize("offered", [1500, 3000, 6100, 9900, 14_000])
@pytest.mark.parametrize("warm_up_s", [3, 10])
def test_utilization_load_step_settles_without_oscillation(offered: int, warm_up_s: float) -> None:
    """After a step up it only adds until the load is carried, then rests; after a step down, only removes."""
    simulation = Simulation(UtilizationPolicy(warm_up_s=warm_up_s), shards=1, low=1, high=64)
    for _ in range(200):
        simulation.second(offered)
    assert all(removed == 0 for _, removed in simulation.steps), simulation.steps
    carried = len(simulation.ages)
    assert carried * RATE * 0.7 >= offered
    assert carried <= offered / RATE / 0.2 + 1
    settled = len(simulation.steps)
    for _ in range(200):
        simulation.second(offered)
    assert len(simulation.steps) == settled  # at rest
    for _ in range(400):
        simulation.second(offered / 20)
    down = simulation.steps[settled:]
    assert down
    assert all(added == 0 for added, _ in down), down
    assert len(simulation.ages) < carried
