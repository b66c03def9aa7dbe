"""The plugin at work in a bus."""

from __future__ import annotations

import asyncio

from net_filter_jsonpath import Filter, FilterBuilder

import netcore
from netcore import ConsumeRequest, EventBus, EventBusConfig


def test_names_of_the_core_resolve_to_this_plugin() -> None:
    """`netcore.Filter` and `netcore.FilterBuilder` are the classes of this package."""
    assert netcore.Filter is Filter
    assert netcore.FilterBuilder is FilterBuilder


def test_poll_with_filter_returns_matches_and_counts_undecodable() -> None:
    """Filter objects and their JSON form serve a poll; what is not JSON is counted, not returned."""

    async def scenario() -> None:
        async with EventBus(EventBusConfig(shards=2)) as bus:
            for index in range(100):
                bus.ingest({"token": "hello" if index % 4 == 0 else "other", "index": index})
            bus.ingest_raw(b"\xff not JSON")
            await bus.flush(timeout=10)
            hello = Filter.eq("token", "hello")
            page = await bus.poll(ConsumeRequest(100, start="earliest", filter=hello))
            assert sorted(event.decode()["index"] for event in page.events) == list(range(0, 100, 4))
            for form in (~hello, (~hello).to_json(), {"$not": {"path": "token", "value": "hello"}}):
                page = await bus.poll(ConsumeRequest(100, start="earliest", filter=form))
                assert len(page.events) == 75
                assert page.undecodable == 1

    asyncio.run(scenario())
