"""What every compute driver does from the disk to the end: on the simulated host and with real QEMU."""

from __future__ import annotations

import asyncio
import re

import pytest
from msgspec.structs import replace

from aetherscale.actors.compute.driver import ComputeDriver, Found
from aetherscale.actors.compute.model.effects import (
    NO_RULES,
    ApplyRules,
    Booted,
    DiskProvisioned,
    Ended,
    GuestEnded,
    GuestReady,
    PublishedPort,
    Quarantined,
    QuarantineVm,
    Removed,
    RulesApplied,
    ShutdownIgnored,
    VmGone,
)
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.failures import EffectFailed
from tests.support.compute_fixtures import qemu_world, tiny_image_file
from tests.support.compute_worlds import (
    BARE,
    OTHER_VM,
    PATIENCE_S,
    TINY,
    VM,
    Watcher,
    World,
    boot,
    booted,
    ensure,
    provision,
    say_nothing,
    type_in,
)
from tests.support.driver_fixtures import END, REMOVE, driver, shut_down, watcher, world
from tests.support.nats_server import free_port

__all__ = ["driver", "qemu_world", "tiny_image_file", "watcher", "world"]


def published(host_port: int) -> PublishedPort:
    return PublishedPort("tcp", "127.0.0.1", host_port, 80)


# --- disks -----------------------------------------------------------------------------------------------------------


async def test_a_disk_is_as_large_as_was_asked(driver: ComputeDriver, watcher: Watcher) -> None:
    made = await ensure(driver, provision(BARE, disk_mib=64), DiskProvisioned)
    assert made == DiskProvisioned("provision", 64)
    assert await driver.inventory() == [Found(VM, has_process=False, has_directory=True)]


async def test_a_disk_is_never_smaller_than_its_image(driver: ComputeDriver, watcher: Watcher) -> None:
    made = await ensure(driver, provision(TINY, disk_mib=1), DiskProvisioned)
    assert made.disk_mib >= 20


async def test_a_disk_that_is_there_is_left_as_it_is(driver: ComputeDriver, watcher: Watcher) -> None:
    await ensure(driver, provision(disk_mib=64), DiskProvisioned)
    again = await ensure(driver, provision(disk_mib=128), DiskProvisioned)
    assert again.disk_mib == 64


async def test_a_missing_image_fails_for_good_and_leaves_nothing(driver: ComputeDriver, watcher: Watcher) -> None:
    failed = await ensure(driver, provision("2fffffffffffffff"), EffectFailed)
    assert "missing" in failed.reason
    assert "import" in failed.hint
    assert not failed.retryable
    assert await driver.inventory() == []


# --- booting ---------------------------------------------------------------------------------------------------------


async def test_a_boot_names_its_process(driver: ComputeDriver, watcher: Watcher) -> None:
    started = await booted(driver)
    assert (started.key, started.vm_id, started.run) == ("boot 1", VM, 1)
    assert started.pid > 1
    assert started.start_ticks > 0
    assert len(started.boot_id) == 36
    assert started.accelerator == "tcg"
    assert not started.adopted


async def test_a_run_that_is_booted_twice_has_one_process(
    world: World, driver: ComputeDriver, watcher: Watcher
) -> None:
    first = await booted(driver)
    second = await ensure(driver, boot(), Booted)
    assert second.adopted
    assert (second.pid, second.start_ticks) == (first.pid, first.start_ticks)
    assert world.processes(VM) == 1


async def test_a_boot_that_is_asked_for_twice_at_once_makes_one_process(
    world: World, driver: ComputeDriver, watcher: Watcher
) -> None:
    await ensure(driver, provision(), DiskProvisioned)
    both = await asyncio.gather(*(ensure(driver, boot(), Booted) for _ in range(2)))
    assert both[0].pid == both[1].pid
    assert world.processes(VM) == 1


async def test_a_new_run_ends_what_is_left_of_an_older_one(
    world: World, driver: ComputeDriver, watcher: Watcher
) -> None:
    first = await booted(driver)
    second = await ensure(driver, boot(run=2), Booted)
    assert second.pid != first.pid
    assert not second.adopted
    assert world.processes(VM) == 1


async def test_a_boot_that_was_cancelled_anywhere_can_be_done_again(
    world: World, driver: ComputeDriver, watcher: Watcher
) -> None:
    await ensure(driver, provision(), DiskProvisioned)
    for yields in range(12):
        attempt = asyncio.get_running_loop().create_task(driver.perform(boot(run=yields + 1), say_nothing))
        for _ in range(yields):
            await asyncio.sleep(0)
        attempt.cancel()
        await asyncio.gather(attempt, return_exceptions=True)
        await ensure(driver, boot(run=yields + 1), Booted)
        assert world.processes(VM) == 1
    await ensure(driver, END, Ended)
    assert world.processes(VM) == 0


