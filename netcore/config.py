"""How a bus is set up: typed, frozen, validated when built; loadable from TOML or JSON."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec

from netcore.errors import ConfigError

if TYPE_CHECKING:
    from netcore.contracts.policies import BackpressurePolicy, ScalingPolicy

    AdapterSetting: TypeAlias = "AdapterConfig | Mapping[str, Any] | str"
    BackpressureSetting: TypeAlias = BackpressurePolicy | str
    ScalingPolicySetting: TypeAlias = ScalingPolicy | str
else:  # msgspec checks the rest of a file's types; these three are resolved when a bus is built
    AdapterSetting = BackpressureSetting = ScalingPolicySetting = Any

__all__ = ["AdapterConfig", "BatchConfig", "EventBusConfig", "ScalingConfig", "mask_credentials"]

_log = logging.getLogger("netcore.config")
_ENV_PREFIX: Final = "NETCORE_"
_ENV_RESERVED: Final = ("NETCORE_TEST_", "NETCORE_PLUGINS")
_UNKNOWN: Final = re.compile(r"unknown field `(.*?)`")
MAX_SHARDS: Final = 1024


def mask_credentials(url: str) -> str:
    """Return `url` fit to be shown: user name, password and secret query values become `***`.

    >>> mask_credentials("redis://me:s3cret@db:6379/0?password=x")
    'redis://***@db:6379/0?password=***'
    """
    shown = re.sub(r"(?i)([?&][^=&#]*(?:pass|secret|token|key|seed)[^=&#]*=)[^&#]*", r"\1***", url)
    # Up to the last @, whatever lies before it: passwords hold slashes, and schemes are misspelt.
    shown = re.sub(r"(?<=//)(?:(?!,[a-z+]+://)\S)*@", "***@", shown)
    return re.sub(r"(?<![^\s'\"(,])[^\s'\"/@]+:(?!//)[^\s'\"@]*@", "***@", shown)


def check_int(name: str, value: object, low: int, high: int) -> None:
    """Raise `ConfigError` unless `value` is an int in [low, high]."""
    if type(value) is not int or not low <= value <= high:
        raise ConfigError(f"{name} must be an int from {low:,} to {high:,}, not {value!r}")


def check_number(name: str, value: object, low: float, high: float) -> None:
    """Raise `ConfigError` unless `value` is a real number in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ConfigError(f"{name} must be a number from {low:g} to {high:g}, not {value!r}")


def check_timeout(value: object) -> None:
    """Raise `ConfigError` unless `value` is a number of seconds; one below 0 has run out already."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise ConfigError(f"timeout must be a number of seconds, not {value!r}")


class AdapterConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"):
    """Base of an adapter's typed settings.

    Subclass it with the adapter's kind as the tag; validate in `__post_init__` and raise
    `ConfigError`. The same settings may be given as a dict: `{"kind": "memory", ...}`.

        class RedisConfig(AdapterConfig, frozen=True, kw_only=True, tag="redis"):
            url: str = "redis://127.0.0.1:6379/0"
    """

    @property
    def kind(self) -> str:
        """The adapter's kind: the name it is registered under."""
        return str(type(self).__struct_config__.tag)


class BatchConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a shard's worker hands a batch to the adapter: whichever comes first.

    Attributes:
        max_events: ceiling of a batch, 1..1,000,000 events.
        max_delay_ms: longest wait after a batch's first event, 0..3,600,000 ms; 0 sends at once.
    """

    max_events: int = 1024
    max_delay_ms: float = 5

    def __post_init__(self) -> None:
        check_int("batch.max_events", self.max_events, 1, 1_000_000)
        check_number("batch.max_delay_ms", self.max_delay_ms, 0, 3_600_000)


class ScalingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a bus watches its load and scales.

    Attributes:
        policy: a scaling policy's name, or a policy object.
        options: keyword arguments for a policy chosen by name.
        auto_apply: carry out what the policy decides; otherwise it only feeds `suggest_scaling`.
        interval_ms: time between two looks, 100..3,600,000 ms.
        cooldown_ms: least time between two automatic steps, 0..86,400,000 ms.
        min_shards: the monitor never goes below this, 1..1024.
        max_shards: nothing goes above this, operators included, min_shards..1024.
    """

    policy: ScalingPolicySetting = "utilization"
    options: dict[str, Any] = {}
    auto_apply: bool = True
    interval_ms: float = 1000
    cooldown_ms: float = 5000
    min_shards: int = 1
    max_shards: int = 64

    def __post_init__(self) -> None:
        if type(self.auto_apply) is not bool:
            raise ConfigError(f"scaling.auto_apply must be True or False, not {self.auto_apply!r}")
        check_number("scaling.interval_ms", self.interval_ms, 100, 3_600_000)
        check_number("scaling.cooldown_ms", self.cooldown_ms, 0, 86_400_000)
        check_int("scaling.min_shards", self.min_shards, 1, MAX_SHARDS)
        check_int("scaling.max_shards", self.max_shards, self.min_shards, MAX_SHARDS)


