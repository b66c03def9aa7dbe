"""Servers shared by the tests here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from netcore.testing.servers import NatsServer


@pytest.fixture(scope="session")
def nats() -> Iterator[NatsServer]:
    """One server for all tests that do not break it for good; each uses a prefix of its own."""
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
