"""Real servers for the tests. `NETCORE_TEST_REDIS_URL` names one to use where none must be hurt."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
from net_adapter_redis import RedisAdapter, RedisConfig

from netcore.testing.contract import adapter_context
from netcore.testing.servers import RedisServer


@pytest.fixture
def anyio_backend() -> str:
    """Redis' client runs on asyncio."""
    return "asyncio"


@pytest.fixture(scope="module")
def _shared_server() -> Iterator[RedisServer]:
    # Written before each answer, so it survives a kill of the process; the disk is not what is tested.
    # A file whose end is missing is not loaded: else there would be no transactions.
    with RedisServer(appendonly=True, options={"appendfsync": "no", "aof-load-truncated": "no"}) as server:
        yield server


@pytest.fixture
def server(_shared_server: RedisServer) -> RedisServer:
    """A server of this test module's own, empty; a test may kill it or change its settings."""
    _shared_server.start()
    _shared_server.resume()
    _shared_server.call("FLUSHALL")
    return _shared_server


@pytest.fixture
def redis_url(request: pytest.FixtureRequest) -> str:
    """A server's URL: the one in the environment, else this module's own."""
    given = os.environ.get("NETCORE_TEST_REDIS_URL")
    if given:
        return given
    server: RedisServer = request.getfixturevalue("server")
    return server.url


@pytest.fixture
async def opened(server: RedisServer) -> AsyncIterator[Callable[..., Awaitable[RedisAdapter]]]:
    """Open adapters on `server`, or elsewhere; close them after the test."""
    adapters: list[RedisAdapter] = []

    async def open_one(url: str | None = None, **settings: Any) -> RedisAdapter:
        adapter = RedisAdapter(RedisConfig(url=url or server.url, **settings))
        adapters.append(adapter)
        await adapter.open(adapter_context())
        return adapter

    yield open_one
    for adapter in adapters:
        await adapter.close()
