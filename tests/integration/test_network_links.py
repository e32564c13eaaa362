"""Bridges and taps, made by the kernel in a network namespace of each test.

What the tests look at, and what "somebody else" does, is by pyroute2 or by ioctl, not by what is tested.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, closing, suppress
from ipaddress import IPv4Interface, IPv6Interface, ip_network
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import AsyncIPRoute  # type: ignore[import-untyped]
from pyroute2.netlink.exceptions import NetlinkError  # type: ignore[import-untyped]

from aetherscale.actors.network.model.addresses import mac_of
from aetherscale.actors.network.model.devices import Alias, Link, bridge_name, group_of, tap_name
from aetherscale.actors.network.netlink import requests, taps, watching
from aetherscale.actors.network.netlink.links import Links
from aetherscale.actors.network.netlink.messages import link_of, messages_of
from aetherscale.actors.network.netlink.watching import LinkChanged, LinkGone, Overflow
from aetherscale.kernel.fault import Fault
from tests.support.eventually import PATIENCE_S, asked_until
from tests.support.network_namespaces import missing, network_namespace, without_net_admin

pytestmark = [pytest.mark.integration, pytest.mark.skipif(bool(missing()), reason=missing())]

NODE = "host1"
NETWORK, OTHER_NETWORK, VM, OTHER_VM = "0123456789abcdef", "1123456789abcdef", "2123456789abcdef", "3123456789abcdef"
BRIDGE, OTHER_BRIDGE = bridge_name(NETWORK), bridge_name(OTHER_NETWORK)
TAP, OTHER_TAP = tap_name(VM, 0), tap_name(OTHER_VM, 0)
LAB, OTHER_LAB = Alias(NODE, "network", NETWORK), Alias(NODE, "network", OTHER_NETWORK)
PORT, OTHER_PORT = Alias(NODE, "port", VM), Alias(NODE, "port", OTHER_VM)
GROUP = group_of(VM)
MTU = 1450
UP = 1
TAP_WITH_HEADER = 0x0002 | 0x1000 | 0x4000
HEADER = bytes(10)
NOBODY = 65534


@pytest.fixture
def namespace() -> Iterator[None]:
    with network_namespace():
        yield


@pytest.fixture
async def links(namespace: None) -> AsyncIterator[Links]:
    opened = Links(NODE)
    await opened.open()
    yield opened
    await opened.close()


@pytest.fixture
async def ip(namespace: None) -> AsyncIterator[Any]:
    """Somebody else on the host."""
    async with AsyncIPRoute() as opened:
        yield opened


async def seen(ip: Any, name: str) -> Any:
    """A link, as pyroute2 reads it; None for none."""
    with suppress(NetlinkError):
        return (await ip.link("get", ifname=name))[0]
    return None


async def addresses_of(ip: Any, name: str) -> list[str]:
    index = (await seen(ip, name))["index"]
    return [each.get("address") async for each in await ip.addr("dump") if each["index"] == index]


def properties(link: Any) -> tuple[Any, ...]:
    return (*(link.get(each) for each in ("index", "address", "mtu", "group", "ifalias", "master")), link["flags"] & UP)


async def open_tap(links: Links, name: str = TAP, alias: Alias = PORT, bridge: str = BRIDGE) -> int:
    return await links.open_tap(name, alias, bridge, GROUP)


def frame(payload: bytes) -> bytes:
    """A broadcast of an EtherType for experiments (IEEE 802a), so that no stack answers it."""
    return HEADER + b"\xff" * 6 + bytes.fromhex("020000000001") + b"\x88\xb5" + payload.ljust(50, b"\0")


async def passes(sender: int, receiver: int, payload: bytes) -> bool:
    """Whether a frame gets from one tap to the other; what else comes meanwhile is passed over."""
    os.set_blocking(receiver, False)
    os.write(sender, frame(payload))
    # The bridge forwards in the call that writes: there is nothing to wait for.
    while True:
        try:
            if os.read(receiver, 4096).endswith(frame(payload)[len(HEADER) :]):
                return True
        except BlockingIOError:
            return False


TUNGETIFF, TUNSETIFF = 0x800454D2, 0x400454CA


class Everything:
    """Every notification about links, without any left out."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
        self._socket.bind((0, 1))

    def of(self, name: str) -> list[Link]:
        """All that there was of a device until now."""
        found = []
        with suppress(BlockingIOError):
            while True:
                found += [link_of(message) for _, message in messages_of(self._socket.recv(1 << 16))]
        return [link for link in found if link is not None and link.name == name]

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def everything(namespace: None) -> Iterator[Everything]:
    with closing(Everything()) as listening:
        yield listening


