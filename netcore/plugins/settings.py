"""An adapter's settings, from any of the forms that a bus takes to its typed config."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from netcore.config import AdapterConfig, mask_credentials
from netcore.errors import ConfigError

if TYPE_CHECKING:
    from netcore.config import AdapterSetting
    from netcore.plugins.registry import Registry

__all__ = ["adapter_config", "show_settings"]

_SECRET: Final = re.compile(r"(?i)pass|secret|token|key|seed|credential|auth")
_UNKNOWN: Final = re.compile(r"unknown field `(.*?)`")


def adapter_config(registry: Registry, setting: AdapterSetting) -> AdapterConfig:
    """Make the typed config of the adapter that `setting` names; see `Registry.adapter_config`."""
    if isinstance(setting, str):
        setting = {"kind": setting}
    if isinstance(setting, AdapterConfig):
        expected = registry.adapter(setting.kind).Config
        if not isinstance(setting, expected):
            raise ConfigError(
                f"adapter: {_path(type(setting))} is not the settings of the adapter {setting.kind!r}; "
                f"that takes {_path(expected)}"
            )
        return setting
    if not isinstance(setting, Mapping):
        raise ConfigError(
            "adapter must be a kind such as 'memory', a table with a 'kind', or an adapter's config "
            f"object, not {type(setting).__name__}"
        )
    kind = setting.get("kind")
    if not isinstance(kind, str):
        known = ", ".join(map(str, setting)) or "nothing"
        raise ConfigError(f"adapter needs a 'kind' (a str such as 'memory'); it has: {known}")
    return _convert(dict(setting), kind, registry.adapter(kind).Config)


def show_settings(config: AdapterConfig) -> dict[str, Any]:
    """Return an adapter's settings as plain data fit to be shown: credentials become `***`."""
    shown: dict[str, Any] = _hide(msgspec.to_builtins(config))
    return shown


def _hide(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: "***" if v and _SECRET.search(str(k)) else _hide(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_hide(item) for item in value]
    return mask_credentials(value) if isinstance(value, str) else value


def _convert(settings: dict[Any, Any], kind: str, config: type[AdapterConfig]) -> AdapterConfig:
    try:
        return msgspec.convert(settings, config, strict=False)
    except msgspec.ValidationError as error:
        # A ConfigError of the plugin's own `__post_init__` arrives wrapped; its words are better.
        own = error.__cause__ if isinstance(error.__cause__, ConfigError) else None
        said = str(own) if own else _explain(error, settings, config)
        raise ConfigError(f"adapter {kind!r}: {mask_credentials(said)}") from (own or error)


def _explain(error: msgspec.ValidationError, settings: dict[Any, Any], config: type[AdapterConfig]) -> str:
    """Turn msgspec's message, which ends in ` - at `$.port``, into one that names key and value."""
    what, _, where = str(error).rpartition(" - at ")
    path = where.strip("`").removeprefix("$").lstrip(".")
    if not what:
        what, path = str(error), ""
    if found := _UNKNOWN.search(what):
        return _unknown_key(f"{path}.{found[1]}".lstrip("."), found[1], path, config)
    if not path:
        return what
    value: Any = settings
    for part in re.findall(r"[^.\[\]]+", path):
        try:
            value = value[int(part)] if isinstance(value, list | tuple) else value[part]
        except (KeyError, IndexError, TypeError, ValueError):
            return f"{path}: {what}"
    shown = "***" if _SECRET.search(path) else _masked(value)
    if what.startswith("Invalid enum value") and (choices := _choices(config, path)):
        return f"{path} must be one of {choices}, not {shown}"
    return f"{path}: {what}: {shown}" if ", got" in what else f"{path}: {what}, not {shown}"


def _choices(config: type[AdapterConfig], key: str) -> str:
    """Return the values that a field may have, or nothing if that cannot be told."""
    kind = typing.get_type_hints(config).get(key)
    parts = [part for part in (kind, *typing.get_args(kind)) if typing.get_origin(part) is typing.Literal]
    return ", ".join(repr(value) for part in parts for value in typing.get_args(part))


def _unknown_key(full: str, key: str, table: str, config: type[AdapterConfig]) -> str:
    if table:  # a nested table: which keys it has is its own type's business
        return f"unknown key {full!r}"
    known = [field.encode_name for field in msgspec.structs.fields(config)]
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"unknown key {full!r}{hint} (it has: {', '.join(known) or 'no settings'})"


def _masked(value: object) -> str:
    """Show a value, without what looks like a credential."""
    if isinstance(value, Mapping):
        inner = (f"{k!r}: {'***' if _SECRET.search(str(k)) else _masked(v)}" for k, v in value.items())
        return "{" + ", ".join(inner) + "}"
    text = mask_credentials(repr(value))
    return text if len(text) <= 80 else text[:77] + "..."


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
