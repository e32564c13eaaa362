"""Who reaches whom: within a network, between networks, the world, the host; and taps that have no rules."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from typing import Literal

import pytest

from aetherscale.actors.network.model.chains import ANSWER, Drop
from tests.support import firewalled, frames
from tests.support.fake_guest import FakeGuest
from tests.support.firewalled import Firewalled
from tests.support.frames import ACK, BROADCAST, SYN, link_layer
from tests.support.spoofs import NOWHERE, spoofs

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(firewalled.missing() is not None, reason=str(firewalled.missing())),
]
KINDS: tuple[Literal["isolated", "nat", "bridged"], ...] = ("isolated", "nat", "bridged")
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


def acquaint(host: Firewalled, bridge: str, *guests: FakeGuest) -> None:
    """The host knows the MACs of these: what does not arrive is not lost for want of an answer to ARP."""
    for guest in guests:
        host.neighbor(bridge, guest.ipv4, guest.mac)
        host.neighbor(bridge, guest.ipv6, guest.mac)


def seen(guest: FakeGuest, wanted: bytes) -> bool:
    """Whether it has received something with these bytes in it."""
    return any(wanted in frame for frame in guest.received())


def heard(sock: socket.socket) -> bytes | None:
    try:
        return sock.recv(2048)
    except BlockingIOError:
        return None


class TestWithinANetwork:
    @pytest.mark.parametrize("calls", ["0", "1"], ids=["", "beside-docker"])
    @pytest.mark.parametrize("kind", KINDS)
    def test_guests_reach_each_other(
        self, host: Firewalled, kind: Literal["isolated", "nat", "bridged"], calls: str
    ) -> None:
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


class TestBetweenNetworks:
    @pytest.mark.parametrize("version", VERSIONS)
    @pytest.mark.parametrize("there", KINDS)
    @pytest.mark.parametrize("here", KINDS)
    def test_nothing_passes(
        self,
        host: Firewalled,
        here: Literal["isolated", "nat", "bridged"],
        there: Literal["isolated", "nat", "bridged"],
        version: int,
    ) -> None:
        one, other = host.network(1, here), host.network(2, there)
        for network, number in ((one, 1), (other, 2)):
            if network.kind == "isolated":  # The worst case: somebody has given the host addresses there.
                host.set(f"ipv6/conf/{network.bridge}/disable_ipv6", "0")
                host.own(network.bridge, f"10.64.{number}.1", 24)
                host.own(network.bridge, f"fd00:{number}::1", 64)
        guest, target, witness = host.guest(one, 2), host.guest(other, 2), host.guest(other, 3)
        acquaint(host, one.bridge, guest)
        acquaint(host, other.bridge, target, witness)
        for mac in (host.mac(one.bridge), target.mac, BROADCAST):
            guest.send(guest.udp(to(target, version), b"crosses", mac=mac))
            guest.send(guest.tcp(to(target, version), SYN, mac=mac, ports=(9, 80), at=(1, 0)))
            guest.send(guest.ping(to(target, version), b"crosses", mac=mac))
        guest.send(guest.arp(1, guest.ipv4, (NOWHERE, target.ipv4)), guest.solicit(target.ipv6))
        witness.send(witness.udp(target.ipv4, b"sentinel", mac=target.mac))
        assert [frame for frame in target.until(b"sentinel")[:-1] if not _of_the_host(frame)] == []

    def test_the_address_of_another_networks_router_is_the_host(self, host: Firewalled) -> None:
        one = host.network(1, "nat")
        host.network(2, "nat")
        guest = host.guest(one, 2)
        acquaint(host, one.bridge, guest)
        listener = host.listening("10.64.2.1", 53)
        guest.send(guest.udp("10.64.2.1", b"a question", mac=host.mac(one.bridge), ports=(4000, 53)))
        assert heard(listener) is None


def _of_the_host(frame: bytes) -> bool:
    return frame[6:9] == b"\x02\xbb\x00" and b"crosses" not in frame and frame[23] != frames.TCP


@pytest.mark.parametrize("version", VERSIONS)
class TestTheWorld:
    def test_answers_come_back_through_masquerade(self, host: Firewalled, version: int) -> None:
        lab, world = host.network(1, "nat"), host.outside()
        guest = host.guest(lab, 2)
        acquaint(host, lab.bridge, guest)
        guest.send(guest.udp(WORLD[version], b"a question", mac=host.mac(lab.bridge), ports=(4000, 53)))
        asked = world.until(b"a question")[-1]
        assert frames.address(UPLINK[version]) in asked
        assert frames.address(to(guest, version)) not in asked
        world.send(world.udp(UPLINK[version], b"an answer", mac=host.mac("uplink"), ports=(53, 4000)))
        assert frames.address(WORLD[version]) in guest.until(b"an answer")[-1]

    def test_what_is_no_answer_is_dropped_and_counted(self, host: Firewalled, version: int) -> None:
        lab, world = host.network(1, "nat"), host.outside()
        guest = host.guest(lab, 2)
        acquaint(host, lab.bridge, guest)
        world.send(world.udp(to(guest, version), b"uninvited", mac=host.mac("uplink")))
        world.send(world.tcp(to(guest, version), SYN, mac=host.mac("uplink"), ports=(9, 22), at=(1, 0)))
        world.send(world.ping(to(guest, version), b"uninvited", mac=host.mac("uplink")))
        assert [frame for frame in guest.received() if not _of_the_host(frame)] == []

    def test_an_error_that_belongs_to_a_flow_is_an_answer(self, host: Firewalled, version: int) -> None:
        lab, world = host.network(1, "nat"), host.outside()
        guest = host.guest(lab, 2)
        acquaint(host, lab.bridge, guest)
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
        acquaint(host, lab.bridge, guest)
        guest.send(guest.udp(WORLD[version], b"leaves", mac=host.mac(lab.bridge)))
        guest.send(guest.ping(HOST[version], b"leaves", mac=host.mac(lab.bridge)))
        assert not seen(world, b"leaves")
        assert guest.received() == []

    def test_a_nat_network_lets_out_its_own_addresses_only(self, host: Firewalled, version: int) -> None:
        lab, world = host.network(1, "nat"), host.outside()
        router = host.guest(lab, 2, allowed=("172.20.0.0/16", "fd99::/64"))
        inner = "172.20.0.7" if version == 4 else "fd99::7"
        router.send(router.udp(WORLD[version], b"leaves", mac=host.mac(lab.bridge), source=inner))
        assert not seen(world, b"leaves")
        assert not any(kind is not Drop.UNINVITED for kind in host.counters.of_port(router.tap))


@pytest.mark.parametrize("version", VERSIONS)
class TestTheHost:
    @pytest.mark.parametrize("kind", ["nat", "bridged"])
    def test_a_guest_reaches_ping_and_nothing_else(
        self, host: Firewalled, version: int, kind: Literal["nat", "bridged"]
    ) -> None:
        lab = host.network(1, kind)
        guest, bridge = host.guest(lab, 2), host.mac(lab.bridge)
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

    def test_the_hosts_new_flows_to_a_nat_guest_are_uninvited(self, host: Firewalled, version: int) -> None:
        lab = host.network(1, "nat")
        guest = host.guest(lab, 2)
        acquaint(host, lab.bridge, guest)
        before = host.counters.of_port(guest.tap).get(Drop.UNINVITED, 0)
        with host.listening(HOST[version], 4001) as sock:
            # Who sets the mark of answers by itself gains nothing.
            for mark in (0, ANSWER):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
                sock.sendto(b"uninvited", (to(guest, version), 4000))
        assert not seen(guest, b"uninvited")
        assert host.counters.of_port(guest.tap)[Drop.UNINVITED] >= before + 2

    def test_the_host_is_a_machine_of_a_bridged_network(self, host: Firewalled, version: int) -> None:
        lan = host.network(1, "bridged")
        guest, printer = host.guest(lan, 2), host.machine(lan.bridge, 7)
        acquaint(host, lan.bridge, guest, printer)
        with host.listening(HOST[version], 4001) as sock:
            sock.sendto(b"of the lan", (to(guest, version), 4000))
            guest.until(b"of the lan")
            guest.send(guest.udp(HOST[version], b"an answer", mac=host.mac(lan.bridge), ports=(4000, 4001)))
            assert heard(sock) == b"an answer"
            printer.send(printer.udp(HOST[version], b"of a printer", mac=host.mac(lan.bridge), ports=(4000, 4001)))
            assert heard(sock) == b"of a printer"


class TestATapWithoutRules:
    def test_nothing_passes_from_it(self, host: Firewalled) -> None:
        lab = host.network(1, "bridged")
        guest, stray = host.guest(lab, 2), host.guest(lab, 3, rules=False)
        listener = host.listening(HOST[4], 53)
        acquaint(host, lab.bridge, stray)
        stray.send(*(frame for _, _, frame in spoofs(stray, guest)))
        stray.send(stray.udp(guest.ipv4, b"x", mac=guest.mac), stray.ping(guest.ipv6, b"x", mac=guest.mac))
        stray.send(stray.arp(1, stray.ipv4, (NOWHERE, guest.ipv4)), stray.solicit(stray.ipv6, source="::"))
        stray.send(stray.udp(HOST[4], b"x", mac=host.mac(lab.bridge), ports=(4000, 53)))
        stray.send(stray.ping(HOST[4], b"x", mac=host.mac(lab.bridge)))
        printer = host.machine(lab.bridge, 7)
        printer.send(printer.udp(guest.ipv4, b"sentinel", mac=guest.mac))
        assert [frame for frame in guest.until(b"sentinel")[:-1] if not _of_the_host(frame)] == []
        assert (heard(listener), stray.received()) == (None, [])
        assert host.counters.of_port(stray.tap) == {}

    def test_nothing_passes_to_it_and_no_broadcast_of_the_host(self, host: Firewalled) -> None:
        lab = host.network(1, "bridged")
        guest, stray, other = host.guest(lab, 2), host.guest(lab, 3, rules=False), host.guest(lab, 4)
        acquaint(host, lab.bridge, stray)
        other.send(other.udp("10.64.1.255", b"to all", mac=BROADCAST), other.udp(stray.ipv4, b"to it", mac=stray.mac))
        other.send(other.arp(1, other.ipv4, (NOWHERE, stray.ipv4)), other.solicit(stray.ipv6))
        with host.listening(HOST[4], 4001) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            sock.sendto(b"to it from the host", (stray.ipv4, 4000))
            sock.sendto(b"to all from the host", ("10.64.1.255", 4000))
        guest.until(b"to all from the host")
        assert stray.received() == []

    def test_nothing_passes_where_it_is_in_no_bridge(self, host: Firewalled) -> None:
        lab = host.network(1, "nat")
        for stray in (host.guest(lab, 3, rules=False, plugged=False), host.guest(lab, 2, plugged=False)):
            host.links.link("set", index=host.index(stray.tap), state="up")
            host.own(stray.tap, "10.77.0.1", 24)
            host.neighbor(stray.tap, "10.77.0.2", stray.mac)
            listener, mac = host.listening("10.77.0.1", 53), host.mac(stray.tap)
            stray.send(stray.udp("10.77.0.1", b"x", mac=mac, ports=(4000, 53), source="10.77.0.2"))
            stray.send(stray.arp(1, "10.77.0.2", (NOWHERE, "10.77.0.1")), stray.ping("10.77.0.1", b"x", mac=mac))
            with pytest.raises(PermissionError):
                listener.sendto(b"x", ("10.77.0.2", 4000))
            assert (heard(listener), stray.received()) == (None, [])
            listener.close()
            host.links.addr("del", index=host.index(stray.tap), address="10.77.0.1", prefixlen=24)

    def test_the_first_frames_of_a_tap_do_not_pass_before_its_rules(self, host: Firewalled) -> None:
        lab = host.network(1)
        guest = host.guest(lab, 2)
        early = host.guest(lab, 3, rules=False, plugged=False)
        stop, sent = threading.Event(), []

        def flood() -> None:
            while not stop.is_set():
                for _, _, frame in spoofs(early, guest):
                    try:
                        early.send(frame)
                        sent.append(1)
                    except OSError:  # It is not up yet.
                        pass

        sender = threading.Thread(target=flood)
        sender.start()
        try:
            host.plug(early.tap, lab.bridge)
            while len(sent) < 500:
                pass
            host.guest(lab, 3, made=False)  # Its rules come late.
            while len(sent) < 1000:
                pass
        finally:
            stop.set()
            sender.join()
        early.send(early.udp(guest.ipv4, b"sentinel", mac=guest.mac))
        assert len(guest.until(b"sentinel")) == 1


class TestAllowedAddresses:
    @pytest.mark.parametrize("allowed", [("172.20.0.0/16", "172.20.3.0/24", "fd99::/64"), ("0.0.0.0/0", "::/0")])
    def test_a_router_sends_from_them_and_answers_for_them(self, host: Firewalled, allowed: tuple[str, ...]) -> None:
        lab = host.network(1)
        router, guest = host.guest(lab, 2, allowed=allowed), host.guest(lab, 3)
        router.send(router.udp(guest.ipv4, b"within", mac=guest.mac, source="172.20.3.4"))
        router.send(router.arp(2, "172.20.3.4", (guest.mac, guest.ipv4)))
        router.send(router.udp(guest.ipv6, b"within6", mac=guest.mac, source="fd99::4"))
        router.send(router.advertise("fd99::4", link_layer(2, router.mac)), router.solicit("fd99::4", source="::"))
        router.send(router.udp(guest.ipv4, b"sentinel", mac=guest.mac))
        assert len(guest.until(b"sentinel")) == 6
        for frame in (
            router.arp(2, "172.20.3.4", (guest.mac, guest.ipv4), sender=guest.mac),
            router.advertise("fd99::4", link_layer(2, guest.mac)),
            frames.ethernet(guest.mac, guest.mac, frames.IPV4, frames.ipv4("172.20.3.4", guest.ipv4, 17, bytes(9))),
        ):
            router.send(frame)
        router.send(router.udp(guest.ipv4, b"sentinel", mac=guest.mac))
        assert len(guest.until(b"sentinel")) == 1
        assert set(host.counters.of_port(router.tap)) - {Drop.UNINVITED} == {Drop.ARP, Drop.NEIGHBOR, Drop.MAC}

    def test_what_is_beside_them_is_foreign(self, host: Firewalled) -> None:
        lab = host.network(1)
        router, guest = host.guest(lab, 2, allowed=("172.20.0.0/16", "fd99::/64")), host.guest(lab, 3)
        router.send(router.udp(guest.ipv4, b"beside", mac=guest.mac, source="172.21.0.1"))
        router.send(router.udp(guest.ipv6, b"beside", mac=guest.mac, source="fd99:0:0:1::1"))
        router.send(router.advertise("fd99:0:0:1::1"), router.arp(1, "172.21.0.1", (NOWHERE, guest.ipv4)))
        guest.send(guest.udp(router.ipv4, b"not mine", mac=router.mac, source="172.20.0.9"))
        router.send(router.udp(guest.ipv4, b"sentinel", mac=guest.mac))
        assert len(guest.until(b"sentinel")) == 1
        assert not seen(router, b"not mine")
