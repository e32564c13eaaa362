"""The law of the firewall as a function: whether a packet that begins something passes, and what decides it. Pure.

`docs/firewall.md` has the law. The kernel has it as rules of nft, made elsewhere by other code: tests compare the two.

Between two ends there may be several ways: both IP families, and each network that a VM is in. It passes where it does
on one of them, since the guest chooses. Each way is judged by itself: what the sender's groups say, by the address that
it sends to; and what the receiver's groups say, by the address that it sees as the source.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from ipaddress import ip_address
from itertools import product
from typing import Final, Literal

from msgspec import Struct
from msgspec.structs import replace

from aetherscale.actors.compute.model.commands import Forward
from aetherscale.actors.firewall.model.commands import ICMP_TYPES, Rule
from aetherscale.actors.firewall.model.matching import fits
from aetherscale.actors.firewall.model.topology import (
    HOST,
    Address,
    End,
    Group,
    Host,
    Machine,
    Net,
    Packet,
    Port,
    Topology,
    Verdict,
)

LAW: Final = (
    "A VM without groups takes anything from its own network and nothing from outside.",
    "A VM with groups takes exactly what its groups allow, wherever it comes from, its own network included.",
    "It sends anywhere, unless a group has a rule `out`: then exactly that.",
    "Answers to what was allowed pass.",
)
"""The four sentences, as `docs/firewall.md` has them."""

_PING: Final = "echo-request"
_VERSIONS: Final = (4, 6)
_NAMES: Final = 53
"""The port that a resolver is asked at."""
_NO_FLOW: Final = "Of ICMP, what neither is ping nor belongs to a flow does not leave a network by the host."


class _Way(Struct, frozen=True):
    """A way from one end to the other, in one IP family. None for an address that the log does not know."""

    version: int
    source: Address | None = None
    """What the receiver sees as the source."""
    target: Address | None = None
    """What the sender sends to."""
    inside: Net | None = None
    """The network that both are in; None where one is outside of the other's."""
    translated: bool = False
    """Whether the host gives it another source address, as it does with what begins something alone."""

    def has(self, packet: Packet) -> bool:
        """Whether there is such a packet in this IP family."""
        return packet.icmp is None or self.version == 6 or ICMP_TYPES[packet.icmp][0] is not None


Ways = Iterator[_Way | Verdict]
"""The ways there are, and what stands in those that there are not."""


def judge(world: Topology, sender: End, receiver: End, packet: Packet) -> Verdict:
    """Whether a packet that begins something gets from one to the other. No forward leads it: see `led`."""
    if isinstance(receiver, Machine) and not receiver.ports:
        return Verdict(False, f"The VM {receiver.name!r} is in no network: it has user-mode networking.")
    if isinstance(sender, Machine) and not sender.ports:
        verdict = judge(world, HOST, receiver, packet)
        if isinstance(receiver, Machine) or not verdict.passes:
            return verdict
        return Verdict(True, f"The VM {sender.name!r} is in no network: user-mode networking sends as the host does.")
    if isinstance(receiver, Machine):
        ways = (
            _between(world, sender, receiver) if isinstance(sender, Machine) else _into(world, sender, receiver, packet)
        )
        return _judged(world, sender, receiver, (packet, packet), ways)
    if not isinstance(sender, Machine):
        return _beside(world, receiver)
    if not isinstance(receiver, Host) and (network := _resolved(world, sender, receiver, packet)) is not None:
        return Verdict(True, f"Names are always asked of the resolver of the network, here {network.name!r}.")
    ways = _to_host(world, sender, receiver) if isinstance(receiver, Host) else _to_world(world, sender, receiver)
    verdict = _judged(world, sender, receiver, (packet, packet), ways)
    if not verdict.passes or not isinstance(receiver, Host):
        return verdict
    pings = packet.icmp == _PING
    return Verdict(pings, f"Of the host, a VM reaches ping{'.' if pings else ' and nothing else.'}")


