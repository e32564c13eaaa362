"""Where keyframes of the past are kept: `past.db` beside the log. Knows bytes and positions, nothing of what they mean.

The file may be deleted at any time, also while it is in use; whatever is damaged in it is made anew: each part has a
digest over all that it claims to be. The digest has no key, so it shows accidents and not a forger. Several processes
may fill it at the same time, since all of them write the same. Synchronous.

It has a rollback journal and no write-ahead log, so that it is one file between two transactions, and one that only
reads it makes no file. It is not synced: what a power cut takes or tears is folded again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct

from aetherscale import statedir
from aetherscale.eventstore.sqlite.connection import SQLITE_ERRORS, connect, translated
from aetherscale.eventstore.store import Damaged, NotALog, StoreError

log = logging.getLogger(__name__)

T = TypeVar("T")

PAST_NAME: Final = "past.db"
SCHEMA_VERSION: Final = 1

COPIED_BYTES: Final = 256 * 1024**2
"""Of a file that we may only read, at most so much is copied into memory: about 7,000,000 events' worth."""

_BROKEN: Final = (Damaged, NotALog)

_SCHEMA: Final = """
CREATE TABLE parts (
    fingerprint TEXT NOT NULL,
    epoch       TEXT NOT NULL,
    position    INTEGER NOT NULL,
    name        TEXT NOT NULL,
    batch       INTEGER NOT NULL,
    link        BLOB NOT NULL,
    sha256      BLOB NOT NULL,
    data        BLOB NOT NULL,
    PRIMARY KEY (fingerprint, epoch, position, name)
) STRICT
"""

_PROBE: Final = "SELECT count(data) FROM parts WHERE position < 0"


class Belongs(Struct, frozen=True):
    """What keyframes were made of: the shape of the state that they hold, and the epoch of the log."""

    fingerprint: str
    epoch: str


class Anchor(Struct, frozen=True):
    """Where in a log a keyframe stands: its position, and the commit that holds this event with its link of the chain.

    The link is a hash over all events up to there, so it is found in no log that was rolled back or rewritten before.
    """

    position: int
    batch: int
    link: bytes


class Part(Struct, frozen=True):
    """A part of a keyframe as it was saved."""

    anchor: Anchor
    data: bytes


