"""Each event as what it changed: the fields of the view before and after it, and its sentence. Pure.

Who has the view before an event and applies `set` to it has the view after it, and the other way round: so a page stays
true, forwards and back, without asking again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec import Struct

from aetherscale.kernel.descriptions import Role
from aetherscale.kernel.messages import Recorded, split_stream
from aetherscale.kernel.registry import Aggregate, Kind
from aetherscale.kernel.times import to_rfc3339

MAX_CHANGES: Final = 2000
"""The events that are told at one time."""
FILTERS: Final = ("kind", "id", "type", "role", "actor")
REVISION: Final = "revision"
"""The field of each view that grows by one with each event; a change has it beside `set`."""
_ABSENT: Final = object()


class EventChange(Struct, frozen=True, rename="kebab"):
    """What one event changed of the object that it is about. Names and uses have no object, and no change."""

    cursor: str
    """Where a reader goes on after it. Opaque."""
    seq: int
    time: str
    node: str
    kind: str
    id: str
    type: str
    revision: int
    """Of the object, after it."""
    set: dict[str, tuple[Any, Any]]
    """The fields of the view that differ, each before and after; before the first event of an object all are null."""
    role: Role
    text: str
    """Its sentence. That of a request goes on after the actor."""
    actor: str
    command_id: str
    correlation_id: str


class Wanted(Struct, frozen=True):
    """The changes that are asked for. Each is a set of words of which one has to fit; an empty one fits all."""

    kind: frozenset[str] = frozenset()
    id: frozenset[str] = frozenset()
    type: frozenset[str] = frozenset()
    role: frozenset[str] = frozenset()
    actor: frozenset[str] = frozenset()

    def has(self, change: EventChange) -> bool:
        """Whether a change is among them."""
        return all(not (words := getattr(self, name)) or getattr(change, name) in words for name in FILTERS)


def change_of(
    kind: Kind[Any], node: str, before: Aggregate[Any] | None, after: Aggregate[Any], recorded: Recorded
) -> EventChange:
    """What an event changed, of the object before and after it."""
    words = kind.descriptions.describe(None if before is None else before.state, recorded.event)
    old = {} if before is None else _view(kind, node, before)
    return EventChange(
        cursor=str(recorded.seq),
        seq=recorded.seq,
        time=to_rfc3339(recorded.time_us),
        node=node,
        kind=kind.name,
        id=split_stream(recorded.stream)[1],
        type=type(recorded.event).__name__,
        revision=after.version,
        set=_differing(old, _view(kind, node, after)),
        role=words.role,
        text=words.text,
        actor=recorded.actor,
        command_id=recorded.command_id,
        correlation_id=recorded.correlation_id,
    )


def _view(kind: Kind[Any], node: str, aggregate: Aggregate[Any]) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(
        kind.view(aggregate.state, node, aggregate.version, aggregate.requested_by)
    )
    return found


def _differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {
        name: (old.get(name), new.get(name))
        for name in dict.fromkeys((*old, *new))
        if name != REVISION and old.get(name, _ABSENT) != new.get(name, _ABSENT)
    }
