"""What is written to the logs that lose power: payments, and the projection of them that is kept as snapshots."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from msgspec import Struct

from aetherscale.eventstore.codec import Codec
from aetherscale.eventstore.projections import Projection
from aetherscale.kernel.messages import Event, Recorded

EVENTS_PER_APPEND = 3


class Paid(Event, frozen=True):
    note: bytes


class Ledger(Struct):
    """A state that tells every history from every other."""

    count: int = 0
    digest: bytes = b""


def apply(state: Ledger, events: Sequence[Recorded]) -> Ledger:
    for recorded in events:
        match recorded.event:
            case Paid(note):
                state.count += 1
                state.digest = hashlib.sha256(b"%b%d%b" % (state.digest, recorded.seq, note)).digest()
            case _:
                raise AssertionError("nothing else is written")
    return state


LEDGER = Projection("ledger", Ledger, Ledger, apply)
CODEC = Codec([Paid])


def digest_of(command_id: str) -> bytes:
    """What a command asks for."""
    return hashlib.sha256(command_id.encode()).digest()
