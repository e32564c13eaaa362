"""Which flows are allowed, as the driver tells it of taps: the same as the law says of VMs."""

from __future__ import annotations

import random
from ipaddress import ip_address
from typing import Final, Literal

import pytest

from aetherscale.actors.compute.model.commands import PortSpec, VmRules
from aetherscale.actors.firewall.model import topology as law
from aetherscale.actors.firewall.model.commands import Rule
from aetherscale.actors.firewall.model.judge import judge_sent, judge_taken
from aetherscale.actors.network.established import Allowed
from aetherscale.actors.network.known import Known
from aetherscale.actors.network.model.addresses import link_local_of, mac_of
from aetherscale.actors.network.model.devices import tap_name
from aetherscale.actors.network.model.effects import NetworkKind, NetworkSpec
from aetherscale.actors.network.model.groups import compile_group
from aetherscale.actors.network.nft.flows import Flow

LAB: Final = "0" * 16
VMS: Final = tuple(f"{number:016x}" for number in (2, 3, 4))
GROUPS: Final = tuple(f"{number:016x}" for number in (10, 11, 12))
WORLD: Final = ("192.0.2.7", "2001:db8::7")
PORTS: Final = ((), ("80",), ("22", "443"), ("1-1024",), ("80", "8000-8100"))
NUMBERS: Final = (22, 80, 1025, 8050)


def spec(kind: NetworkKind) -> NetworkSpec:
    if kind in ("bridged", "public"):
        return NetworkSpec("lab", kind, None, None, "br0")
    return NetworkSpec("lab", kind, "10.9.8.0/24", "fd12:3456:789a:1::/64", None)


def port(vm_id: str, kind: NetworkKind, allowed: tuple[str, ...] = ()) -> PortSpec:
    number = int(vm_id, 16)
    has_own = kind in ("isolated", "nat")
    ipv4, ipv6 = (f"10.9.8.{number}", f"fd12:3456:789a:1::{number:x}") if has_own else (None, None)
    return PortSpec(LAB, "lab", f"vm-{number}", tap_name(vm_id, 0), mac_of(vm_id), ipv4, ipv6, [*allowed])


def known(kind: NetworkKind, borne: dict[str, tuple[str, ...]], rules: dict[str, list[Rule]]) -> Known:
    made = Known()
    made.set_networks({LAB: spec(kind)})
    made.set_ports({vm_id: [port(vm_id, kind)] for vm_id in VMS})
    made.set_groups({group_id: compile_group(of_group) for group_id, of_group in rules.items()})
    made.set_rules({vm_id: VmRules(groups) for vm_id, groups in borne.items()})
    return made


def random_rule(chance: random.Random) -> Rule:
    direction: Literal["in", "out"] = chance.choice(("in", "in", "out"))
    protocol: Literal["tcp", "udp", "any", "icmp"] = chance.choice(("tcp", "tcp", "udp", "any", "icmp"))
    ports = chance.choice(PORTS) if protocol in ("tcp", "udp") else ()
    about = chance.choice(("", "", "cidr", "group"))
    cidrs = ("10.9.8.0/24", "0.0.0.0/0", "192.0.2.0/24", "::/0", "fd12:3456:789a:1::3/128", "fe80::/10")
    return Rule(
        direction,
        protocol,
        ports,
        cidr=chance.choice(cidrs) if about == "cidr" else None,
        group_id=chance.choice(GROUPS) if about == "group" else None,
    )


def as_the_law_has_it(kind: NetworkKind, made: Known, rules: dict[str, list[Rule]]) -> law.Topology:
    of = spec(kind)
    routers = tuple(map(ip_address, ("10.9.8.1", "fd12:3456:789a:1::1"))) if kind == "nat" else ()
    machines = {}
    for vm_id in VMS:
        (own,) = made.ports_of(vm_id)
        addresses = (ip_address(str(own.ipv4)), ip_address(str(own.ipv6)), link_local_of(own.mac))
        machines[vm_id] = law.Machine(vm_id, vm_id, (law.Port(LAB, addresses),), made.rules_of(vm_id).groups)
    groups = {group_id: law.Group(group_id, group_id, tuple(of_group)) for group_id, of_group in rules.items()}
    return law.Topology({LAB: law.Net(LAB, "lab", kind, of.ipv4, of.ipv6, routers)}, groups, machines)


