"""One look at the store within a poll, and the filter at work in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from netcore.consume.cursor import Cursor
from netcore.consume.pages import Collector
from netcore.consume.request import ConsumeResponse
from netcore.contracts.adapter import Stream
from netcore.contracts.filters import EventFilter, Matcher
from netcore.events import StoredEvent

__all__ = ["Attempt", "Matching"]


class Matching:
    """A filter at work in one poll."""

    __slots__ = ("_matcher", "match")

    def __init__(self, chosen: EventFilter | None) -> None:
        self.match: Callable[[bytes], bool] | None = None
        self._matcher: Matcher | None = None
        if chosen is not None:
            make = getattr(chosen, "compile", None)
            self._matcher = make() if make is not None else None
            self.match = self._matcher if self._matcher is not None else chosen.matches

    @property
    def undecodable(self) -> int:
        """Payloads that it could not decode."""
        return 0 if self._matcher is None else self._matcher.undecodable


class Attempt:
    """One look at the store: what a response needs, and what waiting needs.

    Attributes:
        chain: where the chain stands now.
        collector: what was collected, or None if the streams could not even be listed.
        failed: why streams could not be read.
        streams: what the adapter listed.
        lagging: as the bus said.
        watermark: as the bus said before the attempt, or None where there is none.
    """

    __slots__ = ("chain", "collector", "failed", "lagging", "streams", "watermark")

    def __init__(self, chain: Cursor) -> None:
        self.chain = chain
        self.collector: Collector | None = None
        self.failed: dict[Stream, str] = {}
        self.streams: Sequence[Stream] = ()
        self.lagging: frozenset[int] = frozenset()
        self.watermark: int | None = None

    @property
    def events(self) -> list[StoredEvent]:
        """What was found."""
        return [] if self.collector is None else self.collector.events

    @property
    def tells(self) -> bool:
        """Whether the consumer has something to learn even without events."""
        runs = () if self.collector is None else self.collector.runs
        return any(run.gaps or run.undecodable for run in runs)

    @property
    def rising(self) -> bool:
        """Whether the events are known to be in the order of their timestamps."""
        return self.collector is not None and self.collector.rising

    @property
    def seen(self) -> dict[Stream, str | None]:
        """How far each listed stream was looked at; where it could not be, the cursor's position."""
        entries = self.chain.entries
        seen = {stream: entries[stream][0] if stream in entries else None for stream in self.streams}
        if self.collector is not None:
            seen.update((run.stream, run.seen) for run in self.collector.runs if run.failed is None)
        return seen

    def response(self, undecodable: int, shards: Sequence[int] | None) -> ConsumeResponse:
        """Say it to the consumer who asked for these shards."""
        collector = self.collector
        runs = () if collector is None else collector.runs
        failed: dict[int, str] = {}
        for stream, text in self.failed.items():
            failed[stream.shard] = f"{failed[stream.shard]}; {text}" if stream.shard in failed else text
        return ConsumeResponse(
            self.events,
            self.chain.text,
            has_more=collector is not None and collector.has_more,
            gaps=[gap for run in runs for gap in run.gaps],
            failed_shards=failed,
            lagging_shards={shard for shard in self.lagging if shards is None or shard in shards},
            undecodable=undecodable + sum(run.undecodable for run in runs),
        )
