"""Whom a network's resolver asks of names outside, when the servers of the host change under a node that runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from aetherscale.actors.network.dnsmasq.directory import Directory
from aetherscale.actors.network.dnsmasq.process import running
from aetherscale.actors.network.dnsmasq.upstreams import host_upstreams
from aetherscale.actors.network.driver import HostNetworking
from aetherscale.actors.network.model.devices import bridge_name
from aetherscale.actors.network.model.effects import NetworkEnsured, NetworkSpec
from tests.integration.test_network_resolvers_ruled import FAR4, FOUND, UPLINK_MAC, serving
from tests.support.guest_namespaces import NO_ERROR, A, guests, sh
from tests.support.network_namespaces import missing
from tests.support.network_worlds import BOOT, LAB, NODE, WEB, Process, kernel, port, state
from tests.support.resolver_world import until

pytestmark = [pytest.mark.integration, pytest.mark.skipif(bool(missing()), reason=missing())]

NAT = NetworkSpec("lab", "nat", "10.9.8.0/24", "fd12:3456:789a:1::/64", None)
RESOLVER, NEXT = "10.9.8.254", "192.0.2.10"


@pytest.fixture
async def process(tmp_path: Path) -> AsyncIterator[Process]:
    """A node on a host that asks whom `resolv.conf` says, which is a file of the test's."""
    async with kernel(tmp_path / "state"):
        sh("ip", "link", "set", "lo", "up")
        for setting in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            Path("/proc/sys/net", setting).write_text("1")
        conf = tmp_path / "resolv.conf"
        conf.write_text(f"nameserver {FAR4}\n")
        driver = HostNetworking(
            NODE,
            BOOT,
            tmp_path / "state",
            upstreams=lambda: host_upstreams(conf, tmp_path / "none"),
            allow_unisolated=True,
        )
        made = Process(driver)
        await made.start({}, {})
        assert await made.ensure(LAB, NAT) == NetworkEnsured("k", BOOT)
        yield made
        await driver.close()


async def test_the_next_reconciliation_has_the_same_resolver_ask_the_new_ones(process: Process, tmp_path: Path) -> None:
    """By what the timer calls, with no event and no other process: nothing of the network was down."""
    directory = Directory(tmp_path / "state" / "networks", LAB)
    (pid,) = running(directory)
    sh("ip", "link", "add", "uplink", "type", "bridge")
    sh("ip", "link", "set", "uplink", "up")
    sh("ip", "address", "add", "192.0.2.100/24", "dev", "uplink")
    with guests() as make:
        far, guest = make("uplink", UPLINK_MAC), make(bridge_name(LAB), port(WEB).mac)
        for each, addresses in ((far, (FAR4, NEXT)), (guest, ("10.9.8.2",))):
            each.up()
            for address in addresses:
                each.sh("ip", "address", "add", f"{address}/24", "dev", "eth0")
        # Every server answers the same; who was asked is what is told.
        before: list[str] = []
        after: list[str] = []
        with serving(far, FAR4, 53, before), serving(far, NEXT, 53, after):
            assert guest.ask(RESOLVER, "one.example.com", A) == (NO_ERROR, [FOUND])
            assert (len(before), len(after)) == (1, 0)
            (tmp_path / "resolv.conf").write_text(f"nameserver {NEXT}\n")
            await process.driver.reconcile({LAB: state(LAB, NAT)})
            await process.driver.restore({})
            assert host_upstreams(tmp_path / "resolv.conf", tmp_path / "none") == [IPv4Address(NEXT)]
            await until(lambda: guest.ask(RESOLVER, "two.example.com", A) == (NO_ERROR, [FOUND]) and bool(after))
            heard = len(before)
            assert guest.ask(RESOLVER, "three.example.com", A) == (NO_ERROR, [FOUND])
            assert len(before) == heard
    assert running(directory) == [pid]
    assert process.reports == []