async def test_too_much_memory_is_refused_with_numbers(world: World, driver: ComputeDriver, watcher: Watcher) -> None:
    await ensure(driver, provision(), DiskProvisioned)
    failed = await ensure(driver, boot(memory_mib=16 * 1024 * 1024), EffectFailed)
    assert "16777216 MiB" in failed.reason
    assert "available" in failed.reason
    assert not failed.retryable
    assert world.processes(VM) == 0


async def test_more_memory_than_the_host_has_is_refused_before_anything_is_made_of_a_vm(
    driver: ComputeDriver, watcher: Watcher
) -> None:
    driver.limits.require(64, 10 * 1024)
    with pytest.raises(Refused) as refused:
        driver.limits.require(16 * 1024 * 1024, 10 * 1024)
    assert (refused.value.reason, refused.value.field) == (Reason.BAD_REQUEST, "memory-mib")
    assert not refused.value.retryable
    found = re.fullmatch(r"got 16777216, expected at most (\d+) MiB of memory for a guest: .*", refused.value.message)
    assert found is not None, refused.value.message
    with pytest.raises(Refused):
        driver.limits.require(int(found[1]) + 1, 10 * 1024)


async def test_a_published_port_is_open_for_as_long_as_its_vm_runs(
    world: World, driver: ComputeDriver, watcher: Watcher
) -> None:
    port = free_port()
    await ensure(driver, provision(), DiskProvisioned)
    for run in (1, 2, 3):
        assert not world.is_open(port)
        await ensure(driver, replace(boot(run=run), publish=(published(port),)), Booted)
        assert world.is_open(port)
        # Once more, as after a restart of the node: it is this run's own port, and in no way of it.
        await ensure(driver, replace(boot(run=run), publish=(published(port),)), Booted)
        await ensure(driver, replace(END, run=run), Ended)
    assert not world.is_open(port)


async def test_a_port_that_another_program_has_fails_the_boot_for_good_with_its_number(
    world: World, driver: ComputeDriver, watcher: Watcher
) -> None:
    port, other = free_port(), free_port()
    booting = replace(boot(), publish=(published(other), published(port)))
    await ensure(driver, provision(), DiskProvisioned)
    with world.occupied(port):
        failed = await ensure(driver, booting, EffectFailed)
        assert f"the port {port}/tcp of the host is taken by another program" in failed.reason
        assert not failed.retryable
        assert world.processes(VM) == 0
        assert not world.is_open(other)
    await ensure(driver, booting, Booted)
    assert world.is_open(port)


async def test_a_port_of_another_vm_fails_the_boot_too(world: World, driver: ComputeDriver, watcher: Watcher) -> None:
    port = free_port()
    for vm_id in (VM, OTHER_VM):
        await ensure(driver, provision(vm_id=vm_id), DiskProvisioned)
    await ensure(driver, replace(boot(), publish=(published(port),)), Booted)
    failed = await ensure(driver, replace(boot(vm_id=OTHER_VM), publish=(published(port),)), EffectFailed)
    assert "is taken by another program" in failed.reason
    await ensure(driver, END, Ended)
    await ensure(driver, replace(boot(vm_id=OTHER_VM), publish=(published(port),)), Booted)


async def test_without_a_disk_there_is_no_boot(driver: ComputeDriver, watcher: Watcher) -> None:
    failed = await ensure(driver, boot(), EffectFailed)
    assert "no disk" in failed.reason
    assert not failed.retryable


# --- ready -----------------------------------------------------------------------------------------------------------


async def test_a_guest_is_ready_when_it_says_so_on_its_channel(driver: ComputeDriver, watcher: Watcher) -> None:
    await booted(driver, TINY, ready="channel")
    assert await watcher.until(GuestReady) == GuestReady(VM, 1, "channel")


async def test_a_guest_is_ready_when_its_agent_answers(driver: ComputeDriver, watcher: Watcher) -> None:
    await booted(driver, TINY, ready="agent")
    ready = await watcher.until(GuestReady)
    # Its own channel counts too, where the image does not say that it has one.
    assert ready.channel in ("agent", "channel")


async def test_a_guest_that_says_nothing_is_never_ready(driver: ComputeDriver, watcher: Watcher) -> None:
    await booted(driver, BARE)
    await ensure(driver, shut_down(0.2), ShutdownIgnored)
    assert watcher.seen == []


# --- the end ---------------------------------------------------------------------------------------------------------


async def test_a_guest_that_is_asked_to_shut_down_ends_and_is_paused_until_it_is_let_go(
    world: World, driver: ComputeDriver, watcher: Watcher
) -> None:
    await booted(driver, TINY)
    await watcher.until(GuestReady)
    asked = asyncio.get_running_loop().create_task(driver.perform(shut_down(PATIENCE_S), say_nothing))
    assert await watcher.until(GuestEnded) == GuestEnded(VM, 1, "shutdown")
    assert world.processes(VM) == 1
    assert (await ensure(driver, END, Ended)).exit_code == 0
    assert isinstance(await asked, Ended)
    assert watcher.of(VmGone) == []


