"""Ports that come and go while a VM is there: one suite for QEMU on the kernel's networks, and for both in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from aetherscale.actors.compute.driver import ComputeDriver
from aetherscale.actors.compute.model.commands import PortSpec
from aetherscale.actors.compute.model.effects import Booted as Started
from aetherscale.actors.compute.model.effects import (
    BootVm,
    DiskProvisioned,
    Ended,
    GuestReady,
    PlugPort,
    PortPlugged,
    PortUnplugged,
    Removed,
    RemoveVm,
    UnplugPort,
)
from aetherscale.actors.network.model.addresses import mac_of
from aetherscale.actors.network.model.devices import tap_name
from aetherscale.kernel.failures import EffectFailed
from tests.support.compute_fixtures import qemu_world, tiny_image_file
from tests.support.compute_worlds import TINY, VM, SimulatedWorld, boot, ensure, identity, node, provision
from tests.support.driver_fixtures import END
from tests.support.network_worlds import LAB, OTHER, OTHER_SPEC, Memory, Process, kernel
from tests.support.network_worlds import World as Networks

__all__ = ["qemu_world", "tiny_image_file"]

MOMENT_S = 0.3
"""Too short for any guest."""


def port(number: int, network_id: str = LAB) -> PortSpec:
    mac = mac_of(f"{VM}-{number}")
    return PortSpec(network_id, "lab", "web", tap_name(VM, number), mac, None, None)


FIRST, SECOND = port(0), port(1, OTHER)


@dataclass
class Host:
    """A host with two networks."""

    compute: Any
    networks: Networks
    process: Process

    def driver(self) -> ComputeDriver:
        """A new driver of VMs on it."""
        driver: ComputeDriver = self.compute.driver(ports=self.process.driver)
        return driver

    async def taps(self) -> set[str]:
        return set(await self.networks.taps())


@pytest.fixture(params=["simulated", pytest.param("qemu", marks=pytest.mark.integration)])
def compute(request: pytest.FixtureRequest) -> Any:
    return SimulatedWorld() if request.param == "simulated" else request.getfixturevalue("qemu_world")


@pytest.fixture
async def host(compute: Any, tmp_path: Path) -> AsyncIterator[Host]:
    async with in_memory() if isinstance(compute, SimulatedWorld) else kernel(tmp_path / "networks") as networks:
        host = Host(compute, networks, Process(networks.driver()))
        await begun(host.process)
        yield host
        await host.process.driver.close()


@asynccontextmanager
async def in_memory() -> AsyncIterator[Memory]:
    yield Memory()


async def begun(process: Process) -> None:
    await process.start({}, {})
    await process.ensure()
    await process.ensure(OTHER, OTHER_SPEC)


@pytest.fixture
async def driver(host: Host) -> AsyncIterator[ComputeDriver]:
    driver = host.driver()
    async with node(driver):
        yield driver
        await driver.perform(RemoveVm("remove", VM, 1, (FIRST, SECOND)), lambda step: None)


def booting(*ports: PortSpec) -> BootVm:
    return replace(boot(), ports=ports)


def plug(port: PortSpec = SECOND, slot: int = 0) -> PlugPort:
    return PlugPort(f"plug-{port.tap}", VM, port, slot)


def unplug(port: PortSpec = SECOND, patience_s: float = MOMENT_S) -> UnplugPort:
    return UnplugPort(f"unplug-{port.tap}", VM, port, patience_s)


async def running(driver: ComputeDriver) -> Started:
    await ensure(driver, provision(), DiskProvisioned)
    return await ensure(driver, booting(FIRST), Started)


async def test_a_port_is_plugged_in_once_and_again_with_its_rules_and_its_tap(
    host: Host, driver: ComputeDriver
) -> None:
    await running(driver)
    for _ in range(2):
        await ensure(driver, plug(), PortPlugged)
        assert await host.taps() == host.networks.ruled() == {FIRST.tap, SECOND.tap}


async def test_a_guest_that_is_asked_lets_go_and_its_slot_is_free(host: Host) -> None:
    driver = host.driver()
    async with node(driver) as watcher:
        await ensure(driver, provision(TINY), DiskProvisioned)
        await ensure(driver, booting(FIRST), Started)
        await watcher.until(GuestReady)
        for number in (1, 2, 3):
            await ensure(driver, plug(port(number)), PortPlugged)
            assert (await ensure(driver, unplug(port(number), 60), PortUnplugged)).card_left is False
            assert await host.taps() == host.networks.ruled() == {FIRST.tap}
        # So does it with one of its boot.
        await ensure(driver, plug(), PortPlugged)
        assert (await ensure(driver, unplug(FIRST, 60), PortUnplugged)).card_left is False
        assert await host.taps() == host.networks.ruled() == {SECOND.tap}
        await ensure(driver, RemoveVm("remove", VM, 1, (FIRST, SECOND)), Removed)


async def test_one_that_does_not_loses_the_cable_and_another_slot_is_free(host: Host, driver: ComputeDriver) -> None:
    await running(driver)
    pause(host)
    await ensure(driver, plug(), PortPlugged)
    for _ in range(2):
        assert (await ensure(driver, unplug(), PortUnplugged)).card_left is True
        assert await host.taps() == host.networks.ruled() == {FIRST.tap}
    await ensure(driver, plug(port(3), 1), PortPlugged)
    await ensure(driver, unplug(port(3)), PortUnplugged)


async def test_what_was_half_done_is_taken_up_or_taken_back(host: Host, driver: ComputeDriver) -> None:
    await running(driver)
    steps = 0
    while True:
        plugging = asyncio.ensure_future(driver.perform(plug(), lambda step: None))
        for _ in range(steps):
            await asyncio.sleep(0)
        if plugging.done():
            break
        plugging.cancel()
        await asyncio.wait({plugging})
        steps += 1
        if steps % 3 == 0:
            await ensure(driver, unplug(), PortUnplugged)
            assert await host.taps() == host.networks.ruled() == {FIRST.tap}
        if steps > 60:
            break
    outcome = await ensure(driver, plug(), PortPlugged) if not plugging.done() or plugging.cancelled() else None
    assert outcome is None or outcome.key == plug().key
    await ensure(driver, unplug(), PortUnplugged)
    assert await host.taps() == host.networks.ruled() == {FIRST.tap}


async def test_the_next_node_finds_the_card_that_is_there(host: Host) -> None:
    first = host.driver()
    async with node(first):
        booted = await running(first)
        await ensure(first, plug(), PortPlugged)
    following = host.driver()
    async with node(following):
        assert await following.adopt(identity(booted))
        await ensure(following, plug(), PortPlugged)
        assert await host.taps() == {FIRST.tap, SECOND.tap}
        await ensure(following, unplug(), PortUnplugged)
        assert await host.taps() == {FIRST.tap}
        await ensure(following, RemoveVm("remove", VM, 1, (FIRST,)), Removed)


async def test_at_rest_what_the_host_has_of_a_port_is_removed_and_none_is_plugged_in(
    host: Host, driver: ComputeDriver
) -> None:
    await running(driver)
    await ensure(driver, plug(), PortPlugged)
    await ensure(driver, END, Ended)
    assert await host.taps() == {FIRST.tap, SECOND.tap}
    for _ in range(2):
        assert (await ensure(driver, unplug(), PortUnplugged)).card_left is False
        assert await host.taps() == host.networks.ruled() == {FIRST.tap}
    assert isinstance(await driver.perform(plug(), lambda step: None), EffectFailed)


async def test_a_tap_that_is_lost_is_made_anew_for_a_card_that_was_plugged_in(
    host: Host, driver: ComputeDriver
) -> None:
    await running(driver)
    await ensure(driver, plug(), PortPlugged)
    await host.networks.lose_tap(SECOND.tap)
    if isinstance(host.networks, Memory):
        await host.process.driver.reconnect()
    async with asyncio.timeout(60):
        while SECOND.tap not in await host.taps():  # noqa: ASYNC110 - of the kernel
            await asyncio.sleep(0.01)
    assert driver.on_host(VM).cut == []


def pause(host: Host) -> None:
    """A guest of QEMU that is nothing but firmware lets go of nothing; a simulated one has to be kept from it."""
    if isinstance(host.compute, SimulatedWorld):
        process = host.compute.host.live(VM)
        assert process is not None
        process.pause("user")