async def test_a_bridge_is_made_and_made_again_without_a_change(links: Links, ip: Any) -> None:
    await links.ensure_bridge(BRIDGE, LAB, MTU)
    made = await seen(ip, BRIDGE)
    assert properties(made)[1:] == (mac_of(BRIDGE), MTU, 0, str(LAB), None, UP)
    assert made.get(("linkinfo", "kind")) == "bridge"
    for family in ("iptables", "ip6tables", "arptables"):
        assert made.get(("linkinfo", "data", f"br_nf_call_{family}")) == 0
    await links.ensure_bridge(BRIDGE, LAB, MTU)
    assert properties(await seen(ip, BRIDGE)) == properties(made)
    (ours,) = await links.ours()
    assert (ours.name, ours.alias, ours.kind, ours.is_up, ours.mtu) == (BRIDGE, LAB, "bridge", True, MTU)
    assert await addresses_of(ip, BRIDGE) == []


async def test_netfilter_is_called_where_it_is_asked_for(links: Links, ip: Any) -> None:
    await links.ensure_bridge(BRIDGE, LAB, MTU, calls_netfilter=True)
    assert (await seen(ip, BRIDGE)).get(("linkinfo", "data", "br_nf_call_ip6tables")) == 1
    await links.ensure_bridge(BRIDGE, LAB, MTU)
    assert (await seen(ip, BRIDGE)).get(("linkinfo", "data", "br_nf_call_ip6tables")) == 0


async def test_a_bridge_that_somebody_changed_is_brought_back(links: Links, ip: Any) -> None:
    await links.ensure_bridge(BRIDGE, LAB, MTU)
    made = await seen(ip, BRIDGE)
    accept_ra = Path(f"/proc/sys/net/ipv6/conf/{BRIDGE}/accept_ra")
    accept_ra.write_text("1")
    await ip.link("set", index=made["index"], state="down", mtu=1300, address="02:00:00:00:00:05")
    await links.ensure_bridge(BRIDGE, LAB, MTU)
    assert properties(await seen(ip, BRIDGE)) == properties(made)
    assert accept_ra.read_text() == "0\n"


@pytest.mark.parametrize(
    "alias", ["", str(LAB) + " ", str(OTHER_LAB), f"aetherscale host2 network {NETWORK}", "uplink"]
)
async def test_a_device_that_is_not_ours_is_never_touched(
    links: Links, ip: Any, everything: Everything, alias: str
) -> None:
    """Not even one of the same name, as a bridge, as a tap, or to be removed."""
    await ip.link("add", ifname=BRIDGE, kind="bridge")
    await ip.link("add", ifname=TAP, kind="tuntap", mode="tap")
    for name in (BRIDGE, TAP):
        await ip.link("set", index=(await seen(ip, name))["index"], ifalias=alias, state="up", group=GROUP)
    await links.ensure_bridge(OTHER_BRIDGE, OTHER_LAB, MTU)
    before = [properties(await seen(ip, name)) for name in (BRIDGE, TAP)]
    assert everything.of(BRIDGE)
    with pytest.raises(Fault, match=f"a device {BRIDGE} that this node did not make") as fault:
        await links.ensure_bridge(BRIDGE, LAB, MTU)
    assert fault.value.retryable is False
    assert fault.value.remedy
    with pytest.raises(Fault, match="did not make"):
        await links.remove_bridge(BRIDGE, LAB)
    with pytest.raises(Fault, match=f"a device {TAP} that this node did not make"):
        await open_tap(links, bridge=OTHER_BRIDGE)
    if alias != str(OTHER_LAB):
        await links.remove_group(GROUP)
        with pytest.raises(Fault, match="did not make"):
            await links.remove_taps([TAP])
        with pytest.raises(Fault, match="did not make"):
            await links.set_address(BRIDGE, IPv4Interface("10.64.1.1/24"))
        with pytest.raises(Fault, match="did not make"):
            await links.remove_address(BRIDGE, IPv4Interface("10.64.1.1/24"))
        assert [link.name for link in await links.ours()] == [OTHER_BRIDGE]
    assert [properties(await seen(ip, name)) for name in (BRIDGE, TAP)] == before
    assert everything.of(BRIDGE) == []


async def test_what_is_no_bridge_and_no_tap_is_not_made_one(links: Links, ip: Any) -> None:
    await ip.link("add", ifname=TAP, kind="veth", peer=BRIDGE)
    for name, alias in ((BRIDGE, "x"), (TAP, str(PORT))):
        await ip.link("set", index=(await seen(ip, name))["index"], ifalias=alias)
    with pytest.raises(Fault, match="did not make"):
        await links.ensure_bridge(BRIDGE, LAB, MTU)
    with pytest.raises(Fault, match="did not make"):
        await open_tap(links)
    assert (await seen(ip, TAP)).get("master") is None


