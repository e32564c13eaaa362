"""Snapshots in a file of their own, `snapshots.db`. Whatever is wrong with it, it is removed and made anew.

The log is the truth, so nothing here is synced to the disk for its own sake: what a power cut takes is folded again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from aetherscale import statedir
from aetherscale.eventstore.projections import KEPT_SNAPSHOTS, Snapshot
from aetherscale.eventstore.sqlite.connection import SQLITE_ERRORS, Connection, connect, translated
from aetherscale.eventstore.store import StorageFull, StoreError
from aetherscale.statedir import NotOurs

log = logging.getLogger(__name__)

SCHEMA_VERSION: Final = 1

FORMER_NAME: Final = "views.db"
"""The name of the file in version 0.1. Its snapshots have old shapes and are of no use."""

_SCHEMA: Final = f"""
CREATE TABLE snapshots (
    name        TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    epoch       TEXT NOT NULL,
    position    INTEGER NOT NULL,
    sha256      BLOB NOT NULL,
    state       BLOB NOT NULL,
    PRIMARY KEY (name, fingerprint, epoch, position)
) STRICT;
PRAGMA user_version = {SCHEMA_VERSION};
"""


class SqliteSnapshots:
    """`SnapshotStore` in a file. `await SqliteSnapshots.open(path)`, and `await close()` at the end."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @classmethod
    async def open(cls, path: Path) -> SqliteSnapshots:
        """The caller holds the lock of the log. Raises `StorageFull`, OSError."""
        return cls(await Connection.open(lambda: _opened(path), path))

    async def snapshots(self, name: str, fingerprint: str, epoch: str) -> Sequence[Snapshot]:
        """As in `SnapshotStore`. What cannot be read counts as not there."""
        try:
            rows = await self._connection.run(lambda: self._rows(name, fingerprint, epoch))
        except StoreError as unreadable:
            log.warning("the snapshots of %s are passed over: %s", name, unreadable)
            return []
        good = [Snapshot(position, state) for position, state, digest in rows if _digest(position, state) == digest]
        if len(good) < len(rows):
            log.warning("%d snapshots of %s are damaged and passed over", len(rows) - len(good), name)
        return good

    async def save(self, name: str, fingerprint: str, epoch: str, snapshot: Snapshot) -> None:
        """As in `SnapshotStore`."""
        await self._connection.run(lambda: self._save(name, fingerprint, epoch, snapshot))

    async def close(self) -> None:
        """As in `SnapshotStore`."""
        await self._connection.close()

    def _rows(self, name: str, fingerprint: str, epoch: str) -> list[tuple[int, bytes, bytes]]:
        return self._connection.plain.execute(
            "SELECT position, state, sha256 FROM snapshots WHERE (name, fingerprint, epoch) = (?, ?, ?)"
            " ORDER BY position DESC",
            (name, fingerprint, epoch),
        ).fetchall()

    def _save(self, name: str, fingerprint: str, epoch: str, snapshot: Snapshot) -> None:
        connection = self._connection.plain
        position, state = snapshot.position, snapshot.state
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(
                "DELETE FROM snapshots WHERE name = ? AND ((fingerprint, epoch) != (?, ?) OR position >= ?)",
                (name, fingerprint, epoch, position),
            )
            connection.execute(
                "DELETE FROM snapshots WHERE name = ? AND position NOT IN"
                " (SELECT position FROM snapshots WHERE name = ? ORDER BY position DESC LIMIT ?)",
                (name, name, KEPT_SNAPSHOTS - 1),
            )
            connection.execute(
                "INSERT INTO snapshots (name, fingerprint, epoch, position, sha256, state) VALUES (?, ?, ?, ?, ?, ?)",
                (name, fingerprint, epoch, position, _digest(position, state), state),
            )
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")


def _opened(path: Path) -> sqlite3.Connection:
    _remove_former(path.parent)
    try:
        return _connected(path)
    except StorageFull:
        raise
    except StoreError as broken:
        log.warning("the snapshots are made anew: %s", broken)
        for leftover in path.parent.glob(f"{path.name}*"):
            leftover.unlink()
        return _connected(path)


def _remove_former(directory: Path) -> None:
    """Remove the file of the former name, where it is ours; whatever else bears the name stays. Raises `NotOurs`."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        name = FORMER_NAME + suffix
        with statedir.opened(directory) as descriptor, suppress(FileNotFoundError, NotOurs):
            statedir.require_files(directory, (name,))
            os.unlink(name, dir_fd=descriptor)


def _connected(path: Path) -> sqlite3.Connection:
    os.close(statedir.open_file(path, os.O_RDWR | os.O_CREAT))
    connection = connect(path, "rw")
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            connection.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
        elif version != SCHEMA_VERSION:
            connection.close()
            raise StoreError(f"{path}: has schema {version}, expected {SCHEMA_VERSION}")
        connection.execute("SELECT count(position) FROM snapshots").fetchone()
    except SQLITE_ERRORS as error:
        connection.close()
        raise translated(error, path) from error
    return connection


def _digest(position: int, state: bytes) -> bytes:
    return hashlib.sha256(b"%d:" % position + state).digest()
