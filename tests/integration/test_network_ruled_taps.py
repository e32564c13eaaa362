"""Taps that have no rules, or not yet, and ports that may send from more than their own addresses."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from itertools import cycle

import pytest

from aetherscale.actors.network.model.chains import Drop
from tests.support import firewalled, frames
from tests.support.fake_guest import PATIENCE_S
from tests.support.firewalled import Firewalled, by_itself, heard
from tests.support.frames import BROADCAST, link_layer
from tests.support.spoofs import NOWHERE, spoofs

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(firewalled.missing() is not None, reason=str(firewalled.missing())),
]
HOST = "10.64.1.1"


@pytest.fixture
def host() -> Iterator[Firewalled]:
    with firewalled.firewalled() as made:
        yield made


class TestATapWithoutRules:
    def test_nothing_passes_from_it(self, host: Firewalled) -> None:
        lab = host.network(1, "bridged")
        guest, stray = host.guest(lab, 2), host.guest(lab, 3, rules=False)
        listener = host.listening(HOST, 53)
        host.acquaint(lab.bridge, stray)
        stray.send(*(frame for _, _, frame in spoofs(stray, guest)))
        stray.send(stray.udp(guest.ipv4, b"x", mac=guest.mac), stray.ping(guest.ipv6, b"x", mac=guest.mac))
        stray.send(stray.arp(1, stray.ipv4, (NOWHERE, guest.ipv4)), stray.solicit(stray.ipv6, source="::"))
        stray.send(stray.udp(HOST, b"x", mac=host.mac(lab.bridge), ports=(4000, 53)))
        stray.send(stray.ping(HOST, b"x", mac=host.mac(lab.bridge)))
        printer = host.machine(lab.bridge, 7)
        printer.send(printer.udp(guest.ipv4, b"sentinel", mac=guest.mac))
        assert [frame for frame in guest.until(b"sentinel")[:-1] if not by_itself(frame)] == []
        assert (heard(listener), stray.received()) == (None, [])
        assert host.counters.of_port(stray.tap) == {}

    def test_nothing_passes_to_it_and_no_broadcast_of_the_host(self, host: Firewalled) -> None:
        lab = host.network(1, "bridged")
        guest, stray, other = host.guest(lab, 2), host.guest(lab, 3, rules=False), host.guest(lab, 4)
        host.acquaint(lab.bridge, stray)
        other.send(other.udp("10.64.1.255", b"to all", mac=BROADCAST), other.udp(stray.ipv4, b"to it", mac=stray.mac))
        other.send(other.arp(1, other.ipv4, (NOWHERE, stray.ipv4)), other.solicit(stray.ipv6))
        with host.listening(HOST, 4001) as sock:
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
            stray.send(stray.arp(1, "10.77.0.3", (NOWHERE, "10.77.0.1")))
            known = {entry.get_attr("NDA_DST") for entry in host.links.get_neighbours(ifindex=host.index(stray.tap))}
            assert known & {"10.77.0.2", "10.77.0.3"} == {"10.77.0.2"}
            with pytest.raises(PermissionError):
                listener.sendto(b"x", ("10.77.0.2", 4000))
            assert (heard(listener), stray.received()) == (None, [])
            listener.close()
            host.links.addr("del", index=host.index(stray.tap), address="10.77.0.1", prefixlen=24)

    def test_the_first_frames_of_a_tap_do_not_pass_before_its_rules(self, host: Firewalled) -> None:
        lab = host.network(1)
        guest = host.guest(lab, 2)
        early = host.guest(lab, 3, rules=False, plugged=False)
        begun, ruled, sent = threading.Event(), threading.Event(), [0, 0]

        def flood() -> None:
            for _, _, frame in cycle(list(spoofs(early, guest))):
                with suppress(OSError):  # It is not up yet.
                    early.send(frame)
                    sent[ruled.is_set()] += 1
                if sent[0] == 500:
                    begun.set()
                if sent[1] == 500:
                    return

        sender = threading.Thread(target=flood)
        sender.start()
        host.plug(early.tap, lab.bridge)
        assert begun.wait(PATIENCE_S)
        host.guest(lab, 3, made=False)  # Its rules come late.
        ruled.set()
        sender.join(PATIENCE_S)
        assert sent[1] == 500
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
        assert not router.has_seen(b"not mine")
