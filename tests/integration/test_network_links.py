"""Bridges, addresses and routes, in a network namespace of each test.

What the tests look at, and what "somebody else" does, is by pyroute2 or by ioctl, not by what is tested.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from ipaddress import IPv4Interface, IPv6Interface, ip_network
from pathlib import Path
from typing import Any

import pytest

from aetherscale.actors.network.model.addresses import mac_of
from aetherscale.actors.network.model.devices import Alias, Link
from aetherscale.actors.network.netlink import requests
from aetherscale.actors.network.netlink.links import Links
from aetherscale.kernel.fault import Fault
from tests.support.eventually import asked_until
from tests.support.network_devices import (
    BRIDGE,
    GROUP,
    HEADER,
    LAB,
    MTU,
    NETWORK,
    NODE,
    OTHER_BRIDGE,
    OTHER_LAB,
    OTHER_PORT,
    OTHER_TAP,
    PORT,
    TAP,
    UP,
    Everything,
    addresses_of,
    everything,
    ip,
    links,
    namespace,
    open_tap,
    properties,
    seen,
)
from tests.support.network_namespaces import missing, without_net_admin

__all__ = ["everything", "ip", "links", "namespace"]

pytestmark = [pytest.mark.integration, pytest.mark.skipif(bool(missing()), reason=missing())]


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


async def test_a_device_that_somebody_makes_at_the_same_moment_stays_as_it_is(links: Links, ip: Any) -> None:
    await ip.link("add", ifname=BRIDGE, kind="bridge", address="02:00:00:00:00:05")
    before = properties(await seen(ip, BRIDGE))
    find, asked = requests.Requests.find, 0

    def find_late(self: requests.Requests, name: str) -> Link | None:
        nonlocal asked
        asked += 1
        return find(self, name) if asked > 1 else None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(requests.Requests, "find", find_late)
        with pytest.raises(Fault, match="did not make"):
            await links.ensure_bridge(BRIDGE, LAB, MTU)
    assert asked == 2
    assert properties(await seen(ip, BRIDGE)) == before


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
