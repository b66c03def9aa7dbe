"""The examples of the documentation run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PLUGIN = Path(__file__).parents[1]
REFERENCE = PLUGIN.parents[1] / "docs" / "reference" / "filter-dsl.md"


@pytest.mark.parametrize("page", [REFERENCE, PLUGIN / "README.md"], ids=lambda page: page.name)
def test_documentation_examples_run(page: Path) -> None:
    """Every Python block of the page, in order, in one namespace."""
    pytest.importorskip("jsonpath_rfc9535", reason="the extra rfc9535 is not installed")
    if not page.exists():
        pytest.skip("not in a checkout")
    blocks = re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    assert blocks
    exec(compile("\n".join(blocks), page.name, "exec"), {"__name__": page.stem})