def _default_shards() -> int:
    return max(2, min(16, os.cpu_count() or 2))


class EventBusConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of one bus.

    Attributes:
        shards: rings and workers to begin with, 1..1024; default: CPU count, at least 2, at most 16.
        ring_capacity: events a shard's ring holds, exact, 1..16,777,216.
        batch: when a worker hands a batch to the adapter.
        backpressure: what happens at a full ring: a policy's name (`drop_oldest`, `drop_newest`,
            `block`, `sample`, or a plugin's) or a policy object, one for the whole bus.
        adapter: where events go: a plugin's typed config, its dict form `{"kind": ...}`, or a kind.
        scaling: None, or how to watch and scale.
        adapter_timeout_ms: bounds every adapter call, 1..86,400,000 ms.
        causal_wait_ms: longest time that a shard which stores nothing holds back others' events in
            causal pages, 0..3,600,000 ms.
        max_clock_drift_ms: timestamps further ahead than this are delivered but not observed.
        dead_letters: None, or the path of an NDJSON file for events that can never be stored.
    """

    shards: int = msgspec.field(default_factory=_default_shards)
    ring_capacity: int = 65_536
    batch: BatchConfig = BatchConfig()
    backpressure: BackpressureSetting = "drop_oldest"
    adapter: AdapterSetting = "memory"
    scaling: ScalingConfig | None = None
    adapter_timeout_ms: float = 30_000
    causal_wait_ms: float = 1000
    max_clock_drift_ms: float = 60_000
    dead_letters: str | None = None

    def __post_init__(self) -> None:
        check_int("shards", self.shards, 1, MAX_SHARDS)
        check_int("ring_capacity", self.ring_capacity, 1, 1 << 24)
        check_number("adapter_timeout_ms", self.adapter_timeout_ms, 1, 86_400_000)
        check_number("causal_wait_ms", self.causal_wait_ms, 0, 3_600_000)
        check_number("max_clock_drift_ms", self.max_clock_drift_ms, 0, 86_400_000)
        for name, expected in (("batch", BatchConfig), ("scaling", ScalingConfig)):
            value = getattr(self, name)
            if not isinstance(value, expected) and not (name == "scaling" and value is None):
                raise ConfigError(f"{name} must be a {expected.__name__}, not {value!r}")
        if self.dead_letters is not None and not isinstance(self.dead_letters, str | os.PathLike):
            raise ConfigError(f"dead_letters must be a path or None, not {self.dead_letters!r}")

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, env: Mapping[str, str] | None = None) -> EventBusConfig:
        """Read a TOML (or, by its ending, JSON) file; environment variables override it.

        `NETCORE_SHARDS=8`, `NETCORE_BATCH__MAX_EVENTS=512`, `NETCORE_ADAPTER__URL=...`: two
        underscores step into a table; lists and tables are given as JSON. Names that start with
        `NETCORE_TEST_` or `NETCORE_PLUGINS` mean other things and are passed over. Any other that
        names no setting is ignored, and logged with what may have been meant: the environment is
        shared, and not only by people (a service called `netcore` has others set `NETCORE_PORT`).

        Args:
            path: the file.
            env: the variables; default: the process environment.

        Raises:
            ConfigError: unreadable, malformed, an unknown key (a variable's inside a table
                included), or a value out of range; the message names file, key and value.
        """
        file = Path(path)
        import tomllib  # only files need it

        try:
            text = file.read_text(encoding="utf-8-sig")  # some editors begin a file with a byte order mark
            document = msgspec.json.decode(text) if file.suffix.lower() == ".json" else tomllib.loads(text)
        except OSError as error:
            raise ConfigError(f"cannot read {file}: {error.strerror or error}") from error
        except (UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.DecodeError) as error:
            why = error if file.stat().st_size else "it is empty; write {} for the default settings"
            raise ConfigError(f"{file} is malformed: {why}") from error
        if not isinstance(document, dict):
            raise ConfigError(f"{file} must hold a table of settings, not {type(document).__name__}")
        return cls.from_dict(document, env=os.environ if env is None else env, source=str(file))

    @classmethod
    def from_dict(
        cls, settings: Mapping[str, Any], *, env: Mapping[str, str] | None = None, source: str = "settings"
    ) -> EventBusConfig:
        """Build from plain data, e.g. a decoded file; `env` as in `load`, default: none.

        Raises:
            ConfigError: as `load`.
        """
        if not isinstance(settings, Mapping):
            raise ConfigError(f"{source} must be a table of settings, not {settings!r:.80}")
        merged = dict(settings)
        env = env or {}
        for name, guess in stray_variables(env).items():
            _log.warning("%s names no setting and is ignored%s", name, guess)
        names = [name for name in _variables(env) if _is_setting(name)]
        for name in names:
            _override(merged, name, env[name])
        if names:  # what is wrong may be in either
            source = f"{source} with {', '.join(names)}"
        try:
            return msgspec.convert(merged, cls, strict=False)
        except msgspec.ValidationError as error:
            raise ConfigError(f"{source}: {_spell_out(error)}") from error


def _variables(env: Mapping[str, str]) -> list[str]:
    return [n for n in sorted(env) if n.startswith(_ENV_PREFIX) and not n.startswith(_ENV_RESERVED)]


def _is_setting(name: str) -> bool:
    """Tell whether an environment variable's name begins with a setting of the bus."""
    return name[len(_ENV_PREFIX) :].lower().split("__")[0] in EventBusConfig.__struct_fields__


