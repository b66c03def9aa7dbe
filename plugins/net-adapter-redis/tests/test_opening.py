"""Opening, accounts, TLS, clusters: what is connected to, and what is refused with which words."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import tomllib
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import redis.crc
from net_adapter_redis import RedisAdapter, RedisConfig
from net_adapter_redis.driver import KNOWN

from netcore.contracts.adapter import ReadRequest, ShardPage, Stream
from netcore.errors import (
    AdapterClosedError,
    AdapterRefusedError,
    ConfigError,
    TransientAdapterError,
)
from netcore.testing.contract import Writer, adapter_context, drain
from netcore.testing.servers import RedisCluster, RedisServer, ServerStartError, free_port

pytestmark = pytest.mark.anyio
Opened = Callable[..., Awaitable[RedisAdapter]]


def payloads(count: int, start: int = 0) -> list[bytes]:
    """Return `count` different payloads."""
    return [b'{"n":%d}' % index for index in range(start, start + count)]


async def assert_nothing_left(call: Callable[[], Awaitable[object]]) -> None:
    """Run a call and check that it leaves no task behind (sockets would warn)."""
    before = asyncio.all_tasks()
    await call()
    assert asyncio.all_tasks() == before


async def test_open_against_nothing_fails_with_host_and_port() -> None:
    """At once where the port is closed; nothing is left behind, and closing is harmless."""
    port = free_port()
    adapter = RedisAdapter(RedisConfig(url=f"redis://me:s3cret@127.0.0.1:{port}/0", timeout_ms=500))

    async def fail() -> None:
        with pytest.raises(TransientAdapterError, match=rf"127\.0\.0\.1:{port}.*; nothing listens") as caught:
            await adapter.open(adapter_context())
        assert "s3cret" not in str(caught.value)
        assert str(caught.value).count("Connect call failed") == 1

    await assert_nothing_left(fail)
    with pytest.raises(AdapterClosedError, match="not open"):
        await adapter.streams()
    await adapter.close()


async def test_open_against_silence_fails_within_the_timeout() -> None:
    """A listener that never answers costs `timeout_ms`, no more."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        adapter = RedisAdapter(RedisConfig(url=f"redis://127.0.0.1:{port}", timeout_ms=200))

        async def fail() -> None:
            with pytest.raises(TransientAdapterError, match=rf"127\.0\.0\.1:{port}.* within 0\.2 s"):
                await adapter.open(adapter_context())

        began = asyncio.get_running_loop().time()
        await assert_nothing_left(fail)
        assert 0.15 < asyncio.get_running_loop().time() - began < 2


async def test_open_unknown_host_is_transient_and_named() -> None:
    """A name that does not resolve may resolve later."""
    adapter = RedisAdapter(RedisConfig(url="redis://no-such-host.invalid:6399", timeout_ms=2_000))
    with pytest.raises(TransientAdapterError, match=r"no-such-host\.invalid:6399.*mend the host in the url"):
        await adapter.open(adapter_context())


async def test_open_with_an_option_in_the_url_of_another_type_is_a_wrong_setting() -> None:
    """Whichever redis-py reads it; credentials are not shown."""
    adapter = RedisAdapter(RedisConfig(url="rediss://me:s3cret@h/0?ssl_min_version=new"))
    with pytest.raises(ConfigError, match=r"url 'rediss://\*\*\*@h/0\?ssl_min_version=new' cannot be used"):
        await adapter.open(adapter_context())


async def test_open_socket_that_is_not_there_is_transient_and_named(tmp_path: Path) -> None:
    """The server may start later; until then the path is what to look at."""
    path = tmp_path / "redis.sock"
    adapter = RedisAdapter(RedisConfig(url=f"unix://{path}"))
    with pytest.raises(TransientAdapterError, match=rf"Redis at {path}: .*; no such socket"):
        await adapter.open(adapter_context())


