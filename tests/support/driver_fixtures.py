"""Fixtures of the contract of compute drivers: the simulated host, and real QEMU."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from aetherscale.actors.compute.driver import ComputeDriver
from aetherscale.actors.compute.model.effects import EndVm, RemoveVm, ShutDownVm
from tests.support.compute_fixtures import qemu_world, tiny_image_file
from tests.support.compute_worlds import VM, SimulatedWorld, Watcher, World, node

__all__ = ["qemu_world", "tiny_image_file"]

END = EndVm("end", VM, 1)
REMOVE = RemoveVm("remove", VM, 1)


def shut_down(grace_s: float) -> ShutDownVm:
    return ShutDownVm("shut down", VM, 1, grace_s)


@pytest.fixture(params=["simulated", pytest.param("qemu", marks=pytest.mark.integration)])
def world(request: pytest.FixtureRequest) -> World:
    return SimulatedWorld() if request.param == "simulated" else request.getfixturevalue("qemu_world")


@pytest.fixture
def driver(world: World) -> ComputeDriver:
    return world.driver()


@pytest.fixture
async def watcher(driver: ComputeDriver) -> AsyncIterator[Watcher]:
    async with node(driver) as watcher:
        yield watcher