async def test_a_bridge_of_a_node_that_was_killed_before_it_had_its_alias_is_completed_or_removed(
    links: Links, ip: Any
) -> None:
    await ip.link("add", ifname=BRIDGE, kind="bridge", address=mac_of(BRIDGE))
    await links.ensure_bridge(BRIDGE, LAB, MTU)
    assert [link.alias for link in await links.ours()] == [LAB]
    await ip.link("add", ifname=OTHER_BRIDGE, kind="bridge", address=mac_of(OTHER_BRIDGE))
    await links.remove_bridge(OTHER_BRIDGE, OTHER_LAB)
    assert await seen(ip, OTHER_BRIDGE) is None


async def test_bridges_are_ensured_and_removed_by_many_at_once(links: Links, ip: Any) -> None:
    second = Links(NODE)
    await second.open()
    for _ in range(5):
        await asyncio.gather(*(each.ensure_bridge(BRIDGE, LAB, MTU) for each in (links, second) for _ in range(10)))
        assert [link.alias for link in await links.ours()] == [LAB]
        assert (await seen(ip, BRIDGE))["flags"] & UP
        await asyncio.gather(*(each.remove_bridge(BRIDGE, LAB) for each in (links, second) for _ in range(10)))
        assert await links.ours() == []
    await second.close()


async def test_what_is_gone_already_is_removed(links: Links) -> None:
    await links.remove_bridge(BRIDGE, LAB)
    await links.remove_taps([TAP, OTHER_TAP])
    await links.remove_group(GROUP)
    await links.remove_address(BRIDGE, IPv4Interface("10.64.1.1/24"))


async def test_the_address_of_a_bridge_is_not_that_of_a_port(links: Links, ip: Any) -> None:
    """A bridge left to itself takes the lowest one of its ports: guests would lose their router with every VM."""
    await links.ensure_bridge(BRIDGE, LAB, MTU)
    await ip.link("add", ifname="veth0", kind="veth", peer="veth1", address="00:00:00:00:00:01")
    await ip.link("set", index=(await seen(ip, "veth0"))["index"], master=(await seen(ip, BRIDGE))["index"], state="up")
    assert (await seen(ip, BRIDGE)).get("address") == mac_of(BRIDGE)


