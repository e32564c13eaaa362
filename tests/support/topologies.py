"""Random topologies, as a log has them: networks of each kind, VMs in one or two, groups, forwards.

The networks and the places in them are always the same, so that a host can have the devices of all of them at once. A
topology is what VMs there are, and what they bear.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import cache
from ipaddress import IPv4Network, IPv6Network
from typing import Final, Literal, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from aetherscale.actors.compute.model import commands as vms
from aetherscale.actors.compute.model import events as vm_events
from aetherscale.actors.compute.model import evolve as vm_evolve
from aetherscale.actors.compute.model import presentation as vm_presentation
from aetherscale.actors.firewall.model import events as group_events
from aetherscale.actors.firewall.model.commands import ICMP_TYPES, GroupSpec, Rule
from aetherscale.actors.firewall.model.decide import evolve as evolve_group
from aetherscale.actors.firewall.model.explain import topology
from aetherscale.actors.firewall.model.rules import parse_rules
from aetherscale.actors.firewall.model.topology import Topology
from aetherscale.actors.network.known import Known
from aetherscale.actors.network.model import presentation as network_presentation
from aetherscale.actors.network.model.addresses import ipv6_of, mac_of
from aetherscale.actors.network.model.decide import evolve as evolve_network
from aetherscale.actors.network.model.devices import tap_name
from aetherscale.actors.network.model.effects import NetworkSpec
from aetherscale.actors.network.model.events import NetworkRequested
from aetherscale.actors.network.model.groups import compile_group
from aetherscale.actors.network.model.ruleset import Ruleset
from tests.support.vm_pasts import SPEC

T = TypeVar("T")
Version = Literal[4, 6]
VERSIONS: Final[tuple[Version, ...]] = (4, 6)
SEATS: Final = 4
"""Places for ports in a network."""
WORLD: Final = {4: ("192.0.2.9", "198.51.100.7"), 6: ("2001:db8::9", "2001:db8:7::1")}
UPLINK: Final = {4: ("192.0.2.1", "192.0.2.3"), 6: ("2001:db8::1", "2001:db8::3")}
"""Addresses of the host itself."""


class Lan(Struct, frozen=True):
    """A network, and the prefixes that are in use there: of a bridge of the host the log does not know them."""

    id: str
    spec: NetworkSpec
    ipv4: IPv4Network | None
    ipv6: IPv6Network

    def prefix(self, version: int) -> IPv4Network | IPv6Network | None:
        return self.ipv4 if version == 4 else self.ipv6


def _lan(number: int, kind: Literal["isolated", "nat", "bridged"], *, has_ipv4: bool = True) -> Lan:
    bridged = kind == "bridged"
    ipv4 = IPv4Network(f"{'172.20' if bridged else '10.64'}.{number}.0/24") if has_ipv4 else None
    ipv6 = IPv6Network(f"{'fc00' if bridged else 'fd00'}:{number}::/64")
    told = (None, None) if bridged else (str(ipv4) if ipv4 else None, str(ipv6))
    name = f"{kind}{number}"
    spec = NetworkSpec(name, kind, told[0], told[1], f"br{number}" if bridged else None)
    return Lan(f"{number:016x}", spec, ipv4, ipv6)


LANS: Final = (
    _lan(0, "isolated"),
    _lan(1, "isolated", has_ipv4=False),
    _lan(2, "nat"),
    _lan(3, "nat"),
    _lan(4, "nat", has_ipv4=False),
    _lan(5, "bridged"),
    _lan(6, "bridged"),
)


@cache
def _mac(lan: int, number: int) -> str:
    return mac_of(f"{lan}.{number}")


@cache
def _tap(lan: int, number: int) -> str:
    return tap_name(f"{lan:016x}", number)


@cache
def _address(number: int, place: int, version: int) -> str | None:
    lan = LANS[number]
    if version == 6:
        return str(ipv6_of(lan.ipv6, _mac(number, place)))
    return str(lan.ipv4[place + 2]) if lan.ipv4 is not None else None


class Seat(Struct, frozen=True):
    """A place for a port in a network, with all that follows from it."""

    lan: int
    number: int

    @property
    def mac(self) -> str:
        return _mac(self.lan, self.number)

    @property
    def tap(self) -> str:
        return _tap(self.lan, self.number)

    def address(self, version: int) -> str | None:
        """The address that the guest has there."""
        return _address(self.lan, self.number, version)

    def spec(self) -> vms.PortSpec:
        lan = LANS[self.lan]
        known = [self.address(version) if lan.spec.kind != "bridged" else None for version in VERSIONS]
        return vms.PortSpec(lan.id, lan.spec.name, "x", self.tap, self.mac, known[0], known[1])


class Vm(Struct, frozen=True):
    """A VM: its places, the numbers of the groups that it bears, and its forwards."""

    seats: tuple[Seat, ...]
    groups: tuple[int, ...] = ()
    forwards: tuple[vms.Forward, ...] = ()


class Facts(Struct, frozen=True):
    """A topology. Rules are texts, in which groups are called `g0`, `g1` …; VMs are `v0`, `v1` …"""

    vms: tuple[Vm, ...]
    groups: tuple[tuple[str, ...], ...]

    def told(self) -> str:
        """All of it, to be read."""
        lines = [
            f"v{number}: in {', '.join(f'{LANS[s.lan].spec.name} {s.address(4)} {s.address(6)}' for s in vm.seats)}; "
            f"bears {vm.groups}; leads {[(f.protocol, f.address, f.host_port, f.guest_port) for f in vm.forwards]}"
            for number, vm in enumerate(self.vms)
            if vm.seats
        ]
        return "\n".join((*lines, *(f"g{number}: {' '.join(rules)}" for number, rules in enumerate(self.groups))))


def group_id(number: int) -> str:
    return f"{number + 0xA0:016x}"


def vm_id(number: int) -> str:
    return f"{number + 0xB00:016x}"


def _rules(facts: Facts, number: int) -> tuple[Rule, ...]:
    named = parse_rules(facts.groups[number])
    return tuple(replace(each, group_id=group_id(int(each.group[1:]))) if each.group else each for each in named)


def logged(facts: Facts) -> tuple[Topology, Ruleset]:
    """What `explain` and the kernel are given of a log in which this is so."""
    known = Known()
    known.set_networks({lan.id: lan.spec for lan in LANS})
    networks = [evolve_network(None, NetworkRequested(lan.id, lan.spec), 0) for lan in LANS]
    groups, machines = [], []
    for number in range(len(facts.groups)):
        rules = _rules(facts, number)
        group = evolve_group(None, group_events.GroupRequested(group_id(number), GroupSpec(f"g{number}", rules)), 0)
        groups.append(evolve_group(group, group_events.GroupApplied(1), 0))
    known.set_groups({group.id: compile_group(group.in_force) for group in groups})
    for number, vm in enumerate(facts.vms):
        borne = [vms.BorneGroup(group_id(each), f"g{each}") for each in vm.groups]
        spec = replace(SPEC, name=f"v{number}", ports=[seat.spec() for seat in vm.seats], groups=borne)
        state = vm_evolve.evolve(None, vm_events.VmRequested(vm_id(number), spec), 0)
        for forward in vm.forwards:
            state = vm_evolve.evolve(state, vm_events.ForwardAdded(forward), 0)
        machines.append(state)
    known.set_rules({vm.id: vm.rules.for_kernel() for vm in machines})
    known.set_ports({vm.id: vm.ports.specs() for vm in machines})
    views = [vm_presentation.view(vm, "host1", 1) for vm in machines]
    return topology([network_presentation.view(each, "host1", 1) for each in networks], groups, views), known.rules()


# --- what there may be ---

_NUMBERS: Final = ("1", "22", "53", "80", "443", "65535", "79-81", "8000-8100", "1-1023", "1024-65535")
_PREFIXES: Final = (
    "0.0.0.0/0", "::/0", "10.0.0.0/8", "10.64.2.0/24", "10.64.3.0/24", "10.64.0.0/24", "fd00::/8", "fd00:2::/64",
    "fd00:0::/64", "10.64.2.1/32", "fd00:2::1/128", "192.0.2.0/24", "192.0.2.1/32", "198.51.100.7/32", "2001:db8::/32",
    "2001:db8::1/128", "2001:db8:7::1/128", "203.0.113.0/24",
)  # fmt: skip


def random_rule(chance: random.Random, groups: int) -> str:
    """A rule, as callers write it."""
    direction = chance.choice(("in", "in", "out"))
    protocol = chance.choice(("tcp", "tcp", "udp", "icmp", "any"))
    parts = [direction, protocol]
    version = 0
    whom = ""
    if chance.random() < 0.5:
        if chance.random() < 0.5:
            whom = f"group/g{chance.randrange(groups)}"
        elif chance.random() < 0.4:
            lan = chance.choice([2, 2, 3, 4, 0, 1])
            address = Seat(lan, chance.randrange(SEATS)).address(version := chance.choice(VERSIONS))
            whom = address or "::/0"
        else:
            whom = chance.choice(_PREFIXES)
        version = 0 if whom.startswith("group/") else 6 if ":" in whom else 4
    if protocol in ("tcp", "udp") and chance.random() < 0.7:
        parts.append(",".join(chance.sample(_NUMBERS, chance.randint(1, 3))))
    elif protocol == "icmp" and chance.random() < 0.6:
        types = [each for each, (four, _) in ICMP_TYPES.items() if version != 4 or four is not None]
        parts.append(",".join(chance.sample(types, chance.randint(1, 3))))
    if whom:
        parts.append(f"{'from' if direction == 'in' else 'to'}={whom}")
    return ":".join(parts)


def random_facts(chance: random.Random) -> Facts:
    """A topology, in which the same few ports and addresses meet often."""
    groups = chance.randint(1, 5)
    rules = tuple(
        tuple(random_rule(chance, groups) for _ in range(chance.choice((0, 1, 1, 2, 3, 6)))) for _ in range(groups)
    )
    free = [Seat(lan, number) for lan in range(len(LANS)) for number in range(SEATS)]
    # Some of the networks, so that VMs have some in common.
    lans = chance.sample(range(len(LANS)), chance.randint(1, 4))
    free = [seat for seat in free if seat.lan in lans]
    chance.shuffle(free)
    ports = chance.sample([(p, n) for p in ("tcp", "udp") for n in (80, 443, 8080, 8081)], 8)
    made: list[Vm] = []
    for _ in range(chance.randint(2, 5)):
        seats: dict[int, Seat] = {}
        for _ in range(chance.choice((1, 1, 2))):
            if free:
                seat = free.pop()
                seats.setdefault(seat.lan, seat)
        bears = tuple(sorted(chance.sample(range(groups), min(groups, chance.choice((0, 1, 1, 2, 3))))))
        vm = Vm(tuple(seats.values()), bears)
        if any(LANS[seat.lan].spec.kind == "nat" for seat in vm.seats) and chance.random() < 0.5:
            vm = replace(vm, forwards=tuple(random_forwards(chance, vm, ports)))
        if vm.seats:
            made.append(vm)
    return Facts(tuple(made), rules)


def random_forwards(chance: random.Random, vm: Vm, ports: list[tuple[str, int]]) -> Iterator[vms.Forward]:
    first = next(seat for seat in vm.seats if LANS[seat.lan].spec.kind == "nat")
    for _ in range(chance.randint(1, 2)):
        if not ports:
            return
        protocol, number = ports.pop()
        version = chance.choice(VERSIONS if first.address(4) else (6,))
        address = chance.choice(("", "", *UPLINK[version]))
        guest_port = chance.choice((22, 53, 80, 443, 8080))
        yield vms.Forward(f"{number:016x}", protocol, address, number, guest_port)  # type: ignore[arg-type]


def with_rules(facts: Facts, number: int, rules: Sequence[str]) -> Facts:
    return replace(facts, groups=(*facts.groups[:number], tuple(rules), *facts.groups[number + 1 :]))


def without(values: tuple[T, ...], at: int) -> tuple[T, ...]:
    return (*values[:at], *values[at + 1 :])
