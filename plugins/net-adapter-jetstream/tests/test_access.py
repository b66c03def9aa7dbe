"""Logins, permissions, TLS, and servers without JetStream: refused with the remedy, never a stall."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import nkeys  # type: ignore[import-untyped]
import pytest
from net_adapter_jetstream import JetStreamAdapter, JetStreamConfig

from netcore import AdapterRefusedError, Batch, ConfigError, Stream, TransientAdapterError
from netcore.testing.contract import Writer, adapter_context, drain
from netcore.testing.proxy import FaultyProxy
from netcore.testing.servers import NatsServer

pytestmark = pytest.mark.anyio

OpenAdapter = Callable[..., Awaitable[JetStreamAdapter]]

_PASSWORD = "p@ss/w:rd%"  # of a throw-away server
_USER = f'authorization {{ user: me, password: "{_PASSWORD}" }}'


async def refused(url: str, **settings: Any) -> str:
    """Open, expecting a refusal that leaves no task; return its text."""
    adapter = JetStreamAdapter(JetStreamConfig(url=url, timeout_ms=2000, **settings))
    before = asyncio.all_tasks()
    with pytest.raises(AdapterRefusedError) as raised:
        await adapter.open(adapter_context())
    left = asyncio.all_tasks() - before
    assert not [task for task in left if "FaultyProxy" not in repr(task)]
    await adapter.close()
    return str(raised.value)


async def works(adapter: JetStreamAdapter) -> bool:
    """Write an event and read it back."""
    await Writer(adapter).write([b"1"])
    return len(await drain(adapter)) == 1


async def append_once_allowed(adapter: JetStreamAdapter, batch: Batch) -> None:
    """Append again and again, as a bus would, until the server's new configuration lets it."""
    async with asyncio.timeout(20):
        while True:
            try:
                return await adapter.append(batch)
            except (AdapterRefusedError, TransientAdapterError):
                await asyncio.sleep(0.02)


async def test_login_by_url_and_by_settings(open_adapter: OpenAdapter) -> None:
    """Special characters are escaped in a URL and taken as they are in settings."""
    with NatsServer(config=_USER) as server:
        escaped = server.url.replace("//", "//me:p%40ss%2Fw%3Ard%25@")
        assert await works(await open_adapter(escaped))
        assert await works(await open_adapter(server.url, user="me", password=_PASSWORD, prefix="y"))
        text = await refused(server.url.replace("//", "//me:wrong-secret@"))
        assert "check user, password" in text
        assert "wrong-secret" not in text
        assert "check user, password" in await refused(server.url)


async def test_login_by_token(open_adapter: OpenAdapter) -> None:
    """In the URL or as a setting."""
    with NatsServer(config='authorization { token: "s3cret" }') as server:
        assert await works(await open_adapter(server.url.replace("//", "//s3cret@")))
        assert await works(await open_adapter(server.url, token="s3cret", prefix="y"))
        assert "token" in await refused(server.url, token="other")


async def test_login_by_nkey(open_adapter: OpenAdapter, tmp_path: Path) -> None:
    """A seed in a file; one that is missing is named."""
    seed = nkeys.encode_seed(bytes(range(32)), nkeys.PREFIX_BYTE_USER)
    public = nkeys.from_seed(bytearray(seed)).public_key.decode()
    file = tmp_path / "seed.nk"
    file.write_bytes(seed)
    with NatsServer(config=f"authorization {{ users: [ {{ nkey: {public} }} ] }}") as server:
        assert await works(await open_adapter(server.url, nkey_seed_file=str(file)))
        other = tmp_path / "other.nk"
        other.write_bytes(nkeys.encode_seed(bytes(range(1, 33)), nkeys.PREFIX_BYTE_USER))
        assert "nkey_seed_file" in await refused(server.url, nkey_seed_file=str(other))
        missing = str(tmp_path / "none.nk")
        assert missing in await refused(server.url, nkey_seed_file=missing)


