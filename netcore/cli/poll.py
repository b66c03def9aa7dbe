"""`netcore poll`: stored events out, one line of JSON each."""

from __future__ import annotations

import base64
import datetime as dt
import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio
import click
import msgspec

from netcore.bus import EventBus
from netcore.cli.options import adapter_of, bus_options, load_config, note
from netcore.config import EventBusConfig
from netcore.consume.request import ConsumeRequest, ConsumeResponse
from netcore.errors import ConfigError, CursorError, FilterError
from netcore.events import StoredEvent

if TYPE_CHECKING:
    from netcore.cli.running import Stop

_EXAMPLE: Final = "2026-01-31T12:00:00Z"
_PAGE: Final = 1000
_LONG_POLL: Final = 5.0
_HEARSAY: Final = 1.0
"""Seconds without an event after which what peers had to tell is taken to be told."""
_PATIENCE: Final = 30
"""Seconds without an event, while more are known to exist, after which the command gives up."""


@click.command("poll")
@click.option(
    "--from",
    "begin",
    metavar="WHERE",
    help=f"earliest, tail, a time ({_EXAMPLE}) or a cursor; default: earliest, with --follow: tail.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Stop after this many events.")
@click.option("--shards", metavar="IDS", help="Only these shards, e.g. 0,2.")
@click.option(
    "--filter", "filter_json", metavar="JSON", help="Only what matches, in the filter plugin's JSON."
)
@click.option("--follow", is_flag=True, help="Wait for further events until interrupted.")
@click.option("--meta", is_flag=True, help="Wrap payloads: id, shard, ts, origin, payload.")
@click.option(
    "--cursor-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Resume where it says, if it exists; replaced after each page that was written.",
)
@bus_options
def command(
    begin: str | None,
    limit: int | None,
    shards: str | None,
    filter_json: str | None,
    follow: bool,
    meta: bool,
    cursor_file: Path | None,
    config_file: Path | None,
    adapter: str | None,
    settings: tuple[str, ...],
) -> int:
    """Print stored events as NDJSON, in causal order.

    A payload that is not JSON is printed as {"payload_base64": ...}. Events that are gone and shards
    that cannot be read are reported on stderr.
    """
    from netcore.cli.running import run

    if sys.stdout is None:
        raise OSError("standard output is closed, so there is nowhere to print events to")
    config = load_config(config_file, adapter, settings)
    kind, capabilities = adapter_of(config)
    if not (capabilities.shared or capabilities.durable):
        raise ConfigError(
            f"the {kind.kind} adapter keeps events inside one process, so this one can never see any: "
            "choose an adapter that is shared, e.g. --adapter redis"
        )
    if begin is None:  # but not if it is empty, as a variable is that was never set
        begin = "tail" if follow else "earliest"
    if cursor_file is not None and not cursor_file.absolute().parent.is_dir():
        raise ConfigError(f"--cursor-file: the folder of {cursor_file} does not exist")
    request = _request(begin, shards, filter_json, cursor_file)
    wait = 0.0
    if follow:
        wait = _LONG_POLL
    elif capabilities.shared and capabilities.watermark:
        # No store but a node among others, opened a moment ago: what these hold is still coming in.
        wait = _HEARSAY
    job = _Job(request, limit=limit, follow=follow, wait=wait, meta=meta, cursor_file=cursor_file)
    try:
        return run(lambda stop: job.run(config, stop))
    except CursorError as error:
        if request.cursor is None:
            raise
        if request.cursor == begin:
            given = f"--from takes earliest, tail, a time ({_EXAMPLE}) or a cursor, and {begin[:40]!r}"
            raise CursorError(f"{given} cannot be used: {error}") from error
        raise CursorError(f"--cursor-file {cursor_file}: {error}") from error


