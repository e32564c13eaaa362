"""Connections to SQLite files, and its errors in the words of the port. The door to aiosqlite and sqlite3.

A connection of aiosqlite is a thread that runs one function after another. `run` hands it a whole piece of work at
once, a transaction or a page, so that a durable append costs one trip to the thread and not one for each statement.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal, TypeVar

import aiosqlite

from aetherscale import shortage, statedir
from aetherscale.eventstore.store import Closed, Damaged, InDoubt, NotALog, StorageFull, StoreError

T = TypeVar("T")

SQLITE_ERRORS: Final = (sqlite3.Error, UnicodeDecodeError)
"""The errors of sqlite3; the latter where the text of an error of a damaged file is itself damaged."""

Mode = Literal["ro", "rw", "rwc"]
"""Of SQLite's URIs: read-only, read and write, and create it too."""

BUSY_S: Final = 5.0
"""How long to wait for another process that recovers the write-ahead log."""

RESTART: Final = "nothing more is written; repair the disk, start the node again, and repeat commands by their id"

_NO_SHARED_MEMORY: Final = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR_SHMSIZE)


class Connection(aiosqlite.Connection):
    """An aiosqlite connection that runs functions. `await Connection.open(…)`, and `await close()` at the end."""

    def __init__(self, connect: Callable[[], sqlite3.Connection], path: Path) -> None:
        """`connect` is called in the thread of the connection, whose only user it then is."""
        super().__init__(connect, iter_chunk_size=64)
        self._thread.daemon = True  # a process that crashes has to end, with whatever was acknowledged on the disk
        self._path = path
        self._closed = False
        self._handed = 0
        self._returned = 0
        """Counted by the thread alone, as the former is by the loop: so neither needs a lock."""

    @classmethod
    async def open(cls, connect: Callable[[], sqlite3.Connection], path: Path) -> Connection:
        """A connection that stands. Raises what `connect` raises."""
        connection = cls(connect, path)
        try:
            await connection
        except BaseException:
            connection._thread.join()  # it is ending; were the loop closed first, it would complain
            raise
        return connection

    @property
    def plain(self) -> sqlite3.Connection:
        """The connection beneath, for use in the functions that `run` is given."""
        assert self._connection is not None, f"{self._path}: not connected"
        return self._connection

    async def run(self, work: Callable[[], T]) -> T:
        """Run a function in the thread of the connection; the functions of all callers run one after another.

        Raises what it raises, errors of SQLite as `StoreError`, and `Closed` after `close`.
        """
        if self._closed:
            raise Closed(f"{self._path}: has been closed")
        self._handed += 1
        try:
            result: T = await self._execute(lambda: self._counted(work))  # type: ignore[no-untyped-call]
        except SQLITE_ERRORS as error:
            raise translated(error, self._path) from error
        return result

    def _counted(self, work: Callable[[], T]) -> T:
        try:
            return work()
        finally:
            self._returned += 1

    @property
    def is_idle(self) -> bool:
        """Whether its thread has nothing to do: no function of a caller, also of one that was cancelled."""
        return self._handed == self._returned

    def run_here(self, work: Callable[[], T]) -> T:
        """As `run`, in the thread of the caller, who waits. For an idle connection of `connect(…, any_thread=True)`."""
        assert self.is_idle, f"{self._path}: its own thread is at work"
        if self._closed:
            raise Closed(f"{self._path}: has been closed")
        try:
            return work()
        except SQLITE_ERRORS as error:
            raise translated(error, self._path) from error

    async def close(self) -> None:
        """Finish what was handed over before, then close; idempotent. Later calls of `run` raise `Closed`."""
        self._closed = True
        await super().close()


