"""VMs with ports on VDE switches: one suite for QEMU beside a real switch, and for a host in memory."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Protocol

import pytest
from msgspec.structs import replace

from aetherscale.actors.compute.model.effects import Booted, BootVm, DiskProvisioned, Ended
from aetherscale.actors.compute.model.switches import SwitchPort
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.failures import EffectFailed
from tests.support import vde_switches
from tests.support.compute_fixtures import qemu_world, tiny_image_file
from tests.support.compute_worlds import OTHER_VM, VM, QemuWorld, SimulatedWorld, boot, ensure, node, provision
from tests.support.driver_fixtures import END

__all__ = ["qemu_world", "tiny_image_file"]

pytestmark = pytest.mark.timeout(300)

MAC: Final = "02:00:00:00:00:01"
REAL: Final = [
    pytest.mark.integration,
    pytest.mark.skipif(bool(vde_switches.missing()), reason=vde_switches.missing()),
]


class Switch(Protocol):
    """A switch that may be there, and the world that it is in."""

    world: Any
    path: str

    def begin(self) -> None: ...
    def end(self) -> None: ...


class InMemory:
    def __init__(self) -> None:
        self.world = SimulatedWorld()
        self.path = "/run/lab.ctl"
        self.end()

    def begin(self) -> None:
        self.world.host.missing_switches.discard(self.path)

    def end(self) -> None:
        self.world.host.missing_switches.add(self.path)


class Real:
    def __init__(self, world: QemuWorld, directory: Path) -> None:
        self.world = world
        self.path = str(directory / "lab.ctl")
        self._running = ExitStack()

    def begin(self) -> None:
        self._running.enter_context(vde_switches.vde_switch(Path(self.path)))

    def end(self) -> None:
        self._running.close()


@pytest.fixture(params=["simulated", pytest.param("qemu", marks=REAL)])
def switch(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "simulated":
        yield InMemory()
        return
    real = Real(request.getfixturevalue("qemu_world"), tmp_path)
    yield real
    real.end()


def on(switch: Switch, vm_id: str = VM, *, run: int = 1) -> BootVm:
    return replace(boot(vm_id=vm_id, run=run), switches=(SwitchPort(switch.path, MAC),))


async def test_a_vm_boots_with_a_port_there_and_so_does_another(switch: Switch) -> None:
    switch.begin()
    driver = switch.world.driver()
    async with node(driver):
        driver.limits.require_switch(switch.path)
        for vm_id in (VM, OTHER_VM):
            await ensure(driver, provision(vm_id=vm_id), DiskProvisioned)
            await ensure(driver, on(switch, vm_id), Booted)
        if isinstance(switch, Real):
            await vde_switches.until_in_use(Path(switch.path), 2)
        await ensure(driver, END, Ended)
        if isinstance(switch, Real):
            await vde_switches.until_in_use(Path(switch.path), 1)
        await ensure(driver, replace(END, vm_id=OTHER_VM), Ended)


async def test_a_boot_without_the_switch_fails_and_one_with_it_does_not(switch: Switch) -> None:
    driver = switch.world.driver()
    async with node(driver):
        await ensure(driver, provision(), DiskProvisioned)
        failed = await ensure(driver, on(switch), EffectFailed)
        assert failed.reason.startswith(f"there is no VDE switch at {switch.path}: {switch.path}/ctl is missing")
        assert f"vde_switch -sock {switch.path}" in failed.hint
        assert failed.retryable
        assert switch.world.processes(VM) == 0
        with pytest.raises(Refused, match="there is no VDE switch at") as refused:
            driver.limits.require_switch(switch.path)
        assert (refused.value.reason, refused.value.field) == (Reason.CONFLICT, "virtual-network")
        switch.begin()
        await ensure(driver, on(switch), Booted)
        await ensure(driver, END, Ended)


async def test_a_vm_goes_on_without_its_switch_and_is_adopted_and_ended(switch: Switch) -> None:
    switch.begin()
    first = switch.world.driver()
    async with node(first):
        await ensure(first, provision(), DiskProvisioned)
        booted = await ensure(first, on(switch), Booted)
    switch.end()
    second = switch.world.driver()
    async with node(second):
        again = await ensure(second, on(switch), Booted)
        assert (again.pid, again.adopted) == (booted.pid, True)
        await ensure(second, END, Ended)
    assert switch.world.processes(VM) == 0
