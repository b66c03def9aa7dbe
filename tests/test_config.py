"""Settings: ranges, files, the environment, and what error messages give away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from netcore import BatchConfig, ConfigError, EventBus, EventBusConfig, ScalingConfig, mask_credentials
from netcore.builtin.memory import MemoryConfig
from netcore.builtin.noop import NoopConfig
from netcore.config import AdapterConfig

INF, NAN = float("inf"), float("nan")


def test_defaults_are_a_working_bus() -> None:
    """Shards by CPU count within 2..16; the memory adapter; the oldest go first."""
    config = EventBusConfig()
    assert 2 <= config.shards <= 16
    assert (config.ring_capacity, config.batch.max_events, config.batch.max_delay_ms) == (65_536, 1024, 5)
    assert (config.backpressure, config.adapter, config.scaling) == ("drop_oldest", "memory", None)


@pytest.mark.parametrize("count", [0, 1, 5, 64, None])
def test_default_shards_follow_the_cpu_count(monkeypatch: pytest.MonkeyPatch, count: int | None) -> None:
    """At least 2, at most 16, also where the count is unknown."""
    monkeypatch.setattr("os.cpu_count", lambda: count)
    assert EventBusConfig().shards == max(2, min(16, count or 2))


@pytest.mark.parametrize(
    ("setting", "values"),
    [
        ("shards", [0, -1, 1025, 1.5, "4", True, None]),
        ("ring_capacity", [0, -1, (1 << 24) + 1, 2.0, None]),
        ("adapter_timeout_ms", [0, -1, INF, NAN, "5", None, True]),
        ("causal_wait_ms", [-1, INF, NAN, "5"]),
        ("max_clock_drift_ms", [-1, INF, NAN]),
        ("batch", [None, {}, 5]),
        ("scaling", [{}, True, "utilization"]),
        ("dead_letters", [5, b"x", True]),
    ],
)
def test_setting_out_of_range_is_refused_by_name(setting: str, values: list[Any]) -> None:
    """The message has the key and the value."""
    for value in values:
        with pytest.raises(ConfigError, match=setting) as caught:
            EventBusConfig(**{setting: value})
        assert repr(value) in str(caught.value)


@pytest.mark.parametrize(
    ("make", "setting", "values"),
    [
        (BatchConfig, "max_events", [0, -5, 1_000_001, 1.0, True]),
        (BatchConfig, "max_delay_ms", [-0.1, 3_600_001, INF, NAN, "1"]),
        (ScalingConfig, "interval_ms", [99, 0, NAN]),
        (ScalingConfig, "cooldown_ms", [-1, NAN]),
        (ScalingConfig, "min_shards", [0, 1025]),
        (ScalingConfig, "max_shards", [0, 1025]),
        (MemoryConfig, "max_events", [0, -1, "5"]),
    ],
)
def test_nested_setting_out_of_range_is_refused_by_name(make: Any, setting: str, values: list[Any]) -> None:
    """The message has the full key."""
    for value in values:
        with pytest.raises(ConfigError, match=rf"\w+\.{setting}"):
            make(**{setting: value})


def test_limits_at_their_edges_are_taken() -> None:
    """Both ends of each range are inside."""
    EventBusConfig(
        shards=1024, ring_capacity=1 << 24, adapter_timeout_ms=1, causal_wait_ms=0, max_clock_drift_ms=0
    )
    EventBusConfig(shards=1, ring_capacity=1, batch=BatchConfig(max_events=1, max_delay_ms=0))
    BatchConfig(max_events=1_000_000, max_delay_ms=3_600_000)


def test_scaling_maximum_below_the_minimum_is_refused() -> None:
    """The maximum's range begins at the minimum."""
    with pytest.raises(ConfigError, match=r"scaling\.max_shards must be an int from 8"):
        ScalingConfig(min_shards=8, max_shards=4)


def test_config_is_frozen_and_keyword_only() -> None:
    """Settings do not change under a bus."""
    with pytest.raises(AttributeError):
        EventBusConfig().shards = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        EventBusConfig(4)  # type: ignore[call-arg]


TOML = """
shards = 8
backpressure = "block"
[batch]
max_events = 64
[adapter]
kind = "memory"
max_events = 500
[scaling]
interval_ms = 250
"""


def test_load_toml_and_json_agree(tmp_path: Path) -> None:
    """The same settings in either form."""
    (tmp_path / "a.toml").write_text(TOML)
    (tmp_path / "a.json").write_text(
        '{"shards":8,"backpressure":"block","batch":{"max_events":64},'
        '"adapter":{"kind":"memory","max_events":500},"scaling":{"interval_ms":250}}'
    )
    toml, json = (EventBusConfig.load(tmp_path / name, env={}) for name in ("a.toml", "a.json"))
    assert toml == json
    assert (toml.shards, toml.batch.max_events, toml.batch.max_delay_ms) == (8, 64, 5)
    assert toml.scaling == ScalingConfig(interval_ms=250)
    assert EventBus(toml)._engine.adapter.config == MemoryConfig(max_events=500)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("shrads = 4", "shrads"),
        ("[batch]\nmax_event = 4", r"batch.*max_event"),
        ("shards = 'many'", "shards"),
        ("shards = 0", "shards must be an int from 1"),
        ("[batch]\nmax_delay_ms = -1", r"batch\.max_delay_ms"),
        ("shards = ", "is malformed"),
        ("batch = 5", "batch"),
    ],
)
def test_load_bad_file_names_file_and_key(tmp_path: Path, text: str, said: str) -> None:
    """A typing error is an error, never ignored."""
    file = tmp_path / "netcore.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=rf"netcore\.toml.*{said}"):
        EventBusConfig.load(file, env={})


