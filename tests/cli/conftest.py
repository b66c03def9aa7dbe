"""Runs the command line as a process of its own, with an adapter that the next one can see."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from netcore.cli.app import run
from netcore.plugins import manager
from netcore.plugins.discovery import InstalledPlugin, installed_plugins


class Cli:
    """The command line in a folder of its own, where the plugin `shelf` is installed.

    Attributes:
        shelf: options that choose the shared test adapter.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        site = folder / "site"
        site.mkdir()
        shutil.copy(Path(__file__).with_name("shelf_plugin.py"), site / "netcore_test_shelf.py")
        self.install(site, "netcore-test-shelf", "shelf = netcore_test_shelf")
        self.site = site
        self.shelf = ["--adapter", "shelf", "--set", f"folder={folder / 'shelf'}"]
        # Unbuffered, Python has nothing left to flush at its end, which is one of the things to test.
        left_out = ("NETCORE_", "PYTHONUNBUFFERED")
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(left_out)}
        self.env |= {"PYTHONPATH": str(site), "NETCORE_PLUGINS": "shelf,jsonpath", "COLUMNS": "120"}
        self._running: list[subprocess.Popen[bytes]] = []

    @staticmethod
    def install(site: Path, distribution: str, entry: str) -> None:
        """Write a distribution's metadata with one entry point."""
        info = site / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[netcore]\n{entry}\n")

    def __call__(self, *arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        """Run to the end."""
        return subprocess.run(
            [sys.executable, "-m", "netcore", *map(str, arguments)],
            input=stdin, capture_output=True, env=self.env, cwd=self.folder, timeout=60, check=False,
        )  # fmt: skip

    def start(self, *arguments: object, **options: Any) -> subprocess.Popen[bytes]:
        """Start, with pipes; ended with the test at the latest."""
        streams: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        process = subprocess.Popen(
            [sys.executable, "-m", "netcore", *map(str, arguments)],
            env=self.env, cwd=self.folder, **(streams | options),
        )  # fmt: skip
        self._running.append(process)
        return process

    def on_terminal(self, *arguments: object) -> tuple[int, bytes]:
        """Run to the end with standard error on a terminal; return the exit code and what it showed there."""
        ours, theirs = pty.openpty()
        process = self.start(*arguments, stderr=theirs, stdout=subprocess.DEVNULL)
        os.close(theirs)
        shown = b""
        while True:
            try:
                chunk = os.read(ours, 65536)
            except OSError:  # Linux's answer to an empty terminal whose other end is closed
                break
            if not chunk:
                break
            shown += chunk
        os.close(ours)
        return process.wait(30), shown

    def close(self) -> None:
        """End what still runs, by its own handle, and close its pipes."""
        for process in self._running:
            if process.poll() is None:
                process.kill()
            process.wait(10)
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Cli]:
    """Return a command line to run."""
    runner = Cli(tmp_path)
    yield runner
    runner.close()


@pytest.fixture(scope="session")
def full_shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fill a shelf with 2,500 events, once, for the tests to copy."""
    runner = Cli(tmp_path_factory.mktemp("full"))
    lines = b"".join(b'{"n":%d,"even":%s}\n' % (n, b"false" if n % 2 else b"true") for n in range(2500))
    assert runner("ingest", *runner.shelf, stdin=lines).returncode == 0
    return runner.folder / "shelf"


@pytest.fixture
def filled(cli: Cli, full_shelf: Path) -> Cli:
    """Return a command line whose shelf holds 2,500 events."""
    shutil.copytree(full_shelf, cli.folder / "shelf")
    return cli


Here = Callable[..., "subprocess.CompletedProcess[bytes]"]


@pytest.fixture
def here(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> Iterator[Here]:
    """Return the same command line within this process: quicker, for what ends before a bus opens."""

    def discover() -> Iterator[InstalledPlugin]:
        yield from installed_plugins([str(cli.site)])
        yield from (plugin for plugin in installed_plugins() if plugin.name == "jsonpath")

    def call(*arguments: object) -> subprocess.CompletedProcess[bytes]:
        code = run(list(map(str, arguments)))
        shown = capsysbinary.readouterr()
        return subprocess.CompletedProcess(arguments, code, shown.out, shown.err)

    for name in [name for name in os.environ if name.startswith("NETCORE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(cli.folder)
    monkeypatch.syspath_prepend(str(cli.site))
    monkeypatch.setattr(manager, "_default", manager.PluginManager(discover=discover, environ={}))
    yield call
    sys.modules.pop("netcore_test_shelf", None)


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], None]:
    """Return a function that waits until a condition holds, 20 s at most."""

    def wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, "the condition never held"
            time.sleep(0.01)

    return wait
