"""What the log has of networks, groups and VMs at one moment, as far as the law of the firewall is about it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Final, Literal

from msgspec import Struct
from msgspec.structs import replace

from aetherscale.actors.compute.model.commands import Forward
from aetherscale.actors.firewall.model.commands import Rule

Address = IPv4Address | IPv6Address
_ALL: Final = IPv4Address("255.255.255.255")


class Net(Struct, frozen=True):
    """A network: what the law has to know of it. Prefixes are texts; None for none of ours."""

    id: str
    name: str
    kind: Literal["isolated", "nat", "bridged", "public"]
    ipv4: str | None = None
    ipv6: str | None = None
    routers: tuple[Address, ...] = ()
    """The addresses that the host has there."""
    resolvers: tuple[Address, ...] = ()
    """The addresses that names are asked of."""

    @property
    def is_of_host(self) -> bool:
        """Whether it is a bridge of the host's own, where others give out addresses."""
        return self.kind in ("bridged", "public")

    def has(self, address: Address) -> bool:
        """Whether an address is among its own."""
        prefix = self.ipv4 if address.version == 4 else self.ipv6
        return prefix is not None and address in ip_network(prefix)

    def router(self, version: int) -> Address | None:
        """The address of an IP family that the host has there."""
        return next((each for each in self.routers if each.version == version), None)


class Group(Struct, frozen=True):
    """A group and its rules."""

    id: str
    name: str
    rules: tuple[Rule, ...] = ()


class Port(Struct, frozen=True):
    """A port of a VM: the network that it is in, and its addresses there; none where others give them out."""

    network_id: str
    addresses: tuple[Address, ...] = ()


class Machine(Struct, frozen=True):
    """A VM: its ports, the ids of its groups, and its forwards."""

    id: str
    name: str
    ports: tuple[Port, ...] = ()
    groups: tuple[str, ...] = ()
    forwards: tuple[Forward, ...] = ()
    on_switches: bool = False
    """Whether it has ports on VDE switches, so that without others it has no user-mode networking."""
    at_rest: str = ""
    """The word for its phase, where its guest takes nothing in that; "" where it does."""

    def by(self, address: Address) -> Machine:
        """The VM by one of its addresses: with the port that has it, and no other."""
        ports = (Port(port.network_id, (address,)) for port in self.ports if address in port.addresses)
        return replace(self, ports=tuple(ports))


class Host(Struct, frozen=True):
    """The host itself, by one of its addresses, or by whichever it has."""

    address: Address | None = None


HOST: Final = Host()

End = Machine | Host | Address
"""A VM, the host itself, or an address that is none of ours."""


class Topology(Struct, frozen=True):
    """What the log has of all networks, groups and VMs at one moment, each by its id."""

    networks: Mapping[str, Net]
    groups: Mapping[str, Group]
    machines: Mapping[str, Machine]
    own: frozenset[Address] = frozenset()
    """Addresses that the host is known to have besides."""

    def machine_at(self, address: Address) -> Machine | None:
        """The VM that has an address in a network, by that address."""
        every = self.machines.values()
        found = next((each for each in every if any(address in port.addresses for port in each.ports)), None)
        return found.by(address) if found is not None else None

    def is_of_host(self, address: Address) -> bool:
        """Whether an address is known for one of the host's, as that of a router, or as that of a forward."""
        return (
            address in self.own
            or any(address in network.routers for network in self.networks.values())
            or any(
                forward.address == str(address) for machine in self.machines.values() for forward in machine.forwards
            )
        )

    def is_broadcast(self, address: Address) -> bool:
        """Whether an address is that of all on a link, or of a whole prefix of a network."""
        if address == _ALL:
            return True
        prefixes = [ip_network(network.ipv4) for network in self.networks.values() if network.ipv4 is not None]
        return any(address in (each.broadcast_address, each.network_address) for each in prefixes)

    def owner(self, address: Address) -> Net | None:
        """The network that has an address among its own."""
        return next((each for each in self.networks.values() if each.has(address)), None)

    def routed(self, address: Address) -> Net | None:
        """The network of the kind nat that an address is of."""
        return next((each for each in self.networks.values() if each.kind == "nat" and each.has(address)), None)


class Packet(Struct, frozen=True):
    """What begins: a SYN, a first datagram, a question of ICMP. `number` is the port it is sent to, for TCP and UDP."""

    protocol: Literal["tcp", "udp", "icmp", "other"]
    """`other` is what only rules for any protocol are about."""
    number: int | None = None
    icmp: str | None = None
    """The type of an ICMP message, by name; None for one that has none."""

    @property
    def begins(self) -> bool:
        """Whether conntrack takes it for the first of a flow; another message of ICMP is one of a flow or of none."""
        return self.icmp in (None, "echo-request")


def forwarded(world: Topology, receiver: Host, packet: Packet) -> tuple[Machine, Forward] | None:
    """The VM that a port of the host leads to, and the forward: one at the address comes before one of all."""
    every = [(machine, forward) for machine in world.machines.values() for forward in machine.forwards]
    leads = [each for each in every if (each[1].protocol, each[1].host_port) == (packet.protocol, packet.number)]
    at = str(receiver.address) if receiver.address is not None else None
    fitting = [each for each in leads if each[1].address in ("", at) or at is None]
    return max(fitting, key=lambda each: each[1].address == at, default=None)


class Verdict(Struct, frozen=True, rename="kebab", omit_defaults=True):
    """Whether it passes, and what decides."""

    passes: bool
    because: str
    """The sentence: the law, or what stands in the way."""
    group: str | None = None
    """The name of the group whose rule allows it."""
    rule: Rule | None = None
    """That rule."""
