"""The law of groups between a network and the world, the host and the bridges of the host; both IP families."""

from __future__ import annotations

import pytest

from tests.support import firewalled, frames
from tests.support.fake_guest import FakeGuest, to
from tests.support.firewalled import Firewalled, by_itself, comes, heard, host
from tests.support.frames import ACK, SYN

__all__ = ["host"]

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(firewalled.missing() is not None, reason=str(firewalled.missing())),
]
VERSIONS = (4, 6)
WEB = "a" * 16
HOST = {4: "10.64.1.1", 6: "fd00:1::1"}
WORLD = {4: "192.0.2.9", 6: "2001:db8::9"}
UPLINK = {4: "192.0.2.1", 6: "2001:db8::1"}


@pytest.mark.parametrize("version", VERSIONS)
class TestTheWorldAndTheHost:
    def test_the_world_reaches_what_a_group_allows_in_a_nat_network(self, host: Firewalled, version: int) -> None:
        lab, world = host.network(1, "nat"), host.outside()
        host.group(WEB, "in:tcp:80")
        web, plain = host.guest(lab, 2, groups=(WEB,)), host.guest(lab, 3)
        host.acquaint(lab.bridge, web, plain)
        router, inner = host.mac("uplink"), host.mac(lab.bridge)

        def sends(guest: FakeGuest, port: int, flags: int = SYN) -> bool:
            world.send(world.tcp(to(guest, version), flags, mac=router, ports=(9, port), at=(1, 0)))
            return any(not by_itself(frame) for frame in guest.received())

        web.received(), plain.received()
        assert not sends(web, 81)
        assert not sends(plain, 80)
        assert sends(web, 80)
        world.received()
        web.send(web.tcp(WORLD[version], SYN | ACK, mac=inner, ports=(80, 9), at=(1, 2)))
        (answer,) = [frame for frame in world.received() if not by_itself(frame)]
        # By its own address: it has not asked.
        assert frames.address(to(web, version)) in answer
        assert sends(web, 80, ACK)
        host.group(WEB)
        assert not sends(web, 80, ACK)
        host.bear(web)
        assert not sends(web, 80, ACK)

    def test_answers_of_the_world_reach_a_port_with_groups(self, host: Firewalled, version: int) -> None:
        lab, world = host.network(1, "nat"), host.outside()
        host.group(WEB)
        web = host.guest(lab, 2, groups=(WEB,))
        host.acquaint(lab.bridge, web)
        web.send(web.udp(WORLD[version], b"a question", mac=host.mac(lab.bridge), ports=(4000, 53)))
        asked = world.until(b"a question")[-1]
        world.send(world.udp(UPLINK[version], b"an answer", mac=host.mac("uplink"), ports=(53, 4000)))
        web.until(b"an answer")
        quoted = asked[14:]
        if version == 4:
            message = frames.icmp(3, bytes([0, 0, 5, 0]) + quoted, 4)
            error = world.packet(UPLINK[4], frames.ICMP, message, mac=host.mac("uplink"))
        else:
            error = world.icmp6(UPLINK[6], 2, bytes([0, 0, 5, 0]) + quoted, mac=host.mac("uplink"))
        web.received()
        world.send(error)
        assert web.has_seen(b"a question")
        # All of an answer that comes in parts.
        if version == 4:
            whole = frames.udp(WORLD[4], UPLINK[4], (53, 4000), b"y" * 1000 + b"the last part")
            for part in (
                frames.ipv4(WORLD[4], UPLINK[4], frames.UDP, whole[:800], fragment=0x2000),
                frames.ipv4(WORLD[4], UPLINK[4], frames.UDP, whole[800:], fragment=100),
            ):
                world.send(frames.ethernet(host.mac("uplink"), world.mac, frames.IPV4, part))
            web.until(b"the last part")

    def test_what_claims_to_be_of_our_networks_does_not_enter_from_elsewhere(
        self, host: Firewalled, version: int
    ) -> None:
        lab, world = host.network(1, "nat"), host.outside()
        host.group(WEB, "in:any")
        web = host.guest(lab, 2, groups=(WEB,))
        host.acquaint(lab.bridge, web)
        host.set("ipv4/conf/uplink/rp_filter", "0")
        host.set("ipv4/conf/all/rp_filter", "0")
        inside = "10.64.1.77" if version == 4 else "fd00:1::77"
        world.send(world.udp(to(web, version), b"forged", mac=host.mac("uplink"), source=inside))
        assert not web.has_seen(b"forged")
        world.send(world.udp(to(web, version), b"honest", mac=host.mac("uplink")))
        assert web.has_seen(b"honest")

    def test_the_host_reaches_what_a_group_allows(self, host: Firewalled, version: int) -> None:
        lab = host.network(1, "nat")
        host.group(WEB, "in:udp:53")
        web = host.guest(lab, 2, groups=(WEB,))
        host.acquaint(lab.bridge, web)
        sock = host.listening(HOST[version], 4001)
        sock.sendto(b"a question", (to(web, version), 53))
        web.until(b"a question")
        web.send(web.udp(HOST[version], b"an answer", mac=host.mac(lab.bridge), ports=(53, 4001)))
        assert heard(sock) == b"an answer"
        sock.sendto(b"a question", (to(web, version), 53))
        web.until(b"a question")
        try_to_send(sock, b"not allowed", (to(web, version), 54))
        assert not web.has_seen(b"not allowed")
        host.group(WEB)
        try_to_send(sock, b"not any more", (to(web, version), 53))
        host.bear(web)
        try_to_send(sock, b"not any more", (to(web, version), 53))
        assert not web.has_seen(b"not any more")

    def test_answers_of_the_host_reach_a_port_with_groups(self, host: Firewalled, version: int) -> None:
        lab = host.network(1, "nat")
        host.group(WEB)
        web = host.guest(lab, 2, groups=(WEB,))
        host.acquaint(lab.bridge, web)
        web.send(web.ping(HOST[version], b"are you there", mac=host.mac(lab.bridge)))
        web.until(b"are you there")

    def test_the_host_does_not_reach_an_isolated_network(self, host: Firewalled, version: int) -> None:
        lab = host.network(1)
        host.group(WEB, "in:any")
        web = host.guest(lab, 2, groups=(WEB,))
        host.set(f"ipv6/conf/{lab.bridge}/disable_ipv6", "0")
        host.own(lab.bridge, HOST[version], 64 if version == 6 else 24)
        host.acquaint(lab.bridge, web)
        sock = host.listening(HOST[version], 4001)
        try_to_send(sock, b"of the host", (to(web, version), 4000))
        assert not web.has_seen(b"of the host")

    def test_a_port_on_a_bridge_of_the_host_is_judged_as_any(self, host: Firewalled, version: int) -> None:
        lan = host.network(1, "bridged")
        host.group(WEB, "in:udp:53")
        web, printer = host.guest(lan, 2, groups=(WEB,)), host.machine(lan.bridge, 7)
        host.acquaint(lan.bridge, web)
        assert comes(printer, printer.udp(to(web, version), b"x", mac=web.mac, ports=(1, 53)), web)
        assert not comes(printer, printer.udp(to(web, version), b"x", mac=web.mac, ports=(1, 54)), web)
        sock = host.listening(HOST[version], 4001)
        sock.sendto(b"of the host", (to(web, version), 53))
        web.until(b"of the host")
        sock.sendto(b"not allowed", (to(web, version), 54))
        assert not web.has_seen(b"not allowed")


def try_to_send(sock: object, data: bytes, address: tuple[str, int]) -> None:
    try:
        sock.sendto(data, address)  # type: ignore[attr-defined]
    except PermissionError:
        return
