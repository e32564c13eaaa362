"""What happened to the ports of a VM, and how they stand, in sentences. Pure."""

from __future__ import annotations

from aetherscale.actors.compute.model import events
from aetherscale.actors.compute.model.effects import PortSpec
from aetherscale.actors.compute.model.portdecisions import to_plug, to_unplug
from aetherscale.actors.compute.model.state import FREE, HOT_SLOTS, UP, Vm
from aetherscale.kernel.descriptions import Description, consequence, request


def describe_port(vm: Vm, event: events.PortEvent) -> Description:
    """An event of a port in words; `vm` is the state before it."""
    match event:
        case events.PortAdded():
            return request(f"asked to attach it to the network {place_of(event.port)}")
        case events.PortPlugged():
            return consequence(f"its guest was given the card for the network {_network(vm, event.port_id)}")
        case events.PortRemoved(failed=True):
            return consequence(f"the port in the network {_network(vm, event.port_id)} was to be removed again")
        case events.PortRemoved():
            return request(f"asked to detach it from the network {_network(vm, event.port_id)}")
        case events.PortUnplugged():
            detached = f"it was detached from the network {_network(vm, event.port_id)}"
            kept = "; its guest had not let go of the card, which has no cable now, and whose slot a restart frees"
            return consequence(detached + kept if event.card_left else detached)


def summarize_ports(vm: Vm) -> str:
    """What is awaited of its ports."""
    if vm.requested == "deleted":
        return ""
    leaving, coming = to_unplug(vm), to_plug(vm) if vm.phase in UP else None
    failed = f", which is tried again: {vm.ports.failure.reason}" if vm.ports.failure is not None else ""
    if leaving is not None:
        return f"; it is being detached from the network {leaving.network!r}{failed}"
    if coming is not None:
        return f"; it is being attached to the network {coming.network!r}{failed}"
    left = _slots_left(vm) if vm.phase in UP else 0
    if left:
        return f"; {left} of the {HOT_SLOTS} slots for cards that it can be given are free again once it is restarted"
    return ""


def _slots_left(vm: Vm) -> int:
    """How many slots of its run are taken by cards whose ports are gone."""
    ports = {port.id for port in vm.ports.every}
    return sum(slot != FREE and slot not in ports for slot in vm.run.slots)


def place_of(port: PortSpec) -> str:
    """The network of a port, and its addresses there."""
    own = " and ".join(filter(None, (port.ipv4, port.ipv6)))
    return f"{port.network!r}{own and f' as {own}'}"


def _network(vm: Vm, port_id: str) -> str:
    return next((repr(port.spec.network) for port in vm.ports.every if port.id == port_id), "of before")
