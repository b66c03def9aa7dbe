"""The contract suite as a third party meets it: messages, missing fixtures, missing extra."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ADAPTER = """
import pytest
from netcore.builtin.memory import MemoryAdapter, MemoryConfig
from netcore.testing.contract import AdapterContract


class Unordered(MemoryAdapter):
    async def read(self, stream, after, limit, snapshot=None):
        page = await super().read(stream, after, limit, snapshot)
        page.events.reverse()
        return page
"""

CONTRACT = """

class TestUnordered(AdapterContract):
    @pytest.fixture
    def make_adapter(self):
        return lambda **overrides: Unordered(MemoryConfig(**overrides))
"""

LACKING = """

class TestLacking(AdapterContract):
    pass
"""


def run_pytest(folder: Path, text: str, *options: str) -> str:
    (folder / "test_it.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, "test_it.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    return done.stdout


def test_failing_clause_shows_what_it_compared(tmp_path: Path) -> None:
    """A failure of the suite reads like one of a test of one's own."""
    text = run_pytest(tmp_path, ADAPTER + CONTRACT, "-k", "append_keeps_the_order_of_batches")
    assert "At index 0 diff" in text
    assert "Events come back in the order they were appended in" in text


def test_lacking_fixture_is_named(tmp_path: Path) -> None:
    """Who forgets `make_adapter` is told so."""
    text = run_pytest(tmp_path, ADAPTER + LACKING, "-k", "append_keeps_the_order_of_batches")
    assert "fixture 'make_adapter' not found" in text


def test_package_without_pytest_names_the_extra(tmp_path: Path) -> None:
    """Importing the kit without its extra says what to install."""
    program = "import sys; sys.modules['pytest'] = None; import netcore.testing"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert "pip install 'netcore-bus[testing]'" in done.stderr
