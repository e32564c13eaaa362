"""What dnsmasq is told, as text: every line is of a known form, and a user's words end where they are meant to."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aetherscale.actors.network.model.addresses import ipv6_of, mac_of, resolver_of
from aetherscale.actors.network.model.dns import (
    MOST_FORMER,
    NOTHING_ELSEWHERE,
    Address,
    DnsNetwork,
    DnsPort,
    Elsewhere,
    configuration,
    devices,
    elsewhere,
    leases,
    names,
    upstreams,
    upstreams_of,
)
from aetherscale.kernel.names import ID_PATTERN, NAME_PATTERN

IPV4, IPV6 = IPv4Network("10.64.7.0/24"), IPv6Network("fd00:7::/64")
MAC, ROUTER_MAC = "02:00:00:00:00:11", "02:00:00:00:00:01"
NAMES = st.from_regex(NAME_PATTERN, fullmatch=True)
LINES = {
    "configuration": r"[a-z0-9-]+(=[A-Za-z0-9:./,\[\]#-]*)?",
    "leases": r"[0-9a-f:]{17},[0-9.]+,[a-z0-9-]+",
    "names": r"[0-9a-f:.]+ (?P<vm>[a-z0-9-]+)\.[a-z0-9-]+\.internal (?P=vm)",
    "elsewhere": r"server=/#/|(server=/[a-z0-9-]+\.internal/|rev-server=[0-9a-f:./]+,)255\.255\.255\.255",
    "devices": r"(link|address|route) [a-z0-9:./ ]+",
}


def network(kind: Literal["isolated", "nat"] = "isolated", **others: Any) -> DnsNetwork:
    return DnsNetwork(**{"name": "lab", "kind": kind, "ipv4": IPV4, "ipv6": IPV6, **others})


def told(of: DnsNetwork) -> set[str]:
    return set(configuration(of, "/tmp").splitlines())


def test_a_resolver_has_the_last_address_of_hosts_and_53() -> None:
    assert resolver_of(IPV4) == IPv4Address("10.64.7.254")
    assert resolver_of(IPv4Network("10.64.7.4/30")) == IPv4Address("10.64.7.6")
    assert resolver_of(IPV6) == IPv6Address("fd00:7::53")


def test_an_isolated_network_has_no_router_no_upstream_and_an_answer_to_every_name() -> None:
    lines = told(network())
    assert elsewhere(network(), NOTHING_ELSEWHERE) == "server=/#/\n"
    assert {
        "no-resolv",
        "servers-file=/tmp/elsewhere",
        "dhcp-option=option:router",
        "ra-param=eth0,mtu:1500,60,0",
    } <= lines
    assert not any("eth1" in line or "resolv-file" in line for line in lines)
    assert "default" not in devices(network(), MAC, ROUTER_MAC)


def test_a_nat_network_has_the_hosts_router_of_both_families() -> None:
    lines = told(network("nat"))
    assert {"dhcp-option=option:router,10.64.7.1", "ra-param=eth1,mtu:1500,60,9000"} <= lines
    assert {"resolv-file=/tmp/upstreams", "no-dhcpv6-interface=eth0", "no-dhcpv4-interface=eth1"} <= lines
    assert "no-resolv" not in lines
    assert elsewhere(network("nat"), NOTHING_ELSEWHERE) == ""
    made = devices(network("nat"), MAC, ROUTER_MAC).splitlines()
    assert "address add fe80::1/64 dev eth1 nodad" not in made
    assert {"address add fe80::ff:fe00:1/64 dev eth1 nodad", "route add default via 10.64.7.1 dev eth0"} <= set(made)
    assert "route add default via fe80::ff:fe00:1 dev eth0" in made
    assert "address add fd00:7::1/64 dev eth1 nodad noprefixroute" in made


@pytest.mark.parametrize("kind", ["isolated", "nat"])
def test_a_network_without_a_family_says_nothing_of_it(kind: Literal["isolated", "nat"]) -> None:
    without4, without6 = told(network(kind, ipv4=None)), told(network(kind, ipv6=None))
    assert not any("option:" in line or "static" in line or "leases" in line for line in without4)
    assert not any("ra-" in line or "option6" in line or "eth1" in line or line == "enable-ra" for line in without6)
    assert "10." not in devices(network(kind, ipv4=None), MAC, ROUTER_MAC)
    assert not re.search("fd00|eth1", devices(network(kind, ipv6=None), MAC, ROUTER_MAC))
    neither = network(kind, ipv4=None, ipv6=None)
    assert told(neither) <= told(network(kind))


def test_a_port_is_in_the_files_with_what_it_has() -> None:
    both = DnsPort("web", MAC, IPv4Address("10.64.7.2"), ipv6_of(IPV6, MAC))
    only6 = DnsPort("db", mac_of("x"), None, IPv6Address("fd00:7::3"))
    ports = [both, only6, DnsPort("none", mac_of("y"))]
    assert leases(ports) == f"{MAC},10.64.7.2,web\n"
    assert names(network(), ports) == (
        "10.64.7.2 web.lab.internal web\nfd00:7::ff:fe00:11 web.lab.internal web\nfd00:7::3 db.lab.internal db\n"
    )


def test_an_address_goes_with_the_macs_that_it_had_before() -> None:
    web, db, late = (DnsPort(vm, mac_of(vm), IPv4Address("10.64.7.2")) for vm in ("web", "db", "late"))
    other = DnsPort("other", mac_of("other"), IPv4Address("10.64.7.3"))
    first = leases([web, other])
    gone = leases([other], first)
    assert gone == f"{other.mac},10.64.7.3,other\n#{web.mac},10.64.7.2\n"
    assert leases([other], gone) == gone
    taken = leases([db, other], gone)
    assert taken == f"{db.mac},{web.mac},10.64.7.2,db\n{other.mac},10.64.7.3,other\n"
    assert leases([late], leases([], taken)) == (
        f"{late.mac},{db.mac},{web.mac},10.64.7.2,late\n#{other.mac},10.64.7.3\n"
    )
    text = ""
    for number in range(2 * MOST_FORMER):
        text = leases([DnsPort("x", mac_of(str(number)), IPv4Address("10.64.7.2"))], text)
    macs = [mac_of(str(number)) for number in reversed(range(MOST_FORMER - 1, 2 * MOST_FORMER))]
    assert text == f"{','.join(macs)},10.64.7.2,x\n"


@pytest.mark.parametrize("kind", ["isolated", "nat"])
def test_what_other_networks_of_a_vm_know_is_refused_and_no_more(kind: Literal["isolated", "nat"]) -> None:
    both = DnsNetwork("other", "isolated", IPv4Network("10.9.9.0/24"), IPv6Network("fd00:9::/64"))
    only6 = DnsNetwork("third", "nat", None, IPv6Network("fd00:a::/64"))
    refused = (
        "server=/other.internal/255.255.255.255\n"
        "rev-server=10.9.9.0/24,255.255.255.255\nrev-server=fd00:9::/64,255.255.255.255\n"
        "server=/third.internal/255.255.255.255\nrev-server=fd00:a::/64,255.255.255.255\n"
    )
    nowhere = "server=/#/\n" if kind == "isolated" else ""
    assert elsewhere(network(kind), Elsewhere((both, only6))) == nowhere + refused
    assert elsewhere(network(kind), Elsewhere((both, only6), outside=True)) == refused
    assert elsewhere(network(kind), Elsewhere(outside=True)) == ""


@given(NAMES, NAMES, st.from_regex(ID_PATTERN, fullmatch=True), st.sampled_from(("isolated", "nat")))
def test_every_line_is_of_a_known_form(name: str, vm: str, port_id: str, kind: Literal["isolated", "nat"]) -> None:
    made, mac = network(kind, name=name), mac_of(port_id)
    port = DnsPort(vm, mac, IPV4[7], ipv6_of(IPV6, mac))
    texts = {
        "configuration": configuration(made, "/tmp"),
        "leases": leases([port]),
        "names": names(made, [port]),
        "elsewhere": elsewhere(network(), Elsewhere((made,))),
        "devices": devices(made, mac, mac),
    }
    for what, text in texts.items():
        assert text.endswith("\n")
        for line in text.splitlines():
            assert re.fullmatch(LINES[what], line), line


HOSTILE = ["", "a b", "web\n10.64.7.9 db.lab.internal", "web\n", "a,b", "web.lab", "*", "-web", "Web", "wéb", "a" * 64]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_name_that_is_none_is_written_nowhere(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        network(name=text)
    with pytest.raises(ValueError, match="expected"):
        DnsPort(text, MAC)


@pytest.mark.parametrize(
    "changes",
    [
        {"mac": "02:00:00:00:00:11\n"},
        {"mac": "02:00:00:00:00:1A"},
        {"mac": "*:*:*:*:*:*"},
        {"ipv4": IPv6Address("::1")},
        {"ipv4": "10.64.7.2"},
        {"ipv6": IPv6Address("fe80::1%eth0")},
    ],
)
def test_a_port_of_no_such_type_is_none(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected|not of"):
        DnsPort(**{"vm": "web", "mac": MAC, **changes})


@pytest.mark.parametrize("changes", [{"kind": "bridged"}, {"mtu": 1279}, {"mtu": 65536}, {"mtu": True}, {"ipv6": IPV4}])
def test_a_network_of_no_such_type_is_none(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"is isolated or nat|MTU|not of"):
        network(**changes)


def test_only_servers_that_are_reached_from_elsewhere_are_asked() -> None:
    text = """# comment
nameserver 127.0.0.53
nameserver ::1
 nameserver   192.0.2.1
nameserver fe80::1%eth0
nameserver 2001:db8::1 trailing
nameserver 192.0.2.1
nameserver
nameserver dns.example.com
search example.com
nameserver 0.0.0.0
"""
    servers: list[Address] = [IPv4Address("192.0.2.1"), IPv6Address("2001:db8::1")]
    assert upstreams_of(text) == (servers, True)
    assert upstreams_of("nameserver 192.0.2.1") == (servers[:1], False)
    assert upstreams_of("") == ([], False)
    assert upstreams(servers) == "nameserver 192.0.2.1\nnameserver 2001:db8::1\n"
