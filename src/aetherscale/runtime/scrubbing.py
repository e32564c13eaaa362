"""The comparison of a JetStream stream with the log that it is a copy of, message for message."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Final, Protocol

from aetherscale.bus import cloudevents
from aetherscale.bus.jetstream import StoredMessage, Stream
from aetherscale.kernel.messages import Recorded, event_id

SCRUB_PAGE: Final = 500


class Source(Protocol):
    """The part of an event log that the publisher needs."""

    @property
    def node(self) -> str:
        """The node and epoch of the log."""
        ...

    @property
    def epoch(self) -> str:
        """Which of the node's logs it is."""
        ...

    async def head(self) -> int:
        """The position of the last event; 0 in an empty log."""
        ...

    async def read(self, after: int, limit: int = 1000) -> Sequence[Recorded]:
        """The next events after a position."""
        ...

    def subscribe(self, after: int) -> AsyncIterator[Sequence[Recorded]]:
        """All events after a position, the past and then what comes."""
        ...


async def first_difference(source: Source, stream: Stream, max_body_bytes: int, first_seq: int, last_seq: int) -> str:
    """The first difference between stream and log, between two positions; "" for none.

    Raises `StreamError`, `BusUnavailable`.
    """
    after = first_seq - 1
    while after < last_seq:
        logged = await source.read(after, min(SCRUB_PAGE, last_seq - after))
        if not logged:
            break
        stored = {message.seq: message for message in await stream.read(after + 1, len(logged))}
        for recorded in logged:
            finding = _difference(recorded, stored.get(recorded.seq), max_body_bytes)
            if finding and await _should_have(stream, recorded.seq):
                return finding
        after = logged[-1].seq
    return ""


def _difference(recorded: Recorded, stored: StoredMessage | None, max_body_bytes: int) -> str:
    if stored is None:
        return f"event {recorded.seq} is missing from it"
    if stored.message_id != id_of(recorded) or stored.subject != cloudevents.subject(recorded):
        return f"event {recorded.seq} is {stored.message_id!r} on {stored.subject!r} in it"
    if not cloudevents.agrees(stored.body, cloudevents.encode(recorded, max_body_bytes)):
        return f"event {recorded.seq} says something else in it"
    return ""


async def _should_have(stream: Stream, seq: int) -> bool:
    """Whether the stream says that it still has a message: it may have dropped it for its age, or be a new one."""
    state = await stream.state()
    return state is not None and state.first_seq <= seq <= state.last_seq


def id_of(recorded: Recorded) -> str:
    """The id of an event's message."""
    return event_id(recorded.node, recorded.epoch, recorded.seq)
