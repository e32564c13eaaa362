"""A command that comes again: what it was about, and what it led to, from the log alone.

What the log remembers of an accepted command belongs to one tenant, and so does everything that is read for it: the
command's own events, from `first_seq` to `last_seq` and no further, and the stream of the one object that it was about.
"""

from __future__ import annotations

import hashlib
from typing import Generic, TypeVar

from msgspec import Struct

from aetherscale.eventstore.reader import LogReader
from aetherscale.eventstore.store import Accepted
from aetherscale.kernel.calls import Call
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.messages import Recorded, split_stream, stream_name
from aetherscale.kernel.names import is_id
from aetherscale.kernel.registry import Aggregate, Kind, advance
from aetherscale.kernel.reservations import FREE, NAME_EVENTS, name_stream
from aetherscale.kernel.reservations import evolve as evolve_holder

S = TypeVar("S")


class Handled(Struct, Generic[S], frozen=True):
    """A message that has been decided on: what was recorded, each event with the aggregate after it.

    The last of `own` is the state that the message led to; what follows it in `after` is what has happened since.
    """

    own: tuple[tuple[Recorded | None, Aggregate[S]], ...]
    after: tuple[tuple[Recorded, Aggregate[S]], ...] = ()


def digest_of(call: Call) -> bytes:
    """The digest by which two calls with one key are the same request."""
    parts = (call.component, call.task, call.object_id)
    return hashlib.sha256("\0".join(parts).encode() + b"\0" + call.body).digest()


async def handled_before(
    kind: Kind[S], event_log: LogReader[Recorded], call: Call, accepted: Accepted, reference: str
) -> Handled[S]:
    """The outcome of a command that was accepted, and what has followed. `reference` is how it names its object.

    Raises `Refused` (conflict) where the key was another request's.
    """
    if accepted.digest != digest_of(call):
        raise Refused(
            Reason.CONFLICT,
            f"the key {call.command_id!r} was used for another request",
            field="Nats-Msg-Id",
            remedy="use a new key for a new request",
        )
    if accepted.first_seq <= accepted.last_seq:
        [first] = await event_log.read(accepted.first_seq - 1, 1)
        target = split_stream(first.stream)[1]
    else:
        target = await _meant(kind.name, event_log, call.tenant, reference, accepted.last_seq)
    aggregate: Aggregate[S] | None = None
    before: Aggregate[S] | None = None
    own: list[tuple[Recorded | None, Aggregate[S]]] = []
    after: list[tuple[Recorded, Aggregate[S]]] = []
    for each in await event_log.read_stream(stream_name(kind.name, target)):
        aggregate = advance(kind, aggregate, each, target)
        if each.seq > accepted.last_seq:
            after.append((each, aggregate))
        elif each.seq >= accepted.first_seq:
            own.append((each, aggregate))
        else:
            before = aggregate
    if not own:
        # It was accepted as being true already.
        assert before is not None
        own.append((None, before))
    return Handled(tuple(own), tuple(after))


async def _meant(kind: str, event_log: LogReader[Recorded], tenant: str, reference: str, seq: int) -> str:
    """The id of the aggregate that a name or an id named after event `seq`, when a command was accepted that changed
    nothing.
    """
    if is_id(reference):
        return reference
    holder = FREE
    for each in await event_log.read_stream(name_stream(kind, tenant, reference)):
        if each.seq <= seq and isinstance(each.event, NAME_EVENTS):
            holder = evolve_holder(holder, each.event)
    assert holder.owner is not None, f"{reference} named no aggregate after event {seq}"
    return holder.owner
