from __future__ import annotations

import ast
import importlib
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import netcore

ROOT = Path(__file__).parents[2]
PACKAGES = [ROOT / "netcore", *sorted(ROOT.glob("plugins/*/net_*"))]
MODULES = sorted(path for package in PACKAGES for path in package.rglob("*.py"))
# Resolved from an installed plugin, so not an attribute of the package itself.
LAZY = {"Filter", "FilterBuilder"}
DESIGN_NAMES = set(
    """
    Adapter AdapterClosedError AdapterConfig AdapterContext AdapterError AdapterRefusedError AddShards
    BackpressureError BackpressurePolicy Batch BatchConfig Capabilities ClosedError ConfigError
    ConsumeRequest ConsumeResponse CursorError Event EventBus EventBusConfig EventBusStats EventFilter
    FatalAdapterError Filter FilterBuilder FilterError FlushTimeoutError FullShard Gap Health IngestError
    IngestSummary Matcher NetcoreError NoChange PayloadError PluginError PluginNotFoundError RawEvent
    ReadRequest RemoveShards ScalingConfig ScalingDecision ScalingError ScalingPolicy ScalingRecord
    ShardPage ShardStats ShutdownReport StoredEvent Stream TransientAdapterError Verdict hookimpl
    """.split()  # noqa: SIM905  # a paragraph reads better than fifty quoted lines
)


def test_public_names_documented_are_there() -> None:
    """What the documentation names can be imported: a name that goes away must be missed here."""
    assert {*netcore.__all__, *LAZY} >= DESIGN_NAMES
    assert set(dir(netcore)) >= DESIGN_NAMES


def test_public_names_of_a_plugin_are_left_out_of_a_star_import() -> None:
    """`from netcore import *` works without the filter plugin; importing its names alone loads it."""
    assert LAZY.isdisjoint(netcore.__all__)
    from net_filter_jsonpath import Filter

    assert netcore.Filter is Filter


def test_public_names_are_sorted_and_exist() -> None:
    """`__all__` is sorted, without repeats, and every name in it resolves."""
    assert netcore.__all__ == sorted(set(netcore.__all__), key=str)
    missing = [name for name in netcore.__all__ if not hasattr(netcore, name)]
    assert missing == []


def test_public_names_are_all_that_the_package_shows() -> None:
    """No helper leaks: what is not in `__all__` is a submodule or private."""
    shown = {name for name in vars(netcore) if not name.startswith("_")}
    submodules = {module.name for module in pkgutil.iter_modules(netcore.__path__)}
    tolerated = {"annotations", "Any", "TYPE_CHECKING"}
    assert shown - set(netcore.__all__) - submodules - tolerated == set()


@pytest.mark.parametrize("name", netcore.__all__)
def test_public_name_has_a_docstring(name: str) -> None:
    """Every public class and function says what it is for."""
    value = getattr(netcore, name)
    if isinstance(value, type) or callable(value):
        doc = value.__doc__ or ""
        assert doc.strip(), name
        assert not doc.startswith(f"{name}("), f"{name}: the docstring is a generated signature"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_is_short_and_says_what_it_is(path: Path) -> None:
    """One concept a module: at most 400 lines, functions of at most 50, and a docstring."""
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "no module docstring"
    long = [
        f"{node.name} ({node.end_lineno - node.lineno + 1} lines)"
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > 50
    ]
    assert long == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_all_names_what_it_defines(path: Path) -> None:
    """Where a module states `__all__`, every name in it exists."""
    name = ".".join(
        path.relative_to(path.parents[len(path.parents) - 1 - _depth(path)]).with_suffix("").parts
    )
    module = _import(name.removesuffix(".__init__"))
    assert [n for n in getattr(module, "__all__", ()) if not hasattr(module, n)] == []


def _depth(path: Path) -> int:
    package = next(package for package in PACKAGES if path.is_relative_to(package))
    return len(package.parent.parts) - 1


def _import(name: str) -> ModuleType:
    if name.endswith("__main__"):
        return netcore
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "net").startswith("net"):
            raise
        pytest.skip(f"needs {error.name}, which an extra installs")


