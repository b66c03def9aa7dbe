"""`netcore demo`: real events through a bus, from producer threads to a polling consumer, counted."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio.to_thread
import click
import msgspec

from netcore.bus import EventBus
from netcore.cli.options import bus_options, load_config, note
from netcore.cli.progress import event_progress
from netcore.config import EventBusConfig
from netcore.consume.request import ConsumeRequest
from netcore.errors import ClosedError, ConfigError, NetcoreError, PluginNotFoundError
from netcore.events import RawEvent
from netcore.stats import EventBusStats, ShutdownReport

if TYPE_CHECKING:
    from netcore.cli.running import Stop

_DATA: Final = "earthquakes.ndjson"
_PAGE: Final = 200
_PATIENCE: Final = 10.0
"""Seconds without a new event after which the consumer stops waiting for what is missing."""


@click.command("demo")
@click.option(
    "--file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="NDJSON to replay; default: a month of earthquakes.",
)
@click.option(
    "--producers", type=click.IntRange(1, 64), default=4, show_default=True, help="Producer threads."
)
@bus_options
def command(
    file: Path | None,
    producers: int,
    config_file: Path | None,
    adapter: str | None,
    settings: tuple[str, ...],
) -> int:
    """Replay real events through a bus and check that every one arrives, once.

    Producer threads ingest while a consumer polls by cursor. Prints what happened; exits with 1 if
    an event is unaccounted for, did not arrive, or arrived twice.
    """
    from netcore.cli.running import run

    events = _load(file or default_file())
    config = load_config(config_file, adapter, settings)
    return run(lambda stop: _Demo(events, producers).run(config, stop))


def default_file() -> Path:
    """Return the example data: the checkout's, or the copy that a wheel carries.

    Raises:
        ConfigError: there is neither.
    """
    here = Path(__file__).parent
    for place in (here.parent.parent / "examples" / "data" / _DATA, here / _DATA):
        if place.is_file():
            return place
    raise ConfigError(f"{_DATA} is not installed here; give a file of your own with --file")


def _load(file: Path) -> list[bytes]:
    lines = [line.strip() for line in file.read_bytes().split(b"\n")]
    events = [line for line in lines if line]
    if not events:
        raise ConfigError(f"{file} holds no events")
    return events


class _Demo:
    """One run: what goes in, what comes out, and the verdict."""

    def __init__(self, events: list[bytes], producers: int) -> None:
        self._events = events
        self._shares = [events[n::producers] for n in range(producers)]
        self._expected = Counter(events)
        self._seen: Counter[bytes] = Counter()
        self._pages = 0
        self._accepted = [0] * producers
        self._errors: list[NetcoreError] = []

    async def run(self, config: EventBusConfig, stop: Stop) -> int:
        """Produce, consume, shut down, print; returns the exit code."""
        began = time.perf_counter()
        with event_progress(["ingested", "polled"], len(self._events)) as advance:
            async with EventBus(config) as bus:
                # Pins every stream where it stands now: what a shared store held before is not ours.
                pinned = (await bus.poll(ConsumeRequest(1, start="tail"))).cursor
                threads = [
                    threading.Thread(target=self._produce, args=(bus, n, stop), name=f"producer-{n}")
                    for n in range(len(self._shares))
                ]
                for thread in threads:
                    thread.start()
                try:
                    await stop.until(lambda: self._consume(bus, pinned, threads, advance))
                finally:
                    for thread in threads:  # not on the loop: one that waits for room needs it
                        await anyio.to_thread.run_sync(thread.join)
                seconds = time.perf_counter() - began
                found = None if stop else await self._filtered(bus, pinned)
                stats = bus.stats()
                report = await bus.shutdown()
        if stop:
            note("interrupted; the bus was drained and shut down")
            return stop.exit_code
        verdicts = self._verdicts(report)
        _print_summary(self._rows(stats, report, seconds), stats, found, verdicts)
        for error in self._errors[:3]:
            note(f"a producer stopped: {error}")
        return 0 if all(verdicts.values()) and not self._errors else 1

    def _produce(self, bus: EventBus, number: int, stop: Stop) -> None:
        """Ingest one share, from a thread of its own."""
        try:
            for raw in self._shares[number]:
                if stop:
                    return
                if bus.ingest_raw(RawEvent(raw)) is not None:
                    self._accepted[number] += 1
        except ClosedError:
            if not stop:
                raise
        except NetcoreError as error:
            self._errors.append(error)

    async def _consume(
        self, bus: EventBus, cursor: str, threads: Sequence[threading.Thread], advance: Any
    ) -> None:
        """Poll by cursor until all that was accepted has been seen, or nothing has come for a while."""
        request = ConsumeRequest(_PAGE, cursor=cursor)
        last_event = time.monotonic()
        while True:
            producing = any(thread.is_alive() for thread in threads)
            page = await bus.poll(request, wait=0.1)
            request = request.after(page.cursor)
            self._pages += bool(page.events)
            self._seen.update(event.raw for event in page.events if event.raw in self._expected)
            advance(0, sum(self._accepted))
            advance(1, self._seen.total())
            stats = bus.stats()
            complete = self._seen.total() >= stats.ingested - stats.evicted - stats.dead_lettered
            if page.events or producing:
                last_event = time.monotonic()
            elif (complete and not page.has_more) or time.monotonic() - last_event > _PATIENCE:
                return

    async def _filtered(self, bus: EventBus, cursor: str) -> str:
        """Ask the same events again, through a filter; compare with looking at each of them."""
        try:
            from netcore import Filter

            wanted = Filter.eq("magType", "mb")
        except PluginNotFoundError as error:
            return f"not asked: {error}"
        request = ConsumeRequest(_PAGE, cursor=cursor, filter=wanted)
        found = 0
        while True:
            page = await bus.poll(request)
            found += sum(event.raw in self._expected for event in page.events)
            if not page.has_more:
                break
            request = request.after(page.cursor)
        direct = sum(n for raw, n in self._seen.items() if _magnitude_type(raw) == "mb")
        return f'{found:,} of magType "mb" (looking at each event: {direct:,})'

    def _verdicts(self, report: ShutdownReport) -> dict[str, bool]:
        accounted = report.dispatched + report.evicted + report.dead_lettered + report.lost
        duplicated = self._seen - self._expected
        seen = self._seen.total()
        return {
            f"ingested {report.ingested:,} == dispatched {report.dispatched:,} + evicted {report.evicted:,} "
            f"+ dead-lettered {report.dead_lettered:,} + lost {report.lost:,}": report.ingested == accounted
            and not report.lossy,
            f"the consumer saw every stored event exactly once: {seen:,} of {report.dispatched:,}": (
                seen == report.dispatched and not duplicated
            ),
        }

    def _rows(self, stats: EventBusStats, report: ShutdownReport, seconds: float) -> list[tuple[str, str]]:
        return [
            ("events in the file", f"{len(self._events):,}"),
            ("producer threads", f"{len(self._shares)}"),
            ("ingested", f"{report.ingested:,}"),
            ("dropped", f"{stats.dropped:,}"),
            ("dispatched", f"{report.dispatched:,}"),
            ("batches", f"{stats.batches_dispatched:,}"),
            ("pressure at the end", f"{stats.pressure:.0%}"),
            ("polled", f"{self._seen.total():,} in {self._pages:,} pages"),
            ("time", f"{seconds:.2f} s"),
        ]


def _magnitude_type(raw: bytes) -> object:
    try:
        document = msgspec.json.decode(raw)
    except msgspec.DecodeError:
        return None
    return document.get("magType") if isinstance(document, dict) else None


def _print_summary(
    rows: list[tuple[str, str]], stats: EventBusStats, found: str | None, verdicts: dict[str, bool]
) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    table = Table(title="netcore demo", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right", overflow="fold")
    for name, value in rows:
        table.add_row(name, Text(value))
    table.add_section()
    for shard in stats.shards:
        table.add_row(f"shard {shard.id}", Text(f"{shard.dispatched:,} events in {shard.batches:,} batches"))
    for record in stats.scaling:
        changed = [f"+{n}" for n in record.added] + [f"-{n}" for n in record.removed]
        table.add_row(f"scaled {' '.join(changed)}".rstrip(), Text(record.error or record.reason))
    if found is not None:
        table.add_section()
        table.add_row("filter found", Text(found))
    console.print(table)
    for claim, holds in verdicts.items():
        mark = Text("ok   ", style="green") if holds else Text("FAIL ", style="bold red")
        console.print(mark + Text(claim), soft_wrap=True)
