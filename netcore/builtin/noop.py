"""An adapter that counts events and throws them away: for measuring, and for switching off."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anyio

from netcore.config import AdapterConfig
from netcore.contracts.adapter import (
    Adapter,
    AdapterContext,
    Batch,
    Capabilities,
    ShardPage,
    Stream,
    position_error,
)
from netcore.errors import AdapterClosedError, CursorError

__all__ = ["NoopAdapter", "NoopConfig"]


class NoopConfig(AdapterConfig, frozen=True, kw_only=True, tag="noop"):
    """Settings of the discarding adapter: none."""


class NoopAdapter(Adapter[NoopConfig]):
    """Discards what it is given. Polls find nothing; `stats()["discarded"]` counts the events.

    Retries count once more, as it remembers nothing. Its only position is "0".
    """

    kind = "noop"
    Config = NoopConfig
    capabilities = Capabilities(inline=True)

    def __init__(self, config: NoopConfig) -> None:
        super().__init__(config)
        self._discarded = 0
        self._closed = False

    async def open(self, context: AdapterContext) -> None:
        """Do nothing.

        Raises:
            AdapterClosedError: it was closed.
        """
        self._check()

    async def append(self, batch: Batch) -> None:
        """Count and discard."""
        self._check()
        self._discarded += len(batch)

    async def streams(self) -> list[Stream]:
        """Return none."""
        self._check()
        return []

    async def read(self, stream: Stream, after: str | None, limit: int, snapshot: object = None) -> ShardPage:
        """Return an empty page.

        Raises:
            CursorError: `after` is not "0" or None.
        """
        self._check()
        if after not in (None, "0"):
            raise CursorError(position_error("noop", after))
        return ShardPage(events=[], position="0", has_more=False)

    async def bounds(self, stream: Stream) -> tuple[str, str]:
        """Return `("0", "0")`."""
        self._check()
        return "0", "0"

    async def wait(self, positions: Mapping[Stream, str | None], timeout: float) -> None:
        """Wait for `timeout` seconds: nothing newer ever comes."""
        self._check()
        await anyio.sleep(max(0.0, timeout))

    async def close(self) -> None:
        """Refuse later calls."""
        self._closed = True

    def stats(self) -> dict[str, Any]:
        """Return the number of events `discarded`."""
        return {"discarded": self._discarded}

    def _check(self) -> None:
        if self._closed:
            raise AdapterClosedError("the noop adapter is closed")
