"""Reads that fail, and reads that never answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import anyio
import pytest
from consume_lab import AsyncStore, Lab, Store, lab

from netcore.consume.reader import MAX_AT_ONCE
from netcore.contracts.adapter import Adapter, Capabilities, ReadRequest, ShardPage, Stream
from netcore.errors import AdapterError, CursorError, TransientAdapterError

pytestmark = pytest.mark.anyio

TIMEOUT_S = 0.5


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def away() -> None:
    raise TransientAdapterError("away")


def bug() -> None:
    raise KeyError("oops")


async def stubborn(release: anyio.Event) -> None:
    """Ignore every cancellation until released."""
    with anyio.CancelScope(shield=True):
        while not release.is_set():
            try:
                await release.wait()
            except BaseException:
                continue


async def until_answered(bench: Lab, cursor: str, limit: int = 100) -> list[int]:
    """Poll until no shard is reported any more; return what came."""
    got: list[int] = []
    with anyio.fail_after(10):
        while True:
            page = await bench.poll(limit, cursor=cursor)
            cursor = page.cursor
            got += [event.ts for event in page.events]
            if not page.failed_shards:
                return got
            await anyio.sleep(0.01)


@pytest.mark.parametrize("make", [Store, AsyncStore])
@pytest.mark.parametrize(("fault", "text"), [(away, "away"), (bug, "KeyError: 'oops'")])
async def test_read_that_raises_names_the_shard_and_serves_the_others(
    anyio_backend: str, make: type[Store], fault: object, text: str
) -> None:
    """The shard keeps its position, whatever it raised; nothing of it is skipped."""
    store = make()
    store.put(0, 1, 3)
    store.put(1, 2, 4)
    async with lab(store) as bench:
        store.faults[Stream(1)] = fault  # type: ignore[assignment]
        page = await bench.poll()
        assert [event.ts for event in page.events] == [1, 3]
        assert page.failed_shards == {1: text}
        assert not page.has_more
        store.faults.clear()
        page = await bench.poll(cursor=page.cursor)
        assert [event.ts for event in page.events] == [2, 4]
        assert page.failed_shards == {}


@pytest.mark.parametrize("swallowing", [False, True])
@pytest.mark.parametrize("ordering", ["causal", "shard"])
async def test_read_that_hangs_costs_one_poll_the_timeout_and_later_ones_nothing(
    anyio_backend: str, ordering: str, swallowing: bool
) -> None:
    """The others are served; the shard is probed, one probe at a time, and served when it answers."""
    store = AsyncStore()
    store.put(0, 1)
    store.put(1, 2)
    release = anyio.Event()
    asked: list[int] = []
    probed_twice = anyio.Event()
    at_once = [0, 0]

    async def hang() -> None:
        asked.append(1)
        if len(asked) == 3:
            probed_twice.set()
        at_once[0] += 1
        at_once[1] = max(at_once)
        try:
            await (stubborn(release) if swallowing else release.wait())
        finally:
            at_once[0] -= 1

    store.faults[Stream(1)] = hang
    async with lab(store, timeout_s=TIMEOUT_S) as bench:
        began = time.monotonic()
        page = await bench.poll(ordering=ordering)
        first = time.monotonic() - began
        assert TIMEOUT_S * 0.9 <= first < TIMEOUT_S + 1
        assert [event.ts for event in page.events] == [1]
        assert set(page.failed_shards) == {1}
        assert "no answer within 0.5 s" in page.failed_shards[1]
        began = time.monotonic()
        for _ in range(3):
            again = await bench.poll(cursor=page.cursor, ordering=ordering)
            assert set(again.failed_shards) == {1}
            assert again.cursor == page.cursor
        assert time.monotonic() - began < TIMEOUT_S
        if not swallowing:
            with anyio.fail_after(10):
                await probed_twice.wait()  # while nobody polls
        store.faults.clear()
        release.set()
        assert await until_answered(bench, page.cursor) == [2]
        assert at_once[1] == 1


async def test_reads_that_hang_in_more_streams_than_are_read_at_once_cost_one_timeout(
    anyio_backend: str,
) -> None:
    """The time-out bounds the whole round; streams not even asked are reported too, and asked later."""
    store = AsyncStore()
    for shard in range(MAX_AT_ONCE + 30):
        store.put(shard, shard + 1)
        if shard < MAX_AT_ONCE:
            store.faults[Stream(shard)] = anyio.sleep_forever
    async with lab(store, timeout_s=1.0) as bench:
        with anyio.fail_after(3):
            page = await bench.poll()
        assert len(page.failed_shards) == MAX_AT_ONCE + 30
        with anyio.fail_after(0.9):
            page = await bench.poll(cursor=page.cursor)
        assert [event.shard for event in page.events] == list(range(MAX_AT_ONCE, MAX_AT_ONCE + 30))
        store.faults.clear()
        assert sorted(await until_answered(bench, page.cursor)) == list(range(1, MAX_AT_ONCE + 1))


class Together(AsyncStore):
    """Answers all streams in one call."""

    def __init__(self) -> None:
        super().__init__()
        self.rounds: list[int] = []
        self.answer: object = None

    async def read_many(
        self, requests: Sequence[ReadRequest], snapshot: object = None
    ) -> list[ShardPage | Exception]:
        self.rounds.append(len(requests))
        await self._fault("many")
        if self.answer is not None:
            return self.answer  # type: ignore[return-value]
        pages: list[ShardPage | Exception] = []
        for request in requests:
            try:
                page = await super().read(request.stream, request.after, request.limit, snapshot)
                pages.append(page)
            except TransientAdapterError as error:
                pages.append(error)
        return pages


class Derived(Together):
    """Overrides `read` below `read_many`: that is what must be used."""

    async def read(self, stream: Stream, after: str | None, limit: int, snapshot: object = None) -> ShardPage:
        return await super().read(stream, after, limit, snapshot)


async def test_read_many_is_used_unless_read_is_the_more_derived(anyio_backend: str) -> None:
    """Whoever overrides the one call last decides."""
    for make, rounds in ((Together, [2]), (Derived, [])):
        store = make()
        store.put(0, 1)
        store.put(1, 2)
        async with lab(store) as bench:
            page = await bench.poll()
            assert [event.ts for event in page.events] == [1, 2]
            assert store.rounds == rounds


async def test_read_many_with_one_stream_hanging_falls_back_and_names_it(anyio_backend: str) -> None:
    """Half the time-out for all together, half for each alone; then without the hanging one."""
    store = Together()
    store.put(0, 1)
    store.put(1, 2)
    store.faults[Stream(1)] = anyio.sleep_forever
    async with lab(store, timeout_s=TIMEOUT_S) as bench:
        with anyio.fail_after(TIMEOUT_S + 1):
            page = await bench.poll()
        assert [event.ts for event in page.events] == [1]
        assert set(page.failed_shards) == {1}
        store.put(0, 3)
        began = time.monotonic()
        page = await bench.poll(cursor=page.cursor)
        assert time.monotonic() - began < TIMEOUT_S / 2
        assert [event.ts for event in page.events] == [3]
        assert store.rounds == [2, 1]
        store.faults.clear()
        assert await until_answered(bench, page.cursor) == [2]


async def test_read_many_that_alone_hangs_is_avoided_for_a_while(anyio_backend: str) -> None:
    """With no stream to blame, later polls must not wait for it again and again."""
    store = Together()
    store.put(0, 1)
    store.faults["many"] = anyio.sleep_forever
    async with lab(store, timeout_s=TIMEOUT_S) as bench:
        page = await bench.poll()
        assert [event.ts for event in page.events] == [1]
        store.put(0, 2)
        page = await bench.poll(cursor=page.cursor)
        assert [event.ts for event in page.events] == [2]
        assert store.rounds == [1]


async def test_read_many_that_raises_names_every_shard(anyio_backend: str) -> None:
    """Nothing could be read; the poll still answers."""
    store = Together()
    store.put(0, 1)
    store.put(1, 2)
    store.faults["many"] = away
    async with lab(store) as bench:
        page = await bench.poll()
        assert (page.events, page.failed_shards) == ([], {0: "away", 1: "away"})


@pytest.mark.parametrize("answer", [[], "pages", [None], [7, 8]])
async def test_read_many_that_returns_nonsense_is_a_failing_read(anyio_backend: str, answer: object) -> None:
    """A broken adapter is named, and breaks no poll."""
    store = Together()
    store.put(0, 1)
    store.answer = answer
    async with lab(store) as bench:
        page = await bench.poll()
        assert page.events == []
        assert "must return" in page.failed_shards[0]


async def test_read_many_with_a_cursor_error_raises_it(anyio_backend: str) -> None:
    """A position that is none is the caller's to know, wherever it is found."""
    store = Together()
    store.put(0, 1)
    store.answer = [CursorError("no position")]
    async with lab(store) as bench:
        with pytest.raises(CursorError, match="no position"):
            await bench.poll()


