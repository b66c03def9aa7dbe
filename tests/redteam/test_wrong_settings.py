"""Settings as people get them wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from netcore import (
    BackpressurePolicy,
    ConfigError,
    ConsumeRequest,
    EventBus,
    EventBusConfig,
    FullShard,
    PluginError,
    RemoveShards,
    ScalingConfig,
    ScalingError,
    Verdict,
    hookimpl,
    mask_credentials,
)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("rediss//me:s3cret@db/0", "rediss//***@db/0"),
        ("redis:me:s3cret@db", "***@db"),
        ("redis://me:s3/cret@db/0", "redis://***@db/0"),
        ("redis://me:s3?cr#et@db", "redis://***@db"),
        ("redis://me:s3@cret@db", "redis://***@db"),
        ("redis://db/0?password=s3@cret", "redis://db/0?password=***"),
        ("nats://a:s3cret@one:1,nats://b:s3cret@two:2", "nats://***@one:1,nats://***@two:2"),
        ("url must not be 'redis//me:s3cret@db'", "url must not be 'redis//***@db'"),
        ("tcp://10.0.0.1:7777", "tcp://10.0.0.1:7777"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
    ],
)
def test_credentials_are_masked_however_the_url_is_written(url: str, shown: str) -> None:
    """A malformed address is just the one that ends in an error message."""
    assert mask_credentials(url) == shown


def test_setting_from_the_environment_that_is_wrong_names_its_variable(tmp_path: Path) -> None:
    """The file is not to blame for it, and says so."""
    file = tmp_path / "netcore.toml"
    file.write_text("ring_capacity = 100\n")
    with pytest.raises(
        ConfigError,
        match=r"netcore\.toml with NETCORE_BATCH__MAX_EVENT: .*'batch.max_event'; did you mean 'max_events'",
    ):
        EventBusConfig.load(file, env={"NETCORE_BATCH__MAX_EVENT": "3"})


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("NETCORE_SHRADS", "; did you mean NETCORE_SHARDS?"),
        ("NETCORE_SHARD", "; did you mean NETCORE_SHARDS?"),
        ("NETCORE_BATCH_MAX_EVENTS", "; did you mean NETCORE_BATCH__MAX_EVENTS?"),
        ("NETCORE_SCALING_MAX_SHARD", "; did you mean NETCORE_SCALING__MAX_SHARDS?"),
        ("NETCORE_ADAPTER_URL", "; did you mean NETCORE_ADAPTER__URL?"),
        ("NETCORE_ADAPTER_TIMEOUT", "; did you mean NETCORE_ADAPTER_TIMEOUT_MS?"),
        ("NETCORE_PORT", ""),
        ("NETCORE_SERVICE_HOST", ""),
        ("NETCORE_PORT_7777_TCP", ""),
        ("NETCORE_", ""),
    ],
)
def test_variable_that_names_no_setting_is_ignored_and_told(
    name: str, meant: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A cluster sets such names by itself, so they must stop no bus; a slip must not go unnoticed."""
    config = EventBusConfig.from_dict(
        {"shards": 3}, env={name: "tcp://10.0.0.1:7777", "NETCORE_RING_CAPACITY": "7"}
    )
    assert (config.shards, config.ring_capacity) == (3, 7)
    assert [record.getMessage() for record in caplog.records] == [
        f"{name} names no setting and is ignored{meant}"
    ]


def test_variables_reserved_and_of_others_are_not_told(caplog: pytest.LogCaptureFixture) -> None:
    """They mean something else."""
    env = {
        "NETCORE_TEST_REDIS_URL": "x",
        "NETCORE_PLUGINS": "x",
        "NETCORE_PLUGINS_DISABLE": "x",
        "NET_X": "x",
    }
    assert EventBusConfig.from_dict({"shards": 3}, env=env) == EventBusConfig(shards=3)
    assert caplog.records == []


@pytest.mark.parametrize(("name", "text"), [("a.toml", "shards = 3"), ("a.JSON", '{"shards": 3}')])
def test_byte_order_mark_and_capital_ending_are_understood(tmp_path: Path, name: str, text: str) -> None:
    """Some editors write them unasked."""
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert EventBusConfig.load(tmp_path / name, env={}).shards == 3


@pytest.mark.parametrize("shards", [3, 1.5, object()])
def test_shards_of_a_request_that_are_no_list_are_a_config_error(shards: object) -> None:
    """A single id is the likeliest mistake."""
    with pytest.raises(ConfigError, match="takes a list of ids"):
        ConsumeRequest(1, shards=shards)  # type: ignore[arg-type]


@pytest.mark.parametrize("plugins", [pytest, object(), "redis"], ids=["module", "object", "name"])
def test_plugin_given_without_its_list_is_told(plugins: object) -> None:
    """The only one there is, without brackets."""
    with pytest.raises(PluginError, match="plugins takes a list of modules or objects"):
        EventBus(plugins=plugins)  # type: ignore[arg-type]


def test_auto_apply_that_is_no_bool_is_a_config_error() -> None:
    """The word "no" is true."""
    with pytest.raises(ConfigError, match="auto_apply must be True or False, not 'no'"):
        ScalingConfig(auto_apply="no")  # type: ignore[arg-type]
    loaded = EventBusConfig.from_dict({"scaling": {}}, env={"NETCORE_SCALING__AUTO_APPLY": "false"})
    assert loaded.scaling is not None
    assert loaded.scaling.auto_apply is False


@pytest.mark.parametrize("settings", [None, [1], "shards"])
def test_settings_that_are_no_table_are_a_config_error(settings: object) -> None:
    """What a program decoded may be anything."""
    with pytest.raises(ConfigError, match="settings must be a table of settings, not"):
        EventBusConfig.from_dict(settings)  # type: ignore[arg-type]


def test_decision_to_remove_a_single_id_is_a_config_error() -> None:
    """A policy's author is told what it takes."""
    with pytest.raises(ConfigError, match="RemoveShards takes a list of shard ids, not 3"):
        RemoveShards(3)  # type: ignore[arg-type]


@pytest.mark.anyio
@pytest.mark.parametrize("ids", [[[1]], [None], ["1"], [True]])
async def test_removal_of_what_is_no_id_is_a_scaling_error(ids: list[object]) -> None:
    """Nothing is begun, and the history says so."""
    async with EventBus(EventBusConfig(shards=3)) as bus:
        with pytest.raises(ScalingError, match="no such shards"):
            await bus.remove_shards(ids)  # type: ignore[arg-type]
        assert len(bus.stats().shards) == 3
        assert bus.stats().scaling[-1].error


def test_policy_that_needs_arguments_chosen_by_name_is_a_config_error() -> None:
    """By name it is built without any; its author, or who chose it, is told what to do instead."""

    class Needy(BackpressurePolicy):
        name = "needy"

        def __init__(self, field: str) -> None:
            self.field = field

        def on_full(self, shard: FullShard, /) -> Verdict:
            return Verdict.REFUSE

    class Plugin:
        @hookimpl
        def netcore_backpressure_policies(self) -> list[type[BackpressurePolicy]]:
            return [Needy]

    with pytest.raises(ConfigError, match=r"'needy' cannot be built by its name alone \(.*'field'\)"):
        EventBus(EventBusConfig(backpressure="needy"), plugins=[Plugin()])
    assert EventBus(EventBusConfig(backpressure=Needy("level"))).config.shards
