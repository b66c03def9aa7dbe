"""`netcore ingest`: lines of JSON in, one event each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from netcore.bus import EventBus
from netcore.cli.options import adapter_of, bus_options, load_config, note
from netcore.cli.progress import byte_progress
from netcore.config import EventBusConfig
from netcore.errors import BackpressureError, ConfigError, PayloadError
from netcore.events import RawEvent
from netcore.stats import ShutdownReport

if TYPE_CHECKING:
    from netcore.cli.lines import LineReader
    from netcore.cli.running import Stop

_SHOWN: Final = 10
"""Bad lines told one by one; the rest are counted."""


@click.command("ingest")
@click.argument("file", default="-", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--key", metavar="PATH", help="Route by the value at this dotted path, e.g. user.id.")
@click.option("--skip-bad", is_flag=True, help="Malformed lines are counted and do not fail the command.")
@click.option(
    "--backpressure",
    default="block",
    show_default=True,
    metavar="NAME",
    help="What a full ring does. A file can wait, so the settings file's choice is not used here.",
)
@bus_options
def command(
    file: str,
    key: str | None,
    skip_bad: bool,
    backpressure: str,
    config_file: Path | None,
    adapter: str | None,
    settings: tuple[str, ...],
) -> int:
    """Ingest NDJSON from FILE, or from standard input, and wait until it is stored.

    Every line is one event; its bytes are stored as they are, without surrounding white space. Malformed lines are reported with their numbers,
    the others are ingested; the exit code is then 1, unless --skip-bad.
    """
    from netcore.cli.running import run

    if key is not None and not all(key.split(".")):
        raise ConfigError(f"--key takes a dotted path such as user.id, not {key!r}")
    config = load_config(config_file, adapter, settings)
    config = msgspec.structs.replace(config, backpressure=backpressure)
    job = _Job(file, key)
    code = run(lambda stop: job.run(config, stop))
    return code or (1 if job.bad and not skip_bad else 0)


class _Job:
    """One run: counts what it met, so that the summary can tell."""

    def __init__(self, file: str, key: str | None) -> None:
        self.file = file
        self.key = key.split(".") if key else None
        self.bad = 0
        self.refused = 0
        self.number = 0

    async def run(self, config: EventBusConfig, stop: Stop) -> int:
        """Ingest everything, shut the bus down, tell what became of it; returns the exit code."""
        from netcore.cli.lines import LineReader  # loads asyncio

        bus = EventBus(config)
        kind, capabilities = adapter_of(config)
        if not (capabilities.shared or capabilities.durable):
            note(f"warning: the {kind.kind} adapter keeps events inside this process: they end with it")
        with LineReader(self.file) as reader, byte_progress("ingesting", reader.size) as advance:
            async with bus:
                # Also a wait for room ends with the signal: an event that was not accepted is not counted.
                await stop.until(partial(self._lines, bus, reader, advance))
                report = await bus.shutdown()
        self._summarise(report, config)
        alone = 0 if capabilities.durable else report.unreplicated
        if alone:
            note(f"{alone:,} of them ended with this process: no other node has them; were its peers up?")
        if stop:
            note(f"interrupted after line {self.number:,}")
            return stop.exit_code
        return 1 if report.lossy or report.dead_lettered or self.refused or alone else 0

    async def _lines(self, bus: EventBus, reader: LineReader, advance: Callable[[int], None]) -> None:
        while lines := await reader.next():
            for line in lines:
                if line.strip():
                    await self._one(bus, line)
                self.number += 1
            advance(reader.taken)

    async def _one(self, bus: EventBus, line: bytes) -> None:
        try:
            document = msgspec.json.decode(line)
            key = None if self.key is None else _route_key(document, self.key)
            await bus.put(RawEvent(line.strip()), key=key)
        except BackpressureError:
            self.refused += 1
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, LookupError, PayloadError) as error:
            self.bad += 1
            if self.bad <= _SHOWN:
                what = str(error.args[0]) if isinstance(error, LookupError) else f"not valid JSON: {error}"
                note(f"line {self.number + 1}: {error if isinstance(error, PayloadError) else what}")

    def _summarise(self, report: ShutdownReport, config: EventBusConfig) -> None:
        if self.bad > _SHOWN:
            note(f"... and {self.bad - _SHOWN:,} more malformed lines")
        parts = [f"{report.ingested:,} events ingested", f"{report.dispatched:,} stored"]
        for name, count in (
            ("evicted", report.evicted),
            ("refused", self.refused),
            ("dead-lettered", report.dead_lettered),
            ("lost", report.lost),
            ("malformed lines", self.bad),
        ):
            if count:
                parts.append(f"{count:,} {name}")
        note(", ".join(parts))


def _route_key(document: Any, path: list[str]) -> bytes:
    """Return the value at `path` as a route key: a string's text, anything else as JSON.

    Raises:
        LookupError: there is none, or it is null.
    """
    value = document
    for part in path:
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            value = None
        if value is None:
            raise LookupError(f"nothing at --key {'.'.join(path)}")
    return value.encode() if isinstance(value, str) else msgspec.json.encode(value)