async def test_open_cancelled_leaves_nothing() -> None:
    """Nobody waits for the answer any more: no task, no socket stays."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        adapter = RedisAdapter(RedisConfig(url=f"redis://127.0.0.1:{listener.getsockname()[1]}"))

        async def cancelled() -> None:
            task = asyncio.ensure_future(adapter.open(adapter_context()))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        await assert_nothing_left(cancelled)


@pytest.mark.parametrize("url", ["redis://127.0.0.1:{}", "redis://:wrong@127.0.0.1:{}"])
async def test_open_without_the_password_is_refused(url: str) -> None:
    """The error says what to mend and shows no password."""
    with RedisServer(password="right-0ne") as server:
        adapter = RedisAdapter(RedisConfig(url=url.format(server.port)))
        with pytest.raises(
            AdapterRefusedError, match=rf"{server.port} refuses.*(Authentication required|invalid username)"
        ) as caught:
            await adapter.open(adapter_context())
        assert "wrong@" not in str(caught.value)
        assert "url" in str(caught.value)


async def test_password_changed_under_a_running_adapter_and_restored() -> None:
    """Refused meanwhile, with nothing lost; once it is right again the same batch is stored, once."""
    with RedisServer(password="one") as server:
        adapter = RedisAdapter(RedisConfig(url=server.url))
        await adapter.open(adapter_context())
        try:
            writer = Writer(adapter)
            await writer.write(payloads(5))
            server.call("CONFIG", "SET", "requirepass", "two")
            server.password = "two"
            await writer.write(payloads(5, 5))  # open connections stay good
            server.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            batch = writer.batch(payloads(5, 10))
            async with asyncio.timeout(10):
                while True:
                    try:
                        await adapter.append(batch)
                    except TransientAdapterError:  # the connection that was killed
                        continue
                    except AdapterRefusedError as error:
                        assert "invalid username-password" in str(error)  # noqa: PT017  # after others
                        break
            assert not (await adapter.health()).ok
            server.call("CONFIG", "SET", "requirepass", "one")
            await adapter.append(batch)
            assert [event.raw for event in await drain(adapter)] == payloads(15)
        finally:
            await adapter.close()


async def test_account_without_rights_is_refused_and_names_them(server: RedisServer) -> None:
    """A key outside the account's patterns, and a command it may not run."""
    rules = ["on", ">pw", "+@all", "~net:*", "~{net:*"]
    server.call("ACL", "SETUSER", "app", "reset", *rules)
    url = f"redis://app:pw@{server.host}:{server.port}"
    adapter = RedisAdapter(RedisConfig(url=url))
    await adapter.open(adapter_context())
    try:
        writer = Writer(adapter)
        await writer.write(payloads(2))
        for change, restore in (
            (["resetkeys", "~net:*"], ["~{net:*"]),
            (["-xadd"], ["+xadd"]),
            (["-evalsha"], ["+evalsha"]),
        ):
            server.call("ACL", "SETUSER", "app", *change)
            batch = writer.batch(payloads(2, writer.next_seq))
            with pytest.raises(AdapterRefusedError, match=r"append to net:shard:0.*grant the user") as caught:
                await adapter.append(batch)
            assert "net:shards" in str(caught.value)
            server.call("ACL", "SETUSER", "app", *restore)
            await adapter.append(batch)
        assert [event.raw for event in await drain(adapter)] == payloads(8)
        server.call("ACL", "SETUSER", "app", "-xrange")
        with pytest.raises(AdapterRefusedError, match=r"read net:shard:0.*grant the user"):
            await adapter.read(Stream(0), "5-0", 1)
    finally:
        await adapter.close()
        server.call("ACL", "DELUSER", "app")


