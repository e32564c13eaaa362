"""What every compute driver does with init scripts."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from aetherscale.actors.compute.driver import ComputeDriver
from aetherscale.actors.compute.model.effects import (
    Booted,
    DiskProvisioned,
    Ended,
    EndVm,
    GuestReady,
    InitEnded,
    Quarantined,
    QuarantineVm,
    Removed,
    RemoveScript,
    RemoveVm,
    ScriptRemoved,
)
from aetherscale.kernel.failures import EffectFailed
from tests.support.compute_fixtures import qemu_world, tiny_image_file
from tests.support.compute_worlds import (
    OTHER_VM,
    PATIENCE_S,
    TINY,
    VM,
    Watcher,
    World,
    boot,
    ensure,
    identity,
    node,
    provision,
)
from tests.support.driver_fixtures import END, REMOVE, driver, watcher, world
from tests.support.vm_pasts import REQUESTED, SPEC, state_of

__all__ = ["driver", "qemu_world", "tiny_image_file", "watcher", "world"]

SCRIPT = b"#!/bin/sh\nexit 0\n"
GIVING = replace(boot(), gives_script=True)
DATA = b"#cloud-config\n{}\n"
WITH_DATA = replace(boot(), by_seed=True, gives_user_data=True, hostname="web")
REMOVE_SCRIPT = RemoveScript("script-1", VM)


async def given(driver: ComputeDriver, script: bytes = SCRIPT) -> Booted:
    """A VM that has just been booted, with a script."""
    await driver.scripts.keep(VM, script)
    await ensure(driver, provision(TINY), DiskProvisioned)
    return await ensure(driver, GIVING, Booted)


async def test_a_guest_runs_what_it_is_given_and_its_end_is_told(driver: ComputeDriver, watcher: Watcher) -> None:
    await given(driver)
    ended = await watcher.until(InitEnded)
    assert (ended.vm_id, ended.run, ended.outcome, ended.exit_status) == (VM, 1, "ended", 0)
    await watcher.until(GuestReady)


async def test_a_guest_that_is_given_nothing_tells_nothing(driver: ComputeDriver, watcher: Watcher) -> None:
    await driver.scripts.keep(OTHER_VM, SCRIPT)
    await ensure(driver, provision(TINY), DiskProvisioned)
    await ensure(driver, boot(), Booted)
    await watcher.until(GuestReady)
    assert watcher.of(InitEnded) == []


async def test_the_end_is_told_to_a_node_that_has_come_back_too(world: World) -> None:
    first = world.driver()
    async with node(first) as watcher:
        booted = await given(first)
        await watcher.until(InitEnded)
    second = world.driver()
    async with node(second) as watcher:
        assert await second.adopt(identity(booted))
        ended = await watcher.until(InitEnded)
        assert (ended.outcome, ended.exit_status) == ("ended", 0)
        await ensure(second, END, Ended)


async def test_a_second_run_of_the_vm_does_not_run_it_again(driver: ComputeDriver, watcher: Watcher) -> None:
    """The guest says what it knows: the end of the one time."""
    await given(driver)
    await watcher.until(InitEnded)
    await ensure(driver, END, Ended)
    watcher.seen.clear()
    await ensure(driver, replace(GIVING, key="boot 2", run=2), Booted)
    ended = await watcher.until(InitEnded)
    assert (ended.run, ended.outcome, ended.exit_status) == (2, "ended", 0)
    await ensure(driver, EndVm("end", VM, 2), Ended)


async def test_a_script_that_the_host_has_not_is_told_as_lost_after_the_boot(
    driver: ComputeDriver, watcher: Watcher
) -> None:
    await ensure(driver, provision(TINY), DiskProvisioned)
    await ensure(driver, GIVING, Booted)
    assert watcher.of(InitEnded) == []
    assert (await watcher.until(InitEnded)).outcome == "lost"


@pytest.mark.parametrize("effect", [REMOVE_SCRIPT, REMOVE, QuarantineVm("quarantine", VM, "kept-as")])
async def test_a_script_that_is_removed_is_given_to_nobody(
    driver: ComputeDriver, watcher: Watcher, effect: RemoveScript
) -> None:
    for _ in range(2):
        await driver.scripts.keep(VM, SCRIPT)
        for _ in range(2):
            await ensure(driver, effect, ScriptRemoved | Removed | Quarantined)  # type: ignore[arg-type]
    await ensure(driver, provision(TINY), DiskProvisioned)
    await ensure(driver, GIVING, Booted)
    assert (await watcher.until(InitEnded)).outcome == "lost"
    await ensure(driver, END, Ended)


async def test_a_script_of_no_vm_is_removed_by_the_next_node_and_that_of_one_stays(world: World) -> None:
    first = world.driver()
    async with node(first):
        await first.scripts.keep(VM, SCRIPT)
        await first.scripts.keep(OTHER_VM, SCRIPT)
        # Not by the node that keeps it: its VM may not be in the log yet.
        await first.reconcile({})
    second = world.driver()
    async with node(second) as watcher, asyncio.timeout(PATIENCE_S):
        await second.reconcile({VM: state_of(replace(REQUESTED, spec=replace(SPEC, init_sha256="5" * 64)))})
        for vm_id, outcome in ((VM, "ended"), (OTHER_VM, "lost")):
            await ensure(second, provision(TINY, vm_id=vm_id), DiskProvisioned)
            await ensure(second, replace(GIVING, vm_id=vm_id), Booted)
            watcher.seen = [each for each in watcher.seen if getattr(each, "vm_id", "") == vm_id]
            assert (await watcher.until(InitEnded)).outcome == outcome
            await ensure(second, EndVm("end", vm_id, 1), Ended)


async def test_a_guest_with_cloud_init_is_booted_with_its_disk_in_every_run(
    driver: ComputeDriver, watcher: Watcher
) -> None:
    await driver.scripts.keep_user_data(VM, DATA)
    await ensure(driver, provision(TINY), DiskProvisioned)
    for run in (1, 2):
        # The script is no more of use then: the rest is.
        await driver.scripts.keep(VM, SCRIPT)
        await ensure(driver, REMOVE_SCRIPT, ScriptRemoved)
        await ensure(driver, replace(WITH_DATA, key=f"boot {run}", run=run), Booted)
        await watcher.until(GuestReady)
        watcher.seen.clear()
        await ensure(driver, EndVm("end", VM, run), Ended)


@pytest.mark.parametrize("effect", [REMOVE, QuarantineVm("quarantine", VM, "kept-as")])
async def test_user_data_goes_with_the_vm_and_one_that_has_none_is_not_booted(
    driver: ComputeDriver, watcher: Watcher, effect: RemoveVm | QuarantineVm
) -> None:
    await driver.scripts.keep_user_data(VM, DATA)
    await ensure(driver, effect, Removed | Quarantined)  # type: ignore[arg-type]
    await ensure(driver, provision(TINY), DiskProvisioned)
    failed = await ensure(driver, WITH_DATA, EffectFailed)
    assert failed.reason.startswith("the user-data of the VM for cloud-init is missing")
    assert not failed.retryable


async def test_user_data_of_no_vm_is_removed_by_the_next_node_and_that_of_one_stays(world: World) -> None:
    first = world.driver()
    async with node(first):
        await first.scripts.keep_user_data(VM, DATA)
        await first.scripts.keep_user_data(OTHER_VM, DATA)
        await first.reconcile({})
    second = world.driver()
    async with node(second), asyncio.timeout(PATIENCE_S):
        await second.reconcile({VM: state_of(replace(REQUESTED, spec=replace(SPEC, cloud_init_sha256="5" * 64)))})
        for vm_id, outcome in ((VM, Booted), (OTHER_VM, EffectFailed)):
            await ensure(second, provision(TINY, vm_id=vm_id), DiskProvisioned)
            await ensure(second, replace(WITH_DATA, vm_id=vm_id), outcome)
        await ensure(second, END, Ended)
