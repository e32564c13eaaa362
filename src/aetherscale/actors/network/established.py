"""Which flows the rules of one moment allow. A change may keep what those of before it allow: what an earlier one has
cut stays cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

from aetherscale.actors.compute.model.commands import PortSpec
from aetherscale.actors.firewall.model.commands import Rule
from aetherscale.actors.network.flows import Direction
from aetherscale.actors.network.hands import host_addresses
from aetherscale.actors.network.known import Known
from aetherscale.actors.network.model.addresses import link_local_of
from aetherscale.actors.network.model.effects import OF_HOST
from aetherscale.actors.network.model.groups import NO_RULES
from aetherscale.actors.network.nft.flows import Flow


class Allowed:
    """By the groups and the rules of VMs as they are when it is made; networks and ports stay as they are meanwhile."""

    def __init__(self, known: Known) -> None:
        self._known = known
        self._groups = known.groups
        self._bears = {vm_id: frozenset(rules.groups) for vm_id, rules in known.every_rules.items()}

    def allows(self, direction: Direction, protocol: str, flow: Flow) -> bool:
        """Whether a flow that others have begun with the port (`in`), or the port with them (`out`), is allowed there.

        `protocol` is tcp or udp. Of a port that is not known nothing is.
        """
        try:
            vm_id, port = self._known.port_at(flow.tap)
            network = self._known.networks[port.network_id]
        except KeyError:
            return False
        groups = self._bears.get(vm_id, frozenset())
        of_all = (rule for group_id in groups for rule in self._groups.get(group_id, NO_RULES).rules)
        rules = [rule for rule in of_all if rule.direction == direction]
        if direction == "out" and not rules:
            return True
        if direction == "in" and not groups:
            return network.kind == "bridged" or (network.kind != "public" and self._is_inside(port, flow.remote))
        number = flow.local_port if direction == "in" else flow.remote_port
        return any(
            fits(rule, protocol, number, flow.remote)
            and (rule.group_id is None or self._is_member(rule.group_id, port, flow.remote))
            for rule in rules
        )

    def ends(self, direction: Direction, protocol: str, flow: Flow) -> bool:
        """Whether it ends, kept or not: of a port without groups all that neither it nor its own network has begun."""
        try:
            vm_id, _ = self._known.port_at(flow.tap)
        except KeyError:
            return direction == "in"
        return direction == "in" and not self._bears.get(vm_id) and not self.allows(direction, protocol, flow)

    def _is_inside(self, port: PortSpec, address: IPv4Address | IPv6Address) -> bool:
        """Whether an address is of another VM of the port's network, which the host is not."""
        spec = self._known.networks[port.network_id]
        if any(address == each.ip for each in host_addresses(port.network_id, spec)):
            return False
        prefixes = [text for text in (spec.ipv4, spec.ipv6) if text]
        prefixes += (text for each in self._known.ports_in(port.network_id) for text in each.allowed)
        return address.is_link_local or any(address in ip_network(text) for text in prefixes)

    def _is_member(self, group_id: str, port: PortSpec, address: IPv4Address | IPv6Address) -> bool:
        """Whether an address is of a VM in the port's network that bears a group; of a bridge of the host, may be."""
        inside = self._known.ports_in(port.network_id)
        members = [each for each in inside if group_id in self._bears.get(self._known.port_at(each.tap)[0], ())]
        if self._known.networks[port.network_id].kind in OF_HOST:
            return bool(members)
        return any(address in each for member in members for each in _prefixes(member))


def fits(rule: Rule, protocol: str, number: int, remote: IPv4Address | IPv6Address) -> bool:
    """Whether a rule is about what goes to a port of TCP or UDP, whose other end is this. Members are not looked at."""
    if rule.protocol not in ("any", protocol):
        return False
    if rule.ports and not any(_has(text, number) for text in rule.ports):
        return False
    return rule.cidr is None or remote in ip_network(rule.cidr)


def _has(text: str, number: int) -> bool:
    first, _, last = text.partition("-")
    return int(first) <= number <= int(last or first)


def _prefixes(port: PortSpec) -> Iterator[IPv4Network | IPv6Network]:
    """Whatever a port may send from."""
    yield ip_network(link_local_of(port.mac))
    yield from (ip_network(text) for text in (port.ipv4, port.ipv6, *port.allowed) if text)