class Listed(Together):
    """Lists in the call that reads; takes no snapshots."""

    snapshot = Adapter.snapshot

    def __init__(self) -> None:
        super().__init__()
        self.between: Callable[[], None] = lambda: None
        self.listed: list[list[Stream]] = []
        self.reply: object = None

    async def read_listed(
        self, requests: Sequence[ReadRequest]
    ) -> tuple[list[ShardPage | Exception], list[Stream]]:
        self.listed.append([request.stream for request in requests])
        await self._fault("listed")
        if self.reply is not None:
            return self.reply  # type: ignore[return-value]
        pages = await self.read_many(requests)
        self.between()  # what is stored between the reads and the list
        return pages, await self.streams()


class ListedBelow(Listed):
    """Overrides a call that `read_listed` is made of."""

    async def streams(self) -> list[Stream]:
        return await super().streams()


class ListedWithSnapshots(Listed):
    """Takes snapshots, which a page needs before it reads."""

    async def snapshot(self) -> object:
        return None


async def test_read_listed_reads_what_the_chain_knows_in_one_call(anyio_backend: str) -> None:
    """The first poll pins; from then on one call does; a stream that it lists anew is read at once."""
    store = Listed()
    store.put(0, 1, 4)
    async with lab(store) as bench:
        page = await bench.poll(limit=1)
        assert (store.listed, store.rounds) == ([[Stream(0)]], [1])  # the first poll listed to pin
        store.put(1, 2, 3)
        page = await bench.poll(limit=3, cursor=page.cursor)
        assert [event.ts for event in page.events] == [2, 3, 4]
        assert store.listed == [[Stream(0)]] * 2
        assert store.rounds == [1, 1, 1]
        assert not page.has_more


