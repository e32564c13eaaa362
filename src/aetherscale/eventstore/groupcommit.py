"""Group commit: one writer takes whatever is waiting, commits it once, and wakes all who wait.

No timer delays a commit: while one is on its way to the disk the next batch gathers by itself. It stands above the
small port of `backend.py`, and does not know whether that is a file.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from copy import copy
from typing import Final, NamedTuple

from aetherscale.eventstore.backend import Backend, Outcome
from aetherscale.eventstore.chain import Head
from aetherscale.eventstore.reader import LogReader
from aetherscale.eventstore.store import (
    AS_STORED,
    Append,
    Closed,
    Damaged,
    InDoubt,
    StorageFull,
    StoredEvent,
    StoreError,
)
from aetherscale.eventstore.tail import Tail

BATCH_EVENTS: Final = 1000
BATCH_BYTES: Final = 1024 * 1024
EVENT_OVERHEAD_BYTES: Final = 256
"""The bytes that an event takes beside its payload: names, ids, index entries."""
SYNC_HEAD_S: Final = 1.0


class _Waiting(NamedTuple):
    append: Append
    done: asyncio.Future[Sequence[StoredEvent]]


class LogStore(LogReader[StoredEvent]):
    """The log of one node over any backend: one writer, any number of readers.

    `await LogStore.start(backend)`; `await store.close()` at the end. It owns one task, the writer, which
    `close` waits for.
    """

    def __init__(self, backend: Backend, head: int) -> None:
        super().__init__(backend, AS_STORED)
        self._backend = backend
        self._tail = Tail(head)
        self._durable_head = backend.durable_head()
        self._waiting: deque[_Waiting] = deque()
        self._wake = asyncio.Event()
        self._refusing: StoreError | None = None
        self._full: StorageFull | None = None
        """Why the last append could not be written for want of room; None once one was."""
        self._closing = False
        self._sync_timer: asyncio.TimerHandle | None = None
        self._sync_due = False
        self._listeners: list[Callable[[Sequence[StoredEvent]], None]] = []
        self._writer = asyncio.create_task(self._write(), name="event log writer")  # noqa: TID251 - close() waits

    @classmethod
    async def start(cls, backend: Backend) -> LogStore:
        """A store that is ready to write."""
        return cls(backend, await backend.ask(lambda log: log.head()))

    async def append(self, append: Append) -> Sequence[StoredEvent]:
        """Write all of it and return when it is durable, with what is now in the log (`()` where it had no events).

        Appends become durable in the order of the calls; whatever waits together is committed together. A cancelled
        call may still have written. Raises `WrongVersion`, `AlreadyAccepted`, `StorageFull`, `InDoubt`, `Damaged`,
        `Closed`; and ValueError for what no log can hold (text that is not Unicode, a year beyond 9999).
        """
        if self._refusing is not None:
            raise copy(self._refusing)
        done: asyncio.Future[Sequence[StoredEvent]] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(append, done))
        self._wake.set()
        return await done

    @property
    def trouble(self) -> str:
        """Why an append would not be written now, as far as is known; "" for no reason."""
        reason = self._refusing or self._full
        return "" if reason is None else str(reason)

    def durable_head(self) -> Head:
        """The end of the log as of the last commit that is durable. Costs nothing; see `chain.py`."""
        return self._durable_head

    async def head(self) -> int:
        """The position of the last event that is durable; 0 in an empty log."""
        return self._tail.head

    def on_commit(self, listener: Callable[[Sequence[StoredEvent]], None]) -> None:
        """Call `listener` with all that has become durable, in the order of the log, before any `append` returns it.

        It must not fail and may not wait: when an append returns, every projection has its events.
        """
        self._listeners.append(listener)

    def subscribe(self, after: int) -> AsyncGenerator[Sequence[StoredEvent], None]:
        """All events after a position, in order, without gap or double: first the past in pages, then as they come.

        Memory is bounded: a slow reader is given pages from the log, not a growing queue. Ends when the log is closed.
        """
        return self._tail.follow(after, self.read)

    async def close(self) -> None:
        """Write what is waiting, end the subscriptions, close the backend. Later appends are refused."""
        if self._closing:
            return
        self._closing = True
        self._refusing = self._refusing or Closed("append: the event log has been closed")
        self._wake.set()
        try:
            await self._writer
        finally:
            self._tail.close()
            if self._sync_timer is not None:
                self._sync_timer.cancel()
            await self._backend.close()

    async def _write(self) -> None:
        """The writer: the only one that calls `commit`, for as long as the store is open."""
        try:
            while self._waiting or not self._closing:
                await self._wake.wait()
                self._wake.clear()
                while batch := self._take():
                    await self._commit(batch)
                if self._sync_due:
                    await self._sync_head()
        finally:
            self._refusing = self._refusing or Closed("append: the writer of the event log has ended")
            _refuse_all(self._waiting, self._refusing)
            self._waiting.clear()

    def _take(self) -> list[_Waiting]:
        """The next batch: in the order of the calls, whole appends, at least one."""
        batch: list[_Waiting] = []
        events = size_bytes = 0
        while self._waiting:
            append, done = self._waiting[0]
            before = events
            for write in append.writes:
                for event in write.events:
                    events += 1
                    size_bytes += EVENT_OVERHEAD_BYTES + len(event.data)
            events = max(events, before + 1)
            if batch and (events > BATCH_EVENTS or size_bytes > BATCH_BYTES):
                break
            waiting = self._waiting.popleft()
            if not done.cancelled():
                batch.append(waiting)
        return batch

    async def _commit(self, batch: list[_Waiting]) -> None:
        """Commit a batch. Where it fails as a whole, each append is tried alone, so that one spoils no other."""
        if self._refusing is not None and not isinstance(self._refusing, Closed):
            return _refuse_all(batch, self._refusing)
        try:
            outcomes = await self._backend.commit([waiting.append for waiting in batch])
        except (StorageFull, ValueError) as failure:
            if len(batch) == 1:
                self._full = failure if isinstance(failure, StorageFull) else self._full
                return _refuse_all(batch, failure)
            for waiting in batch:
                await self._commit([waiting])
        except (InDoubt, Damaged) as fatal:
            self._refusing = fatal
            _refuse_all(batch, fatal)
        except BaseException:
            self._refusing = InDoubt("append: the writer of the event log broke down; whether it is written is unknown")
            _refuse_all(batch, self._refusing)
            raise
        else:
            self._full = None
            self._durable_head = self._backend.durable_head()
            self._sync_head_soon()
            try:
                self._tell([event for outcome in outcomes for event in _events(outcome)])
            except BaseException:
                self._refusing = InDoubt("append: a follower of the event log broke down; the process has to end")
                raise
            finally:
                for waiting, outcome in zip(batch, outcomes, strict=True):
                    _answer(waiting, outcome)

    def _tell(self, events: Sequence[StoredEvent]) -> None:
        """Pass the committed events to all followers of the log, before the appends return."""
        if events:
            self._tail.extend(events)
            for listener in self._listeners:
                listener(events)

    def _sync_head_soon(self) -> None:
        if self._sync_timer is None:
            self._sync_timer = asyncio.get_running_loop().call_later(SYNC_HEAD_S, self._sync_head_now)

    def _sync_head_now(self) -> None:
        self._sync_timer = None
        self._sync_due = True
        self._wake.set()

    async def _sync_head(self) -> None:
        self._sync_due = False
        try:
            await self._backend.sync_head()
        except InDoubt as fatal:
            self._refusing = fatal


def _events(outcome: Outcome) -> Sequence[StoredEvent]:
    return () if isinstance(outcome, StoreError) else outcome


def _answer(waiting: _Waiting, outcome: Outcome | ValueError) -> None:
    """Hand it to the caller, unless the caller has gone."""
    if waiting.done.done():
        return
    if isinstance(outcome, (StoreError, ValueError)):
        waiting.done.set_exception(outcome)
    else:
        waiting.done.set_result(outcome)


def _refuse_all(batch: Iterable[_Waiting], reason: StoreError | ValueError) -> None:
    """Refuse them for one reason, of which each gets a copy: a traceback belongs to one raise."""
    for waiting in batch:
        _answer(waiting, copy(reason))