def stray_variables(env: Mapping[str, str]) -> dict[str, str]:
    """Return the `NETCORE_*` variables that name no setting, each with words of what may have been meant."""
    return {name: _guess(name) for name in _variables(env) if not _is_setting(name)}


def _guess(name: str) -> str:
    """Word what may have been meant by a variable, or nothing."""
    import difflib

    tables = {**_tables(), "adapter": ()}
    known = [*EventBusConfig.__struct_fields__, *(f"{t}__{field}" for t in tables for field in tables[t])]
    key = name[len(_ENV_PREFIX) :].lower()
    table, underscore, rest = key.partition("_")
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    if table in tables and underscore and close in ([], ["adapter"]):
        close = [f"{table}__{rest}"]  # which settings an adapter has is its plugin's business
    return f"; did you mean {_ENV_PREFIX}{close[0].upper()}?" if close else ""


def _override(settings: dict[str, Any], name: str, text: str) -> None:
    """Put the environment variable `name` at its place in `settings`."""
    *tables, key = name[len(_ENV_PREFIX) :].lower().split("__")
    place = settings
    for table in tables:
        inner = place.get(table)
        if isinstance(inner, str) and table == "adapter":
            inner = {"kind": inner}
        if inner is not None and not isinstance(inner, dict):
            raise ConfigError(f"{name} steps into {table!r}, which is {inner!r} and not a table")
        place[table] = place = dict(inner or {})
    if place is not settings and tables == ["adapter"]:
        place.setdefault("kind", "memory")
    value: Any = text
    if text[:1] in ("[", "{"):
        try:
            value = msgspec.json.decode(text)
        except msgspec.DecodeError as error:
            raise ConfigError(f"{name} is not valid JSON: {error}") from error
    place[key] = value


def _spell_out(error: msgspec.ValidationError) -> str:
    """Turn msgspec's message, which ends in ` - at `$.batch.max_events``, into `key: what`."""
    what, _, where = str(error).rpartition(" - at ")
    if not what:
        what, where = str(error), ""
    key = where.strip("`").removeprefix("$").lstrip(".")
    if found := _UNKNOWN.search(what):
        return _unknown_key(key, found[1])
    return f"{key}: {what}" if key else what


def _unknown_key(table: str, key: str) -> str:
    """Word that a table (the outermost is called "") has no such key, and what may have been meant."""
    import difflib

    known = {**_tables(), "": EventBusConfig.__struct_fields__}.get(table, ())
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    full = f"{table}.{key}".lstrip(".")
    return f"unknown key {full!r}{hint} (it has: {', '.join(known)})"


def _tables() -> dict[str, tuple[str, ...]]:
    """Return the tables within the settings of a bus, and their keys."""
    return {"batch": BatchConfig.__struct_fields__, "scaling": ScalingConfig.__struct_fields__}
