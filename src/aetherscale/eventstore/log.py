"""The typed face of the event log: events in, recorded events out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any

from msgspec import Struct

from aetherscale.eventstore.codec import Codec
from aetherscale.eventstore.store import PAGE, Accepted, Append, CommandKey, Reader, Store, StoredEvent, StreamWrite
from aetherscale.kernel.messages import Envelope, Event, Recorded


class Write(Struct, frozen=True):
    """Events for one stream, which must still be at `expected_version` (0: nothing in it); none is a condition.

    Where it is None, they are written wherever the stream is: for what any number of writers may say at one time.
    """

    stream: str
    expected_version: int | None
    events: tuple[Event, ...]


class LogReader:
    """A log that can be read."""

    def __init__(self, reader: Reader, codec: Codec) -> None:
        self._reader = reader
        self._codec = codec

    @property
    def node(self) -> str:
        """The name of the node whose log it is."""
        return self._reader.node

    @property
    def epoch(self) -> str:
        """Generated when the log was made."""
        return self._reader.epoch

    async def head(self) -> int:
        """The position of the last event; 0 in an empty log."""
        return await self._reader.head()

    async def read(self, after: int, limit: int = PAGE, types: Sequence[str] | None = None) -> list[Recorded]:
        """The next events after a position, in order."""
        return list(await self._reader.read_as(self._codec.recorded, after, limit, types))

    async def read_stream(self, stream: str, after_version: int = 0) -> list[Recorded]:
        """All events of a stream after a version, in order."""
        return self._decode(await self._reader.read_stream(stream, after_version))

    async def accepted(self, tenant: str, command_id: str) -> Accepted | None:
        """What a command led to, if it was accepted."""
        return await self._reader.accepted(tenant, command_id)

    async def position_at(self, time_us: int) -> int:
        """The position of the last event that was recorded at or before a moment."""
        return await self._reader.position_at(time_us)

    async def check_types(self) -> None:
        """Make sure that this program knows every type of event in the log, before it acts on any.

        Raises `TooNew`, which names the version of the program that is needed.
        """
        self._codec.check(await self._reader.types())

    async def subscribe(self, after: int) -> AsyncGenerator[list[Recorded], None]:
        """All events after a position, in order, first the past in pages, then as they come."""
        async with aclosing(self._reader.subscribe(after)) as pages:
            async for stored in pages:
                yield self._decode(stored)

    async def close(self) -> None:
        """Close what is read from."""
        await self._reader.close()

    def _decode(self, stored: Sequence[StoredEvent]) -> list[Recorded]:
        return [self._codec.decode(event) for event in stored]


class EventLog(LogReader):
    """The log of a node that runs: it is written to by this process alone."""

    def __init__(self, store: Store, codec: Codec) -> None:
        super().__init__(store, codec)
        self._store = store
        self._listeners: list[Callable[[Sequence[Recorded]], None]] = []
        store.on_commit(self._committed)

    async def append(
        self, writes: Sequence[Write], envelope: Envelope[Any], *, digest: bytes | None = None, urgent: bool = False
    ) -> list[Recorded]:
        """Write what a message leads to, all of it or nothing, and return when it is durable.

        A `digest` makes the message recognisable as a command by its id. Raises what `Store.append` raises.
        """
        key = CommandKey(envelope.tenant, envelope.command_id, digest) if digest is not None else None
        append = Append(
            writes=tuple(
                StreamWrite(write.stream, write.expected_version, tuple(map(self._codec.encode, write.events)))
                for write in writes
            ),
            time_us=envelope.at_us,
            tenant=envelope.tenant,
            actor=envelope.actor,
            command_id=envelope.command_id,
            correlation_id=envelope.correlation_id,
            causation_id=envelope.causation_id,
            key=key,
            urgent=urgent,
        )
        return self._decode(await self._store.append(append))

    def durable_head(self) -> tuple[int, str]:
        """The position of the last event that is durable, and the hash of the log up to there (64 hex digits).

        Costs nothing, so that it can go with every heartbeat. Kept elsewhere, it shows a log that was rolled back or
        rewritten together with its head: `aetherscale log verify --witness`.
        """
        head = self._store.durable_head()
        return head.seq, head.link.hex()

    def on_commit(self, listener: Callable[[Sequence[Recorded]], None]) -> None:
        """Call `listener` with all that has become durable, in the order of the log, before `append` returns it."""
        self._listeners.append(listener)

    def _committed(self, stored: Sequence[StoredEvent]) -> None:
        """Decode once for all who listen."""
        if self._listeners:
            recorded = self._decode(stored)
            for listener in self._listeners:
                listener(recorded)
