"""The fake of the SQLite log: same semantics, no file and no thread. Simulations run on it.

`MemoryLog` is what a disk would hold and outlives the store that writes to it, as a file outlives a process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from msgspec.structs import astuple

from aetherscale.eventstore.backend import Outcome
from aetherscale.eventstore.chain import EMPTY, Head, StoredCommand, next_head
from aetherscale.eventstore.clock import around
from aetherscale.eventstore.groupcommit import LogStore
from aetherscale.eventstore.plan import plan
from aetherscale.eventstore.store import (
    PAGE,
    Accepted,
    Append,
    Closed,
    Locked,
    Make,
    StorageFull,
    StoredEvent,
    StoredType,
)

T = TypeVar("T")


class MemoryLog:
    """The content of a log. Set `full` to have every append refused that is not urgent, as on a full disk."""

    def __init__(self, node: str, epoch: str, program: str = "") -> None:
        self.node = node
        self.epoch = epoch
        self.program = program
        self.full = False
        self.writer: MemoryBackend | None = None
        self.events: list[StoredEvent] = []
        self.streams: dict[str, list[StoredEvent]] = {}
        self.commands: dict[tuple[str, str], Accepted] = {}
        self.types: dict[tuple[str, int], StoredType] = {}
        self.head = EMPTY

    def crash(self) -> None:
        """The state after the death of the writing process: all that was committed, and no writer."""
        self.writer = None

    def version(self, stream: str) -> int:
        """The version that a stream is at; 0 where it has no events."""
        return len(self.streams.get(stream, ()))

    def accepted(self, tenant: str, command_id: str) -> Accepted | None:
        """What a command led to, if it was accepted."""
        return self.commands.get((tenant, command_id))


class MemoryBackend:
    """A `Backend` over a `MemoryLog`. Raises `Locked` where another one writes to it."""

    def __init__(self, log: MemoryLog) -> None:
        if log.writer is not None:
            raise Locked("the log in memory is open for writing already; close that store first")
        log.writer = self
        self.node = log.node
        self.epoch = log.epoch
        self._log = log

    async def commit(self, appends: Sequence[Append]) -> Sequence[Outcome]:
        """As in `Backend`; all of it happens before anything else runs."""
        log = self._open()
        if log.full and not all(append.urgent for append in appends):
            raise StorageFull("append: no room for a log that was set to be full")
        planned = plan(appends, log, len(log.events), self.node, self.epoch)
        commands = [StoredCommand(*key, accepted) for key, accepted in planned.commands.items()]
        if planned.events or commands:
            log.head = next_head(log.head, planned.events, commands)
        for event in planned.events:
            log.streams.setdefault(event.stream, []).append(event)
            log.types.setdefault((event.type, event.schema), StoredType(event.type, event.schema, log.program))
        log.events.extend(planned.events)
        log.commands.update(planned.commands)
        return planned.outcomes

    async def settle(self) -> None:
        """Nothing is left to do."""

    def durable_head(self) -> Head:
        """As in `Backend`."""
        return self._open().head

    async def head(self) -> int:
        """As in `Reader`."""
        return len(self._open().events)

    async def read(self, after: int, limit: int = PAGE, types: Sequence[str] | None = None) -> Sequence[StoredEvent]:
        """As in `Reader`."""
        events = self._open().events
        if types is None:
            return events[after : after + limit]
        wanted = set(types)
        found: list[StoredEvent] = []
        for position in range(after, len(events)):
            if len(found) == limit:
                break
            if events[position].type in wanted:
                found.append(events[position])
        return found

    async def read_as(
        self, make: Make[T], after: int, limit: int = PAGE, types: Sequence[str] | None = None
    ) -> Sequence[T]:
        """As in `Reader`."""
        return [make(*astuple(event)) for event in await self.read(after, limit, types)]

    async def read_stream(self, stream: str, after_version: int = 0) -> Sequence[StoredEvent]:
        """As in `Reader`."""
        return self._open().streams.get(stream, [])[after_version:]

    async def accepted(self, tenant: str, command_id: str) -> Accepted | None:
        """As in `Reader`."""
        return self._open().accepted(tenant, command_id)

    async def types(self) -> Sequence[StoredType]:
        """As in `Reader`."""
        return list(self._open().types.values())

    async def position_at(self, time_us: int) -> int:
        """As in `Reader`."""
        return around(((event.seq, event.time_us) for event in self._open().events), time_us).position

    async def close(self) -> None:
        """Another store may then write to the log."""
        if self._log.writer is self:
            self._log.writer = None

    def _open(self) -> MemoryLog:
        if self._log.writer is not self:
            raise Closed("the event log has been closed")
        return self._log


async def open_memory(log: MemoryLog) -> LogStore:
    """A store that writes to a log in memory. Raises `Locked`."""
    return await LogStore.start(MemoryBackend(log))
