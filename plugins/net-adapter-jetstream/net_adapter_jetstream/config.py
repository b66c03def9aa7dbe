"""The adapter's settings."""

from __future__ import annotations

import re
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from netcore import AdapterConfig, ConfigError, mask_credentials

__all__ = ["JetStreamConfig"]

_PREFIX: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_DOMAIN: Final = re.compile(r"[A-Za-z0-9_-]{0,64}")
_INBOX: Final = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_SECRET: Final = frozenset({"user", "password", "token"})
_YEARS_S: Final = 3_153_600_000  # a hundred of them


class JetStreamConfig(AdapterConfig, frozen=True, kw_only=True, tag="jetstream"):
    """Where the streams live and how they are kept. Credentials never show in its `repr`.

    Attributes:
        url: one or several servers: `nats://[user:password@ | token@]host[:port]`, `tls://...`; a list,
            or one text with commas. One of a cluster is enough, several help while it is down.
        prefix: names the store: stream `{prefix}_shard_{n}`, subject `{prefix}.shard.{n}`; letters,
            digits, `-` and `_`.
        domain: JetStream domain to use (leaf nodes), or "".
        replicas: copies of each stream that this adapter creates, 1..5.
        storage: `file` or `memory`, of each stream that this adapter creates.
        max_events: retention: messages a stream, or None: as the stream has it, no limit if new.
            In the packed layout a message is a batch.
        max_bytes: retention: bytes a stream, or None, as above.
        max_age_s: retention: seconds, or None, as above.
        duplicate_window_s: how long the server remembers message ids, seconds, of each stream that this
            adapter creates; an existing stream keeps a longer one. A second safeguard, which storing
            once does not rest on: each id costs the server memory for that long.
        timeout_ms: bound on connecting and on each request, 50..600,000 ms.
        layout: `event` stores one message an event; `packed` one a batch, several times faster.
            Readers take both, in one stream too.
        user: instead of in `url`.
        password: with `user`.
        token: instead of in `url`.
        credentials_file: path of a `.creds` file (JWT and seed).
        nkey_seed_file: path of a file with an nkey seed.
        tls_ca_file: authority to trust instead of the system's.
        tls_cert_file: client certificate, PEM.
        tls_key_file: its key, PEM.
        tls_first: do the TLS handshake before the server's greeting (`handshake_first`).
        inbox_prefix: where replies go; for accounts that restrict `_INBOX`.
    """

    url: str | list[str] = "nats://127.0.0.1:4222"
    prefix: str = "net"
    domain: str = ""
    replicas: int = 1
    storage: Literal["file", "memory"] = "file"
    max_events: int | None = None
    max_bytes: int | None = None
    max_age_s: float | None = None
    duplicate_window_s: float = 120
    timeout_ms: float = 5000
    layout: Literal["event", "packed"] = "event"
    user: str | None = None
    password: str | None = None
    token: str | None = None
    credentials_file: str | None = None
    nkey_seed_file: str | None = None
    tls_ca_file: str | None = None
    tls_cert_file: str | None = None
    tls_key_file: str | None = None
    tls_first: bool = False
    inbox_prefix: str = "_INBOX"

    def __post_init__(self) -> None:
        for address in self.servers():
            _check_url(address)
        _check_text("prefix", self.prefix, _PREFIX)
        _check_text("domain", self.domain, _DOMAIN)
        _check_text("inbox_prefix", self.inbox_prefix, _INBOX)
        _check_choice("storage", self.storage, ("file", "memory"))
        _check_choice("layout", self.layout, ("event", "packed"))
        _check_number("replicas", self.replicas, 1, 5, whole=True)
        _check_number("timeout_ms", self.timeout_ms, 50, 600_000)
        _check_number("duplicate_window_s", self.duplicate_window_s, 0.1, _YEARS_S)
        for name in ("max_events", "max_bytes"):
            if (value := getattr(self, name)) is not None:
                _check_number(name, value, 1, 1 << 62, whole=True)
        if self.max_age_s is not None:
            _check_number("max_age_s", self.max_age_s, 0.1, _YEARS_S)
        if self.password is not None and self.user is None:
            raise ConfigError("password needs user; set both, or neither")
        if self.tls_key_file is not None and self.tls_cert_file is None:
            raise ConfigError("tls_key_file needs tls_cert_file; set both, or neither")

    def servers(self) -> list[str]:
        """Return the addresses, one each, a missing scheme being `nats://`.

        Raises:
            ConfigError: there is none.
        """
        given = [self.url] if isinstance(self.url, str) else list(self.url)
        parts = [part.strip() for text in given for part in str(text).split(",")]
        found = [part if "://" in part else f"nats://{part}" for part in parts if part]
        if not found:
            raise ConfigError(f"url must name a server such as nats://127.0.0.1:4222, not {self.url!r}")
        return found

    @property
    def shown_servers(self) -> str:
        """The addresses, credentials masked, for messages."""
        return ", ".join(mask_credentials(address) for address in self.servers())

    def __repr__(self) -> str:
        inner = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"{type(self).__name__}({inner})"

    def __rich_repr__(self) -> Any:
        """Yield the fields as they may be shown: for `rich`, and for `repr`."""
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if name == "url":
                value = self.shown_servers
            elif name in _SECRET and value is not None:
                value = "***"
            yield name, value


def _check_url(address: str) -> None:
    shown = mask_credentials(address)
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError:
        # Not chained: the original message may quote the password.
        raise ConfigError(f"url {shown!r} is not host:port, e.g. nats://127.0.0.1:4222") from None
    if parts.scheme not in ("nats", "tls"):
        raise ConfigError(f"url {shown!r} must begin with nats:// or tls://")
    if not parts.hostname or port == 0 or parts.path.strip("/") or parts.query or parts.fragment:
        raise ConfigError(f"url {shown!r} names no host, or more than host, port and credentials")


def _check_text(name: str, value: object, pattern: re.Pattern[str]) -> None:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ConfigError(f"{name} must match {pattern.pattern}, not {value!r}")


def _check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")


def _check_number(name: str, value: object, low: float, high: float, *, whole: bool = False) -> None:
    kinds = int if whole else int | float
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        kind = "an int" if whole else "a number"
        raise ConfigError(f"{name} must be {kind} from {low:,} to {high:,}, not {value!r}")
