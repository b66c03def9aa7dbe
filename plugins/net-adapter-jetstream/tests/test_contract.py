"""The adapter contract, on a real server: both layouts, the public client, an old server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import pytest
from net_adapter_jetstream import JetStreamAdapter, JetStreamConfig, streams

from netcore.testing.contract import AdapterContract, MakeAdapter
from netcore.testing.servers import NatsServer


class PublicClientAdapter(JetStreamAdapter):
    """Uses nothing of nats-py that is private, as with a version that has changed it."""

    fast: ClassVar[bool] = False


class _Contract(AdapterContract):
    adapter_class: ClassVar[type[JetStreamAdapter]] = JetStreamAdapter
    settings: ClassVar[dict[str, Any]] = {}
    retention: ClassVar[dict[str, Any] | None] = {"max_events": 50}
    foreign_positions: ClassVar[tuple[str, ...]] = (
        "5",
        "00",
        "0:1",
        "1@",
        "@1",
        "01@a",
        "1:@a",
        "1@G",
        "1-1",
    )

    @pytest.fixture
    def make_adapter(self, nats: NatsServer, prefix: str) -> MakeAdapter:
        def make(**overrides: Any) -> JetStreamAdapter:
            settings: dict[str, Any] = (
                {"url": nats.url, "prefix": prefix, "timeout_ms": 2000} | self.settings | overrides
            )
            return self.adapter_class(JetStreamConfig(**settings))

        return make

    @pytest.fixture
    def outage(self, nats: NatsServer) -> Callable[[], Any] | None:
        if not isinstance(nats, NatsServer):
            return None  # it is somebody else's

        @asynccontextmanager
        async def away() -> AsyncIterator[None]:
            nats.kill()
            try:
                yield
            finally:
                nats.restart()

        return away


class TestEventLayout(_Contract):
    """One message an event, in atomic batches."""


class TestPackedLayout(_Contract):
    """One message a batch."""

    settings: ClassVar[dict[str, Any]] = {"layout": "packed"}


class TestPublicClient(_Contract):
    """As with a nats-py whose private parts have changed."""

    adapter_class: ClassVar[type[JetStreamAdapter]] = PublicClientAdapter


class TestOldServer(_Contract):
    """A server that knows no batches and gives one message a request."""

    @pytest.fixture
    def nats(self, old_nats: NatsServer) -> NatsServer:
        return old_nats


class TestHeadedPages(_Contract):
    """A server between: it gives pages, with headers, and knows no batches."""

    @pytest.fixture(autouse=True)
    def older(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(streams, "_BATCHES", (99, 0, 0))
        monkeypatch.setattr(streams, "_BARE_PAGES", (99, 0, 0))
