"""Whether something gets from one end to another, and why: from the views of a node, or of a log. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address
from typing import Final, Literal

from msgspec import Struct
from msgspec.structs import replace

from aetherscale.actors.compute.model.views import VmView
from aetherscale.actors.firewall.model import state
from aetherscale.actors.firewall.model.commands import ICMP_TYPES
from aetherscale.actors.firewall.model.judge import (
    HOST,
    End,
    Group,
    Machine,
    Net,
    Packet,
    Port,
    Topology,
    forwarded,
    judge,
)
from aetherscale.actors.firewall.model.rules import short
from aetherscale.actors.network.model.views import NetworkView
from aetherscale.kernel.errors import Reason, Refused, Task
from aetherscale.kernel.rules import shown

_LAST_PORT: Final = 65535
_PING: Final = "echo-request"


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


def topology(networks: Iterable[NetworkView], groups: Iterable[state.Group], vms: Iterable[VmView]) -> Topology:
    """The part of these that the law is about, of what is not deleted. The rules of a group are those that the kernel
    has.
    """
    return Topology(
        {each.id: Net(each.id, each.name, each.kind, each.ipv4, each.ipv6) for each in networks},
        {each.id: Group(each.id, each.name, each.in_force) for each in groups},
        {each.id: _machine(each) for each in vms if each.phase != "deleted"},
    )


def explain(world: Topology, source: str, target: str, what: str) -> Explanation:
    """Whether `what` gets from one end to the other: VMs by name or id, `host`, or addresses.

    Raises `Refused`: bad request where one of the three is not understood, not found where there is no such VM.
    """
    packet = _packet(what)
    sender, receiver = _end(world, source, "from"), _end(world, target, "to")
    leads = None
    if not isinstance(receiver, Machine):
        leads = forwarded(world, None if receiver == "host" else receiver, packet)
    passed = packet
    if leads is not None:
        receiver, passed = leads[0], replace(packet, number=leads[1].guest_port)
    verdict = judge(world, sender, receiver, passed)
    return Explanation(
        passes=verdict.passes,
        because=verdict.because,
        group=verdict.group,
        rule=short(verdict.rule) if verdict.rule is not None else None,
        source=_called(sender),
        target=_called(receiver),
        packet=f"{passed.protocol}/{passed.icmp if passed.number is None else passed.number}",
        forward=f"{leads[1].host_port}:{leads[1].guest_port}/{packet.protocol}" if leads is not None else None,
    )


def _machine(vm: VmView) -> Machine:
    # One that is being removed is on its way out of the network.
    staying = (port for port in vm.ports if port.card != "unplugging")
    ports = tuple(
        Port(port.network_id, tuple(ip_address(address.ip) for address in port.addresses)) for port in staying
    )
    return Machine(vm.id, vm.name, ports, tuple(group.group_id for group in vm.groups), tuple(vm.forwards))


def _end(world: Topology, text: str, field: Literal["from", "to"]) -> End:
    """Raises `Refused` (bad request, not found)."""
    if text == HOST:
        return HOST
    try:
        address = ip_address(text)
    except ValueError:
        named = (each for each in world.machines.values() if text in (each.id, each.name))
        found = next(named, None)
        if found is None:
            raise Refused(
                Reason.NOT_FOUND, f"no such VM: {shown(text)}", field=field, remedy=Task("vm", "list")
            ) from None
        return found
    if getattr(address, "scope_id", None) is not None or address.is_multicast or address.is_unspecified:
        raise Refused(Reason.BAD_REQUEST, f"got {shown(text)}, expected the address of one device", field=field)
    return world.machine_at(address) or address


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


def _called(end: End) -> str:
    return end.name if isinstance(end, Machine) else str(end)
