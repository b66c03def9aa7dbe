"""The noop adapter counts, discards, and has nothing to show."""

from __future__ import annotations

import anyio
import pytest

from netcore.builtin.noop import NoopAdapter, NoopConfig
from netcore.contracts.adapter import ReadRequest, ShardPage, Stream
from netcore.errors import AdapterClosedError, CursorError
from netcore.testing.contract import Writer, adapter_context

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Both loops."""
    return str(request.param)


async def opened() -> NoopAdapter:
    adapter = NoopAdapter(NoopConfig())
    await adapter.open(adapter_context())
    return adapter


async def test_noop_appended_to_counts_and_keeps_nothing() -> None:
    """Events are counted; no stream appears and nothing can be read."""
    adapter = await opened()
    await Writer(adapter, shard=2).write([b"a", b"b", b"c"])
    assert adapter.stats() == {"discarded": 3}
    assert await adapter.streams() == []
    assert await adapter.read(Stream(2), None, 10) == ShardPage(events=[], position="0", has_more=False)
    assert await adapter.bounds(Stream(2)) == ("0", "0")


async def test_noop_read_from_its_position_is_empty_and_others_are_refused() -> None:
    """ "0" is a position, anything else a CursorError, also among many."""
    adapter = await opened()
    pages = await adapter.read_many([ReadRequest(Stream(0), "0", 1), ReadRequest(Stream(0), "1", 1)])
    assert isinstance(pages[0], ShardPage)
    assert isinstance(pages[1], CursorError)


async def test_noop_wait_ends_with_its_timeout() -> None:
    """Nothing newer ever comes."""
    adapter = await opened()
    with anyio.fail_after(5):
        await adapter.wait({}, 0.01)
        await adapter.wait({}, -1)


async def test_noop_closed_refuses_calls_and_keeps_its_count() -> None:
    """Closing is idempotent; stats stay readable."""
    adapter = await opened()
    await Writer(adapter).write([b"a"])
    await adapter.close()
    await adapter.close()
    with pytest.raises(AdapterClosedError, match="closed"):
        await adapter.streams()
    with pytest.raises(AdapterClosedError):
        await adapter.append(Writer(adapter).batch([b"b"]))
    assert adapter.stats() == {"discarded": 1}
