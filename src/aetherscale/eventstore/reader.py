"""A log that can be read: one class for every log, and for whatever its events are read as."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from functools import partial
from typing import Final, Generic, Protocol, TypeVar

from aetherscale.eventstore.store import PAGE, Accepted, Access, Closed, Decoding, StoredType
from aetherscale.kernel.messages import Metadata

T = TypeVar("T", bound=Metadata)
R = TypeVar("R")
T_co = TypeVar("T_co", covariant=True)

POLL_S: Final = 0.1
"""How often one who follows a log that another process writes looks whether it has grown."""


class Events(Protocol[T_co]):
    """Reads events where the caller is in the thread of the log."""

    def __call__(self, after: int, limit: int, types: Sequence[str] | None, /) -> Sequence[T_co]:
        """The next events after a position, in order; fewer than `limit` where there are no more."""
        ...


class LogReader(Generic[T]):
    """A log, through any way to it, each of its events as a `T`. What can go wrong is said in `Reading`."""

    def __init__(self, access: Access, decoding: Decoding[T]) -> None:
        self.access = access
        self._decoding = decoding

    @property
    def node(self) -> str:
        """The name of the node whose log it is."""
        return self.access.node

    @property
    def epoch(self) -> str:
        """Generated when the log was made: the same node with a new log is a new epoch."""
        return self.access.epoch

    async def head(self) -> int:
        """The position of the last event; 0 in an empty log."""
        return await self.access.ask(lambda log: log.head())

    async def read(self, after: int, limit: int = PAGE, types: Sequence[str] | None = None) -> Sequence[T]:
        """The next events after a position, in order; fewer than `limit` where there are no more."""
        return await self.access.ask(lambda log: log.read(self._decoding, after, limit, types))

    async def run(self, work: Callable[[Events[T]], R]) -> R:
        """Run a function in the thread of the log, which may read events there, as `read` does."""
        return await self.access.ask(lambda log: work(partial(log.read, self._decoding)))

    async def read_stream(self, stream: str, after_version: int = 0) -> Sequence[T]:
        """All events of a stream after a version, in order."""
        return await self.access.ask(lambda log: log.read_stream(self._decoding, stream, after_version))

    async def accepted(self, tenant: str, command_id: str) -> Accepted | None:
        """The events of a command, if it was accepted."""
        return await self.access.ask(lambda log: log.accepted(tenant, command_id))

    async def position_at(self, time_us: int) -> int:
        """The position that a moment means: the last event before the first one that was recorded later."""
        return await self.access.ask(lambda log: log.position_at(time_us))

    async def types(self) -> Sequence[StoredType]:
        """Every type of event that occurs in the log."""
        return await self.access.ask(lambda log: log.types())

    async def check_types(self) -> None:
        """Make sure that every type of event in the log can be read, before anything acts on one.

        Raises `TooNew`, which names the version of the program that is needed.
        """
        self._decoding.check(await self.types())

    async def subscribe(self, after: int) -> AsyncGenerator[Sequence[T], None]:
        """All events after a position, in order, without gap or double: the past in pages, then what comes.

        Another process writes, if any does: the file is looked at ten times a second. Ends when the log is closed.
        """
        position = after
        while True:
            try:
                page = await self.read(position)
            except Closed:
                return
            if page:
                position = page[-1].seq
                yield page
            else:
                await asyncio.sleep(POLL_S)

    async def close(self) -> None:
        """Let go of everything; idempotent."""
        await self.access.close()
