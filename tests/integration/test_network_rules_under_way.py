"""Packets that are under way while the rules change: what a map has lost or a chain not yet got lets nothing pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest

from aetherscale.actors.network import firewall
from aetherscale.actors.network.model import chains
from aetherscale.actors.network.model.chains import SETS
from aetherscale.actors.network.model.groups import SetOfGroups
from aetherscale.actors.network.model.marks import COVER_TABLE
from aetherscale.actors.network.model.ruleset import FAMILIES, Standing, compile
from aetherscale.actors.network.nft.nftables import Nftables, NftError
from tests.support import firewalled
from tests.support.fake_guest import FakeGuest
from tests.support.firewalled import Firewalled, listed

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(firewalled.missing() is not None, reason=str(firewalled.missing())),
]
WEB, DB = f"{1:016x}", f"{2:016x}"
MAPS = [name for name, (family, what, _) in SETS.items() if (family, what) == ("bridge", "map")]
BORNE = SetOfGroups(False, (WEB,))


@pytest.fixture
def host() -> Iterator[Firewalled]:
    with firewalled.firewalled() as made:
        yield made


def ends(host: Firewalled) -> tuple[FakeGuest, FakeGuest, FakeGuest]:
    """A guest whose group lets in and out one port, one without groups, and one that judges when all has arrived."""
    lab = host.network(1)
    host.group(WEB, "in:udp:53", "out:udp:53")
    return host.guest(lab, 2, groups=(WEB,)), host.guest(lab, 3), host.guest(lab, 4)


def question(sender: FakeGuest, receiver: FakeGuest) -> bytes:
    return sender.udp(receiver.ipv4, b"question", mac=receiver.mac, ports=(9, 53))


def arrives(sender: FakeGuest, receiver: FakeGuest) -> bool:
    """A question of UDP arrives; else it fails."""
    sender.send(question(sender, receiver))
    return len(receiver.until(b"question")) > 0


def passes(sender: FakeGuest, receiver: FakeGuest) -> bool:
    """Whether a question is there when the write returns: the bridge has delivered it then, but on a busy host."""
    sender.send(question(sender, receiver))
    return receiver.has_seen(b"question")


class Recording:
    """Nft that keeps the texts it was given, and refuses those with a word in them."""

    def __init__(self, nft: Nftables, refused: str = "") -> None:
        self.texts: list[str] = []
        self._nft = nft
        self._refused = refused

    def run(self, text: str) -> str:
        self.texts.append(text)
        if self._refused and self._refused in text:
            raise NftError("Error: as the test has it")
        return self._nft.run(text)


class TestMapsThatHaveNothing:
    """A packet in an old chain finds the elements of the next generation: those of a map that is gone are none."""

    def test_there_are_three_maps_of_taps(self) -> None:
        assert MAPS == ["from_host", "ingress", "egress"]

    @pytest.mark.parametrize("bears", [True, False], ids=["with groups", "without groups"])
    def test_of_what_a_port_sends_lets_nothing_leave(self, host: Firewalled, bears: bool) -> None:
        web, plain, other = ends(host)
        sender = web if bears else plain
        assert arrives(sender, other)
        host.nft.run("flush map bridge aetherscale egress")
        assert not passes(sender, other)

    @pytest.mark.parametrize("bears", [True, False], ids=["with groups", "without groups"])
    def test_of_what_a_port_is_sent_lets_nothing_in(self, host: Firewalled, bears: bool) -> None:
        web, plain, other = ends(host)
        receiver = web if bears else plain
        assert arrives(other, receiver)
        host.nft.run("flush map bridge aetherscale ingress")
        assert not passes(other, receiver)

    @pytest.mark.parametrize("bears", [True, False], ids=["with groups", "without groups"])
    def test_of_what_the_host_sends_lets_nothing_in(self, host: Firewalled, bears: bool) -> None:
        lab = host.network(1, "bridged")
        host.group(WEB, "in:udp:53")
        guest = host.guest(lab, 2, groups=(WEB,) if bears else ())
        host.acquaint(lab.bridge, guest)
        sock = host.listening("10.64.1.1", 5353)

        sock.sendto(b"question", (guest.ipv4, 53))
        guest.until(b"question")
        host.nft.run("flush map bridge aetherscale from_host")
        sock.sendto(b"question", (guest.ipv4, 53))
        assert not guest.has_seen(b"question")


class TestChainsThatHaveNothing:
    """A packet in an old chain that is led to a new one finds no rule in it."""

    @pytest.mark.parametrize("way", ["in", "out"])
    def test_of_a_set_of_groups_let_nothing_pass(self, host: Firewalled, way: str) -> None:
        web, _, other = ends(host)
        sender, receiver = (other, web) if way == "in" else (web, other)
        assert arrives(sender, receiver)
        host.nft.run(f"flush chain bridge aetherscale {BORNE.inward if way == 'in' else BORNE.outward}")
        assert not passes(sender, receiver)

    @pytest.mark.parametrize("way", ["in", "out"])
    def test_of_a_group_let_nothing_pass(self, host: Firewalled, way: str) -> None:
        web, _, other = ends(host)
        sender, receiver = (other, web) if way == "in" else (web, other)
        host.nft.run(f"flush chain bridge aetherscale g_{WEB}_{way}")
        assert not passes(sender, receiver)

    @pytest.mark.parametrize("kind", ["nat", "bridged"])
    @pytest.mark.parametrize("bears", [True, False], ids=["with groups", "without groups"])
    def test_of_what_the_host_sends_let_nothing_in(self, host: Firewalled, kind: str, bears: bool) -> None:
        lab = host.network(1, kind)  # type: ignore[arg-type]
        host.group(WEB, "in:udp:53")
        guest = host.guest(lab, 2, groups=(WEB,) if bears else ())
        host.acquaint(lab.bridge, guest)
        chain = SetOfGroups(kind == "bridged", (WEB,)).inward if bears else f"from_{kind}"
        host.nft.run(f"flush chain bridge aetherscale {chain}")
        # In a nat network the rules of IP refuse it already.
        with suppress(PermissionError):
            host.listening("10.64.1.1", 5353).sendto(b"question", (guest.ipv4, 53))
        assert not guest.has_seen(b"question")


class TestInPlace:
    """Two base chains at one hook, one about to be removed and one just made, may each be empty for one packet."""

    def test_no_chain_and_no_set_that_stays_is_made_anew(self, host: Firewalled) -> None:
        ends(host)
        recording = Recording(host.nft)
        before = host.structure.standing(), listed(host.nft)
        firewall.replace(recording, host.structure, host.applied)  # type: ignore[arg-type]
        assert (host.structure.standing(), listed(host.nft)) == before
        assert len(recording.texts) == 1
        assert not any(word in recording.texts[0] for word in ("delete table", "delete chain", "delete set"))

    def test_chains_and_sets_that_are_not_of_the_rules_are_removed(self, host: Firewalled) -> None:
        ends(host)
        before = listed(host.nft)
        host.nft.run(
            "add chain inet aetherscale other { type filter hook input priority 7; }\n"
            "add rule inet aetherscale other accept\nadd chain bridge aetherscale more\n"
            "add rule bridge aetherscale guard jump more\n"
            "add set bridge aetherscale s { type mark; elements = { 1 } }\n"
            "add map arp aetherscale m { type ether_addr : verdict; elements = { 02:00:00:00:00:01 : drop } }\n"
            "add rule bridge aetherscale more meta mark { 1, 2 } accept\n"
        )
        assert listed(host.nft) != before
        recording = Recording(host.nft)
        firewall.replace(recording, host.structure, host.applied)  # type: ignore[arg-type]
        assert listed(host.nft) == before
        assert len(recording.texts) == 1

    def test_groups_that_are_gone_leave_nothing(self, host: Firewalled) -> None:
        lab = host.network(1)
        host.flows.ensure()
        host.guest(lab, 2)
        host.replace()
        before = listed(host.nft)
        host.group(WEB, f"in:tcp:80:from=group/{DB}")
        host.guest(lab, 3, groups=(WEB, DB))
        host.groups.clear()
        del host.ports[host.guests[-1].tap]
        host.replace()
        assert listed(host.nft) == before

    def test_nothing_stands_where_there_are_no_tables(self, host: Firewalled) -> None:
        host.nft.run("flush ruleset")
        assert host.structure.standing() == Standing()
        host.replace()
        assert {family for family, _ in host.structure.standing().chains} == set(FAMILIES)


class TestUnderACover:
    """Where a set or a chain of our name is of another kind, the tables are removed, and nothing passes meanwhile."""

    OLDER = (
        "delete table bridge aetherscale\nadd table bridge aetherscale\n"
        "add set bridge aetherscale ports { type mark; }\n"
        "add chain bridge aetherscale prerouting { type filter hook prerouting priority -7; }\n"
    )

    def test_the_rules_are_as_ever_and_the_cover_is_gone(self, host: Firewalled) -> None:
        _, plain, other = ends(host)
        host.replace()
        before = sorted(listed(host.nft))
        host.nft.run(self.OLDER)
        recording = Recording(host.nft)
        firewall.replace(recording, host.structure, host.applied)  # type: ignore[arg-type]
        assert sorted(listed(host.nft)) == before
        assert [COVER_TABLE in text for text in recording.texts] == [False, True, True]
        assert arrives(plain, other)

    def test_nothing_passes_beneath_it(self, host: Firewalled) -> None:
        lab = host.network(1, "bridged")
        guest, other = host.guest(lab, 2), host.guest(lab, 3)
        machine = host.machine(lab.bridge, 4)
        host.acquaint(lab.bridge, guest, other)
        assert arrives(machine, guest)
        host.nft.run(chains.COVER)
        assert not passes(guest, machine)
        assert not passes(machine, guest)
        host.listening("10.64.1.1", 5353).sendto(b"question", (guest.ipv4, 53))
        assert not guest.has_seen(b"question")

    def test_where_the_rules_are_refused_too_all_is_as_it_was(self, host: Firewalled) -> None:
        ends(host)
        before = listed(host.nft)
        recording = Recording(host.nft, refused="table arp")
        with pytest.raises(NftError):
            firewall.replace(recording, host.structure, compile((), ()))  # type: ignore[arg-type]
        assert listed(host.nft) == before
        assert len(recording.texts) == 4

    def test_one_that_a_killed_node_has_left_is_removed(self, host: Firewalled) -> None:
        ends(host)
        host.replace()
        before = listed(host.nft)
        host.nft.run(chains.COVER)
        host.replace()
        assert listed(host.nft) == before
