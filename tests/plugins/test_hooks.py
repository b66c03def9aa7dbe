"""One test a hook: a plugin implements it, and a real bus or command line shows the effect."""

from __future__ import annotations

import logging
import threading
from typing import Any, ClassVar

import anyio
import click
import pytest

import netcore
from netcore import (
    AddShards,
    Batch,
    ConsumeRequest,
    EventBus,
    EventBusConfig,
    EventBusStats,
    FatalAdapterError,
    FullShard,
    ScalingConfig,
    ScalingDecision,
    ShutdownReport,
    Verdict,
    hookimpl,
)
from netcore.builtin.memory import MemoryAdapter, MemoryConfig
from netcore.cli.app import run
from netcore.plugins import manager as manager_module
from netcore.plugins.manager import PluginManager


class PickyConfig(MemoryConfig, tag="picky", frozen=True):
    """Settings of the adapter below."""


class PickyAdapter(MemoryAdapter):
    """Stores everything but poison."""

    kind: ClassVar[str] = "picky"
    Config: ClassVar[Any] = PickyConfig

    async def append(self, batch: Batch) -> None:
        if any(b"poison" in event.raw for event in batch.events):
            raise FatalAdapterError("poison")
        await super().append(batch)


class Adapters:
    @hookimpl
    def netcore_adapters(self) -> list[type[netcore.Adapter[Any]]]:
        return [PickyAdapter]


@pytest.mark.anyio
async def test_hook_netcore_adapters() -> None:
    """An adapter that a plugin offers is chosen by its kind, with its own settings."""
    config = EventBusConfig(adapter={"kind": "picky", "max_events": 5}, shards=1)
    async with EventBus(config, plugins=[Adapters()]) as bus:
        bus.ingest_raw_many([b"%d" % n for n in range(20)])
        await bus.flush()
        page = await bus.poll(ConsumeRequest(100, start="earliest"))
        assert [event.raw for event in page.events] == [b"15", b"16", b"17", b"18", b"19"]


@pytest.mark.anyio
async def test_hook_netcore_backpressure_policies() -> None:
    """A backpressure policy that a plugin offers is chosen by its name."""

    class Discard(netcore.BackpressurePolicy):
        name = "discard_all"

        def on_full(self, shard: FullShard, /) -> Verdict:
            return Verdict.DISCARD

    class Plugin:
        @hookimpl
        def netcore_backpressure_policies(self) -> list[type[netcore.BackpressurePolicy]]:
            return [Discard]

    config = EventBusConfig(shards=1, ring_capacity=3, backpressure="discard_all")
    async with EventBus(config, plugins=[Plugin()]) as bus:
        outcomes = [bus.ingest_raw(b"x") is None for _ in range(5)]
        assert outcomes == [False, False, False, True, True]
        assert bus.stats().discarded == 2


@pytest.mark.anyio
async def test_hook_netcore_scaling_policies() -> None:
    """A scaling policy that a plugin offers is chosen by its name and built with the options."""

    class Grow(netcore.ScalingPolicy):
        name = "grow"

        def __init__(self, by: int) -> None:
            self.by = by

        def decide(self, stats: EventBusStats, /) -> ScalingDecision:
            return AddShards(self.by, "growing")

    class Plugin:
        @hookimpl
        def netcore_scaling_policies(self) -> list[type[netcore.ScalingPolicy]]:
            return [Grow]

    scaling = ScalingConfig(policy="grow", options={"by": 3}, auto_apply=False)
    async with EventBus(EventBusConfig(shards=1, scaling=scaling), plugins=[Plugin()]) as bus:
        assert await bus.suggest_scaling() == AddShards(3, "growing")


@pytest.mark.anyio
async def test_hook_netcore_filters() -> None:
    """A filter class that a plugin offers is found by its name, and filters a poll."""

    class Shouting:
        name = "shouting"

        def matches(self, raw: bytes, /) -> bool:
            return raw.isupper()

        def to_json(self) -> str:
            return "{}"

        @classmethod
        def from_json(cls, data: object, /) -> Shouting:
            return cls()

    class Plugin:
        @hookimpl
        def netcore_filters(self) -> list[type[Any]]:
            return [Shouting]

    language = PluginManager(plugins=[Plugin()], environ={}).registry.filter("shouting")
    async with EventBus(EventBusConfig(shards=1), plugins=[Plugin()]) as bus:
        bus.ingest_raw_many([b"quiet", b"LOUD", b"Quiet"])
        await bus.flush()
        page = await bus.poll(ConsumeRequest(100, start="earliest", filter=language.from_json("{}")))
        assert [event.raw for event in page.events] == [b"LOUD"]


