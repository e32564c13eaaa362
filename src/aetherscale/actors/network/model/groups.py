"""Groups, compiled to nft's language: the chains of a group, and of each set of groups that some port bears.

What is written is made of ids, which have one pattern, of numbers, and of prefixes that were parsed: no word of a user
reaches nft, not even a name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from ipaddress import IPv4Network, ip_network
from typing import Final

from msgspec import Struct

from aetherscale.actors.firewall.model.commands import ICMP_TYPES, Rule
from aetherscale.actors.network.model.ruled import GROUP, NetworkRules, PortRules

_PORTS: Final = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
_HIGHEST: Final = 65535


class GroupRules(Struct, frozen=True):
    """The rules of a group, as nft reads them."""

    incoming: tuple[str, ...] = ()
    outgoing: tuple[str, ...] = ()
    names: frozenset[str] = frozenset()
    """The ids of the groups whose members they are about."""
    rules: tuple[Rule, ...] = ()
    """What they were made of."""


NO_RULES: Final = GroupRules()


class SetOfGroups(Struct, frozen=True, order=True):
    """What ports bear that are judged alike: the groups, and whether they are in a network of others.

    Without groups it allows nothing: what a port bears in a public network.
    """

    bridged: bool
    ids: tuple[str, ...]

    @property
    def inward(self) -> str:
        """The chain of what is sent to such a port."""
        return f"s_{self._digest()}_in"

    @property
    def outward(self) -> str:
        """The chain of what such a port sends."""
        return f"s_{self._digest()}_out"

    def _digest(self) -> str:
        return sha256(",".join((str(self.bridged), *self.ids)).encode()).hexdigest()[:16]


def borne(port: PortRules, network: NetworkRules) -> SetOfGroups | None:
    """What a port bears in its network; None where it takes anything from there, as it does without groups."""
    if port.groups or network.kind == "public":
        return SetOfGroups(network.is_of_host, port.groups)
    return None


def compile_group(rules: Sequence[Rule]) -> GroupRules:
    """These rules. ValueError: a rule that is not in its canonical form."""
    incoming = [line for rule in rules if rule.direction == "in" for line in _lines(rule)]
    outgoing = [line for rule in rules if rule.direction == "out" for line in _lines(rule)]
    names = frozenset(rule.group_id for rule in rules if rule.group_id is not None)
    return GroupRules(tuple(incoming), tuple(outgoing), names, tuple(rules))


def members(group_id: str) -> str:
    """The set of the taps of a group's members, by which they are told as senders."""
    return f"m_{group_id}"


def cards(group_id: str) -> str:
    """The set of the MACs of a group's members, by which they are told as receivers."""
    return f"c_{group_id}"


def chains_of_group(group_id: str) -> tuple[str, str]:
    """The names of the chains of a group: of what a port takes, and of what it sends."""
    return f"g_{group_id}_in", f"g_{group_id}_out"


def text_of_group(group_id: str, rules: GroupRules) -> str:
    """The chains of a group."""
    inward, outward = chains_of_group(group_id)
    return _chain(inward, rules.incoming) + _chain(outward, rules.outgoing)


def text_of_set(bears: SetOfGroups, groups: Mapping[str, GroupRules]) -> str:
    """The chains of a set of groups. A port whose groups say nothing of what it sends may send anything."""
    among = [chains_of_group(group_id) for group_id in bears.ids]
    lan = ("jump basics_in_lan",) if bears.bridged else ()
    inward = (*lan, "jump basics_in", *(f"jump {name}" for name, _ in among), "goto uninvited")
    outward: tuple[str, ...] = ("accept",)
    if limits(bears, groups):
        lan = ("jump basics_out_lan",) if bears.bridged else ()
        outward = (*lan, "jump basics_out", *(f"jump {name}" for _, name in among), "goto forbidden")
    return _chain(bears.inward, inward) + _chain(bears.outward, outward)


def limits(bears: SetOfGroups, groups: Mapping[str, GroupRules]) -> bool:
    """Whether some rule says what a port that bears these may send."""
    return any(groups.get(group_id, NO_RULES).outgoing for group_id in bears.ids)


def _chain(name: str, lines: Sequence[str]) -> str:
    return f"chain {name} {{\n" + "".join(f"    {line}\n" for line in lines) + "}\n"


def _lines(rule: Rule) -> Iterator[str]:
    for version, about in _about(rule):
        for what in _what(rule, version):
            yield " ".join(part for part in (about, what, "accept") if part)


def _about(rule: Rule) -> Iterator[tuple[int, str]]:
    """Whom a rule is about: the IP family, 0 for both, and what matches."""
    if rule.cidr is not None and rule.group_id is not None:
        raise ValueError("a rule is about a prefix or a group, not both")
    if rule.group_id is not None:
        if not GROUP.fullmatch(rule.group_id) or not rule.group_id.isascii():
            raise ValueError(f"{rule.group_id!r} is not the id of a group")
        incoming = rule.direction == "in"
        yield 0, f"iifname @{members(rule.group_id)}" if incoming else f"ether daddr @{cards(rule.group_id)}"
    elif rule.cidr is not None:
        prefix = ip_network(rule.cidr)
        if getattr(prefix.network_address, "scope_id", None) is not None:
            raise ValueError(f"{rule.cidr} is of a zone")
        version, name = (4, "ip") if isinstance(prefix, IPv4Network) else (6, "ip6")
        side = "saddr" if rule.direction == "in" else "daddr"
        yield version, f"{name} {side} {prefix}" if prefix.prefixlen else f"ether type {name}"
    else:
        yield 0, ""


def _what(rule: Rule, version: int) -> Iterator[str]:
    """What a rule is about, one match for each line, in this IP family."""
    if rule.protocol in ("tcp", "udp"):
        yield f"{rule.protocol} dport {_of(_ranges(rule.ports))}" if rule.ports else f"meta l4proto {rule.protocol}"
        return
    if rule.ports:
        raise ValueError(f"{rule.protocol} has no ports")
    if rule.protocol == "any":
        yield ""
    # By number: the name of ICMPv6 is in /etc/protocols, which a small Debian does not have.
    for family, name, proto, place in ((4, "icmp", "1", 0), (6, "icmpv6", "58", 1)):
        if rule.protocol != "icmp" or version not in (0, family):
            continue
        if rule.types:
            numbers = [number for each in rule.types if (number := _number(each, place)) is not None]
            if numbers:
                yield f"{name} type {_of([str(number) for number in sorted(numbers)])}"
        else:
            # By the family too: ICMPv6 in IPv4 is neither.
            yield f"ether type {'ip' if family == 4 else 'ip6'} meta l4proto {proto}"


def _number(name: str, place: int) -> int | None:
    if name not in ICMP_TYPES:
        raise ValueError(f"no type of ICMP messages is called {name!r}")
    return ICMP_TYPES[name][place]


def _ranges(ports: Sequence[str]) -> list[str]:
    found: list[str] = []
    last = 0
    for each in ports:
        parts = _PORTS.fullmatch(each)
        if parts is None:
            raise ValueError(f"{each!r} is no port and no range of ports")
        low, high = int(parts[1]), int(parts[2] or parts[1])
        if not last < low <= high <= _HIGHEST:
            raise ValueError(f"the ports {', '.join(ports)} are not in order, or not from 1 to {_HIGHEST}")
        last = high
        found.append(str(low) if low == high else f"{low}-{high}")
    return found


def _of(values: Sequence[str]) -> str:
    return values[0] if len(values) == 1 else f"{{ {', '.join(values)} }}"
