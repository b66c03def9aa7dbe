"""From the adapter's settings to the options of one connection attempt of nats-py."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import msgspec
import nats.errors

from net_adapter_jetstream.config import JetStreamConfig
from netcore import AdapterRefusedError

__all__ = ["check_files", "check_tls", "options_for"]

_FILES: Final = ("credentials_file", "nkey_seed_file", "tls_ca_file", "tls_cert_file", "tls_key_file")


def check_files(config: JetStreamConfig) -> None:
    """Check that the files that the settings name are there.

    Raises:
        AdapterRefusedError: one is not.
    """
    for name in _FILES:
        path = getattr(config, name)
        if path is not None and not Path(path).is_file():
            raise AdapterRefusedError(f"{name}={path!r}: there is no such file")


def options_for(config: JetStreamConfig, address: str) -> dict[str, Any]:
    """Return the arguments of `Client.connect` for one attempt at one address.

    Credentials go in as arguments: nats-py would send those of a URL without decoding `%xx`.

    Raises:
        OSError, ssl.SSLError: a certificate file can't be used.
    """
    parts = urlsplit(address)
    user = config.user if config.user is not None else parts.username
    password = config.password if config.password is not None else parts.password
    token = config.token
    if user is not None and password is None and token is None:
        user, token = None, user
    in_url = config.user is None and config.token is None
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    options: dict[str, Any] = {
        "servers": [f"{parts.scheme}://{host}:{parts.port or 4222}"],
        "name": "netcore",
        # One attempt: `Link` does the rest.
        "allow_reconnect": False,
        "max_reconnect_attempts": 1,
        "reconnect_time_wait": 0,
        "connect_timeout": config.timeout_ms / 1000,
        # Never buffer for a later connection, never block for room.
        "pending_size": 0,
        "inbox_prefix": config.inbox_prefix,
        "user_credentials": config.credentials_file,
        "nkeys_seed": config.nkey_seed_file,
    }
    for name, value in (("user", user), ("password", password), ("token", token)):
        options[name] = unquote(value) if value is not None and in_url else value
    if config.tls_first:
        options["tls_handshake_first"] = True
    if parts.scheme == "tls" or config.tls_ca_file or config.tls_cert_file:
        context = ssl.create_default_context(cafile=config.tls_ca_file)
        if config.tls_cert_file:
            context.load_cert_chain(config.tls_cert_file, config.tls_key_file)
        options["tls"] = context
    return options


async def check_tls(address: str) -> None:
    """Look at a server's greeting: the public client would go on in plain text where TLS was asked for.

    Raises:
        nats.errors.SecureConnWantedError: the server offers no TLS.
        OSError: it does not answer.
    """
    parts = urlsplit(address)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 4222)
    try:
        info = msgspec.json.decode((await reader.readline()).partition(b" ")[2] or b"{}")
    except (ValueError, msgspec.DecodeError) as error:
        raise OSError(f"{parts.hostname} does not greet as a NATS server does") from error
    finally:
        writer.transport.abort()
    if not info.get("tls_required"):
        raise nats.errors.SecureConnWantedError
