"""The monitor: what it measures, when it acts, and that looking changes nothing."""

from __future__ import annotations

import gc
import logging
import weakref

import anyio
import msgspec
import pytest

from netcore import (
    AddShards,
    ConfigError,
    EventBus,
    EventBusConfig,
    EventBusStats,
    NoChange,
    PluginNotFoundError,
    RemoveShards,
    ScalingConfig,
    ScalingDecision,
    ScalingPolicy,
    hookimpl,
)
from netcore.scaling.monitor import windows

pytestmark = pytest.mark.anyio


class Scripted(ScalingPolicy):
    """Decides what a test says."""

    name = "scripted"

    def __init__(self, decision: ScalingDecision | Exception | str) -> None:
        self.decision = decision
        self.asked = 0

    def decide(self, stats: EventBusStats, /) -> ScalingDecision:
        """Return or raise what it was given."""
        self.asked += 1
        if isinstance(self.decision, Exception):
            raise self.decision
        return self.decision  # type: ignore[return-value]


def config(policy: ScalingPolicy | str, **settings: object) -> EventBusConfig:
    """Scale by `policy`, at intervals that only `tick` shortens."""
    scaling = ScalingConfig(policy=policy, **{"interval_ms": 3_600_000, "cooldown_ms": 0, **settings})  # type: ignore[arg-type]
    return EventBusConfig(shards=2, scaling=scaling)


async def test_monitor_tick_applies_what_the_policy_decides() -> None:
    """With `auto_apply`, a look carries the decision out, with its reason in the history."""
    policy = Scripted(AddShards(2, "a test says so"))
    async with EventBus(config(policy)) as bus:
        await bus._monitor.tick()
        assert len(bus.stats().shards) == 4
        assert bus.stats().scaling[-1].reason == "a test says so"
        policy.decision = RemoveShards((0,), "enough")
        await bus._monitor.tick()
        assert [shard.id for shard in bus.stats().shards] == [1, 2, 3]


async def test_monitor_runs_by_itself_at_its_interval() -> None:
    """Nobody needs to call it."""
    policy = Scripted(AddShards(1, "now"))
    async with EventBus(config(policy, interval_ms=100, max_shards=3)) as bus:
        with anyio.fail_after(10):
            while len(bus.stats().shards) < 3:
                await anyio.sleep(0.01)
    assert policy.asked >= 1


async def test_monitor_without_auto_apply_only_suggests() -> None:
    """Then looking changes nothing, and the operator applies."""
    policy = Scripted(AddShards(1, "more"))
    async with EventBus(config(policy, auto_apply=False)) as bus:
        await bus._monitor.tick()
        assert len(bus.stats().shards) == 2
        assert await bus.suggest_scaling() == AddShards(1, "more")
        assert await bus.suggest_scaling() == await bus.suggest_scaling()
        assert len(bus.stats().shards) == 2


@pytest.mark.parametrize("stepped", [False, True])
async def test_suggestions_of_the_built_in_policy_on_one_state_are_equal(stepped: bool) -> None:
    """Asking, and the time between two questions, changes neither the answer nor its reason."""
    async with EventBus(config("utilization", auto_apply=False)) as bus:
        for number in range(50):
            bus.ingest({"n": number})
        await bus.flush(timeout=10)
        await bus._monitor.tick()
        if stepped:
            await bus.add_shards(1)
        before = bus.stats()
        first = await bus.suggest_scaling()
        await anyio.sleep(0.11)  # the passing of time is what is tested
        assert await bus.suggest_scaling() == first
        assert first.reason
        after = bus.stats()
        assert (after.scaling, after.ingested) == (before.scaling, before.ingested)
        assert [shard.window for shard in after.shards] == [shard.window for shard in before.shards]


async def test_monitor_cooldown_holds_automatic_steps_and_operators_reset_it() -> None:
    """Within the cooldown nothing automatic happens; an operator's step happens, and begins it anew."""
    now = [1000.0]
    policy = Scripted(AddShards(1, "more"))
    async with EventBus(config(policy, cooldown_ms=5000)) as bus:
        bus._monitor._now = lambda: now[0]
        await bus._monitor.tick()
        assert len(bus.stats().shards) == 3
        now[0] += 4.9
        await bus._monitor.tick()
        assert len(bus.stats().shards) == 3
        await bus.add_shards(1)
        now[0] += 4.9
        await bus._monitor.tick()
        assert len(bus.stats().shards) == 4
        now[0] += 0.2
        await bus._monitor.tick()
        assert len(bus.stats().shards) == 5


