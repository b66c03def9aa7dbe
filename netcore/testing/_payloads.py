"""Clauses on payloads: any bytes come back identical."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from netcore.contracts.adapter import Stream
from netcore.testing._base import AnyAdapter, ContractBase, Writer, drain, raws

__all__ = ["AWKWARD_PAYLOADS", "PayloadClauses"]

AWKWARD_PAYLOADS = {
    "empty": b"",
    "nul": b"\x00",
    "nuls_inside": b"a\x00b\x00",
    "all_bytes": bytes(range(256)),
    "invalid_utf8": b"\xff\xfe\xc3\x28",
    "lone_surrogate": b"\xed\xa0\x80",
    "not_json": b"hello",
    "json": b'{"token": "hello", "index": 0}',
    "json_spaced": b' \t{ "a" : [ 1 , 2 ] }\r\n ',
    "envelope_tail": b'1,"t":2',
    "envelope_end": b'{"a":1},"t":1,"s":0}',
    "envelope_whole": b'{"r":1,"t":1,"s":0}',
    "envelope_begin": b'{"r":',
    "closing_braces": b"}}}",
    "newlines": b"\r\n\r\n+OK\r\n",
    "quote_backslash": b'"\\"\\',
    "large_number": b"123456789012345678901234567890.0e0",
    "msgpack": b"\x93\x01\xa1a\xc4\x01\x00",
}
"""Payloads that codecs and wire formats stumble over."""

_batches = st.lists(st.lists(st.binary(max_size=200), min_size=1, max_size=8), min_size=1, max_size=6)


def _drawn(test: Any) -> Any:
    """Let hypothesis draw batches for a clause."""
    quiet = [
        HealthCheck.function_scoped_fixture,
        HealthCheck.differing_executors,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ]
    return settings(max_examples=25, deadline=None, database=None, suppress_health_check=quiet)(
        example(batches=[[b"", b"\x00"], [b'1,"t":2', b"\xff"]])(given(batches=_batches)(test))
    )


class PayloadClauses(ContractBase):
    """Payloads are bytes, not text, not JSON."""

    @pytest.mark.parametrize("name", AWKWARD_PAYLOADS)
    async def test_payload_comes_back_identical(self, adapter: AnyAdapter, name: str) -> None:
        """Alone, and among others."""
        writer = Writer(adapter)
        await writer.write([AWKWARD_PAYLOADS[name]])
        await writer.write([b"1", AWKWARD_PAYLOADS[name], b"2"])
        assert raws(await drain(adapter)) == raws(writer.written)

    async def test_payload_of_the_largest_size_comes_back(self, adapter: AnyAdapter) -> None:
        """One of `max_payload` bytes, or of the adapter's own limit if that is less."""
        size = min(self.max_payload, adapter.capabilities.max_payload_bytes or self.max_payload)
        writer = Writer(adapter)
        await writer.write([bytes(range(256)) * (size // 256) + b"x" * (size % 256)])
        await writer.write([b"next"])
        assert raws(await drain(adapter)) == raws(writer.written)

    @_drawn
    async def test_any_batches_of_any_bytes_come_back(
        self, adapter: AnyAdapter, batches: list[list[bytes]]
    ) -> None:
        """However events are cut into batches and pages, the stream is their concatenation."""
        _, tail = await adapter.bounds(Stream(0))
        writer = Writer(adapter)
        for batch in batches:
            await writer.write(batch)
        limit = 1 + len(writer.written) // 3
        assert raws(await drain(adapter, after=tail, limit=limit)) == raws(writer.written)
