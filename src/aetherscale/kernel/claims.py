"""Unique names: each is claimed in a stream of its own, in the same append as the request of the object that bears it.

Two requests for one name meet at the expected version of that stream, so that one of them is refused.
"""

from __future__ import annotations

from msgspec import Struct

from aetherscale.kernel.messages import Event, stream_name
from aetherscale.kernel.names import derive_id

CLAIM_KIND = "claim"


class NameClaimed(Event, frozen=True):
    """The name belongs to `owner` until it is released."""

    kind: str
    name: str
    owner: str


class NameReleased(Event, frozen=True):
    """The name is free again."""

    kind: str
    name: str
    owner: str


ClaimEvent = NameClaimed | NameReleased
NAME_EVENTS = (NameClaimed, NameReleased)
CLAIM_EVENTS: tuple[type[Event], ...] = NAME_EVENTS


class Claim(Struct, frozen=True):
    """What is known of a name: how often it changed hands (the version of its stream), and whose it is now."""

    version: int
    owner: str | None


FREE = Claim(version=0, owner=None)


def claim_stream(kind: str, tenant: str, name: str) -> str:
    """The stream in which one name of one kind of object is claimed and released."""
    return stream_name(CLAIM_KIND, derive_id(kind, tenant, name))


def evolve(claim: Claim, event: ClaimEvent) -> Claim:
    """The claim after an event."""
    match event:
        case NameClaimed():
            return Claim(claim.version + 1, event.owner)
        case NameReleased():
            return Claim(claim.version + 1, None)
