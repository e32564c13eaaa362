"""What the network component offers to others: decisions about addresses, and the ports of VMs on the host."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Final, Protocol

from aetherscale.actors.compute.model.commands import NO_RULES, PortSpec, VmRules
from aetherscale.actors.firewall.model.commands import Rule
from aetherscale.actors.network.model.addresses import (
    Prefix,
    ipv6_of,
    mac_of,
    next_ipv4,
    overlaps,
    parse_address,
    parse_allowed,
)
from aetherscale.actors.network.model.devices import tap_name
from aetherscale.actors.network.model.effects import NetworkKind
from aetherscale.actors.network.model.presentation import BRIDGE as BRIDGE
from aetherscale.actors.network.model.views import Dropped, NetworkView, Obstacle, Traffic
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.names import derive_id

HOST_NETWORKS: Final = "host-networks"
"""The name of `HostNetworks`."""
VM_PORTS: Final = "vm-ports"
"""The name of `VmPorts`."""
FIREWALL: Final = "firewall"
"""The name of `Firewall`."""

PUBLIC: Final = "public"
"""The name of the network that is made for the public bridge, where none has been."""
ADDRESSES: Final = "addresses"
"""The field of the addresses that a caller chooses."""

HostRoutes = Mapping[Prefix, str]
"""The prefixes that the host has routes to, each with the device that it leads to."""


Lend = Callable[[str, str], int | None]
"""A copy of the descriptor that the process of a VM has for its port with this tap: the caller closes it.

None where there is no process, or where this node may not look into it.
"""


class HostNetworks(Protocol):
    """What a decision about networks has to know of the host."""

    def require(self, kind: NetworkKind = "isolated") -> None:
        """Raises `Refused` (not implemented) where this node may not make networks of the kind, with what to do."""
        ...

    def public_bridge(self) -> str:
        """The bridge of the host that leads to public addresses. Raises `Refused` (conflict) where there is none yet,
        with what makes it.
        """
        ...

    def is_of_host(self, address: str) -> bool:
        """Whether an address is the host's own, or that of a router of it."""
        ...

    def has_address(self, address: str) -> bool:
        """Whether an address is the host's own."""
        ...

    def routes(self) -> HostRoutes:
        """The routes of the host now, but for its default routes and those of our own bridges."""
        ...

    async def obstacles(self) -> Sequence[Obstacle]:
        """The filters of others that drop what our rules let pass, as the host has them now."""
        ...


class DropsWatched(Protocol):
    """What is dropped while somebody watches. It ends with `close`, or where the host tells no more."""

    def __aiter__(self) -> AsyncIterator[Dropped]:
        """Each, as it happens."""
        ...

    async def close(self) -> None:
        """Watch no more. Idempotent."""
        ...


class VmPorts(Protocol):
    """The ports of VMs on the host. Every method may be repeated; each raises `Fault` for what the host refuses."""

    async def restore(self, ports: Mapping[str, Sequence[PortSpec]]) -> None:
        """Make the rules those of these VMs (by id) and of no other, and remove what is left of others.

        Called at a start of the node before anything else is asked for, and on the timer.
        """
        ...

    async def reconnect(self) -> None:
        """Make the taps anew that were removed while no node looked, for the processes that lend their descriptors.

        Called when the processes of VMs were found again: at a start of the node, and on the timer.
        """
        ...

    async def open(self, vm_id: str, ports: Sequence[PortSpec], rules: VmRules | None = NO_RULES) -> list[int]:
        """Ensure that the VM has these ports, beside those that it has: their networks, their rules, then their taps; a
        descriptor for each, which the caller closes.

        The VM's rules are these from then on, and a run of it begins: what was kept of flows of an earlier one ends.
        With None it runs, and has the rules that it has.
        """
        ...

    async def close_ports(self, vm_id: str, ports: Sequence[PortSpec]) -> None:
        """Ensure that nothing of these ports of the VM is left: the taps first, the rules last."""
        ...

    def dropped(self, vm_id: str) -> Mapping[str, Mapping[str, int]]:
        """The packets of a VM's ports that were dropped since its rules were made, by the tap and by the kind."""
        ...

    def traffic(self, vm_id: str) -> Mapping[str, Traffic]:
        """What went through a VM's ports since their taps were made, by the tap; without those that are not there."""
        ...

    def leased(self, vm_id: str) -> Mapping[str, Sequence[str]]:
        """The addresses that were leased to a VM's ports in public networks, by the tap."""
        ...

    def cut(self, vm_id: str) -> Sequence[str]:
        """The taps of a running VM's ports that lead nowhere: its guest has no way into their networks.

        Another program has removed the bridge, which ends when there is one again; or the tap, so that the process has
        the descriptor of a device that is no more. Where that was not lent, only its next process is connected again.
        """
        ...

    def borrow_from(self, lend: Lend) -> None:
        """Whom to ask for the descriptor of a tap that was removed while the VM runs."""
        ...


