"""The contract for every adapter of `kit_broken`: collected only by `test_kit_verifies`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import pytest
from kit_broken import BROKEN, GOOD
from kit_store import ANY, POISON, Store, StoreAdapter, StoreConfig

from netcore.testing.contract import AdapterContract


class StoreContract(AdapterContract):
    """Everything switched on."""

    adapter_class: ClassVar[type[StoreAdapter]]
    retention: ClassVar = {"max_events": 20}
    patience_s = 0.75

    def poison(self, adapter: Any) -> bytes:
        return POISON

    @pytest.fixture
    def store(self) -> Store:
        return Store()

    @pytest.fixture
    def make_adapter(self, store: Store) -> Callable[..., StoreAdapter]:
        return lambda **overrides: self.adapter_class(StoreConfig(**overrides), store)

    @pytest.fixture
    def outage(self, store: Store) -> Callable[[], Any]:
        @asynccontextmanager
        async def away() -> AsyncIterator[None]:
            store.away = True
            try:
                yield
            finally:
                store.away = False

        return away


for _adapter in (*GOOD, *BROKEN):
    _members: dict[str, Any] = {
        "adapter_class": _adapter,
        "exclusive": _adapter.exclusive,
        "__module__": __name__,
    }
    # The clauses on payloads are a third of the time: not for those that leave payloads alone.
    if _adapter is not StoreAdapter and _adapter.code is StoreAdapter.code:
        _members["test_payload_comes_back_identical"] = None
        if f"test_{ANY}" not in _adapter.fails and not _adapter.broad:
            _members[f"test_{ANY}"] = None
    globals()[f"Test{_adapter.__name__}"] = type(f"Test{_adapter.__name__}", (StoreContract,), _members)
