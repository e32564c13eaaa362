"""Taps, in a network namespace of each test: nothing passes too early, nothing is lost, nothing else is touched.

What the tests look at, and what "somebody else" does, is by pyroute2 or by ioctl, not by what is tested.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import socket
import struct
from pathlib import Path
from typing import Any

import pytest

from aetherscale.actors.network.model.devices import Alias, group_of, tap_name
from aetherscale.actors.network.netlink import taps
from aetherscale.actors.network.netlink.links import Links
from aetherscale.kernel.fault import Fault
from tests.support.network_devices import (
    BRIDGE,
    GROUP,
    LAB,
    MTU,
    NOBODY,
    NODE,
    OTHER_BRIDGE,
    OTHER_LAB,
    OTHER_PORT,
    OTHER_TAP,
    OTHER_VM,
    PORT,
    TAP,
    TAP_WITH_HEADER,
    TUNGETIFF,
    TUNSETIFF,
    TUNSETPERSIST,
    UP,
    VM,
    Everything,
    addresses_of,
    everything,
    ip,
    links,
    namespace,
    open_tap,
    passes,
    properties,
    seen,
)
from tests.support.network_namespaces import missing

__all__ = ["everything", "ip", "links", "namespace"]

pytestmark = [pytest.mark.integration, pytest.mark.skipif(bool(missing()), reason=missing())]


async def test_a_tap_is_complete_before_it_is_up(links: Links, ip: Any, everything: Everything) -> None:
    await links.ensure_bridge(BRIDGE, LAB, MTU)
    descriptor = await open_tap(links)
    tap, bridge = await seen(ip, TAP), await seen(ip, BRIDGE)
    assert properties(tap)[2:] == (MTU, GROUP, str(PORT), bridge["index"], UP)
    assert tap.get("carrier") == 1
    told = everything.of(TAP)
    assert not told[0].is_up
    for link in told:
        if link.is_up:
            assert (link.alias, link.master, link.group, link.mtu) == (PORT, bridge["index"], GROUP, MTU), told
    # The host has no address there from which it would speak to the guest.
    assert await addresses_of(ip, TAP) == []
    os.close(descriptor)


async def test_the_descriptor_is_as_qemu_wants_it(links: Links) -> None:
    await links.ensure_bridge(BRIDGE, LAB, MTU)
    descriptor = await open_tap(links)
    name, flags = struct.unpack("16sH22x", fcntl.ioctl(descriptor, TUNGETIFF, bytes(40)))
    persistent, exclusive = 0x0800, 0x8000
    assert (name.rstrip(b"\0").decode(), flags & ~exclusive) == (TAP, TAP_WITH_HEADER | persistent)
    assert not os.get_inheritable(descriptor)
    os.close(descriptor)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
async def test_nobody_else_attaches_to_a_tap_that_is_free(links: Links) -> None:
    """Most hosts let everyone open /dev/net/tun; a descriptor of it stands for that."""
    await links.ensure_bridge(BRIDGE, LAB, MTU)
    os.close(await open_tap(links))
    everyones = os.open("/dev/net/tun", os.O_RDWR)

    def attach_as_nobody() -> None:
        os.setresuid(NOBODY, NOBODY, NOBODY)
        try:
            fcntl.ioctl(everyones, TUNSETIFF, struct.pack("16sH22x", TAP.encode(), TAP_WITH_HEADER))
        except PermissionError:
            os._exit(7)
        os._exit(8)

    child = await asyncio.create_subprocess_exec("true", preexec_fn=attach_as_nobody)
    assert await child.wait() == 7
    os.close(everyones)


async def test_a_tap_outlives_a_kill_and_is_attached_to_again_in_its_bridge(
    links: Links, ip: Any, everything: Everything
) -> None:
    await links.ensure_bridge(BRIDGE, LAB, MTU)
    other = await open_tap(links, OTHER_TAP, OTHER_PORT)
    descriptor = await open_tap(links)
    assert await passes(descriptor, other, b"first")
    holder = await asyncio.create_subprocess_exec("sleep", "1000", pass_fds=[descriptor])
    os.close(descriptor)
    with pytest.raises(Fault, match="another process has it open") as fault:
        await open_tap(links)
    assert fault.value.retryable
    holder.kill()
    assert await holder.wait() == -signal.SIGKILL

    left = await seen(ip, TAP)
    assert left.get("carrier") == 0
    assert everything.of(TAP)
    again = await open_tap(links)
    assert properties(await seen(ip, TAP)) == properties(left)
    assert all(link.master == left.get("master") and link.is_up for link in everything.of(TAP))
    assert await passes(again, other, b"second")
    assert await passes(other, again, b"third")
    os.close(again)
    os.close(other)


async def test_a_tap_that_somebody_moved_is_in_its_bridge_before_it_has_a_carrier(links: Links, ip: Any) -> None:
    await links.ensure_bridge(BRIDGE, LAB, MTU)
    await links.ensure_bridge(OTHER_BRIDGE, OTHER_LAB, MTU)
    eavesdropper = await open_tap(links, OTHER_TAP, OTHER_PORT, OTHER_BRIDGE)
    os.close(await open_tap(links))
    tap, bridge = await seen(ip, TAP), await seen(ip, BRIDGE)
    await ip.link("set", index=tap["index"], master=(await seen(ip, OTHER_BRIDGE))["index"], mtu=1300, group=0)
    states: list[tuple[int, int]] = []
    original, asked = taps.attach, socket.if_nametoindex

    def attach(name: str, *, new: bool) -> int:
        # Nothing may be left to be set when the first frame can come.
        states.append((asked(name), taps.mtu_of(name)))
        return original(name, new=new)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(taps, "attach", attach)
        descriptor = await open_tap(links)
    assert states == [(tap["index"], MTU)]
    assert properties(await seen(ip, TAP))[2:] == (MTU, GROUP, str(PORT), bridge["index"], UP)
    assert not await passes(descriptor, eavesdropper, b"private")
    os.close(descriptor)
    os.close(eavesdropper)


async def test_a_node_that_fails_half_way_leaves_no_tap(links: Links, ip: Any) -> None:
    await links.ensure_bridge(BRIDGE, LAB, MTU)

    def fail(descriptor: int, name: str) -> None:
        raise Fault("planned")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(taps, "keep", fail)
        with pytest.raises(Fault, match="planned"):
            await open_tap(links)
    assert await seen(ip, TAP) is None


async def test_a_tap_that_somebody_makes_at_the_same_moment_stays_theirs(links: Links, ip: Any) -> None:
    await links.ensure_bridge(BRIDGE, LAB, MTU)
    original = taps.attach

    def attach(name: str, *, new: bool) -> int:
        theirs = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(theirs, TUNSETIFF, struct.pack("16sH22x", name.encode(), TAP_WITH_HEADER))
        fcntl.ioctl(theirs, TUNSETPERSIST, 1)
        os.close(theirs)
        return original(name, new=new)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(taps, "attach", attach)
        with pytest.raises(Fault, match="another process has it open"):
            await open_tap(links)
    assert properties(await seen(ip, TAP))[3:] == (0, None, None, 0)


async def test_a_tap_can_be_in_a_bridge_of_the_host_which_stays_as_it_is(links: Links, ip: Any) -> None:
    await ip.link("add", ifname="br0", kind="bridge", state="up")
    before = await seen(ip, "br0")
    os.close(await open_tap(links, bridge="br0"))
    assert (await seen(ip, TAP)).get("master") == before["index"]
    after = await seen(ip, "br0")
    assert (after.get("mtu"), after.get("ifalias"), after.get("group")) == (1500, None, 0)


@pytest.mark.parametrize("bridge", ["br0", "lo"])
async def test_without_its_bridge_there_is_no_tap(links: Links, ip: Any, bridge: str) -> None:
    with pytest.raises(Fault, match=f"there is no bridge {bridge}"):
        await open_tap(links, bridge=bridge)
    assert await seen(ip, TAP) is None


async def test_a_hundred_taps_are_made_and_removed_by_their_group(links: Links, ip: Any) -> None:
    await links.ensure_bridge(BRIDGE, LAB, MTU)
    vms = [f"{number:016x}" for number in range(100)]
    names = [tap_name(vm, 0) for vm in vms]
    held = await asyncio.gather(
        *(links.open_tap(name, Alias(NODE, "port", vm), BRIDGE, GROUP) for name, vm in zip(names, vms, strict=True))
    )
    os.close(await links.open_tap(OTHER_TAP, OTHER_PORT, BRIDGE, group_of(OTHER_VM)))
    assert {link.name for link in await links.ours()} == {BRIDGE, OTHER_TAP, *names}
    await links.remove_group(GROUP)
    assert {link.name for link in await links.ours()} == {BRIDGE, OTHER_TAP}
    for descriptor in held:
        os.close(descriptor)


async def test_what_others_have_put_into_a_group_of_ours_stays(links: Links, ip: Any) -> None:
    await links.ensure_bridge(BRIDGE, LAB, MTU)
    for name, alias in ((TAP, PORT), (OTHER_TAP, OTHER_PORT)):
        os.close(await open_tap(links, name, alias))
    await ip.link("add", ifname="theirs", kind="bridge", group=GROUP)
    await links.remove_group(GROUP)
    assert (await seen(ip, "theirs")).get("group") == GROUP
    assert [link.name for link in await links.ours()] == [BRIDGE]


async def test_taps_are_removed_by_name_or_where_one_is_not_ours_none(links: Links, ip: Any) -> None:
    await links.ensure_bridge(BRIDGE, LAB, MTU)
    names = [tap_name(VM, index) for index in range(3)]
    for name in names:
        os.close(await open_tap(links, name))
    await ip.link("add", ifname="theirs", kind="bridge")
    with pytest.raises(Fault, match="theirs"):
        await links.remove_taps([*names, "theirs"])
    assert len(await links.ours()) == 4
    await links.remove_taps([names[0]])
    await links.remove_taps(names)
    assert [link.name for link in await links.ours()] == [BRIDGE]
    assert await seen(ip, "theirs") is not None


async def test_without_the_device_of_taps_a_node_says_what_to_do(links: Links, tmp_path: Path) -> None:
    await links.ensure_bridge(BRIDGE, LAB, MTU)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(taps, "DEVICE", str(tmp_path / "tun"))
        with pytest.raises(Fault, match=r"refused to open .*tun: No such file") as fault:
            await open_tap(links)
    assert "modprobe tun" in fault.value.remedy
