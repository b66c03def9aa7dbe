"""Every stored event comes exactly once, in order, whatever happens between two pages."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from consume_lab import BACKENDS, AsyncStore, ByNumber, Lab, Store, lab, names, oracle
from hypothesis import given, settings
from hypothesis import strategies as st

from netcore.contracts.adapter import ShardPage, Stream
from netcore.errors import TransientAdapterError
from netcore.events import StoredEvent

Stamps = dict[tuple[int, str], list[int | None]]

stamps = st.one_of(st.integers(0, 30), st.integers(1, 1 << 61))
logs = st.dictionaries(
    st.tuples(st.integers(0, 5), st.sampled_from(["", "a", "b"])), st.lists(stamps, max_size=25), max_size=6
)
rising_logs = logs.map(lambda many: {key: sorted(run) for key, run in many.items()})
with_junk = st.dictionaries(
    st.tuples(st.integers(0, 3), st.just("")),
    st.lists(st.one_of(st.integers(0, 50), st.none()), max_size=20),
    max_size=4,
)
limits = st.integers(1, 40)


def fill(store: Store, many: Stamps) -> Store:
    for (shard, origin), run in many.items():
        store.put(shard, *run, origin=origin)
    return store


def run(backend: str, store: Store, body: Callable[[Lab], Awaitable[None]], **options: Any) -> None:
    async def main() -> None:
        async with lab(store, **options) as bench:
            await body(bench)

    anyio.run(main, backend=backend)


def emitted(pages: list[Any]) -> list[StoredEvent]:
    return [event for page in pages for event in page.events]


def assert_fifo(events: list[StoredEvent]) -> None:
    last: dict[tuple[int, str], int] = {}
    for event in events:
        stream = (event.shard, event.origin)
        assert int(event.id) > last.get(stream, 0)
        last[stream] = int(event.id)


@pytest.mark.parametrize("backend", BACKENDS)
@given(many=st.one_of(logs, rising_logs), limit=limits, inline=st.booleans())
@settings(max_examples=150, deadline=None)
def test_causal_pages_any_streams_and_limit_equal_the_sorted_oracle(
    backend: str, many: Stamps, limit: int, inline: bool
) -> None:
    """Concatenated pages are the k-way merge: complete, once, sorted by key, and full pages at that."""
    store = fill(Store() if inline else AsyncStore(), many)

    async def body(bench: Lab) -> None:
        pages = await bench.drain(limit)
        expected = oracle(store)
        events = emitted(pages)
        key_of = {row[1:]: row[0] for row in expected}
        assert Counter(names(events)) == Counter(row[1:] for row in expected)
        keys = [key_of[name] for name in names(events)]
        assert keys == sorted(keys)
        assert_fifo(events)
        assert all(len(page.events) == limit for page in pages[:-1])
        again = await bench.poll(limit, cursor=pages[-1].cursor)
        assert (again.events, again.cursor, again.has_more) == ([], pages[-1].cursor, False)

    run(backend, store, body)


@given(many=logs, limit=limits)
@settings(max_examples=150, deadline=None)
def test_shard_pages_any_streams_and_limit_are_complete_and_fifo(many: Stamps, limit: int) -> None:
    """Unordered pages return everything once, each stream in its own order, pages filled."""
    store = fill(Store(), many)

    async def body(bench: Lab) -> None:
        pages = await bench.drain(limit, ordering="shard")
        events = emitted(pages)
        assert Counter(names(events)) == Counter(row[1:] for row in oracle(store))
        assert_fifo(events)
        assert all(len(page.events) == limit for page in pages[:-1])
        again = await bench.poll(limit, cursor=pages[-1].cursor, ordering="shard")
        assert (again.events, again.cursor) == ([], pages[-1].cursor)

    run("asyncio", store, body)


@given(
    many=logs, limit=limits, divisor=st.integers(1, 6), ordering=st.sampled_from(["causal", "shard"]),
    floor=st.one_of(st.none(), st.integers(0, 30)),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_filtered_pages_any_limit_return_each_match_once(
    many: Stamps, limit: int, divisor: int, ordering: str, floor: int | None
) -> None:
    """The limit counts matches; matches it cuts come next; nothing is shown to the filter twice."""
    store = fill(Store(), many)
    chosen = ByNumber(divisor)
    start = "earliest" if floor is None else floor

    async def body(bench: Lab) -> None:
        pages = await bench.drain(limit, ordering=ordering, filter=chosen, start=start)
        events = emitted(pages)
        stored = {(e.shard, e.origin, e.id): e for log in store.logs.values() for e in log if e is not None}
        wanted = [
            row[1:]
            for row in oracle(store)
            if int(row[3]) % divisor == 0 and (floor is None or stored[row[1:]].ts >= floor)
        ]
        assert Counter(names(events)) == Counter(wanted)
        assert all(len(page.events) <= limit for page in pages)
        assert_fifo(events)
        seen = sum(1 for e in stored.values() if floor is None or e.ts >= floor)
        assert len(chosen.shown) == seen

    run("asyncio", store, body)


@given(many=logs, limit=limits, chosen=st.sets(st.integers(0, 5), min_size=1))
@settings(max_examples=60, deadline=None)
def test_subset_polls_leave_the_other_streams_where_they_were(
    many: Stamps, limit: int, chosen: set[int]
) -> None:
    """A subset is served alone, in order; the rest comes afterwards from the same cursor."""
    store = fill(Store(), many)

    async def body(bench: Lab) -> None:
        bench.view.shards = set(range(6))
        pages = await bench.drain(limit, shards=chosen)
        assert names(emitted(pages)) == [row[1:] for row in oracle(store, chosen)] or len(
            {row[0] for row in oracle(store, chosen)}
        ) < len(oracle(store, chosen))
        assert Counter(names(emitted(pages))) == Counter(row[1:] for row in oracle(store, chosen))
        rest = await bench.drain(limit, cursor=pages[-1].cursor)
        others = set(range(6)) - chosen
        assert Counter(names(emitted(rest))) == Counter(row[1:] for row in oracle(store, others))

    run("asyncio", store, body)


@pytest.mark.parametrize("backend", BACKENDS)
@given(seed=st.integers(0, 1 << 32), limit=st.integers(1, 12), shards=st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_causal_pages_while_the_store_grows_stay_sorted(
    backend: str, seed: int, limit: int, shards: int
) -> None:
    """With one producer, growth between pages and between two reads of a page never breaks the order."""
    rng = random.Random(seed)
    store = AsyncStore()
    clock = [0]

    def grow() -> None:
        for _ in range(rng.choice((0, 0, 1, 1, 2, 4))):
            clock[0] += 1
            if clock[0] <= 60:
                store.put(rng.randrange(shards), clock[0])

    store.before_read = grow

    async def body(bench: Lab) -> None:
        events: list[StoredEvent] = []
        cursor = None
        whole = False
        while not whole:
            grow()
            grown = clock[0] > 60  # a page does not see what is stored after its snapshot
            page = await bench.poll(limit, cursor=cursor)
            cursor = page.cursor
            events += page.events
            whole = grown and not page.has_more
        assert [event.ts for event in events] == list(range(1, 61))

    run(backend, store, body)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ordering", ["causal", "shard"])
def test_every_read_of_a_page_is_given_its_one_snapshot(backend: str, ordering: str) -> None:
    """The first reads, the refills, and the look that counts what could not be decoded in a page cut short."""
    given: list[object] = []

    class Watched(Store):
        async def read(
            self, stream: Stream, after: str | None, limit: int, snapshot: object = None
        ) -> ShardPage:
            given.append(snapshot)
            return await super().read(stream, after, limit, snapshot)

    store = Watched()
    store.put(0, *(n if n % 3 else None for n in range(1, 600)))
    for shard in (1, 2):
        store.put(shard, *range(1000 * shard, 1000 * shard + 9))

    async def body(bench: Lab) -> None:
        page = await bench.poll(60, ordering=ordering)
        assert len(page.events) == 60
        assert page.undecodable > 0
        if ordering == "causal":
            assert len(given) > len(store.logs) + 1  # a refill, and the second look
        assert given[0] is not None
        assert all(snapshot is given[0] for snapshot in given)
        await bench.poll(1, cursor=page.cursor)
        assert given[-1] is not given[0]

    run(backend, store, body)


@given(data=st.data(), many=logs, limit=limits, ordering=st.sampled_from(["causal", "shard"]))
@settings(max_examples=80, deadline=None)
def test_pages_with_reads_failing_now_and_then_lose_and_repeat_nothing(
    data: st.DataObject, many: Stamps, limit: int, ordering: str
) -> None:
    """A failing read names the shard, keeps its position, and serves the others."""
    store = fill(Store(), many)
    faulty = data.draw(st.booleans()) if not store.logs else True

    def maybe() -> None:
        if faulty and data.draw(st.booleans()):
            raise TransientAdapterError("away")

    async def body(bench: Lab) -> None:
        cursor = None
        events: list[StoredEvent] = []
        store.faults = dict.fromkeys(store.logs, maybe)
        for _ in range(5):
            page = await bench.poll(limit, cursor=cursor, ordering=ordering)
            assert set(page.failed_shards.values()) <= {"away", "away; away", "away; away; away"}
            cursor = page.cursor
            events += page.events
        store.faults = {}
        events += emitted(await bench.drain(limit, cursor=cursor, ordering=ordering))
        assert Counter(names(events)) == Counter(row[1:] for row in oracle(store))
        assert_fifo(events)

    run("asyncio", store, body)


@given(many=with_junk, limit=limits, ordering=st.sampled_from(["causal", "shard"]))
@settings(max_examples=150, deadline=None)
def test_undecodable_entries_any_cut_are_counted_once_and_skipped(
    many: Stamps, limit: int, ordering: str
) -> None:
    """However pages are cut, the counts of undecodable entries add up to what is stored."""
    store = fill(Store(), many)

    async def body(bench: Lab) -> None:
        pages = await bench.drain(limit, ordering=ordering)
        assert Counter(names(emitted(pages))) == Counter(row[1:] for row in oracle(store))
        junk = sum(log.count(None) for log in store.logs.values())
        assert sum(page.undecodable for page in pages) == junk

    run("asyncio", store, body)


@given(many=logs, limit=st.integers(1, 8), trims=st.lists(st.integers(0, 20), max_size=6))
@settings(max_examples=80, deadline=None)
def test_gaps_while_trimming_account_for_every_event(many: Stamps, limit: int, trims: list[int]) -> None:
    """Events returned and events missed add up; each gap is told once."""
    store = fill(Store(), many)

    async def body(bench: Lab) -> None:
        cursor = (await bench.poll(1, shards=None)).cursor if not store.logs else None
        pages = []
        for trim in [*trims, None]:
            page = await bench.poll(limit, cursor=cursor)
            cursor = page.cursor
            pages.append(page)
            for stream, log in store.logs.items():
                if trim is not None:
                    store.trimmed[stream] = max(store.trimmed.get(stream, 0), min(trim, len(log)))
        pages += await bench.drain(limit, cursor=cursor)
        missed = sum(gap.missed or 0 for page in pages for gap in page.gaps)
        events = emitted(pages)
        assert len(set(names(events))) == len(events)
        assert len(events) + missed == sum(map(len, store.logs.values()))

    run("asyncio", store, body)