@pytest.mark.parametrize(
    "package",
    sorted([*ROOT.glob("plugins/*/net_*"), *ROOT.glob("examples/plugins/*/net_*")]),
    ids=lambda path: path.name,
)
def test_plugin_uses_public_names_only(package: Path) -> None:
    """What a plugin of this repository needs, a third party's may use as well."""
    used = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "netcore":
                used |= {f"{node.module}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Import):
                used |= {alias.name for alias in node.names if alias.name.startswith("netcore.")}
    assert used
    assert used <= {f"netcore.{name}" for name in (*netcore.__all__, *LAZY)}


@pytest.mark.parametrize(
    ("distribution", "provides"),
    [
        ("net-backpressure-priority", "backpressure policy priority"),
        ("net-scaling-schedule", "scaling policy schedule"),
    ],
)
def test_example_plugin_is_found_by_the_command_line(distribution: str, provides: str) -> None:
    """Installed like any third party's: listed with its version and what it brings, and nothing wrong with it."""
    command = [sys.executable, "-m", "netcore", "plugins", "--json"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("NETCORE_")}
    done = subprocess.run(command, capture_output=True, check=True, timeout=60, env=env)
    (found,) = [plugin for plugin in json.loads(done.stdout) if plugin["distribution"] == distribution]
    assert (found["provides"], found["error"]) == ([provides], "")
    assert found["version"]


def _loaded_by(code: str) -> set[str]:
    """Return the modules that a new interpreter has loaded after running `code`."""
    script = f"import sys\n{code}\nprint('\\n'.join(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60, cwd="/"
    )
    return set(done.stdout.split())


HEAVY = {
    "rich", "redis", "nats", "zmq", "lmdb", "trio", "hypothesis", "pytest", "_pytest", "numpy",
    "importlib.metadata", "unittest", "multiprocessing", "http.client", "netcore.testing",
}  # fmt: skip


def test_import_netcore_alone_loads_none_of_it() -> None:
    """Names are loaded when they are used: a plugin that wants `hookimpl` gets no bus, and no event loop."""
    assert {name for name in _loaded_by("import netcore") if name.startswith("netcore")} == {"netcore"}
    assert "netcore.bus" not in _loaded_by("from netcore import hookimpl, ConfigError, AdapterConfig")


def test_public_names_are_listed_before_they_are_loaded() -> None:
    """Completion in a shell looks at `dir`; a name that is none is told as such, and loads nothing."""
    code = "import netcore; print(*dir(netcore), netcore.__name__); print(hasattr(netcore, 'EventBuss'))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    listed, has = done.stdout.splitlines()
    assert set(listed.split()) >= set(netcore.__all__)
    assert has == "False"


def test_help_works_without_the_filter_plugin() -> None:
    """`help(netcore)` looks up whatever is listed; the names that a plugin lends are not, unless it is there."""
    code = "import pydoc, sys; sys.modules['net_filter_jsonpath'] = None\nimport netcore\n"
    code += "assert 'Filter' not in dir(netcore)\nprint(pydoc.plain(pydoc.render_doc(netcore)))"
    env = os.environ | {"NETCORE_PLUGINS": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60, env=env
    )
    assert "class ConsumeRequest" in done.stdout


def test_import_of_the_bus_loads_nothing_heavy() -> None:
    """What makes an import slow is what it loads: no client, no plugin, no terminal library, no server."""
    loaded = _loaded_by("from netcore import EventBus, EventBusConfig, ConsumeRequest")
    assert loaded & (HEAVY | {"click"}) == set()
    assert not [name for name in loaded if name.startswith(("net_adapter_", "net_filter_"))]


def test_command_line_help_loads_nothing_heavy() -> None:
    """Help must not wait for plugins, the event loop or the table printer."""
    code = "from netcore.cli.app import run\nimport contextlib, io\n"
    code += "with contextlib.redirect_stdout(io.StringIO()): assert run(['--help']) == 0"
    loaded = _loaded_by(code)
    assert loaded & HEAVY - {"importlib.metadata"} == set()
    assert not [name for name in loaded if name.startswith(("net_adapter_", "net_filter_"))]


@pytest.mark.parametrize("plugin", sorted(p.name for p in ROOT.glob("plugins/*/net_*")))
def test_plugin_hook_module_loads_no_client_library(plugin: str) -> None:
    """A plugin's hook module is loaded for every bus: its client library must wait until it is opened."""
    loaded = _loaded_by(f"import {plugin}.plugin as p\nfor n in dir(p):\n    n")
    assert loaded & {"redis", "nats", "zmq", "lmdb", "rich", "trio"} == set()