async def test_read_listed_stream_that_appears_behind_the_reads_is_in_the_page(anyio_backend: str) -> None:
    """A cause that is listed only now never comes after its effect."""
    store = Listed()
    store.put(0, 10)
    async with lab(store) as bench:
        page = await bench.poll()
        store.put(0, 30)
        store.between = lambda: store.put(7, 20)
        page = await bench.poll(cursor=page.cursor)
        assert [event.ts for event in page.events] == [20, 30]


@pytest.mark.parametrize("make", [ListedBelow, ListedWithSnapshots])
async def test_read_listed_is_not_used_beside_newer_calls_or_snapshots(
    anyio_backend: str, make: type[Listed]
) -> None:
    """Whoever overrides `streams` or `snapshot` wants them called."""
    store = make()
    store.put(0, 1)
    async with lab(store) as bench:
        page = await bench.poll()
        assert [event.ts for event in page.events] == [1]
        assert store.listed == []


async def test_read_listed_is_not_used_for_settled_or_sharded_polls(anyio_backend: str) -> None:
    """The one needs a list as new as the poll, the other reads no stream before its turn."""
    store = Listed()
    store.put(0, 1)
    async with lab(store) as bench:
        page = await bench.poll(settle_ms=1.0)
        page = await bench.poll(cursor=page.cursor, ordering="shard")
        assert page.failed_shards == {}
        assert store.listed == []


async def test_read_listed_that_hangs_fails_one_poll_and_is_avoided_for_a_while(anyio_backend: str) -> None:
    """Half the time-out; then listing and reading apart tell what is wrong, here nothing."""
    store = Listed()
    store.put(0, 1)
    async with lab(store, timeout_s=TIMEOUT_S) as bench:
        store.faults["listed"] = anyio.sleep_forever
        with anyio.fail_after(TIMEOUT_S + 1):
            page = await bench.poll()
        assert (page.events, set(page.failed_shards)) == ([], {0})
        page = await bench.poll(cursor=page.cursor)
        assert [event.ts for event in page.events] == [1]
        assert len(store.listed) == 1


async def test_read_listed_that_raises_names_every_shard(anyio_backend: str) -> None:
    """As a failing list does."""
    store = Listed()
    store.put(0, 1)
    store.put(1, 2)
    async with lab(store) as bench:
        store.faults["listed"] = away
        page = await bench.poll()
        assert (page.events, page.failed_shards) == ([], {0: "away", 1: "away"})
        store.faults.clear()
        page = await bench.poll(cursor=page.cursor)
        assert [event.ts for event in page.events] == [1, 2]


