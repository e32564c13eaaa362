"""What bridges learn from guests: nothing that a guest could poison them with, in a network namespace of each test.

There are no rules here, so that it is the bridge alone that keeps to it.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import Any

import pytest

from aetherscale.actors.network.netlink.links import Links
from aetherscale.actors.network.netlink.messages import attributes_of
from aetherscale.actors.network.netlink.requests import Requests
from aetherscale.kernel.fault import Fault
from tests.support.network_devices import (
    BRIDGE,
    GROUP,
    HEADER,
    LAB,
    MTU,
    OTHER_PORT,
    OTHER_TAP,
    PORT,
    TAP,
    ip,
    links,
    namespace,
    open_tap,
    passes,
    seen,
)
from tests.support.network_namespaces import missing

__all__ = ["ip", "links", "namespace"]

pytestmark = [pytest.mark.integration, pytest.mark.skipif(bool(missing()), reason=missing())]

MAC, OTHER_MAC, FOREIGN = "52:54:00:00:00:01", "52:54:00:00:00:02", "52:54:00:00:00:99"
BROADCAST = "ff:ff:ff:ff:ff:ff"
TO_BRIDGES = [f"01:80:c2:00:00:{last:02x}" for last in range(16)]
BY_THE_BRIDGE_ITSELF = [to for to in TO_BRIDGES if to[-2:] not in ("00", "01")]
"""Frames to …:00 are forwarded, through the rules, where no spanning tree is spoken; those to …:01 are never."""
NOARP, NTF_MASTER = 0x40, 0x04


async def entries(ip: Any) -> dict[tuple[int, str], int]:
    """What the bridges know: the state of each entry by port and MAC; without what is their ports' own."""
    permanent = 0x80
    return {
        (each["ifindex"], each.get("lladdr")): each["state"]
        async for each in await ip.fdb("dump")
        if not each["state"] & permanent
    }


def sent(descriptor: int, to: str, source: str, payload: bytes = b"") -> bytes:
    """A guest sends a frame; what of it a receiver sees. The bridge is done with it when this returns."""
    frame = bytes.fromhex((to + source).replace(":", "")) + b"\x88\xb5" + payload.ljust(50, b"\0")
    os.write(descriptor, HEADER + frame)
    return frame


def has_come(descriptor: int, frame: bytes) -> bool:
    os.set_blocking(descriptor, False)
    while True:
        try:
            if os.read(descriptor, 4096).endswith(frame):
                return True
        except BlockingIOError:
            return False


async def setting(ip: Any, name: str, *path: str) -> Any:
    return (await seen(ip, name)).get(("linkinfo", *path))


def boolopts(index: int) -> tuple[int, int]:
    """IFLA_BR_MULTI_BOOLOPT of a bridge: the values, and which there are; pyroute2 cannot read it."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as asking:
        body = struct.pack("=BxHiII", 0, 0, index, 0, 0)
        asking.send(struct.pack("=IHHII", 16 + len(body), 18, 1, 1, 0) + body)
        info = attributes_of(asking.recv(1 << 16)[32:])[18]
    values, there = struct.unpack("=II", attributes_of(attributes_of(info)[2])[46])
    return values, there


async def test_a_bridge_learns_nothing_from_what_is_for_bridges_and_is_told_nothing_of_multicast(
    links: Links, ip: Any
) -> None:
    await ip.link("add", ifname=BRIDGE, kind="bridge", br_mcast_snooping=1, br_group_fwd_mask=0x4000)
    index = (await seen(ip, BRIDGE))["index"]
    await ip.link("set", index=index, ifalias=str(LAB))
    assert boolopts(index)[0] & 1 == 0
    await links.ensure_bridge(BRIDGE, LAB, MTU)
    assert boolopts(index)[0] & 1 == 1
    for name in ("mcast_snooping", "stp_state", "group_fwd_mask"):
        assert await setting(ip, BRIDGE, "data", f"br_{name}") == 0, name


async def test_frames_for_bridges_are_not_learnt_from_a_tap_of_which_nothing_is_known(links: Links, ip: Any) -> None:
    await links.ensure_bridge(BRIDGE, LAB, MTU)
    await ip.link("add", ifname="theirs", kind="bridge", state="up")
    ours = await open_tap(links)
    theirs = await links.open_tap(OTHER_TAP, OTHER_PORT, "theirs", GROUP)
    for descriptor in (ours, theirs):
        for to in BY_THE_BRIDGE_ITSELF:
            sent(descriptor, to, FOREIGN)
    # A bridge that is left to itself learns it.
    assert set(await entries(ip)) == {((await seen(ip, OTHER_TAP))["index"], FOREIGN)}
    os.close(ours)
    os.close(theirs)


@pytest.mark.parametrize("bridge", [BRIDGE, "br0"])
async def test_of_a_tap_with_a_mac_only_that_is_known_whatever_its_guest_sends(
    links: Links, ip: Any, bridge: str
) -> None:
    """Also in a bridge of the host's own, which learns from everybody else."""
    await links.ensure_bridge(BRIDGE, LAB, MTU)
    await ip.link("add", ifname="br0", kind="bridge", state="up")
    thief = await links.open_tap(TAP, PORT, bridge, GROUP, mac=MAC)
    victim = await links.open_tap(OTHER_TAP, OTHER_PORT, bridge, GROUP, mac=OTHER_MAC)
    index, other = (await seen(ip, TAP))["index"], (await seen(ip, OTHER_TAP))["index"]
    known = {(index, MAC): NOARP, (other, OTHER_MAC): NOARP}
    assert await entries(ip) == known
    for to in (*TO_BRIDGES, BROADCAST, OTHER_MAC):
        for source in (FOREIGN, OTHER_MAC, MAC):
            sent(thief, to, source)
    assert await entries(ip) == known
    assert has_come(victim, sent(thief, OTHER_MAC, MAC, b"for the victim"))
    assert not has_come(thief, sent(victim, OTHER_MAC, OTHER_MAC, b"for itself"))
    os.close(thief)
    os.close(victim)