async def test_the_host_does_not_believe_a_router_in_a_network(links: Links, ip: Any) -> None:
    await links.ensure_bridge(BRIDGE, LAB, MTU)
    # A bridge like ours, where the kernel makes no address by itself either: it does believe it.
    await ip.link("add", ifname="believer", kind="bridge")
    index = (await seen(ip, "believer"))["index"]
    none = {"attrs": [("AF_INET6", {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", 1)]})]}
    await ip.link("set", index=index, IFLA_AF_SPEC=none)
    await ip.link("set", index=index, state="up")
    guest = await open_tap(links)
    other = await open_tap(links, OTHER_TAP, OTHER_PORT, "believer")
    for descriptor in (guest, other):
        os.write(descriptor, HEADER + router_advertisement())

    async def believes() -> bool:
        return bool(await addresses_of(ip, "believer"))

    await asked_until(believes)
    assert await addresses_of(ip, BRIDGE) == []
    routes = [
        route.get("oif") async for route in await ip.route("dump", family=socket.AF_INET6) if route["dst_len"] == 0
    ]
    assert routes == [index]
    os.close(guest)
    os.close(other)


def router_advertisement() -> bytes:
    """From a router at fe80::99, with the prefix fd00:1234:5678::/64 for addresses (RFC 4861, 4.2 and 4.6.2)."""
    source, to = socket.inet_pton(socket.AF_INET6, "fe80::99"), socket.inet_pton(socket.AF_INET6, "ff02::1")
    prefix = socket.inet_pton(socket.AF_INET6, "fd00:1234:5678::")
    body = struct.pack("!BBHII", 64, 0, 1800, 0, 0) + struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 86400, 14400, 0) + prefix
    pseudo = source + to + struct.pack("!II", len(body) + 4, 58)
    total = sum(struct.unpack(f"!{len(pseudo + body) // 2 + 2}H", pseudo + struct.pack("!BBH", 134, 0, 0) + body))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    icmp = struct.pack("!BBH", 134, 0, ~total & 0xFFFF) + body
    ethernet = bytes.fromhex("333300000001020000000099") + b"\x86\xdd"
    return ethernet + struct.pack("!IHBB", 6 << 28, len(icmp), 58, 255) + source + to + icmp


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


async def test_names_and_aliases_at_the_limit_are_kept_whole(links: Links, ip: Any) -> None:
    long = Links("n" * 63)
    await long.open()
    alias = Alias("n" * 63, "network", NETWORK)
    await long.ensure_bridge(BRIDGE, alias, MTU)
    assert len(BRIDGE) == 15
    assert [(link.name, link.alias) for link in await long.ours()] == [(BRIDGE, alias)]
    assert await links.ours() == []
    with pytest.raises(Fault):
        await links.ensure_bridge(BRIDGE + "0", LAB, MTU)
    assert await seen(ip, BRIDGE + "0") is None
    await long.close()


@pytest.mark.parametrize("address", [IPv4Interface("10.64.1.1/24"), IPv6Interface("fd12:3456::1/64")])
async def test_a_router_has_its_address_once(links: Links, ip: Any, address: IPv4Interface | IPv6Interface) -> None:
    await links.ensure_bridge(BRIDGE, LAB, MTU)
    await links.set_address(BRIDGE, address)
    await links.set_address(BRIDGE, address)
    assert await addresses_of(ip, BRIDGE) == [str(address.ip)]
    tentative = 0x40
    assert [
        each["flags"] & tentative async for each in await ip.addr("dump") if each.get("address") == str(address.ip)
    ] == [0]
    assert address.network in await links.routes()
    await links.remove_address(BRIDGE, address)
    await links.remove_address(BRIDGE, address)
    assert await addresses_of(ip, BRIDGE) == []
    assert address.network not in await links.routes()
    with pytest.raises(Fault, match="there is no bridge"):
        await links.set_address(OTHER_BRIDGE, address)


async def test_routes_of_the_host_are_known_whatever_they_are(links: Links, ip: Any) -> None:
    await ip.link("add", ifname="uplink", kind="bridge", state="up")
    index = (await seen(ip, "uplink"))["index"]
    await ip.addr("add", index=index, address="192.0.2.2", prefixlen=24)
    await ip.addr("add", index=index, address="198.51.100.9", prefixlen=32)
    await ip.route("add", dst="default", gateway="192.0.2.1")
    await ip.route("add", dst="10.80.0.0/16", gateway="192.0.2.1", table=1000)
    await ip.route("add", dst="10.96.0.0/12", type="blackhole")
    await ip.route("add", dst="fd99::/48", oif=index)
    await ip.route("add", dst="default", oif=index, family=socket.AF_INET6)
    found = await links.routes()
    wanted = ("192.0.2.0/24", "192.0.2.2/32", "198.51.100.9/32", "10.80.0.0/16", "10.96.0.0/12", "fd99::/48")
    for each in wanted:
        assert ip_network(each) in found
    assert all(each.prefixlen > 0 for each in found)
    assert not [each for each in found if each.is_multicast and each.version == 4]
    assert len(found) == len(set(found))


async def test_a_list_that_changes_while_it_is_read_is_read_again_and_given_up_at_last(links: Links) -> None:
    await links.ensure_bridge(BRIDGE, LAB, MTU)
    multi_part = 0x02
    with pytest.MonkeyPatch.context() as patch:
        # Every message of a list has this flag: as if the kernel had said of each that it was interrupted.
        patch.setattr(requests, "_DUMP_INTERRUPTED", multi_part)
        for read in (links.ours, links.routes):
            with pytest.raises(Fault, match="it changed while it was read") as fault:
                await read()
            assert fault.value.retryable
    assert [link.alias for link in await links.ours()] == [LAB]


async def next_of(events: AsyncIterator[watching.Change]) -> watching.Change:
    async with asyncio.timeout(PATIENCE_S):
        return await anext(events)


async def until(events: AsyncIterator[watching.Change], wanted: type[Any], **fields: Any) -> Any:
    """The first of a kind whose link has these fields; fails on a `LinkGone` that is not wanted."""
    while True:
        event = await next_of(events)
        if isinstance(event, wanted) and all(getattr(event.link, key) == value for key, value in fields.items()):
            return event
        assert not isinstance(event, LinkGone), event


async def test_what_somebody_else_does_to_a_device_is_told(links: Links, ip: Any) -> None:
    await links.ensure_bridge(BRIDGE, LAB, MTU)
    os.close(await open_tap(links))
    index, bridge = (await seen(ip, TAP))["index"], (await seen(ip, BRIDGE))["index"]
    async with aclosing(links.watch()) as events:
        assert await next_of(events) == Overflow()
        await ip.link("set", index=index, mtu=1300)
        await until(events, LinkChanged, name=TAP, mtu=1300)
        # A bridge tells of a port that leaves it as if the port were gone.
        await ip.link("set", index=index, master=0)
        await until(events, LinkChanged, name=TAP, master=0)
        await ip.link("set", index=index, ifalias="")
        assert (await until(events, LinkChanged, index=index, alias_text="")).link.alias is None
        await ip.link("set", index=index, state="down")
        await until(events, LinkChanged, name=TAP, is_up=False)
        await ip.link("set", index=index, ifname="renamed")
        await until(events, LinkChanged, index=index, name="renamed")
        await ip.link("add", ifname="theirs", kind="bridge")
        await ip.link("del", index=index)
        assert (await until(events, LinkGone)).link.index == index
        await ip.link("del", index=bridge)
        assert (await until(events, LinkGone)).link.alias == LAB


async def test_what_was_ours_before_the_watch_is_told_when_it_loses_its_alias_first(links: Links, ip: Any) -> None:
    await links.ensure_bridge(BRIDGE, LAB, MTU)
    async with aclosing(links.watch()) as events:
        assert await next_of(events) == Overflow()
        await ip.link("set", index=(await seen(ip, BRIDGE))["index"], ifalias="")
        assert (await until(events, LinkChanged)).link.name == BRIDGE


async def test_devices_of_others_and_what_did_not_change_are_not_told(links: Links, ip: Any) -> None:
    await links.ensure_bridge(BRIDGE, LAB, MTU)
    async with aclosing(links.watch()) as events:
        assert await next_of(events) == Overflow()
        await ip.link("add", ifname="theirs", kind="bridge", state="up")
        await links.ensure_bridge(BRIDGE, LAB, MTU)
        await links.ensure_bridge(BRIDGE, LAB, MTU - 50)
        event = await next_of(events)
        assert isinstance(event, LinkChanged)
        assert (event.link.name, event.link.mtu) == (BRIDGE, MTU - 50)


async def test_too_much_to_be_kept_is_told_as_an_overflow_and_the_watch_goes_on(links: Links, ip: Any) -> None:
    await links.ensure_bridge(BRIDGE, LAB, MTU)
    os.close(await open_tap(links))
    index = (await seen(ip, TAP))["index"]
    async with aclosing(watching.watch(links.ours, 16 * 1024)) as events:
        assert await next_of(events) == Overflow()
        for mtu in range(1300, 1500):
            await ip.link("set", index=index, mtu=mtu)
        while not isinstance(await next_of(events), Overflow):
            pass
        await ip.link("del", index=index)
        while not isinstance(event := await next_of(events), LinkGone):
            pass
        assert event.link.alias == PORT


async def test_a_node_without_the_capability_says_so_once_and_changes_nothing(links: Links, ip: Any) -> None:
    await links.ensure_bridge(BRIDGE, LAB, MTU)
    with without_net_admin():
        for attempt in (
            links.ensure_bridge(OTHER_BRIDGE, OTHER_LAB, MTU),
            links.ensure_bridge(BRIDGE, LAB, MTU),
            links.remove_bridge(BRIDGE, LAB),
            links.set_address(BRIDGE, IPv4Interface("10.64.1.1/24")),
            open_tap(links),
        ):
            with pytest.raises(Fault, match="may not change network devices") as fault:
                await attempt
            assert "CAP_NET_ADMIN" in fault.value.remedy
            assert not fault.value.retryable
        assert [link.name for link in await links.ours()] == [BRIDGE]
    assert await seen(ip, TAP) is None


async def test_without_the_device_of_taps_a_node_says_what_to_do(links: Links, tmp_path: Path) -> None:
    await links.ensure_bridge(BRIDGE, LAB, MTU)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(taps, "DEVICE", str(tmp_path / "tun"))
        with pytest.raises(Fault, match=r"refused to open .*tun: No such file") as fault:
            await open_tap(links)
    assert "modprobe tun" in fault.value.remedy


def test_all_of_it_works_on_the_event_loop_that_a_node_prefers(namespace: None) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def main() -> None:
        links = Links(NODE)
        await links.open()
        async with aclosing(links.watch()) as events:
            assert await next_of(events) == Overflow()
            await links.ensure_bridge(BRIDGE, LAB, MTU)
            await until(events, LinkChanged, name=BRIDGE, is_up=True)
            os.close(await open_tap(links))
            await links.remove_group(GROUP)
            await until(events, LinkGone, name=TAP)
        await links.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
