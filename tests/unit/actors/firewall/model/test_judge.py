"""The law of the firewall, sentence by sentence, and what holds of it whatever the groups are."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aetherscale.actors.firewall.model.commands import Rule
from aetherscale.actors.firewall.model.judge import LAW, judge
from aetherscale.actors.firewall.model.topology import HOST, End, Group, Machine, Net, Packet, Port, Topology

LAB: Final = Net("n1", "lab", "isolated", None, "fd01::/64")
OUT: Final = Net("n2", "out", "nat", "10.64.0.0/24", "fd02::/64")
LAN: Final = Net("n3", "lan", "bridged")
STREET: Final = Net("n4", "street", "public")
WORLD: Final = ip_address("192.0.2.7")
WORLD6: Final = ip_address("2001:db8::7")
HTTP: Final = Packet("tcp", 80)
SSH: Final = Packet("tcp", 22)
PING: Final = Packet("icmp", icmp="echo-request")

IN_HTTP: Final = Rule("in", "tcp", ("80", "8000-8100"))
OUT_DNS: Final = Rule("out", "udp", ("53",))


def port(net: Net, number: int) -> Port:
    texts = [f"10.64.0.{number}"] if net.ipv4 else []
    texts += [f"{net.ipv6.removesuffix('/64')}{number:x}"] if net.ipv6 else []
    return Port(net.id, tuple(map(ip_address, texts)))


def machine(name: str, net: Net, number: int, *groups: str) -> Machine:
    return Machine(name, name, (port(net, number),), groups)


def world(*machines: Machine, **groups: tuple[Rule, ...]) -> Topology:
    return Topology(
        {net.id: net for net in (LAB, OUT, LAN, STREET)},
        {name: Group(name, name, rules) for name, rules in groups.items()},
        {each.id: each for each in machines},
    )


def passes(topology: Topology, sender: End, receiver: End, packet: Packet) -> bool:
    return judge(topology, sender, receiver, packet).passes


def test_the_docs_have_the_sentences() -> None:
    docs = Path(__file__).parents[5].joinpath("docs/firewall.md").read_text()
    assert [sentence for sentence in LAW if sentence in docs] == list(LAW)


@pytest.mark.parametrize("net", [LAB, OUT, LAN])
@pytest.mark.parametrize("packet", [HTTP, PING, Packet("udp", 53)])
def test_a_vm_without_groups_takes_anything_from_its_own_network(net: Net, packet: Packet) -> None:
    web, db = machine("web", net, 2), machine("db", net, 3)
    assert passes(world(web, db), web, db, packet)


@pytest.mark.parametrize("sender", [WORLD, WORLD6, HOST])
def test_a_vm_without_groups_takes_nothing_from_outside(sender: End) -> None:
    web = machine("web", OUT, 2)
    verdict = judge(world(web), sender, web, HTTP)
    assert (verdict.passes, verdict.because) == (False, LAW[0])


def test_on_a_bridge_of_the_host_what_is_beside_it_is_of_its_own_network() -> None:
    web = machine("web", LAN, 2)
    assert passes(world(web), WORLD, web, HTTP)
    assert passes(world(web), HOST, web, HTTP)


@pytest.mark.parametrize("sender", ["db", WORLD, WORLD6, HOST])
def test_on_the_public_bridge_all_is_outside_also_other_vms_and_the_host(sender: Any) -> None:
    web, db = machine("web", STREET, 2), machine("db", STREET, 3)
    end = db if sender == "db" else sender
    verdict = judge(world(web, db), end, web, HTTP)
    assert (verdict.passes, verdict.because) == (False, LAW[0])
    web = machine("web", STREET, 2, "http")
    topology = world(web, db, http=(IN_HTTP,))
    assert (passes(topology, end, web, HTTP), passes(topology, end, web, SSH)) == (True, False)


@pytest.mark.parametrize("receiver", [WORLD, WORLD6])
def test_from_the_public_bridge_a_vm_sends_anywhere(receiver: Any) -> None:
    assert passes(world(machine("web", STREET, 2)), machine("web", STREET, 2), receiver, HTTP)
    assert not passes(world(machine("web", STREET, 2)), machine("web", STREET, 2), HOST, HTTP)


def test_vms_of_two_networks_never_reach_each_other() -> None:
    web, db = machine("web", LAB, 2), machine("db", OUT, 3, "any")
    topology = world(web, db, any=(Rule("in", "any"), Rule("out", "any")))
    assert not passes(topology, web, db, HTTP)
    assert not passes(topology, db, web, HTTP)
    address = port(OUT, 3).addresses[0]
    assert not passes(topology, web, address, HTTP)


@pytest.mark.parametrize("sender", ["db", WORLD, WORLD6, HOST])
def test_a_vm_with_groups_takes_exactly_what_they_allow_wherever_it_comes_from(sender: Any) -> None:
    web, db = machine("web", OUT, 2, "http"), machine("db", OUT, 3)
    topology = world(web, db, http=(IN_HTTP,))
    end = db if sender == "db" else sender
    verdict = judge(topology, end, web, HTTP)
    assert (verdict.passes, verdict.group, verdict.rule) == (True, "http", IN_HTTP)
    assert passes(topology, end, web, Packet("tcp", 8100))
    for refused in (SSH, PING, Packet("udp", 80), Packet("tcp", 8101), Packet("tcp", 7999)):
        verdict = judge(topology, end, web, refused)
        assert (verdict.passes, LAW[1] in verdict.because) == (False, True), refused


def test_a_group_without_rules_lets_nothing_in_and_everything_out() -> None:
    web, db = machine("web", OUT, 2, "none"), machine("db", OUT, 3)
    topology = world(web, db, none=())
    assert not passes(topology, db, web, PING)
    assert passes(topology, web, db, PING)
    assert passes(topology, web, WORLD, HTTP)


def test_it_sends_anywhere_unless_a_group_has_a_rule_out_then_exactly_that() -> None:
    web, db = machine("web", OUT, 2, "dns", "http"), machine("db", OUT, 3)
    topology = world(web, db, dns=(OUT_DNS,), http=(IN_HTTP,))
    assert passes(topology, web, WORLD, Packet("udp", 53))
    assert passes(topology, web, db, Packet("udp", 53))
    for receiver in (WORLD, db, HOST):
        verdict = judge(topology, web, receiver, HTTP if receiver != HOST else PING)
        assert (verdict.passes, LAW[2] in verdict.because) == (False, True), receiver
    assert passes(topology, db, web, HTTP)


def test_a_rule_about_a_prefix_is_about_the_other_end() -> None:
    near = Rule("in", "tcp", ("22",), cidr="192.0.2.0/24")
    web = machine("web", OUT, 2, "near", "far")
    topology = world(web, near=(near,), far=(Rule("out", "tcp", cidr="192.0.2.7/32"),))
    assert passes(topology, WORLD, web, SSH)
    assert not passes(topology, ip_address("198.51.100.1"), web, SSH)
    assert not passes(topology, WORLD6, web, SSH)
    assert passes(topology, web, WORLD, SSH)
    assert not passes(topology, web, ip_address("192.0.2.8"), SSH)


def test_a_rule_about_a_group_is_about_its_members() -> None:
    web, db, other = machine("web", LAB, 2, "web"), machine("db", LAB, 3, "db"), machine("other", LAB, 4)
    topology = world(web, db, other, web=(), db=(Rule("in", "any", group_id="web", group="web"),))
    assert passes(topology, web, db, SSH)
    assert not passes(topology, other, db, SSH)
    address = port(LAB, 2).addresses[0]
    assert not passes(topology, address, db, SSH), "an address alone is no member"


def test_of_the_host_a_vm_reaches_ping_and_nothing_else() -> None:
    web = machine("web", OUT, 2)
    assert passes(world(web), web, HOST, PING)
    assert not passes(world(web), web, HOST, SSH)
    assert not passes(world(web), machine("lone", LAB, 2), HOST, PING)


def test_an_isolated_network_leads_nowhere() -> None:
    lone = machine("lone", LAB, 2)
    assert not passes(world(lone), lone, WORLD6, HTTP)
    assert not passes(world(lone), WORLD6, lone, HTTP)
    assert not passes(world(lone), HOST, lone, HTTP)


RULES: Final = st.builds(
    Rule,
    st.sampled_from(["in", "out"]),
    st.sampled_from(["tcp", "udp", "any"]),
    cidr=st.sampled_from([None, "10.64.0.0/24", "192.0.2.0/24", "::/0", "0.0.0.0/0"]),
)
GROUPS: Final = st.lists(RULES, max_size=4).map(tuple)
ENDS: Final = st.sampled_from([0, 1, WORLD, WORLD6, HOST])


@given(GROUPS, GROUPS, st.builds(Rule, st.just("in"), st.just("any")), ENDS, ENDS)
def test_a_rule_in_more_never_closes_anything(
    one: tuple[Rule, ...], other: tuple[Rule, ...], more: Rule, sender: Any, receiver: Any
) -> None:
    machines = machine("web", OUT, 2, "one"), machine("db", OUT, 3, "one", "other")
    ends = [machines[each] if isinstance(each, int) else each for each in (sender, receiver)]
    before = world(*machines, one=one, other=other)
    after = world(*machines, one=(*one, more), other=other)
    for packet in (HTTP, Packet("udp", 9), PING):
        assert passes(before, ends[0], ends[1], packet) <= passes(after, ends[0], ends[1], packet)


@given(GROUPS, GROUPS, ENDS)
def test_the_order_of_groups_and_rules_means_nothing(
    one: tuple[Rule, ...], other: tuple[Rule, ...], sender: Any
) -> None:
    db = machine("db", OUT, 3)
    end = db if isinstance(sender, int) else sender
    for packet in (HTTP, Packet("udp", 9), PING):
        forth, back = machine("web", OUT, 2, "one", "other"), machine("web", OUT, 2, "other", "one")
        first = world(forth, db, one=one, other=other)
        second = world(back, db, one=one[::-1], other=other[::-1])
        assert passes(first, end, forth, packet) == passes(second, end, back, packet)
        assert passes(first, forth, end, packet) == passes(second, back, end, packet)
