"""Chains of polls: how one begins, what it does about streams that come and go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from netcore.consume.cursor import NO_KEY, Cursor, Entry
from netcore.consume.reader import Call, Reader, describe
from netcore.contracts.adapter import ReadRequest, ShardPage, Stream
from netcore.contracts.answers import FaultyAdapterError, ask, identity_of
from netcore.errors import AdapterError, CursorError, TransientAdapterError

__all__ = ["Chains"]


class Chains:
    """Pins, enters and retires the streams of cursors.

    Args:
        reader: bounded calls of the adapter.
        tick: draws the bus's clock, brought up to the wall clock.
    """

    __slots__ = ("_adapter", "_reader", "_tick")

    def __init__(self, reader: Reader, tick: Callable[[], int]) -> None:
        self._reader = reader
        self._adapter = reader.adapter
        self._tick = tick

    async def begin(self, start: str | int) -> Cursor:
        """Pin every stream as `start` says.

        Raises:
            AdapterError: a stream could not be pinned; nothing was begun. `AdapterRefusedError` where
                the adapter is at fault: trying again does not help.
        """
        # Drawn before the streams are listed: whatever is not in that list is newer than this. And at
        # the wall clock: by what this lagged, history that is heard of later would count as new.
        since = self._tick() if start == "tail" else 0
        try:
            _, streams = await self._reader.listing()
        except FaultyAdapterError:
            raise
        except AdapterError as error:
            raise TransientAdapterError(f"cannot begin a chain of polls: {describe(error)}") from error
        calls: list[Call]
        if isinstance(start, int):
            calls = [partial(ask, self._adapter, "seek", stream, start) for stream in streams]
        else:
            calls = [partial(ask, self._adapter, "bounds", stream) for stream in streams]
        entries: dict[Stream, Entry] = {}
        for stream, answer in zip(streams, await self._reader.gather(calls), strict=True):
            if isinstance(answer, CursorError | FaultyAdapterError):
                raise answer
            if isinstance(answer, Exception):
                raise TransientAdapterError(
                    f"cannot begin a chain of polls: shard {stream.shard}: {describe(answer)}; try again"
                ) from answer
            position = answer if isinstance(start, int) else answer[start == "tail"]
            entries[stream] = (position, NO_KEY)
        return Cursor(identity_of(self._adapter), start, since, entries)

    async def look(
        self, openings: Sequence[ReadRequest]
    ) -> tuple[object, list[Stream], dict[Stream, ShardPage | Exception]]:
        """Take a snapshot and list the streams; with `openings`, read those in the same call.

        What is read then was stored before the list was made, so that no event goes out whose cause
        is in a stream that nobody had heard of.

        Raises:
            AdapterError: it failed, or hung now or before.
            CursorError: a position is none of this store.
        """
        if not openings:
            snapshot, streams = await self._reader.listing()
            return snapshot, streams, {}
        pages, streams = await self._reader.read_listed(openings)
        return None, streams, {asked.stream: page for asked, page in zip(openings, pages, strict=True)}

    async def follow(
        self, cursor: Cursor, streams: Sequence[Stream]
    ) -> tuple[Cursor, dict[Stream, Exception]]:
        """Enter streams that the chain hears of now, drop those that are gone for good.

        Returns:
            The cursor, itself if nothing changed, and the streams that could not be entered.

        Raises:
            CursorError: the adapter refuses a position.
        """
        known = cursor.entries
        failed: dict[Stream, Exception] = {}
        if fresh := [stream for stream in streams if stream not in known]:
            entries: dict[Stream, Entry] = {}
            for stream, answer in zip(fresh, await self._enter(cursor, fresh), strict=True):
                if isinstance(answer, CursorError):
                    raise answer
                if isinstance(answer, Exception):
                    failed[stream] = answer
                else:
                    entries[stream] = (answer, NO_KEY)
            cursor = cursor.moved(entries, cursor.turn)
        if len(cursor.entries) + len(failed) > len(streams):
            cursor = await self._retire(cursor, streams)
        return cursor, failed

    async def _enter(self, cursor: Cursor, fresh: list[Stream]) -> list[Any]:
        if cursor.start != "tail" and self._adapter.capabilities.shared:
            return [None] * len(fresh)  # it may be old, and this chain wants all of it
        # Not simply the beginning: what a new stream has lost to retention already is a gap.
        since = cursor.start if isinstance(cursor.start, int) else cursor.since
        calls = {stream: partial(ask, self._adapter, "enter", stream, since) for stream in fresh}
        return await self._reader.guarded(calls, may_suspend=True)

    async def _retire(self, cursor: Cursor, streams: Sequence[Stream]) -> Cursor:
        unlisted = cursor.entries.keys() - set(streams)
        call = partial(ask, self._adapter, "retired", sorted(unlisted))
        (answer,) = await self._reader.guarded({"retired": call}, may_suspend=True)
        if isinstance(answer, Exception):
            self._reader.complain(answer)
            return cursor  # no harm in keeping an entry
        return cursor.without(answer & unlisted)