@pytest.mark.parametrize(
    "more", ["", "+rename +xlen +hget +client|reply +script|exists +info +config|get"], ids=["least", "more"]
)
async def test_account_with_few_rights_is_enough(server: RedisServer, more: str) -> None:
    """The rights that the README lists, and no others; without the second list there are no transactions."""
    commands = (
        "+evalsha +eval +script|load +get +set +hmget +hset +del +exists +xadd +xtrim +time +xrange "
        "+xrevrange +xinfo|stream +xread +type +ping +multi +exec"
    )
    server.call(
        "ACL", "SETUSER", "few", "reset", "on", ">pw", "~net:*", "~{net:*", *commands.split(), *more.split()
    )
    adapter = RedisAdapter(
        RedisConfig(url=f"redis://few:pw@{server.host}:{server.port}", max_events=10, max_age_s=60)
    )
    try:
        await adapter.open(adapter_context())
        writer = Writer(adapter)
        await writer.write(payloads(30))
        await writer.write(payloads(40, 30))
        noted = server.call("HGET", "{net:shard:0}:meta", "open")
        assert noted is None if not more else noted.endswith(b"=40")
        assert await adapter.streams() == [Stream(0)]
        assert [event.raw for event in await drain(adapter)] == payloads(10, 60)
        assert (await adapter.health()).ok
        await adapter.seek(Stream(0), writer.written[-1].ts)
        began = asyncio.get_running_loop().time()
        await adapter.wait({Stream(0): (await adapter.bounds(Stream(0)))[1]}, 0.1)
        assert asyncio.get_running_loop().time() - began > 0.09
    finally:
        await adapter.close()
        server.call("ACL", "DELUSER", "few")


def _tls_server() -> RedisServer:
    """Start a server with TLS, or skip (fail in CI) where the program was built without."""
    server = RedisServer(tls=True, password="pw")
    try:
        server.start()
    except ServerStartError as error:
        server.close()
        if "tls" not in str(error).lower() or os.environ.get("CI") == "true":
            raise
        pytest.skip(f"{server.binary} was built without TLS")
    return server


async def test_tls_and_password() -> None:
    """With the right CA it works; without, it is refused with the remedy, and a wrong path is a setting."""
    with _tls_server() as server:
        assert server.certificates is not None
        ca = str(server.certificates.ca)
        adapter = RedisAdapter(RedisConfig(url=server.url, ssl_ca_certs=ca))
        await adapter.open(adapter_context())
        writer = Writer(adapter)
        await writer.write(payloads(2000))
        assert [event.raw for event in await drain(adapter)] == payloads(2000)
        await adapter.close()
        adapter = RedisAdapter(RedisConfig(url=server.url))
        with pytest.raises(AdapterRefusedError, match=r"CERTIFICATE_VERIFY_FAILED.*ssl_ca_certs"):
            await adapter.open(adapter_context())
        adapter = RedisAdapter(RedisConfig(url=server.url, ssl_ca_certs="/no/such/file"))
        with pytest.raises(ConfigError, match="ssl_"):
            await adapter.open(adapter_context())
        adapter = RedisAdapter(RedisConfig(url=server.url.replace("rediss", "redis"), timeout_ms=1_000))
        with pytest.raises(TransientAdapterError, match=str(server.port)):
            await adapter.open(adapter_context())


async def test_unix_socket_and_database() -> None:
    """A socket's path instead of host and port; databases are separate namespaces."""
    server = RedisServer()
    path = server.folder / "redis.sock"
    server.options["unixsocket"] = str(path)
    with server:
        one = RedisAdapter(RedisConfig(url=f"unix://{path}"))
        two = RedisAdapter(RedisConfig(url=f"unix://{path}?db=2"))
        for adapter in (one, two):
            await adapter.open(adapter_context())
        await Writer(two).write(payloads(3))
        assert await one.streams() == []
        assert len(await drain(two)) == 3
        assert (one.identity(), two.identity()) == ("redis:net", "redis:net/2")
        for adapter in (one, two):
            await adapter.close()


