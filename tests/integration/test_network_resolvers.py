"""Addresses and names from a real dnsmasq, asked by real stacks, in network namespaces of each test."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from ipaddress import IPv4Address

import pytest
from msgspec.structs import replace

from aetherscale.actors.network.model.addresses import ipv6_of, link_local_of, mac_of
from aetherscale.actors.network.model.devices import advertiser_name, bridge_name, service_name
from tests.support.guest_namespaces import (
    AAAA,
    ACK,
    DISCOVER,
    NO_ERROR,
    NO_SUCH_NAME,
    OFFER,
    PTR,
    REQUEST,
    A,
    sh,
)
from tests.support.resolver_world import (
    DB,
    DB_MAC,
    FOREIGN_MAC,
    IPV4,
    IPV6,
    LAB,
    MTU,
    OUTSIDE4,
    OUTSIDE6,
    RESOLVER4,
    RESOLVER6,
    WEB,
    WEB_MAC,
    MakeGuest,
    World,
    cables,
    guest,
    lines,
    missing,
    network,
    until,
    web_in,
    with_addresses,
    world,
)

__all__ = ["guest", "world"]

pytestmark = [pytest.mark.integration, pytest.mark.skipif(bool(missing()), reason=missing())]

SEARCH = b"\x03lab\x08internal\x00"


# --- DHCP ---


async def test_a_guest_is_given_the_address_of_its_mac_whatever_it_calls_itself(world: World, guest: MakeGuest) -> None:
    await world.ensure(network(), WEB, DB)
    made = web_in(guest)
    for client_id in (b"\x01" + bytes.fromhex(DB_MAC.replace(":", "")), b"\xffanother", b""):
        options = [(61, client_id), (12, b"db")] if client_id else []
        address, offered = made.exchange(made.dhcp(DISCOVER, options=options))
        assert (address, offered[53]) == (str(WEB.ipv4), bytes([OFFER]))
        wanted = [(50, WEB.ipv4.packed), (54, offered[54]), *options] if WEB.ipv4 else []
        address, granted = made.exchange(made.dhcp(REQUEST, options=wanted))
        assert (address, granted[53]) == (str(WEB.ipv4), bytes([ACK]))
        assert granted[54] == granted[6] == IPv4Address(RESOLVER4).packed
        assert granted[1] == IPV4.netmask.packed
        assert (granted[12], granted[15], granted[119]) == (b"web", b"lab.internal", SEARCH)
        assert int.from_bytes(granted[26], "big") == MTU
        assert 3 not in granted, "an isolated network has no router"
    await with_addresses(made)
    assert made.ask(RESOLVER4, "db.lab.internal", A) == (NO_ERROR, [str(DB.ipv4)]), "not of who calls itself so"


async def test_a_foreign_mac_is_given_nothing(world: World, guest: MakeGuest) -> None:
    await world.ensure(network(), WEB)
    made = web_in(guest)
    # Answers come in the order of the questions: the first that comes is the one to the last.
    address, _ = made.exchange(*(made.dhcp(DISCOVER, mac=mac) for mac in (FOREIGN_MAC, DB_MAC, WEB_MAC)))
    assert address == str(WEB.ipv4)


async def test_a_lease_goes_on_with_the_next_process(world: World, guest: MakeGuest) -> None:
    pid = await world.ensure(network(), WEB)
    made = web_in(guest)
    os.kill(pid, signal.SIGKILL)
    await world.end_told.wait()
    await world.ensure(network(), WEB)
    assert WEB.ipv4 is not None
    renewal = made.dhcp(REQUEST, options=[(50, WEB.ipv4.packed)])
    address, granted = made.exchange(renewal)
    assert (address, granted[53]) == (str(WEB.ipv4), bytes([ACK]))


async def test_an_address_that_is_another_vms_now_is_given_to_it_at_once(world: World, guest: MakeGuest) -> None:
    """Though dnsmasq has leased it to another for a day, and not always to the last one that had it."""
    pid = await world.ensure(network(), WEB)
    made = web_in(guest)

    def lease(mac: str) -> str:
        address, _ = made.exchange(made.dhcp(DISCOVER, mac=mac))
        assert WEB.ipv4 is not None
        address, granted = made.exchange(made.dhcp(REQUEST, mac=mac, options=[(50, WEB.ipv4.packed)]))
        assert granted[53] == bytes([ACK])
        return address

    assert lease(WEB_MAC) == str(WEB.ipv4)
    assert await world.ensure(network()) == pid
    for mac, asks in ((FOREIGN_MAC, False), (DB_MAC, True), (FOREIGN_MAC, True), (WEB_MAC, True)):
        assert await world.ensure(network(), replace(WEB, vm="next", mac=mac)) == pid
        assert not asks or lease(mac) == str(WEB.ipv4)


# --- router advertisements and routes ---


async def test_an_isolated_network_has_addresses_and_no_default_route(world: World, guest: MakeGuest) -> None:
    await world.ensure(network(), WEB)
    made = web_in(guest)
    source, advertised = made.advertisement()
    assert source == str(link_local_of(mac_of(f"resolver {LAB}")))
    assert int.from_bytes(advertised[6:8], "big") == 0, "it is no router"
    _assert_options(advertised)
    assert made.exchange(made.dhcp(DISCOVER))[0] == str(WEB.ipv4)
    await with_addresses(made)
    assert lines(made, "-6", "route", "show", "default") == lines(made, "-4", "route", "show", "default") == []
    assert cables() == [service_name(LAB)]


def _assert_options(advertised: bytes) -> None:
    options = {}
    at = 16
    while at < len(advertised):
        options[advertised[at]] = advertised[at : at + 8 * advertised[at + 1]]
        at += 8 * advertised[at + 1]
    assert options[3][16:32] == IPV6.network_address.packed
    assert options[3][2:4] == bytes([64, 0xC0]), "on-link, and for guests to form addresses in"
    assert int.from_bytes(options[5][4:8], "big") == MTU
    assert options[25][8:24] == IPV6[0x53].packed
    assert options[31][8:].startswith(SEARCH)


async def test_the_routes_of_a_nat_network_lead_to_the_hosts_bridge(world: World, guest: MakeGuest) -> None:
    await world.route()
    await world.ensure(network("nat"), WEB)
    made = web_in(guest)
    router_mac = mac_of(bridge_name(LAB))
    source, advertised = made.advertisement()
    assert source == str(link_local_of(router_mac))
    assert int.from_bytes(advertised[6:8], "big") == 9000
    _assert_options(advertised)
    _, offered = made.exchange(made.dhcp(DISCOVER))
    assert offered[3] == IPV4[1].packed
    await with_addresses(made)
    made.sh("ip", "route", "add", "default", "via", str(IPv4Address(offered[3])))
    (default,) = lines(made, "-6", "route", "show", "default")
    assert default.startswith(f"default via {link_local_of(router_mac)} dev eth0")
    for address in (OUTSIDE4, OUTSIDE6):
        with _echo(address) as server:
            assert made.do(lambda: _echoed(server.address)) == b"hello"
    neighbors = lines(made, "-6", "neighbor", "show", str(link_local_of(router_mac)))
    assert [router_mac in line for line in neighbors] == [True], "not the resolver, which routes nothing"
    assert cables() == sorted([advertiser_name(LAB), service_name(LAB)])
    of_the_bridge = sh("ip", "-details", "link", "show", advertiser_name(LAB)).split()
    for setting in ("learning", "flood"):
        assert of_the_bridge[of_the_bridge.index(setting) + 1] == "off"


async def test_the_router_stays_when_the_resolver_is_gone(world: World, guest: MakeGuest) -> None:
    await world.route()
    pid = await world.ensure(network("nat"), WEB)
    made = await with_addresses(web_in(guest))
    os.kill(pid, signal.SIGKILL)
    await world.end_told.wait()
    await world.resolvers.remove(LAB)
    made.sh("ip", "-6", "neighbor", "flush", "dev", "eth0")
    with _echo(OUTSIDE6) as server:
        assert made.do(lambda: _echoed(server.address)) == b"hello"


class _echo:  # noqa: N801 - used as a function
    """A server of the host, of UDP."""

    def __init__(self, address: str, answer: Callable[[bytes], bytes] = bytes, port: int = 0) -> None:
        self._socket = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((address, port))
        self._answer = answer
        self.address = (address, self._socket.getsockname()[1])
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        while True:
            data, source = self._socket.recvfrom(2048)
            if data == b"stop":
                return
            self._socket.sendto(self._answer(data), source)

    def __enter__(self) -> _echo:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.sendto(b"stop", self.address)
        self._thread.join()
        self._socket.close()


def _echoed(address: tuple[str, int]) -> bytes:
    with socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(20)
        sock.connect(address)
        sock.send(b"hello")
        return sock.recv(2048)


# --- names ---


async def test_names_are_resolved_both_ways_and_no_others(world: World, guest: MakeGuest) -> None:
    await world.ensure(network(), WEB, DB)
    made = await with_addresses(web_in(guest))
    assert WEB.ipv6 is not None
    for server in (RESOLVER4, RESOLVER6):
        for tcp in (False, True):
            assert made.ask(server, "web.lab.internal", A, tcp=tcp) == (NO_ERROR, [str(WEB.ipv4)])
        assert made.ask(server, "web.lab.internal", AAAA) == (NO_ERROR, [str(WEB.ipv6)])
        assert made.ask(server, "web", A) == (NO_ERROR, [str(WEB.ipv4)]), "for a guest without a search domain"
        assert made.ask(server, "3.7.64.10.in-addr.arpa", PTR) == (NO_ERROR, ["db.lab.internal"])
        assert made.ask(server, WEB.ipv6.reverse_pointer, PTR) == (NO_ERROR, ["web.lab.internal"])
    unknown = ("x.lab.internal", "web.other.internal", "x", "example.com", "localhost.example")
    for name in unknown:
        assert made.ask(RESOLVER4, name, A) == (NO_SUCH_NAME, []), name
        assert made.ask(RESOLVER6, name, AAAA) == (NO_SUCH_NAME, []), name
    for pointer in ("99.7.64.10.in-addr.arpa", "8.8.8.8.in-addr.arpa", IPV6[99].reverse_pointer):
        assert made.ask(RESOLVER4, pointer, PTR) == (NO_SUCH_NAME, []), pointer


async def test_names_outside_are_asked_of_the_hosts_servers_and_names_inside_are_not(
    world: World, guest: MakeGuest
) -> None:
    asked: list[bytes] = []

    def answer(question: bytes) -> bytes:
        asked.append(question)
        found = b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4\xcb\0\x71\7"
        return question[:2] + b"\x81\x80\0\1\0\1\0\0\0\0" + question[12:][: question[12:].index(0) + 5] + found

    await world.route()
    await world.ensure(network("nat"), WEB)
    made = await with_addresses(web_in(guest))
    for name in ("x.lab.internal", "web.other.internal", "x"):
        assert made.ask(RESOLVER4, name, A) == (NO_SUCH_NAME, []), name
    with _echo(OUTSIDE4, answer, 53):
        # The servers of the host have changed: no new process is needed for that.
        world.upstreams = [IPv4Address(OUTSIDE4)]
        pid = await world.ensure(network("nat"), WEB)
        await until(lambda: made.ask(RESOLVER4, "example.com", A)[0] == NO_ERROR)
        assert made.ask(RESOLVER6, "example.com", A) == (NO_ERROR, ["203.0.113.7"])
        assert made.ask(RESOLVER4, "web.other.internal", A) == (NO_SUCH_NAME, [])
    assert world.resolvers.pid_of(LAB) == pid
    assert all(b"\7example\3com\0" in question for question in asked)


async def test_a_new_vm_is_known_to_the_same_process_and_a_deleted_one_is_not(world: World, guest: MakeGuest) -> None:
    pid = await world.ensure(network(), DB)
    made = web_in(guest)
    await world.resolvers.update(LAB, [WEB])
    made.sh("ip", "address", "add", f"{WEB.ipv4}/24", "dev", "eth0")
    await until(lambda: made.ask(RESOLVER4, "web.lab.internal", A) == (NO_ERROR, [str(WEB.ipv4)]))
    assert made.ask(RESOLVER4, "db.lab.internal", A) == (NO_SUCH_NAME, [])
    address, _ = made.exchange(*(made.dhcp(DISCOVER, mac=mac) for mac in (DB_MAC, WEB_MAC)))
    assert address == str(WEB.ipv4)
    assert world.resolvers.pid_of(LAB) == pid
    assert world.ends == []


def test_eui64_is_what_a_stack_forms() -> None:
    assert WEB.ipv6 == ipv6_of(IPV6, WEB_MAC)
