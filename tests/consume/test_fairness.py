"""`ordering="shard"`: each busy shard gets its turn."""

from __future__ import annotations

import time

import anyio
import pytest
from consume_lab import ByNumber, Store, lab
from hypothesis import given, settings
from hypothesis import strategies as st


@given(
    busy=st.sets(st.integers(0, 15), min_size=1),
    shards=st.integers(1, 16),
    limit=st.integers(1, 40),
    filtered=st.booleans(),
)
@settings(max_examples=120, deadline=None)
def test_shard_order_each_busy_shard_appears_within_the_bound(
    busy: set[int], shards: int, limit: int, filtered: bool
) -> None:
    """Within ceil(2 * shards / limit) pages every busy shard has been served, wherever one begins."""
    busy = {shard % shards for shard in busy}
    bound = -(-2 * shards // limit)
    store = Store()
    for shard in range(shards):
        store.put(shard, *(range(2000) if shard in busy else []))

    async def main() -> None:
        async with lab(store) as bench:
            pages: list[set[int]] = []
            cursor = None
            for _ in range(3 * bound + 2):
                chosen = ByNumber(3) if filtered else None
                page = await bench.poll(limit, cursor=cursor, ordering="shard", filter=chosen)
                cursor = page.cursor
                pages.append({event.shard for event in page.events})
                if not page.has_more:
                    return
                assert len(page.events) == limit
            for first in range(len(pages) - bound + 1):
                assert set().union(*pages[first : first + bound]) == busy

    anyio.run(main)


def test_shard_order_one_busy_shard_among_many_fills_the_page() -> None:
    """Idle shards take no room."""
    store = Store()
    for shard in range(200):
        store.put(shard)
    store.put(137, *range(500))

    async def main() -> None:
        async with lab(store) as bench:
            page = await bench.poll(50, ordering="shard")
            assert len(page.events) == 50
            assert page.has_more

    anyio.run(main)


def test_causal_order_page_over_many_busy_shards_is_not_filled_from_low_ids() -> None:
    """A page spread over many shards takes what is oldest, wherever it lies."""
    store = Store()
    for shard in range(20):
        store.put(shard, *range(19 - shard, 1000, 20))

    async def main() -> None:
        async with lab(store) as bench:
            page = await bench.poll(10)
            assert [event.shard for event in page.events] == list(range(19, 9, -1))

    anyio.run(main)


@pytest.mark.parametrize("ordering", ["causal", "shard"])
def test_poll_cost_does_not_depend_on_what_is_retained(ordering: str) -> None:
    """However long the logs, a page asks for little more than it returns."""
    store = Store()
    for shard in range(8):
        store.put(shard, *range(shard, 40_000, 8))

    async def main() -> None:
        async with lab(store) as bench:
            page = await bench.poll(100, ordering=ordering)
            assert len(page.events) == 100
            assert sum(limit for _, _, limit in store.reads) < 350

    anyio.run(main)


async def test_polls_that_never_have_to_wait_let_other_tasks_run(anyio_backend: str) -> None:
    """Also where no call ever suspends: a loop of polls must not keep the loop to itself."""
    store = Store()
    store.put(0, *range(10))
    ran = False

    async def other() -> None:
        nonlocal ran
        ran = True

    async with lab(store) as bench, anyio.create_task_group() as group:
        group.start_soon(other)
        deadline = time.monotonic() + 10
        while not ran:
            assert len((await bench.poll(10)).events) == 10
            assert time.monotonic() < deadline
