"""The tasks of a VM's groups and forwards: names become ids, and what has to be there is looked up.

Callers ask for them under the name of the component `firewall`; what they change is the VM.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from aetherscale.actors.compute.model.commands import BorneGroup, Forward, PortSpec
from aetherscale.actors.compute.model.decide import ComputeMessage
from aetherscale.actors.compute.model.events import KIND
from aetherscale.actors.compute.model.presentation import HOST_PORT
from aetherscale.actors.compute.model.publishing import host_port_key, parse_host_address
from aetherscale.actors.compute.model.rulecommands import (
    GROUP,
    AddForward,
    AddForwardOptions,
    AttachGroup,
    DetachGroup,
    GroupOfVmOptions,
    RemoveForward,
    RemoveForwardOptions,
    versions_of,
)
from aetherscale.actors.compute.model.ruledecisions import are_applied, bears, has_forward
from aetherscale.actors.compute.model.state import Vm
from aetherscale.actors.compute.ports import HOST_PORTS, HostPorts
from aetherscale.actors.network.model import events as networks
from aetherscale.actors.network.model.views import NetworkView
from aetherscale.kernel.calls import Call
from aetherscale.kernel.errors import Reason, Refused, Task
from aetherscale.kernel.names import derive_id, is_id
from aetherscale.kernel.registry import Aggregate
from aetherscale.kernel.reservations import NO_TENANT
from aetherscale.runtime.component import Command, World

FIREWALL_COMPONENT: Final = "firewall"
"""The component that callers ask for these tasks under the name of."""


def borne_groups(world: World, tenant: str, references: Sequence[str]) -> list[BorneGroup]:
    """The groups that a VM is to bear. Raises `Refused`: not found; bad request where one is given twice."""
    groups = [_usable_group(world, tenant, reference, "groups") for reference in references]
    for index, group in enumerate(groups):
        if group in groups[:index]:
            raise Refused(Reason.BAD_REQUEST, f"the group {group.group!r} is given twice", field="groups")
    return groups


def _usable_group(world: World, tenant: str, reference: str, field: str, *, wanted: bool = True) -> BorneGroup:
    """A group that a VM can bear; `wanted` is whether it is to. Raises `Refused` (not found)."""
    making = () if is_id(reference) or not wanted else (Task("group", "create", reference), ", or: ")
    missing = Refused(
        Reason.NOT_FOUND,
        f"no such group: {reference!r}",
        field=field,
        remedy=(*making, Task("group", "list")),
    )
    try:
        group = world.view(GROUP, tenant, reference)
    except Refused:
        raise missing from None
    # One whose deletion has failed goes away all the same; one whose rules have is borne, with those that it had.
    phase = group.failure.phase if group.phase == "failed" else group.phase
    if phase in ("deleting", "deleted"):
        raise missing
    return BorneGroup(group.id, group.name)


def _attach(options: GroupOfVmOptions, call: Call, vm_id: str, world: World) -> AttachGroup:
    return AttachGroup(vm_id, _usable_group(world, call.tenant, options.group, "group"), options.keep_established)


def _detach(options: GroupOfVmOptions, call: Call, vm_id: str, world: World) -> DetachGroup:
    group = _usable_group(world, call.tenant, options.group, "group", wanted=False)
    return DetachGroup(vm_id, group.group_id, options.keep_established)


def _add_forward(options: AddForwardOptions, call: Call, vm_id: str, world: World) -> AddForward:
    forward = Forward(
        id=derive_id("forward", world.node, call.tenant, call.command_id),
        protocol=options.protocol,
        address=parse_host_address(options.host_address, "host-address"),
        host_port=options.host_port,
        guest_port=options.guest_port,
    )
    vm: Vm = world.find(KIND, call.tenant, vm_id).state
    # A deleted one is refused as such, and one that has it is left as it is.
    if vm.phase != "deleted" and not any(host_port_key(each) == host_port_key(forward) for each in vm.rules.forwards):
        _require_way(world, call.tenant, vm, forward)
        _require_free(world, call.tenant, vm, forward)
    return AddForward(vm_id, forward)


def versions_led(world: World, tenant: str, ports: Iterable[PortSpec], forward: Forward) -> frozenset[int]:
    """The versions of IP in which the host can lead a forward to a VM with these ports: to the first that it routes."""
    routed = next((port for port in ports if _network(world, tenant, port).kind == "nat"), None)
    if routed is None:
        return frozenset()
    asked = versions_of(forward.address)
    return frozenset(version for version in asked if (routed.ipv6 if version == 6 else routed.ipv4))


def _network(world: World, tenant: str, port: PortSpec) -> NetworkView:
    network: NetworkView = world.view(networks.KIND, tenant, port.network_id)
    return network


def _require_way(world: World, tenant: str, vm: Vm, forward: Forward) -> None:
    """Raises `Refused` (conflict) for a VM that the host has no way to."""
    if versions_led(world, tenant, vm.ports.staying(), forward):
        return
    found = [f"{port.network} ({_network(world, tenant, port).kind})" for port in vm.ports.staying()]
    family = {True: " with IPv6", False: " with IPv4"}[":" in forward.address] if forward.address else ""
    raise Refused(
        Reason.CONFLICT,
        f"the VM {vm.name!r} is in no network of the kind nat{family}, so that the host has no way to it"
        + (f"; it is in {', '.join(found)}" if found else ""),
        field="vm-id",
        remedy=(
            "attach it to a network of the kind nat" if vm.ports.made else "create a VM in a network of the kind nat"
        ),
    )


def _require_free(world: World, tenant: str, vm: Vm, forward: Forward) -> None:
    """Raises `Refused` (conflict) for a port of the host that another VM has, or a program of the host listens at."""
    holder = world.named(HOST_PORT, NO_TENANT, host_port_key(forward))
    if holder is not None and holder.id != vm.id:
        raise port_of(holder, tenant, f"{forward.host_port}/{forward.protocol}", "host-port")
    ports: HostPorts = world.port(HOST_PORTS)
    ports.require_free(forward)


def port_of(holder: Aggregate[Vm], tenant: str, number: str, field: str) -> Refused:
    """The refusal of a port of the host (`8080/tcp`) that another VM has, in words that are for this tenant."""
    message, remedy = f"a VM of another tenant has the port {number} of the host", "take another port of the host"
    if holder.tenant == tenant:
        message = f"the VM {holder.state.name!r} has the port {number} of the host"
        is_forwarded = any(number == f"{each.host_port}/{each.protocol}" for each in holder.state.rules.forwards)
        remedy = f"{remedy}, or {'remove that forward' if is_forwarded else 'delete that VM'}"
    return Refused(Reason.CONFLICT, message, field=field, remedy=remedy)


def _remove_forward(options: RemoveForwardOptions, call: Call, vm_id: str, world: World) -> RemoveForward:
    if (options.forward is None) == (options.host_port is None):
        raise Refused(
            Reason.BAD_REQUEST, "expected one of forward and host-port, which name the forward", field="host-port"
        )
    return RemoveForward(vm_id, options.forward, options.host_port, options.protocol, options.keep_established)


def _command(options: Any, prepare: Any, stands: Callable[[Vm, Any], bool]) -> Command[Vm, ComputeMessage]:
    """A task whose change of a VM `stands` as long as no other has taken it back."""

    def is_done(vm: Vm, options: Any) -> bool:
        return are_applied(vm, stands=stands(vm, options))

    return Command(options, prepare, is_done, under=FIREWALL_COMPONENT)


RULE_COMMANDS: Final[Mapping[str, Command[Vm, ComputeMessage]]] = {
    "attach-group": _command(GroupOfVmOptions, _attach, bears),
    "detach-group": _command(GroupOfVmOptions, _detach, lambda vm, options: not bears(vm, options)),
    "add-forward": _command(AddForwardOptions, _add_forward, has_forward),
    "remove-forward": _command(RemoveForwardOptions, _remove_forward, lambda vm, options: not has_forward(vm, options)),
}
