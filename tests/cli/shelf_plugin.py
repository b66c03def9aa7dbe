"""An adapter that other processes can see: one file a shard. A plugin for the tests of the command line."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any, ClassVar

import anyio
import click
import msgspec

from netcore import (
    Adapter,
    AdapterConfig,
    AdapterContext,
    Batch,
    Capabilities,
    CursorError,
    FatalAdapterError,
    Health,
    ShardPage,
    StoredEvent,
    Stream,
    hookimpl,
)


class ShelfConfig(AdapterConfig, tag="shelf", frozen=True):
    """Where the files are, and what goes wrong on purpose."""

    folder: str
    password: str = ""
    hang: bool = False
    poison: str = ""
    alone: int = 0
    secret: dict[str, str] = msgspec.field(default_factory=dict)


class ShelfAdapter(Adapter[ShelfConfig]):
    """Appends events as lines; a position is a line number."""

    kind: ClassVar[str] = "shelf"
    Config = ShelfConfig
    capabilities = Capabilities(durable=True, shared=True)

    def __init__(self, config: ShelfConfig) -> None:
        super().__init__(config)
        if config.alone:  # as a mesh without peers or a log
            self.capabilities = Capabilities(shared=True)  # type: ignore[misc]

    def identity(self) -> str:
        return "shelf:test"

    async def health(self) -> Health:
        return Health(ok=True, reason="0 peers are linked" if self.config.alone else "")

    def stats(self) -> dict[str, Any]:
        return {"unreplicated": self.config.alone}

    async def open(self, context: AdapterContext) -> None:
        self._folder = Path(self.config.folder)
        self._folder.mkdir(exist_ok=True)
        self._next: dict[int, int] = {}

    async def append(self, batch: Batch) -> None:
        if self.config.hang:
            (self._folder / "hanging").touch()
            while not (self._folder / "released").exists():  # another process makes it
                await anyio.sleep(0.01)
        stored = self._next.get(batch.shard, 0)
        fresh = batch.events[max(0, stored - batch.first_seq) :]
        if self.config.poison and any(self.config.poison.encode() in event.raw for event in fresh):
            raise FatalAdapterError("poison")
        lines = [json.dumps([event.ts, base64.b64encode(event.raw).decode()]) + "\n" for event in fresh]
        with (self._folder / f"{batch.shard}.shelf").open("a") as file:
            file.write("".join(lines))
        self._next[batch.shard] = max(stored, batch.first_seq + len(batch.events))

    async def streams(self) -> list[Stream]:
        return [Stream(int(file.stem)) for file in self._folder.glob("*.shelf")]

    def _lines(self, stream: Stream) -> list[list[Any]]:
        file = self._folder / f"{stream.shard}.shelf"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    async def read(self, stream: Stream, after: str | None, limit: int, snapshot: object = None) -> ShardPage:
        if after is not None and not after.isdecimal():
            raise CursorError(f"{after!r} is not a line number")
        lines, begin = self._lines(stream), int(after or 0)
        events = [
            StoredEvent(id=str(n), shard=stream.shard, ts=ts, raw=base64.b64decode(raw))
            for n, (ts, raw) in enumerate(lines[begin : begin + limit], begin + 1)
        ]
        end = begin + len(events)
        return ShardPage(events=events, position=str(end), has_more=end < len(lines))

    async def bounds(self, stream: Stream) -> tuple[str, str]:
        return "0", str(len(self._lines(stream)))

    async def close(self) -> None: ...


@hookimpl
def netcore_adapters() -> list[type[Adapter[Any]]]:
    return [ShelfAdapter]


@hookimpl
def netcore_commands(cli: click.Group) -> None:
    @cli.command("greet")
    @click.argument("name", default="you")
    def greet(name: str) -> None:
        """Say hello."""
        click.echo(f"hello {name}")

    @cli.command("stumble")
    def stumble() -> None:
        """Raise what nobody expects."""
        raise RuntimeError(f"stumbled in {os.getpid() and 'a plugin'}")
