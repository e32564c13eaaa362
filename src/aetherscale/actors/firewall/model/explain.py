"""Whether something gets from one end to another, and why: from the views of a node, or of a log. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import ip_address
from typing import Final, Literal

from msgspec import Struct
from msgspec.structs import replace

from aetherscale.actors.compute.model.views import VmView
from aetherscale.actors.firewall.model import state
from aetherscale.actors.firewall.model.commands import ICMP_TYPES
from aetherscale.actors.firewall.model.judge import judge, led
from aetherscale.actors.firewall.model.rules import short
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
    forwarded,
)
from aetherscale.actors.network.model.views import NetworkView, Obstacle, Way
from aetherscale.kernel.errors import Reason, Refused, Task
from aetherscale.kernel.names import ambiguous, begins_id, too_short
from aetherscale.kernel.rules import shown

KNOWN_ADDRESSES: Final = 65536
"""How many addresses are kept as they were understood: a VM keeps its own, and reading them took most of the time."""

_LAST_PORT: Final = 65535
_PING: Final = "echo-request"
_HOST: Final = "host"
_RUNS: Final = ("booting", "running", "ready", "stopping")


class Explanation(Struct, frozen=True, rename="kebab"):
    """Whether a packet that begins something passes, and why."""

    passes: bool
    """Whether it passes."""
    because: str
    """What decides: a sentence of the law, a group, or what stands in the way."""
    group: str | None
    """The name of the group that allows it; null where none does."""
    rule: str | None
    """The rule of that group, in short."""
    source: str
    """From where, as it was understood: a VM by its name, `host`, or an address."""
    target: str
    """To where."""
    packet: str
    """What, as `tcp/80` or `icmp/echo-request`."""
    forward: str | None
    """The forward that leads it to the target, as `8080:80/tcp`; null for none."""
    way: Way | None
    """How it gets there: `bridge`, within a bridge; by the host, `out` of a network or `in` to one; `led` by a forward,
    back into the network that it is from; from the `host` itself into one, or `host-led` there; null for none of these.
    """


def topology(networks: Iterable[NetworkView], groups: Iterable[state.Group], vms: Iterable[VmView]) -> Topology:
    """The part of these that the law is about, of what is not deleted. The rules of a group are those that the kernel
    has.
    """
    return Topology(
        {each.id: _net(each) for each in networks},
        {each.id: Group(each.id, each.name, each.in_force) for each in groups},
        {each.id: _machine(each) for each in vms if each.phase != "deleted"},
    )


def explain(world: Topology, source: str, target: str, what: str) -> Explanation:
    """Whether `what` gets from one end to the other: VMs by name or id, `host`, or addresses.

    Raises `Refused`: bad request where one of the three is not understood, not found where there is no such VM,
    conflict for one that is on VDE switches alone.
    """
    packet = _packet(what)
    sender, receiver = _end(world, source, "from"), _end(world, target, "to")
    _require_known(receiver, "to")
    _require_known(sender, "from")
    doubt = _doubt(world, sender, receiver, packet)
    asked = _asked(world, sender, receiver)
    leads = forwarded(world, asked, packet) if asked is not None else None
    passed = packet
    if asked is not None and leads is not None:
        verdict = led(world, sender, asked, packet, leads)
        receiver, passed = leads[0], replace(packet, number=leads[1].guest_port)
    elif isinstance(sender, Machine) and isinstance(receiver, Machine) and sender.id == receiver.id:
        verdict = Verdict(True, "What a VM sends to itself does not leave it.")
    elif isinstance(receiver, Machine) and (network := _resolves(world, sender)) is not None:
        verdict = Verdict(False, f"{sender} is the resolver of the network {network.name!r}, which only answers VMs.")
    else:
        verdict = judge(world, sender, receiver, packet)
    return Explanation(
        passes=verdict.passes,
        because=f"{verdict.because}{doubt}{_resting(sender, receiver) if verdict.passes else ''}",
        group=verdict.group,
        rule=short(verdict.rule) if verdict.rule is not None else None,
        source=_name(sender),
        target=_name(receiver),
        packet=f"{passed.protocol}/{passed.icmp if passed.number is None else passed.number}",
        forward=f"{leads[1].host_port}:{leads[1].guest_port}/{packet.protocol}" if leads is not None else None,
        way=_way(world, sender, receiver, is_led=leads is not None),
    )


def _require_known(end: End, field: Literal["from", "to"]) -> None:
    if isinstance(end, Machine) and not end.ports and end.on_switches:
        raise Refused(
            Reason.CONFLICT,
            f"the VM {end.name!r} is on VDE switches alone: what passes there is not filtered, and not known here",
            field=field,
        )


def addresses_in(*ends: str) -> list[Address]:
    """Those of the ends that are addresses."""
    return [ip_address(end) for end in ends if _is_address(end)]


def hindering(found: Explanation, obstacles: Iterable[Obstacle]) -> list[Obstacle]:
    """Those that may drop it, though it passes our rules; and those by which our rules see another packet."""
    versions = {ip_address(end).version for end in (found.source, found.target) if _is_address(end)} or {4, 6}
    return [
        each
        for each in obstacles
        if (found.passes or each.ways == ("led",)) and found.way in each.ways and not versions.isdisjoint(each.families)
    ]


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _way(world: Topology, sender: End, receiver: End, *, is_led: bool) -> Way | None:
    if isinstance(receiver, Host):
        return None
    if isinstance(sender, Machine) and isinstance(receiver, Machine):
        among = {port.network_id for port in sender.ports} & {port.network_id for port in receiver.ports}
        return ("led" if is_led else "bridge") if among else "out"
    machine = sender if isinstance(sender, Machine) else receiver
    networks = [world.networks[port.network_id] for port in machine.ports] if isinstance(machine, Machine) else []
    if any(network.kind == "nat" for network in networks):
        if isinstance(sender, Host):
            return "host-led" if is_led else "host"
        return "out" if machine is sender else "in"
    if isinstance(sender, Host):
        return None
    return "bridge" if any(network.is_of_host for network in networks) else None


def _net(network: NetworkView) -> Net:
    routers, resolvers = (tuple(map(ip_address, each)) for each in (network.router, network.resolver))
    return Net(network.id, network.name, network.kind, network.ipv4, network.ipv6, routers, resolvers)


@lru_cache(KNOWN_ADDRESSES)
def _address(text: str) -> Address:
    return ip_address(text)


def _machine(vm: VmView) -> Machine:
    # One that is being removed is on its way out of the network.
    staying = (port for port in vm.ports if port.card != "unplugging")
    ports = tuple(Port(port.network_id, tuple(_address(address.ip) for address in port.addresses)) for port in staying)
    groups = tuple(group.group_id for group in vm.groups)
    at_rest = "" if vm.phase in _RUNS else vm.phase
    return Machine(vm.id, vm.name, ports, groups, tuple(vm.forwards), bool(vm.switches), at_rest)


def _end(world: Topology, text: str, field: Literal["from", "to"]) -> End:
    """Raises `Refused` (bad request, not found)."""
    if text == _HOST:
        return HOST
    try:
        address = ip_address(text)
    except ValueError:
        if "/" in text or ":" in text:
            raise _no_address_of_one(text, field) from None
        return _called(world, text, field)
    if address.is_loopback:
        raise Refused(
            Reason.BAD_REQUEST,
            f"got {shown(text)}, expected {_HOST} or another address of it: nothing leads from the loopback to a VM",
            field=field,
        )
    if (mapped := getattr(address, "ipv4_mapped", None)) is not None:
        raise Refused(Reason.BAD_REQUEST, f"got {shown(text)}, expected the address itself, as {mapped}", field=field)
    of_all = getattr(address, "scope_id", None) is not None or address.is_multicast or address.is_unspecified
    if of_all or world.is_broadcast(address):
        raise _no_address_of_one(text, field)
    if address.is_link_local:
        raise Refused(
            Reason.BAD_REQUEST,
            f"got {shown(text)}, expected a VM by its name, {_HOST}, or an address that is not of a link alone",
            field=field,
        )
    return world.machine_at(address) or (Host(address) if world.is_of_host(address) else address)


def _no_address_of_one(text: str, field: Literal["from", "to"]) -> Refused:
    return Refused(Reason.BAD_REQUEST, f"got {shown(text)}, expected the address of one device", field=field)


def _asked(world: Topology, sender: End, receiver: End) -> Host | None:
    """The host, where it is asked: what no VM sends to an address that is not known is for the host."""
    if isinstance(receiver, Host):
        return receiver
    if isinstance(receiver, Machine) or isinstance(sender, Machine) or world.owner(receiver) is not None:
        return None
    return Host(receiver)


def _resolves(world: Topology, end: End) -> Net | None:
    """The network of which this is the resolver."""
    return next((network for network in world.networks.values() if end in network.resolvers), None)


def _doubt(world: Topology, sender: End, receiver: End, packet: Packet) -> str:
    """What is taken for granted of an address that the log does not have, where a forward is open at all of the host's.

    One that a VM sends to is rather the world's, and what is sent to one from outside can only be meant for the host.
    """
    if isinstance(receiver, (Machine, Host)) or world.owner(receiver) is not None:
        return ""
    if forwarded(world, Host(receiver), packet) is None:
        return ""
    if isinstance(sender, Machine):
        return f" {receiver} is taken for an address of the world, not for one of the host."
    return f" {receiver} is taken for an address of the host."


def _resting(*ends: End) -> str:
    """That a VM does not run, so that nothing passes for the moment."""
    return "".join(f" But {end.name!r} is {end.at_rest}." for end in ends if isinstance(end, Machine) and end.at_rest)


def _called(world: Topology, text: str, field: Literal["from", "to"]) -> Machine:
    """The VM of this name, or of the id that begins so. Raises `Refused` (bad request, not found)."""
    if (refused := too_short(text, field)) is not None:
        raise refused
    every = world.machines.values()
    is_id = begins_id(text)
    found = [each for each in every if text == each.name or (is_id and each.id.startswith(text))]
    if len(found) > 1:
        raise ambiguous(text, [(each.id, each.name) for each in found], field)
    if not found:
        raise Refused(Reason.NOT_FOUND, f"no such VM: {shown(text)}", field=field, remedy=Task("vm", "list"))
    return found[0]


def _packet(text: str) -> Packet:
    """Raises `Refused` (bad request)."""
    protocol, slash, rest = text.partition("/")
    if protocol == "icmp" and (rest in ICMP_TYPES or not slash):
        return Packet("icmp", icmp=rest or _PING)
    number = int(rest) if rest.isascii() and rest.isdigit() and len(rest) <= 5 else 0
    if protocol not in ("tcp", "udp") or not 1 <= number <= _LAST_PORT:
        raise Refused(
            Reason.BAD_REQUEST,
            f"got {shown(text)}, expected what is sent, as tcp/443, udp/53, icmp or icmp/{_PING}",
            field="port",
        )
    return Packet("tcp" if protocol == "tcp" else "udp", number)


def _name(end: End) -> str:
    if isinstance(end, Machine):
        return end.name
    return str(end if not isinstance(end, Host) else end.address or _HOST)
