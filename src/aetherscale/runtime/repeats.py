"""A command that comes again: what it was about, and what it led to, from the log alone.

What the log remembers of an accepted command belongs to one tenant, and so does everything that is read for it: the
command's own events, from `first_seq` to `last_seq` and no further, and the stream of the one object that it was about.
"""

from __future__ import annotations

import hashlib
from typing import Generic, TypeVar

from msgspec import Struct

from aetherscale.eventstore.log import LogReader
from aetherscale.eventstore.store import Accepted
from aetherscale.kernel.calls import Call
from aetherscale.kernel.claims import FREE, NAME_EVENTS, claim_stream
from aetherscale.kernel.claims import evolve as evolve_claim
from aetherscale.kernel.errors import Refused
from aetherscale.kernel.messages import Recorded, split_stream, stream_name
from aetherscale.kernel.names import is_id
from aetherscale.kernel.registry import Entity, Kind, advance

S = TypeVar("S")


class Handled(Struct, Generic[S], frozen=True):
    """A message that has been decided on: what was recorded, each event with the entity after it.

    The last of `own` is the state that the message led to; what follows it in `after` is what has happened since.
    """

    own: tuple[tuple[Recorded | None, Entity[S]], ...]
    after: tuple[tuple[Recorded, Entity[S]], ...] = ()


def digest_of(call: Call) -> bytes:
    """What makes two calls with one key the same request."""
    parts = (call.component, call.task, call.object_id)
    return hashlib.sha256("\0".join(parts).encode() + b"\0" + call.body).digest()


async def handled_before(
    kind: Kind[S], event_log: LogReader, call: Call, accepted: Accepted, reference: str
) -> Handled[S]:
    """What came of a command when it was accepted, and what has followed. `reference` is how it names its object.

    Raises `Refused` (409) where the key was another request's.
    """
    if accepted.digest != digest_of(call):
        raise Refused(
            409,
            f"the key {call.command_id!r} was used for another request",
            field="Nats-Msg-Id",
            hint="use a new key for a new request",
        )
    if accepted.first_seq <= accepted.last_seq:
        [first] = await event_log.read(accepted.first_seq - 1, 1)
        target = split_stream(first.stream)[1]
    else:
        target = await _meant(kind.name, event_log, call.tenant, reference, accepted.last_seq)
    entity: Entity[S] | None = None
    before: Entity[S] | None = None
    own: list[tuple[Recorded | None, Entity[S]]] = []
    after: list[tuple[Recorded, Entity[S]]] = []
    for each in await event_log.read_stream(stream_name(kind.name, target)):
        entity = advance(kind, entity, each, target)
        if each.seq > accepted.last_seq:
            after.append((each, entity))
        elif each.seq >= accepted.first_seq:
            own.append((each, entity))
        else:
            before = entity
    if not own:
        # It was accepted as being true already.
        assert before is not None
        own.append((None, before))
    return Handled(tuple(own), tuple(after))


async def _meant(kind: str, event_log: LogReader, tenant: str, reference: str, seq: int) -> str:
    """What a name or an id meant after event `seq`, when a command was accepted that changed nothing."""
    if is_id(reference):
        return reference
    claim = FREE
    for each in await event_log.read_stream(claim_stream(kind, tenant, reference)):
        if each.seq <= seq and isinstance(each.event, NAME_EVENTS):
            claim = evolve_claim(claim, each.event)
    assert claim.owner is not None, f"{reference} meant nobody after event {seq}"
    return claim.owner
