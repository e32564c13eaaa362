"""The law of the firewall as a function: whether a packet that begins something passes, and what decides it. Pure.

`docs/firewall.md` has the law. The kernel has it as rules of nft, made elsewhere by other code: tests compare the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Final, Literal

from msgspec import Struct

from aetherscale.actors.compute.model.commands import Forward
from aetherscale.actors.firewall.model.commands import Rule

Address = IPv4Address | IPv6Address

LAW: Final = (
    "A VM without groups takes anything from its own network and nothing from outside.",
    "A VM with groups takes exactly what its groups allow, wherever it comes from, its own network included.",
    "It sends anywhere, unless a group has a rule `out`: then exactly that.",
    "Answers to what was allowed pass.",
)
"""The four sentences, as `docs/firewall.md` has them."""


class Net(Struct, frozen=True):
    """A network: what the law has to know of it. Prefixes are texts; None for none of ours."""

    id: str
    name: str
    kind: Literal["isolated", "nat", "bridged"]
    ipv4: str | None = None
    ipv6: str | None = None


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


class Topology(Struct, frozen=True):
    """What the log has of all networks, groups and VMs at one moment, each by its id."""

    networks: Mapping[str, Net]
    groups: Mapping[str, Group]
    machines: Mapping[str, Machine]

    def machine_at(self, address: Address) -> Machine | None:
        """The VM that has an address in a network."""
        every = self.machines.values()
        return next((each for each in every if any(address in port.addresses for port in each.ports)), None)


class Packet(Struct, frozen=True):
    """What begins: a SYN, a first datagram, a question of ICMP. `number` is the port it is sent to, for TCP and UDP."""

    protocol: Literal["tcp", "udp", "icmp", "other"]
    """`other` is what only rules for any protocol are about."""
    number: int | None = None
    icmp: str | None = None
    """The type of an ICMP message, by name; None for one that has none."""


class Verdict(Struct, frozen=True, rename="kebab", omit_defaults=True):
    """Whether it passes, and what decides."""

    passes: bool
    because: str
    """The sentence: the law, or what stands in the way."""
    group: str | None = None
    """The name of the group whose rule allows it."""
    rule: Rule | None = None
    """That rule."""


HOST: Final = "host"
"""The host itself, as an end."""

End = Machine | Address | Literal["host"]
"""A VM, the host itself, or an address that is none of ours."""


def judge(world: Topology, sender: End, receiver: End, packet: Packet) -> Verdict:
    """Whether a packet that begins something gets from one to the other.

    Between VMs with several networks in common it passes where it does in one of them: the guest chooses.
    """
    if isinstance(receiver, Machine):
        return _to_machine(world, sender, receiver, packet)
    if not isinstance(sender, Machine):
        return Verdict(True, "No VM is concerned: the firewall of networks has no say in it.")
    if receiver == HOST:
        return _to_host(world, sender, packet)
    return _to_world(world, sender, receiver, packet)


def judge_sent(world: Topology, sender: Machine, receiver: Machine | None, address: Address, packet: Packet) -> Verdict:
    """Whether a VM may send to an address, which is that of `receiver` where a VM has it. Wherever that leads."""
    end: End = receiver or address
    return _sent(world, sender, end, Port("", (address,)), packet)


def judge_taken(
    world: Topology, receiver: Machine, network_id: str, sender: Machine | None, address: Address, packet: Packet
) -> Verdict:
    """Whether a VM takes what has come to its port in a network from an address, of the VM `sender` or from outside."""
    if sender is not None:
        network = world.networks[network_id]
        return _taken(world, receiver, sender, packet, inside=True, network=network, source=Port("", (address,)))
    port = next(each for each in receiver.ports if each.network_id == network_id)
    return _apart(world, receiver, port, address) or _entered(world, receiver, port, address, packet)


def forwarded(world: Topology, address: Address | None, packet: Packet) -> tuple[Machine, Forward] | None:
    """The VM that a port of the host leads to, where it is sent to that address of the host; None for any of them."""
    for machine in world.machines.values():
        for forward in machine.forwards:
            at = forward.address in ("", str(address)) or address is None
            if at and (forward.protocol, forward.host_port) == (packet.protocol, packet.number):
                return machine, forward
    return None


def _to_machine(world: Topology, sender: End, receiver: Machine, packet: Packet) -> Verdict:
    if not receiver.ports:
        return Verdict(False, f"The VM {receiver.name!r} is in no network: it has user-mode networking.")
    if isinstance(sender, Machine):
        return _between(world, sender, receiver, packet)
    refused = None
    for port in receiver.ports:
        if (apart := _apart(world, receiver, port, sender)) is not None:
            refused = refused or apart
            continue
        verdict = _entered(world, receiver, port, sender, packet)
        if verdict.passes:
            return verdict
        refused = verdict
    assert refused is not None, "a receiver has a port"
    return refused


def _apart(world: Topology, receiver: Machine, port: Port, sender: End) -> Verdict | None:
    """Why a port has nothing to do with what is no VM of its network; None where it has."""
    network = world.networks[port.network_id]
    if network.kind == "isolated":
        return Verdict(False, f"The network {network.name!r} is isolated: neither the host nor the world is in it.")
    if network.kind == "nat" and not isinstance(sender, (Machine, str)) and not _has_family(port, sender):
        return Verdict(False, f"The VM {receiver.name!r} has no IPv{sender.version} address.")
    return None


def _entered(world: Topology, receiver: Machine, port: Port, sender: End, packet: Packet) -> Verdict:
    """What a port takes of what is no VM of its network."""
    network = world.networks[port.network_id]
    # What is beside the host on a bridge of its own is in that network, and so is the host.
    return _taken(world, receiver, sender, packet, inside=network.kind == "bridged", network=network)


def _between(world: Topology, sender: Machine, receiver: Machine, packet: Packet) -> Verdict:
    among = {port.network_id for port in sender.ports} & {port.network_id for port in receiver.ports}
    if not among:
        return Verdict(False, f"The VMs {sender.name!r} and {receiver.name!r} have no network in common.")
    verdict = Verdict(False, "")
    for network_id in sorted(among):
        network = world.networks[network_id]
        for port in (each for each in receiver.ports if each.network_id == network_id):
            verdict = _sent(world, sender, receiver, port, packet)
            if verdict.passes:
                own = next(each for each in sender.ports if each.network_id == network_id)
                verdict = _taken(world, receiver, sender, packet, inside=True, network=network, source=own)
            if verdict.passes:
                return verdict
    return verdict


def _to_host(world: Topology, sender: Machine, packet: Packet) -> Verdict:
    if not sender.ports:
        return Verdict(True, f"The VM {sender.name!r} is in no network: user-mode networking sends as the host does.")
    kinds = {world.networks[port.network_id].kind for port in sender.ports}
    if kinds == {"isolated"}:
        return Verdict(False, "The host is not in an isolated network.")
    sent = _sent(world, sender, HOST, None, packet)
    if not sent.passes:
        return sent
    if "bridged" in kinds:
        return Verdict(True, "It reaches the bridge of the host, whose own firewall decides what the host takes.")
    if packet.protocol == "icmp" and packet.icmp == "echo-request":
        return Verdict(True, "Of the host, a VM reaches ping.")
    return Verdict(False, "Of the host, a VM reaches ping and nothing else.")


def _to_world(world: Topology, sender: Machine, receiver: Address, packet: Packet) -> Verdict:
    if not sender.ports:
        return Verdict(True, f"The VM {sender.name!r} is in no network: user-mode networking sends as the host does.")
    refused = Verdict(False, "An isolated network leads nowhere.")
    for port in sender.ports:
        network = world.networks[port.network_id]
        if network.kind == "isolated" or (network.kind == "nat" and _prefix(network, receiver) is None):
            continue
        if (holder := _owner(world, receiver)) is not None and holder.id != network.id:
            refused = Verdict(False, f"{receiver} is of the network {holder.name!r}, which {sender.name!r} is not in.")
            continue
        refused = _sent(world, sender, receiver, None, packet)
        if refused.passes:
            return refused
    return refused


def _prefix(network: Net, address: Address) -> str | None:
    """What a network has of the family of an address, without which its guests have none of it."""
    return network.ipv4 if address.version == 4 else network.ipv6


def _owner(world: Topology, address: Address) -> Net | None:
    """The network that has an address among its own."""
    for network in world.networks.values():
        prefix = _prefix(network, address)
        if prefix is not None and address in ip_network(prefix):
            return network
    return None


def _sent(world: Topology, sender: Machine, receiver: End, port: Port | None, packet: Packet) -> Verdict:
    """What the sender's own groups say. `port` is that of the receiver, where it is a VM."""
    rules = list(_rules(world, sender, "out"))
    if not rules:
        return Verdict(True, LAW[2])
    at = _addresses(port, receiver)
    for group, rule in rules:
        if _fits(world, rule, packet, receiver, at):
            return Verdict(True, f"The group {group.name!r} allows it.", group.name, rule)
    return Verdict(False, f"No rule `out` of the groups of {sender.name!r} allows it. {LAW[2]}")


