"""The tables of the durable log: what is written, and what it says when it is opened again.

Every release of the interpreter lock can cost the writer a wait of 5 ms while the event loop is
busy, and each step of a statement is one. So a group of entries is one statement, which commits by
itself: whatever would need rows of its own for each batch is told by the entry.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import msgspec

from net_adapter_mesh.lane import Entry, Vector
from net_adapter_mesh.log import Kept, Put

__all__ = ["FORMAT", "SCHEMA", "Drop", "Expected", "load", "prune_expected", "write"]

FORMAT: Final = "3"
SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS lanes (origin TEXT PRIMARY KEY, head INT, w INT, floor INT);
CREATE TABLE IF NOT EXISTS streams (origin TEXT, shard INT, next INT, key INT, PRIMARY KEY (origin, shard));
CREATE TABLE IF NOT EXISTS expected (producer TEXT, shard INT, next INT, PRIMARY KEY (producer, shard));
CREATE TABLE IF NOT EXISTS entries (
    row INTEGER PRIMARY KEY, origin TEXT, lsn INT, shard INT, start INT, count INT, w INT, lo INT, hi INT,
    deps BLOB, producer TEXT, expected INT, body BLOB
);
"""
"""`lanes`, `streams` and `expected` say for entries that were deleted what entries say themselves.

Rows are numbered as they come, whatever their lane: each is added at the end of the one tree, there
is no index beside it, and who looks for an entry has its row's number in memory.
"""

Expected: TypeAlias = dict[tuple[str, int], int]
"""(producer, shard) -> next sequence number."""

_INSERT: Final = "INSERT OR REPLACE INTO entries VALUES "
_ROW: Final = "(?,?,?,?,?,?,?,?,?,?,?,?,?)"
_ROWS_AT_ONCE: Final = 64  # 832 parameters; the least that any SQLite allows is 999
_PRODUCERS: Final = 64
_NO_MARK: Final = (None, None)
_MOVE_LANE: Final = (
    "INSERT INTO lanes VALUES (?, ?, ?, ?) ON CONFLICT (origin) DO UPDATE SET head = max(head, excluded.head),"
    " w = max(w, excluded.w), floor = max(floor, excluded.floor)"
)
_MOVE_STREAM: Final = (
    "INSERT INTO streams VALUES (?, ?, ?, ?) ON CONFLICT (origin, shard) DO UPDATE SET"
    " next = max(next, excluded.next), key = max(key, excluded.key)"
)
_KEEP_EXPECTED: Final = (
    "INSERT OR REPLACE INTO expected SELECT producer, shard, max(expected, ifnull((SELECT next FROM expected"
    " WHERE producer = entries.producer AND shard = entries.shard), 0)) FROM entries"
    " WHERE row = ? AND producer IS NOT NULL"
)


class Drop(NamedTuple):
    """Entries to be deleted."""

    origin: str
    entries: Sequence[Entry]


def write(connection: sqlite3.Connection, group: Sequence[Put | Drop]) -> None:
    """Commit a group.

    Raises:
        sqlite3.Error: none of it is committed, or (a failure to sync) it is not known whether.
    """
    puts = [item for item in group if isinstance(item, Put)]
    drops = [item for item in group if isinstance(item, Drop)]
    rows = _rows(puts)
    bare = [(put.origin, entry.lsn, entry.w, 0) for put in puts for entry in put.entries if not entry.count]
    if len(rows) <= _ROWS_AT_ONCE and not bare and not drops:
        _insert(connection, rows)
        return
    connection.execute("BEGIN")
    try:
        for first in range(0, len(rows), _ROWS_AT_ONCE):
            _insert(connection, rows[first : first + _ROWS_AT_ONCE])
        connection.executemany(_MOVE_LANE, bare)
        for drop in drops:
            _delete(connection, drop)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _rows(puts: Sequence[Put]) -> list[tuple[Any, ...]]:
    """Return the rows of a group's entries."""
    rows: list[tuple[Any, ...]] = []
    deps: Vector | None = None
    vector = b""
    for put in puts:
        for entry in put.entries:
            if not entry.count:
                continue
            if entry.deps is not deps:
                deps, vector = entry.deps, msgspec.msgpack.encode(entry.deps)
            rows.append((
                entry.row, put.origin, entry.lsn, entry.shard, entry.start, entry.count, entry.w, entry.lo,
                entry.hi, vector, *(entry.mark or _NO_MARK), entry.body,
            ))  # fmt: skip
    return rows


def _insert(connection: sqlite3.Connection, rows: Sequence[Sequence[Any]]) -> None:
    if rows:
        connection.execute(_INSERT + ",".join([_ROW] * len(rows)), [value for row in rows for value in row])


def _delete(connection: sqlite3.Connection, drop: Drop) -> None:
    """Delete entries, keeping what nothing else would tell any more."""
    keys = [(entry.row,) for entry in drop.entries]
    connection.executemany(_KEEP_EXPECTED, keys)
    connection.executemany("DELETE FROM entries WHERE row = ?", keys)
    ends = {entry.shard: (drop.origin, entry.shard, entry.end, entry.hi) for entry in drop.entries}
    connection.executemany(_MOVE_STREAM, ends.values())
    last, w = max(entry.lsn for entry in drop.entries), max(entry.w for entry in drop.entries)
    connection.execute(_MOVE_LANE, (drop.origin, last, w, last))


def load(connection: sqlite3.Connection) -> tuple[list[Kept], Expected]:
    """Return all lanes, without bodies, and what is expected next of each producer."""
    run = connection.execute
    lanes = {
        origin: Kept(origin, [], {}, head, w, floor)
        for origin, head, w, floor in run("SELECT origin, head, w, floor FROM lanes")
    }
    for origin, shard, position, key in run("SELECT origin, shard, next, key FROM streams"):
        lanes[origin].ends[shard] = (position, key)
    expected: Expected = {
        (producer, shard): seq
        for producer, shard, seq in run("SELECT producer, shard, next FROM expected ORDER BY rowid")
    }
    vectors: dict[bytes, Vector] = {}
    for row, origin, lsn, shard, start, count, w, lo, hi, deps, producer, seq, size in run(
        "SELECT row, origin, lsn, shard, start, count, w, lo, hi, deps, producer, expected, length(body)"
        " FROM entries ORDER BY row"
    ):
        if deps not in vectors:
            vectors[deps] = msgspec.msgpack.decode(deps, type=dict[str, int])
        entry = Entry(lsn, shard, start, count, w, lo, hi, vectors[deps], None)
        entry.size, entry.row = size, row
        kept = lanes.get(origin) or Kept(origin, [], {}, 0, 0, 0)
        hole = lsn - 1 if start > kept.ends.get(shard, (0, 0))[0] else 0  # it was taken as a gap
        kept.entries.append(entry)
        kept.ends[shard] = (entry.end, hi)
        lanes[origin] = kept._replace(head=max(kept.head, lsn), w=max(kept.w, w), floor=max(kept.floor, hole))
        if producer is not None:
            # The latest come last; but what rows told that were deleted may be greater.
            expected[producer, shard] = max(seq, expected.pop((producer, shard), 0))
    return list(lanes.values()), expected


def prune_expected(connection: sqlite3.Connection, expected: Expected) -> Expected:
    """Return what is expected of the latest producers only, and forget the others on disk too."""
    latest = set(list(dict.fromkeys(producer for producer, _ in reversed(expected)))[:_PRODUCERS])
    gone = {producer for producer, _ in expected} - latest
    connection.executemany("DELETE FROM expected WHERE producer = ?", [(name,) for name in gone])
    return {key: seq for key, seq in expected.items() if key[0] in latest}
