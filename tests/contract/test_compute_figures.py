"""The figures of VMs that run: on the simulated host and with real QEMU."""

from __future__ import annotations

from aetherscale.actors.compute.driver import ComputeDriver
from aetherscale.actors.compute.model.effects import Ended
from tests.support.compute_fixtures import qemu_world, tiny_image_file
from tests.support.compute_worlds import PATIENCE_S, VM, Watcher, World, booted, ensure
from tests.support.driver_fixtures import END, driver, watcher, world
from tests.support.eventually import asked_until

__all__ = ["driver", "qemu_world", "tiny_image_file", "watcher", "world"]


async def test_figures_are_of_what_runs_and_only_grow(world: World, driver: ComputeDriver, watcher: Watcher) -> None:
    assert await driver.figures() == {}
    await booted(driver)

    async def has_used_something() -> bool:
        figures = (await driver.figures())[VM]
        return figures.cpu_s > 0 and figures.disk is not None

    await asked_until(has_used_something, PATIENCE_S)
    before = (await driver.figures())[VM]
    after = (await driver.figures())[VM]
    assert after.cpu_s >= before.cpu_s
    assert 1 << 20 <= after.resident_bytes < 1 << 32
    assert after.disk is not None
    assert before.disk is not None
    assert all(late >= early for late, early in zip(after.disk, before.disk, strict=True))
    assert after.traffic == {}
    await ensure(driver, END, Ended)
    assert await driver.figures() == {}
