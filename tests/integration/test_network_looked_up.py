"""Which packets the table of flows looks at: all of some ports, few of others; and what the first group finds."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from aetherscale.actors.compute.model.commands import VmRules
from aetherscale.actors.network.nft.flows import Flow, FlowReader
from tests.integration.test_network_flow_table import GROUP, lasts
from tests.integration.test_network_flows_of_vms import ONLY_KERNEL, Guests, guests, have_met
from tests.integration.test_network_flows_of_vms import comes as comes_of_driver
from tests.support import firewalled, frames
from tests.support.fake_guest import FakeGuest, tcp, to
from tests.support.firewalled import Firewalled, comes, rule
from tests.support.frames import ACK, SYN
from tests.support.network_worlds import DB, WEB, Process, World, process, world

__all__ = ["guests", "process", "world"]

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(firewalled.missing() is not None, reason=str(firewalled.missing())),
]
FIN, PSH = 0x01, 0x08
MANY = 400
"""Of so many packets one at least is looked up, but for one run of 10^11; and one at least is not."""


@pytest.fixture
def host() -> Iterator[Firewalled]:
    with firewalled.firewalled() as made:
        made.flows.ensure()
        yield made


def recorded(name: str) -> set[Flow]:
    reader = FlowReader()
    try:
        return set(reader.read(name))
    finally:
        reader.close()


@pytest.mark.parametrize("version", [4, 6])
class TestWhatIsRecorded:
    def test_what_begins_says_something_or_ends_is_recorded_at_once(self, host: Firewalled, version: int) -> None:
        lab = host.network(1)
        one, other = host.guest(lab, 2), host.guest(lab, 3)
        sent, taken, closing = f"sent_tcp{version}", f"taken_tcp{version}", f"closing{version}"
        assert comes(one, tcp(one, other, version, (9, 80)), other)
        assert (lasts(sent), lasts(taken)) == (["2m"], ["2m"])
        assert recorded(sent) == {Flow(one.tap, ip_address(to(one, version)), ip_address(to(other, version)), 9, 80)}
        assert recorded(taken) == {Flow(other.tap, ip_address(to(other, version)), ip_address(to(one, version)), 80, 9)}
        assert comes(other, tcp(other, one, version, (80, 9), SYN | ACK), one)
        assert (lasts(sent), lasts(taken)) == (["1h"], ["2m"])
        assert comes(other, tcp(other, one, version, (80, 9), PSH | ACK), one)
        assert (lasts(sent), lasts(taken)) == (["1h"], ["1h"])
        assert comes(one, tcp(one, other, version, (9, 80), FIN | ACK), other)
        assert len(lasts(closing)) == 2

    def test_most_of_the_rest_is_not_looked_up(self, host: Firewalled, version: int) -> None:
        lab = host.network(1)
        one, other = host.guest(lab, 2), host.guest(lab, 3)
        assert all(comes(one, tcp(one, other, version, (9, 1 + at), ACK), other) for at in range(MANY))
        for name in (f"sent_tcp{version}", f"taken_tcp{version}"):
            assert 0 < len(recorded(name)) < MANY / 2

    def test_what_only_confirms_makes_a_flow_last_too(self, host: Firewalled, version: int) -> None:
        lab = host.network(1)
        one, other = host.guest(lab, 2), host.guest(lab, 3)
        assert comes(one, tcp(one, other, version, (9, 80)), other)
        assert all(comes(other, tcp(other, one, version, (80, 9), ACK), one) for _ in range(MANY))
        assert [lasts(f"{what}_tcp{version}") for what in ("sent", "taken")] == [["1h"], ["1h"]]

    def test_everything_is_looked_up_of_a_port_with_groups_and_of_it_alone(
        self, host: Firewalled, version: int
    ) -> None:
        lab = host.network(1)
        host.group(GROUP, "in:tcp")
        judged, other = host.guest(lab, 2, groups=(GROUP,)), host.guest(lab, 3)
        for at in range(MANY):
            assert comes(judged, tcp(judged, other, version, (9000, 1 + at), ACK), other)
            assert comes(other, tcp(other, judged, version, (9001, 1 + at), ACK), judged)
        for what in ("sent", "taken"):
            taps = [flow.tap for flow in recorded(f"{what}_tcp{version}")]
            assert taps.count(judged.tap) == MANY
            assert taps.count(other.tap) < MANY / 2

    def test_an_answer_of_the_one_is_none_for_the_other_that_has_not_asked(
        self, host: Firewalled, version: int
    ) -> None:
        lab = host.network(1)
        host.group(GROUP)
        judged, other = host.guest(lab, 2, groups=(GROUP,)), host.guest(lab, 3)
        answer = tcp(other, judged, version, (80, 9), PSH | ACK)
        assert comes(judged, tcp(judged, other, version, (9, 80)), other)
        assert comes(other, answer, judged)
        host.nft.run(f"flush set bridge aetherscale_flows sent_tcp{version}\n")
        assert recorded(f"taken_tcp{version}")
        assert not comes(other, answer, judged)


def full(one: FakeGuest, other: FakeGuest, version: int, ports: tuple[int, int], flags: int = ACK) -> bytes:
    """A packet of TCP that is full of data."""
    segment = frames.tcp(to(one, version), to(other, version), ports, flags, at=(1, 0), data=bytes(1000))
    return one.packet(to(other, version), frames.TCP, segment, mac=other.mac)


@pytest.mark.parametrize("version", [4, 6])
class TestManyFullPackets:
    """Of ports with groups."""

    def test_few_of_them_are_recorded_and_what_ends_them_is(self, host: Firewalled, version: int) -> None:
        lab = host.network(1)
        host.group(GROUP, "in:tcp")
        one, other = host.guest(lab, 2, groups=(GROUP,)), host.guest(lab, 3, groups=(GROUP,))
        sent, taken = f"sent_tcp{version}", f"taken_tcp{version}"
        assert all(comes(one, full(one, other, version, (9000, 1 + at)), other) for at in range(MANY))
        for name in (sent, taken):
            assert 0 < len(recorded(name)) < MANY / 2
        for at in range(MANY):
            assert comes(one, full(one, other, version, (9000, 1 + at), PSH | ACK), other)
        for name in (sent, taken):
            assert len(recorded(name)) == MANY

    def test_as_answers_they_pass_and_make_a_flow_last(self, host: Firewalled, version: int) -> None:
        lab = host.network(1)
        host.group(GROUP, "in:tcp:80", "out:tcp:80")
        one, other = host.guest(lab, 2, groups=(GROUP,)), host.guest(lab, 3, groups=(GROUP,))
        assert comes(one, tcp(one, other, version, (9, 80)), other)
        assert comes(one, tcp(one, other, version, (10, 80)), other)
        assert all(comes(other, full(other, one, version, (80, 9)), one) for _ in range(MANY))
        assert comes(other, full(other, one, version, (80, 10), PSH | ACK), one)
        for what in ("sent", "taken"):
            assert lasts(f"{what}_tcp{version}") == ["1h", "1h"]
        assert not comes(other, full(other, one, version, (80, 11)), one)


@pytest.mark.parametrize("version", [4, 6])
class TestTheFirstGroup:
    def converse(self, asks: FakeGuest, answers: FakeGuest, version: int, ports: tuple[int, int]) -> bytes:
        """A flow of which much is not looked up; what the one who asked says next."""
        assert comes(asks, tcp(asks, answers, version, ports), answers)
        assert comes(answers, tcp(answers, asks, version, ports[::-1], SYN | ACK), asks)
        for _ in range(MANY):
            assert comes(answers, tcp(answers, asks, version, ports[::-1], ACK), asks)
            assert comes(asks, tcp(asks, answers, version, ports, ACK), answers)
        return tcp(asks, answers, version, ports, ACK)

    def test_what_others_began_ends_and_is_not_taken_for_what_the_guest_did(
        self, host: Firewalled, version: int
    ) -> None:
        lab = host.network(1)
        web, other = host.guest(lab, 2), host.guest(lab, 3)
        host.group(GROUP, "in:tcp:80")
        closed = self.converse(other, web, version, (9, 22))
        allowed = self.converse(other, web, version, (9, 80))
        host.bear(web, GROUP)
        for _ in range(MANY):
            assert comes(web, tcp(web, other, version, (22, 9), PSH | ACK), other)
            assert not comes(other, closed, web)
        assert comes(other, allowed, web)

    def test_what_the_guest_began_goes_on_by_whichever_side(self, host: Firewalled, version: int) -> None:
        lab = host.network(1)
        web, other = host.guest(lab, 2), host.guest(lab, 3)
        host.group(GROUP, "out:udp:1")
        self.converse(web, other, version, (9, 22))
        host.bear(web, GROUP)
        assert all(comes(other, tcp(other, web, version, (22, 9), ACK), web) for _ in range(MANY))
        # What it may send is said by its groups from now on.
        assert not comes(web, tcp(web, other, version, (9, 22), ACK), other)


@ONLY_KERNEL
@pytest.mark.parametrize("keep", [False, True])
async def test_flows_go_on_through_the_first_group_where_they_are_kept(
    world: World, process: Process, guests: Guests, keep: bool
) -> None:
    await process.ensure()
    await process.driver.apply_group(GROUP, [rule("in:tcp:80"), rule("out:udp:1")])
    web, other = await guests.open(process, WEB, VmRules()), await guests.open(process, DB, VmRules())
    await have_met(web, other)
    assert comes_of_driver(other, tcp(other, web, 4, (9, 22)), web)
    assert comes_of_driver(web, tcp(web, other, 4, (22, 9), SYN | ACK), other)
    assert comes_of_driver(web, tcp(web, other, 4, (10, 443)), other)
    await process.driver.apply_rules(WEB, VmRules((GROUP,)), keep_established=keep)
    assert comes_of_driver(other, tcp(other, web, 4, (9, 22), ACK), web) == keep
    assert comes_of_driver(web, tcp(web, other, 4, (10, 443), ACK), other) == keep
    assert not comes_of_driver(other, tcp(other, web, 4, (9, 23), ACK), web)
    await process.driver.apply_rules(WEB, VmRules())
    assert comes_of_driver(other, tcp(other, web, 4, (9, 22), ACK), web)