def _request(
    begin: str, shards: str | None, filter_json: str | None, cursor_file: Path | None
) -> ConsumeRequest:
    """Build the request that the options describe."""
    start, cursor = _where(begin)
    if cursor_file is not None and cursor_file.exists():
        cursor = cursor_file.read_text(encoding="ascii", errors="replace").strip()
        if not cursor:
            raise ConfigError(f"{cursor_file} is empty, not a cursor: remove it to begin anew")
    wanted: list[int] | None = None
    if shards is not None:
        try:
            wanted = [int(part) for part in shards.split(",")]
        except ValueError:
            raise ConfigError(f"--shards takes ids separated by commas, not {shards!r}") from None
    filter_: dict[str, Any] | None = None
    if filter_json is not None:
        try:
            filter_ = msgspec.json.decode(filter_json, type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise FilterError(f"--filter is not a JSON object: {error}") from error
    return ConsumeRequest(_PAGE, cursor=cursor, start=start, filter=filter_, shards=wanted)


def _where(begin: str) -> tuple[str | int | dt.datetime, str | None]:
    """Tell apart a start, a time and a cursor: (start, cursor)."""
    if not begin:
        raise ConfigError("--from is empty; it takes earliest, tail, a time or a cursor")
    if begin in ("earliest", "tail"):
        return begin, None
    if begin.isdecimal():
        return int(begin), None
    try:
        time = dt.datetime.fromisoformat(begin)
    except ValueError:
        return "earliest", begin
    return (time if time.tzinfo else time.replace(tzinfo=dt.UTC)), None


class _Job:
    """One run of the command: polls, prints, remembers where it is."""

    def __init__(
        self,
        request: ConsumeRequest,
        *,
        limit: int | None,
        follow: bool,
        wait: float,
        meta: bool,
        cursor_file: Path | None,
    ) -> None:
        self._request = request
        self._left = limit
        self._follow = follow
        self._wait = wait
        self._meta = meta
        self._cursor_file = cursor_file
        self._failing: dict[int, str] = {}
        self._printed = False

    async def run(self, config: EventBusConfig, stop: Stop) -> int:
        """Poll until nothing is left, `limit` is reached or a signal came; returns the exit code."""
        async with EventBus(config) as bus:
            code = await self._pages(bus, stop)
        if stop and not self._follow:
            return stop.exit_code
        return code

    async def _pages(self, bus: EventBus, stop: Stop) -> int:
        quiet_since = time.monotonic()
        while self._left is None or self._left > 0:
            page = await stop.until(partial(bus.poll, self._next_request(), wait=self._wait))
            if page is None:  # interrupted: the cursor covers what was printed
                break
            self._report(page)
            self._print(page)
            if page.events:
                quiet_since = time.monotonic()
            elif not self._follow:
                if self._failing or not page.has_more:
                    await self._tell_of_nothing(bus)
                    break
                if time.monotonic() - quiet_since > _PATIENCE:
                    note("gave up: the adapter knows of events that it does not deliver")
                    return 1
                await stop.until(partial(anyio.sleep, 0.1))  # held back behind a shard that lags
        return 1 if self._failing and not self._follow else 0

    async def _tell_of_nothing(self, bus: EventBus) -> None:
        """Say what the adapter knows about why there is nothing, e.g. that no peer is linked."""
        if not (self._printed or self._failing) and (reason := (await bus.health()).reason):
            note(f"no events: {reason}")

    def _next_request(self) -> ConsumeRequest:
        if self._left is None or self._left >= _PAGE:
            return self._request
        request = self._request
        return ConsumeRequest(
            self._left,
            cursor=request.cursor,
            start=request.start,
            filter=request.filter,
            shards=request.shards,
        )

    def _print(self, page: ConsumeResponse) -> None:
        """Write the page, and only then move the cursor: a crash between repeats, never skips."""
        if page.events:
            out = sys.stdout.buffer
            out.write(b"".join(_line(event, meta=self._meta) for event in page.events))
            out.flush()
            self._printed = True
            if self._left is not None:
                self._left -= len(page.events)
        if page.cursor != self._request.cursor:
            self._request = self._request.after(page.cursor)
            if self._cursor_file is not None:
                _replace(self._cursor_file, page.cursor)

    def _report(self, page: ConsumeResponse) -> None:
        for gap in page.gaps:
            missed = "an unknown number of" if gap.missed is None else f"{gap.missed:,}"
            note(f"gap: shard {gap.shard} has lost {missed} events that this poll had not seen")
        for shard, cause in page.failed_shards.items():
            if self._failing.get(shard) != cause:
                note(f"shard {shard} cannot be read: {cause}")
        self._failing = dict(page.failed_shards)


def _line(event: StoredEvent, *, meta: bool) -> bytes:
    """Return an event as one line of JSON."""
    payload: Any = msgspec.Raw(event.raw)
    try:
        document = msgspec.json.decode(event.raw)
        if b"\n" in event.raw:
            payload = document
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        payload = {"payload_base64": base64.b64encode(event.raw).decode()}
    if meta:
        payload = {
            "id": event.id,
            "shard": event.shard,
            "ts": event.ts,
            "origin": event.origin,
            "payload": payload,
        }
    return msgspec.json.encode(payload) + b"\n"


def _replace(file: Path, text: str) -> None:
    """Replace the file's text in one step: a reader, and a crash, meet the old or the new one whole."""
    handle, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with os.fdopen(handle, "w", encoding="ascii") as new:
            new.write(text + "\n")
            new.flush()
            os.fsync(new.fileno())
        os.replace(name, file)
    except BaseException:
        os.unlink(name)
        raise
