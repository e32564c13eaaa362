"""All aggregates of one kind, as the events of a log add up to them: the projection that commands are decided on.

The node folds it event by event as they are committed, a replay folds it up to any moment of the past, and both get the
same. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from msgspec import Struct, field

from aetherscale.kernel.descriptions import PLAIN, Descriptions
from aetherscale.kernel.messages import Event, Recorded, split_stream
from aetherscale.kernel.names import is_id
from aetherscale.kernel.reservations import (
    FREE,
    NAME_EVENTS,
    RESERVATION_EVENTS,
    RESERVATION_KIND,
    USE_EVENTS,
    Holder,
    Uses,
    evolve_uses,
    name_stream,
    use_stream,
)
from aetherscale.kernel.reservations import evolve as evolve_holder

S = TypeVar("S")

OURSELVES: Final = "aether:"
"""How the names of actors begin that are components of a node."""


@dataclass(frozen=True, slots=True)
class Kind(Generic[S]):
    """A kind of aggregate: how its events are folded, how it looks from outside, and how its events are described.

    `view(state, node, revision, requested_by)` is a Struct with at least `id`, `name` and `phase`.
    """

    name: str
    state_type: type[S]
    event_types: tuple[type[Event], ...]
    evolve: Callable[[S | None, Any, int], S]
    view: Callable[[S, str, int, str | None], Struct]
    descriptions: Descriptions[S] = PLAIN
    version: int = 1
    """Grows with each change of what `evolve` does that does not show in the type of the state, so that snapshots of
    before are not taken for what it would have made."""
    keys: tuple[str, ...] = ()
    """What its aggregates reserve beside their names: kinds of exclusive keys, like addresses."""

    @property
    def names(self) -> tuple[str, ...]:
        """The kinds of keys whose reservations its registry keeps."""
        return (self.name, *self.keys)


class Aggregate(Struct, Generic[S], frozen=True, gc=False):
    """One aggregate: its state, and where in the log it stands."""

    id: str
    tenant: str
    version: int
    """The version of its stream, which is the revision in its view."""
    seq: int
    """The position of its last event."""
    correlation_id: str
    """The correlation id of its last event, which pending work goes on with."""
    state: S
    requested_by: str | None = None
    """The actor whose command was carried out last; None where there was no command."""

    @property
    def tag(self) -> str:
        """Names this revision of this aggregate and of no other: `<id>-<number>`."""
        return f"{self.id}-{self.version}"


class Registry(Struct, Generic[S]):
    """All aggregates of one kind by id, and by stream the reservations of their names and their uses.

    All as of `position`.
    """

    position: int = 0
    aggregates: dict[str, Aggregate[S]] = field(default_factory=dict)
    holders: dict[str, Holder] = field(default_factory=dict)
    uses: dict[str, Uses] = field(default_factory=dict)

    def named(self, kind: str, tenant: str, name: str) -> Aggregate[S] | None:
        """The aggregate that bears the name now."""
        owner = self.holders.get(name_stream(kind, tenant, name), FREE).owner
        return self.aggregates.get(owner) if owner is not None else None

    def find(self, kind: str, tenant: str, reference: str) -> Aggregate[S] | None:
        """The tenant's aggregate that a name or an id means; a deleted one is found by its id alone."""
        if not is_id(reference):
            return self.named(kind, tenant, reference)
        found = self.aggregates.get(reference)
        return found if found is not None and found.tenant == tenant else None

    def uses_of(self, kind: str, aggregate_id: str) -> Uses:
        """The users of an aggregate, to be read and never changed."""
        return self.uses.get(use_stream(kind, aggregate_id)) or Uses()

    def of_tenant(self, tenant: str) -> Iterator[Aggregate[S]]:
        """All aggregates of a tenant, deleted ones among them, in no order."""
        return (aggregate for aggregate in self.aggregates.values() if aggregate.tenant == tenant)


def apply(kind: Kind[S], registry: Registry[S], recorded: Recorded) -> Aggregate[S] | None:
    """Fold one event into the registry, in place; returns the aggregate that it concerns, if it is of this kind."""
    registry.position = recorded.seq
    stream_kind, aggregate_id = split_stream(recorded.stream)
    if stream_kind == kind.name:
        aggregate = registry.aggregates[aggregate_id] = advance(
            kind, registry.aggregates.get(aggregate_id), recorded, aggregate_id
        )
        return aggregate
    event = recorded.event
    if stream_kind == RESERVATION_KIND and isinstance(event, NAME_EVENTS) and event.kind in kind.names:
        registry.holders[recorded.stream] = evolve_holder(registry.holders.get(recorded.stream, FREE), event)
    elif stream_kind == RESERVATION_KIND and isinstance(event, USE_EVENTS) and event.kind in kind.names:
        evolve_uses(registry.uses.setdefault(recorded.stream, Uses()), event)
    return None


def fold(kind: Kind[S], registry: Registry[S], events: Sequence[Recorded]) -> None:
    """Fold many events, in the order of the log: to what `apply` comes to with each of them, and quicker.

    Streams do not depend on one another, so each is folded by itself, and its aggregate is made once.
    """
    for name, stream in by_stream(events).items():
        stream_kind, aggregate_id = split_stream(name)
        if stream_kind == kind.name:
            known = registry.aggregates.get(aggregate_id)
            registry.aggregates[aggregate_id] = advance_by(kind, known, stream, aggregate_id)
        else:
            for recorded in stream:
                apply(kind, registry, recorded)
    if events:
        registry.position = events[-1].seq


def by_stream(events: Sequence[Recorded]) -> dict[str, list[Recorded]]:
    """The events of each stream, in order."""
    streams: dict[str, list[Recorded]] = {}
    for recorded in events:
        stream = streams.get(recorded.stream)
        if stream is None:
            streams[recorded.stream] = [recorded]
        else:
            stream.append(recorded)
    return streams


def advance(kind: Kind[S], aggregate: Aggregate[S] | None, recorded: Recorded, aggregate_id: str) -> Aggregate[S]:
    """The aggregate after one more event of its stream."""
    return advance_by(kind, aggregate, (recorded,), aggregate_id)


def advance_by(
    kind: Kind[S], aggregate: Aggregate[S] | None, stream: Sequence[Recorded], aggregate_id: str
) -> Aggregate[S]:
    """The aggregate after more events of its stream, at least one."""
    state = None if aggregate is None else aggregate.state
    requested_by = None if aggregate is None else aggregate.requested_by
    evolve = kind.evolve
    for each in stream:
        state = evolve(state, each.event, each.time_us)
    for each in reversed(stream):
        if not each.actor.startswith(OURSELVES):
            requested_by = each.actor
            break
    assert state is not None
    last = stream[-1]
    return Aggregate(aggregate_id, last.tenant, last.version, last.seq, last.correlation_id, state, requested_by)


def event_types(kinds: tuple[Kind[Any], ...]) -> tuple[type[Event], ...]:
    """Every event type that a log of these kinds can hold."""
    return (*RESERVATION_EVENTS, *(event_type for kind in kinds for event_type in kind.event_types))
