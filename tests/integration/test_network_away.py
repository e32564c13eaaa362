"""What another program does to networks while no node runs: the next one tells it as it begins, once, and mends it.

What cannot be known then is told by nobody, and neither is what no program has done.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

import pytest

from aetherscale.actors.compute.model.commands import NO_RULES, VmRules
from aetherscale.actors.firewall.model.rules import parse_rules
from aetherscale.actors.network.driver import HostNetworking
from aetherscale.actors.network.model.commands import NetworkLost
from aetherscale.actors.network.model.effects import NetworkEnsured
from aetherscale.actors.network.netlink import taps
from aetherscale.actors.network.nft.structure import Structure
from tests.support.behind import BRIDGE, CABLE, NAT, ROUTER, TAP, Behind, arp, behind, do, shown
from tests.support.eventually import asked_until, ended
from tests.support.network_namespaces import missing
from tests.support.network_worlds import BOOT, DB, LAB, NODE, WEB, Process, opened, port, state

__all__ = ["behind"]

GROUP = "4123456789abcdef"

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.parametrize("behind", [NAT], indirect=True),
]

RULES = "nft -s list ruleset | sed -e '/elements = .* counter }$/d' -e '/elements = { 0x/d'"
"""All rules; what was counted is none, nor is what was noted."""
PORTS = {WEB: [port(WEB)]}


async def rules(listing: str = RULES) -> list[str]:
    """Those of each table. Which one was made last says nothing."""
    return sorted((await do(listing)).split("\n}\n"))


@asynccontextmanager
async def next_node(behind: Behind, boot_id: str = BOOT) -> AsyncIterator[Process]:
    """The process after the one that has ended, as it begins."""
    following = Process(HostNetworking(NODE, BOOT, behind.state_dir, allow_unisolated=True))
    following.driver.borrow_from(lambda vm_id, tap: os.dup(behind.tap) if (vm_id, tap) == (WEB, TAP) else None)
    try:
        await following.start({LAB: state(LAB, NAT, boot_id)}, PORTS)
        yield following
    finally:
        await following.driver.close()


def told(process: Process) -> list[str]:
    assert all(isinstance(each, NetworkLost) and each.network_id == LAB for each in process.reports)
    return [each.what for each in process.reports]


NAMES = {"bridge": BRIDGE, "tap": TAP, "cable": CABLE, "router": ROUTER}
"""They follow from the process, which tests must not be called by."""
OF_DEVICES = [
    ("ip link del {bridge}", "the bridge {bridge} is gone"),
    ("ip link set {bridge} down", "the bridge {bridge} was changed: down, addresses of the host"),
    ("ip link set {bridge} mtu 1400", "the bridge {bridge} was changed: mtu"),
    ("ip link set {bridge} type bridge mcast_snooping 1", "the bridge {bridge} was changed: mcast_snooping"),
    ("ip addr del 10.9.8.1/24 dev {bridge}", "the bridge {bridge} was changed: addresses of the host"),
    ("ip addr add 10.9.8.77/24 dev {bridge}", "the bridge {bridge} was changed: addresses of the host"),
    ("ip link set {tap} nomaster", "the tap {tap} of VM web was changed: master"),
    ("bridge link set dev {tap} isolated on", "the tap {tap} of VM web was changed: isolated"),
    ("ip link del {tap}", "the tap {tap} of VM web was removed"),
    ("ip link del {cable}", "the cable {cable} to its resolver was changed: gone"),
    ("ip link set {router} down", "the cable {router} to its resolver was changed: down"),
]


@pytest.mark.parametrize(("words", "what"), OF_DEVICES)
async def test_a_device_is_told_and_mended(
    behind: Behind, words: str, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    words, what = words.format(**NAMES), what.format(**NAMES)
    before = await shown()
    await behind.process.driver.close()
    await do(words)
    async with next_node(behind) as following:
        assert what in told(following)
        assert f"network {LAB}: {what}" in caplog.messages
        assert await following.ensure(LAB, NAT) == NetworkEnsured("k", BOOT)
        following.reports.clear()
        await following.driver.reconcile({LAB: state(LAB, NAT)})
        await following.driver.restore(PORTS)
        await following.driver.reconnect()
        assert told(following) == []
        assert list(following.driver.cut(WEB)) == []
        seen = await shown()
    # Devices that were made anew have other indexes and MACs.
    assert len(seen.splitlines()) == len(before.splitlines())


async def test_a_resolver_is_told_and_another_serves(behind: Behind) -> None:
    hands = behind.process.driver._hands  # type: ignore[attr-defined]
    pid = hands.resolvers.pid_of(LAB)
    await behind.process.driver.close()
    os.kill(pid, signal.SIGKILL)
    await ended(pid)
    async with next_node(behind) as following:
        assert told(following) == ["its resolver, dnsmasq, is gone"]
        assert await following.ensure(LAB, NAT) == NetworkEnsured("k", BOOT)
        assert following.driver._hands.resolvers.pid_of(LAB) not in (None, pid)  # type: ignore[attr-defined]


OF_RULES = [
    ("flush ruleset", "tables removed"),
    ("delete table arp aetherscale", "tables removed"),
    ("insert rule bridge aetherscale guard accept", "rules changed"),
    ("flush chain inet aetherscale forward", "rules changed"),
    ("flush table bridge aetherscale", "rules changed"),
    ("add chain inet aetherscale more", "rules changed"),
    ("add set inet aetherscale more { type mark; }", "rules changed"),
    ("add chain inet aetherscale input { policy drop; }", "rules changed"),
    ("add table bridge aetherscale { flags dormant; }", "rules changed"),
    ("delete table bridge aetherscale_flows", "tables removed"),
    ("flush chain bridge aetherscale_flows is_answer", "flows changed"),
    ("add set bridge aetherscale_flows more { type mark; }", "flows changed"),
]


@pytest.mark.parametrize(("text", "what"), OF_RULES)
async def test_rules_are_told_and_replaced(behind: Behind, text: str, what: str) -> None:
    before = await rules()
    await behind.process.driver.close()
    await do(f"nft '{text}'")
    assert await rules() != before
    async with next_node(behind) as following:
        assert told(following) == [f"{what} while the node was away"]
        assert await rules() == before
        await following.driver.restore(PORTS)
        assert len(told(following)) == 1


async def test_a_rule_that_was_replaced_by_another_is_told(behind: Behind) -> None:
    """There are as many as before."""
    await behind.process.driver.close()
    (handle, *_) = [
        line.rpartition(" ")[2]
        for line in (await do("nft -a list chain inet aetherscale input")).splitlines()
        if "# handle" in line and "chain" not in line and "table" not in line
    ]
    await do(f"nft replace rule inet aetherscale input handle {handle} accept")
    async with next_node(behind) as following:
        assert told(following) == ["rules changed while the node was away"]


async def test_what_was_counted_is_no_change(behind: Behind) -> None:
    """A tap of our prefix without rules is sent what is for everybody, which a rule drops and counts."""
    stray = "aep0000000000ff"
    await do(f"ip tuntap add {stray} mode tap && ip link set {stray} master {BRIDGE} up")
    (held,) = [taps.attach(stray, new=False)]
    before = await do("nft list table bridge aetherscale | grep 'counter packets'")
    arp(behind.tap, 10)
    await behind.process.driver.close()
    assert await do("nft list table bridge aetherscale | grep 'counter packets'") != before
    async with next_node(behind) as following:
        assert told(following) == []
    os.close(held)


UNTOLD = [
    "true",
    "nft 'add table inet other; add chain inet other input { type filter hook input priority 5; }'",
    # Of elements nothing is known; they are put back all the same.
    f"nft 'delete element bridge aetherscale ports {{ {TAP} }}'",
    "nft 'flush set bridge aetherscale macs'",
    # An earlier version has left no note.
    "nft 'flush set inet aetherscale made2; insert rule bridge aetherscale guard accept'",
    "nft 'flush set inet aetherscale made2; delete table bridge aetherscale_flows'",
    "nft 'add table ip aetherscale'",
]


@pytest.mark.parametrize("words", UNTOLD)
async def test_what_nobody_has_done_or_cannot_be_known_is_not_told(behind: Behind, words: str) -> None:
    ours = f"{RULES} | sed '/^table inet other/,/^}}/d'"
    before = await rules(ours)
    await opened(behind.process, DB, port(DB))
    await behind.process.driver.close_ports(DB, [port(DB)])
    await behind.process.driver.close()
    await do(words)
    async with next_node(behind) as following:
        assert told(following) == []
        assert await rules(ours) == before


async def test_what_packets_have_made_of_flows_is_no_change_and_stays(behind: Behind) -> None:
    flow = f"{TAP} . 10.9.8.2 . 192.0.2.7 . 40000 . 443"
    await behind.process.driver.close()
    await do(f"nft 'add element bridge aetherscale_flows sent_tcp4 {{ {flow} timeout 1h }}'")
    async with next_node(behind) as following:
        assert told(following) == []
        assert "192.0.2.7" in await do("nft list set bridge aetherscale_flows sent_tcp4")


async def test_what_this_node_has_done_with_groups_is_told_as_the_deed_of_nobody(behind: Behind) -> None:
    driver = behind.process.driver
    await driver.apply_group(GROUP, parse_rules(["in:tcp:80"]))
    await driver.apply_rules(WEB, VmRules((GROUP,)))
    await driver.apply_group(GROUP, parse_rules(["in:tcp:80", "in:any:from=10.0.0.0/8"]))
    await driver.close()
    async with next_node(behind) as following:
        assert told(following) == []
        await following.driver.apply_group(GROUP, parse_rules(["in:tcp:80"]))
        await following.driver.apply_rules(WEB, VmRules((GROUP,)))
        await following.driver.apply_rules(WEB, NO_RULES)
        await following.driver.remove_group(GROUP)
    await do("nft flush chain inet aetherscale forward")
    async with next_node(behind) as following:
        assert told(following) == ["rules changed while the node was away"]


async def test_a_rule_of_a_group_that_is_taken_away_is_told(behind: Behind) -> None:
    await behind.process.driver.apply_group(GROUP, parse_rules(["in:tcp:80"]))
    await behind.process.driver.apply_rules(WEB, VmRules((GROUP,)))
    await behind.process.driver.close()
    await do(f"nft flush chain bridge aetherscale g_{GROUP}_in")
    async with next_node(behind) as following:
        assert told(following) == ["rules changed while the node was away"]


async def test_what_this_node_has_done_with_groups_is_noted_soon_and_not_at_its_end_alone(behind: Behind) -> None:
    """It may be killed, after which it notes nothing. What it did meanwhile is noted with it."""

    async def is_noted() -> bool:
        return "0x" in await do("nft list set inet aetherscale made2")

    for rules_of_group in (["in:tcp:80"], ["in:tcp:80", "in:icmp"]):
        await behind.process.driver.apply_group(GROUP, parse_rules(rules_of_group))
        await asked_until(is_noted)
    with closing(Structure()) as structure:
        assert structure.lost() == ""


async def test_a_reboot_is_not_told_as_the_deed_of_a_program(behind: Behind) -> None:
    """Nothing is left of what was there, and the log has another time since the start of the host."""
    await behind.process.driver.close()
    await do(f"nft flush ruleset; ip link del {BRIDGE}; ip link del {TAP}")
    async with next_node(behind, "boot-0") as following:
        assert [each for each in told(following) if TAP not in each] == ["the host was started anew"]


async def test_the_next_node_knows_it_also_of_what_this_one_has_replaced(behind: Behind) -> None:
    for _ in range(2):
        await behind.process.driver.close()
        await do("nft flush ruleset")
        async with next_node(behind) as following:
            assert told(following) == ["tables removed while the node was away"]
        await do("nft insert rule bridge aetherscale guard accept")
        async with next_node(behind) as following:
            assert told(following) == ["rules changed while the node was away"]
        async with next_node(behind) as following:
            assert told(following) == []
