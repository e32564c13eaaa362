"""A host that gets its default route from router advertisements, and that begins to forward: in a namespace of its own.

The router is a descriptor of the tap that is the host's uplink.
"""

from __future__ import annotations

import os
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pyroute2 import AsyncIPRoute  # type: ignore[import-untyped]

from aetherscale.actors.network import routing
from aetherscale.actors.network.routing import IPV4, IPV6, accept_ra
from aetherscale.setup import hostnetworks
from aetherscale.setup.hostwork import steps
from tests.support import frames
from tests.support.eventually import asked_until
from tests.support.fake_guest import VNET_HDR, open_tap
from tests.support.network_devices import namespace
from tests.support.network_namespaces import missing

__all__ = ["namespace"]

pytestmark = [pytest.mark.integration, pytest.mark.skipif(bool(missing()), reason=missing())]

UPLINK = "up0"
ROUTER, ROUTER_MAC = "fe80::99", "02:00:00:00:00:99"
SYS = Path("/proc/sys")
HOST = os.readlink("/proc/self/ns/net")


class Router:
    """What is at the other end of the uplink."""

    def __init__(self, tap: int) -> None:
        self._tap = tap

    def advertise(self, lifetime_s: int) -> None:
        """RFC 4861 §4.2, with a prefix to make addresses of (§4.6.2)."""
        prefix = struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 7200, 3600, 0) + frames.address("2001:db8:1::")
        message = struct.pack("!BBHII", 64, 0, lifetime_s, 0, 0) + prefix
        packet = frames.ipv6(ROUTER, "ff02::1", frames.ICMP6, frames.icmp6(ROUTER, "ff02::1", 134, message))
        os.write(self._tap, VNET_HDR + frames.ethernet(frames.group_mac("ff02::1"), ROUTER_MAC, 0x86DD, packet))


@pytest.fixture
async def router(namespace: None) -> AsyncIterator[Router]:
    """The router of a host that has just heard it."""
    assert os.readlink("/proc/thread-self/ns/net") != HOST, "or settings of this machine would be changed"
    tap = open_tap(UPLINK)
    (SYS / accept_ra(UPLINK)).write_text("1")
    async with AsyncIPRoute() as ip:
        (index,) = await ip.link_lookup(ifname=UPLINK)
        await ip.link("set", index=index, state="up")
    router = Router(tap)
    router.advertise(1800)
    await asked_until(is_routed)
    yield router
    os.close(tap)


async def is_routed() -> bool:
    """Whether the host has a default route from a router advertisement."""
    lines = [line.split() for line in Path("/proc/thread-self/net/ipv6_route").read_text().splitlines()]
    return any(to == "0" * 32 and bits == "00" and device == UPLINK for to, bits, *_, device in lines)


async def is_lost() -> bool:
    return not await is_routed()


async def test_the_host_keeps_its_route_and_goes_on_hearing(router: Router, tmp_path: Path) -> None:
    file = tmp_path / "forwarding.conf"
    assert routing.routing() == routing.Routing(False, False, (UPLINK,))
    statuses = {step.what: step.status for step in steps(hostnetworks.parts(file), dry_run=False)}
    assert set(statuses.values()) == {"done"}
    assert f"net.ipv6.conf.{UPLINK}.accept_ra = 2" in statuses
    assert [(SYS / path).read_text() for path in (IPV4, IPV6)] == ["1\n", "1\n"]
    assert await is_routed()
    assert routing.routing() == routing.Routing(True, True, ())

    router.advertise(0)  # the router says that it is none any more
    await asked_until(is_lost)
    router.advertise(1800)
    await asked_until(is_routed)
    assert {step.status for step in steps(hostnetworks.parts(file), dry_run=False)} == {"already"}


async def test_without_that_the_route_would_be_lost_and_that_is_seen(router: Router, tmp_path: Path) -> None:
    (SYS / IPV6).write_text("1")
    await asked_until(is_lost)
    assert routing.routing().hearing == (UPLINK,), "it has its address still"
    list(steps(hostnetworks.parts(tmp_path / "forwarding.conf"), dry_run=False))
    assert routing.routing().hearing == ()
    router.advertise(1800)
    await asked_until(is_routed)
