"""The firewall of bridged ports, compiled to nft's language: all of it, or what a change adds and takes away.

A port is elements of sets, never a rule or a chain of its own (`chains.py` has those): a packet costs the same with one
port and with a thousand, and so does the text of a change. What is written into the text is made here of the names of
devices, which have one pattern, and of numbers: no word of a user reaches nft.

Nothing here knows the kernel's answer. A delta is right only where `before` is what the kernel has.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    collapse_addresses,
)
from itertools import pairwise
from typing import Final, Literal

from msgspec import Struct

from aetherscale.actors.network.model import chains
from aetherscale.actors.network.model.chains import SETS, TABLE, Drop

TAP: Final = re.compile(r"aep[0-9a-f]{12}")
"""The device names of our taps; ASCII, 15 bytes."""
BRIDGE: Final = re.compile(r"aeb[0-9a-f]{12}")
"""The device names of our bridges; ASCII, 15 bytes."""
BRIDGE_OF_HOST: Final = re.compile(r"(?!aep|aeb)[A-Za-z][A-Za-z0-9_.-]{0,14}")
"""The device names of bridges that the host has of its own. None is written into a rule."""
MAC: Final = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
FAMILIES: Final = ("bridge", "inet", "arp")

Element = tuple[str, str, str]
"""A set, a key, and what a map has for it ("" in a set)."""


class NetworkRules(Struct, frozen=True):
    """What the firewall has to know of a network. `ipv4` is the network of its guests, `ipv6` their /64; None for none.

    ValueError: a bridge's name that is not of the kind's pattern, or an address that is not what it has to be.
    """

    bridge: str
    kind: Literal["isolated", "nat", "bridged"]
    ipv4: IPv4Network | None = None
    ipv6: IPv6Network | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("isolated", "nat", "bridged"):
            raise ValueError(f"a network is isolated, nat or bridged, not {self.kind!r}")
        _check_name("a bridge", self.bridge, BRIDGE_OF_HOST if self.kind == "bridged" else BRIDGE)
        _check_type("the IPv4 network", self.ipv4, IPv4Network, optional=True)
        _check_type("the IPv6 prefix", self.ipv6, IPv6Network, optional=True)


class PortRules(Struct, frozen=True):
    """What the firewall has to know of a port: who it is, and so what it may send.

    `mac` is lower case, with colons. `ipv6` has every address that the port may use, the link-local one too. `allowed`
    are networks that it may send from besides, as a router or a host of containers does.

    ValueError: a device's name or MAC that is not of the pattern, an address that no host can have, or one of a zone.
    """

    tap: str
    bridge: str
    mac: str
    ipv4: IPv4Address | None = None
    ipv6: tuple[IPv6Address, ...] = ()
    allowed: tuple[IPv4Network | IPv6Network, ...] = ()

    def __post_init__(self) -> None:
        _check_name("a tap", self.tap, TAP)
        _check_name("a bridge", self.bridge, BRIDGE if str(self.bridge).startswith("aeb") else BRIDGE_OF_HOST)
        _check_name("a MAC", self.mac, MAC)
        if int(self.mac[:2], 16) & 1 or self.mac == "00:00:00:00:00:00":
            raise ValueError(f"{self.mac} is not the MAC of one device")
        _check_type("the IPv4 address", self.ipv4, IPv4Address, optional=True)
        for address in self.ipv6:
            _check_type("an IPv6 address", address, IPv6Address)
        for own in (*self.ipv6, *([self.ipv4] if self.ipv4 else ())):
            if own.is_unspecified or own.is_multicast or own.is_loopback:
                raise ValueError(f"no port can have the address {own}")
        for network in self.allowed:
            _check_type("an allowed network", network, IPv4Network, IPv6Network)


class Ruleset(Struct, frozen=True):
    """The firewall of some networks and their ports; equal where what it lets pass is. Made by `compile` alone."""

    networks: Mapping[str, NetworkRules]
    """By the name of the bridge."""
    ports: Mapping[str, PortRules]
    """By the name of the tap."""


def compile(networks: Iterable[NetworkRules], ports: Iterable[PortRules]) -> Ruleset:
    """The ruleset of these. Their order means nothing. Text is made later, where it is needed.

    ValueError: two networks with one bridge, nat networks that overlap, two ports with one tap, two ports of a network
    with one MAC or address, or a port in a network that is not there.
    """
    by_bridge: dict[str, NetworkRules] = {}
    for network in networks:
        if network.bridge in by_bridge:
            raise ValueError(f"two networks have the bridge {network.bridge}")
        by_bridge[network.bridge] = network
    _check_overlaps([network.ipv4 for network in by_bridge.values() if network.kind == "nat" and network.ipv4])
    _check_overlaps([network.ipv6 for network in by_bridge.values() if network.kind == "nat" and network.ipv6])
    by_tap: dict[str, PortRules] = {}
    held: set[tuple[str, str]] = set()
    for port in ports:
        if port.tap in by_tap:
            raise ValueError(f"two ports have the tap {port.tap}")
        if port.bridge not in by_bridge:
            raise ValueError(f"the port {port.tap} is in no network: none has the bridge {port.bridge}")
        by_tap[port.tap] = port
        for key in _claims(port):
            if (port.bridge, key) in held:
                raise ValueError(f"two ports in {port.bridge} have {key}, or one has it twice")
            held.add((port.bridge, key))
    return Ruleset(by_bridge, by_tap)


def _claims(port: PortRules) -> Iterator[str]:
    """What a port has for itself in its network. As text: addresses of `ipaddress` hash slowly."""
    yield port.mac
    if port.ipv4 is not None:
        yield f"{int(port.ipv4):#x}"
    for address in port.ipv6:
        yield f"{int(address):032x}"


def replace_all(ruleset: Ruleset, answers: str = chains.ANSWERS_BY_MARK) -> str:
    """One transaction of nft after which its tables of our name are this ruleset, whatever they were.

    A frame meets the old tables whole or the new ones whole. The counters begin at zero. Same ruleset, same text.
    `answers` is the rule of the bridge family that accepts the answers to what a guest has sent outside.
    """
    elements: dict[str, list[str]] = defaultdict(list)
    for name in sorted(ruleset.networks):
        for where, key, value in _elements_of_network(ruleset.networks[name]):
            elements[where].append(_written(key, value))
    for name in sorted(ruleset.ports):
        for where, key, value in _elements_of_port(ruleset, ruleset.ports[name]):
            elements[where].append(_written(key, value))
    bodies = {"bridge": chains.bridge_chains(answers), "inet": chains.INET_CHAINS, "arp": chains.ARP_CHAINS}
    lines: list[str] = []
    for family in FAMILIES:
        lines += (f"add table {family} {TABLE}", f"delete table {family} {TABLE}", f"table {family} {TABLE} {{")
        for where, (of, what, definition) in SETS.items():
            if of == family:
                inner = f"    elements = {{ {', '.join(elements[where])} }}\n" if elements[where] else ""
                lines.append(f"{what} {where} {{\n    {definition}\n{inner}}}")
        lines.append(bodies[family] + "}")
    return "\n".join(lines) + "\n"


def delta(before: Ruleset, after: Ruleset) -> str:
    """One transaction of nft that makes the tables of `before` those of `after`; "" where nothing changes.

    It has elements only, of what came, went or changed. A port that is gone loses its counters with it.
    """
    gone: dict[str, list[str]] = defaultdict(list)
    come: dict[str, list[str]] = defaultdict(list)
    for old, new in _changes(before, after):
        for where, key, _ in sorted(old - new):
            gone[where].append(key)
        for where, key, value in sorted(new - old):
            come[where].append(_written(key, value))
    forgotten = [f'"{tap}" . {kind:#x}' for tap in sorted(before.ports.keys() - after.ports.keys()) for kind in Drop]
    lines: list[str] = []
    if forgotten:
        # Elements of `drops` are made by packets: what is added first is there to be deleted.
        lines += (_command("add", "drops", forgotten), _command("delete", "drops", forgotten))
    lines += (_command("delete", where, gone[where]) for where in SETS if gone[where])
    lines += (_command("add", where, come[where]) for where in SETS if come[where])
    return "".join(line + "\n" for line in lines)


def _changes(before: Ruleset, after: Ruleset) -> Iterator[tuple[set[Element], set[Element]]]:
    """The elements before and after of each network and each port that is not the same."""
    for bridge in sorted(before.networks.keys() | after.networks.keys()):
        network, successor = before.networks.get(bridge), after.networks.get(bridge)
        if network != successor:
            old = set(_elements_of_network(network)) if network else set()
            yield old, set(_elements_of_network(successor)) if successor else set()
    for tap in sorted(before.ports.keys() | after.ports.keys()):
        was, becomes = before.ports.get(tap), after.ports.get(tap)
        if was != becomes or (was and before.networks[was.bridge].kind != after.networks[was.bridge].kind):
            past = set(_elements_of_port(before, was)) if was else set()
            yield past, set(_elements_of_port(after, becomes)) if becomes else set()


def _elements_of_network(network: NetworkRules) -> Iterator[Element]:
    if network.kind == "bridged":
        return
    yield "bridges", f'"{network.bridge}" . "{network.bridge}"', ""
    if network.kind == "nat":
        for version, prefix in ((4, network.ipv4), (6, network.ipv6)):
            if prefix is not None:
                yield f"leads{version}", f'"{network.bridge}" . {prefix}', ""
                yield f"masquerade{version}", str(prefix), ""


def _elements_of_port(ruleset: Ruleset, port: PortRules) -> Iterator[Element]:
    tap = f'"{port.tap}"'
    yield "ports", tap, ""
    yield "from_host", tap, f"goto from_{ruleset.networks[port.bridge].kind}"
    yield "macs", f"{tap} . {port.mac}", ""
    yield "nd_macs", f"{tap} . 0x{port.mac.replace(':', '')}", ""
    if port.ipv4 is not None:
        yield "sources4", f"{tap} . {port.mac} . {port.ipv4}", ""
    for address in port.ipv6:
        digits = f"{int(address):032x}"
        yield "sources6", f"{tap} . {port.mac} . {_groups(digits)}", ""
        yield "targets", f"{tap} . 0x{digits}", ""
    if port.allowed:
        yield from _elements_allowed(tap, port.allowed)


def _elements_allowed(tap: str, allowed: Sequence[IPv4Network | IPv6Network]) -> Iterator[Element]:
    """Networks that overlap or are neighbors become one: nft takes no two elements that overlap."""
    for net4 in collapse_addresses(net for net in allowed if isinstance(net, IPv4Network)):
        yield "allowed4", f"{tap} . {net4}", ""
    for net6 in collapse_addresses(net for net in allowed if isinstance(net, IPv6Network)):
        yield "allowed6", f"{tap} . {_groups(f'{int(net6[0]):032x}')}/{net6.prefixlen}", ""
        yield "allowed_targets", f"{tap} . {int(net6[0]):#034x}-{int(net6[-1]):#034x}", ""


def _groups(digits: str) -> str:
    """An IPv6 address of its 32 digits. The short form of `ipaddress` would be half of the time of `replace_all`."""
    return ":".join(digits[at : at + 4] for at in range(0, 32, 4))


def _written(key: str, value: str) -> str:
    return f"{key} : {value}" if value else key


def _command(verb: str, where: str, elements: Sequence[str]) -> str:
    return f"{verb} element {SETS[where][0]} {TABLE} {where} {{ {', '.join(elements)} }}"


def _check_name(what: str, name: object, pattern: re.Pattern[str]) -> None:
    if type(name) is not str or not name.isascii() or not pattern.fullmatch(name):
        raise ValueError(f"{what} is called by {pattern.pattern}, not {name!r}")


def _check_type(what: str, value: object, *types: type, optional: bool = False) -> None:
    if value is None and optional:
        return
    if type(value) not in types:
        raise ValueError(f"{what} is {value!r}, not of {types}")
    zone = getattr(value, "scope_id", None) or getattr(getattr(value, "network_address", None), "scope_id", None)
    if zone is not None:
        raise ValueError(f"{what} is of a zone: {value!r}")


def _check_overlaps(networks: Iterable[IPv4Network | IPv6Network]) -> None:
    """Of networks in order, one that overlaps any other overlaps its neighbor."""
    ordered = sorted((int(network[0]), int(network[-1]), str(network)) for network in networks)
    for (_, last, one), (first, _, other) in pairwise(ordered):
        if first <= last:
            raise ValueError(f"the networks {one} and {other} overlap")
