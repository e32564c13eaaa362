"""Events as callers see them: the JSON object of one (`event_json`), and what types there are."""

from __future__ import annotations

from msgspec import Struct

from aetherscale.debugger.fields import Field, fields_of
from aetherscale.debugger.past import Kinds
from aetherscale.eventstore.events_as_json import event_json
from aetherscale.kernel.errors import Reason, Refused, Task
from aetherscale.kernel.messages import Event
from aetherscale.kernel.reservations import RESERVATION_EVENTS, RESERVATION_KIND
from aetherscale.kernel.subjects import kebab

__all__ = ["EventType", "about", "catalogue", "event_json", "type_named", "types_of"]


class EventType(Struct, frozen=True, rename="kebab"):
    """A type of event that a log of this version can hold."""

    type: str
    kind: str
    schema: int
    token: str
    """The last token of the subject that it is published on."""
    about: str
    fields: list[Field]


def catalogue(kinds: Kinds) -> list[EventType]:
    """Every type of event, by kind, in the order in which they are declared."""
    return [
        EventType(event.__name__, kind, event.SCHEMA, kebab(event.__name__), about(event), fields_of(event))
        for kind, event in types_of(kinds)
    ]


def types_of(kinds: Kinds) -> list[tuple[str, type[Event]]]:
    """Every type of event with its kind, in the order in which they are declared."""
    by_kind = [(kind.name, kind.event_types) for kind in kinds]
    return [(name, event) for name, events in (*by_kind, (RESERVATION_KIND, RESERVATION_EVENTS)) for event in events]


def type_named(kinds: Kinds, text: str) -> str:
    """The type that is meant by `VmBooted` or `vm-booted`. Raises `Refused` (bad request)."""
    known = [event.__name__ for _, event in types_of(kinds)]
    for name in known:
        if text in (name, kebab(name)):
            return name
    raise Refused(
        Reason.BAD_REQUEST,
        f"there is no event type {text!r}",
        field="type",
        details={"known": known},
        remedy=Task("events", "catalogue"),
    )


def about(event: type[Event]) -> str:
    """The documentation of an event, as one paragraph."""
    return " ".join((event.__doc__ or "").split())
