"""A packet that was dropped, as callers see it: with the sentence that says why. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Final, Literal

from msgspec import Struct

from aetherscale.actors.firewall.model.judge import judge, judge_sent, judge_taken
from aetherscale.actors.firewall.model.topology import HOST, Packet, Topology, Verdict
from aetherscale.actors.network.model.views import Dropped
from aetherscale.kernel.times import to_rfc3339

BECAUSE: Final[Mapping[str, str]] = {
    "mac": "Its source is not the MAC of the port.",
    "arp": "It is ARP about an address that is not the port's.",
    "ipv4": "Its source is no IPv4 address of the port.",
    "ipv6": "Its source is no IPv6 address of the port.",
    "neighbor": "It is neighbor discovery about an address that is not the port's.",
    "router": "Only a router may say it.",
    "dhcp": "Only a server of DHCP may say it.",
    "ethertype": "It is neither ARP, IPv4 nor IPv6, or has a VLAN tag.",
    "header": "It is a fragment, or has an extension header of IPv6 or a header that is not well-formed.",
}
"""What no port may send, whatever its groups allow: why, by the kind."""


_REPORTS: Final = tuple(f"icmp/{number}" for number in (130, 131, 132, 143))
_MULTICAST: Final = "It asks for multicast groups, or reports them, as every machine does with IPv6: harmless."


class DropView(Struct, frozen=True, rename="kebab"):
    """A packet that was dropped."""

    time: str
    """When, RFC 3339 in UTC."""
    vm_id: str
    """The VM whose port it was dropped at."""
    vm: str
    """The name of that VM."""
    network: str
    """The name of the port's network."""
    tap: str
    """The port's device on the host."""
    direction: Literal["in", "out"]
    """`in`, it was sent to the VM; `out`, by it."""
    kind: str
    """The kind by which it is counted in `dropped`; or `unreachable`, sent to the host, or by way of it, which did not
    take it. That is not counted.
    """
    source: str
    """The IP address that it says it is from, else the MAC."""
    target: str
    """The IP address that it is sent to, else the MAC."""
    other: str | None
    """The name of the VM in the same network that it is from, or sent to; null for none."""
    packet: str
    """What it is, as `tcp/80` or `icmp/echo-request`; what rules have no word for, as `icmp/135` or `arp`."""
    because: str
    """Why it was dropped, in a sentence."""


def drop_view(dropped: Dropped, world: Topology) -> DropView:
    """The packet as callers see it. `world` has its VMs, its network, and all groups; KeyError where it has not."""
    machine, frame = world.machines[dropped.vm_id], dropped.frame
    other = world.machines[dropped.other_id] if dropped.other_id else None
    return DropView(
        time=to_rfc3339(dropped.at_us),
        vm_id=machine.id,
        vm=machine.name,
        network=world.networks[dropped.network_id].name,
        tap=dropped.tap,
        direction="in" if dropped.is_inward else "out",
        kind=dropped.kind,
        source=frame.source,
        target=frame.target,
        other=other.name if other is not None else None,
        packet=frame.packet,
        because=BECAUSE.get(dropped.kind) or (_MULTICAST if frame.packet in _REPORTS else _by_the_law(dropped, world)),
    )


def _by_the_law(dropped: Dropped, world: Topology) -> str:
    verdict = _verdict(dropped, world)
    if verdict is None:
        return "The groups of a VM are about IP alone."
    return verdict.because if not verdict.passes else f"By the rules of now it passes. {verdict.because}"


def _verdict(dropped: Dropped, world: Topology) -> Verdict | None:
    """What `explain` says of it; None where the law has nothing to say."""
    frame, machine = dropped.frame, world.machines[dropped.vm_id]
    other = world.machines[dropped.other_id] if dropped.other_id else None
    packet = Packet(frame.protocol, frame.port, frame.icmp)
    try:
        address = ip_address(frame.source if dropped.is_inward else frame.target)
    except ValueError:
        return None
    if dropped.kind == "unreachable":
        return judge(world, machine, HOST if dropped.is_to_host else address, packet)
    if dropped.is_inward:
        return judge_taken(world, machine, dropped.network_id, other, address, packet)
    return judge_sent(world, machine, other, address, packet)