async def test_a_frame_for_a_mac_that_nobody_has_reaches_no_guest_but_broadcasts_do(links: Links, ip: Any) -> None:
    await links.ensure_bridge(BRIDGE, LAB, MTU)
    sender, receiver = await open_tap(links), await links.open_tap(OTHER_TAP, OTHER_PORT, BRIDGE, GROUP, mac=OTHER_MAC)
    assert not has_come(receiver, sent(sender, FOREIGN, MAC, b"for nobody"))
    assert has_come(receiver, sent(sender, OTHER_MAC, MAC, b"for it"))
    assert has_come(receiver, sent(sender, "33:33:00:00:00:01", MAC, b"for all nodes"))
    assert await passes(sender, receiver, b"for all")
    os.close(sender)
    os.close(receiver)


async def test_it_is_known_before_the_tap_is_up(links: Links) -> None:
    await links.ensure_bridge(BRIDGE, LAB, MTU)
    asked: list[str] = []
    set_link, add_static_entry = Requests.set_link, Requests.add_static_entry

    def setting_link(self: Requests, index: int, attributes: bytes = b"", *, up: bool = False) -> None:
        set_link(self, index, attributes, up=up)
        asked.append("up" if up else "set")

    def adding_entry(self: Requests, port: int, mac: str) -> None:
        add_static_entry(self, port, mac)
        asked.append("entry")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Requests, "set_link", setting_link)
        patch.setattr(Requests, "add_static_entry", adding_entry)
        for _ in range(2):  # Made, and attached to again.
            asked.clear()
            os.close(await links.open_tap(TAP, PORT, BRIDGE, GROUP, mac=MAC))
            assert asked == ["set", "set", "entry", "up"]


async def test_what_was_learnt_while_somebody_allowed_it_is_forgotten(links: Links, ip: Any) -> None:
    await links.ensure_bridge(BRIDGE, LAB, MTU)
    sender = await open_tap(links, OTHER_TAP, OTHER_PORT)
    descriptor = await links.open_tap(TAP, PORT, BRIDGE, GROUP, mac=MAC)
    index = (await seen(ip, TAP))["index"]
    await ip.brport("set", index=index, learning=1, unicast_flood=1)
    await ip.fdb("del", ifindex=index, lladdr=MAC, flags=NTF_MASTER)
    sent(descriptor, BROADCAST, FOREIGN)
    assert set(await entries(ip)) == {(index, FOREIGN)}
    assert has_come(descriptor, sent(sender, "52:54:00:00:00:98", OTHER_MAC, b"for nobody"))
    # The guest is still there: a tap that loses its carrier is forgotten anyway.
    with pytest.raises(Fault, match="another process has it open"):
        await links.open_tap(TAP, PORT, BRIDGE, GROUP, mac=MAC)
    sent(descriptor, BROADCAST, FOREIGN)
    assert not has_come(descriptor, sent(sender, "52:54:00:00:00:98", OTHER_MAC, b"for nobody again"))
    assert {key: state for key, state in (await entries(ip)).items() if key[0] == index} == {(index, MAC): NOARP}
    os.close(descriptor)
    os.close(sender)


async def test_a_mac_is_behind_the_port_that_was_opened_for_it_last(links: Links, ip: Any) -> None:
    await links.ensure_bridge(BRIDGE, LAB, MTU)
    os.close(await links.open_tap(TAP, PORT, BRIDGE, GROUP, mac=MAC))
    descriptor = await links.open_tap(OTHER_TAP, OTHER_PORT, BRIDGE, GROUP, mac=MAC)
    assert await entries(ip) == {((await seen(ip, OTHER_TAP))["index"], MAC): NOARP}
    os.close(descriptor)
