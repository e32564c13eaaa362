"""What the driver has the table of flows remember and forget: across restarts, and where rules are taken away."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from aetherscale.actors.compute.model.commands import VmRules
from aetherscale.actors.network.model.commands import NetworkLost
from tests.support import firewalled
from tests.support.eventually import asked_until
from tests.support.fake_guest import FakeGuest, tcp
from tests.support.firewalled import nft, rule
from tests.support.frames import ACK, BROADCAST, SYN
from tests.support.network_worlds import DB, LAB, WEB, Kernel, Process, World, port, process, state, world

__all__ = ["process", "world"]

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(firewalled.missing() is not None, reason=str(firewalled.missing())),
]
GROUP = "a" * 16
SHORTEST = 50
ONLY_KERNEL = pytest.mark.parametrize("world", ["kernel"], indirect=True)


def comes(one: FakeGuest, frame: bytes, other: FakeGuest) -> bool:
    other.received()
    one.send(frame)
    # A tap of the driver's has a longer header: what fills a short frame up may be cut.
    return any(len(got) > SHORTEST and frame[14:].startswith(got[14:]) for got in other.received())


async def have_met(one: FakeGuest, other: FakeGuest) -> None:
    """Wait until the bridge passes what both send: a tap has its carrier only just."""
    for sender, receiver in ((one, other), (other, one)):
        hello = sender.arp(1, sender.ipv4, (BROADCAST, receiver.ipv4))

        async def has_come(sender: FakeGuest = sender, receiver: FakeGuest = receiver, hello: bytes = hello) -> bool:
            return comes(sender, hello, receiver)

        await asked_until(has_come)


class Guests:
    """The guests of two VMs of the real driver."""

    def __init__(self) -> None:
        self.made: list[FakeGuest] = []

    async def open(self, process: Process, vm_id: str, rules: VmRules | None) -> FakeGuest:
        of = port(vm_id)
        (descriptor,) = await process.driver.open(vm_id, [of], rules)
        os.set_blocking(descriptor, False)
        guest = FakeGuest(of.tap, of.mac, str(of.ipv4), "fd12:3456:789a:1::7", descriptor)
        self.made.append(guest)
        return guest

    def close(self, guest: FakeGuest) -> None:
        """Let go of the tap of one, which stays."""
        guest.close()
        self.made = [each for each in self.made if each is not guest]


async def open_to_80(process: Process, guests: Guests) -> tuple[FakeGuest, FakeGuest]:
    """A guest whose group lets port 80 of TCP in, and one without groups beside it; they have met."""
    await process.ensure()
    await process.driver.apply_group(GROUP, [rule("in:tcp:80")])
    web = await guests.open(process, WEB, VmRules((GROUP,)))
    other = await guests.open(process, DB, VmRules())
    await have_met(web, other)
    return web, other


@pytest.fixture
def guests() -> Iterator[Guests]:
    made = Guests()
    yield made
    for guest in made.made:
        guest.close()


@ONLY_KERNEL
class TestTheDriver:
    async def test_a_node_that_restarts_and_replaces_all_drops_no_packet_of_a_flow(
        self, world: World, process: Process, guests: Guests
    ) -> None:
        await process.ensure()
        await process.driver.apply_group(GROUP, [rule("out:tcp:1")])
        web = await guests.open(process, WEB, VmRules((GROUP,)))
        other = await guests.open(process, DB, VmRules())
        await have_met(web, other)
        assert comes(web, tcp(web, other, 4, (9, 1)), other)
        answer = tcp(other, web, 4, (1, 9), SYN | ACK)
        await process.driver.close()
        assert comes(other, answer, web)
        following = Process(world.driver())
        following.driver.restore_groups({GROUP: [rule("out:tcp:1")]})
        following.driver.restore_rules({WEB: VmRules((GROUP,))})
        await following.start({LAB: state()}, {WEB: [port(WEB)], DB: [port(DB)]})
        assert comes(other, answer, web)
        assert not comes(other, tcp(other, web, 4, (2, 9), SYN | ACK), web)
        await following.driver.close()

    @pytest.mark.parametrize("keep", [False, True])
    async def test_flows_end_with_their_rule_unless_they_are_kept(
        self, world: World, process: Process, guests: Guests, keep: bool
    ) -> None:
        driver = process.driver
        web, other = await open_to_80(process, guests)
        frame = tcp(other, web, 4, (9, 80), ACK)
        assert comes(other, frame, web)
        await driver.apply_group(GROUP, [], keep_established=keep)
        assert comes(other, frame, web) == keep
        assert not comes(other, tcp(other, web, 4, (10, 80), ACK), web)
        await driver.apply_group("b" * 16, [rule("in:tcp:80")])
        assert comes(other, frame, web) == keep
        await driver.apply_rules(WEB, VmRules(("b" * 16,)))
        assert comes(other, frame, web)
        await driver.apply_rules(WEB, VmRules((GROUP,)), keep_established=keep)
        assert comes(other, frame, web) == keep
        await driver.apply_rules(WEB, VmRules(("c" * 16,)))
        assert not comes(other, frame, web)

    @pytest.mark.parametrize("begins", [True, False])
    @pytest.mark.parametrize("vm_id", [WEB, DB])
    async def test_what_was_kept_ends_where_either_vm_begins_another_run(
        self, world: World, process: Process, guests: Guests, vm_id: str, begins: bool
    ) -> None:
        """A tap that is opened anew without rules is of the same run."""
        of = {WEB: VmRules((GROUP,)), DB: VmRules()}
        web, other = await open_to_80(process, guests)
        frame = tcp(other, web, 4, (9, 80), ACK)
        assert comes(other, frame, web)
        await process.driver.apply_group(GROUP, [], keep_established=True)
        assert comes(other, frame, web)
        guests.close(web if vm_id == WEB else other)
        anew = await guests.open(process, vm_id, of[vm_id] if begins else None)
        web, other = (anew, other) if vm_id == WEB else (web, anew)
        await have_met(web, other)
        assert comes(other, frame, web) == (not begins)

    async def test_what_a_change_has_cut_stays_cut_where_a_later_one_keeps_flows(
        self, world: World, process: Process, guests: Guests
    ) -> None:
        driver = process.driver
        web, other = await open_to_80(process, guests)
        cut, kept = tcp(other, web, 4, (9, 80), ACK), tcp(other, web, 4, (9, 81), ACK)
        assert comes(other, cut, web)
        await driver.apply_group(GROUP, [rule("in:tcp:81:from=10.9.8.0/24")])
        assert not comes(other, cut, web)
        assert comes(other, kept, web)
        await driver.apply_group(GROUP, [rule("in:tcp:82")], keep_established=True)
        assert (comes(other, cut, web), comes(other, kept, web)) == (False, True)
        # The same where the VM's groups change, and what it has begun itself.
        await driver.apply_group("b" * 16, [rule("out:tcp:7")])
        await driver.apply_rules(WEB, VmRules(("b" * 16,)), keep_established=True)
        assert (comes(other, cut, web), comes(other, kept, web)) == (False, True)
        sent = tcp(web, other, 4, (5, 7), ACK)
        assert comes(web, sent, other)
        await driver.apply_group("b" * 16, [rule("out:tcp:8")])
        assert not comes(web, sent, other)
        assert not comes(other, kept, web)
        await driver.apply_group("b" * 16, [rule("out:tcp:9")], keep_established=True)
        assert not comes(web, sent, other)
        assert not comes(other, kept, web)

    @pytest.mark.parametrize(
        ("words", "what"),
        [
            (
                "add element bridge aetherscale_flows sent_tcp4 {{ {tap} . 10.9.8.2 . 10.9.8.20 . 9 . 80 }}",
                "flows changed",
            ),
            ("add rule bridge aetherscale_flows is_answer accept", "flows changed"),
            ("flush chain bridge aetherscale_flows in_answer_tcp4", "flows removed"),
            ("delete table bridge aetherscale_flows", "tables removed"),
            ("add table ip aetherscale_flows", "tables of our name added"),
        ],
    )
    async def test_what_others_do_to_it_is_told_and_mended(
        self, world: World, process: Process, guests: Guests, words: str, what: str
    ) -> None:
        await process.ensure()
        await guests.open(process, WEB, VmRules())
        before = nft("list", "table", "bridge", "aetherscale_flows")
        nft(words.format(tap=port(WEB).tap))

        async def told() -> bool:
            return what in [lost.what for lost in process.reports if isinstance(lost, NetworkLost)]

        await asked_until(told)
        assert nft("list", "table", "bridge", "aetherscale_flows") == before
        assert "table ip aetherscale_flows" not in nft("list", "tables")

    async def test_it_is_removed_with_the_last_network(self, world: World, process: Process) -> None:
        assert isinstance(world, Kernel)
        await process.ensure()
        assert "aetherscale_flows" in nft("list", "tables")
        await process.remove()
        assert "aetherscale" not in nft("list", "tables")

    async def test_one_that_is_not_as_it_was_made_is_made_anew_at_a_start(self, world: World, process: Process) -> None:
        await process.ensure()
        before = nft("list", "table", "bridge", "aetherscale_flows")
        for words in ("add rule bridge aetherscale_flows is_answer accept", "delete table bridge aetherscale_flows"):
            await process.driver.close()
            nft(words)
            process.driver = world.driver()
            await process.start({LAB: state()}, {})
            assert nft("list", "table", "bridge", "aetherscale_flows") == before
