"""Answers of the wrong shape: named by class and call, nothing lost, the cursor where it was."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any

import pytest
from consume_lab import AsyncStore, Lab, Store, lab

from netcore.contracts.adapter import ReadRequest, ShardPage, Stream
from netcore.errors import AdapterRefusedError, NetcoreError
from netcore.events import StoredEvent

pytestmark = pytest.mark.anyio

STORES = pytest.mark.parametrize("make", [Store, AsyncStore])


def answers(store: Store, call: str, answer: object) -> None:
    """Let one call answer the same always; `del store.<call>` mends it."""

    async def wrong(*args: Any, **options: Any) -> Any:
        return answer

    setattr(store, call, wrong)


def event(**fields: Any) -> StoredEvent:
    return StoredEvent(**{"id": "1", "shard": 0, "ts": 1, "raw": b"1", **fields})


def page(**fields: Any) -> ShardPage:
    return ShardPage(**{"events": [], "position": "0", "has_more": False, **fields})


async def stamps(bench: Lab, **options: Any) -> list[int]:
    found = await bench.poll(**options)
    assert found.failed_shards == {}
    return [each.ts for each in found.events]


@STORES
@pytest.mark.parametrize("start", ["earliest", "tail"])
@pytest.mark.parametrize("answer", [None, "ab", (), ("0",), ("0", "1", "2"), ("0", None), (0, 1), 7])
async def test_bounds_of_the_wrong_shape_are_named_and_begin_no_chain(
    anyio_backend: str, make: type[Store], start: str, answer: object
) -> None:
    """The first poll raises; the next one, once it is mended, has everything."""
    store = make()
    store.put(0, 1, 2)
    async with lab(store) as bench:
        answers(store, "bounds", answer)
        expected = rf"{make.__name__}\.bounds must return two positions .*, not {re.escape(repr(answer))}$"
        with pytest.raises(AdapterRefusedError, match=expected):
            await bench.poll(start=start)
        del store.bounds
        assert await stamps(bench) == [1, 2]


@STORES
@pytest.mark.parametrize(
    "answer",
    [None, 7, "ab", [0], [None], [Stream("0")], [Stream(-1)], [Stream(70_000)], [Stream(0, None)]],  # type: ignore[arg-type]
)
async def test_streams_of_the_wrong_shape_are_named_and_move_no_cursor(
    anyio_backend: str, make: type[Store], answer: object
) -> None:
    """A first poll raises, a later one names every shard that it knows; then nothing is missing."""
    store = make()
    store.put(0, 1, 2)
    async with lab(store) as bench:
        first = await bench.poll(1)
        answers(store, "streams", answer)
        with pytest.raises(AdapterRefusedError, match=rf"{make.__name__}\.streams must return .*, not "):
            await bench.poll()
        failed = await bench.poll(cursor=first.cursor)
        assert (failed.events, failed.cursor, list(failed.failed_shards)) == ([], first.cursor, [0])
        assert f"{make.__name__}.streams must return" in failed.failed_shards[0]
        del store.streams
        assert await stamps(bench, cursor=first.cursor) == [2]


async def test_streams_of_the_wrong_shape_with_no_shard_known_raise_the_fault_itself(
    anyio_backend: str,
) -> None:
    """Nothing to name: but no advice to try again, either."""
    store = Store()
    async with lab(store) as bench:
        first = await bench.poll()
        answers(store, "streams", None)
        with pytest.raises(AdapterRefusedError, match=r"streams must return a list of Stream, not None$"):
            await bench.poll(cursor=first.cursor)


PAGES: list[tuple[object, str]] = [
    (None, "a ShardPage, not None"),
    ([], "a ShardPage, not []"),
    (page(events=None), "a ShardPage whose events are a list, not None"),
    (page(events=(event(),)), "a ShardPage whose events are a list, not (StoredEvent"),
    (page(events=[b"1"]), "a ShardPage whose events are StoredEvents, not b'1'"),
    (page(events=[event(), {"ts": 2}]), "a ShardPage whose events are StoredEvents, not {'ts': 2}"),
    (page(events=[event(ts="1")]), "StoredEvents with an int as ts, bytes as raw and a str as id, not "),
    (page(events=[event(raw="1")]), "StoredEvents with an int as ts, bytes as raw and a str as id, not "),
    (page(events=[event(id=1)]), "StoredEvents with an int as ts, bytes as raw and a str as id, not "),
    (page(position=None), "a ShardPage whose position is a str, not None"),
    (page(has_more=None), "a ShardPage whose has_more is a bool, not None"),
    (page(gap=1), "a ShardPage whose gap is a Gap or None, not 1"),
    (page(undecodable=None), "a ShardPage whose undecodable is an int, not None"),
    (page(events=[event(), b"2", event(ts=3, id="3")]), "StoredEvents with an int as ts in its pages"),
    (page(events=[event(), event(ts="2"), event(ts=3)]), "StoredEvents with an int as ts in its pages"),
]


@STORES
@pytest.mark.parametrize("ordering", ["causal", "shard"])
@pytest.mark.parametrize(("answer", "expected"), PAGES)
async def test_page_of_the_wrong_shape_fails_its_shard_and_serves_the_others(
    anyio_backend: str, make: type[Store], ordering: str, answer: object, expected: str
) -> None:
    """Wherever in the page it is wrong, the shard keeps its position."""

    class Wrong(make):  # type: ignore[valid-type, misc]
        async def read(self, stream: Stream, *args: Any) -> Any:
            return answer if stream.shard == 1 and wrong else await super().read(stream, *args)

    wrong = False
    store = Wrong()
    store.put(0, 1, 4)
    store.put(1, 2, 3)
    async with lab(store) as bench:
        first = await bench.poll(2, ordering=ordering)
        wrong = True
        failed = await bench.poll(cursor=first.cursor, ordering=ordering)
        assert {each.shard for each in failed.events} <= {0}
        assert f".Wrong.read must return {expected}" in failed.failed_shards[1]
        wrong = False
        rest = await bench.poll(cursor=failed.cursor, ordering=ordering)
        came = [each.ts for part in (first, failed, rest) for each in part.events]
        assert sorted(came) == [1, 2, 3, 4]


class Together(AsyncStore):
    """Answers all streams in one call, one of them wrongly."""

    wrong: object = None

    async def read_many(self, requests: Sequence[ReadRequest], snapshot: object = None) -> Any:
        pages: list[object] = [
            await self.read(each.stream, each.after, each.limit, snapshot) for each in requests
        ]
        if self.wrong is not None:
            pages[-1] = self.wrong
        return pages


@pytest.mark.parametrize("answer", [7, page(position=None), page(events=[event(), None, event(ts=3)])])
async def test_read_many_with_one_wrong_page_fails_that_shard_alone(
    anyio_backend: str, answer: object
) -> None:
    """The others' pages are good, and go out."""
    store = Together()
    store.put(0, 1)
    store.put(1, 2)
    async with lab(store) as bench:
        store.wrong = answer
        failed = await bench.poll()
        assert [each.ts for each in failed.events] == [1]
        assert ".Together.read_many must return " in failed.failed_shards[1]
        store.wrong = None
        assert await stamps(bench, cursor=failed.cursor) == [2]