def judge_sent(world: Topology, sender: Machine, receiver: Machine | None, address: Address, packet: Packet) -> Verdict:
    """Whether a VM may send to an address, which is that of `receiver` where a VM has it. Wherever that leads."""
    return _sent(world, sender, packet, receiver, _Way(address.version, target=address))


def judge_taken(
    world: Topology, receiver: Machine, network_id: str, sender: Machine | None, address: Address, packet: Packet
) -> Verdict:
    """Whether a VM takes what has come to its port in a network from an address, of the VM `sender` or from outside."""
    if sender is not None:
        way = _Way(address.version, address, inside=world.networks[network_id])
        return _taken(world, receiver, packet, sender, way)
    there = replace(receiver, ports=tuple(port for port in receiver.ports if port.network_id == network_id))
    origin = Host(address) if address in world.networks[network_id].routers else address
    return _judged(world, origin, there, (packet, packet), _into(world, origin, there, packet))


def _beside(world: Topology, receiver: Host | Address) -> Verdict:
    """Neither end is a VM. An address of a network of ours is reached from within that alone."""
    network = world.owner(receiver) if not isinstance(receiver, Host) else None
    if network is None or network.is_of_host:
        return Verdict(True, "No VM is concerned: the firewall of networks has no say in it.")
    whose = "it is the resolver, which only its VMs reach" if receiver in network.resolvers else "no VM has it"
    return Verdict(False, f"{receiver} is of the network {network.name!r}: {whose}.")


def _resolved(world: Topology, sender: Machine, receiver: Address, packet: Packet) -> Net | None:
    """The network whose resolver is asked for a name, if that is what it is."""
    if packet.protocol == "icmp" or packet.number != _NAMES:
        return None
    networks = (world.networks[port.network_id] for port in sender.ports)
    return next((network for network in networks if receiver in network.resolvers), None)


def led(world: Topology, sender: End, receiver: Host, packet: Packet, to: tuple[Machine, Forward]) -> Verdict:
    """Whether what is sent to a port of the host gets to where a forward leads it.

    It leads to the addresses of the VM's first port in a network of the kind nat.
    """
    machine, forward = to
    if isinstance(sender, Machine) and not sender.ports:
        sender = HOST
    port = next((each for each in machine.ports if world.networks[each.network_id].kind == "nat"), None)
    if port is None:
        return Verdict(False, f"The VM {machine.name!r} is in no network that the host routes.")
    asked = receiver.address or (ip_address(forward.address) if forward.address else None)
    ways = _led(world, sender, asked, port)
    return _judged(world, sender, machine, (packet, replace(packet, number=forward.guest_port)), ways)


# --- the ways ---


def _between(world: Topology, sender: Machine, receiver: Machine) -> Ways:
    """Within the networks that both are in. Otherwise by way of the host, from one network of others or to one."""
    for own in sender.ports:
        for port in receiver.ports:
            one, other = world.networks[own.network_id], world.networks[port.network_id]
            routed = "isolated" not in (one.kind, other.kind) and (one.is_of_host or other.is_of_host)
            for version in _VERSIONS:
                for source, target in product(_of(own, one, version), _of(port, other, version)):
                    if one.id == other.id:
                        yield _Way(version, source, target, one)
                    elif routed:
                        # The host sends it by an address of its own, where it comes from a network of the kind nat.
                        yield _Way(version, None, target, translated=one.kind == "nat")
    if not {port.network_id for port in sender.ports} & {port.network_id for port in receiver.ports}:
        yield Verdict(False, f"The VMs {sender.name!r} and {receiver.name!r} have no network in common.")


def _of(port: Port, network: Net, version: int) -> Sequence[Address | None]:
    """The addresses of a port in an IP family; on a bridge of the host it has one that is not known."""
    own = [each for each in port.addresses if each.version == version]
    return own or [None] if network.is_of_host else own


