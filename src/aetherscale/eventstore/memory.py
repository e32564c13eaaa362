"""The fake of the SQLite log: same semantics, no file and no thread. Simulations run on it.

`MemoryLog` is what a disk would hold and outlives the store that writes to it, as a file outlives a process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import TypeVar

from aetherscale.eventstore.backend import Outcome
from aetherscale.eventstore.chain import EMPTY, Head, StoredCommand, next_head
from aetherscale.eventstore.clock import around
from aetherscale.eventstore.groupcommit import LogStore
from aetherscale.eventstore.plan import plan
from aetherscale.eventstore.store import (
    Accepted,
    Append,
    Closed,
    Decoding,
    Locked,
    Reading,
    StorageFull,
    StoredEvent,
    StoredType,
    decode,
)

T = TypeVar("T")


class MemoryLog:
    """The content of a log, and the `Reading` of it.

    Set `full` to have every append refused that is not urgent, as on a full disk.
    """

    def __init__(self, node: str, epoch: str, program: str = "") -> None:
        self.node = node
        self.epoch = epoch
        self.program = program
        self.full = False
        self.writer: MemoryBackend | None = None
        self.events: list[StoredEvent] = []
        self.streams: dict[str, list[StoredEvent]] = {}
        self.commands: dict[tuple[str, str], Accepted] = {}
        self.known_types: dict[tuple[str, int], StoredType] = {}
        self.chain_head = EMPTY

    def crash(self) -> None:
        """The state after the death of the writing process: all that was committed, and no writer."""
        self.writer = None

    def version(self, stream: str) -> int:
        """The version that a stream is at; 0 where it has no events."""
        return len(self.streams.get(stream, ()))

    def accepted(self, tenant: str, command_id: str) -> Accepted | None:
        """The events of a command, if it was accepted."""
        return self.commands.get((tenant, command_id))

    def head(self) -> int:
        """As in `Reading`."""
        return len(self.events)

    def read(self, decoding: Decoding[T], after: int, limit: int, types: Sequence[str] | None = None) -> list[T]:
        """As in `Reading`."""
        following = islice(self.events, after, None)
        wanted = following if types is None else (event for event in following if event.type in types)
        return [decode(decoding, event) for event in islice(wanted, limit)]

    def read_stream(self, decoding: Decoding[T], stream: str, after_version: int = 0) -> list[T]:
        """As in `Reading`."""
        return [decode(decoding, event) for event in self.streams.get(stream, [])[after_version:]]

    def types(self) -> list[StoredType]:
        """As in `Reading`."""
        return list(self.known_types.values())

    def position_at(self, time_us: int) -> int:
        """As in `Reading`."""
        return around(((event.seq, event.time_us) for event in self.events), time_us).position


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
            log.chain_head = next_head(log.chain_head, planned.events, commands)
        for event in planned.events:
            log.streams.setdefault(event.stream, []).append(event)
            log.known_types.setdefault((event.type, event.schema), StoredType(event.type, event.schema, log.program))
        log.events.extend(planned.events)
        log.commands.update(planned.commands)
        return planned.outcomes

    async def sync_head(self) -> None:
        """Nothing is left to do."""

    def durable_head(self) -> Head:
        """As in `Backend`."""
        return self._open().chain_head

    async def ask(self, question: Callable[[Reading], T]) -> T:
        """As in `Access`; the answer is there before anything else runs."""
        return question(self._open())

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