@pytest.mark.parametrize("answer", [5, b"0", ("0", "0")])
async def test_seek_and_enter_of_the_wrong_shape_are_named(anyio_backend: str, answer: object) -> None:
    """A position that is no text would make a cursor that nobody can read."""
    store = Store()
    store.put(0, 1)
    async with lab(store) as bench:
        answers(store, "seek", answer)
        with pytest.raises(AdapterRefusedError, match=r"Store\.seek must return a position"):
            await bench.poll(start=1)
        first = await bench.poll()
        store.put(1, 2)
        answers(store, "enter", answer)
        failed = await bench.poll(cursor=first.cursor)
        assert "Store.enter must return a position" in failed.failed_shards[1]
        del store.enter
        assert await stamps(bench, cursor=failed.cursor) == [2]


async def test_retired_of_the_wrong_shape_is_logged_once_and_keeps_the_entries(
    anyio_backend: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A poll needs no answer to this; its author should know nevertheless."""
    store = Store()
    store.put(0, 1)
    store.put(1, 2)
    async with lab(store) as bench:
        first = await bench.poll()
        store.gone.add(Stream(1))
        answers(store, "retired", 7)
        with caplog.at_level(logging.ERROR, "netcore.consume"):
            for _ in range(2):
                again = await bench.poll(cursor=first.cursor)
                assert (again.cursor, again.failed_shards) == (first.cursor, {})
        (record,) = caplog.records
        assert "Store.retired must return a list of Stream, not 7" in record.message


async def test_identity_that_is_no_text_is_named(anyio_backend: str) -> None:
    """It goes into every cursor."""
    store = Store()
    store.identity = lambda: 7  # type: ignore[method-assign, assignment, return-value]
    async with lab(store) as bench:
        with pytest.raises(NetcoreError, match=r"Store\.identity must return a str"):
            await bench.poll()


async def test_answer_whose_repr_raises_is_named_all_the_same(anyio_backend: str) -> None:
    """Wording an error must not fail."""

    class Unspeakable:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    store = Store()
    store.put(0, 1)
    async with lab(store) as bench:
        answers(store, "bounds", Unspeakable())
        with pytest.raises(AdapterRefusedError, match=r"bounds must return .*, not <Unspeakable instance"):
            await bench.poll()
