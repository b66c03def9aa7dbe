"""The core runs on asyncio and on trio: so does each of its async tests."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Name the event loop library that an async test runs on."""
    backend: str = request.param
    return backend
