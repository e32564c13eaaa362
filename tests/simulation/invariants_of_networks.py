"""What has to hold of networks and of the ports of VMs: who uses and reserves what, and what is on the host at last."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from ipaddress import ip_network
from itertools import combinations
from typing import TYPE_CHECKING, Final

from aetherscale.actors.compute.model.commands import VmRules
from aetherscale.actors.compute.model.state import Vm
from aetherscale.actors.network.model.devices import bridge_name
from aetherscale.actors.network.model.state import Network
from aetherscale.kernel.reservations import Holding, Name, NodeKey
from tests.simulation.hotports import check_cards
from tests.simulation.violation import Violation
from tests.simulation.world import World

AWAY: Final = b"while the node was away"

if TYPE_CHECKING:
    from tests.simulation.invariants import Folded


def has_ports(vm: Vm) -> bool:
    """Whether what was decided of its ports is its own: what is left of a deleted VM has none."""
    return vm.phase != "deleted" and not vm.is_orphan


def keys_of_vm(vm: Vm) -> Iterator[Holding]:
    """What no other VM may have, written from the documents: its name, the MAC and the addresses of its ports, and the
    ports of the host that lead to it.
    """
    if has_ports(vm):
        yield Name("vm", vm.spec.name)
        for port in vm.ports.specs():
            yield NodeKey("mac", port.mac)
            for address in filter(None, (port.ipv4, port.ipv6)):
                yield NodeKey("address", f"{port.network_id}-{address}")
        for published in vm.spec.publish:
            yield NodeKey("hostport", f"{published.protocol}-{published.host_port}")
        for forward in vm.rules.forwards:
            yield NodeKey("hostport", f"{forward.protocol}-{forward.host_port}")


def keys_of_network(network: Network) -> Iterator[Holding]:
    """What no other network may have: its name, its bridge, its IPv6 prefix, and each /24 of its IPv4 one."""
    if network.phase != "deleted":
        yield Name("network", network.spec.name)
        if network.spec.bridge:
            yield NodeKey("bridge", network.spec.bridge)
        if network.spec.ipv6:
            yield NodeKey("prefix", network.spec.ipv6)
        if network.spec.ipv4:
            prefix = ip_network(network.spec.ipv4)
            inside = prefix.subnets(new_prefix=max(24, prefix.prefixlen))
            for block in inside if prefix.prefixlen <= 24 else (prefix.supernet(new_prefix=24),):
                yield NodeKey("prefix", str(block))


def check_networks_of_vms(folded: Folded) -> None:
    """A network has ports only while it is there; prefixes do not overlap, and addresses are within them."""
    networks = {each.id: each.state for each in folded.networks.aggregates.values()}
    used: dict[str, set[str]] = {}
    for vm in (each.state for each in folded.vms.aggregates.values() if has_ports(each.state)):
        for port in vm.ports.specs():
            used.setdefault(port.network_id, set()).add(vm.id)
            network = networks[port.network_id]
            if network.phase not in ("ready", "restoring"):
                raise Violation(f"the network {network.id} is {network.phase}, and {vm.id} has a port in it")
            for address, prefix in ((port.ipv4, network.spec.ipv4), (port.ipv6, network.spec.ipv6)):
                if network.spec.kind == "public":
                    continue  # Others give out addresses there.
                if bool(address) != bool(prefix) or (address and not _is_within(address, prefix or "")):
                    raise Violation(f"{vm.id} has the address {address} in a network with {prefix}")
    for network_id in networks:
        held = set(folded.networks.uses_of("network", network_id).users)
        if held != used.get(network_id, set()):
            raise Violation(f"network {network_id}: reserved by {held}, used by {used.get(network_id)}")
    kept = [each.spec for each in networks.values() if each.phase != "deleted"]
    for one, other in combinations(kept, 2):
        for mine, theirs in ((one.ipv4, other.ipv4), (one.ipv6, other.ipv6)):
            if mine and theirs and ip_network(mine).overlaps(ip_network(theirs)):
                raise Violation(f"{one.name} has {mine}, and {other.name} has {theirs}")


def check_told_deeds(world: World) -> None:
    """No network was told more often that its rules were removed than somebody has done so: a reboot is no deed."""
    told = Counter(each.stream for each in world.log.events if each.type == "NetworkDown" and AWAY in each.data)
    if told and max(told.values()) > world.networks.flushes:
        raise Violation(f"rules were removed {world.networks.flushes} times, and that is told as {told}")


def _is_within(address: str, prefix: str) -> bool:
    return ip_network(address).subnet_of(ip_network(prefix))  # type: ignore[arg-type]


def check_networks(world: World, folded: Folded) -> None:
    """C, once nothing is pending: bridges, rules and taps on the host are exactly those of the log."""
    networks = {each.id: each.state for each in folded.networks.aggregates.values()}
    vms = {each.id: each.state for each in folded.vms.aggregates.values() if has_ports(each.state)}
    host = world.networks
    ours = [each for each in networks.values() if each.spec.kind != "public"]
    wanted = {bridge_name(each.id): each.id for each in ours if each.phase == "ready"}
    # What the host has refused to remove for good is told as failed, and left until somebody asks again.
    left = {bridge_name(each.id): each.id for each in ours if each.phase == "deleting"}
    if not wanted.items() <= host.bridges.items() <= (wanted | left).items():
        raise Violation(f"the log has the bridges {wanted}, the host {host.bridges}")
    of_host = {each.spec.bridge: each.phase for each in networks.values() if each.spec.bridge}
    ruled = wanted.keys() | {bridge for bridge, phase in of_host.items() if phase == "ready"}
    may_be_ruled = ruled | left.keys() | {bridge for bridge, phase in of_host.items() if phase == "deleting"}
    if not ruled <= host.ruled_networks <= may_be_ruled:
        raise Violation(f"the log has the networks {ruled}, the host rules of {host.ruled_networks}")
    places = {port.tap: (vm.id, host.bridge_of(port.network_id)) for vm in vms.values() for port in vm.ports.specs()}
    # The ports of a VM that the host has refused to remove may be closed already.
    closed = {port.tap for vm in vms.values() if vm.requested == "deleted" for port in vm.ports.specs()}
    if not places.keys() - closed <= host.ruled_taps <= places.keys():
        raise Violation(f"the log has the ports {places}, the host rules of {host.ruled_taps}")
    if not host.taps.items() <= places.items():
        raise Violation(f"the log has the ports {places}, the host the taps {host.taps}")
    for vm in vms.values():
        if vm.observed in ("running", "paused") and (
            lost := {port.tap for port in vm.ports.specs()} - host.taps.keys()
        ):
            raise Violation(f"{vm.id} is {vm.phase} without {lost}")
        check_cards(world, vm)
    check_rules(world, vms.values())


def check_rules(world: World, vms: Iterable[Vm]) -> None:
    """C, once nothing is pending: the kernel has the groups and forwards that the log says, but of VMs that go away."""
    kept = [vm for vm in vms if vm.requested != "deleted" or vm.observed in ("running", "paused")]
    wanted = {
        vm.id: VmRules(tuple(sorted(group.group_id for group in vm.rules.groups)), vm.rules.forwards)
        for vm in kept
        if vm.rules.groups or vm.rules.forwards
    }
    if world.networks.rules != wanted:
        raise Violation(f"the log has the groups and forwards {wanted}, the kernel {world.networks.rules}")
    for vm in kept:
        if vm.rules.applied != vm.rules.revision and vm.requested != "deleted":
            raise Violation(f"the kernel has the rules of {vm.id}, and the log does not know")