def _families(address: Address | None) -> Sequence[int]:
    """The IP family of an address; both where it is not known."""
    return _VERSIONS if address is None else (address.version,)


def _into(world: Topology, sender: Host | Address, receiver: Machine, packet: Packet) -> Ways:
    """From the host, and from outside."""
    given = sender.address if isinstance(sender, Host) else sender
    for port in receiver.ports:
        network = world.networks[port.network_id]
        if network.kind == "isolated":
            yield Verdict(False, f"The network {network.name!r} is isolated: neither the host nor the world is in it.")
        elif network.is_of_host:
            # What is beside the host on a bridge of its own is in that network, and so is the host. That does not send
            # there by an address that it has in a network of ours.
            routed = isinstance(sender, Host) and given is not None and world.routed(given) is not None
            hidden = routed and packet.begins
            yield from (_Way(each, None if hidden else given, None, network) for each in _families(given))
        elif isinstance(sender, Host):
            for version in _families(given):
                for target in _of(port, network, version):
                    yield _Way(version, given or network.router(version), target)
        else:
            yield from _entering(world, sender, receiver, port)


def _entering(world: Topology, source: Address, receiver: Machine, port: Port) -> Ways:
    """From outside to a port in a network that the host routes."""
    targets = [target for target in port.addresses if target.version == source.version]
    if (owner := world.routed(source)) is not None:
        yield Verdict(False, f"{source} is of the network {owner.name!r}: from elsewhere it does not enter.")
    elif not targets:
        yield _without(world, receiver, source.version)
    else:
        yield from (_Way(source.version, source, target) for target in targets)


def _without(world: Topology, machine: Machine, version: int) -> Verdict:
    """That it has no address of an IP family, or was not asked about by that."""
    whole = world.machines[machine.id].ports
    if any(address.version == version for port in whole for address in port.addresses):
        return Verdict(False, "The two addresses are not of one IP family.")
    return Verdict(False, f"The VM {machine.name!r} has no IPv{version} address.")


def _to_host(world: Topology, sender: Machine, receiver: Host) -> Ways:
    for port in sender.ports:
        network = world.networks[port.network_id]
        if network.kind == "isolated":
            yield Verdict(False, "The host is not in an isolated network.")
        elif network.is_of_host:
            yield from (_Way(each, None, receiver.address) for each in _families(receiver.address))
        else:
            for source, target in _asking(network, port, receiver.address):
                yield _Way(source.version, source, target)


def _asking(network: Net, port: Port, asked: Address | None) -> Iterator[tuple[Address, Address | None]]:
    """What a port asks the host from, and by which address: that of its router, unless another one is asked."""
    for source in port.addresses:
        if asked is None or asked.version == source.version:
            yield source, asked or network.router(source.version)


def _to_world(world: Topology, sender: Machine, receiver: Address) -> Ways:
    for port in sender.ports:
        network, owner = world.networks[port.network_id], world.owner(receiver)
        if network.kind == "isolated":
            yield Verdict(False, "An isolated network leads nowhere.")
        elif network.is_of_host:
            yield _Way(receiver.version, None, receiver)
        elif not any(source.version == receiver.version for source in port.addresses):
            yield _without(world, sender, receiver.version)
        elif owner is not None and owner.id != network.id:
            yield Verdict(False, f"{receiver} is of the network {owner.name!r}, which {sender.name!r} is not in.")
        else:
            yield _Way(receiver.version, None, receiver, translated=True)


