"""Runs every snippet of the READMEs and of docs/: a page is a program, its snippets run in order.

A `text` block right after a snippet is what it prints. A `sh` block of `netcore` commands is run line
by line. Snippets may await at the top level, as in `python -m asyncio`. Where one names a server's usual
address, a server is started and its address put in.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from netcore import EventBusConfig
from netcore.testing.servers import NatsServer, RedisServer

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        ROOT / "README.md",
        *(ROOT / "docs").rglob("*.md"),
        *ROOT.glob("plugins/*/README.md"),
        *ROOT.glob("examples/plugins/*/README.md"),
    ]
)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$(?:\n+```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)
REDIS = "redis://127.0.0.1:6379"
NATS = "nats://127.0.0.1:4222"


def blocks(*languages: str) -> list[Any]:
    """Return each block of these languages as a test parameter: (source, what it prints or None)."""
    return [
        pytest.param(match[2], match[3], id=f"{page.relative_to(ROOT)}:{line}")
        for page in PAGES
        for line, match in matches(page)
        if match[1] in languages
    ]


def matches(page: Path) -> list[tuple[int, re.Match[str]]]:
    """Return the page's blocks, each with the number of the line before its first."""
    text = page.read_text(encoding="utf-8")
    return [(text.count("\n", 0, match.start()) + 1, match) for match in BLOCK.finditer(text)]


@pytest.fixture(scope="module")
def redis_address() -> Iterator[str]:
    with RedisServer() as server:
        yield f"redis://{server.host}:{server.port}"


@pytest.fixture(scope="module")
def nats_address() -> Iterator[str]:
    with NatsServer() as server:
        yield server.url


@pytest.fixture
def with_servers(request: pytest.FixtureRequest) -> Callable[[str], str]:
    """Return a function that starts the servers a snippet needs and puts their addresses in."""

    def put(source: str) -> str:
        if REDIS in source:
            source = source.replace(REDIS, request.getfixturevalue("redis_address"))
        if NATS in source:
            source = source.replace(NATS, request.getfixturevalue("nats_address"))
        return source

    return put


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder to run in, where the examples are at hand."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


def environment() -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("NETCORE_")}
    packages = [str(folder) for folder in ROOT.glob("examples/plugins/*")]
    env["PYTHONPATH"] = os.pathsep.join([*packages, env.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env["PATH"]])
    return env


DRIVER = """
import ast as _ast, asyncio as _asyncio, contextlib as _contextlib, io as _io, json as _json, sys as _sys
_page, _blocks = _json.load(_sys.stdin)
_printed = []
for _line, _source in _blocks:
    with _contextlib.redirect_stdout(_io.StringIO()) as _out:
        _code = compile("\\n" * _line + _source, _page, "exec", _ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        if _coroutine := eval(_code, globals()):
            _asyncio.run(_coroutine)
    _printed.append(_out.getvalue())
_json.dump(_printed, _sys.stdout)
"""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_snippets_run(page: Path, place: Path, with_servers: Callable[[str], str]) -> None:
    """They run in the page's order, print what the page says, and leave nothing open."""
    found = [
        (line, with_servers(match[2]), match[3]) for line, match in matches(page) if match[1] == "python"
    ]
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", DRIVER],
        input=json.dumps([str(page), [(line, source) for line, source, _ in found]]),
        capture_output=True, text=True, cwd=place, env=environment(), timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "ResourceWarning" not in done.stderr
    for output, (line, _, expected) in zip(json.loads(done.stdout), found, strict=True):
        assert expected is None or output == expected, f"{page.name}:{line}"


def commands() -> list[Any]:
    return [param for param in blocks("sh") if re.match(r"(netcore|printf) ", param.values[0])]


@pytest.mark.parametrize(("source", "printed"), commands())
def test_commands_run(
    source: str, printed: str | None, place: Path, with_servers: Callable[[str], str]
) -> None:
    """Every command of the block succeeds."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", with_servers(source)],
        capture_output=True, text=True, cwd=place, env=environment(), timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    if printed is not None:
        assert done.stdout == printed


@pytest.mark.parametrize(("source", "printed"), blocks("toml", "json"))
def test_data_is_well_formed(source: str, printed: str | None) -> None:
    """Settings in a page can be loaded; other tables and documents can at least be parsed."""
    assert printed is None
    try:
        document = tomllib.loads(source)
    except tomllib.TOMLDecodeError:
        document = json.loads(source)
    if isinstance(document, dict) and document.keys() <= {
        f.name for f in msgspec.structs.fields(EventBusConfig)
    }:
        assert EventBusConfig.from_dict(document)


def test_readme_adapter_passes_the_contract(tmp_path: Path) -> None:
    """The adapter that the README shows is a whole one: the contract suite agrees."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (source,) = [match[2] for match in BLOCK.finditer(text) if "class ListAdapter" in match[2]]
    (tmp_path / "list_adapter.py").write_text(source.partition("\nwith EventBus")[0])
    (tmp_path / "test_list.py").write_text(
        "import pytest\n"
        "from list_adapter import ListAdapter, ListConfig\n"
        "from netcore.testing.contract import AdapterContract\n"
        "class TestList(AdapterContract):\n"
        "    @pytest.fixture\n"
        "    def make_adapter(self):\n"
        "        return lambda **overrides: ListAdapter(ListConfig(**overrides))\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), "."],
        capture_output=True, text=True, cwd=tmp_path, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout
