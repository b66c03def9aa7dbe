"""The memory adapter: the contract, and what is its own."""

from __future__ import annotations

import operator
import time
from collections.abc import Callable
from typing import Any, ClassVar

import anyio
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from netcore.builtin.memory import MemoryAdapter, MemoryConfig
from netcore.contracts.adapter import Batch, Stream
from netcore.errors import AdapterClosedError, AdapterError, ConfigError, CursorError
from netcore.events import IndexedEvent, StoredEvent
from netcore.testing.clock import ManualClock
from netcore.testing.contract import AdapterContract, MakeAdapter, Writer, adapter_context


class TestMemoryContract(AdapterContract):
    """The whole contract, on both event loops."""

    backends = ("asyncio", "trio")
    retention: ClassVar = {"max_events": 50}
    foreign_positions = ("1700000000000-0", "4", "4611686018427387905", "01", "00")

    @pytest.fixture
    def make_adapter(self) -> MakeAdapter:
        """Build memory adapters."""

        def make(**overrides: Any) -> MemoryAdapter:
            return MemoryAdapter(MemoryConfig(**overrides))

        return make


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Both loops."""
    return str(request.param)


async def opened(*, now: Callable[[], int] | None = None, **settings: Any) -> MemoryAdapter:
    config = MemoryConfig(**settings)
    adapter = MemoryAdapter(config) if now is None else MemoryAdapter(config, now=now)
    await adapter.open(adapter_context())
    return adapter


class Model:
    """A shard as a list: all that was stored, of which the newest are retained."""

    def __init__(self, max_events: int) -> None:
        self.max_events = max_events
        self.raws: list[bytes] = []

    @property
    def first(self) -> int:
        return max(0, len(self.raws) - self.max_events)


@pytest.mark.parametrize("max_events", [1, 2, 7, 16, 100, 5000])
@settings(max_examples=30, deadline=None, database=None)
@given(sizes=st.lists(st.integers(1, 90), min_size=1, max_size=12), data=st.data())
def test_memory_with_any_batches_equals_a_list(
    max_events: int, sizes: list[int], data: st.DataObject
) -> None:
    """Pages, ids, gaps, bounds and has_more are those of a list that keeps its newest events."""

    async def run() -> None:
        adapter, model = await opened(max_events=max_events), Model(max_events)
        writer = Writer(adapter)
        for size in sizes:
            batch = await writer.write(b"%d" % (len(model.raws) + n) for n in range(size))
            model.raws += [event.raw for event in batch.events]
            total, first = len(model.raws), model.first
            assert await adapter.bounds(Stream(0)) == (str(first), str(total))
            after = data.draw(st.none() | st.integers(0, total))
            limit = data.draw(st.integers(1, 120))
            page = await adapter.read(Stream(0), None if after is None else str(after), limit)
            start = max(first, after or 0)
            expected = model.raws[start : start + limit]
            assert [event.raw for event in page.events] == expected
            assert [event.id for event in page.events] == [str(start + n + 1) for n in range(len(expected))]
            assert (page.position, page.has_more) == (str(start + len(expected)), start + limit < total)
            missed = 0 if after is None else max(0, first - after)
            assert (page.gap.missed if page.gap else 0) == missed

    anyio.run(run)


@settings(max_examples=60, deadline=None, database=None)
@given(stamps=st.lists(st.integers(0, 40), min_size=1, max_size=60), ts=st.integers(0, 41))
@example(stamps=[40] * 5 + [0] * 60 + [7], ts=5)  # the greatest is trimmed
def test_memory_seek_finds_the_first_event_at_or_after_a_time(stamps: list[int], ts: int) -> None:
    """Whatever the order of timestamps, nothing older than needed is skipped too far: it is exact."""

    async def run() -> None:
        adapter = await opened(max_events=24)
        await Writer(adapter).write((b"x" for _ in stamps), ts=stamps)
        first = max(0, len(stamps) - 24)
        found = next((n for n in range(first, len(stamps)) if stamps[n] >= ts), len(stamps))
        assert await adapter.seek(Stream(0), ts) == str(found)

    anyio.run(run)


@pytest.mark.anyio
async def test_memory_append_keeps_the_objects_of_the_bus() -> None:
    """An `IndexedEvent` is stored and returned as the object it is, numbered in place."""
    adapter = await opened()
    events: list[StoredEvent] = [IndexedEvent(0, 5, n, b"x") for n in range(3000)]  # type: ignore[arg-type]
    await adapter.append(Batch(producer="p", shard=5, first_seq=0, events=events))
    page = await adapter.read(Stream(5), "10", 2500)
    assert all(map(operator.is_, page.events, events[10:2510]))
    assert [event.id for event in events[:2]] == ["1", "2"]


@pytest.mark.anyio
async def test_memory_append_of_plain_events_leaves_them_alone() -> None:
    """A plain event is copied: its own id stays."""
    adapter = await opened()
    plain = StoredEvent(id="mine", shard=0, ts=1, raw=b"x", origin="here")
    await adapter.append(Batch(producer="p", shard=0, first_seq=0, events=[plain]))
    (found,) = (await adapter.read(Stream(0), None, 1)).events
    assert (plain.id, found.id, found.origin, found.ts) == ("mine", "1", "here", 1)


@pytest.mark.anyio
async def test_memory_trimmed_stream_reports_exact_gap_for_every_position() -> None:
    """Whatever the position, exactly the newest events are there and the rest is counted."""
    adapter = await opened(max_events=10)
    await Writer(adapter).write(b"%d" % n for n in range(37))
    for after in range(38):
        page = await adapter.read(Stream(0), str(after), 100)
        assert len(page.events) == min(10, 37 - after)
        assert (page.gap.missed if page.gap else 0) == max(0, 27 - after)


@pytest.mark.anyio
async def test_memory_stream_heard_of_late_reports_what_it_lost() -> None:
    """A chain enters a new stream at "0", so events trimmed before its first read are a gap."""
    adapter = await opened(max_events=2)
    await Writer(adapter).write([b"1", b"2", b"3"])
    position = await adapter.enter(Stream(0), 0)
    page = await adapter.read(Stream(0), position, 10)
    assert page.gap is not None
    assert page.gap.missed == 1
    assert (await adapter.read(Stream(0), None, 10)).gap is None


@pytest.mark.anyio
async def test_memory_snapshot_overtaken_by_trimming_shows_nothing() -> None:
    """Events that a snapshot held and that are trimmed since are a gap, later ones stay hidden."""
    adapter = await opened(max_events=5)
    writer = Writer(adapter)
    await writer.write([b"a"] * 3)
    snapshot = await adapter.snapshot()
    await writer.write([b"b"] * 20)
    page = await adapter.read(Stream(0), "1", 10, snapshot)
    assert (page.events, page.has_more, page.position) == ([], False, "18")
    assert page.gap is not None
    assert page.gap.missed == 17


@pytest.mark.anyio
async def test_memory_events_too_old_are_trimmed_by_time() -> None:
    """`max_age_s` trims by `ts` against the clock, without an append, with an exact gap."""
    clock = ManualClock()
    adapter = await opened(max_age_s=10.0, max_events=100, now=clock)
    start = clock()
    await Writer(adapter).write([b"a", b"b", b"c"], ts=[start, start + 5_000_000_000, start + 9_000_000_000])
    clock.advance(10)
    assert len((await adapter.read(Stream(0), None, 9)).events) == 3
    clock.advance(0.000000001)
    page = await adapter.read(Stream(0), "0", 9)
    assert [event.raw for event in page.events] == [b"b", b"c"]
    assert page.gap is not None
    assert page.gap.missed == 1
    clock.advance(100)
    assert await adapter.bounds(Stream(0)) == ("3", "3")
    assert adapter.stats() == {"streams": 1, "stored": 3, "retained": 0, "trimmed": 3}
    await Writer(adapter).write([b"d"], ts=[clock()])
    assert [event.raw for event in (await adapter.read(Stream(0), "3", 9)).events] == [b"d"]


@pytest.mark.anyio
async def test_memory_producers_remembered_are_bounded() -> None:
    """The 1,024 latest producers of a shard are recognised; the oldest is forgotten."""
    adapter = await opened()
    producers = [f"{n:032x}" for n in range(1025)]
    for producer in producers:
        await Writer(adapter, producer=producer).write([b"x"])
    await Writer(adapter, producer=producers[1]).write([b"x"])
    assert (await adapter.bounds(Stream(0)))[1] == "1025"
    await Writer(adapter, producer=producers[0]).write([b"x"])
    assert (await adapter.bounds(Stream(0)))[1] == "1026"


@pytest.mark.anyio
async def test_memory_position_beyond_the_end_is_refused_with_the_reason() -> None:
    """A position that was never issued can only be foreign."""
    adapter = await opened()
    await Writer(adapter).write([b"x"])
    with pytest.raises(CursorError, match="position 2 of shard 0 was never issued: 1 events"):
        await adapter.read(Stream(0), "2", 1)
    with pytest.raises(CursorError):
        await adapter.wait({Stream(0): "x"}, 0)


@pytest.mark.anyio
async def test_memory_stream_of_an_origin_is_unknown() -> None:
    """Its streams have no origin; another's is empty."""
    adapter = await opened()
    await Writer(adapter).write([b"x"])
    assert (await adapter.read(Stream(0, "elsewhere"), None, 9)).events == []


@pytest.mark.anyio
async def test_memory_closed_tells_who_waits() -> None:
    """A wait under way ends with `AdapterClosedError`."""
    adapter = await opened()

    async def wait() -> None:
        with pytest.raises(AdapterClosedError, match="closed"):
            await adapter.wait({}, 60)

    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            await adapter.close()
    assert not (await adapter.health()).ok
    with pytest.raises(AdapterClosedError):
        await adapter.open(adapter_context())


@pytest.mark.anyio
async def test_memory_not_open_refuses_calls_and_opens_once() -> None:
    """Calls before `open`, and a second `open`, say what is wrong."""
    adapter = MemoryAdapter(MemoryConfig())
    with pytest.raises(AdapterClosedError, match="not open yet"):
        await adapter.streams()
    await adapter.open(adapter_context())
    with pytest.raises(AdapterError, match="once"):
        await adapter.open(adapter_context())


@pytest.mark.parametrize("wrong", [{"max_events": 0}, {"max_events": 10**9 + 1}, {"max_age_s": 0}])
def test_memory_config_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    """The message names the setting."""
    with pytest.raises(ConfigError, match=f"adapter.{next(iter(wrong))} must be"):
        MemoryConfig(**wrong)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_memory_page_costs_the_same_whatever_is_retained() -> None:
    """A page of a million retained events takes no more than a few times one of ten thousand."""
    costs = []
    for retained in (10_000, 1_000_000):
        adapter = await opened(max_events=retained)
        for seq in range(0, retained + 5000, 5000):
            events: list[StoredEvent] = [
                IndexedEvent(0, 0, seq + n, b"x")  # type: ignore[arg-type]  # as rings build them
                for n in range(5000)
            ]
            await adapter.append(Batch(producer="p", shard=0, first_seq=seq, events=events))
        middle = str(5000 + retained // 2)
        costs.append(min([await _page_cost(adapter, middle) for _ in range(200)]))
    assert costs[1] < 5 * costs[0]


async def _page_cost(adapter: MemoryAdapter, after: str) -> float:
    started = time.perf_counter()
    await adapter.seek(Stream(0), 10)
    page = await adapter.read(Stream(0), after, 1000)
    await adapter.bounds(Stream(0))
    spent = time.perf_counter() - started
    assert len(page.events) == 1000
    return spent
