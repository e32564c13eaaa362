"""Resolvers of networks whose rules are in force, and what they are to guests that are behind these."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv6Network
from pathlib import Path
from typing import Literal

import pytest

from aetherscale.actors.network.model.addresses import ipv6_of, link_local_of, mac_of
from aetherscale.actors.network.model.devices import bridge_name
from aetherscale.actors.network.model.ruleset import NetworkRules, PortRules, compile, replace_all
from aetherscale.actors.network.nft.nftables import Nftables
from tests.support import firewalled
from tests.support.guest_namespaces import AAAA, ACK, DISCOVER, NO_ERROR, NO_SUCH_NAME, REQUEST, A, Guest, guests, sh
from tests.support.network_namespaces import network_namespace
from tests.support.resolver_world import (
    IPV4,
    IPV6,
    LAB,
    RESOLVER4,
    RESOLVER6,
    WEB,
    WEB_MAC,
    World,
    lines,
    missing,
    network,
)

LACKING = missing() or firewalled.missing() or ""
pytestmark = [pytest.mark.integration, pytest.mark.skipif(bool(LACKING), reason=LACKING)]

TAP = "aep000000000011"
UPLINK_MAC, FAR4, FAR6 = "02:99:00:00:00:09", "192.0.2.9", "2001:db8::9"
FOUND = "203.0.113.7"
CALLS = Path("/proc/sys/net/bridge")


@pytest.fixture(params=["0", "1"], ids=["bridge-nf-call off", "bridge-nf-call on"])
async def world(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[World]:
    with network_namespace():
        for setting in CALLS.glob("bridge-nf-call-*"):
            setting.write_text(request.param)
        made = World(tmp_path)
        await made.open()
        await made.route()
        yield made
        await made.close()


@pytest.fixture
def far(world: World) -> Iterator[Guest]:
    """A machine outside, which knows no way to the network: what reaches it has to come from the host itself."""
    sh("ip", "link", "add", "uplink", "type", "bridge")
    sh("ip", "link", "set", "uplink", "up")
    sh("ip", "address", "add", "192.0.2.100/24", "dev", "uplink")
    sh("ip", "address", "add", "2001:db8::100/64", "dev", "uplink", "nodad")
    with guests() as make:
        made = make("uplink", UPLINK_MAC)
        made.up()
        made.sh("ip", "address", "add", f"{FAR4}/24", "dev", "eth0")
        made.sh("ip", "address", "add", f"{FAR6}/64", "dev", "eth0", "nodad")
        yield made


def apply(kind: Literal["isolated", "nat"]) -> None:
    own = (ipv6_of(IPv6Network("fe80::/64"), WEB_MAC), ipv6_of(IPV6, WEB_MAC))
    rules = NetworkRules(bridge_name(LAB), kind, IPV4, IPV6)
    with_port = compile([rules], [PortRules(TAP, bridge_name(LAB), WEB_MAC, WEB.ipv4, own)])
    nft = Nftables()
    nft.run(replace_all(with_port))
    nft.close()


@contextmanager
def serving(at: Guest, address: str, port: int, heard: list[str]) -> Iterator[None]:
    """A server of DNS in a namespace, which gives one answer to every question, and remembers who asked."""

    def bound() -> socket.socket:
        made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
        made.bind((address, port))
        return made

    listening = at.do(bound)

    def serve() -> None:
        while True:
            question, source = listening.recvfrom(2048)
            if question == b"stop":
                return
            heard.append(source[0])
            end = 12 + question[12:].index(0) + 5
            found = b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4" + IPv4Address(FOUND).packed
            answer = question[:2] + b"\x81\x80\0\1\0\1\0\0\0\0" + question[12:end] + found
            listening.sendto(answer, source)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        with listening.dup() as sending:
            sending.sendto(b"stop", listening.getsockname()[:2])
        thread.join()
        listening.close()


async def test_a_guest_behind_its_rules_has_addresses_names_and_the_world(world: World, far: Guest) -> None:
    world.upstreams = [IPv4Address(FAR4)]
    apply("nat")
    await world.ensure(network("nat"), WEB)
    with guests() as make:
        guest = make(bridge_name(LAB), WEB_MAC, TAP)
        guest.up()
        source, _ = guest.advertisement()
        assert source == str(link_local_of(mac_of(bridge_name(LAB))))
        address, offered = guest.exchange(guest.dhcp(DISCOVER))
        requested = guest.dhcp(REQUEST, options=[(50, IPv4Address(address).packed), (54, offered[54])])
        address, granted = guest.exchange(requested)
        assert (address, granted[53]) == (str(WEB.ipv4), bytes([ACK]))
        guest.sh("ip", "address", "add", f"{address}/24", "dev", "eth0")
        guest.sh("ip", "route", "add", "default", "via", str(IPv4Address(granted[3])))
        assert len(lines(guest, "-6", "route", "show", "default")) == 1
        for server in (RESOLVER4, RESOLVER6):
            assert guest.ask(server, "web.lab.internal", A) == (NO_ERROR, [str(WEB.ipv4)])
            assert guest.ask(server, "web.lab.internal", AAAA, tcp=True) == (NO_ERROR, [str(WEB.ipv6)])
        heard: list[str] = []
        with serving(far, FAR4, 53, heard), serving(far, FAR6, 53, heard):
            for server in (RESOLVER4, RESOLVER6, FAR4, FAR6):
                assert guest.ask(server, f"x{server.count(':')}.example.com", A) == (NO_ERROR, [FOUND]), server
        assert set(heard) == {"192.0.2.100", "2001:db8::100"}, "all of it masqueraded"


async def test_a_guest_of_an_isolated_network_has_addresses_and_names_alone(world: World) -> None:
    apply("isolated")
    await world.ensure(network(), WEB)
    with guests() as make:
        guest = make(bridge_name(LAB), WEB_MAC, TAP)
        guest.up()
        guest.advertisement()
        address, _ = guest.exchange(guest.dhcp(DISCOVER))
        guest.sh("ip", "address", "add", f"{address}/24", "dev", "eth0")
        assert guest.ask(RESOLVER6, "web.lab.internal", A) == (NO_ERROR, [str(WEB.ipv4)])
        assert guest.ask(RESOLVER4, "example.com", A) == (NO_SUCH_NAME, [])
        assert lines(guest, "-6", "route", "show", "default") == []
