"""Progress bars on a terminal's stderr; nothing anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["byte_progress", "event_progress"]


def _ignore(done: int) -> None:
    """Take the place of a bar where there is no terminal."""


@contextmanager
def byte_progress(title: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show how many of `total` bytes are done; yields a function of the number done so far."""
    if not sys.stderr.isatty():
        yield _ignore
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done: bar.update(task, completed=done)


@contextmanager
def event_progress(titles: list[str], total: int) -> Iterator[Callable[[int, int], None]]:
    """Show one bar a title, each of `total` events; yields a function of (which, number done)."""
    if not sys.stderr.isatty():
        yield lambda which, done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        tasks = [bar.add_task(title, total=total) for title in titles]
        yield lambda which, done: bar.update(tasks[which], completed=done)
