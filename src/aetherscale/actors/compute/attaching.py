"""The tasks of a VM's ports while it is there: names become ids, and the addresses of a port are decided."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from aetherscale.actors.compute.creation import require_of_no_network, usable_network
from aetherscale.actors.compute.model.decide import ComputeMessage
from aetherscale.actors.compute.model.events import KIND
from aetherscale.actors.compute.model.portcommands import AttachPort, AttachVmOptions, DetachPort, DetachVmOptions
from aetherscale.actors.compute.model.portdecisions import is_attached, is_detached
from aetherscale.actors.compute.model.presentation import ADDRESS, address_key
from aetherscale.actors.compute.model.state import Vm
from aetherscale.actors.compute.rules import versions_led
from aetherscale.actors.network.model import events as networks
from aetherscale.actors.network.ports import allowed_address, port_in
from aetherscale.kernel.calls import Call
from aetherscale.kernel.errors import Reason, Refused, Task
from aetherscale.kernel.reservations import NO_TENANT
from aetherscale.runtime.component import Command, World


def _attach(options: AttachVmOptions, call: Call, vm_id: str, world: World) -> AttachPort:
    vm: Vm = world.find(KIND, call.tenant, vm_id).state
    network = usable_network(world, call.tenant, options.network, "network")
    allowed = [allowed_address(text) for text in options.allow_addresses]
    require_of_no_network(allowed, [network])

    def is_taken(address: str) -> bool:
        return world.named(ADDRESS, NO_TENANT, address_key(network.id, address)) is not None

    return AttachPort(vm_id, port_in(network, vm_id, vm.name, vm.ports.made, is_taken, allowed))


def _detach(options: DetachVmOptions, call: Call, vm_id: str, world: World) -> DetachPort:
    network_id = world.find(networks.KIND, call.tenant, options.network).id
    _require_ways(world, call.tenant, world.find(KIND, call.tenant, vm_id).state, network_id)
    return DetachPort(vm_id, network_id)


def _require_ways(world: World, tenant: str, vm: Vm, network_id: str) -> None:
    """Raises `Refused` (conflict) where forwards to the VM would have no way to it without its port in this network."""
    ports = list(vm.ports.staying())
    left = [port for port in ports if port.network_id != network_id]
    lost = [
        f"{each.host_port}/{each.protocol}"
        for each in vm.rules.forwards
        if versions_led(world, tenant, ports, each) and not versions_led(world, tenant, left, each)
    ]
    if lost:
        raise Refused(
            Reason.CONFLICT,
            f"the forwards to the VM {vm.name!r} would lead nowhere: {', '.join(lost)}",
            field="network",
            remedy=(
                "remove them first, or attach the VM to another network of the kind nat: ",
                Task("forward", "list", vm.name),
            ),
        )


PORT_COMMANDS: Final[Mapping[str, Command[Vm, ComputeMessage]]] = {
    "attach-vm": Command(AttachVmOptions, _attach, is_attached),
    "detach-vm": Command(DetachVmOptions, _detach, is_detached),
}
