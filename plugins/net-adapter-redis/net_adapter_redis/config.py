"""The adapter's settings: typed, frozen, validated when built, never showing a credential."""

from __future__ import annotations

import re
from typing import Any, Final, Literal
from urllib.parse import parse_qsl, urlsplit

import msgspec

from netcore import AdapterConfig, ConfigError, mask_credentials

__all__ = ["RedisConfig"]

_SECRET: Final = frozenset({"username", "password", "ssl_password"})
_QUERY: Final = frozenset({"db", "username", "password", "client_name", "socket_keepalive"})
_TLS: Final = (
    "ssl_ca_certs",
    "ssl_ca_path",
    "ssl_ca_data",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_password",
    "ssl_cert_reqs",
    "ssl_check_hostname",
    "ssl_min_version",
    "ssl_ciphers",
)


class RedisConfig(AdapterConfig, frozen=True, kw_only=True, tag="redis", repr_omit_defaults=True):
    """Where the Redis server is, what its keys are called, and how much of the streams it keeps.

    Attributes:
        url: `redis://`, `rediss://` (TLS) or `unix://`, with user, password and database as
            redis-py takes them; options that belong to single commands are refused.
        username: instead of a user in the URL.
        password: instead of a password in the URL.
        prefix: start of every key: `{prefix}:shard:{n}`. Buses with one prefix share streams.
        layout: "event" stores one entry an event, shared with other writers and readers;
            "packed" one entry a batch: several times faster, for readers that know it. Reading
            recognises both, so a running deployment can switch.
        max_events: events a stream keeps at least, or None: all. Trimmed after an append,
            approximately: some more may stay (see the README).
        max_age_s: seconds for which events stay at least, or None: for ever. Applied at appends.
        timeout_ms: bounds connecting and each command, 1..3,600,000 ms; the bus's
            `adapter_timeout_ms` does too.
        pool_size: most connections to a server, 3..1024: one writes, one reads, the others are
            for polls that wait at the same time.
        dedup_ttl_s: seconds for which the server remembers a producer that writes nothing, 60 s to
            ten years; a retry that comes later than this is not recognised.
        cluster: talk to a Redis Cluster, of which `url` names one member.
        ssl_ca_certs: these and the following as redis-py takes them; they need `rediss://`.
        ssl_ca_path: folder of CA certificates.
        ssl_ca_data: CA certificates, PEM.
        ssl_certfile: the client's certificate.
        ssl_keyfile: its key.
        ssl_password: password of the key.
        ssl_cert_reqs: "required", "optional" or "none".
        ssl_check_hostname: whether the certificate must be for the host.
        ssl_min_version: an `ssl.TLSVersion` as int.
        ssl_ciphers: OpenSSL cipher list.

    Raises:
        ConfigError: a value out of range; the message names it, credentials masked.
    """

    url: str = "redis://127.0.0.1:6379/0"
    username: str | None = None
    password: str | None = None
    prefix: str = "net"
    layout: Literal["event", "packed"] = "event"
    max_events: int | None = None
    max_age_s: float | None = None
    timeout_ms: float = 5_000
    pool_size: int = 8
    dedup_ttl_s: float = 7 * 86_400
    cluster: bool = False
    ssl_ca_certs: str | None = None
    ssl_ca_path: str | None = None
    ssl_ca_data: str | None = None
    ssl_certfile: str | None = None
    ssl_keyfile: str | None = None
    ssl_password: str | None = None
    ssl_cert_reqs: Literal["required", "optional", "none"] | None = None
    ssl_check_hostname: bool | None = None
    ssl_min_version: int | None = None
    ssl_ciphers: str | None = None

    def __post_init__(self) -> None:
        self._check_url()
        if self.layout not in ("event", "packed"):
            raise ConfigError(f'layout must be "event" or "packed", not {self.layout!r}')
        if not isinstance(self.prefix, str) or not re.fullmatch(r"[!-~]{1,200}", self.prefix):
            raise ConfigError(f"prefix must be 1 to 200 visible ASCII characters, not {self.prefix!r}")
        if re.sub(r"\{[^{}]+\}", "", self.prefix, count=1).count("{") or (
            "}" in re.sub(r"\{[^{}]+\}", "", self.prefix, count=1)
        ):
            raise ConfigError(
                f"prefix {self.prefix!r} has a brace that is no hash tag; use none, or one {{tag}}"
            )
        _check("max_events", self.max_events, 1, 1 << 53, whole=True, optional=True)
        _check("max_age_s", self.max_age_s, 0.001, 1e10, optional=True)
        _check("timeout_ms", self.timeout_ms, 1, 3_600_000)
        _check("pool_size", self.pool_size, 3, 1024, whole=True)
        _check("dedup_ttl_s", self.dedup_ttl_s, 60, 315_360_000)

    def _check_url(self) -> None:
        if not isinstance(self.url, str):
            raise ConfigError(f"url must be text, not {type(self.url).__name__}")
        shown = mask_credentials(self.url)
        try:
            parts = urlsplit(self.url)
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"url {shown!r} is malformed: wrong host or port") from error
        if parts.scheme not in ("redis", "rediss", "unix"):
            raise ConfigError(f"url must start with redis://, rediss:// or unix://, not {shown!r}")
        if port == 0 or (parts.scheme == "unix" and not parts.path):
            raise ConfigError(f"url {shown!r} names no place to connect to")
        if parts.scheme != "unix" and not re.fullmatch(r"/?\d{0,9}/?", parts.path):
            raise ConfigError(f"url {shown!r}: what follows the host must be a database number")
        options = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
        for name in options:
            if name not in _QUERY and name not in _TLS:
                raise ConfigError(f"url option {name!r} is not supported; use the fields of RedisConfig")
        given = [*(name for name in options if name in _TLS), *self.tls_options()]
        if parts.scheme != "rediss" and given:
            raise ConfigError(f"{', '.join(given)} need a url that starts with rediss://")
        database = self.database()
        if self.cluster and (parts.scheme == "unix" or database):
            raise ConfigError(f"a cluster has one database, 0, and is reached by TCP: url {shown!r}")

    def database(self) -> int:
        """Return the number of the database that the URL chooses."""
        parts = urlsplit(self.url)
        chosen = dict(parse_qsl(parts.query)).get("db")
        if chosen is None and parts.scheme != "unix":
            chosen = parts.path.strip("/")
        if chosen and not chosen.isdigit():
            raise ConfigError(f"url option db must be a number, not {chosen!r}")
        return int(chosen or 0)

    def tls_options(self) -> dict[str, Any]:
        """Return those of the `ssl_*` fields that are set."""
        return {name: value for name in _TLS if (value := getattr(self, name)) is not None}

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        shown: list[tuple[str, Any]] = []
        for field in msgspec.structs.fields(self):
            value = getattr(self, field.name)
            if value == field.default:
                continue
            if field.name in _SECRET:
                value = "***"
            elif field.name == "url":
                value = mask_credentials(value)
            shown.append((field.name, value))
        return shown

    def __repr__(self) -> str:
        return f"RedisConfig({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"


def _check(
    name: str, value: object, low: float, high: float, *, whole: bool = False, optional: bool = False
) -> None:
    if optional and value is None:
        return
    kinds: tuple[type, ...] = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:  # type: ignore[operator]
        what = "an int" if whole else "a number"
        none = ", or None" if optional else ""
        raise ConfigError(f"{name} must be {what} from {low:,} to {high:,}{none}, not {value!r}")