def test_load_what_is_no_settings_file_is_refused(tmp_path: Path) -> None:
    """Missing, a folder, a list, not UTF-8, not JSON."""
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "empty.json").touch()
    (tmp_path / "latin.toml").write_bytes(b"a = '\xff'")
    for name, said in {
        "missing.toml": "cannot read",
        ".": "cannot read",
        "list.json": "must hold a table",
        "bad.json": "is malformed",
        "empty.json": "malformed: it is empty; write {} for",
        "latin.toml": "is malformed",
    }.items():
        with pytest.raises(ConfigError, match=said):
            EventBusConfig.load(tmp_path / name, env={})


def test_environment_overrides_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two underscores step into a table; lists and tables are JSON; names mean what they mean in any case."""
    file = tmp_path / "netcore.toml"
    file.write_text(TOML)
    env = {
        "NETCORE_SHARDS": "3",
        "NETCORE_BATCH__MAX_EVENTS": "7",
        "NETCORE_BATCH__MAX_DELAY_MS": "2.5",
        "NETCORE_ADAPTER__MAX_EVENTS": "9",
        "NETCORE_SCALING": '{"auto_apply": false}',
        "NETCORE_DEAD_LETTERS": "/dev/null",
        "NETCORE_TEST_REDIS": "ignored",
        "NETCORE_PLUGINS": "ignored",
        "NETCORE_PLUGINS_DISABLE": "ignored",
        "OTHER": "ignored",
    }
    config = EventBusConfig.load(file, env=env)
    assert (config.shards, config.batch, config.backpressure) == (
        3,
        BatchConfig(max_events=7, max_delay_ms=2.5),
        "block",
    )
    assert config.scaling == ScalingConfig(auto_apply=False)
    assert config.dead_letters == "/dev/null"
    assert EventBus(config)._engine.adapter.config == MemoryConfig(max_events=9)
    monkeypatch.setenv("NETCORE_SHARDS", "5")
    assert EventBusConfig.load(file).shards == 5


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("NETCORE_SHARDS", "four", "shards"),
        ("NETCORE_SHARDS", "0", "shards must be"),
        ("NETCORE_BATCH__MAX_EVENT", "4", "max_event"),
        ("NETCORE_SHARDS__X", "4", "NETCORE_SHARDS__X steps into 'shards'"),
        ("NETCORE_SCALING", "{", "NETCORE_SCALING is not valid JSON"),
    ],
)
def test_environment_that_is_wrong_is_refused(name: str, value: str, said: str) -> None:
    """A variable with a wrong value, or a wrong key inside a table, is an error too."""
    with pytest.raises(ConfigError, match=said):
        EventBusConfig.from_dict({"shards": 2}, env={name: value})


def test_environment_steps_into_an_adapter_given_by_kind() -> None:
    """`adapter = "memory"` and `NETCORE_ADAPTER__MAX_EVENTS` make a table; so does no adapter at all."""
    for settings in ({"adapter": "memory"}, {}):
        config = EventBusConfig.from_dict(settings, env={"NETCORE_ADAPTER__MAX_EVENTS": "4"})
        assert EventBus(config)._engine.adapter.config == MemoryConfig(max_events=4)


def test_adapter_config_of_another_class_is_refused() -> None:
    """A struct that borrows a kind is not that kind's settings."""

    class Impostor(AdapterConfig, tag="memory"):
        pass

    with pytest.raises(ConfigError, match="is not the settings of the adapter 'memory'"):
        EventBus(EventBusConfig(adapter=Impostor()))
    assert EventBus(EventBusConfig(adapter=NoopConfig()))._engine.adapter.kind == "noop"


def test_bus_of_something_else_is_refused() -> None:
    """A dict is not a config: `from_dict` makes one."""
    with pytest.raises(ConfigError, match="takes an EventBusConfig"):
        EventBus({"shards": 2})  # type: ignore[arg-type]


def test_dead_letters_in_a_folder_that_does_not_exist_is_refused_at_once(tmp_path: Path) -> None:
    """Not when the first event dies."""
    with pytest.raises(ConfigError, match="dead_letters"):
        EventBus(EventBusConfig(dead_letters=str(tmp_path / "nowhere" / "dead.ndjson")))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://me:s3cret@db:6379/0?password=x", "redis://***@db:6379/0?password=***"),
        ("nats://token@host:4222", "nats://***@host:4222"),
        ("redis://:p%40ss@host", "redis://***@host"),
        ("redis://u:p@ss@host/0", "redis://***@host/0"),
        ("tcp://host:1?ApiKey=k&x=1&client_secret=s", "tcp://host:1?ApiKey=***&x=1&client_secret=***"),
        ("redis://db:6379/0", "redis://db:6379/0"),
        ("no url at all", "no url at all"),
    ],
)
def test_mask_credentials_hides_what_is_secret_and_nothing_else(url: str, shown: str) -> None:
    """User names, passwords, tokens; hosts and harmless query values stay readable."""
    assert mask_credentials(url) == shown


def test_error_about_an_adapters_settings_masks_credentials() -> None:
    """A password in a wrong setting does not reach a log."""
    with pytest.raises(ConfigError) as caught:
        EventBus(EventBusConfig(adapter={"kind": "memory", "max_events": "redis://me:s3cret@db"}))
    assert "s3cret" not in str(caught.value)
    assert "max_events" in str(caught.value)
