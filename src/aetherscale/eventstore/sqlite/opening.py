"""Making a log, and opening one for writing. Synchronous: it runs in the thread of the connection that writes.

A log comes into being whole: it is made under another name and renamed. An existing one is compared with its head over
a read-only connection before any other: opening a damaged one for writing would already change it.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

from msgspec.structs import astuple

from aetherscale import statedir
from aetherscale.eventstore.chain import EMPTY, Head
from aetherscale.eventstore.sqlite.connection import SQLITE_ERRORS, connect, connect_read_only, translated
from aetherscale.eventstore.sqlite.files import HeadFile, Reserve, read_head, sync_directory, sync_file
from aetherscale.eventstore.sqlite.reading import APPLICATION_ID, SCHEMA_VERSION, Epoch, LogReading
from aetherscale.eventstore.store import Damaged, NotALog, StorageFull, WrongNode

WAL_AUTOCHECKPOINT_PAGES: Final = 16384
"""64 MiB: at 4 MiB the 99th percentile of a durable append is twice as high."""

CACHE_KIB: Final = 8192
FULL: Final = 2
"""`PRAGMA synchronous`: the write-ahead log is synced at each commit (https://sqlite.org/pragma.html)."""

SCHEMA: Final = Path(__file__).with_name("schema.sql")


def open_log(path: Path, ours: Epoch, reserve: Reserve) -> sqlite3.Connection:
    """The connection that writes to the log of a node; the log is made where there is none.

    The caller holds the lock. Where the disk is full, the reserve is spent, so that reading and urgent appends work.
    Raises `NotALog`, `TooNew`, `WrongNode`, `Damaged`, `StorageFull`, OSError.
    """
    try:
        return _open(path, ours)
    except StorageFull:
        if not reserve.spend():
            raise
        return _open(path, ours)


def _open(path: Path, ours: Epoch) -> sqlite3.Connection:
    head = read_head(path.with_suffix(".head"))
    if not path.exists() or path.stat().st_size == 0:
        if head is not None and head.batch > 0:
            raise Damaged(
                f"{path}: log damaged at 1: it is missing or empty, but event {head.seq} was written; put the file "
                f"back; to start with an empty log instead, remove {path.with_suffix('.head')}",
                1,
            )
        if path.exists():
            raise NotALog(f"{path}: the file is empty: not an event log; remove it to have a new log made")
        make_log(path, [ours])
        publish(path, EMPTY)
    else:
        check_log(path, ours.node)
        sync_what_was_left(path)
    return connect_for_writing(path)


def make_log(path: Path, epochs: Sequence[Epoch]) -> None:
    """Make an empty log under the name that `unpublished` says. Raises `StorageFull`, OSError."""
    remove_unpublished(path)
    making = unpublished(path)
    os.close(statedir.open_file(making, os.O_CREAT | os.O_EXCL))
    with closing(connect(making, "rw")) as connection:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(
                f"BEGIN; PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION};"
                f"{SCHEMA.read_text()} COMMIT;"
            )
            insert_epochs(connection, epochs)
        except SQLITE_ERRORS as error:
            raise translated(error, making) from error


def insert_epochs(connection: sqlite3.Connection, epochs: Sequence[Epoch]) -> None:
    """Say who recorded the events from certain ones on. Raises sqlite3.Error."""
    connection.executemany(
        "INSERT INTO epochs (first_seq, node, epoch, created_us) VALUES (?, ?, ?, ?)", [astuple(one) for one in epochs]
    )


def publish(path: Path, head: Head) -> None:
    """Give a log that was made its name, with its head. Its connections have to be closed. Raises OSError.

    Wherever the power fails, there is no log under that name, or the whole of it with a head that fits: that of an
    empty log fits every log, and is durable before.
    """
    _write_head(unpublished_head(path), EMPTY)
    unpublished_head(path).rename(path.with_suffix(".head"))
    sync_directory(path.parent)
    unpublished(path).rename(path)
    sync_directory(path.parent)
    if head != EMPTY:
        _write_head(path.with_suffix(".head"), head)


def _write_head(path: Path, head: Head) -> None:
    with closing(HeadFile(path)) as head_file:
        head_file.write(head)
        head_file.sync()


def sync_what_was_left(path: Path) -> None:
    """Make durable what can be read of a log, before anything acts on it. Raises OSError.

    A process that was killed while it waited for the disk leaves a commit that is there and that the next power cut
    would take away.
    """
    with suppress(FileNotFoundError):
        sync_file(path.with_name(f"{path.name}-wal"))
    sync_directory(path.parent)


def unpublished(path: Path) -> Path:
    """The name of a log while it is made."""
    return path.with_name(f"{path.name}.new")


def unpublished_head(path: Path) -> Path:
    """The name of its head while it is made."""
    return path.with_name(f"{path.name}.new-head")


def remove_unpublished(path: Path) -> None:
    """Remove what is left of a log that was not made to its end. Raises OSError."""
    making = unpublished(path)
    for leftover in making.parent.glob(f"{making.name}*"):
        leftover.unlink()


def connect_for_writing(path: Path) -> sqlite3.Connection:
    """The one connection that may write to a log and checkpoint it. Raises `StoreError`."""
    connection = connect(path, "rw", any_thread=True)
    try:
        connection.execute(f"PRAGMA wal_autocheckpoint = {WAL_AUTOCHECKPOINT_PAGES}")
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        connection.execute("PRAGMA synchronous = FULL")
        mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
        synchronous = connection.execute("PRAGMA synchronous").fetchone()[0]
    except SQLITE_ERRORS as error:
        connection.close()
        raise translated(error, path) from error
    assert (mode, synchronous) == ("wal", FULL), f"{path}: an acknowledgement would not be durable"
    return connection


def check_log(path: Path, node: str | None) -> None:
    """Compare a log with its head, and with the node that it has to belong to, without any chance to change it.

    Raises `NotALog`, `TooNew`, `WrongNode`, `Damaged`.
    """
    with closing(connect_read_only(path)) as connection:
        try:
            reading = LogReading(connection, path)
            check_head(reading, read_head(path.with_suffix(".head")), path)
        except SQLITE_ERRORS as error:
            raise translated(error, path) from error
        owner = reading.epochs[-1].node
    if node is not None and owner != node:
        raise WrongNode(f"{path}: this is the log of node {owner}, not of {node}; serve with --node {owner}")


def owner_of(path: Path) -> str | None:
    """The node whose log is there; None where there is none. Raises `NotALog`, `TooNew`, `Damaged`, OSError."""
    if not path.exists():
        return None
    with closing(connect_read_only(path)) as connection:
        try:
            return LogReading(connection, path).epochs[-1].node
        except SQLITE_ERRORS as error:
            raise translated(error, path) from error


def check_head(reading: LogReading, head: Head | None, path: Path) -> None:
    """Compare the end of a log with the head that was kept apart. Raises `Damaged` where something has vanished."""
    last = reading.chain_head() or EMPTY
    seq = reading.head()
    if head is None:
        what, at = f"{path.with_suffix('.head')} is missing: it is not known whether the log is complete", None
    elif seq != last.seq:
        at = min(seq, last.seq) + 1
        what = f"log damaged at {at}: it has {seq} events, {last.seq} were committed"
    elif head.batch > last.batch:
        at = seq + 1
        what = f"log damaged at {at}: event {head.seq} was written (commit {head.batch}, now the last is {last.batch})"
    elif reading.chain_head(head.batch) != head:
        what, at = f"log damaged at {head.seq}: it is not the log that was written", head.seq
    else:
        return
    raise Damaged(
        f"{path}: {what}; to see more: aetherscale log verify --state-dir {path.parent}; to save what can be read: "
        f"aetherscale log export --state-dir {path.parent} > log.jsonl, to be imported into a new state directory",
        at,
    )
