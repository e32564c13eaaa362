"""The firewall of bridged ports, compiled to nft's language: all of it, or what a change adds and takes away.

A port is elements of sets (`elements.py`), never a rule or a chain of its own (`chains.py` has those): a packet costs
the same with one port and with a thousand, and so does the text of a change. A group is two chains, and what ports
bear together two more (`groups.py`). What is written into the text is made of the names of devices, of ids, which have
one pattern each, and of numbers: no word of a user reaches nft.

Nothing here knows the kernel's answer. A delta is right only where `before` is what the kernel has.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network
from itertools import pairwise
from typing import Final

from msgspec import Struct

from aetherscale.actors.network.model import chains, elements, groups
from aetherscale.actors.network.model.chains import NOTE, SETS, TABLE, Drop
from aetherscale.actors.network.model.elements import Element
from aetherscale.actors.network.model.groups import NO_RULES, GroupRules, SetOfGroups
from aetherscale.actors.network.model.marks import FLOWS_TABLE, TABLES
from aetherscale.actors.network.model.ruled import BRIDGE as BRIDGE
from aetherscale.actors.network.model.ruled import BRIDGE_OF_HOST as BRIDGE_OF_HOST
from aetherscale.actors.network.model.ruled import TAP as TAP
from aetherscale.actors.network.model.ruled import ForwardRules as ForwardRules
from aetherscale.actors.network.model.ruled import NetworkRules as NetworkRules
from aetherscale.actors.network.model.ruled import PortRules as PortRules

FAMILIES: Final = ("bridge", "inet", "arp")
STRANGE_FAMILIES: Final = ("ip", "ip6", "netdev")
"""Those in which we have no table. One of our name would look as if it were ours, and be left when ours go."""


OURS: Final = (*((family, TABLE) for family in FAMILIES), ("bridge", FLOWS_TABLE))
"""Our tables: the family and the name of each."""
_NAMED: Final = re.compile(r"^(chain|set|map) (\S+) \{", re.MULTILINE)
UNNOTED: Final = f"flush set {SETS[NOTE][0]} {TABLE} {NOTE}\n"
"""Begins a change of which chains, rules or sets there are: what was noted of them is not so any more."""


class Ruleset(Struct, frozen=True):
    """The firewall of some networks, ports and groups; equal where what it lets pass is.

    Made by `compile`, `changed` and `regrouped`.
    """

    networks: Mapping[str, NetworkRules]
    """By the name of the bridge."""
    ports: Mapping[str, PortRules]
    """By the name of the tap."""
    held: Mapping[tuple[str, str], str]
    """Whose each MAC and address of a port is, and each port of the host that leads to one: by the bridge, or the host,
    and what it is, the tap. It follows from `ports`."""
    groups: Mapping[str, GroupRules] = {}
    """By the id. A group that a port bears and that is not here allows nothing."""
    borne: Mapping[SetOfGroups, int] = {}
    """How many ports bear each set of groups. It follows from `ports`."""
    named: frozenset[str] = frozenset()
    """The groups that rules name. It follows from `groups`."""

    def ids(self) -> set[str]:
        """The ids of the groups that have chains."""
        return self.groups.keys() | {group_id for bears in self.borne for group_id in bears.ids}


class Standing(Struct, frozen=True):
    """What the kernel has in tables of our names and families."""

    chains: frozenset[tuple[str, str]] = frozenset()
    """The family and the name of each."""
    sets: Mapping[tuple[str, str], str] = {}
    """`set` or `map`, by the family and the name."""


def compile(
    networks: Iterable[NetworkRules], ports: Iterable[PortRules], groups: Mapping[str, GroupRules] | None = None
) -> Ruleset:
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
    return changed(regrouped(Ruleset(by_bridge, {}, {}), groups or {}), (), ports)


def regrouped(before: Ruleset, groups: Mapping[str, GroupRules]) -> Ruleset:
    """The ruleset with these groups, and no others."""
    named = frozenset(name for rules in groups.values() for name in rules.names)
    return Ruleset(before.networks, before.ports, before.held, groups, before.borne, named)


def changed(before: Ruleset, gone: Iterable[str], come: Iterable[PortRules]) -> Ruleset:
    """The ruleset without the ports that have these taps, and then with these ports. What is not named costs nothing.

    ValueError as `compile`. KeyError: no port has such a tap.
    """
    by_tap, held, borne = dict(before.ports), dict(before.held), dict(before.borne)
    for tap in gone:
        port = by_tap.pop(tap)
        for key in _claims(port):
            del held[key]
        if (bears := groups.borne(port, before.networks[port.bridge])) is not None:
            borne[bears] -= 1
            if not borne[bears]:
                del borne[bears]
    for port in come:
        if port.tap in by_tap:
            raise ValueError(f"two ports have the tap {port.tap}")
        if port.bridge not in before.networks:
            raise ValueError(f"the port {port.tap} is in no network: none has the bridge {port.bridge}")
        by_tap[port.tap] = port
        for key in _claims(port):
            if key in held:
                raise ValueError(f"two ports in {key[0]} have {key[1]}, or one has it twice")
            held[key] = port.tap
        if (bears := groups.borne(port, before.networks[port.bridge])) is not None:
            borne[bears] = borne.get(bears, 0) + 1
    return Ruleset(before.networks, by_tap, held, before.groups, borne, before.named)


def _claims(port: PortRules) -> Iterator[tuple[str, str]]:
    """What a port has for itself, in its network and on the host. As text: addresses of `ipaddress` hash slowly."""
    yield port.bridge, port.mac
    if port.ipv4 is not None:
        yield port.bridge, f"{int(port.ipv4):#x}"
    for address in port.ipv6:
        yield port.bridge, f"{int(address):032x}"
    for forward in port.forwards:
        if forward.begins:
            yield "the host", f"the port {forward.host_port} of {forward.protocol} at {forward.address or 'all'}"


def replace_all(ruleset: Ruleset, answers: str = chains.ANSWERS_BY_MARK, standing: Standing | None = None) -> str:
    """One transaction of nft after which its tables of our name are this ruleset, whatever they were.

    With what is `standing`, chains and sets stay that have a name of these, and are filled anew: a frame meets the old
    rules or the new ones. nft refuses it where one of them is of another kind. Without, the tables are removed and
    made: then a frame may meet an old chain and a new one, and both empty, so it needs `chains.COVER` beside it.

    The counters begin at zero. Same ruleset, same text. `answers` is the rule of the bridge family that accepts the
    answers to what a guest has sent outside.
    """
    written: dict[str, list[str]] = defaultdict(list)
    for name in sorted(ruleset.networks):
        for where, key, value in elements.of_network(ruleset.networks[name]):
            written[where].append(_written(key, value))
    for name in sorted(ruleset.ports):
        for where, key, value in _of_port(ruleset, ruleset.ports[name], ruleset.named):
            written[where].append(_written(key, value))
    grouped = "".join(_members(group_id, written) for group_id in sorted(ruleset.named))
    grouped += "".join(
        groups.text_of_group(group_id, ruleset.groups.get(group_id, NO_RULES)) for group_id in sorted(ruleset.ids())
    )
    grouped += "".join(groups.text_of_set(bears, ruleset.groups) for bears in sorted(ruleset.borne))
    bodies = {"bridge": chains.bridge_chains(answers) + grouped, "inet": chains.INET_CHAINS, "arp": chains.ARP_CHAINS}
    lines: list[str] = []
    for family in FAMILIES:
        of_family = [
            _set(what, where, definition, written.get(where, ()))
            for where, (of, what, definition) in SETS.items()
            if of == family
        ]
        body = "\n".join((*of_family, bodies[family]))
        lines.append(f"add table {family} {TABLE}")
        if standing is None:
            lines.append(f"delete table {family} {TABLE}")
        else:
            lines += _emptied(family, standing, frozenset(_NAMED.findall(body)))
        lines.append(f"table {family} {TABLE} {{\n{body}}}")
    return "\n".join(lines) + "\n"


def _emptied(family: str, standing: Standing, kept: Container[tuple[str, str]]) -> Iterator[str]:
    """What empties a table that stands, and removes its chains and sets that are not kept."""
    sets = sorted((name, what) for (of, name), what in standing.sets.items() if of == family)
    yield f"flush table {family} {TABLE}"
    yield from (f"flush {what} {family} {TABLE} {name}" for name, what in sets)
    alike = sorted(name for of, name in standing.chains if of == family)
    yield from (f"delete chain {family} {TABLE} {name}" for name in alike if ("chain", name) not in kept)
    yield from (f"delete {what} {family} {TABLE} {name}" for name, what in sets if (what, name) not in kept)


def _set(what: str, where: str, definition: str, of: Sequence[str]) -> str:
    inner = f"    elements = {{ {', '.join(of)} }}\n" if of else ""
    return f"{what} {where} {{\n    {definition}\n{inner}}}"


def _members(group_id: str, written: Mapping[str, Sequence[str]]) -> str:
    """The sets of the members of a group that rules name."""
    taps, macs = groups.members(group_id), groups.cards(group_id)
    of_taps = _set("set", taps, "type ifname", written.get(taps, ()))
    return f"{of_taps}\n{_set('set', macs, 'type ether_addr', written.get(macs, ()))}\n"


def strange(tables: Container[tuple[str, str]]) -> str:
    """What removes those of these tables, each a family and a name, that have a name of ours and are none of ours."""
    families = (*FAMILIES, *STRANGE_FAMILIES)
    none_of_ours = ((family, table) for table in TABLES for family in families if (family, table) not in OURS)
    return "".join(f"delete table {family} {table}\n" for family, table in none_of_ours if (family, table) in tables)


def delta(before: Ruleset, after: Ruleset) -> str:
    """One transaction of nft that makes the tables of `before` those of `after`; "" where nothing changes.

    It has what came, went or changed, and nothing else. A port that is gone loses its counters with it.
    """
    gone: dict[str, list[str]] = defaultdict(list)
    come: dict[str, list[str]] = defaultdict(list)
    for old, new in _changes(before, after):
        for where, key, _ in sorted(old - new):
            gone[where].append(key)
        for where, key, value in sorted(new - old):
            come[where].append(_written(key, value))
    ports_gone = sorted(before.ports.keys() - after.ports.keys()) if before.ports is not after.ports else []
    forgotten = [f'"{tap}" . {kind:#x}' for tap in ports_gone for kind in Drop]
    lines: list[str] = []
    if forgotten:
        # Elements of `drops` are made by packets: what is added first is there to be deleted.
        lines += (_command("add", "drops", forgotten), _command("delete", "drops", forgotten))
    first, last = _of_groups(before, after)
    lines += first
    # Sets of members, which are not in `SETS`, are of groups that rules named before and name after.
    lines += (_command("delete", where, gone[where]) for where in [*SETS, *sorted(gone.keys() - SETS)] if gone[where])
    lines += (_command("add", where, come[where]) for where in [*SETS, *sorted(come.keys() - SETS)] if come[where])
    lines += last
    return (UNNOTED if first or last else "") + "".join(line + "\n" for line in lines)


def _of_groups(before: Ruleset, after: Ruleset) -> tuple[list[str], list[str]]:
    """What makes the chains of groups, before any port is led to one; and what removes them, when none is any more."""
    if before.groups is after.groups and before.borne == after.borne:
        return [], []
    come, gone = after.ids() - before.ids(), before.ids() - after.ids()
    rewritten = sorted(come | {one for one in before.ids() & after.ids() if _rules(before, one) != _rules(after, one)})
    sets = [
        bears
        for bears in sorted(after.borne)
        if bears not in before.borne or groups.limits(bears, before.groups) != groups.limits(bears, after.groups)
    ]
    emptied = [name for group_id in rewritten if group_id not in come for name in groups.chains_of_group(group_id)]
    emptied += [bears.outward for bears in sets if bears in before.borne]
    emptied += [bears.inward for bears in sets if bears in before.borne]
    body = "".join(_members(group_id, _listed(after, group_id)) for group_id in sorted(after.named - before.named))
    body += "".join(groups.text_of_group(group_id, _rules(after, group_id)) for group_id in rewritten)
    body += "".join(groups.text_of_set(bears, after.groups) for bears in sets)
    first = [f"flush chain bridge {TABLE} {name}" for name in emptied]
    if body:
        first.append(f"table bridge {TABLE} {{\n{body}}}")
    removed = [name for bears in sorted(before.borne.keys() - after.borne) for name in (bears.inward, bears.outward)]
    removed += [name for group_id in sorted(gone) for name in groups.chains_of_group(group_id)]
    last = [f"{verb} chain bridge {TABLE} {name}" for name in removed for verb in ("flush", "delete")]
    for group_id in sorted(before.named - after.named):
        names = (groups.members(group_id), groups.cards(group_id))
        last += (f"delete set bridge {TABLE} {name}" for name in names)
    return first, last


def _rules(ruleset: Ruleset, group_id: str) -> GroupRules:
    return ruleset.groups.get(group_id, NO_RULES)


def _listed(ruleset: Ruleset, group_id: str) -> Mapping[str, Sequence[str]]:
    """The members of a group, for the sets of them. It looks at all ports, when a rule names a group that none did."""
    found: dict[str, list[str]] = defaultdict(list)
    for tap in sorted(ruleset.ports):
        if group_id in ruleset.ports[tap].groups:
            for where, key, _ in elements.of_member(group_id, ruleset.ports[tap]):
                found[where].append(key)
    return found


def _of_port(ruleset: Ruleset, port: PortRules, named: frozenset[str]) -> Iterator[Element]:
    return elements.of_port(port, ruleset.networks[port.bridge], named)


def _changes(before: Ruleset, after: Ruleset) -> Iterator[tuple[set[Element], set[Element]]]:
    """The elements before and after of each network and each port that is not the same.

    Without those of sets that come or go as a whole.
    """
    named = before.named & after.named
    for bridge in sorted(before.networks.keys() | after.networks.keys()):
        network, successor = before.networks.get(bridge), after.networks.get(bridge)
        if network != successor:
            old = set(elements.of_network(network)) if network else set()
            yield old, set(elements.of_network(successor)) if successor else set()
    for tap in _differing(before, after):
        was, becomes = before.ports.get(tap), after.ports.get(tap)
        if was != becomes or (was and before.networks[was.bridge] != after.networks[was.bridge]):
            past = set(_of_port(before, was, named)) if was else set()
            yield past, set(_of_port(after, becomes, named)) if becomes else set()


def _differing(before: Ruleset, after: Ruleset) -> list[str]:
    """The taps of ports that may not be the same: of a thousand that are it costs more to sort them."""
    if before.networks is not after.networks:
        return sorted(before.ports.keys() | after.ports.keys())
    if before.ports is after.ports:
        return []
    come = [tap for tap, port in after.ports.items() if before.ports.get(tap) is not port]
    return sorted([*come, *(before.ports.keys() - after.ports.keys())])


def _written(key: str, value: str) -> str:
    return f"{key} : {value}" if value else key


def _command(verb: str, where: str, elements: Sequence[str]) -> str:
    family = SETS[where][0] if where in SETS else "bridge"
    return f"{verb} element {family} {TABLE} {where} {{ {', '.join(elements)} }}"


def _check_overlaps(networks: Iterable[IPv4Network | IPv6Network]) -> None:
    """Of networks in order, one that overlaps any other overlaps its neighbor."""
    ordered = sorted((int(network[0]), int(network[-1]), str(network)) for network in networks)
    for (_, last, one), (first, _, other) in pairwise(ordered):
        if first <= last:
            raise ValueError(f"the networks {one} and {other} overlap")
