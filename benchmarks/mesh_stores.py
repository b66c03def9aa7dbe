"""Compare stores for the mesh's durable log: batches as blobs, in group commits, scanned in order.

    python benchmarks/mesh_stores.py [--seconds S]

Each line: a store, its sync policy, batches a second written in groups of 1, 8 and 64 a commit, MB/s
scanned, and bytes on disk for each byte stored. Incompressible blobs of 16 KiB, about 128 events.
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

BLOB = 16 << 10
GROUPS = (1, 8, 64)


class Store(Protocol):
    """What is compared."""

    def write(self, first: int, blobs: list[bytes]) -> None: ...

    def scan(self) -> Iterator[bytes]: ...

    def close(self) -> None: ...


class Sqlite:
    """One table in WAL mode, as the adapter has it."""

    def __init__(self, folder: Path, sync: str) -> None:
        self.connection = sqlite3.connect(folder / "log.sqlite3", isolation_level=None)
        self.connection.execute("PRAGMA journal_mode=WAL")
        self.connection.execute(f"PRAGMA synchronous={sync}")
        self.connection.execute("PRAGMA wal_autocheckpoint=4000")
        self.connection.execute(
            "CREATE TABLE entries (origin TEXT, lsn INT, body BLOB, PRIMARY KEY (origin, lsn))"
        )

    def write(self, first: int, blobs: list[bytes]) -> None:
        run = self.connection
        run.execute("BEGIN")
        run.executemany(
            "INSERT INTO entries VALUES (?, ?, ?)",
            (("origin", first + i, blob) for i, blob in enumerate(blobs)),
        )
        run.execute("COMMIT")

    def scan(self) -> Iterator[bytes]:
        for (body,) in self.connection.execute("SELECT body FROM entries ORDER BY origin, lsn"):
            yield body

    def close(self) -> None:
        self.connection.close()


class Lmdb:
    """A memory map with copy-on-write pages."""

    def __init__(self, folder: Path, sync: bool) -> None:
        import lmdb

        self.map = lmdb.open(str(folder / "log.lmdb"), map_size=8 << 30, sync=sync, metasync=sync)

    def write(self, first: int, blobs: list[bytes]) -> None:
        with self.map.begin(write=True) as transaction:
            for index, blob in enumerate(blobs):
                transaction.put((first + index).to_bytes(8, "big"), blob, append=True)

    def scan(self) -> Iterator[bytes]:
        with self.map.begin() as transaction:
            for _, value in transaction.cursor():
                yield bytes(value)

    def close(self) -> None:
        self.map.close()


STORES = {
    "sqlite FULL (fsync=batch)": lambda folder: Sqlite(folder, "FULL"),
    "sqlite NORMAL (fsync=interval)": lambda folder: Sqlite(folder, "NORMAL"),
    "sqlite OFF (fsync=never)": lambda folder: Sqlite(folder, "OFF"),
    "lmdb sync": lambda folder: Lmdb(folder, True),
    "lmdb nosync": lambda folder: Lmdb(folder, False),
}


def measure(name: str, seconds: float) -> None:
    rates, scanned, stored, size = [], 0.0, 0, 0
    for group in GROUPS:
        with tempfile.TemporaryDirectory() as text:
            folder = Path(text)
            store: Store = STORES[name](folder)
            blobs = [os.urandom(BLOB) for _ in range(group)]
            written, begin = 0, time.perf_counter()
            while time.perf_counter() - begin < seconds and written * BLOB < 1 << 30:
                store.write(written, blobs)
                written += group
            rates.append(written / (time.perf_counter() - begin))
            begin = time.perf_counter()
            stored = sum(map(len, store.scan()))
            scanned = stored / (time.perf_counter() - begin) / 1e6
            size = sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())
            store.close()
    shown = " / ".join(f"{rate:,.0f}" for rate in rates)
    print(
        f"{name:32} {shown:>28} batches/s  scan {scanned:7,.0f} MB/s  size x {size / stored:.2f}", flush=True
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="stores for the mesh's durable log")
    parser.add_argument("--seconds", type=float, default=1.0, help="time for each group size")
    options = parser.parse_args()
    for each in STORES:
        measure(each, options.seconds)
