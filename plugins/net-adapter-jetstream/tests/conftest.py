"""Servers, and adapters on them, shared by the tests here."""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nats as nats_client
import pytest
from net_adapter_jetstream import JetStreamAdapter, JetStreamConfig

from netcore.testing.contract import adapter_context
from netcore.testing.servers import NatsServer

_stores = itertools.count()
_RUN = f"t{secrets.token_hex(4)}"


@pytest.fixture
def anyio_backend() -> str:
    """Run on asyncio: nats-py knows nothing else."""
    return "asyncio"


class GivenServer:
    """The server that `NETCORE_TEST_NATS_URL` names: used as it is, never stopped."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.url = url
        self.host = parts.hostname or "127.0.0.1"
        self.port = parts.port or 4222

    async def clear(self) -> None:
        """Delete the streams that this run has made."""
        client = await nats_client.connect(self.url)
        manager = client.jsm()
        for info in await manager.streams_info():
            if (name := str(info.config.name)).startswith(_RUN):
                await manager.delete_stream(name)
        await client.close()


@pytest.fixture(scope="session")
def nats() -> Iterator[NatsServer | GivenServer]:
    """One server for all tests that do not break it for good; each uses a prefix of its own."""
    if url := os.environ.get("NETCORE_TEST_NATS_URL"):
        given = GivenServer(url)
        yield given
        asyncio.run(given.clear())
        return
    with NatsServer() as server:
        yield server


@pytest.fixture
def own_nats() -> Iterator[NatsServer]:
    """A server for one test, to be hurt."""
    with NatsServer() as server:
        yield server


@pytest.fixture(scope="session")
def old_nats() -> Iterator[NatsServer]:
    """A server before 2.12.1, which knows no batches: the one that `NETCORE_TEST_NATS_OLD` names."""
    binary = os.environ.get("NETCORE_TEST_NATS_OLD")
    if not binary:
        pytest.skip("NOT TESTED: old servers; NETCORE_TEST_NATS_OLD names no nats-server (Debian has 2.9.10)")
    with NatsServer(binary=Path(binary)) as server:
        yield server


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], Awaitable[None]]:
    """Wait for a state that nobody announces."""

    async def wait(reached: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not reached():  # there is no event for it
                await asyncio.sleep(0.002)

    return wait


@pytest.fixture
def prefix() -> str:
    """A prefix that no other test uses."""
    return f"{_RUN}x{next(_stores)}"


@pytest.fixture
async def open_adapter(prefix: str) -> AsyncIterator[Callable[..., Awaitable[JetStreamAdapter]]]:
    """Open adapters of the test's prefix; close them afterwards."""
    opened: list[JetStreamAdapter] = []

    async def open_one(url: str, **settings: Any) -> JetStreamAdapter:
        given: dict[str, Any] = {"url": url, "prefix": prefix, "timeout_ms": 2000} | settings
        config = JetStreamConfig(**given)
        adapter = JetStreamAdapter(config)
        opened.append(adapter)
        await adapter.open(adapter_context())
        return adapter

    yield open_one
    for adapter in opened:
        await adapter.close()
