"""The public bridge by the driver of a node: leases over its end and over a flush; a bridge that is not there."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from aetherscale.actors.network.driver import HostNetworking
from aetherscale.actors.network.model.effects import NetworkEnsured, NetworkSpec
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.failures import EffectFailed
from tests.integration.test_network_public import answer
from tests.support.behind import do
from tests.support.eventually import asked_until
from tests.support.fake_guest import FakeGuest, open_tap
from tests.support.frames import BROADCAST
from tests.support.network_worlds import BOOT, LAB, NODE, WEB, Process, kernel, port, state
from tests.support.spoofs import ANY

pytestmark = pytest.mark.integration
STREET = NetworkSpec("public", "public", None, None, "br0")
MINE = replace(port(WEB), network="public", ipv4=None)
"""A port whose addresses were not decided."""
LEASED = "192.0.2.99"


class Street:
    """The bridge br0 with a machine and a guest in it, and the process that opened the guest's port."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.asked = 0
        self.process = Process(HostNetworking(NODE, BOOT, state_dir))
        self.server = FakeGuest("cable7", "52:54:00:00:01:07", "192.0.2.7", "2001:db8::7", open_tap("cable7"))
        self.web = FakeGuest(MINE.tap, MINE.mac, "192.0.2.98", "2001:db8::98", -1)

    async def open(self) -> None:
        await do("ip link add br0 type bridge mcast_snooping 0; ip link set br0 up; ip link set cable7 master br0 up")
        await self.process.start({}, {})
        assert await self.process.ensure(LAB, STREET) == NetworkEnsured("k", BOOT)
        (self.web.descriptor,) = await self.process.driver.open(WEB, [MINE])
        os.set_blocking(self.web.descriptor, False)

    async def restart(self) -> None:
        """The node ends, and another one begins."""
        await self.process.driver.close()
        self.process = Process(HostNetworking(NODE, BOOT, self.state_dir))
        await self.process.start({LAB: state(LAB, STREET)}, {WEB: [MINE]})

    def lease(self, address: str = LEASED) -> None:
        said = answer(self.server, address, self.web.mac)
        self.server.send(said)
        self.web.until(said[42:])

    def may(self, address: str = LEASED) -> bool:
        """Whether what the guest sends from an address passes. What it asks of DHCP, after that, always does."""
        data = b"here I am"
        self.web.send(self.web.udp(self.server.ipv4, data, mac=self.server.mac, source=address))
        self.asked += 1
        question = b"question %d." % self.asked
        self.web.send(self.web.udp("255.255.255.255", question, mac=BROADCAST, ports=(68, 67), source=ANY))
        return any(data in frame for frame in self.server.until(question))

    async def close(self) -> None:
        await self.process.driver.close()
        self.web.close()
        self.server.close()


@pytest.fixture
async def street(tmp_path: Path) -> AsyncIterator[Street]:
    async with kernel(tmp_path / "state"):
        made = Street(tmp_path / "state")
        await made.open()
        yield made
        await made.close()


async def test_a_lease_is_told_and_outlives_the_node(street: Street) -> None:
    assert street.process.driver.leased(WEB) == {}
    street.lease()
    assert street.process.driver.leased(WEB) == {MINE.tap: [LEASED]}
    await street.restart()
    assert street.may()
    assert not street.may("192.0.2.98")
    assert street.process.driver.leased(WEB) == {MINE.tap: [LEASED]}


async def test_it_outlives_a_flush_where_the_node_has_looked_before(street: Street) -> None:
    street.lease()
    await street.process.driver.reconcile({LAB: state(LAB, STREET)})  # as the timer does
    await street.process.driver.restore({WEB: [MINE]})
    await do("nft flush ruleset")

    async def is_mended() -> bool:
        return bool(street.process.reports)

    await asked_until(is_mended)
    assert street.may()
    assert not street.may("192.0.2.98")


async def test_it_outlives_a_stop_of_the_vm_and_not_the_vm(street: Street) -> None:
    street.lease()
    await street.process.driver.close_ports(WEB, [MINE])
    street.web.close()
    (street.web.descriptor,) = await street.process.driver.open(WEB, [MINE])
    os.set_blocking(street.web.descriptor, False)
    assert street.may()
    await street.process.driver.close_ports(WEB, [MINE])
    await street.restart()
    await street.process.driver.close_ports(WEB, [MINE])
    await street.process.driver.restore({})
    assert street.process.driver.leased(WEB) == {}


async def test_a_public_bridge_that_is_not_there_is_refused_with_what_makes_it(street: Street) -> None:
    assert street.process.driver.public_bridge() == "br0"
    await do("ip link set br0 down; ip link set br0 name br1")
    with pytest.raises(Refused) as refused:
        street.process.driver.public_bridge()
    assert (refused.value.reason, refused.value.message) == (Reason.CONFLICT, "the host has no bridge br0")
    assert refused.value.remedy == (
        "sudo aetherscale host setup bridge --bridge br0 --device eth0; those that it has: ip -br link type bridge",
    )
    failed = await street.process.ensure(LAB, STREET)
    assert isinstance(failed, EffectFailed)
    assert failed.hint == refused.value.remedy[0]


async def test_the_remedy_names_the_device_that_leads_to_the_world(street: Street) -> None:
    await do("ip link add far0 type veth peer name card0; ip addr add 198.51.100.2/24 dev card0; ip link set far0 up")
    await do("ip link set card0 up; ip route add default via 198.51.100.1; ip link del br0")
    with pytest.raises(Refused) as refused:
        street.process.driver.public_bridge()
    assert "--device card0;" in str(refused.value.remedy[0])


async def test_the_addresses_of_the_host_and_of_its_routers_are_its_own(street: Street) -> None:
    await do("ip addr add 192.0.2.1/24 dev br0; ip -6 addr add 2001:db8::1/64 dev br0 nodad")
    await do("ip route add default via 192.0.2.254; ip -6 route add default via 2001:db8::fe")
    for address in ("192.0.2.1", "2001:db8::1", "192.0.2.254", "2001:db8::fe"):
        assert street.process.driver.is_of_host(address)
    for address in ("192.0.2.2", "2001:db8::2"):
        assert not street.process.driver.is_of_host(address)