@pytest.mark.parametrize("reply", [([], []), ("pages", []), 5, ([7], []), ([None], [Stream(0)])])
async def test_read_listed_that_returns_nonsense_is_a_failing_read(anyio_backend: str, reply: object) -> None:
    """A broken adapter is named, and breaks no poll."""
    store = Listed()
    store.put(0, 1)
    async with lab(store) as bench:
        store.reply = reply
        page = await bench.poll()
        assert page.events == []
        if reply != ([7], []):  # lists nothing, so nothing is read
            assert "must return" in page.failed_shards[0]


async def test_read_listed_with_a_cursor_error_raises_it(anyio_backend: str) -> None:
    """A position that is none is the caller's to know, wherever it is found."""
    store = Listed()
    store.put(0, 1)
    async with lab(store) as bench:
        store.reply = ([CursorError("no position")], [Stream(0)])
        with pytest.raises(CursorError, match="no position"):
            await bench.poll()


@pytest.mark.parametrize("call", ["snapshot", "streams"])
async def test_listing_that_fails_names_every_known_shard_and_hangs_only_once(
    anyio_backend: str, call: str
) -> None:
    """A store that cannot be asked does not look idle."""
    store = AsyncStore()
    store.put(0, 1)
    store.put(4, 2)
    async with lab(store, timeout_s=TIMEOUT_S) as bench:
        first = await bench.poll(1)
        store.faults[call] = away
        page = await bench.poll(cursor=first.cursor)
        assert (page.events, page.cursor) == ([], first.cursor)
        assert page.failed_shards == {0: "away", 4: "away"}
        store.faults[call] = anyio.sleep_forever
        await bench.poll(cursor=first.cursor)
        began = time.monotonic()
        page = await bench.poll(cursor=first.cursor, shards=[4])
        assert time.monotonic() - began < TIMEOUT_S
        assert set(page.failed_shards) == {4}
        store.faults.clear()
        assert await until_answered(bench, first.cursor) == [2]


async def test_listing_that_fails_with_no_shard_known_raises(anyio_backend: str) -> None:
    """Nothing could be named, and silence would be a lie."""
    store = Store()
    async with lab(store) as bench:
        first = await bench.poll()
        store.faults["streams"] = away
        with pytest.raises(AdapterError, match="away"):
            await bench.poll(cursor=first.cursor)
        page = await bench.poll(cursor=first.cursor, shards=[0])
        assert page.failed_shards == {0: "away"}


async def test_failing_origin_of_a_shard_names_the_shard_and_serves_its_other_origins(
    anyio_backend: str,
) -> None:
    """`failed_shards` is by shard, positions are by stream."""
    store = Store()
    store.put(0, 1, origin="a")
    store.put(0, 2, origin="b")
    store.faults[Stream(0, "a")] = away
    async with lab(store) as bench:
        page = await bench.poll()
        assert [event.ts for event in page.events] == [2]
        assert page.failed_shards == {0: "away"}
        store.faults.clear()
        page = await bench.poll(cursor=page.cursor)
        assert [event.ts for event in page.events] == [1]


async def test_close_with_a_hanging_probe_is_bounded(anyio_backend: str) -> None:
    """Closing waits about a second at most for calls that ignore their cancellation."""
    store = AsyncStore()
    store.put(0, 1)
    release = anyio.Event()
    store.faults[Stream(0)] = lambda: stubborn(release)
    async with lab(store, timeout_s=0.1) as bench:
        await bench.poll()
        with anyio.fail_after(3):
            await bench.poller.aclose()
        release.set()
        await anyio.sleep(0.01)


async def test_inline_read_that_suspends_for_ever_is_cut_off_too(anyio_backend: str) -> None:
    """An adapter that breaks its promise never to suspend costs the time-out, not the bus."""
    store = Store()
    assert store.capabilities == Capabilities(inline=True)
    store.put(0, 1)
    store.put(1, 2)
    store.faults[Stream(1)] = anyio.sleep_forever
    async with lab(store, timeout_s=0.1) as bench:
        page = await bench.poll()
        assert [event.ts for event in page.events] == [1]
        assert set(page.failed_shards) == {1}
