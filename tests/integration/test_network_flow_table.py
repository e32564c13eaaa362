"""The table of flows: what it remembers and for how long, that it stays, and what others do to it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from aetherscale.actors.network.flows import Concerned
from aetherscale.actors.network.model.flows import MOST_FLOWS
from aetherscale.actors.network.nft.flows import FlowReader
from tests.support import firewalled, frames
from tests.support.fake_guest import FakeGuest, tcp, to
from tests.support.firewalled import Firewalled, comes, nft
from tests.support.frames import ACK, SYN

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(firewalled.missing() is not None, reason=str(firewalled.missing())),
]
VERSIONS = (4, 6)
GROUP = "a" * 16
LASTS = {"30s": 30, "2m": 120, "3m": 180, "1h": 3600}
FIN, RST = 0x01, 0x04


@pytest.fixture
def host() -> Iterator[Firewalled]:
    with firewalled.firewalled() as made:
        made.flows.ensure()
        yield made


def lasts(name: str) -> list[str]:
    """How long each element of a set lasts, beginning with its last packet, which was just now."""
    expire = re.findall(
        r" expires (?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", nft("list", "set", "bridge", "aetherscale_flows", name)
    )
    left_s = [3600 * int(h or 0) + 60 * int(m or 0) + int(s or 0) for h, m, s in expire]
    return [next(name for name, most_s in LASTS.items() if each_s <= most_s) for each_s in left_s]


class TestListing:
    def test_nft_lists_all_rules_while_there_are_flows_of_every_kind(self, host: Firewalled) -> None:
        lab = host.network(1)
        one, other = host.guest(lab, 2), host.guest(lab, 3)
        for version in VERSIONS:
            assert comes(one, tcp(one, other, version, (9, 80)), other)
            assert comes(other, tcp(other, one, version, (80, 9), SYN | ACK), one)
            assert comes(one, tcp(one, other, version, (9, 80), FIN | ACK), other)
            assert comes(one, one.udp(to(other, version), b"x", mac=other.mac), other)
            assert comes(one, one.ping(to(other, version), b"x", mac=other.mac), other)
            assert comes(one, one.packet(to(other, version), 47, b"x" * 20, mac=other.mac), other)
            assert comes(one, tcp(one, other, version, (9, 81)), other)
        host.nft.run(
            host.flows.keep(Concerned(frozenset({one.tap, other.tap}), frozenset()), lambda *_: True, lambda *_: False)
        )
        sets = re.findall(r"\tset (\w+) \{", nft("-t", "list", "table", "bridge", "aetherscale_flows"))
        for name in sets:
            listed = nft("list", "set", "bridge", "aetherscale_flows", name)
            assert "elements = {" in listed, name
            json.loads(nft("-j", "list", "set", "bridge", "aetherscale_flows", name))
        assert len(sets) == 30
        for words in (
            ["list", "ruleset"],
            ["-j", "list", "ruleset"],
            ["-a", "list", "ruleset"],
            ["-s", "list", "ruleset"],
        ):
            assert one.tap in nft(*words)

    def test_each_set_of_flows_has_a_bound(self, host: Firewalled) -> None:
        listed = nft("list", "table", "bridge", "aetherscale_flows")
        sizes = [int(size) for size in re.findall(r"\n\t\tsize (\d+)\n", listed)]
        assert len(sizes) == listed.count("\tset ")
        assert max(sizes) == MOST_FLOWS

    def test_the_list_of_nft_makes_the_same_table(self, host: Firewalled) -> None:
        before = nft("list", "ruleset")
        host.nft.run("flush ruleset\n" + before)
        assert nft("list", "ruleset") == before
        assert host.flows._stands()


@pytest.mark.parametrize("version", VERSIONS)
class TestWhatIsRemembered:
    def test_a_flow_of_tcp_lasts_once_it_was_answered_and_until_it_has_ended(
        self, host: Firewalled, version: int
    ) -> None:
        lab = host.network(1)
        host.group(GROUP, "in:tcp")
        one, other = host.guest(lab, 2, groups=(GROUP,)), host.guest(lab, 3, groups=(GROUP,))
        sent, taken, closing = f"sent_tcp{version}", f"taken_tcp{version}", f"closing{version}"
        for _ in range(2):
            # The second time the same ports are used again.
            assert comes(one, tcp(one, other, version, (9, 80)), other)
            assert (lasts(sent), lasts(taken), lasts(closing)) == (["2m"], ["2m"], [])
            assert comes(other, tcp(other, one, version, (80, 9), SYN | ACK), one)
            assert (lasts(sent), lasts(taken)) == (["1h"], ["2m"])
            assert comes(one, tcp(one, other, version, (9, 80), ACK), other)
            assert comes(other, tcp(other, one, version, (80, 9), ACK), one)
            assert (lasts(sent), lasts(taken)) == (["1h"], ["1h"])
            assert comes(one, tcp(one, other, version, (9, 80), FIN | ACK), other)
            assert comes(other, tcp(other, one, version, (80, 9), FIN | ACK), one)
            for _ in range(2):
                assert comes(one, tcp(one, other, version, (9, 80), ACK), other)
                assert comes(other, tcp(other, one, version, (80, 9), ACK), one)
            assert (lasts(sent), lasts(taken), lasts(closing)) == (["2m"], ["2m"], ["2m", "2m"])

    def test_a_reset_ends_it(self, host: Firewalled, version: int) -> None:
        lab = host.network(1)
        one, other = host.guest(lab, 2), host.guest(lab, 3)
        assert comes(one, tcp(one, other, version, (9, 80), RST), other)
        assert lasts(f"sent_tcp{version}") == []
        assert comes(one, tcp(one, other, version, (9, 80)), other)
        assert comes(other, tcp(other, one, version, (80, 9), ACK), one)
        assert comes(other, tcp(other, one, version, (80, 9), RST), one)
        assert comes(other, tcp(other, one, version, (80, 9), ACK), one)
        assert (lasts(f"sent_tcp{version}"), lasts(f"taken_tcp{version}")) == (["2m"], ["2m"])

    def test_one_of_udp_lasts_once_it_was_answered(self, host: Firewalled, version: int) -> None:
        lab = host.network(1)
        one, other = host.guest(lab, 2), host.guest(lab, 3)
        sets = f"sent_udp{version}", f"taken_udp{version}"
        assert comes(one, one.udp(to(other, version), b"x", mac=other.mac), other)
        assert [lasts(each) for each in sets] == [["30s"], ["30s"]]
        assert comes(other, other.udp(to(one, version), b"x", mac=one.mac), one)
        assert [lasts(each) for each in sets] == [["3m"], ["3m"]]

    def test_what_is_dropped_or_for_many_is_not(self, host: Firewalled, version: int) -> None:
        lab = host.network(1)
        host.group(GROUP, "out:tcp:1")
        one, other = host.guest(lab, 2, groups=(GROUP,)), host.guest(lab, 3)
        assert not comes(one, one.udp(to(other, version), b"x", mac=other.mac), other)
        assert not comes(other, other.udp(to(one, version), b"x", mac=one.mac, ports=(1, 2)), one)
        assert not comes(one, one.udp(to(other, version), b"x", mac=other.mac, source=WRONG[version]), other)
        many = "224.0.0.251" if version == 4 else "ff02::fb"
        assert comes(other, other.udp(many, b"x", mac="01:00:5e:00:00:fb"), host.guest(lab, 4))
        assert [lasts(f"{what}_udp{version}") for what in ("sent", "taken")] == [["30s"], []]
        assert lasts(f"sent_udp{version}") == ["30s"]

    def test_a_tap_begins_so_many_and_what_it_sends_beyond_passes(self, host: Firewalled, version: int) -> None:
        lab = host.network(1)
        one, other = host.guest(lab, 2), host.guest(lab, 3)
        # They are made beforehand: to make them takes so long on a busy host that as many may begin meanwhile.
        begun = [tcp(one, other, version, (1 + number % 30_000, 80 + number // 30_000)) for number in range(40_000)]
        for at in range(0, len(begun), 200):
            one.send(*begun[at : at + 200])
            other.received()
        last = tcp(one, other, version, (40_000, 99))
        reader = FlowReader()
        recorded = len(reader.read(f"sent_tcp{version}"))
        reader.close()
        assert 20_000 <= recorded < 40_000
        assert comes(one, last, other)
        # Others are not concerned.
        assert comes(other, tcp(other, one, version, (9, 9)), one)
        assert len(lasts(f"taken_tcp{version}")) > 0

    def test_errors_about_what_was_sent_or_answered_pass_and_no_others(self, host: Firewalled, version: int) -> None:
        lab = host.network(1)
        host.group(GROUP, "in:tcp:80", "out:udp:53")
        web, other, router = host.guest(lab, 2, groups=(GROUP,)), host.guest(lab, 3), host.guest(lab, 4)

        def error(one: FakeGuest, about: bytes, two: FakeGuest) -> bytes:
            quoted = bytes(4) + about[14:]
            if version == 6:
                return one.icmp6(two.ipv6, 1, quoted, mac=two.mac)
            return one.packet(two.ipv4, frames.ICMP, frames.icmp(3, quoted), mac=two.mac)

        sent = web.udp(to(other, version), b"x", mac=other.mac, ports=(9, 53))
        assert not comes(router, error(router, sent, web), web)
        assert comes(web, sent, other)
        assert comes(router, error(router, sent, web), web)
        # About another's packet, or one that the port has not sent.
        stray = router.udp(to(other, version), b"x", mac=other.mac, ports=(9, 53))
        assert not comes(router, error(router, stray, web), web)
        # About what it has taken: what it answered cannot be delivered, and it refuses what came.
        host.flows.ensure(forget=True)
        taken = tcp(other, web, version, (9, 80))
        answer = tcp(web, other, version, (80, 9), ACK)
        assert not comes(web, error(web, taken, other), other)
        assert comes(other, taken, web)
        assert comes(router, error(router, answer, web), web)
        assert comes(web, error(web, taken, other), other)


WRONG = {4: "10.64.1.99", 6: "fd00:1::99"}


@pytest.mark.parametrize("version", VERSIONS)
class TestKeeping:
    def test_flows_that_are_kept_go_on_until_they_are_let_go(self, host: Firewalled, version: int) -> None:
        lab = host.network(1)
        host.group(GROUP, "in:tcp:80", "in:udp:53", "out:tcp:443")
        web, other = host.guest(lab, 2, groups=(GROUP,)), host.guest(lab, 3)
        inward = tcp(other, web, version, (9, 80), ACK)
        outward = tcp(web, other, version, (9, 443), ACK)
        datagram = other.udp(to(web, version), b"x", mac=web.mac, ports=(9, 53))
        for frame in (inward, datagram):
            assert comes(other, frame, web)
        assert comes(web, outward, other)
        concerned = Concerned(frozenset({web.tap}), frozenset())
        host.nft.run(host.flows.keep(concerned, lambda *_: True, lambda *_: False))
        host.group(GROUP, "out:tcp:1")
        for _ in range(2):
            assert comes(other, inward, web)
            assert comes(other, datagram, web)
            assert comes(web, tcp(web, other, version, (80, 9), ACK), other)
            assert comes(web, outward, other)
            assert comes(other, tcp(other, web, version, (443, 9), ACK), web)
        assert not comes(other, tcp(other, web, version, (10, 80)), web)
        assert not comes(web, tcp(web, other, version, (10, 443)), other)
        host.nft.run(host.flows.let_go(lambda: concerned))
        assert host.flows.let_go(lambda: concerned) == ""
        for frame in (inward, datagram):
            assert not comes(other, frame, web)
        assert not comes(web, outward, other)
