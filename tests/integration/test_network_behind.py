"""What another program does behind the node's back to devices of its networks: told once, in words, and mended.

Each in a network namespace of its own, by the programs that a person would use. There is no timer here: what is told is
told by the kernel, but where a test says otherwise.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import struct
import subprocess
from pathlib import Path

import pytest
from msgspec.structs import replace

from aetherscale.actors.network import watches
from aetherscale.actors.network.driver import HostNetworking
from aetherscale.actors.network.fights import TOLD_AT_ONCE
from aetherscale.actors.network.model.commands import NetworkLost
from aetherscale.actors.network.model.devices import Alias
from aetherscale.actors.network.model.effects import NetworkEnsured
from aetherscale.actors.network.netlink.links import Links
from tests.integration.test_network_learning import has_come
from tests.support.behind import BRIDGE, CABLE, MAC, NAT, ROUTER, TAP, Behind, arp, behind, do, shown
from tests.support.eventually import PATIENCE_S, asked_until
from tests.support.network_namespaces import missing, network_namespace
from tests.support.network_worlds import BOOT, DB, LAB, NODE, WEB, Process, port, state

__all__ = ["behind"]

pytestmark = [pytest.mark.integration, pytest.mark.skipif(bool(missing()), reason=missing())]

TUNGETVNETHDRSZ, TUNSETVNETHDRSZ = 0x800454D7, 0x400454D8
OF_THE_BRIDGE = [
    ("ip link set {bridge} type bridge stp_state 1", "stp_state"),
    ("ip link set {bridge} type bridge mcast_snooping 1", "mcast_snooping"),
    ("ip link set {bridge} type bridge nf_call_iptables 1", "nf_call_iptables"),
    ("ip link set {bridge} type bridge nf_call_ip6tables 1", "nf_call_ip6tables"),
    ("ip link set {bridge} type bridge nf_call_arptables 1", "nf_call_arptables"),
    ("ip link set {bridge} type bridge group_fwd_mask 0x4000", "group_fwd_mask"),
    ("ip link set {bridge} type bridge no_linklocal_learn 0", "no_linklocal_learn"),
    ("ip link set {bridge} mtu 1400", "mtu"),
    ("ip link set {bridge} address 02:00:00:00:00:77", "address"),
    ("ip link set {bridge} alias mine", "alias"),
    ("ip link set {bridge} down", "down"),
    ("ip addr add 10.9.8.77/24 dev {bridge}", "addresses of the host"),
    ("ip -6 addr add fd12:3456:789a:1::77/64 dev {bridge} nodad", "addresses of the host"),
]


@pytest.mark.parametrize(("words", "what"), OF_THE_BRIDGE)
async def test_a_change_of_a_bridge_is_told_and_mended(behind: Behind, words: str, what: str) -> None:
    before = await shown()
    await do(words.format(bridge=BRIDGE))
    told = await behind.mended()
    assert f"the bridge {BRIDGE} was changed: {what}" in told
    assert [each for each in told if BRIDGE not in each and TAP not in each] == []
    assert await shown() == before


# Kernels before 6.2 rename no device that is up.
RENAMED = "ip link set {tap} down && ip link set {tap} name mine"
OF_THE_TAP = [
    ("bridge link set dev {tap} learning on", "learning"),
    ("bridge link set dev {tap} flood on", "flood"),
    ("bridge link set dev {tap} isolated on", "isolated"),
    ("bridge link set dev {tap} hairpin on", "hairpin"),
    ("bridge link set dev {tap} guard on", "guard"),
    ("bridge link set dev {tap} root_block on", "root_block"),
    ("bridge link set dev {tap} mcast_flood off", "mcast_flood"),
    ("bridge link set dev {tap} bcast_flood off", "bcast_flood"),
    ("bridge link set dev {tap} neigh_suppress on", "neigh_suppress"),
    ("ip link set {tap} type bridge_slave proxy_arp on", "proxy_arp"),
    ("ip link set {tap} type bridge_slave group_fwd_mask 0x4000", "group_fwd_mask"),
    ("bridge link set dev {tap} locked on", "locked"),
    ("bridge link set dev {tap} state 0", "state"),
    ("bridge fdb del {mac} dev {tap} master", "its MAC is not known"),
    ("ip link set {tap} nomaster", "master"),
    ("ip link add other type bridge && ip link set {tap} master other && ip link del other", "master"),
    ("ip link set {tap} mtu 1400", "mtu"),
    ("ip link set {tap} alias mine", "alias"),
    ("ip link set {tap} group 0", "group"),
    ("ip link set {tap} down", "down"),
    (f"{RENAMED}; ip link set mine up || true", "name"),
]


@pytest.mark.parametrize(("words", "what"), OF_THE_TAP)
async def test_a_change_of_a_tap_is_told_and_put_back(behind: Behind, words: str, what: str) -> None:
    before = await shown()
    # The node looks when all of it is done: it stands still meanwhile.
    subprocess.run(["sh", "-c", words.format(tap=TAP, mac=MAC, bridge=BRIDGE)], check=True)  # noqa: ASYNC221
    told = await behind.mended()
    assert told
    for each in told:
        assert each.startswith(f"the tap {TAP} of VM web was changed: ")
    assert any(what in each for each in told), told
    assert await shown() == before


OF_A_CABLE = [
    ("ip link del {cable}", "gone"),
    ("ip link set {cable} nomaster", "master"),
    ("ip link set {cable} down", "down"),
    ("ip link set {cable} mtu 1400", "mtu"),
    ("bridge link set dev {cable} state 0", "state"),
    ("bridge link set dev {cable} isolated on", "isolated"),
]


@pytest.mark.parametrize("behind", [NAT], indirect=True)
@pytest.mark.parametrize(("words", "what"), OF_A_CABLE)
async def test_a_change_of_a_cable_is_told_and_the_resolver_is_connected_anew(
    behind: Behind, words: str, what: str
) -> None:
    await do(words.format(cable=CABLE))
    told = await behind.mended()
    assert any(each.startswith(f"the cable {CABLE} to its resolver was changed: ") and what in each for each in told)
    assert "state forwarding" in await do(f"bridge link show dev {CABLE}")


@pytest.mark.parametrize("behind", [NAT], indirect=True)
async def test_the_cable_of_the_router_stays_mute(behind: Behind) -> None:
    await do(f"bridge link set dev {ROUTER} flood on")
    assert await behind.mended() == [f"the cable {ROUTER} to its resolver was changed: flood"]
    assert " flood off" in await do(f"bridge -d link show dev {ROUTER}")


OF_A_ROUTER = ["ip addr del 10.9.8.1/24 dev {bridge}", "ip -6 addr flush dev {bridge} scope link"]


@pytest.mark.parametrize("behind", [NAT], indirect=True)
@pytest.mark.parametrize("words", OF_A_ROUTER)
async def test_the_host_stays_the_router_of_a_network(behind: Behind, words: str) -> None:
    before = await shown()
    await do(words.format(bridge=BRIDGE))
    assert await behind.mended() == [f"the bridge {BRIDGE} was changed: addresses of the host"]
    assert await shown() == before


async def test_a_bridge_that_got_another_name_gets_its_own_again(behind: Behind) -> None:
    before = await shown()
    # Kernels before 6.2 rename no device that is up.
    await do(f"ip link set {BRIDGE} name mine || (ip link set {BRIDGE} down && ip link set {BRIDGE} name mine)")
    assert await behind.mended()
    assert await shown() == before


async def test_the_next_node_knows_a_bridge_that_loses_its_alias_and_name_then(behind: Behind) -> None:
    await behind.process.driver.close()
    following = Process(HostNetworking(NODE, BOOT, behind.state_dir, allow_unisolated=True))
    await following.start({LAB: state()}, {WEB: [port(WEB)]})
    assert following.reports == []
    before = await shown()
    await do(f"ip link set {BRIDGE} alias mine; ip link set {BRIDGE} down; ip link set {BRIDGE} name mine")
    await following.driver.reconcile({LAB: state()})
    assert following.reports
    assert await following.ensure() == NetworkEnsured("k", BOOT)
    assert await shown() == before
    await following.driver.close()


async def test_one_that_a_killed_node_left_half_made_is_no_change_of_others(behind: Behind) -> None:
    of_bridge = f"ip -d -o link show dev {BRIDGE} | grep -o 'mtu 1500.*stp_state 0'"
    await do(of_bridge)
    await behind.process.driver.close()
    await do(f"ip link set {BRIDGE} mtu 1400")
    following = Process(HostNetworking(NODE, BOOT, behind.state_dir, allow_unisolated=True))
    await following.start({LAB: replace(state(), phase="creating")}, {WEB: [port(WEB)]})

    # The kernel tells in its order, and the tap is put back at once.
    await do(f"ip link set {BRIDGE} type bridge stp_state 1; ip link set {TAP} alias mine")

    async def is_put_back() -> bool:
        return "alias mine" not in await do(f"ip link show dev {TAP}")

    await asked_until(is_put_back)
    assert following.reports == []
    assert await following.ensure() == NetworkEnsured("k", BOOT)
    await do(of_bridge)
    await do(f"ip link set {BRIDGE} mtu 1400")

    async def is_told() -> bool:
        return NetworkLost(LAB, f"the bridge {BRIDGE} was changed: mtu") in following.reports

    await asked_until(is_told)
    await following.driver.close()


async def test_that_the_host_believes_a_router_is_seen_by_the_timer(behind: Behind) -> None:
    """The kernel tells nobody of it."""
    setting = Path(f"/proc/sys/net/ipv6/conf/{BRIDGE}/accept_ra")
    setting.write_text("2")
    await behind.silence()
    assert await behind.by_the_timer() == [f"the bridge {BRIDGE} was changed: accept_ra"]
    assert setting.read_text() == "0\n"


async def test_a_tap_that_is_gone_is_told_once_with_its_vm(behind: Behind) -> None:
    await do(f"ip link del {TAP}")
    assert await behind.mended() == [f"the tap {TAP} is gone: VM web is without its network until it is restarted"]
    os.close(behind.tap)
    (behind.tap,) = await behind.process.driver.open(WEB, [port(WEB)])
    assert TAP in await do("ip -br link")
    await behind.silence()


async def test_a_tap_that_is_gone_is_made_anew_for_the_process_that_has_its_descriptor(behind: Behind) -> None:
    """It is complete before it is up, and what is read and written by the old descriptor passes again."""
    looks = f"ip link show {TAP} | tail -n +3; bridge -d link show dev {TAP} | tail -n +2; bridge fdb | grep {MAC}"
    before = await do(looks)
    (other,) = await behind.process.driver.open(DB, [port(DB)])
    assert has_come(other, arp(behind.tap, 10))
    behind.process.driver.borrow_from(lambda vm_id, tap: os.dup(behind.tap) if (vm_id, tap) == (WEB, TAP) else None)
    await do(f"ip link del {TAP}")
    assert await behind.mended() == [f"the tap {TAP} of VM web was removed"]
    assert await do(looks) == before
    assert list(behind.process.driver.cut(WEB)) == []
    assert has_come(other, arp(behind.tap, 12))
    os.close(other)


async def test_a_guest_with_another_header_than_virtio_1_has_is_cut_off_and_what_it_sends_is_counted(
    behind: Behind,
) -> None:
    """What size it had cannot be asked: that is gone with the device. A driver that begins anew sets it."""
    (other,) = await behind.process.driver.open(DB, [port(DB)])
    await do(f"ip link del {TAP}")
    assert await behind.mended() == [f"the tap {TAP} is gone: VM web is without its network until it is restarted"]
    with pytest.raises(OSError, match=os.strerror(errno.EBADFD)):
        fcntl.ioctl(behind.tap, TUNGETVNETHDRSZ, bytes(4))
    behind.process.driver.borrow_from(lambda vm_id, tap: os.dup(behind.tap) if (vm_id, tap) == (WEB, TAP) else None)
    assert await behind.by_the_timer() == [f"the tap {TAP} of VM web was removed"]
    assert not has_come(other, arp(behind.tap, 10))
    assert behind.process.driver.dropped(WEB)[TAP]["mac"] == 1
    fcntl.ioctl(behind.tap, TUNSETVNETHDRSZ, struct.pack("=i", 10))
    assert has_come(other, arp(behind.tap, 10))
    os.close(other)


async def test_so_is_one_that_was_removed_while_no_node_looked(behind: Behind) -> None:
    await behind.process.driver.close()
    await do(f"ip link del {TAP}")
    following = Process(HostNetworking(NODE, BOOT, behind.state_dir, allow_unisolated=True))
    following.driver.borrow_from(lambda vm_id, tap: os.dup(behind.tap) if (vm_id, tap) == (WEB, TAP) else None)
    await following.start({LAB: state()}, {WEB: [port(WEB)]})
    assert following.reports == [NetworkLost(LAB, f"the tap {TAP} of VM web was removed")]
    assert list(following.driver.cut(WEB)) == []
    await following.driver.close()


async def test_nobody_is_connected_to_a_tap_that_is_anothers(behind: Behind) -> None:
    await do(f"ip link del {TAP} && ip tuntap add {TAP} mode tap")
    assert await behind.mended() == [f"the tap {TAP} is gone: VM web is without its network until it is restarted"]
    behind.process.driver.borrow_from(lambda vm_id, tap: os.dup(behind.tap))
    assert await behind.by_the_timer() == []
    assert list(behind.process.driver.cut(WEB)) == [TAP]
    assert "master" not in await do(f"ip link show {TAP}")
    await do(f"ip link del {TAP}")
    assert await behind.by_the_timer() == [f"the tap {TAP} of VM web was removed"]


OF_RULES = [
    ("flush ruleset", "tables removed"),
    ("insert rule bridge aetherscale guard accept", "rules added"),
    ("add chain inet aetherscale more", "chains changed"),
    ("add element bridge aetherscale macs { {tap} . 02:00:00:00:00:99 }", "elements added"),
    ("add table ip aetherscale", "tables of our name added"),
    ("table netdev aetherscale { set s { type ifname; }; }", "tables of our name added"),
]


@pytest.mark.parametrize(("text", "what"), OF_RULES)
async def test_a_change_of_rules_is_told_with_who_made_it_and_mended(behind: Behind, text: str, what: str) -> None:
    # What was counted is no rule, nor is what was noted.
    listed = "nft -s list ruleset | grep -v -e 'elements = .* counter }$' -e 'elements = { 0x'"
    before = await do(listed)
    await do(f"nft '{text.replace('{tap}', TAP)}'")
    assert await behind.mended() == [what]
    (lost, *_) = [each for each in behind.process.reports if isinstance(each, NetworkLost)]
    assert lost.by.startswith("nft, pid ")
    assert await do(listed) == before


async def test_a_program_that_never_gives_in_does_not_fill_the_log(behind: Behind) -> None:
    """What it does is mended all the same: a tap at once, a bridge by the timer."""
    for number in range(3 * TOLD_AT_ONCE):
        await do(f"bridge link set dev {TAP} isolated on")
        await asked_until(put_back)
        assert len(behind.told()) == min(number + 1, TOLD_AT_ONCE)
    await do("nft flush ruleset")
    async with asyncio.timeout(PATIENCE_S):
        while "tables removed" not in behind.told():  # noqa: ASYNC110 - of the kernel
            await asyncio.sleep(0.005)


async def put_back() -> bool:
    return "isolated off" in await do(f"bridge -d link show dev {TAP}")


async def test_a_watch_that_fails_begins_again_and_misses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watches, "AGAIN_S", 0.01)
    told: list[str] = []
    failures = 0

    async def on_device(name: str) -> None:
        nonlocal failures
        told.append(name)
        if failures < 3:
            failures += 1
            raise OSError(errno.ENOBUFS, "planned")

    async def on_rules(what: str, by: str) -> None:
        return

    with network_namespace():
        links = Links(NODE)
        await links.open()
        watching = watches.Watches(links.watch, on_rules, on_device)
        watching.start()
        async with asyncio.timeout(PATIENCE_S):
            while len(told) < 4:  # noqa: ASYNC110 - of a task
                await asyncio.sleep(0.005)
            await links.ensure_bridge(BRIDGE, Alias(NODE, "network", LAB), 1500)
            while BRIDGE not in told:  # noqa: ASYNC110 - of the kernel
                await asyncio.sleep(0.005)
        await watching.close()
        await links.close()
    assert told[:4] == [""] * 4
