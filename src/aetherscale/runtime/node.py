"""One node without its transport: components on one log, put together from ports.

`app.py` gives it the real ports; a simulation gives it others. Nothing in here knows a component, SQLite, NATS or QEMU.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, TypeVar

from aetherscale.eventstore.log import EventLog
from aetherscale.eventstore.projections import Projection
from aetherscale.eventstore.store import StoreError
from aetherscale.kernel.calls import Call, Serve
from aetherscale.kernel.messages import Event, Recorded, split_stream
from aetherscale.kernel.registry import Kind, Registry, fold
from aetherscale.kernel.replies import Chunk
from aetherscale.kernel.reservations import NAME_EVENTS, RESERVATION_EVENTS, USE_EVENTS
from aetherscale.runtime.actor import Actor
from aetherscale.runtime.asked import no_such_task, tasks_under
from aetherscale.runtime.component import Component, Driver
from aetherscale.runtime.effects import Clock
from aetherscale.runtime.ontheway import OnTheWay
from aetherscale.runtime.reconciler import Reconciler
from aetherscale.runtime.watches import is_whole
from aetherscale.runtime.world import NodeWorld, Registries

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Ports:
    """Everything outside that a node reaches."""

    log: EventLog
    drivers: Mapping[str, Driver[Any, Any]]
    """By the names of components."""
    clock: Clock
    new_id: Callable[[], str]


@cache
def projection(kind: Kind[S]) -> Projection[Registry[S]]:
    """The registry of a kind as a projection: what a node starts from, and saves snapshots of."""

    def apply_all(registry: Registry[S], events: Sequence[Recorded]) -> Registry[S]:
        fold(kind, registry, events)
        return registry

    # The type of the state is a value here, which is more than an annotation may be.
    state_type = Registry.__class_getitem__(kind.state_type)  # type: ignore[attr-defined]
    events = (*RESERVATION_EVENTS, *kind.event_types)
    return Projection(kind.name, state_type, Registry, apply_all, events, kind.version)


class Node:
    """The components of one node. `start`, then `serve`, then `close`. `registries` are as of the log's head."""

    def __init__(self, components: Sequence[Component[Any, Any]], ports: Ports, registries: Registries) -> None:
        self._components = components
        self.broken: asyncio.Future[StoreError] = asyncio.get_running_loop().create_future()
        """Done when the log can no longer be trusted: the process has to end. Guests run on."""
        ports.log.on_commit(self._committed)
        self._suspicious = tuple(event for component in components for event in component.suspicious)
        world = NodeWorld(ports.log.node, components, registries, ports.drivers)
        self.actors: dict[str, Actor[Any, Any]] = {}
        on_the_way = OnTheWay(self.actors, ports.new_id)
        self.actors |= {
            component.kind.name: Actor(
                component,
                registries[component.kind.name],
                world,
                ports.drivers[component.name],
                ports.log,
                ports.clock,
                ports.new_id,
                self.distrust,
                on_the_way,
            )
            for component in components
        }
        """By the kinds of their aggregates."""
        self._keepers = {name: actor for actor in self.actors.values() for name in actor.component.kind.names}
        self._reconciler = Reconciler(self.reconcile)

    @cached_property
    def serve(self) -> Mapping[str, Serve]:
        """How calls are taken under the name of each component."""
        return {actor.component.name: self._serving(actor) for actor in self.actors.values()}

    def _serving(self, own: Actor[Any, Any]) -> Serve:
        name = own.component.name
        having = {task: self.actors[of.kind.name] for task, of in tasks_under(name, self._components).items()}

        def serve(call: Call) -> AsyncIterator[Chunk]:
            # An object has all tasks of its kind, under whichever name they are asked for elsewhere.
            actor = own if call.object_id else having.get(call.task)
            if actor is None:
                raise no_such_task(name, call.task, having)
            return actor.serve(call)

        return serve

    @property
    def queries(self) -> frozenset[str]:
        """The names of the tasks that change nothing, whichever component has them."""
        commands = {task for component in self._components for task in component.commands}
        return frozenset(task for component in self._components for task in component.tasks()) - commands

    @property
    def registries(self) -> Mapping[str, Registry[Any]]:
        """The state of each component by kind, as of the log's head; not to be changed."""
        return {kind: actor.registry for kind, actor in self.actors.items()}

    def objects(self) -> Iterator[tuple[str, str, str]]:
        """(kind, id, tenant) of every object that this node owns: all that are not deleted."""
        for kind, actor in self.actors.items():
            for aggregate in actor.registry.aggregates.values():
                if aggregate.state.phase != "deleted":
                    yield kind, aggregate.id, aggregate.tenant

    def counts(self) -> Mapping[str, int]:
        """How many objects there are, as the components count them."""
        counted: Counter[str] = Counter()
        for actor in self.actors.values():
            counts = actor.component.counts
            counted.update(dict.fromkeys(counts, 0))
            for aggregate in actor.registry.aggregates.values():
                if aggregate.state.phase != "deleted":
                    counted.update(name for name, counts_in in counts.items() if counts_in(aggregate.state))
        return counted

    def phases(self) -> Mapping[tuple[str, str], int]:
        """How many objects there are that are not deleted, by kind and phase."""
        return Counter(
            (kind, aggregate.state.phase)
            for kind, actor in self.actors.items()
            for aggregate in actor.registry.aggregates.values()
            if aggregate.state.phase != "deleted"
        )

    def changed_hands(self, recorded: Recorded) -> tuple[str, str, str, bool] | None:
        """(kind, id, tenant, whether it is owned now) where an event made or ended an object."""
        kind, aggregate_id = split_stream(recorded.stream)
        actor = self.actors.get(kind)
        if actor is None:
            return None
        deleted = actor.registry.aggregates[aggregate_id].state.phase == "deleted"
        if deleted or recorded.version == 1:
            return kind, aggregate_id, recorded.tenant, not deleted
        return None

    async def start(self) -> None:
        """Find what is ours on the host, then take up what is pending."""
        for actor in self.actors.values():
            await actor.driver.start(actor.report)
        await self.reconcile()
        for actor in self.actors.values():
            actor.resume()
        self._reconciler.start()

    async def close(self) -> None:
        """Stop where we are. Guests run on, and what is pending is taken up by the next process."""
        await self._reconciler.close()
        for actor in self.actors.values():
            await actor.close()
        for actor in self.actors.values():
            await actor.driver.close()

    def distrust(self, failure: StoreError) -> None:
        """The log can no longer be trusted, for this reason. The first reason counts."""
        for actor in self.actors.values():
            actor.rest()
        if not self.broken.done():
            self.broken.set_result(failure)

    async def reconcile(self) -> None:
        """Compare the host with the log: adopt what is alive and unwatched, notice what is gone."""
        for actor in self.actors.values():
            await actor.driver.reconcile(States(actor.registry))

    def _committed(self, recorded: Sequence[Recorded]) -> None:
        for index, each in enumerate(recorded):
            if (actor := self._actor_of(each)) is not None:
                actor.committed(each, is_whole=is_whole(recorded, index))
        for actor in self.actors.values():
            actor.registry.position = recorded[-1].seq
        if any(isinstance(each.event, self._suspicious) for each in recorded):
            # Where the host refuses, it may not be as the log has it.
            self._reconciler.soon()

    def _actor_of(self, recorded: Recorded) -> Actor[Any, Any] | None:
        """Whose registry an event is folded into: a reservation's is that of the kind that it is about."""
        event = recorded.event
        if isinstance(event, NAME_EVENTS + USE_EVENTS):
            return self._keepers.get(event.kind)
        return self._keepers.get(split_stream(recorded.stream)[0])


class States(Mapping[str, S]):
    """The states of a registry by id, as of whenever they are looked at."""

    def __init__(self, registry: Registry[S]) -> None:
        self._aggregates = registry.aggregates

    def __getitem__(self, aggregate_id: str) -> S:
        return self._aggregates[aggregate_id].state

    def __iter__(self) -> Iterator[str]:
        return iter(self._aggregates)

    def __len__(self) -> int:
        return len(self._aggregates)


def event_types(components: Sequence[Component[Any, Any]]) -> tuple[type[Event], ...]:
    """Every event type that a log of these components can hold."""
    return (*RESERVATION_EVENTS, *(event for component in components for event in component.kind.event_types))
