"""The event log of a node: events in, recorded events out."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any

from msgspec import Struct

from aetherscale.eventstore.codec import Codec
from aetherscale.eventstore.groupcommit import LogStore
from aetherscale.eventstore.reader import LogReader
from aetherscale.eventstore.store import Append, CommandKey, StoredEvent, StreamWrite
from aetherscale.kernel.messages import Envelope, Event, Recorded


class Write(Struct, frozen=True):
    """Events for one stream, which must still be at `expected_version` (0: nothing in it); none is a condition.

    Where it is None, they are written wherever the stream is: for what any number of writers may say at one time.
    """

    stream: str
    expected_version: int | None
    events: tuple[Event, ...]


class EventLog(LogReader[Recorded]):
    """The log of a node that runs: it is written to by this process alone."""

    def __init__(self, store: LogStore, codec: Codec) -> None:
        super().__init__(store.access, codec.decoding)
        self._store = store
        self._codec = codec
        self._listeners: list[Callable[[Sequence[Recorded]], None]] = []
        self._newest: dict[int, Recorded] = {}
        """Those of the last commit, by position: whoever wants one of them in time need not decode it again."""
        store.on_commit(self._committed)

    async def append(
        self, writes: Sequence[Write], envelope: Envelope[Any], *, digest: bytes | None = None, urgent: bool = False
    ) -> list[Recorded]:
        """Write what a message leads to, all of it or nothing, and return when it is durable.

        A `digest` makes the message recognisable as a command by its id. Raises what `LogStore.append` raises.
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
        return self._recorded(await self._store.append(append))

    def durable_head(self) -> tuple[int, str]:
        """The position of the last event that is durable, and the hash of the log up to there (64 hex digits).

        Costs nothing, so that it can go with every heartbeat. Kept elsewhere, it shows a log that was rolled back or
        rewritten together with its head: `aetherscale log verify --witness`.
        """
        head = self._store.durable_head()
        return head.seq, head.link.hex()

    @property
    def trouble(self) -> str:
        """Why nothing can be written to it now; "" for no reason that is known."""
        return self._store.trouble

    def on_commit(self, listener: Callable[[Sequence[Recorded]], None]) -> None:
        """Call `listener` with all that has become durable, in the order of the log, before `append` returns it."""
        self._listeners.append(listener)

    async def head(self) -> int:
        """The position of the last event that is durable; costs nothing."""
        return await self._store.head()

    async def subscribe(self, after: int) -> AsyncGenerator[Sequence[Recorded], None]:
        """As in `LogReader`; events arrive as soon as they are durable."""
        async with aclosing(self._store.subscribe(after)) as pages:
            async for stored in pages:
                yield self._recorded(stored)

    async def close(self) -> None:
        """Write what is waiting, then let go of everything."""
        await self._store.close()

    def _recorded(self, stored: Sequence[StoredEvent]) -> list[Recorded]:
        newest = self._newest
        return [newest.get(event.seq) or self._codec.decode(event) for event in stored]

    def _committed(self, stored: Sequence[StoredEvent]) -> None:
        """Decode once for all who listen, have appended, or follow."""
        recorded = [self._codec.decode(event) for event in stored]
        self._newest = {each.seq: each for each in recorded}
        for listener in self._listeners:
            listener(recorded)
