"""What a network and a port are in the sets and maps of the firewall: the whole of what is written of them."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from ipaddress import IPv4Network, IPv6Network, collapse_addresses
from typing import Final

from aetherscale.actors.network.model.addresses import link_local_of, resolver_of
from aetherscale.actors.network.model.groups import SetOfGroups, borne, cards, members
from aetherscale.actors.network.model.ruled import ForwardRules, NetworkRules, PortRules

_LOW: Final = (1 << 64) - 1
"""The half of an IPv6 address that a device forms."""

Element = tuple[str, str, str]
"""A set, a key, and what a map has for it ("" in a set)."""


def of_network(network: NetworkRules) -> Iterator[Element]:
    """The elements of a network."""
    if network.is_of_host:
        return
    yield "bridges", f'"{network.bridge}" . "{network.bridge}"', ""
    if network.kind == "nat":
        yield "routed", f'"{network.bridge}"', ""
        for version, prefix in ((4, network.ipv4), (6, network.ipv6)):
            if prefix is not None:
                yield f"leads{version}", f'"{network.bridge}" . {prefix}', ""
                yield f"masquerade{version}", str(prefix), ""


def of_port(port: PortRules, network: NetworkRules, named: Container[str]) -> Iterator[Element]:
    """The elements of a port in its network; `named` are the groups that rules name."""
    tap = f'"{port.tap}"'
    yield "ports", tap, ""
    yield "macs", f"{tap} . {port.mac}", ""
    yield "nd_macs", f"{tap} . 0x{port.mac.replace(':', '')}", ""
    if port.ipv4 is not None:
        yield "sources4", f"{tap} . {port.mac} . {port.ipv4}", ""
    for address in port.ipv6:
        digits = f"{int(address):032x}"
        yield "sources6", f"{tap} . {port.mac} . {_written(digits)}", ""
        yield "targets", f"{tap} . 0x{digits}", ""
    if port.allowed:
        yield from _allowed(tap, port.allowed)
    if network.kind == "nat":
        for forward in port.forwards:
            yield from _of_forward(forward, port)
    if network.kind == "public":
        yield from _of_others(tap, port)
    bears = borne(port, network)
    if bears is None:
        yield "ingress", tap, "accept"
        yield "egress", tap, "accept"
        yield "from_host", tap, f"jump from_{network.kind}"
    else:
        yield from _of_groups(tap, bears, port, network, named)


def _of_others(tap: str, port: PortRules) -> Iterator[Element]:
    """What a port may be called whose addresses were not decided: by a lease, and by the MAC that is its own."""
    if port.ipv4 is None:
        yield "leasing", tap, ""
    if all(address.is_link_local for address in port.ipv6):
        yield "formed", f"{tap} . {int(link_local_of(port.mac)) & _LOW:#018x}", ""


def _of_groups(
    tap: str, bears: SetOfGroups, port: PortRules, network: NetworkRules, named: Container[str]
) -> Iterator[Element]:
    yield "judged", tap, ""
    yield "ingress", tap, f"jump {bears.inward}"
    yield "egress", tap, f"jump {bears.outward}"
    # The host is in no isolated network, whatever its guests allow.
    yield "from_host", tap, "jump from_isolated" if network.kind == "isolated" else f"jump {bears.inward}"
    if not network.is_of_host:
        for version, prefix in ((4, network.ipv4), (6, network.ipv6)):
            if prefix is not None:
                yield f"resolvers{version}", f"{tap} . {resolver_of(prefix)}", ""
    if network.kind == "nat":
        if port.ipv4 is not None:
            yield "open4", f'"{network.bridge}" . {port.ipv4}', ""
        for address in port.ipv6:
            yield "open6", f'"{network.bridge}" . {_written(f"{int(address):032x}")}', ""
    for group_id in port.groups:
        if group_id in named:
            yield from of_member(group_id, port)


def _of_forward(forward: ForwardRules, port: PortRules) -> Iterator[Element]:
    """Of both families, or of that of the host's address: a forward leads to an address of the same one."""
    key = f"{forward.protocol} . {forward.host_port}"
    at = "" if forward.address is None else "_at"
    where = key if forward.address is None else f"{forward.address} . {key}"
    for version, address in ((4, port.ipv4), (6, next((each for each in port.ipv6 if not each.is_link_local), None))):
        if address is None or (forward.address is not None and forward.address.version != version):
            continue
        leads_to = f"{address} . {forward.guest_port}"
        yield f"forwarded{at}{version}", f"{where} . {leads_to}", ""
        if forward.begins:
            yield f"forwards{at}{version}", where, leads_to


def of_member(group_id: str, port: PortRules) -> Iterator[Element]:
    """The elements of a port that bears a group which rules name."""
    yield members(group_id), f'"{port.tap}"', ""
    yield cards(group_id), port.mac, ""


def _allowed(tap: str, allowed: Sequence[IPv4Network | IPv6Network]) -> Iterator[Element]:
    """Networks that overlap or are neighbors become one: nft takes no two elements that overlap."""
    for net4 in collapse_addresses(net for net in allowed if isinstance(net, IPv4Network)):
        yield "allowed4", f"{tap} . {net4}", ""
    for net6 in collapse_addresses(net for net in allowed if isinstance(net, IPv6Network)):
        yield "allowed6", f"{tap} . {_written(f'{int(net6[0]):032x}')}/{net6.prefixlen}", ""
        yield "allowed_targets", f"{tap} . {int(net6[0]):#034x}-{int(net6[-1]):#034x}", ""


def _written(digits: str) -> str:
    """An IPv6 address of its 32 digits. The short form of `ipaddress` would be half of the time of `replace_all`."""
    return ":".join(digits[at : at + 4] for at in range(0, 32, 4))
