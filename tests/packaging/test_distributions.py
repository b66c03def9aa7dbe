"""Builds every distribution and installs each alone: what a user gets is a wheel, not this folder.

Needs a package index; run by the tox environment `dist`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = "netcore-bus"
EXAMPLES = {folder.name: folder for folder in sorted(ROOT.glob("examples/plugins/net-*"))}
FOLDERS = {"netcore-bus": ROOT} | {folder.name: folder for folder in sorted(ROOT.glob("plugins/net-*"))}
FOLDERS |= EXAMPLES
PLUGINS = [name for name in FOLDERS if name != CORE]
SORTS = {
    "filter": "filter",
    "adapter": "adapter",
    "scaling": "scaling policy",
    "backpressure": "backpressure policy",
}

pytestmark = [pytest.mark.dist, pytest.mark.timeout(600)]


def run(*command: object) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def metadata(name: str) -> dict[str, object]:
    project: dict[str, object] = tomllib.loads((FOLDERS[name] / "pyproject.toml").read_text())["project"]
    return project


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Build a source archive of each distribution, and its wheel from that archive."""
    folder = tmp_path_factory.mktemp("wheels")
    built = {}
    for name, source in FOLDERS.items():
        run(sys.executable, "-m", "build", "--outdir", folder / name, source)
        (built[name],) = (folder / name).glob("*.whl")
    return built


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """Make a new virtual environment; returns its folder of programs."""
    venv.create(tmp_path / "venv", with_pip=True)
    return tmp_path / "venv" / "bin"


@pytest.mark.parametrize("name", FOLDERS)
def test_wheel_holds_the_package_and_nothing_else(name: str, wheels: dict[str, Path]) -> None:
    """One import package with `py.typed`, no tests; the metadata names licence, Python and readme."""
    with zipfile.ZipFile(wheels[name]) as wheel:
        names = wheel.namelist()
        (about,) = [entry for entry in names if entry.endswith(".dist-info/METADATA")]
        text = wheel.read(about).decode()
    tops = {entry.split("/")[0] for entry in names if ".dist-info/" not in entry}
    package = "netcore" if name == CORE else name.replace("-", "_")
    assert tops == {package}
    assert f"{package}/py.typed" in names
    assert not [entry for entry in names if "test_" in Path(entry).name]
    assert "License-Expression: MIT" in text
    assert "Requires-Python: >=3.11" in text
    assert "Description-Content-Type: text/markdown" in text
    assert ("netcore/cli/earthquakes.ndjson" in names) == (name == CORE)


def test_core_installs_alone_and_its_demo_runs(wheels: dict[str, Path], environment: Path) -> None:
    """Without any plugin, far from the checkout: the demo replays the data that the wheel carries."""
    run(environment / "pip", "install", "-q", wheels[CORE])
    shown = run(environment / "netcore", "demo")
    assert "exactly once: 1,707 of 1,707" in shown
    assert "pip install net-filter-jsonpath" in shown
    plugins = json.loads(run(environment / "netcore", "plugins", "--json", "--check"))
    assert [plugin["name"] for plugin in plugins] == ["netcore"]


@pytest.mark.parametrize("name", PLUGINS)
def test_plugin_installs_alone_and_is_found(name: str, wheels: dict[str, Path], environment: Path) -> None:
    """With the core's wheel and what pip brings for it: listed, sound, with its version and its kind."""
    run(environment / "pip", "install", "-q", wheels[CORE], wheels[name])
    plugins = {
        plugin["distribution"]: plugin
        for plugin in json.loads(run(environment / "netcore", "plugins", "--json", "--check"))
    }
    assert set(plugins) == {CORE, name}
    _, sort, entry = name.split("-")
    assert plugins[name]["version"] == metadata(name)["version"]
    assert f"{SORTS[sort]} {entry}" in plugins[name]["provides"]
    run(environment / "pip", "check")


def test_extras_name_the_plugins() -> None:
    """`netcore-bus[redis]` and its like bring the plugin of that name; `all` brings all."""
    extras = metadata(CORE)["optional-dependencies"]
    assert isinstance(extras, dict)
    ours = sorted(set(PLUGINS) - set(EXAMPLES))
    for name in ours:
        assert extras[name.rsplit("-", 1)[1]] == [name]
    assert sorted(extras["all"]) == ours