def _led(world: Topology, sender: End, asked: Address | None, port: Port) -> Ways:
    """To a port that a forward leads to; `asked` is the address of the host, where it is known."""
    led_to = world.networks[port.network_id]
    targets = [each for each in port.addresses if asked is None or each.version == asked.version]
    if not targets:
        yield Verdict(False, "The forward leads to no address of that IP family.")
    elif isinstance(sender, Host):
        yield from (_Way(target.version, sender.address or asked) for target in targets)
    elif not isinstance(sender, Machine):
        if (owner := world.routed(sender)) is not None:
            yield Verdict(False, f"{sender} is of the network {owner.name!r}: from elsewhere it does not enter.")
        elif all(target.version != sender.version for target in targets):
            yield Verdict(False, f"Asked there, the forward leads to no address of IPv{sender.version}.")
        else:
            yield _Way(sender.version, sender, asked)
    else:
        for own in sender.ports:
            network = world.networks[own.network_id]
            if network.kind == "isolated":
                yield Verdict(False, "The host is not in an isolated network.")
            elif network.is_of_host:
                yield from (_Way(target.version, None, asked) for target in targets)
            else:
                for source, target in _asking(network, own, asked):
                    if any(each.version == source.version for each in targets):
                        # Its answers would not pass the host otherwise.
                        seen = led_to.router(source.version) if network.id == led_to.id else source
                        yield _Way(source.version, seen, target)


# --- the judgement of a way ---


def _judged(
    world: Topology, sender: End, receiver: End, packets: tuple[Packet, Packet], ways: Iterable[_Way | Verdict]
) -> Verdict:
    """That of the first way on which it passes. Otherwise that of one that there is, before those that there are not.

    `packets` are what is sent and what arrives, which a forward has changed.
    """
    closed: Verdict | None = None
    missing: Verdict | None = None
    for way in ways:
        if isinstance(way, Verdict):
            missing = missing or way
        elif way.translated and not packets[0].begins:
            missing = missing or Verdict(False, _NO_FLOW)
        elif way.has(packets[0]):
            verdict = _on(world, sender, receiver, packets, way)
            if verdict.passes:
                return verdict
            closed = closed or verdict
    return closed or missing or Verdict(False, "The two have no IP family in common that has such a packet.")


def _on(world: Topology, sender: End, receiver: End, packets: tuple[Packet, Packet], way: _Way) -> Verdict:
    verdict = Verdict(True, LAW[2])
    if isinstance(sender, Machine):
        other = receiver if way.inside is not None and isinstance(receiver, Machine) else None
        verdict = _sent(world, sender, packets[0], other, way)
    if verdict.passes and isinstance(receiver, Machine):
        other = sender if way.inside is not None and isinstance(sender, Machine) else None
        verdict = _taken(world, receiver, packets[1], other, way)
    return verdict


def _sent(world: Topology, sender: Machine, packet: Packet, other: Machine | None, way: _Way) -> Verdict:
    """What the sender's own groups say. `other` is who bears groups that rules may name: a VM of the same network."""
    rules = list(_rules(world, sender, "out"))
    if not rules:
        return Verdict(True, LAW[2])
    for group, rule in rules:
        if fits(rule, packet, other, way.target, way.version):
            return Verdict(True, f"The group {group.name!r} allows it.", group.name, rule)
    return Verdict(False, f"No rule `out` of the groups of {sender.name!r} allows it. {LAW[2]}")


def _taken(world: Topology, receiver: Machine, packet: Packet, other: Machine | None, way: _Way) -> Verdict:
    """What the receiver takes; `other` as of `_sent`."""
    if not receiver.groups:
        # The public bridge is no VM's own network: all that is there is outside.
        if way.inside is not None and way.inside.kind != "public":
            return Verdict(True, f"{LAW[0]} Both are in {way.inside.name!r}.")
        return Verdict(False, LAW[0])
    for group, rule in _rules(world, receiver, "in"):
        if fits(rule, packet, other, way.source, way.version):
            return Verdict(True, f"The group {group.name!r} allows it.", group.name, rule)
    return Verdict(False, f"No group of {receiver.name!r} allows it. {LAW[1]}")


def _rules(world: Topology, machine: Machine, direction: Literal["in", "out"]) -> Iterator[tuple[Group, Rule]]:
    for group_id in machine.groups:
        group = world.groups[group_id]
        for rule in group.rules:
            if rule.direction == direction:
                yield group, rule