async def test_monitor_cooldown_counts_from_the_end_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that takes longer than the cooldown is not followed by the next one at once."""
    now = [1000.0]
    async with EventBus(config(Scripted(AddShards(1, "more")), cooldown_ms=5000)) as bus:
        apply = bus._resharding.apply

        async def slowly(decision: ScalingDecision) -> list[int]:
            now[0] += 60
            return await apply(decision)

        bus._monitor._now = lambda: now[0]
        monkeypatch.setattr(bus._resharding, "apply", slowly)
        await bus._monitor.tick()
        now[0] += 4.9
        await bus._monitor.tick()
        assert len(bus.stats().shards) == 3
        now[0] += 0.2
        await bus._monitor.tick()
        assert len(bus.stats().shards) == 4


@pytest.mark.parametrize(
    ("decision", "expected"),
    [
        (AddShards(9, "x"), AddShards(2, "x")),
        (RemoveShards((0, 1), "x"), RemoveShards((0,), "x")),
        (NoChange("x"), NoChange("x")),
    ],
)
async def test_suggestion_keeps_within_min_and_max_shards(
    decision: ScalingDecision, expected: ScalingDecision
) -> None:
    """Whatever the policy says, the configured bounds hold."""
    async with EventBus(config(Scripted(decision), min_shards=1, max_shards=4)) as bus:
        assert await bus.suggest_scaling() == expected


async def test_suggestion_at_the_bounds_says_so() -> None:
    """A decision that the bounds leave nothing of becomes NoChange with both reasons."""
    policy = Scripted(AddShards(1, "hot"))
    async with EventBus(config(policy, min_shards=2, max_shards=2)) as bus:
        assert await bus.suggest_scaling() == NoChange("hot; but max_shards=2 are there")
        policy.decision = RemoveShards((1,), "cold")
        assert await bus.suggest_scaling() == NoChange("cold; but min_shards=2 must stay")


@pytest.mark.parametrize("answer", [ValueError("broken"), "more please"])
async def test_policy_that_fails_changes_nothing_and_is_logged_once(
    answer: Exception | str, caplog: pytest.LogCaptureFixture
) -> None:
    """A raising or babbling policy counts as NoChange."""
    async with EventBus(config(Scripted(answer))) as bus:
        with caplog.at_level(logging.ERROR, "netcore.scaling"):
            for _ in range(3):
                assert isinstance(await bus.suggest_scaling(), NoChange)
                await bus._monitor.tick()
        assert len(caplog.records) == 1
        assert len(bus.stats().shards) == 2


async def test_policy_may_call_the_bus() -> None:
    """Policies run outside any lock: one may read the bus's stats, or ingest."""

    class Nosy(Scripted):
        def decide(self, stats: EventBusStats, /) -> ScalingDecision:
            assert bus.stats().ingested == stats.ingested
            bus.ingest({"asked": True})
            return NoChange("looked")

    async with EventBus(config(Nosy(NoChange()))) as bus:
        assert await bus.suggest_scaling() == NoChange("looked")
        assert bus.stats().ingested == 1


async def test_policy_by_name_gets_its_options() -> None:
    """`ScalingConfig.options` are the keyword arguments of a policy chosen by name."""
    bus = EventBus(config("utilization", options={"high": 0.9, "low": 0.1}))
    assert bus._monitor._policy.high == 0.9  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("policy", "options", "error", "message"),
    [
        ("utilisation", {}, PluginNotFoundError, "did you mean 'utilization'"),
        ("utilization", {"hihg": 1}, ConfigError, "hihg"),
        ("utilization", {"high": 7}, ConfigError, "utilization.high"),
        ("utilization", {"high": 0.2, "low": 0.3}, ConfigError, "must be below"),
        (5, {}, ConfigError, "scaling.policy"),
    ],
)
async def test_policy_that_cannot_be_built_is_an_error_of_the_constructor(
    policy: str, options: dict[str, float], error: type[Exception], message: str
) -> None:
    """Names and options are resolved when the bus is built."""
    with pytest.raises(error, match=message):
        EventBus(config(policy, options=options))


async def test_policy_from_a_plugin_in_code_is_found() -> None:
    """A third party's policy is used by its name."""

    class Plugin:
        @hookimpl
        def netcore_scaling_policies(self) -> list[type[ScalingPolicy]]:
            return [Scripted]

    settings = config("scripted", options={"decision": AddShards(1, "theirs")})
    async with EventBus(settings, plugins=[Plugin()]) as bus:
        assert await bus.suggest_scaling() == AddShards(1, "theirs")


async def test_windows_average_what_happened_between_looks() -> None:
    """Rates and shares are differences of counters over the time between the first and last look."""
    async with EventBus(EventBusConfig(shards=1)) as bus:
        base = bus.stats().shards[0]
    change = msgspec.structs.replace
    samples = (
        (10.0, {0: base}),
        (12.0, {0: change(base, accepted=50, utilisation=0.5, busy_s=1.0, batches=4)}),
        (
            14.0,
            {0: change(base, accepted=100, utilisation=1.0, busy_s=2.0, batches=8, evicted=6, rejected=2)},
        ),
    )
    window = windows(samples)[0]
    assert window.seconds == 4.0
    assert window.utilisation == pytest.approx(0.5)
    assert window.busy == pytest.approx(0.5)
    assert window.push_rate == pytest.approx(25.0)
    assert window.drop_rate == pytest.approx(2.0)
    assert window.batch_ms == pytest.approx(250.0)
    assert windows(samples[:1]) == {}
    assert windows(()) == {}


async def test_stats_show_windows_and_reading_them_changes_nothing() -> None:
    """After two looks each shard has its averages; stats read twice are the same but for the time."""
    async with EventBus(config(Scripted(NoChange()))) as bus:
        for number in range(20):
            bus.ingest({"n": number})
        await bus.flush(timeout=10)
        await bus._monitor.tick()
        first, second = bus.stats(), bus.stats()
        assert all(shard.window is not None for shard in first.shards)
        assert sum(shard.window.push_rate for shard in first.shards if shard.window) > 0
        assert [s.window for s in first.shards] == [s.window for s in second.shards]
        assert first.ingested == second.ingested == 20


async def test_monitor_does_not_keep_a_dropped_bus() -> None:
    """The monitor holds the engine, not the bus: a dropped bus is collected and says so."""
    bus = await EventBus.open(config(Scripted(NoChange()), interval_ms=100))
    gone = weakref.ref(bus)
    with pytest.warns(ResourceWarning, match="without shutdown"):
        del bus
        gc.collect()
    assert gone() is None
    await anyio.sleep(0.01)  # the dismantling runs on the loop


async def test_monitor_ends_with_the_bus() -> None:
    """After shutdown nobody asks the policy any more."""
    policy = Scripted(NoChange())
    async with EventBus(config(policy, interval_ms=100)) as bus:
        pass
    asked = policy.asked
    await anyio.sleep(0.15)
    assert policy.asked == asked
    assert bus.stats().ingested == 0
