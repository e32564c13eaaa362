"""Reboots with real QEMU: of a guest from within, and of the host, which ends QEMU by a signal."""

from __future__ import annotations

import os
import signal

import pytest

from aetherscale.actors.compute.model.effects import (
    GuestEnded,
    GuestReady,
    VmGone,
)
from aetherscale.actors.compute.qemu import machine
from tests.support.compute_fixtures import qemu_world, tiny_image_file
from tests.support.compute_worlds import (
    TINY,
    VM,
    QemuWorld,
    booted,
    identity,
    node,
    read_until,
)
from tests.support.eventually import asked_until

__all__ = ["qemu_world", "tiny_image_file"]

pytestmark = pytest.mark.integration


async def test_a_guest_that_reboots_goes_on_in_the_same_run(qemu_world: QemuWorld) -> None:
    driver = qemu_world.driver()
    async with node(driver) as watcher:
        started = await booted(driver, TINY)
        await watcher.until(GuestReady)
        console = await driver.console(VM)
        output = console.output()
        await read_until(output, b"# ")
        await console.send(b"reboot\n")
        await read_until(output, b"built-in shell")
        assert qemu_world.pids(VM) == [started.pid]
        assert len(watcher.seen) == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
async def test_a_qemu_heeds_what_a_host_that_goes_down_says_whatever_its_guest_does(
    qemu_world: QemuWorld, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """`-action shutdown=pause` is about the guest's own end: no host waits for its guests until a limit runs out."""
    monkeypatch.setattr(machine, "HOST_GOES_S", 0)
    driver = qemu_world.driver()
    async with node(driver) as watcher:
        started = await booted(driver)
        os.kill(started.pid, number)
        gone = await watcher.until(VmGone)
        assert (gone.exit_code, gone.signal, gone.detail) == (0, None, "a signal on this host ended QEMU")
        assert f"terminating on signal {number}" in gone.log_tail
        assert watcher.of(GuestEnded) == []


async def test_a_host_that_takes_the_node_down_with_its_guests_leaves_no_crash_behind(
    qemu_world: QemuWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "HOST_GOES_S", 3600)
    driver = qemu_world.driver()
    async with node(driver) as watcher:
        started = await booted(driver)
        os.kill(started.pid, signal.SIGTERM)

        async def is_gone() -> bool:
            return not driver.watches(VM, 1)

        await asked_until(is_gone)
    assert watcher.of(VmGone) == []
    next_driver = qemu_world.driver()
    async with node(next_driver):
        assert not await next_driver.adopt(identity(started)), "by its boot id the next node tells a reboot"
