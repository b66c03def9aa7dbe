"""The adapter contract, in both layouts and both ways of storing, against a real server."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import pytest
from net_adapter_redis import RedisAdapter, RedisConfig, transaction

from netcore.testing.contract import AdapterContract, MakeAdapter
from netcore.testing.servers import RedisServer

_prefixes = itertools.count()


class RedisContract(AdapterContract):
    """What both layouts have in common."""

    layout: ClassVar[Any] = "event"
    retention: ClassVar[dict[str, Any] | None] = {"max_events": 50}
    foreign_positions = ("7", "1-2-3", "1-2:3", "1-2:3/3", "1-2@5", "1-2@5.XYZ", "99999999999999999999-0")

    @pytest.fixture
    def make_adapter(self, redis_url: str) -> MakeAdapter:
        prefix = f"contract{next(_prefixes)}"

        def make(**overrides: Any) -> RedisAdapter:
            settings: dict[str, Any] = {"url": redis_url, "prefix": prefix, "layout": self.layout}
            return RedisAdapter(RedisConfig(**(settings | overrides)))

        return make

    @pytest.fixture
    def outage(self, server: RedisServer, redis_url: str) -> Callable[[], Any] | None:
        if redis_url != server.url:
            return None

        @asynccontextmanager
        async def away() -> AsyncIterator[None]:
            server.kill()
            try:
                yield
            finally:
                server.start()

        return away


class TestEventLayout(RedisContract):
    """One entry an event."""

    layout = "event"


class TestTransactions(RedisContract):
    """One entry an event, every batch in a transaction that can be."""

    @pytest.fixture(autouse=True)
    def from_one_event_on(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Do not leave small batches to the script."""
        monkeypatch.setattr(transaction, "_LEAST", 1)


class TestPackedLayout(RedisContract):
    """One entry a batch."""

    layout = "packed"