class Recorder:
    """Implements every observer hook, and notes what it was told and on which thread."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.threads: set[int] = set()

    def _note(self, *what: object) -> None:
        self.told.append(what)
        self.threads.add(threading.get_ident())

    @hookimpl
    def netcore_bus_opened(self, bus: EventBus) -> None:
        self._note("opened", bus)

    @hookimpl
    def netcore_batch_dispatched(self, bus: EventBus, shard: int, count: int, seconds: float) -> None:
        assert 0 <= seconds < 60
        self._note("dispatched", bus, shard, count)

    @hookimpl
    def netcore_dead_letter(
        self, bus: EventBus, shard: int, ts: int, payload: bytes, error: Exception
    ) -> None:
        assert ts > 0
        self._note("dead letter", bus, shard, payload, type(error))

    @hookimpl
    def netcore_shards_changed(
        self, bus: EventBus, added: list[int], removed: list[int], reason: str
    ) -> None:
        assert isinstance(reason, str)
        self._note("shards", bus, added, removed)

    @hookimpl
    def netcore_bus_closed(self, bus: EventBus, report: ShutdownReport) -> None:
        self._note("closed", bus, report)


@pytest.mark.anyio
async def test_hook_netcore_bus_opened() -> None:
    """It is told once, on the loop's thread, before `open` returns."""
    recorder = Recorder()
    bus = EventBus(EventBusConfig(shards=1), plugins=[recorder])
    assert recorder.told == []
    async with bus:
        assert recorder.told == [("opened", bus)]
    assert recorder.threads == {threading.get_ident()}


@pytest.mark.anyio
async def test_hook_netcore_batch_dispatched() -> None:
    """It is told of each stored batch, with the shard and the number of events."""
    recorder = Recorder()
    async with EventBus(EventBusConfig(shards=1), plugins=[recorder]) as bus:
        bus.ingest_raw_many([b"1", b"2", b"3"])
        await bus.flush()
        assert recorder.told[1:] == [("dispatched", bus, 0, 3)]


@pytest.mark.anyio
async def test_hook_netcore_dead_letter() -> None:
    """It gets the payload of an event that can never be stored; the events around it are stored."""
    recorder = Recorder()
    async with EventBus(EventBusConfig(shards=1, adapter="picky"), plugins=[recorder, Adapters()]) as bus:
        bus.ingest_raw_many([b"1", b"poison", b"3"])
        await bus.flush()
        letters = [what for what in recorder.told if what[0] == "dead letter"]
        assert letters == [("dead letter", bus, 0, b"poison", FatalAdapterError)]
        assert bus.stats().dispatched == 2


@pytest.mark.anyio
async def test_hook_netcore_shards_changed() -> None:
    """It is told of shards that came and went, by id."""
    recorder = Recorder()
    async with EventBus(EventBusConfig(shards=2), plugins=[recorder]) as bus:
        added = await bus.add_shards(2)
        await bus.remove_shards([0])
        assert recorder.told[1:] == [("shards", bus, added, []), ("shards", bus, [], [0])]


@pytest.mark.anyio
async def test_hook_netcore_bus_closed() -> None:
    """It is told once, with the report that `shutdown` returns."""
    recorder = Recorder()
    bus = await EventBus.open(EventBusConfig(shards=1), plugins=[recorder])
    report = await bus.shutdown()
    await bus.shutdown()
    assert [what for what in recorder.told if what[0] == "closed"] == [("closed", bus, report)]


@pytest.mark.anyio
async def test_observer_that_raises_is_logged_once_and_disturbs_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A broken observer costs one log entry; the bus and the other observers go on."""

    class Raises:
        @hookimpl
        def netcore_batch_dispatched(self) -> None:
            raise RuntimeError("boom")

    recorder = Recorder()
    config = EventBusConfig(shards=1, batch=netcore.BatchConfig(max_events=1))
    with caplog.at_level(logging.ERROR, "netcore.plugins"):
        async with EventBus(config, plugins=[Raises(), recorder]) as bus:
            bus.ingest_raw_many([b"1", b"2", b"3"])
            with anyio.fail_after(10):
                await bus.flush()
    assert len([what for what in recorder.told if what[0] == "dispatched"]) == 3
    assert len([record for record in caplog.records if "Raises" in record.getMessage()]) == 1


@pytest.mark.anyio
async def test_plugins_of_one_bus_are_not_told_of_another() -> None:
    """A plugin registered in code belongs to its bus alone."""
    recorder = Recorder()
    async with EventBus(EventBusConfig(shards=1), plugins=[recorder]), EventBus(EventBusConfig(shards=1)):
        assert len(recorder.told) == 1


def test_hook_netcore_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A subcommand that a plugin adds runs; one with a built-in's name does not replace that."""

    class Plugin:
        @hookimpl
        def netcore_commands(self, cli: click.Group) -> None:
            @cli.command("salute")
            def salute() -> None:
                click.echo("o7")

            @cli.command("demo")
            def demo() -> None:
                click.echo("hijacked")

    monkeypatch.setattr(manager_module, "_default", PluginManager(plugins=[Plugin()], environ={}))
    assert run(["salute"]) == 0
    assert capsys.readouterr().out == "o7\n"
    assert run(["demo", "--help"]) == 0
    assert "hijacked" not in capsys.readouterr().out
