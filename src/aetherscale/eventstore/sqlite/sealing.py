"""Moving rows into segments, in the thread and connection of the one writer. See `archive.py`."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from aetherscale.eventstore.sqlite.connection import SQLITE_ERRORS, translated
from aetherscale.eventstore.sqlite.reading import LogReading
from aetherscale.eventstore.sqlite.segments import SEALED_VERSION, SEQ, STREAM, TIME, VERSION, Row, pack, unpack
from aetherscale.eventstore.store import Damaged, StorageFull

_ROWS: Final = (
    "SELECT seq, stream_id, version, type_id, data, time_us, tenant, actor, command_id, correlation_id, causation_id"
    " FROM events WHERE seq BETWEEN ? AND ? ORDER BY seq"
)
_SQL: Final = Path(__file__).with_name("segments.sql")


def reading_of(connection: sqlite3.Connection, path: Path) -> LogReading:
    """The queries of a log through the connection that seals it. Raises `StoreError`."""
    try:
        return LogReading(connection, path)
    except SQLITE_ERRORS as error:
        raise translated(error, path) from error


def seal(connection: sqlite3.Connection, path: Path, after: int, ends: list[int]) -> None:
    """Move the rows after a position into segments, each up to one of `ends`; all of it or nothing.

    Raises `StorageFull`, `InDoubt`, `Damaged`.
    """
    with _transaction(connection, path):
        _seal(connection, after, ends)


def reclaim(connection: sqlite3.Connection, path: Path) -> bool:
    """Make the file as small as what is in it; false where the disk has no room for the copy that this takes."""
    try:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        connection.execute("VACUUM")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    except SQLITE_ERRORS as error:
        failure = translated(error, path)
        if isinstance(failure, StorageFull):
            return False
        raise failure from error
    return True


def _seal(connection: sqlite3.Connection, after: int, ends: list[int]) -> None:
    """Move rows into segments with the given ends."""
    if connection.execute("PRAGMA user_version").fetchone()[0] < SEALED_VERSION:
        for statement in _statements(_SQL.read_text()):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {SEALED_VERSION}")
    [[refusal]] = connection.execute("SELECT sql FROM sqlite_schema WHERE name = 'events_stay'").fetchall()
    connection.execute("DROP TRIGGER events_stay")
    for end in ends:
        rows: list[Row] = connection.execute(_ROWS, (after + 1, end)).fetchall()
        data = pack(rows)
        if unpack(data) != rows:
            raise Damaged(f"events {after + 1} to {end} cannot be sealed: they do not read back as they are", after + 1)
        versions = {row[STREAM]: row[VERSION] for row in rows}
        connection.execute(
            "INSERT INTO segments (first_seq, last_seq, least_us, data) VALUES (?, ?, ?, ?)",
            (rows[0][SEQ], rows[-1][SEQ], min(row[TIME] for row in rows), data),
        )
        connection.executemany(
            "INSERT INTO segment_streams (stream_id, version, first_seq) VALUES (?, ?, ?)",
            [(stream_id, version, rows[0][SEQ]) for stream_id, version in versions.items()],
        )
        connection.execute("DELETE FROM events WHERE seq BETWEEN ? AND ?", (after + 1, end))
        after = end
    connection.execute(refusal)


def _statements(script: str) -> Iterator[str]:
    """The statements of a script, one by one: `executescript` would commit before it begins."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


@contextmanager
def _transaction(connection: sqlite3.Connection, path: Path) -> Iterator[None]:
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("COMMIT")
    except SQLITE_ERRORS as error:
        raise translated(error, path, committing=True) from error
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