@pytest.mark.parametrize("kind", ["isolated", "nat"])
def test_what_is_allowed_is_what_the_law_says(kind: NetworkKind) -> None:
    chance, said = random.Random(kind), {True: 0, False: 0}  # noqa: S311
    for _ in range(300):
        rules = {group_id: [random_rule(chance) for _ in range(chance.randint(0, 3))] for group_id in GROUPS}
        made = known(kind, {vm_id: tuple(chance.sample(GROUPS, chance.randint(0, 2))) for vm_id in VMS}, rules)
        topology, before = as_the_law_has_it(kind, made, rules), Allowed(made)
        web = topology.machines[VMS[0]]
        (own,) = made.ports_of(VMS[0])
        others = [(other, address) for other in VMS[1:] for address in topology.machines[other].ports[0].addresses]
        outside = [*WORLD, "10.9.8.1", "fd12:3456:789a:1::1"] if kind == "nat" else []
        ends = [(topology.machines[vm_id], address) for vm_id, address in others]
        for other, remote in [*ends, *((None, ip_address(text)) for text in outside)]:
            local = next(each for each in web.ports[0].addresses if each.version == remote.version)
            protocol: Literal["tcp", "udp"] = chance.choice(("tcp", "udp"))
            number = chance.choice(NUMBERS)
            packet = law.Packet(protocol, number)
            inward = judge_taken(topology, web, LAB, other, remote, packet).passes
            assert before.allows("in", protocol, Flow(own.tap, local, remote, number, 9)) == inward, (rules, remote)
            outward = judge_sent(topology, web, other, remote, packet).passes
            assert before.allows("out", protocol, Flow(own.tap, local, remote, 9, number)) == outward, (rules, remote)
            said[inward] += 1
            said[outward] += 1
    assert min(said.values()) > 500, said


def flow(vm_id: str, remote: str, number: int = 80) -> Flow:
    return Flow(tap_name(vm_id, 0), ip_address("10.9.8.2"), ip_address(remote), number, number)


def test_it_is_of_the_moment_when_it_was_made() -> None:
    made = known("nat", {VMS[0]: (GROUPS[0],)}, {GROUPS[0]: [Rule("in", "tcp", ("80",))]})
    before = Allowed(made)
    made.set_groups({GROUPS[0]: compile_group([])})
    made.set_rules({VMS[0]: VmRules((GROUPS[1],))})
    assert before.allows("in", "tcp", flow(VMS[0], WORLD[0]))
    assert not Allowed(made).allows("in", "tcp", flow(VMS[0], WORLD[0]))


def test_of_a_port_that_is_not_known_nothing_is_allowed() -> None:
    assert not Allowed(known("nat", {}, {})).allows("out", "tcp", flow("f" * 16, WORLD[0]))
    made = known("nat", {}, {})
    made.forget_network(LAB)
    assert not Allowed(made).allows("out", "tcp", flow(VMS[0], WORLD[0]))


@pytest.mark.parametrize(("kind", "is_allowed"), [("bridged", True), ("public", False)])
def test_on_a_bridge_of_the_host_without_groups(kind: NetworkKind, is_allowed: bool) -> None:
    before = Allowed(known(kind, {}, {}))
    assert before.allows("in", "tcp", flow(VMS[0], WORLD[0])) == is_allowed
    assert before.allows("out", "tcp", flow(VMS[0], WORLD[0]))


@pytest.mark.parametrize("has_member", [True, False])
def test_on_a_bridge_of_the_host_members_are_not_known_by_address(has_member: bool) -> None:
    borne: dict[str, tuple[str, ...]] = {VMS[0]: (GROUPS[0],)}
    if has_member:
        borne[VMS[1]] = (GROUPS[1],)
    before = Allowed(known("bridged", borne, {GROUPS[0]: [Rule("in", "tcp", ("80",), group_id=GROUPS[1])]}))
    assert before.allows("in", "tcp", flow(VMS[0], WORLD[0])) == has_member
    assert not before.allows("in", "tcp", flow(VMS[0], WORLD[0], 81))


def test_what_a_vm_may_send_from_besides_its_own_addresses_is_its() -> None:
    made = known("nat", {VMS[1]: (GROUPS[0],), VMS[2]: (GROUPS[1],)},
                 {GROUPS[0]: [Rule("in", "tcp", group_id=GROUPS[1])]})  # fmt: skip
    assert not Allowed(made).allows("in", "tcp", flow(VMS[0], "172.17.0.9"))
    made.set_ports({VMS[2]: [port(VMS[2], "nat", ("172.17.0.0/16",))]})
    for vm_id in VMS[:2]:
        assert Allowed(made).allows("in", "tcp", flow(vm_id, "172.17.0.9"))
        assert not Allowed(made).allows("in", "tcp", flow(vm_id, "172.18.0.9"))
