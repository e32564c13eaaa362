"""One node without its transport: the components on one log, put together from ports.

`app.py` gives it the real ports; a simulation gives it others. Nothing in here knows SQLite, NATS or QEMU.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, TypeVar

from aetherscale.actors.compute.component import BaseImage, Compute
from aetherscale.actors.compute.driver import ComputeDriver
from aetherscale.actors.compute.model.decide import ComputeMessage
from aetherscale.actors.compute.model.events import VmStepFailed
from aetherscale.actors.compute.model.presentation import VM_KIND, needs_image
from aetherscale.actors.compute.model.state import Vm
from aetherscale.actors.images.component import Images, Perform
from aetherscale.actors.images.model.decide import Image, ImagesMessage
from aetherscale.actors.images.model.presentation import IMAGE_KIND
from aetherscale.eventstore.log import EventLog
from aetherscale.eventstore.projections import Projection
from aetherscale.eventstore.store import StoreError
from aetherscale.kernel.calls import Serve
from aetherscale.kernel.messages import Recorded, split_stream, stream_name
from aetherscale.kernel.registry import Kind, Registry, apply
from aetherscale.kernel.reservations import RESERVATION_EVENTS, Seen, Uses, use_stream
from aetherscale.runtime.actor import Actor
from aetherscale.runtime.effects import Clock
from aetherscale.runtime.reconciler import Reconciler

S = TypeVar("S")

KINDS: Final[tuple[Kind[Any], ...]] = (VM_KIND, IMAGE_KIND)
"""All kinds of aggregates that a log of this version can hold."""

OWNERS: Final[Mapping[str, str]] = {VM_KIND.name: "compute", IMAGE_KIND.name: "images"}
"""The component that owns each kind of object."""

LIVING: Final = frozenset({"running", "paused"})
"""What is observed of a VM that has a process."""

MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Ports:
    """Everything outside that a node reaches."""

    log: EventLog
    compute: ComputeDriver
    images: Perform
    clock: Clock
    new_id: Callable[[], str]
    boot_id: str
    """Names the time since the host was started last."""


@cache
def projection(kind: Kind[S]) -> Projection[Registry[S]]:
    """The registry of a kind as a projection: what a node starts from, and saves snapshots of."""

    def fold(registry: Registry[S], recorded: Recorded) -> Registry[S]:
        apply(kind, registry, recorded)
        return registry

    # The type of the state is a value here, which is more than an annotation may be.
    state_type = Registry.__class_getitem__(kind.state_type)  # type: ignore[attr-defined]
    events = (*RESERVATION_EVENTS, *kind.event_types)
    return Projection(kind.name, state_type, Registry, fold, events, kind.version)


@dataclass(frozen=True, slots=True)
class Registries:
    """The projections that commands are decided on, as of the log's head."""

    vms: Registry[Vm]
    images: Registry[Image]


