"""The law of groups in the kernel, sentence by sentence: fake guests, both IP families, in every direction."""

from __future__ import annotations

from typing import Literal

import pytest

from aetherscale.actors.network.model.chains import Drop
from tests.support import firewalled, frames
from tests.support.fake_guest import FakeGuest, tcp, to
from tests.support.firewalled import Firewalled, comes, host
from tests.support.frames import ACK, BROADCAST, SYN
from tests.support.spoofs import ANY

__all__ = ["host"]

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(firewalled.missing() is not None, reason=str(firewalled.missing())),
]
Kind = Literal["isolated", "nat", "bridged"]
KINDS: tuple[Kind, ...] = ("isolated", "nat", "bridged")
VERSIONS = (4, 6)
WEB, ADMIN, DB = "a" * 16, "b" * 16, "c" * 16
ALL = {4: "0.0.0.0/0", 6: "::/0"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("version", VERSIONS)
class TestTheLaw:
    def test_a_port_without_groups_takes_anything_from_its_own_network(
        self, host: Firewalled, version: int, kind: Kind
    ) -> None:
        lab = host.network(1, kind)
        host.group(WEB, "in:tcp:80")
        web, plain = host.guest(lab, 2, groups=(WEB,)), host.guest(lab, 3)
        assert comes(web, tcp(web, plain, version, (9, 22)), plain)
        assert comes(web, web.udp(to(plain, version), b"x", mac=plain.mac), plain)
        assert comes(web, web.ping(to(plain, version), b"x", mac=plain.mac), plain)

    def test_a_port_with_groups_takes_exactly_what_they_allow(self, host: Firewalled, version: int, kind: Kind) -> None:
        lab = host.network(1, kind)
        host.group(WEB, "in:tcp:80,8000-8100", "in:udp:53")
        host.group(ADMIN, "in:icmp:echo-request")
        web, other = host.guest(lab, 2, groups=(WEB, ADMIN)), host.guest(lab, 3)
        assert all(comes(other, tcp(other, web, version, (9, port)), web) for port in (80, 8000, 8050, 8100))
        assert not any(comes(other, tcp(other, web, version, (9, port)), web) for port in (79, 81, 7999, 8101, 53))
        assert comes(other, other.udp(to(web, version), b"x", mac=web.mac, ports=(9, 53)), web)
        assert not comes(other, other.udp(to(web, version), b"x", mac=web.mac, ports=(9, 80)), web)
        assert comes(other, other.ping(to(web, version), b"x", mac=web.mac), web)
        assert not comes(other, other.packet(to(web, version), 47, b"x" * 20, mac=web.mac), web)
        counted = host.counters.of_port(web.tap)
        # The host greets its neighbors too, where it has any.
        assert counted.keys() == {Drop.UNINVITED}
        assert counted[Drop.UNINVITED] >= 7

    def test_it_sends_anywhere_and_answers_pass(self, host: Firewalled, version: int, kind: Kind) -> None:
        lab = host.network(1, kind)
        host.group(WEB)
        web, other = host.guest(lab, 2, groups=(WEB,)), host.guest(lab, 3)
        assert not comes(other, tcp(other, web, version, (22, 9), SYN | ACK), web)
        assert comes(web, tcp(web, other, version, (9, 22)), other)
        assert comes(other, tcp(other, web, version, (22, 9), SYN | ACK), web)
        assert not comes(other, tcp(other, web, version, (23, 9), SYN | ACK), web)
        assert not comes(other, tcp(other, web, version, (22, 10), SYN | ACK), web)
        assert comes(web, web.udp(to(other, version), b"x", mac=other.mac, ports=(9, 53)), other)
        assert comes(other, other.udp(to(web, version), b"x", mac=web.mac, ports=(53, 9)), web)
        assert not comes(other, other.udp(to(web, version), b"x", mac=web.mac, ports=(53, 10)), web)
        pong = pongs(other, web, version)
        assert not comes(other, pong, web)
        assert comes(web, web.ping(to(other, version), b"x", mac=other.mac), other)
        assert comes(other, pong, web)
        assert not comes(other, other.ping(to(web, version), b"x", mac=web.mac), web)
        protocol_47 = other.packet(to(web, version), 47, b"x" * 20, mac=web.mac)
        assert not comes(other, protocol_47, web)
        assert comes(web, web.packet(to(other, version), 47, b"x" * 20, mac=other.mac), other)
        assert comes(other, protocol_47, web)

    def test_with_a_rule_out_it_sends_exactly_that_and_answers(
        self, host: Firewalled, version: int, kind: Kind
    ) -> None:
        lab = host.network(1, kind)
        host.group(WEB, "in:tcp:80", "out:udp:53", "in:icmp:echo-request")
        host.group(ADMIN, "in:tcp:22")
        web, other = host.guest(lab, 2, groups=(WEB, ADMIN)), host.guest(lab, 3)
        assert comes(web, web.udp(to(other, version), b"x", mac=other.mac, ports=(9, 53)), other)
        assert not comes(web, web.udp(to(other, version), b"x", mac=other.mac, ports=(9, 54)), other)
        assert not comes(web, tcp(web, other, version, (80, 9), SYN | ACK), other)
        assert comes(other, tcp(other, web, version, (9, 80)), web)
        assert comes(web, tcp(web, other, version, (80, 9), SYN | ACK), other)
        assert not comes(web, tcp(web, other, version, (80, 10), SYN | ACK), other)
        assert not comes(web, pongs(web, other, version), other)
        assert comes(other, other.ping(to(web, version), b"x", mac=web.mac), web)
        assert comes(web, pongs(web, other, version), other)
        assert host.counters.of_port(web.tap)[Drop.FORBIDDEN] == 4

    def test_what_a_network_needs_passes_always(self, host: Firewalled, version: int, kind: Kind) -> None:
        lab = host.network(1, kind)
        host.group(WEB, "out:tcp:1")
        web, other = host.guest(lab, 2, groups=(WEB,)), host.guest(lab, 3, groups=(WEB,))
        assert comes(web, web.arp(1, web.ipv4, (BROADCAST, other.ipv4)), other)
        assert comes(other, other.arp(2, other.ipv4, (web.mac, web.ipv4)), web)
        assert comes(web, web.solicit(other.ipv6), other)
        assert comes(other, other.advertise(other.ipv6), web)
        assert not comes(web, web.udp(to(other, version), b"x", mac=other.mac), other)


def pongs(one: FakeGuest, other: FakeGuest, version: int) -> bytes:
    if version == 6:
        return one.icmp6(other.ipv6, 129, frames.echo(b"x"), mac=other.mac)
    return one.packet(other.ipv4, frames.ICMP, frames.icmp(0, frames.echo(b"x")), mac=other.mac)


@pytest.mark.parametrize("version", VERSIONS)
class TestRules:
    def test_a_prefix_is_of_whoever_sends_or_receives(self, host: Firewalled, version: int) -> None:
        lab = host.network(1)
        one, other = host.guest(lab, 2), host.guest(lab, 3)
        length = 32 if version == 4 else 128
        host.group(WEB, f"in:tcp:80:from={to(one, version)}/{length}", f"out:tcp:81:to={to(one, version)}/{length}")
        web = host.guest(lab, 4, groups=(WEB,))
        assert comes(one, tcp(one, web, version, (9, 80)), web)
        assert not comes(other, tcp(other, web, version, (9, 80)), web)
        assert not comes(one, tcp(one, web, 10 - version, (9, 80)), web)
        assert comes(web, tcp(web, one, version, (9, 81)), one)
        assert not comes(web, tcp(web, other, version, (9, 81)), other)
        assert not comes(web, tcp(web, one, 10 - version, (9, 81)), one)

    def test_a_prefix_of_all_is_of_one_family(self, host: Firewalled, version: int) -> None:
        lab = host.network(1)
        host.group(WEB, f"in:any:from={ALL[version]}")
        web, other = host.guest(lab, 2, groups=(WEB,)), host.guest(lab, 3)
        assert comes(other, tcp(other, web, version, (9, 80)), web)
        assert not comes(other, tcp(other, web, 10 - version, (9, 80)), web)

    @pytest.mark.parametrize("protocol", ["tcp", "udp", "icmp", "any"])
    def test_a_protocol_alone_is_all_of_it(self, host: Firewalled, version: int, protocol: str) -> None:
        lab = host.network(1)
        host.group(WEB, f"in:{protocol}", f"out:{protocol}")
        web, other = host.guest(lab, 2, groups=(WEB,)), host.guest(lab, 3)
        for one, two in ((web, other), (other, web)):
            sent = {
                "tcp": tcp(one, two, version, (9, 80)),
                "udp": one.udp(to(two, version), b"x", mac=two.mac, ports=(1, 2)),
                "icmp": one.ping(to(two, version), b"x", mac=two.mac),
                "any": one.packet(to(two, version), 47, b"x" * 20, mac=two.mac),
            }
            if one is other:
                # Not as answers: another tuple, and what was sent before is forgotten.
                host.flows.ensure(forget=True)
            passed = {name for name, frame in sent.items() if comes(one, frame, two)}
            assert passed == (set(sent) if protocol == "any" else {protocol})

    def test_types_of_messages(self, host: Firewalled, version: int) -> None:
        lab = host.network(1)
        host.group(WEB, "in:icmp:echo-request,time-exceeded")
        web, other = host.guest(lab, 2, groups=(WEB,)), host.guest(lab, 3)

        def message(kind: int) -> bytes:
            if version == 6:
                return other.icmp6(web.ipv6, kind, bytes(4), mac=web.mac)
            return other.packet(web.ipv4, frames.ICMP, frames.icmp(kind, bytes(4)), mac=web.mac)

        allowed = (8, 11) if version == 4 else (128, 3)
        forbidden = (3, 0, 12) if version == 4 else (1, 2, 129, 4)
        assert all(comes(other, message(kind), web) for kind in allowed)
        assert not any(comes(other, message(kind), web) for kind in forbidden)

    def test_the_members_of_a_group_come_and_go(self, host: Firewalled, version: int) -> None:
        lab = host.network(1)
        web, one = host.guest(lab, 2), host.guest(lab, 3)
        host.group(ADMIN)
        host.group(WEB, f"in:tcp:22:from=group/{ADMIN}", f"out:tcp:23:to=group/{ADMIN}")
        host.bear(web, WEB)
        sent, back = tcp(one, web, version, (9, 22)), tcp(web, one, version, (9, 23))
        assert not comes(one, sent, web)
        assert not comes(web, back, one)
        host.group(DB, "in:any")
        host.bear(one, ADMIN, DB)
        assert comes(one, sent, web)
        assert comes(web, back, one)
        assert not comes(web, tcp(web, one, version, (9, 24)), one)
        late = host.guest(lab, 5, groups=(ADMIN,))
        assert comes(late, tcp(late, web, version, (9, 22)), web)
        host.bear(one, DB)
        assert not comes(one, sent, web)
        assert not comes(web, back, one)
        # Nor by the address of a member: it is told by its tap.
        forged = one.udp(to(web, version), b"x", mac=web.mac, source=to(late, version))
        assert not comes(one, forged, web)

    def test_a_rule_that_names_its_own_group(self, host: Firewalled, version: int) -> None:
        lab = host.network(1)
        host.group(WEB, f"in:any:from=group/{WEB}")
        one, two, other = host.guest(lab, 2, groups=(WEB,)), host.guest(lab, 3, groups=(WEB,)), host.guest(lab, 4)
        assert comes(one, tcp(one, two, version, (9, 22)), two)
        assert not comes(other, tcp(other, two, version, (9, 22)), two)


@pytest.mark.parametrize("version", VERSIONS)
class TestChanges:
    def test_a_rule_taken_away_ends_its_flows_with_the_next_frame(self, host: Firewalled, version: int) -> None:
        lab = host.network(1)
        host.group(WEB, "in:tcp:80", "in:udp:53")
        web, other = host.guest(lab, 2, groups=(WEB,)), host.guest(lab, 3)
        asked = tcp(other, web, version, (9, 80), ACK)
        assert comes(other, tcp(other, web, version, (9, 80)), web)
        assert comes(web, tcp(web, other, version, (80, 9), SYN | ACK), other)
        assert comes(other, asked, web)
        host.group(WEB, "in:udp:53")
        assert not comes(other, asked, web)
        # What the guest still says is an answer, and begins nothing.
        assert comes(web, tcp(web, other, version, (80, 9), ACK), other)
        assert not comes(other, asked, web)
        host.group(WEB, "in:tcp:80")
        assert comes(other, asked, web)

    def test_a_rule_out_taken_away_too(self, host: Firewalled, version: int) -> None:
        lab = host.network(1)
        host.group(WEB, "out:tcp:80", "out:udp:1")
        web, other = host.guest(lab, 2, groups=(WEB,)), host.guest(lab, 3)
        sent = tcp(web, other, version, (9, 80), ACK)
        assert comes(web, sent, other)
        host.group(WEB, "out:udp:1")
        assert not comes(web, sent, other)
        host.group(WEB)
        assert comes(web, sent, other)

    def test_groups_come_and_go_while_a_guest_runs(self, host: Firewalled, version: int) -> None:
        lab = host.network(1)
        web, other = host.guest(lab, 2), host.guest(lab, 3)
        host.group(WEB, "in:tcp:80")
        host.group(ADMIN, "in:tcp:22")
        frame = tcp(other, web, version, (9, 22))
        assert comes(other, frame, web)
        host.bear(web, WEB)
        assert not comes(other, frame, web)
        host.bear(web, WEB, ADMIN)
        assert comes(other, frame, web)
        host.bear(web)
        assert comes(other, tcp(other, web, version, (9, 443)), web)

    def test_a_port_that_gets_its_first_group_has_the_answers_to_what_it_asked(
        self, host: Firewalled, version: int
    ) -> None:
        lab = host.network(1)
        host.group(WEB)
        web, other = host.guest(lab, 2), host.guest(lab, 3)
        assert comes(web, tcp(web, other, version, (9, 22)), other)
        host.bear(web, WEB)
        assert comes(other, tcp(other, web, version, (22, 9), SYN | ACK), web)

    def test_a_group_that_is_not_known_allows_nothing(self, host: Firewalled, version: int) -> None:
        lab = host.network(1)
        web, other = host.guest(lab, 2, groups=(DB,)), host.guest(lab, 3)
        assert not comes(other, tcp(other, web, version, (9, 22)), web)
        host.replace()
        assert not comes(other, tcp(other, web, version, (9, 22)), web)


class TestBasics:
    def test_a_network_gives_addresses_and_names_to_a_port_with_a_rule_out(self, host: Firewalled) -> None:
        lan = host.network(1, "bridged")
        host.group(WEB, "out:tcp:1")
        web, server = host.guest(lan, 2, groups=(WEB,)), host.machine(lan.bridge, 7)
        everyone = "255.255.255.255"
        assert comes(web, web.udp(everyone, b"x", mac=BROADCAST, ports=(68, 67), source=ANY), server)
        assert comes(server, server.udp(everyone, b"y", mac=BROADCAST, ports=(67, 68)), web)
        assert comes(server, server.udp(web.ipv6, b"y", mac=web.mac, ports=(547, 546)), web)
        assert comes(web, web.udp("ff02::1:2", b"y", mac=frames.group_mac("ff02::1:2"), ports=(546, 547)), server)
        assert comes(server, server.icmp6("ff02::1", 134, bytes(12)), web)
        assert comes(web, web.icmp6("ff02::2", 133, bytes(4)), server)
        assert not comes(web, web.udp(server.ipv4, b"x", mac=server.mac, ports=(9, 53)), server)

    def test_the_resolver_of_the_network_is_asked_and_answers(self, host: Firewalled) -> None:
        lab = host.network(1)
        host.group(WEB, "out:tcp:1")
        web = host.guest(lab, 2, groups=(WEB,))
        resolver = host.guest(lab, 254, rules=False, tap="aes000000000001")
        six = "fd00:1::53"
        assert comes(web, web.udp(resolver.ipv4, b"x", mac=resolver.mac, ports=(9, 53)), resolver)
        assert comes(web, web.tcp(resolver.ipv4, SYN, mac=resolver.mac, ports=(9, 53), at=(1, 0)), resolver)
        assert comes(web, web.udp(six, b"x", mac=resolver.mac, ports=(9, 53)), resolver)
        assert comes(web, web.udp(resolver.ipv4, b"x", mac=resolver.mac, ports=(68, 67)), resolver)
        assert not comes(web, web.udp(resolver.ipv4, b"x", mac=resolver.mac, ports=(9, 54)), resolver)
        # What the resolver says is never unasked for: DHCP, router advertisements.
        assert comes(resolver, resolver.udp("255.255.255.255", b"y", mac=BROADCAST, ports=(67, 68)), web)

    def test_only_a_resolver_may_say_so_in_a_network_of_ours(self, host: Firewalled) -> None:
        lab, world = host.network(1, "nat"), host.outside()
        host.group(WEB, "in:tcp:80")
        web = host.guest(lab, 2, groups=(WEB,))
        host.acquaint(lab.bridge, web)
        for ports in ((67, 68), (547, 546)):
            for address in (web.ipv4, web.ipv6):
                world.send(world.udp(address, b"of the world", mac=host.mac("uplink"), ports=ports))
        assert not web.has_seen(b"of the world")

    def test_a_frame_with_a_tag_does_not_reach_a_port_with_groups(self, host: Firewalled) -> None:
        lan = host.network(1, "bridged")
        host.group(WEB, "in:any")
        web, machine = host.guest(lan, 2, groups=(WEB,)), host.machine(lan.bridge, 7)
        frame = machine.udp(web.ipv4, b"tagged", mac=web.mac)
        assert comes(machine, frame, web)
        machine.send(frames.vlan(frame, 7))
        machine.send(frames.ethernet(web.mac, machine.mac, 0x88CC, b"tagged"))
        assert not web.has_seen(b"tagged")
