"""The reservations that events take and release: what an append writes beside the events of its aggregate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from aetherscale.eventstore.log import Write
from aetherscale.kernel.messages import Envelope, Event
from aetherscale.kernel.registry import Registry
from aetherscale.kernel.reservations import FREE, USE_EVENTS, Holding, Reservation, changes
from aetherscale.runtime.component import Component

S = TypeVar("S")
M = TypeVar("M")


def reservations(
    component: Component[S, M],
    registry: Registry[S],
    target: str,
    state: S | None,
    decided: Sequence[Event],
    envelope: Envelope[Any],
) -> list[Write]:
    """Each key in its stream, for events that follow `state`; a shared one at any version."""
    reserved: dict[str, list[Reservation]] = {}
    held: Sequence[Holding] = () if state is None else component.holds(state)
    for event in decided:
        state = component.kind.evolve(state, event, envelope.at_us)
        before, held = held, component.holds(state)
        for stream, each in changes(component.kind.name, target, envelope.tenant, before, held):
            reserved.setdefault(stream, []).append(each)
    return [Write(stream, _expected(registry, stream, each[0]), tuple(each)) for stream, each in reserved.items()]


def _expected(registry: Registry[S], stream: str, reservation: Reservation) -> int | None:
    """The version at which a reservation is made: a shared one at any."""
    if isinstance(reservation, USE_EVENTS):
        return None
    return registry.holders.get(stream, FREE).version