class Node:
    """The components of one node. `start`, then `serve`, then `close`."""

    def __init__(self, ports: Ports, registries: Registries) -> None:
        self._ports = ports
        self._registries = registries
        self.broken: asyncio.Future[StoreError] = asyncio.get_running_loop().create_future()
        """Done when the log can no longer be trusted: the process has to end. Guests run on."""
        ports.log.on_commit(self._committed)
        self._know_unrecorded_uses()
        node = ports.log.node
        self._images = Images(node, registries.images, ports.images, self._names_of)
        self._compute = Compute(node, registries.vms, ports.compute, self._base_image)
        self.compute: Actor[Vm, ComputeMessage] = self._actor(self._compute.component(), registries.vms)
        self.images: Actor[Image, ImagesMessage] = self._actor(self._images.component(), registries.images)
        self._reconciler = Reconciler(self.reconcile)

    @property
    def serve(self) -> Mapping[str, Serve]:
        """How each component takes calls, by its name."""
        return {actor.component.name: actor.serve for actor in self._actors}

    @property
    def tasks(self) -> Mapping[str, tuple[str, ...]]:
        """The tasks of each component, by its name."""
        return {actor.component.name: actor.component.tasks() for actor in self._actors}

    @property
    def queries(self) -> frozenset[str]:
        """The names of the tasks that change nothing, whichever component has them."""
        commands = {task for actor in self._actors for task in actor.component.commands}
        return frozenset(task for actor in self._actors for task in actor.component.queries) - commands

    def objects(self) -> Iterator[tuple[str, str, str]]:
        """(kind, id, tenant) of every object that this node owns: all that are not deleted."""
        for actor in self._actors:
            for aggregate in actor.registry.aggregates.values():
                if aggregate.state.phase != "deleted":
                    yield actor.component.kind.name, aggregate.id, aggregate.tenant

    @property
    def vms(self) -> int:
        """How many VMs it has that are not deleted."""
        return sum(1 for aggregate in self._registries.vms.aggregates.values() if aggregate.state.phase != "deleted")

    @property
    def vms_running(self) -> int:
        """How many of them have a process, paused or not."""
        return sum(1 for aggregate in self._registries.vms.aggregates.values() if aggregate.state.observed in LIVING)

    def changed_hands(self, recorded: Recorded) -> tuple[str, str, str, bool] | None:
        """(kind, id, tenant, whether it is owned now) where an event made or ended an object."""
        kind, aggregate_id = split_stream(recorded.stream)
        for actor in self._actors:
            if actor.component.kind.name == kind:
                deleted = actor.registry.aggregates[aggregate_id].state.phase == "deleted"
                if deleted or recorded.version == 1:
                    return kind, aggregate_id, recorded.tenant, not deleted
        return None

    async def start(self) -> None:
        """Find what is ours on the host, then take up what is owed."""
        await self._compute.observe(self.compute)
        await self.reconcile()
        for actor in self._actors:
            actor.resume()
        self._reconciler.start()

    async def close(self) -> None:
        """Stop where we are. Guests run on, and what is owed is taken up by the next process."""
        await self._reconciler.close()
        for actor in self._actors:
            await actor.close()
        await self._ports.compute.close()

    def distrust(self, failure: StoreError) -> None:
        """The log can no longer be trusted, for this reason. The first reason counts."""
        for actor in self._actors:
            actor.rest()
        if not self.broken.done():
            self.broken.set_result(failure)

    async def reconcile(self) -> None:
        """Compare the host with the log: adopt what is alive and unwatched, notice what is gone."""
        await self._compute.reconcile(self.compute, self._ports.boot_id)

    @property
    def _actors(self) -> tuple[Actor[Any, Any], ...]:
        return (self.compute, self.images)

    def _actor(self, component: Any, registry: Registry[Any]) -> Actor[Any, Any]:
        return Actor(component, registry, self._ports.log, self._ports.clock, self._ports.new_id, self.distrust)

    def _committed(self, recorded: Sequence[Recorded]) -> None:
        for actor in self._actors:
            actor.committed(recorded)
        if any(isinstance(each.event, VmStepFailed) for each in recorded):
            # Where the host refuses, it may not be as the log has it.
            self._reconciler.soon()

    def _base_image(self, tenant: str, reference: str) -> BaseImage:
        found = self._images.usable(tenant, reference)
        image, seen = found.state, Seen(stream_name(IMAGE_KIND.name, found.id), found.version)
        assert image.format is not None
        assert image.size_bytes is not None
        assert image.virtual_size_bytes is not None
        size_mib = -(-image.virtual_size_bytes // MIB)
        return BaseImage(image.id, image.name, image.format, image.size_bytes, size_mib, image.ready_channel, seen)

    def _names_of(self, vm_ids: Iterable[str]) -> Sequence[str]:
        return sorted(self._registries.vms.aggregates[vm_id].state.name for vm_id in vm_ids)

    def _know_unrecorded_uses(self) -> None:
        """An older log does not say that its VMs use their images; it follows from what they are."""
        for vm_id, aggregate in self._registries.vms.aggregates.items():
            if needs_image(aggregate.state):
                stream = use_stream(IMAGE_KIND.name, aggregate.state.spec.image_id)
                self._registries.images.uses.setdefault(stream, Uses()).users.setdefault(vm_id, VM_KIND.name)
