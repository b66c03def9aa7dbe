"""The memory adapter: the contract, and what is its own."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from netcore.builtin.memory import MemoryAdapter, MemoryConfig
from netcore.testing.contract import AdapterContract, MakeAdapter


class TestMemoryContract(AdapterContract):
    """The whole contract, on both event loops."""

    backends = ("asyncio", "trio")
    retention: ClassVar = {"max_events": 50}
    foreign_positions = ("1700000000000-0", "4", "4611686018427387905", "01", "00")

    @pytest.fixture
    def make_adapter(self) -> MakeAdapter:
        """Build memory adapters."""

        def make(**overrides: Any) -> MemoryAdapter:
            return MemoryAdapter(MemoryConfig(**overrides))

        return make
