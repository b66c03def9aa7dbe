"""A folder of made-up installed distributions, found and imported like real ones."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from netcore.plugins.discovery import installed_plugins
from netcore.plugins.manager import PluginManager

POLICY = """
import netcore
class Policy(netcore.BackpressurePolicy):
    name = "{name}"
    def on_full(self, shard):
        return netcore.Verdict.DISCARD
@netcore.hookimpl
def netcore_backpressure_policies():
    return [Policy]
"""


class Site:
    """Installs distributions into a folder of their own and makes managers that look there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(
        self, distribution: str, entry: str, source: str, *, version: str = "1.0", module: str = ""
    ) -> None:
        """Write a distribution with one module and one entry point."""
        module = module or f"made_up_{distribution.replace('-', '_')}"
        (self.folder / f"{module}.py").write_text(textwrap.dedent(source))
        self.metadata(distribution, f"[netcore]\n{entry} = {module}\n", version=version)

    def metadata(self, distribution: str, entry_points: str, *, version: str = "1.0") -> None:
        """Write a distribution's metadata only."""
        info = self.folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(entry_points)

    def manager(self, **environ: str) -> PluginManager:
        """Make a manager that sees nothing but this folder and these variables."""
        return PluginManager(discover=lambda: installed_plugins([str(self.folder)]), environ=environ)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """Return an empty site; what was imported from it is forgotten afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    yield Site(tmp_path)
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "") or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def policy_source() -> Callable[[str], str]:
    """Return a maker of sources of a sound plugin that offers one backpressure policy."""
    return lambda name: POLICY.format(name=name)