async def test_login_by_nkey_without_its_library_names_the_command(
    nats: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message is the pip line."""
    file = tmp_path / "seed.nk"
    file.write_bytes(nkeys.encode_seed(bytes(range(32)), nkeys.PREFIX_BYTE_USER))
    monkeypatch.setitem(sys.modules, "nkeys", None)
    assert "pip install 'net-adapter-jetstream[nkeys]'" in await refused(nats.url, nkey_seed_file=str(file))


def _key(first: int, kind: int) -> tuple[Any, str]:
    """Return a key pair made from bytes that count up from `first`, and its public key."""
    pair = nkeys.from_seed(bytearray(nkeys.encode_seed(bytes(range(first, first + 32)), kind)))
    return pair, pair.public_key.decode()


def _signed(issuer: Any, subject: str, name: str, nats: dict[str, Any]) -> str:
    """Return a JSON web token as NATS wants it."""

    def part(value: bytes) -> str:
        return base64.urlsafe_b64encode(value).rstrip(b"=").decode()

    claims = {"iss": issuer.public_key.decode(), "sub": subject, "name": name, "nats": nats, "iat": 1}
    claims["jti"] = name
    head = json.dumps({"typ": "JWT", "alg": "ed25519-nkey"}).encode()
    text = f"{part(head)}.{part(json.dumps(claims).encode())}"
    return f"{text}.{part(issuer.sign(text.encode()))}"


async def test_login_by_credentials_file(open_adapter: OpenAdapter, tmp_path: Path) -> None:
    """A `.creds` file of an operator's account; nothing else gets in."""
    operator, operator_key = _key(0, nkeys.PREFIX_BYTE_OPERATOR)
    account, account_key = _key(32, nkeys.PREFIX_BYTE_ACCOUNT)
    system_key = _key(64, nkeys.PREFIX_BYTE_ACCOUNT)[1]
    _, user_key = _key(96, nkeys.PREFIX_BYTE_USER)
    limits = {"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "conn": -1, "leaf": -1}
    limits |= {"mem_storage": -1, "disk_storage": -1, "streams": -1, "consumer": -1, "wildcards": True}
    operator_jwt = _signed(operator, operator_key, "o", {"type": "operator", "version": 2})
    accounts = {
        key: _signed(operator, key, "a", {"type": "account", "version": 2, "limits": given})
        for key, given in ((account_key, limits), (system_key, {"subs": -1, "conn": -1, "payload": -1}))
    }
    preload = "\n".join(f"{key}: {token}" for key, token in accounts.items())
    user = {"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1}
    seed = nkeys.encode_seed(bytes(range(96, 128)), nkeys.PREFIX_BYTE_USER).decode()
    file = tmp_path / "me.creds"
    file.write_text(
        f"-----BEGIN NATS USER JWT-----\n{_signed(account, user_key, 'u', user)}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )
    config = (
        f"operator: {operator_jwt}\nsystem_account: {system_key}\n"
        f"resolver: MEMORY\nresolver_preload: {{\n{preload}\n}}"
    )
    with NatsServer(config=config) as server:
        assert await works(await open_adapter(server.url, credentials_file=str(file)))
        assert "credentials_file" in await refused(server.url)


@pytest.mark.parametrize("fast", [True, False])
async def test_tls_is_verified_and_never_downgraded(
    open_adapter: OpenAdapter, monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    """A trusted authority is needed; a server without TLS gets no credentials."""
    monkeypatch.setattr(JetStreamAdapter, "fast", fast)
    with NatsServer(tls=True) as server:
        assert server.certificates is not None
        ca = str(server.certificates.ca)
        assert await works(await open_adapter(server.url, tls_ca_file=ca))
        assert "not trusted" in await refused(server.url)
    with NatsServer(config=_USER) as plain:
        async with FaultyProxy(plain.host, plain.port) as proxy:
            text = await refused(f"tls://me:secret@{proxy.host}:{proxy.port}")
            assert "offers no TLS" in text
            assert proxy.bytes_to_server == 0


async def test_server_without_jetstream_is_refused() -> None:
    """With the switch to turn it on."""
    with NatsServer(jetstream=False) as server:
        assert "-js" in await refused(server.url)


async def test_account_without_jetstream_is_refused() -> None:
    """JetStream is on, but not for this account."""
    accounts = (
        "accounts { A: { jetstream: enabled, users: [ { user: a, password: a } ] }, "
        "B: { users: [ { user: b, password: b } ] } }"
    )
    with NatsServer(config=accounts) as server:
        assert "enable" in await refused(server.url, user="b", password="b")


async def test_permission_to_publish_missing_is_refused_at_once_and_mended() -> None:
    """The subject is named without waiting for a time-out; granted, the same batch is stored."""

    def users(denied: str) -> str:
        rights = f'permissions: {{ publish: {{ allow: ">", deny: "{denied}" }} }}'
        return f"authorization {{ users: [ {{ user: me, password: me, {rights} }} ] }}"

    with NatsServer(config=users("net.shard.>")) as server:
        config = JetStreamConfig(url=server.url, user="me", password="me", timeout_ms=20_000)
        adapter = JetStreamAdapter(config)
        await adapter.open(adapter_context())
        writer = Writer(adapter)
        batch = writer.batch([b"1", b"2"])
        began = time.monotonic()
        with pytest.raises(AdapterRefusedError, match=r"net\.shard\.0"):
            await adapter.append(batch)
        assert time.monotonic() - began < 5
        server.config = users("nothing")
        server.reload()
        await append_once_allowed(adapter, batch)
        assert len(await drain(adapter)) == 2
        await adapter.close()


async def test_permission_to_read_missing_is_refused_at_once() -> None:
    """A read that the account may not make names the subject."""
    rights = 'permissions: { publish: { allow: ">", deny: "$JS.API.DIRECT.GET.>" } }'
    with NatsServer(
        config=f"authorization {{ users: [ {{ user: me, password: me, {rights} }} ] }}"
    ) as server:
        config = JetStreamConfig(url=server.url, user="me", password="me", timeout_ms=20_000)
        adapter = JetStreamAdapter(config)
        await adapter.open(adapter_context())
        await Writer(adapter).write([b"1"])
        began = time.monotonic()
        with pytest.raises(AdapterRefusedError, match=r"direct\.get"):
            await adapter.read(Stream(0), None, 10)
        assert time.monotonic() - began < 5
        await adapter.close()


async def test_login_revoked_while_running_is_refused_and_recovers(
    open_adapter: OpenAdapter, until: Callable[[Callable[[], bool]], Awaitable[None]]
) -> None:
    """The stock client would give up for good; the adapter says why it waits, and comes back."""
    with NatsServer(config=_USER) as server:
        adapter = await open_adapter(server.url, user="me", password=_PASSWORD)
        writer = Writer(adapter)
        await writer.write([b"1"])
        server.config = _USER.replace("me,", "you,")
        server.reload()
        await until(lambda: "refuses the login" in str(adapter.stats()["last_error"]))
        batch = writer.batch([b"2"])
        with pytest.raises(AdapterRefusedError, match="check user, password"):
            await adapter.append(batch)
        assert not (await adapter.health()).ok
        server.config = _USER
        server.reload()
        await append_once_allowed(adapter, batch)
        assert len(await drain(adapter)) == 2


async def test_second_server_is_used_when_the_first_is_gone(
    nats: NatsServer, open_adapter: OpenAdapter
) -> None:
    """Several addresses, one of which answers."""
    assert await works(await open_adapter(["nats://127.0.0.1:1", nats.url]))


def test_config_shows_no_credentials() -> None:
    """Neither in the repr nor in error messages."""
    config = JetStreamConfig(
        url=["nats://me:s3cret@a:1", "s3cret@b"],
        password="s3cret",
        user="s3cret",
        token="s3cret",
    )
    assert "s3cret" not in repr(config)
    assert "nats://***@a:1, nats://***@b" in repr(config)
    with pytest.raises(ConfigError) as raised:
        JetStreamConfig(url="nats://me:s3cret@host:99999")
    assert "s3cret" not in str(raised.value)
    assert raised.value.__cause__ is None


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"url": "redis://x"}, "url"),
        ({"url": ""}, "url"),
        ({"url": []}, "url"),
        ({"url": "nats://h:0"}, "url"),
        ({"url": "nats://h/path"}, "url"),
        ({"prefix": "a.b"}, "prefix"),
        ({"prefix": ""}, "prefix"),
        ({"prefix": "a*"}, "prefix"),
        ({"domain": "a b"}, "domain"),
        ({"replicas": 0}, "replicas"),
        ({"replicas": True}, "replicas"),
        ({"storage": "tape"}, "storage"),
        ({"layout": "tight"}, "layout"),
        ({"timeout_ms": 1}, "timeout_ms"),
        ({"max_events": 0}, "max_events"),
        ({"max_bytes": 1.5}, "max_bytes"),
        ({"max_age_s": 0}, "max_age_s"),
        ({"duplicate_window_s": -1}, "duplicate_window_s"),
        ({"password": "x"}, "user"),
        ({"tls_key_file": "x"}, "tls_cert_file"),
        ({"inbox_prefix": "a.>"}, "inbox_prefix"),
    ],
)
def test_config_out_of_range_is_refused(settings: dict[str, Any], named: str) -> None:
    """The message names the setting."""
    with pytest.raises(ConfigError, match=named):
        JetStreamConfig(**settings)


def test_identity_names_prefix_and_domain() -> None:
    """And no address."""
    assert JetStreamAdapter(JetStreamConfig(prefix="p")).identity() == "jetstream:p"
    assert JetStreamAdapter(JetStreamConfig(prefix="p", domain="hub")).identity() == "jetstream:p@hub"


async def test_domain_is_used(open_adapter: OpenAdapter) -> None:
    """All requests go to the domain's API; a wrong one is refused."""
    with NatsServer(config="") as server:
        # The kit's server has no domain of its own: its JetStream block is written by it.
        server.stop()
        text = server._write_config().read_text()
        path = server.folder / "domain.conf"
        path.write_text(text.replace("jetstream {", 'jetstream { domain: "hub", '))
        server.command = lambda: [str(server.binary), "-c", str(path)]
        server.start()
        assert await works(await open_adapter(server.url, domain="hub"))
        assert "domain 'spoke'" in await refused(server.url, domain="spoke")
