"""Run benchmark rows: the project and a rival, alternating in one run, compared by ratio.

A row file makes a list of `Row`s and calls `main(rows)`:

    python benchmarks/filters.py [--rows PATTERN] [--rounds N] [--json]

Machines and moments differ; the ratio of two things measured right after one another, in one process,
differs least. So the median of the rounds' ratios is the result, and the smallest and the largest are
its spread: a machine that slows down half-way through a row changes none of them.
"""

from __future__ import annotations

import argparse
import fnmatch
import gc
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field

__all__ = ["Result", "Row", "json_payloads", "main", "measure", "raw_payloads"]

MIN_ROUNDS = 5


@dataclass(frozen=True)
class Row:
    """One comparison.

    Args:
        name: what `--rows` selects by; `topic/case` reads well.
        project: does all the units once. It may return the seconds it took (a float), where only
            a part of the call is to be timed; otherwise the whole call is.
        rival: the same for what the project is compared with.
        units: how many events one call handles.
        required: the least ratio that is acceptable; None only reports.
        cpu: time the process's CPU use instead of the wall clock: steadier for work that never waits.
        context: entered around the rounds of this row only (a server, a temporary folder).
    """

    name: str
    project: Callable[[], float | None]
    rival: Callable[[], float | None]
    units: int
    required: float | None = None
    cpu: bool = False
    context: Callable[[], AbstractContextManager[object]] = nullcontext


@dataclass(frozen=True)
class Result:
    """What a row gave: median rates in units a second; ratios project : rival of the rounds (more is better)."""

    name: str
    units: int
    project: float
    rival: float
    ratio: float
    lowest: float
    highest: float
    required: float | None
    rounds: list[tuple[float, float]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Tell whether the ratio is acceptable."""
        return self.required is None or self.ratio >= self.required


def measure(row: Row, rounds: int = 7) -> Result:
    """Run a row: one round to warm up, then `rounds` that count, the first place taken in turns."""
    seconds: list[tuple[float, float]] = []
    with row.context():
        _timed(row.project, row.cpu), _timed(row.rival, row.cpu)
        for number in range(max(rounds, MIN_ROUNDS)):
            if number % 2:
                rival = _timed(row.rival, row.cpu)
                project = _timed(row.project, row.cpu)
            else:
                project = _timed(row.project, row.cpu)
                rival = _timed(row.rival, row.cpu)
            seconds.append((project, rival))
    project = row.units / statistics.median(mine for mine, _ in seconds)
    rival = row.units / statistics.median(theirs for _, theirs in seconds)
    ratios = [theirs / mine for mine, theirs in seconds]
    return Result(
        row.name,
        row.units,
        project,
        rival,
        statistics.median(ratios),
        min(ratios),
        max(ratios),
        row.required,
        seconds,
    )


def _timed(call: Callable[[], float | None], cpu: bool) -> float:
    clock = time.process_time if cpu else time.perf_counter
    gc.collect()
    start = clock()
    own = call()
    whole = clock() - start
    return own if isinstance(own, float) else whole


def json_payloads(size: int, count: int = 1000, *, seed: int = 0) -> list[bytes]:
    """Make distinct JSON objects of exactly `size` bytes (9 or more)."""
    rnd = random.Random(seed)
    made: dict[bytes, None] = {}
    while len(made) < count:
        if size < 64:
            digits = size - 6
            number = rnd.randrange(10 ** (digits - 1), 10**digits)
            payload = f'{{"{rnd.choice("abcdefghijklmnopqrstuvwxyz")}":{number}}}'.encode()
        else:
            number = rnd.randrange(10**9)
            head = f'{{"token":"t{number}","index":{len(made)},"ok":true,"text":"'
            payload = (head + "x" * (size - len(head) - 2) + '"}').encode()
        made[payload] = None
    assert all(len(payload) == size for payload in made)
    return list(made)


def raw_payloads(size: int, count: int = 1000, *, seed: int = 0) -> list[bytes]:
    """Make distinct payloads of `size` random bytes (4 or more), which are no JSON."""
    rnd = random.Random(seed)
    made = {rnd.randbytes(size): None for _ in range(count)}
    while len(made) < count:
        made[rnd.randbytes(size)] = None
    return list(made)


def main(rows: Sequence[Row], argv: Sequence[str] | None = None) -> int:
    """Run the rows chosen on the command line and print them; the exit status is 1 if one is too slow."""
    parser = argparse.ArgumentParser(
        description="project and rival, alternating; ratios above 1 favour the project"
    )
    parser.add_argument("--rows", default="*", metavar="PATTERN", help="shell pattern, or a part of the name")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help=f"at least {MIN_ROUNDS}")
    parser.add_argument("--json", action="store_true", help="print every measurement as JSON")
    options = parser.parse_args(argv)
    chosen = [row for row in rows if selects(options.rows, row.name)]
    if not chosen:
        parser.error(f"no row matches {options.rows!r}; there are: {', '.join(row.name for row in rows)}")
    results: list[Result] = []
    for row in chosen:
        results.append(measure(row, options.rounds))
        if not options.json:
            _print_line(results[-1], first=len(results) == 1)
    if options.json:
        json.dump([{**asdict(result), "ok": result.ok} for result in results], sys.stdout, indent=1)
        print()
    return 0 if all(result.ok for result in results) else 1


def selects(pattern: str, name: str) -> bool:
    """Tell whether `--rows` means this name: a shell pattern that fits, or a part of the name."""
    return fnmatch.fnmatch(name, pattern) or pattern in name


def _print_line(result: Result, *, first: bool) -> None:
    if first:
        print(f"{'row':<44} {'project/s':>12} {'rival/s':>12} {'ratio':>6}  {'min..max':<12} required")
    spread = f"{result.lowest:.2f}..{result.highest:.2f}"
    required = "-" if result.required is None else f"{result.required:g} {'ok' if result.ok else 'TOO SLOW'}"
    print(
        f"{result.name:<44} {result.project:>12,.0f} {result.rival:>12,.0f} "
        f"{result.ratio:>6.2f}  {spread:<12} {required}",
        flush=True,
    )
