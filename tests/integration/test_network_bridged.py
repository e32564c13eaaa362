"""Guests on a bridge of the host's own, where addresses are given out by others."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from aetherscale.actors.network.driver import HostNetworking
from aetherscale.actors.network.model.effects import NetworkEnsured, NetworkSpec
from aetherscale.kernel.failures import EffectFailed
from tests.support.behind import TAP, do
from tests.support.eventually import asked_until
from tests.support.fake_guest import FakeGuest
from tests.support.frames import ethernet, ipv4, udp
from tests.support.network_worlds import BOOT, DB, LAB, WEB, Process, kernel, opened, port, state

pytestmark = pytest.mark.integration

OFFICE = NetworkSpec("office", "bridged", None, None, "br0")
HARDWARE = "52:54:00:aa:bb:cc"


@pytest.fixture
async def office(tmp_path: Path) -> AsyncIterator[Process]:
    """A network that is the bridge br0 of the host, in which the host has a card of its own."""
    async with kernel(tmp_path / "state") as host:
        await do(f"ip link add card0 address {HARDWARE} type veth peer name far0; ip link set card0 up")
        await do("ip link add br0 type bridge; ip link set br0 up; ip link set card0 master br0")
        process = Process(host.driver())
        await process.start({}, {})
        assert await process.ensure(LAB, OFFICE) == NetworkEnsured("k", BOOT)
        yield process
        await process.driver.close()


async def mac_of(device: str) -> str:
    return (await do(f"ip -br link show {device}")).split()[2]


async def test_a_bridge_of_the_host_keeps_its_mac_whatever_vms_come_and_go(office: Process) -> None:
    assert await mac_of("br0") == HARDWARE
    # Lower than any that a guest gets.
    low = {WEB: "02:00:00:00:00:01", DB: "00:00:00:00:00:02"}
    ports = {vm_id: replace(port(vm_id), ipv4=None, mac=mac) for vm_id, mac in low.items()}
    for vm_id, mine in ports.items():
        await opened(office, vm_id, mine)
        assert await mac_of("br0") == HARDWARE
    assert await mac_of(TAP) == "fe:ff:00:00:00:01"
    for vm_id, mine in ports.items():
        await office.driver.close_ports(vm_id, [mine])
        assert await mac_of("br0") == HARDWARE


async def test_the_mac_of_a_tap_is_put_back_and_nothing_was_lost(office: Process) -> None:
    mine = replace(port(WEB), ipv4=None)
    (descriptor,) = await office.driver.open(WEB, [mine])
    before = await do(f"ip -br link show {TAP}; bridge fdb show br br0 | sort")
    await do(f"ip link set {TAP} address 02:00:00:00:00:01")

    async def is_put_back() -> bool:
        return await do(f"ip -br link show {TAP}; bridge fdb show br br0 | sort") == before

    await asked_until(is_put_back)
    assert await mac_of("br0") == HARDWARE
    assert office.reports == []
    os.close(descriptor)


@pytest.fixture
async def running(office: Process) -> AsyncIterator[Process]:
    """The same with a VM that runs. There is no timer here: what is told is told by the kernel."""
    (descriptor,) = await office.driver.open(WEB, [replace(port(WEB), ipv4=None)])
    yield office
    os.close(descriptor)


async def is_plugged() -> bool:
    return TAP in await do("ip -br link show master br0 up")


async def told(running: Process, *words: str) -> None:
    """Wait for what has to be told, and find nothing else."""

    async def is_told() -> bool:
        return [each.what for each in dict.fromkeys(running.reports)] == list(words)

    await asked_until(is_told)


@pytest.mark.parametrize("words", ["ip link del br0", "ip link set br0 down; ip link set br0 name br1"])
async def test_a_bridge_of_the_host_that_goes_and_comes_is_told_at_once_and_has_its_taps(
    running: Process, words: str
) -> None:
    assert list(running.driver.cut(WEB)) == []
    await do(words)
    assert list(running.driver.cut(WEB)) == [TAP]
    await told(running, "the bridge br0 is gone")
    failed = await running.ensure(LAB, OFFICE)
    assert isinstance(failed, EffectFailed)
    assert failed.reason == "the host has no bridge br0"
    await do("ip link add br0 type bridge; ip link set br0 up")
    await asked_until(is_plugged)
    await told(running, "the bridge br0 is gone", "the bridge br0 was made anew")
    assert list(running.driver.cut(WEB)) == []
    assert await running.ensure(LAB, OFFICE) == NetworkEnsured("k", BOOT)


async def test_a_bridge_of_the_host_that_is_another_one_at_once_is_what_was_lost_and_no_tap(running: Process) -> None:
    await do("printf 'link del br0\nlink add br0 type bridge\nlink set br0 up\n' | ip -batch -")
    await asked_until(is_plugged)

    async def is_told() -> bool:
        return bool(running.reports) and running.reports[-1].what == "the bridge br0 was made anew"

    await asked_until(is_told)
    assert {each.what for each in running.reports} <= {"the bridge br0 is gone", "the bridge br0 was made anew"}


async def test_a_tap_is_not_blamed_for_a_bridge_of_the_host_that_is_another_one(running: Process) -> None:
    assert isinstance(running.driver, HostNetworking)
    assert running.driver._watches is not None
    await running.driver._watches.close()  # the kernel may tell of the tap first
    await do("ip link del br0; ip link add br0 type bridge; ip link set br0 up")
    await running.driver._device_changed(TAP)
    assert running.reports == []
    await running.driver._device_changed("br0")
    assert [each.what for each in running.reports] == ["the bridge br0 was made anew"]
    assert await is_plugged()


async def test_a_network_is_up_only_when_the_taps_of_its_vms_are_in_its_bridge(running: Process) -> None:
    assert isinstance(running.driver, HostNetworking)
    assert running.driver._watches is not None
    await running.driver._watches.close()  # as where the kernel's news comes later
    await do("ip link del br0; ip link add br0 type bridge; ip link set br0 up")
    assert not await is_plugged()
    assert await running.ensure(LAB, OFFICE) == NetworkEnsured("k", BOOT)
    assert await is_plugged()


async def test_a_bridge_of_the_host_that_comes_after_the_node_is_told(tmp_path: Path) -> None:
    async with kernel(tmp_path / "state") as host:
        process = Process(host.driver())
        await process.start({LAB: state(LAB, OFFICE)}, {})
        assert "the bridge br0 is gone" in [each.what for each in process.reports]
        process.reports.clear()
        await do("ip link add br0 type bridge")
        await told(process, "the bridge br0 was made anew")
        await process.driver.close()


async def test_on_a_bridge_of_the_host_a_guest_has_any_address_and_no_mac_but_its_own(tmp_path: Path) -> None:
    async with kernel(tmp_path / "state") as host:
        for words in ("link add br0 type bridge", "link set br0 up"):
            subprocess.run(["ip", *words.split()], check=True)  # noqa: ASYNC221
        process = Process(host.driver())
        await process.start({}, {})
        assert await process.ensure(LAB, OFFICE) == NetworkEnsured("k", BOOT)
        ends = []
        for vm_id in (WEB, DB):
            mine = replace(port(vm_id), ipv4=None)
            (descriptor,) = await process.driver.open(vm_id, [mine])
            os.set_blocking(descriptor, False)
            ends.append(FakeGuest(mine.tap, mine.mac, "192.0.2.7", "2001:db8::7", descriptor))
        web, db = ends
        for mac, data in (("02:00:00:00:00:99", b"foreign"), (web.mac, b"its own")):
            datagram = udp("192.0.2.7", "192.0.2.8", (9, 9), data)
            web.send(ethernet(db.mac, mac, 0x0800, ipv4("192.0.2.7", "192.0.2.8", 17, datagram)))
        assert not any(b"foreign" in frame for frame in db.until(b"its own"))
        assert process.driver.dropped(WEB) == {port(WEB).tap: {"mac": 1}}
        web.close()
        db.close()
        await process.driver.close_ports(WEB, [port(WEB)])
        await process.driver.close_ports(DB, [port(DB)])
        await process.remove(LAB, OFFICE)
        await process.driver.close()
