"""The public bridge in the kernel: what its ports take, and what they may be called, by DHCP and by decision."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from ipaddress import IPv6Address

import pytest

from aetherscale.actors.network.leases import Leases
from aetherscale.actors.network.model.chains import Drop
from aetherscale.actors.network.model.leases import LEASED, MOST_AT_ONCE, MOST_KEPT
from aetherscale.actors.network.model.ruleset import NetworkRules, replace_all
from tests.support import firewalled, frames
from tests.support.fake_guest import FakeGuest
from tests.support.firewalled import Firewalled
from tests.support.frames import BROADCAST, SYN, link_layer
from tests.support.spoofs import ANY, NOWHERE

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(firewalled.missing() is not None, reason=str(firewalled.missing())),
]
VERSIONS = (4, 6)
WEB = "a" * 16
HOST = {4: "10.64.1.1", 6: "fd00:1::1"}


@pytest.fixture
def host() -> Iterator[Firewalled]:
    with firewalled.firewalled() as made:
        made.flows.ensure()
        yield made


@pytest.fixture
def lan(host: Firewalled) -> NetworkRules:
    return host.network(1, "public")


def to(guest: FakeGuest, version: int) -> str:
    return guest.ipv4 if version == 4 else guest.ipv6


def comes(one: FakeGuest, frame: bytes, other: FakeGuest) -> bool:
    """Whether what one sends reaches the other: the kernel forwards it while it is written."""
    other.received()
    one.send(frame)
    return any(got[14:] == frame[14:] for got in other.received())


def asks(one: FakeGuest, other: FakeGuest, version: int, ports: tuple[int, int] = (9, 80)) -> bytes:
    return one.tcp(to(other, version), SYN, mac=other.mac, ports=ports, at=(1, 0))


def answer(server: FakeGuest, address: str, mac: str, *, op: int = 2, ports: tuple[int, int] = (67, 68)) -> bytes:
    """What a server of DHCP says to who has this MAC: the address is yours. As a broadcast."""
    head = struct.pack("!BBBBIHH", op, 1, 6, 0, 7, 0, 0x8000) + bytes(4) + frames.address(address) + bytes(8)
    said = (head + frames.mac(mac)).ljust(236, b"\0") + b"\x63\x82\x53\x63\x35\x01\x05\xff"
    return server.udp("255.255.255.255", said, mac=BROADCAST, ports=ports)


def speaks(guest: FakeGuest, other: FakeGuest, address: str) -> bool:
    """Whether a packet from this address passes."""
    return comes(guest, guest.udp(other.ipv4, b"here I am", mac=other.mac, source=address), other)


@pytest.mark.parametrize("version", VERSIONS)
class TestTheLaw:
    def test_without_groups_it_takes_nothing_from_anyone_there_and_answers_pass(
        self, host: Firewalled, lan: NetworkRules, version: int
    ) -> None:
        web, db, machine = host.guest(lan, 2), host.guest(lan, 3), host.machine(lan.bridge, 7)
        host.acquaint(lan.bridge, web)
        assert not comes(machine, asks(machine, web, version), web)
        assert not comes(db, asks(db, web, version), web)
        host.listening(HOST[version], 4001).sendto(b"of the host", (to(web, version), 4000))
        assert not web.has_seen(b"of the host")
        assert host.counters.of_port(web.tap).keys() == {Drop.UNINVITED}
        assert comes(web, asks(web, machine, version, (80, 9)), machine)
        assert comes(machine, asks(machine, web, version, (9, 80)), web), "an answer"
        assert not comes(machine, asks(machine, web, version, (9, 81)), web)

    def test_with_groups_it_takes_what_they_allow(self, host: Firewalled, lan: NetworkRules, version: int) -> None:
        host.group(WEB, "in:tcp:80")
        web, db, machine = host.guest(lan, 2, groups=(WEB,)), host.guest(lan, 3), host.machine(lan.bridge, 7)
        for sender in (machine, db):
            assert comes(sender, asks(sender, web, version), web)
            assert not comes(sender, asks(sender, web, version, (9, 81)), web)

    def test_a_port_that_loses_its_last_group_takes_nothing(
        self, host: Firewalled, lan: NetworkRules, version: int
    ) -> None:
        host.group(WEB, "in:any")
        web, machine = host.guest(lan, 2, groups=(WEB,)), host.machine(lan.bridge, 7)
        assert comes(machine, asks(machine, web, version), web)
        host.bear(web)
        assert not comes(machine, asks(machine, web, version, (9, 81)), web)
        host.replace()
        assert not comes(machine, asks(machine, web, version, (9, 81)), web)


class TestAnAddressThatWasDecided:
    @pytest.mark.parametrize("version", VERSIONS)
    def test_it_sends_from_no_other(self, host: Firewalled, lan: NetworkRules, version: int) -> None:
        web, machine = host.guest(lan, 2), host.machine(lan.bridge, 7)
        assert comes(web, asks(web, machine, version), machine)
        other = {4: "10.64.1.3", 6: "fd00:1::3"}[version]
        assert not comes(web, web.udp(to(machine, version), b"x", mac=machine.mac, source=other), machine)
        assert not comes(web, web.udp(to(machine, version), b"x", mac=machine.mac, source=HOST[version]), machine)
        assert host.counters.of_port(web.tap)[Drop.IPV4 if version == 4 else Drop.IPV6] == 2

    def test_nor_says_that_it_has_another(self, host: Firewalled, lan: NetworkRules) -> None:
        web, machine = host.guest(lan, 2), host.machine(lan.bridge, 7)
        target = link_layer(2, web.mac)
        assert comes(web, web.arp(1, web.ipv4, (NOWHERE, machine.ipv4)), machine)
        assert not comes(web, web.arp(2, HOST[4], (machine.mac, machine.ipv4)), machine)
        assert comes(web, web.advertise(web.ipv6, target), machine)
        assert not comes(web, web.advertise(HOST[6], target), machine)
        formed = str(IPv6Address(int(IPv6Address("fd00:1::")) | int(IPv6Address(web.local)) & (1 << 64) - 1))
        assert not comes(web, web.advertise(formed, target), machine), "a decided address is the only one"

    def test_no_answer_of_dhcp_gives_it_another(self, host: Firewalled, lan: NetworkRules) -> None:
        web, machine = host.guest(lan, 2), host.machine(lan.bridge, 7)
        assert comes(machine, answer(machine, "10.64.1.99", web.mac), web)
        assert not speaks(web, machine, "10.64.1.99")


class TestALease:
    def test_it_may_use_what_the_server_of_the_network_gave_it_and_nothing_else(
        self, host: Firewalled, lan: NetworkRules
    ) -> None:
        web, server = host.guest(lan, 2, leasing=True), host.machine(lan.bridge, 7)
        discover = web.udp("255.255.255.255", b"x", mac=BROADCAST, ports=(68, 67), source=ANY)
        assert comes(web, discover, server)
        assert not speaks(web, server, "10.64.1.99")
        assert not comes(web, web.arp(1, "10.64.1.99", (NOWHERE, server.ipv4)), server)
        assert comes(server, answer(server, "10.64.1.99", web.mac), web)
        assert speaks(web, server, "10.64.1.99")
        assert comes(web, web.arp(1, "10.64.1.99", (NOWHERE, server.ipv4)), server)
        assert comes(web, web.arp(2, "10.64.1.99", (server.mac, server.ipv4)), server)
        assert comes(web, web.arp(1, ANY, (NOWHERE, "10.64.1.99")), server), "asks whether anybody has it (RFC 5227)"
        for other in ("10.64.1.98", HOST[4], server.ipv4):
            assert not speaks(web, server, other)
            assert not comes(web, web.arp(2, other, (server.mac, server.ipv4)), server)
            assert not comes(web, web.arp(1, ANY, (NOWHERE, other)), server)

    def test_the_host_may_be_the_server(self, host: Firewalled, lan: NetworkRules) -> None:
        web, machine = host.guest(lan, 2, leasing=True), host.machine(lan.bridge, 7)
        sock = host.listening(HOST[4], 67)
        host.neighbor(lan.bridge, "10.64.1.99", web.mac)
        host.acquaint(lan.bridge, web)
        said = answer(machine, "10.64.1.99", web.mac)[42:]
        sock.sendto(said, ("10.64.1.99", 68))
        web.until(said)
        assert speaks(web, machine, "10.64.1.99")

    @pytest.mark.parametrize("address", [ANY, "127.0.0.1", "224.0.0.1", "255.255.255.255"])
    def test_no_address_that_is_no_hosts_is_learnt(self, host: Firewalled, lan: NetworkRules, address: str) -> None:
        web, server = host.guest(lan, 2, leasing=True), host.machine(lan.bridge, 7)
        assert comes(server, answer(server, address, web.mac), web)
        assert not speaks(web, server, address)

    def test_nothing_is_learnt_from_what_is_no_answer_to_it(self, host: Firewalled, lan: NetworkRules) -> None:
        web, db, server = (
            host.guest(lan, 2, leasing=True),
            host.guest(lan, 3, leasing=True),
            host.machine(lan.bridge, 7),
        )
        assert comes(server, answer(server, "10.64.1.91", db.mac), web), "a broadcast, to another"
        server.send(answer(server, "10.64.1.92", web.mac, op=1))
        server.send(answer(server, "10.64.1.93", web.mac, ports=(68, 68)))
        assert not comes(db, answer(db, "10.64.1.94", web.mac), web), "a guest of ours"
        six = struct.pack("!BBBBIHH", 2, 1, 6, 0, 7, 0, 0) + bytes(4) + frames.address("10.64.1.95") + bytes(8)
        server.send(server.udp(web.ipv6, six + frames.mac(web.mac), mac=web.mac, ports=(67, 68)))
        assert [speaks(web, server, f"10.64.1.{number}") for number in range(91, 96)] == [False] * 5
        assert speaks(db, server, "10.64.1.91")
        assert not speaks(db, server, "10.64.1.92")

    def test_it_leases_a_few_and_then_one_an_hour(self, host: Firewalled, lan: NetworkRules) -> None:
        web, db, server = (
            host.guest(lan, 2, leasing=True),
            host.guest(lan, 3, leasing=True),
            host.machine(lan.bridge, 7),
        )
        given = [f"10.64.1.{number}" for number in range(100, 100 + MOST_AT_ONCE + 3)]
        for address in given:
            server.send(answer(server, given[0], web.mac))
            server.send(answer(server, address, web.mac))
        assert [speaks(web, server, address) for address in given] == [True] * MOST_AT_ONCE + [False] * 3
        server.send(answer(server, "10.64.1.99", db.mac))
        assert speaks(db, server, "10.64.1.99"), "another port has its own count"

    @pytest.mark.parametrize("name", [LEASED, "leasers"])
    def test_the_sets_of_leases_have_a_bound(self, host: Firewalled, name: str) -> None:
        assert f"size {MOST_KEPT}\n" in host.nft.run(f"list set bridge aetherscale {name}")

    def test_it_is_kept_when_all_rules_are_replaced_and_of_a_port_that_is_there_alone(
        self, host: Firewalled, lan: NetworkRules
    ) -> None:
        web, db, server = (
            host.guest(lan, 2, leasing=True),
            host.guest(lan, 3, leasing=True),
            host.machine(lan.bridge, 7),
        )
        leases = Leases()
        for guest, address in ((web, "10.64.1.99"), (db, "10.64.1.98")):
            server.send(answer(server, address, guest.mac))
        leases.look()
        assert [list(map(str, leases.of(guest.tap))) for guest in (web, db)] == [["10.64.1.99"], ["10.64.1.98"]]
        del host.ports[db.tap]
        host.nft.run("flush ruleset")
        leases.look()
        host.applied = host.ruleset()
        host.flows.ensure()
        host.nft.run(replace_all(host.applied) + leases.text(host.ports))
        assert speaks(web, server, "10.64.1.99")
        assert leases.of(db.tap) == []
        leases.close()


class TestFormedAddresses:
    @pytest.mark.parametrize("prefix", ["fd00:1::", "2001:db8:7::"])
    def test_a_port_forms_its_address_in_any_prefix(self, host: Firewalled, lan: NetworkRules, prefix: str) -> None:
        web, machine = host.guest(lan, 2, leasing=True), host.machine(lan.bridge, 7)
        own = str(IPv6Address(int(IPv6Address(prefix)) | int(IPv6Address(web.local)) & (1 << 64) - 1))
        target = link_layer(2, web.mac)
        assert comes(web, web.udp(machine.ipv6, b"x", mac=machine.mac, source=own), machine)
        assert comes(web, web.advertise(own, target, source=own), machine)
        assert comes(web, web.solicit(own, source="::"), machine), "asks whether anybody has it (RFC 4862)"

    @pytest.mark.parametrize("address", ["fd00:1::7", "fd00:1::1", "2001:db8::5054:ff:fe00:103"])
    def test_and_no_other(self, host: Firewalled, lan: NetworkRules, address: str) -> None:
        web, machine = host.guest(lan, 2, leasing=True), host.machine(lan.bridge, 7)
        assert not comes(web, web.udp(machine.ipv6, b"x", mac=machine.mac, source=address), machine)
        assert not comes(web, web.advertise(address, link_layer(2, web.mac)), machine)
        assert not comes(web, web.solicit(address, source="::"), machine)

    @pytest.mark.parametrize("prefix", ["ff02::", "::", "::ffff:0:0:0", "fec0::", "100::"])
    def test_nor_in_a_prefix_that_is_no_networks(self, host: Firewalled, lan: NetworkRules, prefix: str) -> None:
        web, machine = host.guest(lan, 2, leasing=True), host.machine(lan.bridge, 7)
        own = str(IPv6Address(int(IPv6Address(prefix)) | int(IPv6Address(web.local)) & (1 << 64) - 1))
        assert not comes(web, web.udp(machine.ipv6, b"x", mac=machine.mac, source=own), machine)
