"""Who reaches whom: within a network, between networks, the world, the host; and taps that have no rules."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Literal

import pytest

from aetherscale.actors.network.model.chains import ANSWER, Drop
from tests.support import firewalled, frames
from tests.support.fake_guest import FakeGuest
from tests.support.firewalled import Firewalled, by_itself, heard
from tests.support.frames import ACK, BROADCAST, SYN, link_layer
from tests.support.spoofs import ANY, NOWHERE

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(firewalled.missing() is not None, reason=str(firewalled.missing())),
]
Kind = Literal["isolated", "nat", "bridged"]
KINDS: tuple[Kind, ...] = ("isolated", "nat", "bridged")
VERSIONS = (4, 6)
HOST = {4: "10.64.1.1", 6: "fd00:1::1"}
WORLD = {4: "192.0.2.9", 6: "2001:db8::9"}
UPLINK = {4: "192.0.2.1", 6: "2001:db8::1"}


@pytest.fixture
def host() -> Iterator[Firewalled]:
    with firewalled.firewalled() as made:
        yield made


def to(guest: FakeGuest, version: int) -> str:
    return guest.ipv4 if version == 4 else guest.ipv6


class TestWithinANetwork:
    @pytest.mark.parametrize("calls", ["0", "1"], ids=["", "beside-docker"])
    @pytest.mark.parametrize("kind", KINDS)
    def test_guests_reach_each_other(self, host: Firewalled, kind: Kind, calls: str) -> None:
        host.call_iptables(calls)
        lab = host.network(1, kind)
        web, db = host.guest(lab, 2), host.guest(lab, 3)
        for version in VERSIONS:
            web.send(web.tcp(to(db, version), SYN, mac=db.mac, ports=(9, 80), at=(1, 0)))
            db.until(frames.tcp(to(web, version), to(db, version), (9, 80), SYN, at=(1, 0)))
            db.send(db.tcp(to(web, version), SYN | ACK, mac=web.mac, ports=(80, 9), at=(7, 2)))
            web.until(frames.tcp(to(db, version), to(web, version), (80, 9), SYN | ACK, at=(7, 2)))
            web.send(web.udp(to(db, version), b"a datagram", mac=db.mac))
            db.until(b"a datagram")

    def test_a_machine_of_a_bridged_network_and_a_guest_reach_each_other(self, host: Firewalled) -> None:
        lan = host.network(1, "bridged")
        guest, printer = host.guest(lan, 2), host.machine(lan.bridge, 7)
        printer.send(printer.udp(guest.ipv4, b"to the guest", mac=guest.mac))
        guest.until(b"to the guest")
        guest.send(guest.udp(printer.ipv6, b"to the printer", mac=printer.mac))
        printer.until(b"to the printer")

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_networks_own_servers_answer(self, host: Firewalled, kind: Kind) -> None:
        lab = host.network(1, kind)
        guest, server = host.guest(lab, 2), host.machine(lab.bridge, 7)
        everyone = "255.255.255.255"
        discover = guest.udp(everyone, b"x", mac=BROADCAST, ports=(68, 67), source=ANY)
        offer = server.udp(everyone, b"y", mac=BROADCAST, ports=(67, 68))
        advertisement = server.icmp6("ff02::1", 134, bytes(12))
        guest.send(discover)
        server.until(discover)
        server.send(advertisement, offer)
        assert advertisement in guest.until(offer)


class TestBetweenNetworks:
    @pytest.mark.parametrize("version", VERSIONS)
    @pytest.mark.parametrize("there", KINDS)
    @pytest.mark.parametrize("here", KINDS)
    def test_nothing_passes(
        self,
        host: Firewalled,
        here: Kind,
        there: Kind,
        version: int,
    ) -> None:
        one, other = host.network(1, here), host.network(2, there)
        for network, number in ((one, 1), (other, 2)):
            if network.kind == "isolated":  # The worst case: somebody has given the host addresses there.
                host.set(f"ipv6/conf/{network.bridge}/disable_ipv6", "0")
                host.own(network.bridge, f"10.64.{number}.1", 24)
                host.own(network.bridge, f"fd00:{number}::1", 64)
        guest, target, witness = host.guest(one, 2), host.guest(other, 2), host.guest(other, 3)
        host.acquaint(one.bridge, guest)
        host.acquaint(other.bridge, target, witness)
        for mac in (host.mac(one.bridge), target.mac, BROADCAST):
            guest.send(guest.udp(to(target, version), b"crosses", mac=mac))
            guest.send(guest.tcp(to(target, version), SYN, mac=mac, ports=(9, 80), at=(1, 0)))
            guest.send(guest.ping(to(target, version), b"crosses", mac=mac))
        guest.send(guest.arp(1, guest.ipv4, (NOWHERE, target.ipv4)), guest.solicit(target.ipv6))
        witness.send(witness.udp(target.ipv4, b"sentinel", mac=target.mac))
        assert [frame for frame in target.until(b"sentinel")[:-1] if not by_itself(frame)] == []

    @pytest.mark.parametrize("version", VERSIONS)
    def test_two_guests_that_both_send_are_not_each_others_answers(self, host: Firewalled, version: int) -> None:
        one, other = host.network(1, "nat"), host.network(2, "nat")
        guest, friend = host.guest(one, 2), host.guest(other, 2)
        host.acquaint(one.bridge, guest)
        host.acquaint(other.bridge, friend)
        for _ in range(3):
            guest.send(guest.udp(to(friend, version), b"punch", mac=host.mac(one.bridge), ports=(4000, 4001)))
            friend.send(friend.udp(to(guest, version), b"punch", mac=host.mac(other.bridge), ports=(4001, 4000)))
        assert not guest.has_seen(b"punch")
        assert not friend.has_seen(b"punch")
        # They are dropped before conntrack confirms a flow.
        assert 'oifname "aeb*" counter packets 6 ' in host.nft.run("list chain inet aetherscale forward")

    def test_the_address_of_another_networks_router_is_the_host(self, host: Firewalled) -> None:
        one = host.network(1, "nat")
        host.network(2, "nat")
        guest = host.guest(one, 2)
        host.acquaint(one.bridge, guest)
        listener = host.listening("10.64.2.1", 53)
        guest.send(guest.udp("10.64.2.1", b"a question", mac=host.mac(one.bridge), ports=(4000, 53)))
        assert heard(listener) is None


@pytest.mark.parametrize("version", VERSIONS)
class TestTheWorld:
    def test_answers_come_back_through_masquerade(self, host: Firewalled, version: int) -> None:
        lab, world = host.network(1, "nat"), host.outside()
        guest = host.guest(lab, 2)
        host.acquaint(lab.bridge, guest)
        guest.send(guest.udp(WORLD[version], b"a question", mac=host.mac(lab.bridge), ports=(4000, 53)))
        asked = world.until(b"a question")[-1]
        assert frames.address(UPLINK[version]) in asked
        assert frames.address(to(guest, version)) not in asked
        world.send(world.udp(UPLINK[version], b"an answer", mac=host.mac("uplink"), ports=(53, 4000)))
        assert frames.address(WORLD[version]) in guest.until(b"an answer")[-1]

    def test_what_is_no_answer_is_dropped_and_counted(self, host: Firewalled, version: int) -> None:
        lab, world = host.network(1, "nat"), host.outside()
        guest = host.guest(lab, 2)
        host.acquaint(lab.bridge, guest)
        world.send(world.udp(to(guest, version), b"uninvited", mac=host.mac("uplink")))
        world.send(world.tcp(to(guest, version), SYN, mac=host.mac("uplink"), ports=(9, 22), at=(1, 0)))
        world.send(world.ping(to(guest, version), b"uninvited", mac=host.mac("uplink")))
        assert [frame for frame in guest.received() if not by_itself(frame)] == []

    def test_a_guest_that_answers_what_it_has_not_received_opens_nothing(self, host: Firewalled, version: int) -> None:
        lab, world = host.network(1, "nat"), host.outside()
        guest = host.guest(lab, 2)
        host.acquaint(lab.bridge, guest)
        for _ in range(3):
            world.send(world.udp(to(guest, version), b"punch", mac=host.mac("uplink"), ports=(53, 4000)))
            guest.send(guest.udp(WORLD[version], b"out", mac=host.mac(lab.bridge), ports=(4000, 53)))
        assert not guest.has_seen(b"punch")
        assert frames.address(to(guest, version)) not in world.until(b"out")[-1]

    def test_an_error_that_belongs_to_a_flow_is_an_answer(self, host: Firewalled, version: int) -> None:
        lab, world = host.network(1, "nat"), host.outside()
        guest = host.guest(lab, 2)
        host.acquaint(lab.bridge, guest)
        guest.send(guest.udp(WORLD[version], b"x" * 100, mac=host.mac(lab.bridge), ports=(4000, 53)))
        quoted = world.until(b"x" * 100)[-1][14:]
        if version == 4:
            message = frames.icmp(3, bytes([0, 0, 5, 0]) + quoted, 4)
            error = world.packet(UPLINK[4], frames.ICMP, message, mac=host.mac("uplink"))
        else:
            error = world.icmp6(UPLINK[6], 2, bytes([0, 0, 5, 0]) + quoted, mac=host.mac("uplink"))
        world.send(error)
        guest.until(b"x" * 50)

    @pytest.mark.parametrize("kind", ["isolated"])
    def test_an_isolated_network_leads_nowhere(self, host: Firewalled, version: int, kind: Literal["isolated"]) -> None:
        lab, world = host.network(1, kind), host.outside()
        host.set(f"ipv6/conf/{lab.bridge}/disable_ipv6", "0")
        host.own(lab.bridge, HOST[version], 64 if version == 6 else 24)
        guest = host.guest(lab, 2)
        host.acquaint(lab.bridge, guest)
        guest.send(guest.udp(WORLD[version], b"leaves", mac=host.mac(lab.bridge)))
        guest.send(guest.ping(HOST[version], b"leaves", mac=host.mac(lab.bridge)))
        assert not world.has_seen(b"leaves")
        assert guest.received() == []

    def test_a_nat_network_lets_out_its_own_addresses_only(self, host: Firewalled, version: int) -> None:
        lab, world = host.network(1, "nat"), host.outside()
        router = host.guest(lab, 2, allowed=("172.20.0.0/16", "fd99::/64"))
        inner = "172.20.0.7" if version == 4 else "fd99::7"
        router.send(router.udp(WORLD[version], b"leaves", mac=host.mac(lab.bridge), source=inner))
        assert not world.has_seen(b"leaves")
        assert not any(kind is not Drop.UNINVITED for kind in host.counters.of_port(router.tap))


@pytest.mark.parametrize("version", VERSIONS)
class TestTheHost:
    @pytest.mark.parametrize("kind", ["nat", "bridged"])
    def test_a_guest_reaches_ping_and_nothing_else(self, host: Firewalled, version: int, kind: Kind) -> None:
        lab = host.network(1, kind)
        guest, bridge = host.guest(lab, 2), host.mac(lab.bridge)
        host.set(f"ipv{version}/fwmark_reflect", "1")  # An answer begins with the mark of its question.
        listener = host.listening(HOST[version], 53)
        guest.send(guest.udp(HOST[version], b"a question", mac=bridge, ports=(4000, 53)))
        assert heard(listener) is None
        guest.send(guest.ping(HOST[version], b"are you there", mac=bridge))
        # The host asks who has the guest's address; it answers once it knows.
        if version == 4:
            guest.until(frames.address(HOST[4]) + bytes(6) + frames.address(guest.ipv4))
            guest.send(guest.arp(2, guest.ipv4, (bridge, HOST[4])))
        else:
            guest.until(bytes([135, 0]))
            rest = bytes([0x60, 0, 0, 0]) + frames.address(guest.ipv6) + link_layer(2, guest.mac)
            guest.send(guest.icmp6(HOST[6], 136, rest, mac=bridge))
        guest.until(b"are you there")

    def test_a_guest_of_ours_is_known_where_another_program_clears_all_marks(
        self, host: Firewalled, version: int
    ) -> None:
        host.nft.run(
            "table inet vpn {\nchain early {\ntype filter hook prerouting priority -140\nmeta mark set 0\n}\n}\n"
        )
        lab = host.network(1, "nat")
        guest, listener = host.guest(lab, 2), host.listening(HOST[version], 53)
        guest.send(guest.udp(HOST[version], b"x", mac=host.mac(lab.bridge), ports=(4000, 53)))
        assert heard(listener) is None

    def test_a_frame_that_the_bridge_leaves_to_its_port_does_not_reach_the_host(
        self, host: Firewalled, version: int
    ) -> None:
        # The host takes what is for 01:80:c2:00:00:0e from the tap itself, past all hooks of the bridge.
        lab = host.network(1, "nat")
        guest = host.guest(lab, 2)
        if version == 6:
            host.own(guest.tap, "fd88::1", 64)
        listener = host.listening(HOST[version], 53)
        for source in (to(guest, version), WORLD[version]):
            for mac in ("01:80:c2:00:00:0e", "01:80:c2:00:00:03"):
                guest.send(guest.udp(HOST[version], b"x", mac=mac, ports=(4000, 53), source=source))
        assert heard(listener) is None

    def test_the_hosts_new_flows_to_a_nat_guest_are_uninvited(self, host: Firewalled, version: int) -> None:
        lab = host.network(1, "nat")
        guest = host.guest(lab, 2)
        host.acquaint(lab.bridge, guest)
        with host.listening(HOST[version], 4001) as sock:
            # Who sets the mark of answers by itself gains nothing.
            for mark in (0, ANSWER):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
                with pytest.raises(PermissionError):
                    sock.sendto(b"uninvited", (to(guest, version), 4000))
                # Nor does a guest that answers what it has not received.
                guest.send(guest.udp(HOST[version], b"x", mac=host.mac(lab.bridge), ports=(4000, 4001)))
            assert heard(sock) is None
        assert not guest.has_seen(b"uninvited")

    def test_the_host_is_a_machine_of_a_bridged_network(self, host: Firewalled, version: int) -> None:
        lan = host.network(1, "bridged")
        guest, printer = host.guest(lan, 2), host.machine(lan.bridge, 7)
        host.acquaint(lan.bridge, guest, printer)
        with host.listening(HOST[version], 4001) as sock:
            sock.sendto(b"of the lan", (to(guest, version), 4000))
            guest.until(b"of the lan")
            guest.send(guest.udp(HOST[version], b"an answer", mac=host.mac(lan.bridge), ports=(4000, 4001)))
            assert heard(sock) == b"an answer"
            printer.send(printer.udp(HOST[version], b"of a printer", mac=host.mac(lan.bridge), ports=(4000, 4001)))
            assert heard(sock) == b"of a printer"