class Firewall(Protocol):
    """Groups, and which VMs bear them, in the kernel. Every method may be repeated; each raises `Fault`.

    What a call says is true in the kernel when it returns. Where nft refuses it, all is as it was before.
    """

    def restore_groups(self, groups: Mapping[str, Sequence[Rule]]) -> None:
        """These are the groups, by their ids, and there is no other. `VmPorts.restore` has the kernel know."""
        ...

    def restore_rules(self, rules: Mapping[str, VmRules]) -> None:
        """These VMs, by their ids, have these rules, and no other has any. `VmPorts.restore` has the kernel know."""
        ...

    async def apply_group(self, group_id: str, rules: Sequence[Rule], *, keep_established: bool = False) -> None:
        """Let the group have these rules. Flows that they no longer allow end, unless they are kept."""
        ...

    async def remove_group(self, group_id: str) -> None:
        """Ensure that nothing is left of a group, which no VM bears."""
        ...

    async def apply_rules(self, vm_id: str, rules: VmRules, *, keep_established: bool = False) -> None:
        """Let the VM have these rules, whether it runs or not; those of its ports stay."""
        ...

    async def watch_drops(self) -> DropsWatched:
        """Begin to watch what is dropped of all ports, but for a flood. Raises `Refused` where the host does not tell.

        The caller closes it. While nobody watches, nothing is looked at.
        """
        ...


class NoPorts:
    """The `VmPorts` of a host on which no VM has any."""

    async def restore(self, ports: Mapping[str, Sequence[PortSpec]]) -> None:
        """Nothing is there."""
        assert not any(ports.values()), "a VM has ports, and this host has no networks"

    async def reconnect(self) -> None:
        """There is none."""

    async def open(self, vm_id: str, ports: Sequence[PortSpec], rules: VmRules | None = NO_RULES) -> list[int]:
        """No descriptors."""
        assert not ports, f"{vm_id} has ports, and this host has no networks"
        return []

    async def close_ports(self, vm_id: str, ports: Sequence[PortSpec]) -> None:
        """Nothing is there."""

    def dropped(self, vm_id: str) -> Mapping[str, Mapping[str, int]]:
        """None."""
        return {}

    def traffic(self, vm_id: str) -> Mapping[str, Traffic]:
        """None."""
        return {}

    def leased(self, vm_id: str) -> Mapping[str, Sequence[str]]:
        """None."""
        return {}

    def cut(self, vm_id: str) -> Sequence[str]:
        """None."""
        return ()

    def borrow_from(self, lend: Lend) -> None:
        """Nothing is ever asked for."""


class NoFirewall:
    """The `Firewall` of a host on which no VM has a port."""

    def restore_groups(self, groups: Mapping[str, Sequence[Rule]]) -> None:
        """None is borne."""

    def restore_rules(self, rules: Mapping[str, VmRules]) -> None:
        """Nothing is there."""
        assert not rules, "a VM has groups or forwards, and this host has no networks"

    async def apply_group(self, group_id: str, rules: Sequence[Rule], *, keep_established: bool = False) -> None:
        """None is borne."""

    async def remove_group(self, group_id: str) -> None:
        """None is borne."""

    async def apply_rules(self, vm_id: str, rules: VmRules, *, keep_established: bool = False) -> None:
        """Nothing is there."""
        assert rules == NO_RULES, f"{vm_id} has groups or forwards, and this host has no networks"

    async def watch_drops(self) -> DropsWatched:
        """Nothing is dropped."""
        raise Refused(Reason.NOT_IMPLEMENTED, "this host has no networks")


def allowed_address(text: str) -> str:
    """An address or a prefix that a VM may send from besides its own, in its canonical form. Raises `Refused`."""
    return str(parse_allowed(text, field="allow-addresses"))


def chosen_address(text: str) -> str:
    """An address that a caller has chosen for a VM, in its canonical form. Raises `Refused`."""
    return str(parse_address(text, field=ADDRESSES))


def allowed_in(network: NetworkView, allowed: Sequence[str]) -> list[str]:
    """Those of some prefixes that a port in a network may send from: none that has any of the network's own addresses.

    They are the router's, the resolver's and other ports', of which none may be taken.
    """
    own = [ip_network(prefix) for prefix in (network.ipv4, network.ipv6) if prefix]
    return [each for each in allowed if overlaps(ip_network(each), own) is None]


def port_in(
    network: NetworkView,
    vm_id: str,
    hostname: str,
    index: int,
    is_taken: Callable[[str], bool],
    allowed: Sequence[str] = (),
    given: Sequence[str] = (),
) -> PortSpec:
    """The port number `index` (from 0) of a VM, in this network. `is_taken` tells whether another port has an
    address. `given` are addresses that a caller has chosen, at most one of each family, in a network that gives none.

    Raises `Refused` (conflict) where the network has no address left, or a given one is taken.
    """
    ipv4, ipv6 = (_given(given, version, network, is_taken) for version in (4, 6))
    mac = mac_of(derive_id("port", vm_id, str(index)))
    return PortSpec(
        network_id=network.id,
        network=network.name,
        hostname=hostname,
        tap=tap_name(vm_id, index),
        mac=mac,
        ipv4=str(next_ipv4(IPv4Network(network.ipv4), is_taken)) if network.ipv4 else ipv4,
        ipv6=str(ipv6_of(IPv6Network(network.ipv6), mac)) if network.ipv6 else ipv6,
        allowed=allowed_in(network, allowed),
    )


def mac_on_switch(vm_id: str, path: str) -> str:
    """The MAC address of a VM's card on the VDE switch at this path, the same for ever."""
    return mac_of(derive_id("switch", vm_id, path))


def _given(given: Sequence[str], version: int, network: NetworkView, is_taken: Callable[[str], bool]) -> str | None:
    """The address of a family that a caller has chosen; None for none. Raises `Refused` (conflict)."""
    address = next((each for each in given if ip_address(each).version == version), None)
    if address is not None and is_taken(address):
        raise Refused(
            Reason.CONFLICT,
            f"another VM has the address {address} in the network {network.name!r}",
            field=ADDRESSES,
            remedy="take another one, or leave it out for DHCP",
        )
    return address
