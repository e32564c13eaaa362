"""The backend over the file for a node, and the reader beside it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import TypeVar

from aetherscale.eventstore.backend import Outcome
from aetherscale.eventstore.chain import Head
from aetherscale.eventstore.groupcommit import LogStore
from aetherscale.eventstore.sqlite.connection import Connection, connect_read_only
from aetherscale.eventstore.sqlite.files import RESERVE_BYTES, HeadFile, Lock, Reserve, read_head
from aetherscale.eventstore.sqlite.opening import check_head, open_log
from aetherscale.eventstore.sqlite.pace import Pace
from aetherscale.eventstore.sqlite.reading import Epoch, LogReading, at_one_moment
from aetherscale.eventstore.sqlite.writing import LogWriting
from aetherscale.eventstore.store import Append, Damaged, InDoubt, Reading, StoreError

T = TypeVar("T")


async def open_store(
    path: Path, *, node: str, epoch: str, now_us: int, program: str = "", reserve_bytes: int = RESERVE_BYTES
) -> LogStore:
    """Open the log of a node for writing; a new one, of that node and epoch, where there is none.

    The directory has to exist. `program` is the version of the program, recorded with each new type of event. Close it
    with `close`, which leaves a single checkpointed file. Raises `Locked`, `NotALog`, `TooNew`, `WrongNode`, `Damaged`,
    `StorageFull`, OSError.
    """
    async with AsyncExitStack() as undo:
        lock = Lock(path.with_suffix(".lock"))
        undo.callback(lock.release)
        reserve = Reserve(path.with_suffix(".reserve"), reserve_bytes)
        undo.callback(reserve.close)
        ours = Epoch(1, node, epoch, now_us)
        writer = await Connection.open(lambda: open_log(path, ours, reserve), path)
        undo.push_async_callback(writer.close)
        reader = await Connection.open(lambda: connect_read_only(path), path)
        undo.push_async_callback(reader.close)
        undo.push_async_callback(writer.close)  # before the reader, so that nothing is checkpointed
        reading = await reader.run(lambda: LogReading(reader.plain, path))
        head_file = HeadFile(path.with_suffix(".head"))
        undo.callback(head_file.close)
        writing = await writer.run(lambda: LogWriting(writer.plain, path, program, head_file, reserve))
        store = await LogStore.start(SqliteBackend(writer, writing, reader, reading, reserve, lock))
        undo.pop_all()
        return store


async def open_access(path: Path) -> SqliteAccess:
    """Open a log for reading, beside the node that writes it or without one; for a `LogReader`.

    Raises `NotALog`, `TooNew`, and `Damaged` where the log is not what its head says. What is damaged further inside
    shows when it is read, or by `integrity.verify`.
    """
    connection = await Connection.open(lambda: connect_read_only(path), path)
    try:
        return SqliteAccess(connection, await connection.run(lambda: _checked(connection, path)))
    except BaseException:
        await connection.close()
        raise


class SqliteAccess:
    """The `Access` to a file, through the thread of a read-only connection."""

    def __init__(self, connection: Connection, reading: LogReading) -> None:
        self._connection = connection
        self._reading = reading
        self.node = reading.epochs[-1].node
        self.epoch = reading.epochs[-1].epoch

    async def ask(self, question: Callable[[Reading], T]) -> T:
        """As in `Access`."""
        return await self._connection.run(lambda: question(self._reading))

    async def close(self) -> None:
        """As in `Access`."""
        await self._connection.close()


class SqliteBackend(SqliteAccess):
    """A `Backend` over the file: one connection writes, another one reads."""

    def __init__(
        self,
        writer: Connection,
        writing: LogWriting,
        reader: Connection,
        reading: LogReading,
        reserve: Reserve,
        lock: Lock,
    ) -> None:
        super().__init__(reader, reading)
        self._writer = writer
        self._writing = writing
        self._reserve = reserve
        self._lock = lock
        self._pace = Pace()
        self._broken = False

    async def commit(self, appends: Sequence[Append]) -> Sequence[Outcome]:
        """As in `Backend`. Where that is sure to be short, the loop waits for it: see `pace.py`."""
        here = self._pace.may_wait(appends)
        if here:
            # What is ready by now does not wait too, above all the reply to the append before.
            await asyncio.sleep(0)
        begun = time.perf_counter()
        try:
            if here and self._writer.is_idle:
                return self._writer.run_here(lambda: self._writing.commit(appends))
            return await self._writer.run(lambda: self._writing.commit(appends))
        except (InDoubt, Damaged):
            self._broken = True
            raise
        finally:
            self._pace.took(time.perf_counter() - begun)

    def durable_head(self) -> Head:
        """As in `Backend`."""
        return self._writing.head

    async def sync_head(self) -> None:
        """As in `Backend`."""
        await self._writer.run(self._writing.sync_head)
        await self._writer.run(self._writing.make_room)

    async def close(self) -> None:
        """As in `Backend`.

        The connection that is closed last checkpoints the write-ahead log and removes it, if it can write. So the
        writer is closed last, unless the log is in doubt: nothing more may be written to that one. Where a reader in
        another process stays, it would be that one, which cannot write; so the log is checkpointed before.
        """
        try:
            await self._close_connections()
        finally:
            self._writing.close()
            self._reserve.close()
            self._lock.release()

    async def _close_connections(self) -> None:
        try:
            if not self._broken:
                await self._writer.run(self._writing.sync_head)
        except InDoubt:
            self._broken = True
            raise
        finally:
            first, last = (self._writer, self._connection) if self._broken else (self._connection, self._writer)
            await first.close()
            if not self._broken:
                await self._checkpoint()
            await last.close()

    async def _checkpoint(self) -> None:
        """Bring everything into the one file and empty the write-ahead log; what cannot be done stays for the next."""
        with suppress(StoreError):
            await self._writer.run(lambda: self._writer.plain.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone())


def _checked(connection: Connection, path: Path) -> LogReading:
    """The log compared with its head, which is read first: a node may go on writing meanwhile."""
    head = read_head(path.with_suffix(".head"))
    with at_one_moment(connection.plain):
        reading = LogReading(connection.plain, path)
        check_head(reading, head, path)
    return reading