def connect(path: Path, mode: Mode, *, immutable: bool = False, any_thread: bool = False) -> sqlite3.Connection:
    """A plain connection without implicit transactions. One that can write takes only files of ours.

    With `any_thread` it may be used in one thread after the other.

    Raises `StoreError` in the words of the port, and `NotOurs`.
    """
    if mode != "ro":
        statedir.require_files(path.parent, tuple(path.name + suffix for suffix in ("", "-wal", "-shm", "-journal")))
    uri = f"{path.absolute().as_uri()}?mode={mode}{'&immutable=1' if immutable else ''}"
    try:
        connection = sqlite3.connect(
            uri, uri=True, isolation_level=None, timeout=BUSY_S, cached_statements=64, check_same_thread=not any_thread
        )
    except sqlite3.Error as error:
        raise translated(error, path) from error
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
    return connection


def connect_read_only(path: Path) -> sqlite3.Connection:
    """A connection that cannot write, beside a running node or without one. It never checkpoints.

    Where nothing can be written, SQLite cannot make the shared memory of a write-ahead log; without such a log in the
    way the file is read as it is, since it cannot change either. Raises `StoreError`, OSError.
    """
    if not path.exists():
        raise NotALog(f"{path}: there is no event log here; give the --state-dir of a node")
    if not statedir.is_ours(path.parent):
        return _connect_as_guest(path)
    connection = connect(path, "ro")
    try:
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    except SQLITE_ERRORS as error:
        connection.close()
        wal = path.with_name(f"{path.name}-wal")
        if getattr(error, "sqlite_errorcode", None) not in _NO_SHARED_MEMORY or (
            wal.exists() and wal.stat().st_size > 0
        ):
            raise translated(error, path) from error
        connection = connect(path, "ro", immutable=True)
    return connection


def _connect_as_guest(path: Path) -> sqlite3.Connection:
    """A connection to the log of another user that leaves no file of the reader behind.

    SQLite makes the files of the write-ahead log where they are missing. Where no process has the log open they are,
    and it is read as it is; beside a node they are there.
    """
    wal, shared = (path.with_name(path.name + suffix) for suffix in ("-wal", "-shm"))
    if path.is_symlink() or wal.is_symlink() or shared.is_symlink():
        raise NotALog(f"{path}: it is reached through a symbolic link that another user has made; it is not followed")
    if wal.exists() and shared.exists():
        return connect(path, "ro")
    if wal.exists() and wal.stat().st_size > 0:
        raise StoreError(
            f"{path}: the log was not closed tidily, and only its owner can read it: "
            f"sudo -u {statedir.owner_of(path.parent)} aetherscale …"
        )
    return connect(path, "ro", immutable=True)


def translated(error: sqlite3.Error | UnicodeDecodeError, path: Path, *, committing: bool = False) -> StoreError:
    """An error of SQLite in the words of the port (https://sqlite.org/rescode.html)."""
    code = getattr(error, "sqlite_errorcode", None)
    primary = None if code is None else code & 0xFF
    text = f"{error} ({getattr(error, 'sqlite_errorname', type(error).__name__)})"
    if primary == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR_SHMSIZE and not committing):
        return full(path)
    if primary == sqlite3.SQLITE_NOTADB:
        return NotALog(f"{path}: this is not an event log, or its first bytes are damaged; it is left as it is")
    if primary == sqlite3.SQLITE_CORRUPT or isinstance(error, UnicodeDecodeError) or "decode to UTF-8" in text:
        return Damaged(f"{path}: the log is damaged: {text}; {verify_hint(path)}")
    if committing:
        return InDoubt(f"{path}: {text}; {RESTART}")
    if primary == sqlite3.SQLITE_IOERR:
        return Damaged(f"{path}: the log cannot be read: {text}; {verify_hint(path)}")
    return StoreError(f"{path}: the log cannot be opened or read: {text}; is it yours to read?")


def full(path: Path) -> StorageFull:
    """That nothing more can be written."""
    return StorageFull(
        f"{path}: the disk is full{shortage.beyond_file_limit()}: nothing was written; make room and repeat the command"
    )


def verify_hint(path: Path) -> str:
    """The command that shows where a log is damaged."""
    return f"to see where: aetherscale log verify --state-dir {path.parent}"
