"""What is kept of the past, so that no moment of it needs a fold from the first event. Pure.

    events     ├──────── 2,048 ────────┼──────── 2,048 ────────┼──── …
    keyframe                       living ┐                living ┐
    milestones   64 │ 64 │ 64 │ …  ┊ departed  64 │ 64 │ …  ┊ departed

A *keyframe* is all that is not deleted, with the names that are taken and the uses that are on. Beside it stands what
*departed*: each object that the events of its segment left deleted. All that ever departed and what lives are all.

A *milestone* says of all events up to it what the greatest time was, and how many asked for something, happened, and
failed. Times may step back in a log, the greatest time so far never does: so a moment is found by bisecting.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct

from aetherscale.kernel.registry import Aggregate, Kind, Registry, event_types

KEYFRAME_EVENTS: Final = 2048
"""How many events come between two keyframes: folding them takes some 10 ms at most."""

MILESTONE_EVENTS: Final = 64
"""How many come between two milestones: times of so many are looked through for a moment."""

VERSION: Final = 1
"""Of what is kept; grows with each change of it."""

LIVING: Final = "living"
DEPARTED: Final = "departed"
MILESTONES: Final = "milestones"

Registries = dict[str, Registry[Any]]


class Spacing(Struct, frozen=True):
    """How many events come between two keyframes, and between two milestones, which have to fit into that."""

    keyframe: int = KEYFRAME_EVENTS
    milestone: int = MILESTONE_EVENTS


class Counts(Struct, frozen=True, array_like=True):
    """How many events up to a position were requested, happened without a request, and failed.

    An event that left its object with a failure that it had not before is a failure, and one whose actor is no
    component of a node was asked for. Names and uses are not counted.
    """

    asked: int = 0
    happened: int = 0
    failed: int = 0


class Milestone(Struct, frozen=True, array_like=True):
    """What is known of all events up to a position: the greatest time, the last event that has it, the counts."""

    greatest_us: int = -1
    latest: int = 0
    counts: Counts = Counts()


def fingerprint(kinds: Sequence[Kind[Any]], spacing: Spacing) -> str:
    """Names the shape of the states of all kinds, what they are folded from, and the form of keyframes."""
    shapes = [(kind.name, kind.version, msgspec.json.schema(_registry_of(kind))) for kind in kinds]
    events = sorted((event.__name__, event.SCHEMA) for event in event_types(tuple(kinds)))
    return hashlib.sha256(msgspec.json.encode((VERSION, spacing, shapes, events), order="sorted")).hexdigest()[:32]


class Packing:
    """What is kept, as bytes and back."""

    def __init__(self, kinds: Sequence[Kind[Any]]) -> None:
        self._encoder = msgspec.msgpack.Encoder()
        self._parts = msgspec.msgpack.Decoder(dict[str, msgspec.Raw])
        self._living = {kind.name: msgspec.msgpack.Decoder(_registry_of(kind)) for kind in kinds}
        self._departed = {kind.name: msgspec.msgpack.Decoder(list[_aggregate_of(kind)]) for kind in kinds}  # type: ignore[misc]
        self._milestones = msgspec.msgpack.Decoder(list[Milestone])

    def pack(self, value: Any) -> bytes:
        """A part of a keyframe as it is kept."""
        return zlib.compress(self._encoder.encode(value), 1)

    def living(self, data: bytes) -> Registries:
        """Raises zlib.error, msgspec.MsgspecError."""
        parts = self._parts.decode(zlib.decompress(data))
        return {name: decoder.decode(parts[name]) for name, decoder in self._living.items()}

    def departed(self, data: bytes) -> dict[str, list[Aggregate[Any]]]:
        """Raises zlib.error, msgspec.MsgspecError."""
        parts = self._parts.decode(zlib.decompress(data))
        return {name: decoder.decode(parts[name]) for name, decoder in self._departed.items()}

    def milestones(self, data: bytes) -> list[Milestone]:
        """Raises zlib.error, msgspec.MsgspecError."""
        return self._milestones.decode(zlib.decompress(data))


def _registry_of(kind: Kind[Any]) -> Any:
    # The type of the state is a value here, which is more than an annotation may be.
    return Registry.__class_getitem__(kind.state_type)  # type: ignore[attr-defined]


def _aggregate_of(kind: Kind[Any]) -> Any:
    return Aggregate.__class_getitem__(kind.state_type)  # type: ignore[attr-defined]
