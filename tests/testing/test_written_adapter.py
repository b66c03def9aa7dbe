"""The adapter of the how-to page is a whole one: it runs, and its contract test passes."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "write-an-adapter.md"


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """Cut the page's blocks into the two files that it describes."""
    blocks = dict(re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S))
    (tmp_path / "sqlite_adapter.py").write_text(blocks["python"])
    (tmp_path / "test_sqlite_adapter.py").write_text(blocks["py"])
    (tmp_path / "printed.txt").write_text(blocks["text"])
    return tmp_path


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_written_adapter_runs_and_prints_what_the_page_says(written: Path) -> None:
    """The program works on a bus."""
    done = run(written, "sqlite_adapter.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout == (written / "printed.txt").read_text()


def test_written_adapter_passes_the_contract(written: Path) -> None:
    """Its contract test passes, and only clauses that do not apply are skipped."""
    done = run(written, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "test_sqlite_adapter.py")
    assert done.returncode == 0, done.stdout
    skipped = re.findall(r"^SKIPPED .*?: (.*)$", done.stdout, re.M)
    assert all(
        re.search("snapshots|retention|never store|outage|read_listed", reason) for reason in skipped
    ), skipped


def test_written_registration_names_the_modules_of_the_page(written: Path) -> None:
    """What the page says of packaging fits the file that it builds, and asks for the right core."""
    (text,) = re.findall(r"^```toml\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    metadata = tomllib.loads(text)
    (module,) = metadata["project"]["entry-points"]["netcore"].values()
    assert metadata["tool"]["setuptools"]["py-modules"] == [module]
    assert (written / f"{module}.py").exists()
    assert metadata["project"]["dependencies"] == ["netcore-bus"]