def _taken(
    world: Topology,
    receiver: Machine,
    sender: End,
    packet: Packet,
    *,
    inside: bool,
    network: Net,
    source: Port | None = None,
) -> Verdict:
    """What the receiver takes. `source` is the port that a VM sends from; `inside`, whether it is of that network."""
    if not receiver.groups:
        if inside:
            return Verdict(True, f"{LAW[0]} Both are in {network.name!r}.")
        return Verdict(False, LAW[0])
    at = _addresses(source, sender)
    for group, rule in _rules(world, receiver, "in"):
        if _fits(world, rule, packet, sender, at):
            return Verdict(True, f"The group {group.name!r} allows it.", group.name, rule)
    return Verdict(False, f"No group of {receiver.name!r} allows it. {LAW[1]}")


def _rules(world: Topology, machine: Machine, direction: Literal["in", "out"]) -> Iterator[tuple[Group, Rule]]:
    for group_id in machine.groups:
        group = world.groups[group_id]
        for rule in group.rules:
            if rule.direction == direction:
                yield group, rule


def _fits(world: Topology, rule: Rule, packet: Packet, other: End, addresses: Sequence[Address]) -> bool:
    """Whether a rule is about a packet whose other end is this. Where that has addresses of both families, one is
    enough.
    """
    if rule.protocol not in ("any", packet.protocol):
        return False
    if rule.ports and (packet.number is None or not any(_has(text, packet.number) for text in rule.ports)):
        return False
    if rule.types and packet.icmp not in rule.types:
        return False
    if rule.group_id is not None:
        return isinstance(other, Machine) and rule.group_id in other.groups
    if rule.cidr is not None:
        prefix = ip_network(rule.cidr)
        return any(address in prefix for address in addresses)
    return True


def _has_family(port: Port, address: Address) -> bool:
    return any(own.version == address.version for own in port.addresses)


def _has(text: str, number: int) -> bool:
    first, _, last = text.partition("-")
    return int(first) <= number <= int(last or first)


def _addresses(port: Port | None, end: End) -> tuple[Address, ...]:
    """The addresses of an end, which has the port where it is a VM; none where that is not known."""
    if port is not None:
        return port.addresses
    return () if isinstance(end, (Machine, str)) else (end,)
