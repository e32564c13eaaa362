"""A component for tests: a port has a name and addresses. The addresses are keys of the node, whichever tenant's it is.

There is nothing to do on the host.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from msgspec import Struct
from msgspec.structs import replace

from aetherscale.kernel.calls import Call
from aetherscale.kernel.decider import Decider
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.identity import Identity
from aetherscale.kernel.messages import Event
from aetherscale.kernel.registry import Kind
from aetherscale.kernel.reservations import NO_TENANT, Holding, Name, NodeKey
from aetherscale.kernel.wire import Message
from aetherscale.runtime.component import Command, Component, Listing, Progress, Report, World


class PortMade(Event, frozen=True):
    """A port with addresses."""

    port_id: str
    name: str
    addresses: list[str]


class PortMoved(Event, frozen=True):
    """It has other addresses."""

    addresses: list[str]


class PortDeleted(Event, frozen=True):
    """It is gone."""


class Port(Struct, frozen=True):
    id: str
    name: str
    addresses: list[str]
    phase: Literal["ready", "deleted"] = "ready"


class MakeOptions(Message, frozen=True):
    name: str
    addresses: list[str]


class PortOptions(Message, frozen=True):
    port: str = ""
    addresses: list[str] = []  # noqa: RUF012 - msgspec copies it


class ListOptions(Message, frozen=True):
    all: bool = False


class View(Struct, frozen=True):
    id: str
    name: str
    phase: str
    addresses: list[str]
    revision: int


def evolve(port: Port | None, event: Any, at_us: int) -> Port:
    if isinstance(event, PortMade):
        return Port(event.port_id, event.name, event.addresses)
    assert port is not None
    return replace(port, addresses=event.addresses) if isinstance(event, PortMoved) else replace(port, phase="deleted")


def holds(port: Port) -> Sequence[Holding]:
    if port.phase == "deleted":
        return ()
    return (Name("port", port.name), *(NodeKey("port-address", address) for address in port.addresses))


def require_free(world: World, port_id: str, addresses: Sequence[str]) -> None:
    for address in addresses:
        holder = world.named("port-address", NO_TENANT, address)
        if holder is not None and holder.id != port_id:
            raise Refused(Reason.CONFLICT, f"the address {address} is that of {holder.state.name}")


def make(options: MakeOptions, call: Call, port_id: str, world: World) -> Event:
    world.require_free("port", call.tenant, options.name, port_id)
    require_free(world, port_id, options.addresses)
    return PortMade(port_id, options.name, options.addresses)


def move(options: PortOptions, call: Call, port_id: str, world: World) -> Event:
    require_free(world, port_id, options.addresses)
    return PortMoved(options.addresses)


def decide(port: Port | None, event: Event, at_us: int) -> Sequence[Event]:
    if port is not None and (port.phase == "deleted" or isinstance(event, PortMade)):
        raise Refused(Reason.NOT_FOUND if port.phase == "deleted" else Reason.CONFLICT, f"the port is {port.phase}")
    return (event,)


class Nothing:
    """A host on which there is nothing to do."""

    async def start(self, report: Report[Any]) -> None: ...
    async def reconcile(self, expected: Mapping[str, Any]) -> None: ...
    async def close(self) -> None: ...
    async def perform(self, effect: Any, progress: Progress) -> Any: ...


PORTS: Component[Port, Event] = Component(
    identity=Identity("ports", "port", "ports", "port", "port", "ports", "ports"),
    kind=Kind(
        "port",
        Port,
        (PortMade, PortMoved, PortDeleted),
        evolve,
        lambda port, node, revision, requested_by: View(port.id, port.name, port.phase, port.addresses, revision),
        keys=("port-address",),
    ),
    decider=Decider(decide, evolve, lambda port: None),
    holds=holds,
    announce=lambda port, event: None,
    listing=Listing(ListOptions, PortOptions),
    commands={
        "make-port": Command(MakeOptions, make, lambda port, options: True, creates=True),
        "move-port": Command(PortOptions, move, lambda port, options: True),
        "delete-port": Command(
            PortOptions, lambda options, call, port_id, world: PortDeleted(), lambda port, options: True, frees=True
        ),
    },
    open_driver=lambda host: Nothing(),
    open_simulated=lambda host: Nothing(),
)
