"""Whether a rule of a group is about a packet. Pure."""

from __future__ import annotations

from ipaddress import ip_network

from aetherscale.actors.firewall.model.commands import Rule
from aetherscale.actors.firewall.model.topology import Address, Machine, Packet


def fits(rule: Rule, packet: Packet, other: Machine | None, address: Address | None, version: int) -> bool:
    """Whether a rule is about a packet of this IP family, whose other end is this."""
    if rule.protocol not in ("any", packet.protocol):
        return False
    if rule.ports and (packet.number is None or not any(_has(text, packet.number) for text in rule.ports)):
        return False
    if rule.types and packet.icmp not in rule.types:
        return False
    if rule.group_id is not None:
        return other is not None and rule.group_id in other.groups
    if rule.cidr is not None:
        prefix = ip_network(rule.cidr)
        # Of an address that is not known there is the family.
        return address in prefix if address is not None else (prefix.version, prefix.prefixlen) == (version, 0)
    return True


def _has(text: str, number: int) -> bool:
    first, _, last = text.partition("-")
    return int(first) <= number <= int(last or first)