class KeyframeFile:
    """The parts of keyframes of one log and one shape of its state. `open_keyframes` makes one."""

    def __init__(self, connection: sqlite3.Connection, belongs: Belongs, path: Path | None) -> None:
        """`path` is None for one in memory."""
        self._connection = connection
        self._belongs = (belongs.fingerprint, belongs.epoch)
        self._path = path

    def last(self, until: int) -> int:
        """The position of the last keyframe up to a position, 0 for none; `read` says whether it is good."""
        sql = "SELECT max(position) FROM parts WHERE (fingerprint, epoch) = (?, ?) AND position <= ?"
        values = (*self._belongs, until)
        return self._trying(lambda: int(self._connection.execute(sql, values).fetchone()[0] or 0), 0)

    def read(self, name: str, position: int) -> Part | None:
        """A part; None where there is none, or one that is not as it was saved."""
        return self._trying(lambda: self._read(name, position), None)

    def _read(self, name: str, position: int) -> Part | None:
        sql = "SELECT batch, link, sha256, data FROM parts WHERE (fingerprint, epoch, position, name) = (?, ?, ?, ?)"
        row = self._connection.execute(sql, (*self._belongs, position, name)).fetchone()
        if row is None:
            return None
        batch, link, sha256, data = row
        anchor = Anchor(position, batch, link)
        return Part(anchor, data) if self._digest(anchor, name, data) == sha256 else None

    def save(self, anchor: Anchor, parts: Mapping[str, bytes]) -> None:
        """Keep the parts of one keyframe, all or none, and nothing of another log or another shape of the state.

        Where that cannot be done, as on a full disk, what follows is kept in memory.
        """
        rows = [
            (*self._belongs, anchor.position, name, anchor.batch, anchor.link, self._digest(anchor, name, data), data)
            for name, data in parts.items()
        ]
        self._trying(lambda: self._save(rows), None)

    def _save(self, rows: Sequence[tuple[Any, ...]]) -> None:
        with self._transaction():
            self._connection.execute("DELETE FROM parts WHERE (fingerprint, epoch) != (?, ?)", self._belongs)
            self._connection.executemany("INSERT OR REPLACE INTO parts VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def drop(self, position: int) -> None:
        """Forget the keyframes from a position on."""
        self._trying(lambda: self._drop(position), None)

    def _drop(self, position: int) -> None:
        sql = "DELETE FROM parts WHERE (fingerprint, epoch) = (?, ?) AND position >= ?"
        with self._transaction():
            self._connection.execute(sql, (*self._belongs, position))

    def discard(self) -> None:
        """Remove the file, and go on in memory with nothing."""
        self.close()
        if self._path is not None:
            remove(self._path)
        self._connection, self._path = _in_memory(), None

    def close(self) -> None:
        """Let go of the file; idempotent."""
        self._connection.close()

    def _digest(self, anchor: Anchor, name: str, data: bytes) -> bytes:
        claimed = msgspec.msgpack.encode((self._belongs, anchor.position, name, anchor.batch, anchor.link))
        return hashlib.sha256(claimed + data).digest()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            yield
            self._connection.execute("COMMIT")
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    def _trying(self, work: Callable[[], T], instead: T) -> T:
        """Do something with the file. Where it fails, go on in memory, with nothing; one that is damaged is removed."""
        try:
            return work()
        except (*SQLITE_ERRORS, TypeError) as error:
            failure = Damaged(str(error)) if isinstance(error, TypeError) else translated(error, self._path or Path())
            log.info("%s: not used any more: %s", self._path, failure)
            if isinstance(failure, _BROKEN):
                self.discard()
            else:
                self.close()
                self._connection, self._path = _in_memory(), None
        return instead


def open_keyframes(path: Path, belongs: Belongs) -> KeyframeFile:
    """The keyframes in a file, which is made where there is none, or in memory where that cannot be; never fails.

    It cannot be in a directory of another user or on a read-only disk. What the file has already is used there too: it
    is copied, and nothing is left behind.
    """
    try:
        return KeyframeFile(_opened(path), belongs, path)
    except (StoreError, OSError) as failure:
        log.info("%s: keyframes are kept in memory: %s", path, failure)
    return KeyframeFile(_copied(path), belongs, None)


def remove(path: Path) -> None:
    """Remove the file and its journal, as far as that can be done."""
    for name in (path, path.with_name(f"{path.name}-journal")):
        try:
            name.unlink(missing_ok=True)
        except OSError as failure:
            log.info("%s: cannot be removed: %s", name, failure)


def _opened(path: Path) -> sqlite3.Connection:
    """Raises `StoreError`, OSError."""
    try:
        return _connected(path)
    except _BROKEN as broken:
        log.info("%s: made anew: %s", path, broken)
        remove(path)
        return _connected(path)


def _connected(path: Path) -> sqlite3.Connection:
    os.close(statedir.open_file(path, os.O_RDWR | os.O_CREAT))
    connection = connect(path, "rw")
    try:
        connection.execute("PRAGMA synchronous = OFF")
        if _version(connection) == 0:
            _make(connection)
        if (version := _version(connection)) != SCHEMA_VERSION:
            raise NotALog(f"{path}: has schema {version}, expected {SCHEMA_VERSION}")
        connection.execute(_PROBE).fetchone()
    except SQLITE_ERRORS as error:
        connection.close()
        is_foreign = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR  # it has other tables
        raise NotALog(f"{path}: {error}") if is_foreign else translated(error, path) from error
    except BaseException:
        connection.close()
        raise
    return connection


def _make(connection: sqlite3.Connection) -> None:
    """Make the table; another process may be doing the same."""
    connection.execute("BEGIN IMMEDIATE")
    if _version(connection) == 0:
        connection.execute("DROP TABLE IF EXISTS parts")
        connection.execute(_SCHEMA)
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    connection.execute("COMMIT")


def _version(connection: sqlite3.Connection) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version


def _in_memory() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    _make(connection)
    return connection


def _copied(path: Path) -> sqlite3.Connection:
    """What a file has that we may only read, in memory; it is followed through no link."""
    memory = _in_memory()
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > COPIED_BYTES:
            return memory
        with closing(connect(path, "ro")) as connection:
            if _version(connection) == SCHEMA_VERSION:
                connection.backup(memory)
            memory.execute(_PROBE).fetchone()
    except (*SQLITE_ERRORS, StoreError, OSError) as failure:
        log.info("%s: cannot be read: %s", path, failure)
        memory.close()
        return _in_memory()
    return memory