async def test_open_under_eviction_warns(server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    """A server that may evict marks or streams is told of, once."""
    server.call("CONFIG", "SET", "maxmemory-policy", "volatile-lru", "maxmemory", 1 << 30)
    adapter = RedisAdapter(RedisConfig(url=server.url))
    try:
        with caplog.at_level(logging.WARNING):
            await adapter.open(adapter_context())
        assert "use noeviction" in caplog.text
    finally:
        server.call("CONFIG", "SET", "maxmemory-policy", "noeviction", "maxmemory", 0)
        await adapter.close()


async def test_cluster_on_loopback() -> None:
    """Three members: batches are stored once, pages and waits work over all of them."""
    with RedisCluster() as cluster:
        single = RedisAdapter(RedisConfig(url=cluster.url))
        with pytest.raises(AdapterRefusedError, match="cluster=True"):
            await single.open(adapter_context())
        adapter = RedisAdapter(RedisConfig(url=cluster.url, cluster=True))
        await adapter.open(adapter_context())
        try:
            writers = [Writer(adapter, shard=shard) for shard in range(12)]
            batches = await asyncio.gather(*(writer.write(payloads(50)) for writer in writers))
            await asyncio.gather(*(adapter.append(batch) for batch in batches))
            assert await adapter.streams() == [Stream(shard) for shard in range(12)]
            pages = await adapter.read_many([ReadRequest(Stream(shard), None, 100) for shard in range(12)])
            for page in pages:
                assert isinstance(page, ShardPage)
                assert [event.raw for event in page.events] == payloads(50)
            used = [server.call("DBSIZE") > 0 for server in cluster.servers]
            assert used == [True] * 3
            tails = {Stream(s): (await adapter.bounds(Stream(s)))[1] for s in range(12)}
            waiting = asyncio.ensure_future(adapter.wait(tails, 20))
            await asyncio.sleep(0.1)
            assert not waiting.done()
            await writers[7].write(payloads(1))
            async with asyncio.timeout(5):
                await waiting
            assert (await adapter.health()).ok
        finally:
            await adapter.close()


async def test_cluster_slot_that_moved_is_followed() -> None:
    """MOVED teaches the new owner: writes go on at once, and nothing is stored twice."""
    with RedisCluster() as cluster:
        adapter = RedisAdapter(RedisConfig(url=cluster.url, cluster=True))
        await adapter.open(adapter_context())
        try:
            writer = Writer(adapter)
            slot = cluster.servers[0].call("CLUSTER", "KEYSLOT", "net:shard:0")
            owners = [int(slot * 3 // 16384)]
            target = (owners[0] + 1) % 3
            name = cluster.servers[target].call("CLUSTER", "MYID")
            for server in (cluster.servers[target], *cluster.servers):
                server.call("CLUSTER", "SETSLOT", slot, "NODE", name)
            await writer.write(payloads(5))
            await writer.write(payloads(5, 5))
            assert [event.raw for event in await drain(adapter)] == payloads(10)
            assert cluster.servers[target].call("XLEN", "net:shard:0") == 10
        finally:
            await adapter.close()


async def test_cluster_with_a_hash_tag_blocks_on_one_member() -> None:
    """A tag in the prefix keeps a bus's streams together: one member serves it as a single server would."""
    with RedisCluster() as cluster:
        adapter = RedisAdapter(RedisConfig(url=cluster.url, cluster=True, prefix="{orders}"))
        await adapter.open(adapter_context())
        try:
            writers = [Writer(adapter, shard=shard) for shard in range(4)]
            await asyncio.gather(*(writer.write(payloads(5)) for writer in writers))
            assert sum(server.call("DBSIZE") > 0 for server in cluster.servers) == 1
            assert len(await adapter.streams()) == 4
            tails = {Stream(s): (await adapter.bounds(Stream(s)))[1] for s in range(4)}
            waiting = asyncio.ensure_future(adapter.wait(tails, 20))
            await asyncio.sleep(0.05)
            await writers[2].write(payloads(1))
            async with asyncio.timeout(5):
                await waiting
        finally:
            await adapter.close()


async def test_cluster_setting_on_a_single_server_is_refused(server: RedisServer) -> None:
    """And the other way round is too: see above."""
    adapter = RedisAdapter(RedisConfig(url=server.url, cluster=True))
    with pytest.raises(AdapterRefusedError, match="no member of a cluster"):
        await adapter.open(adapter_context())


async def test_cluster_without_a_member_is_transient_until_another_takes_over() -> None:
    """With one of three members gone its shards are transient, the others work; then all do again."""
    with RedisCluster() as cluster:
        adapter = RedisAdapter(RedisConfig(url=cluster.url, cluster=True, timeout_ms=500))
        await adapter.open(adapter_context())
        try:
            writers = [Writer(adapter, shard=shard) for shard in range(12)]
            batches = [writer.batch(payloads(1)) for writer in writers]
            gone = cluster.servers.pop()
            gone.kill()
            results = await asyncio.gather(*map(adapter.append, batches), return_exceptions=True)
            failed = [result for result in results if isinstance(result, BaseException)]
            assert 0 < len(failed) < 12
            assert all(isinstance(error, TransientAdapterError) for error in failed)
            low, high = 2 * 16384 // 3, 16383
            for server in cluster.servers:
                server.call("CLUSTER", "DELSLOTSRANGE", low, high)
            cluster.servers[1].call("CLUSTER", "ADDSLOTSRANGE", low, high)
            async with asyncio.timeout(30):
                while any(await asyncio.gather(*map(adapter.append, batches), return_exceptions=True)):
                    await asyncio.sleep(0.05)
            for shard in range(12):
                assert [event.raw for event in await drain(adapter, shard)] == payloads(1)
        finally:
            gone.close()
            await adapter.close()


class Unlike:
    """A connection as a later redis-py might have it: what starts with an underscore is gone."""

    is_connected = True

    def __init__(self, **settings: object) -> None: ...

    async def connect(self) -> None: ...

    async def disconnect(self, nowait: bool = False) -> None: ...


class UnlikeInParsing(Unlike):
    """It still has its writer."""

    _parser = object()

    def __init__(self, **settings: object) -> None:
        self._writer = SimpleNamespace(transport=SimpleNamespace(get_protocol=lambda: None))


class UnlikeInArguments(Unlike):
    """It takes fewer arguments."""

    def __init__(self, *, host: str, port: int) -> None: ...


@pytest.mark.parametrize(
    ("connection", "missing"),
    [(Unlike, "_writer"), (UnlikeInParsing, "parse_error"), (UnlikeInArguments, "unexpected keyword")],
)
async def test_open_with_a_connection_of_another_kind_names_the_versions_that_work(
    connection: type[Unlike], missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The inside of redis-py's connections is taken over: where it has changed, opening says so."""
    monkeypatch.setattr("net_adapter_redis.network.Connection", connection)
    adapter = RedisAdapter(RedisConfig())
    expected = (
        rf"redis-py {redis.__version__} lacks .*{missing}.*; versions {KNOWN[0]} to {KNOWN[1]} are known"
    )

    async def fail() -> None:
        with pytest.raises(AdapterRefusedError, match=expected):
            await adapter.open(adapter_context())

    await assert_nothing_left(fail)


async def test_open_without_a_name_of_redis_py_names_the_versions_that_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A function that was moved away is found out by the import, before anything is connected."""
    monkeypatch.delitem(sys.modules, "net_adapter_redis.network")
    monkeypatch.delattr(redis.crc, "key_slot")
    with pytest.raises(AdapterRefusedError, match=r"'key_slot'.*pip install 'redis\[hiredis\]=="):
        await RedisAdapter(RedisConfig()).open(adapter_context())


def test_known_versions_are_those_that_are_asked_for_and_tested_with() -> None:
    """The oldest is the bound in `pyproject.toml`, the newest the one in `constraints.txt`."""
    plugin = Path(__file__).parents[1]
    project = tomllib.loads((plugin / "pyproject.toml").read_text())["project"]
    assert f"redis[hiredis]>={KNOWN[0]}" in project["dependencies"]
    pinned = (plugin.parents[1] / "constraints.txt").read_text().splitlines()
    assert any(line.startswith(f"redis=={KNOWN[1]}.") for line in pinned)


def test_open_under_trio_is_refused_in_plain_words() -> None:
    """Redis' client needs asyncio; the message says what to do instead."""
    import trio

    adapter = RedisAdapter(RedisConfig())
    with pytest.raises(AdapterRefusedError, match=r"asyncio only.*blocking"):
        trio.run(adapter.open, adapter_context())