async def test_a_guest_that_ignores_the_request_is_given_its_grace_and_then_ended(
    world: World, driver: ComputeDriver, watcher: Watcher
) -> None:
    await booted(driver, BARE)
    ignored = await ensure(driver, shut_down(0.3), ShutdownIgnored)
    assert ignored.waited_s == 0.3
    assert world.processes(VM) == 1
    await ensure(driver, END, Ended)
    assert world.processes(VM) == 0


async def test_a_kill_overtakes_a_shutdown(driver: ComputeDriver, watcher: Watcher) -> None:
    await booted(driver, BARE)
    asked = asyncio.get_running_loop().create_task(driver.perform(shut_down(3600), say_nothing))
    await asyncio.sleep(0)
    await ensure(driver, END, Ended)
    async with asyncio.timeout(PATIENCE_S):
        assert isinstance(await asked, Ended)


async def test_a_guest_that_powers_itself_off_has_ended(driver: ComputeDriver, watcher: Watcher) -> None:
    await booted(driver, TINY)
    await watcher.until(GuestReady)
    await type_in(driver, "poweroff")
    assert await watcher.until(GuestEnded) == GuestEnded(VM, 1, "shutdown")
    await ensure(driver, END, Ended)


async def test_a_guest_that_panics_has_ended_by_a_panic(driver: ComputeDriver, watcher: Watcher) -> None:
    await booted(driver, TINY)
    await watcher.until(GuestReady)
    await type_in(driver, "echo c > /proc/sysrq-trigger")
    assert (await watcher.until(GuestEnded)).reason == "panic"
    await ensure(driver, END, Ended)


async def test_a_process_that_is_killed_is_gone_and_its_signal_known(
    world: World, driver: ComputeDriver, watcher: Watcher
) -> None:
    started = await booted(driver)
    world.kill(started)
    gone = await watcher.until(VmGone)
    assert (gone.vm_id, gone.run, gone.exit_code, gone.signal) == (VM, 1, None, 9)
    assert watcher.seen == [gone]
    await ensure(driver, boot(run=2), Booted)


async def test_an_end_that_was_asked_for_is_no_news(driver: ComputeDriver, watcher: Watcher) -> None:
    await booted(driver)
    await ensure(driver, END, Ended)
    again = await ensure(driver, END, Ended)
    assert (again.exit_code, again.signal) == (None, None)
    assert watcher.seen == []


async def test_a_vm_that_is_removed_leaves_nothing(world: World, driver: ComputeDriver, watcher: Watcher) -> None:
    await booted(driver)
    await booted(driver, vm_id=OTHER_VM)
    await ensure(driver, REMOVE, Removed)
    assert world.processes(VM) == 0
    assert await driver.inventory() == [Found(OTHER_VM, has_process=True, has_directory=True)]
    await ensure(driver, REMOVE, Removed)
    assert watcher.seen == []


async def test_what_is_quarantined_has_ended_and_its_directory_is_kept(
    world: World, driver: ComputeDriver, watcher: Watcher
) -> None:
    await booted(driver)
    first = await ensure(driver, QuarantineVm("c", VM, "kept-1"), Quarantined)
    assert first.kept_in.endswith("/kept-1")
    assert world.processes(VM) == 0
    assert await driver.inventory() == []
    # Done again, it is as it was; what comes under the same id later is kept beside it.
    assert await ensure(driver, QuarantineVm("c", VM, "kept-1"), Quarantined) == first
    await ensure(driver, provision(BARE), DiskProvisioned)
    second = await ensure(driver, QuarantineVm("c", VM, "kept-2"), Quarantined)
    assert second.kept_in.endswith("/kept-2")
    assert await ensure(driver, QuarantineVm("c", VM, "kept-1"), Quarantined) == first
    assert await ensure(driver, QuarantineVm("c", OTHER_VM, "kept-3"), Quarantined) == Quarantined("c", "")
    assert watcher.seen == []


# --- groups and forwards ---------------------------------------------------------------------------------------------


async def test_rules_are_applied_as_often_as_is_asked_while_it_runs_and_at_rest(
    driver: ComputeDriver, watcher: Watcher
) -> None:
    apply = ApplyRules("rules-1-1", VM, 1, NO_RULES)
    for _ in range(2):
        assert await ensure(driver, apply, RulesApplied) == RulesApplied("rules-1-1", 1)
    await booted(driver)
    assert await ensure(driver, replace(apply, revision=2), RulesApplied) == RulesApplied("rules-1-1", 2)
    await ensure(driver, END, Ended)
