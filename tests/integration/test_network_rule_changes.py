"""Rules that change: replaced whole beside a flood, by deltas, by failed transactions; the counters and the library."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from aetherscale.actors.network.model.chains import Drop
from aetherscale.actors.network.model.ruleset import compile, delta, replace_all
from aetherscale.actors.network.nft.nftables import Nftables, NftError
from tests.support import firewalled
from tests.support.fake_guest import FakeGuest
from tests.support.firewalled import Firewalled, listed
from tests.support.frames import BROADCAST
from tests.support.spoofs import spoofs

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(firewalled.missing() is not None, reason=str(firewalled.missing())),
]
REPLACES = 200


@pytest.fixture
def host() -> Iterator[Firewalled]:
    with firewalled.firewalled() as made:
        yield made


def tables(host: Firewalled) -> list[str]:
    return listed(host.nft)


def passed(guest: FakeGuest, other: FakeGuest, host: Firewalled) -> tuple[list[bytes], dict[Drop, int]]:
    """What of all that a guest may not send and may send arrives, and what was counted meanwhile."""
    other.received()
    before = host.counters.of_port(guest.tap)
    guest.send(*(frame for _, _, frame in spoofs(guest, other)))
    guest.send(guest.udp(other.ipv6, b"fine", mac=other.mac), guest.udp(other.ipv4, b"sentinel", mac=other.mac))
    arrived = other.until(b"sentinel")
    after = host.counters.of_port(guest.tap)
    return arrived, {kind: after.get(kind, 0) - before.get(kind, 0) for kind in Drop if kind is not Drop.UNINVITED}


class TestReplacing:
    def test_of_a_flood_of_spoofed_frames_none_passes_while_all_is_replaced(self, host: Firewalled) -> None:
        lab = host.network(1)
        guest, victim, stray = host.guest(lab, 2), host.guest(lab, 3), host.guest(lab, 4, rules=False)
        flood = [frame for _, _, frame in spoofs(guest, victim)]
        strays = [frame for _, _, frame in spoofs(stray, victim)] + [stray.udp(victim.ipv4, b"x", mac=BROADCAST)]
        stop, sent, arrived = threading.Event(), [0], list[bytes]()

        def attack() -> None:
            while not stop.is_set():
                guest.send(*flood)
                stray.send(*strays)
                sent[0] += len(flood) + len(strays)
                arrived.extend(victim.received())
                arrived.extend(stray.received())

        attacker = threading.Thread(target=attack)
        attacker.start()
        try:
            done = 0
            while done < REPLACES or sent[0] < 20_000:
                host.replace()
                done += 1
        finally:
            stop.set()
            attacker.join()
        guest.send(guest.udp(victim.ipv4, b"sentinel", mac=victim.mac))
        assert len(victim.until(b"sentinel")) == 1
        assert arrived == []

    def test_a_port_that_is_told_again_while_all_is_replaced_loses_no_frame(self, host: Firewalled) -> None:
        lab = host.network(1)
        guest, other = host.guest(lab, 2), host.guest(lab, 3)
        stop = threading.Event()

        def rewrite() -> None:
            while not stop.is_set():
                host.replace()

        writer = threading.Thread(target=rewrite)
        writer.start()
        try:
            for number in range(2000):
                guest.send(guest.udp(other.ipv4, f"number {number:5}.".encode(), mac=other.mac))
                assert len(other.until(f"number {number:5}.".encode())) == 1
        finally:
            stop.set()
            writer.join()

    def test_what_somebody_added_to_the_tables_is_gone(self, host: Firewalled) -> None:
        lab = host.network(1)
        host.guest(lab, 2)
        before = tables(host)
        host.nft.run("insert rule bridge aetherscale guard accept\nadd chain inet aetherscale other { }\n")
        host.nft.run('add element bridge aetherscale ports { "aepffffffffffff" }\nadd table bridge other\n')
        host.replace()
        host.nft.run("delete table bridge other")
        assert tables(host) == before

    def test_a_ruleset_without_networks_lets_no_tap_through(self, host: Firewalled) -> None:
        lab = host.network(1)
        guest, other = host.guest(lab, 2), host.guest(lab, 3)
        host.nft.run(replace_all(firewalled.EMPTY))
        guest.send(guest.udp(other.ipv4, b"x", mac=other.mac))
        host.replace()
        guest.send(guest.udp(other.ipv4, b"sentinel", mac=other.mac))
        assert len(other.until(b"sentinel")) == 1


class TestDeltas:
    @pytest.mark.parametrize("seed", range(6))
    def test_they_lead_to_the_same_rules_as_replacing_all(self, host: Firewalled, seed: int) -> None:
        chance = random.Random(seed)  # noqa: S311
        networks = [host.network(1, "isolated"), host.network(2, "nat"), host.network(3, "bridged")]
        guest, other = host.guest(networks[0], 2), host.guest(networks[0], 3)
        for _ in range(30):
            network, number = chance.choice(networks), chance.randrange(10, 14)
            tap = host.guest(network, number, made=False).tap
            port = host.ports.pop(tap)
            what = chance.choice(("comes", "goes", "changes", "kind"))
            if what == "comes":
                host.ports[tap] = port
            elif what == "changes":
                allowed = host.guest(network, number, made=False, allowed=("10.9.0.0/16", "fd77::/48")).tap
                host.ports[tap] = replace(host.ports[allowed], ipv4=None, mac=port.mac[:-2] + "ee")
                if sum(one.mac == host.ports[tap].mac for one in host.ports.values()) > 1:
                    del host.ports[tap]
            elif what == "kind":
                bridge = networks[1].bridge
                turned = "nat" if host.networks[bridge].kind == "isolated" else "isolated"
                host.networks[bridge] = replace(host.networks[bridge], kind=turned)
            host.apply()
        by_deltas, verdicts = tables(host), passed(guest, other, host)
        host.replace()
        assert tables(host) == by_deltas
        assert passed(guest, other, host) == verdicts
        assert (len(verdicts[0]), sum(verdicts[1].values())) == (2, len(list(spoofs(guest, other))))

    def test_a_port_that_goes_is_cut_off_and_one_that_comes_is_let_in(self, host: Firewalled) -> None:
        lab = host.network(1)
        guest, other, third = host.guest(lab, 2), host.guest(lab, 3), host.guest(lab, 4)
        rules = host.ports.pop(guest.tap)
        host.apply()
        guest.send(guest.udp(other.ipv4, b"too late", mac=other.mac))
        third.send(third.udp("10.64.1.255", b"sentinel", mac=BROADCAST))
        assert len(other.until(b"sentinel")) == 1
        host.ports[guest.tap] = rules
        host.apply()
        guest.send(guest.udp(other.ipv4, b"again", mac=other.mac))
        assert len(other.until(b"again")) == 1
        assert guest.received() == []

    def test_an_address_that_a_port_gives_up_is_foreign_at_once(self, host: Firewalled) -> None:
        lab = host.network(1)
        guest, other = host.guest(lab, 2), host.guest(lab, 3)
        old = host.ports[guest.tap]
        host.ports[guest.tap] = replace(old, ipv4=None, ipv6=old.ipv6[:1])
        host.apply()
        guest.send(guest.udp(other.ipv4, b"x", mac=other.mac), guest.udp(other.ipv6, b"x", mac=other.mac))
        guest.send(guest.advertise(guest.ipv6), guest.udp(other.local, b"sentinel", mac=other.mac))
        assert len(other.until(b"sentinel")) == 1

    def test_a_network_comes_and_goes_with_its_masquerade(self, host: Firewalled) -> None:
        empty = tables(host)
        for _ in range(3):
            lab = host.network(1, "nat")
            host.guest(lab, 2, allowed=("0.0.0.0/0",), made=False)
            assert "10.64.1.0/24" in str(tables(host))
            host.ports.clear()
            host.networks.clear()
            host.apply()
            host.links.link("del", index=host.index(lab.bridge))
            assert tables(host) == empty


class TestTransactions:
    def test_one_that_fails_changes_nothing(self, host: Firewalled) -> None:
        lab = host.network(1, "nat")
        guest, other = host.guest(lab, 2), host.guest(lab, 3)
        before, verdicts = tables(host), passed(guest, other, host)
        emptied = compile(host.networks.values(), ())
        for text in (
            delta(host.applied, emptied) + 'delete element bridge aetherscale ports { "aepffffffffffff" }\n',
            replace_all(emptied) + "add rule bridge aetherscale guard iifname @nothing accept\n",
            replace_all(emptied) + "this is no nft\n",
            "flush ruleset\nadd rule bridge nothing guard accept\n",
        ):
            with pytest.raises(NftError) as error:
                host.nft.run(text)
            assert "Error:" in error.value.words
        assert tables(host) == before
        assert passed(guest, other, host) == verdicts

    def test_a_delta_from_what_the_kernel_does_not_have_is_refused_whole(self, host: Firewalled) -> None:
        lab = host.network(1)
        host.guest(lab, 2)
        before, has = tables(host), host.applied
        host.ports.clear()
        host.nft.run(delta(has, host.ruleset()))
        after = tables(host)
        with pytest.raises(NftError, match="No such file"):
            host.nft.run(delta(has, host.ruleset()))
        assert tables(host) == after != before


class TestCounters:
    def test_a_port_that_comes_back_counts_from_zero_and_others_go_on(self, host: Firewalled) -> None:
        lab = host.network(1)
        guest, other = host.guest(lab, 2), host.guest(lab, 3)
        for one, two, times in ((guest, other, 3), (other, guest, 5)):
            for _ in range(times):
                one.send(one.udp(two.ipv4, b"x", mac=two.mac, source="10.64.1.77"), one.advertise(two.ipv6))
        host.guest(lab, 4)
        expected = {Drop.IPV4: 3, Drop.NEIGHBOR: 3}
        assert host.counters.of_port(guest.tap) == expected
        rules = host.ports.pop(guest.tap)
        host.apply()
        guest.send(guest.udp(other.ipv4, b"x", mac=other.mac, source="10.64.1.77"))
        assert host.counters.of_port(guest.tap) == {}
        host.ports[guest.tap] = rules
        host.apply()
        assert host.counters.of_port(guest.tap) == {}
        assert host.counters.of_port(other.tap) == {Drop.IPV4: 5, Drop.NEIGHBOR: 5}

    def test_a_port_that_dropped_nothing_or_is_not_there_has_none(self, host: Firewalled) -> None:
        assert host.counters.of_port("aep000000000001") == {}
        host.nft.run("delete table bridge aetherscale")
        assert host.counters.of_port("aep000000000001") == {}
        with pytest.raises(ValueError, match="tap"):
            host.counters.of_port("eth0")


class TestTheLibrary:
    def test_it_may_be_called_by_any_thread(self, host: Firewalled) -> None:
        said: list[str] = []
        threads = [
            threading.Thread(target=lambda: said.append(host.nft.run("list chain bridge aetherscale guard")))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(said) == 8
        assert all("chain guard {" in words for words in said)

    def test_what_nft_says_of_a_fault_is_in_the_error(self, host: Firewalled) -> None:
        with pytest.raises(NftError, match=r"syntax error, unexpected newline"):
            host.nft.run("add nonsense")
        assert "table bridge aetherscale" in host.nft.run("list tables")

    def test_one_that_is_missing_is_told_with_its_package(self) -> None:
        with pytest.raises(OSError, match=r"libnothing\.so\.9 cannot be loaded: .*libnftables1"):
            Nftables("libnothing.so.9")

    def test_one_that_is_closed_says_so(self, host: Firewalled) -> None:
        closed = Nftables()
        closed.close()
        closed.close()
        with pytest.raises(ValueError, match="closed"):
            closed.run("list tables")
