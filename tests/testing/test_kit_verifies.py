"""The contract suite is itself tested: it passes good adapters and finds each broken one out.

All contracts run in one nested pytest, once; each test here looks at one adapter's outcome.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest
from kit_broken import BROKEN, GOOD
from kit_store import StoreAdapter

from netcore.contracts.adapter import Adapter

pytestmark = pytest.mark.timeout(400)  # the first test waits for the nested run


class Outcomes:
    """Collects, for each adapter class, which clauses did what."""

    def __init__(self) -> None:
        self.by_class: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
        self.texts: dict[tuple[str, str], str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Remember a phase's outcome."""
        if report.when != "call" and report.outcome == "passed":
            return
        *_, owner, clause = report.nodeid.split("::")
        clause = clause.replace("[asyncio-", "[").removesuffix("[asyncio]").replace("-asyncio]", "]")
        self.by_class[owner.removeprefix("Test")][report.outcome].add(clause)
        self.texts[owner.removeprefix("Test"), clause] = str(report.longrepr)


@pytest.fixture(scope="module")
def outcomes() -> Outcomes:
    """Run the contract on all of them."""
    found = Outcomes()
    options = [
        "-q",
        "-s",
        "-o",
        "addopts=",
        "--import-mode=importlib",
        "--timeout=0",
        "-p",
        "no:cacheprovider",
    ]
    with pytest.MonkeyPatch.context() as patch:
        # There pytest spells every difference out in full, which takes minutes for what fails here.
        for name in ("CI", "BUILD_NUMBER"):
            patch.delenv(name, raising=False)
        pytest.main([*options, str(Path(__file__).with_name("kit_runs.py"))], plugins=[found])
    return found


@pytest.mark.parametrize("adapter", GOOD, ids=lambda adapter: adapter.__name__)
def test_contract_on_good_adapter_passes_every_clause(
    outcomes: Outcomes, adapter: type[StoreAdapter]
) -> None:
    """Nothing fails; skipped is only what is not promised, or not its own."""
    seen = outcomes.by_class[adapter.__name__]
    assert {clause: outcomes.texts[adapter.__name__, clause] for clause in seen["failed"]} == {}
    skipped = set() if adapter.capabilities.inline else {"test_inline_adapter_never_suspends"}
    if adapter.read_listed is Adapter.read_listed:
        skipped.add("test_read_listed_is_read_many_and_streams")
    assert seen["skipped"] == skipped
    assert len(seen["passed"]) > 50


@pytest.mark.parametrize("adapter", BROKEN, ids=lambda adapter: adapter.__name__)
def test_contract_on_broken_adapter_fails_the_right_clauses(
    outcomes: Outcomes, adapter: type[StoreAdapter]
) -> None:
    """Those that the defect breaks, and no others unless it is a broad one."""
    failed = outcomes.by_class[adapter.__name__]["failed"]
    assert (failed & adapter.fails if adapter.broad else failed) == adapter.fails


def test_every_clause_finds_some_adapter_out(outcomes: Outcomes) -> None:
    """No clause is there for nothing."""
    names = {clause for seen in outcomes.by_class.values() for found in seen.values() for clause in found}
    told = {clause.split("[")[0] for adapter in BROKEN for clause in adapter.fails}
    assert {clause.split("[")[0] for clause in names} - told == set()
