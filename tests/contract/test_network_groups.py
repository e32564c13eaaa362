"""One suite for groups in the driver of networks: on nft in a namespace, and in memory."""

from __future__ import annotations

import asyncio
import os

from aetherscale.actors.compute.model.commands import NO_RULES, VmRules
from aetherscale.actors.network.model.devices import tap_name
from tests.support.firewalled import rule
from tests.support.network_worlds import (
    DB,
    LAB,
    OTHER,
    OTHER_SPEC,
    WEB,
    Process,
    World,
    port,
    process,
    state,
    world,
)

__all__ = ["process", "world"]

OPEN, ADMIN = "a" * 16, "b" * 16
BEARS_OPEN = VmRules((OPEN,))
TAP, OTHER_TAP = tap_name(WEB, 0), tap_name(DB, 0)


async def open_with(process: Process, vm_id: str, rules: VmRules) -> None:
    for descriptor in await process.driver.open(vm_id, [port(vm_id)], rules):
        os.close(descriptor)


async def test_a_group_is_there_when_it_was_applied_and_not_when_it_was_removed(world: World, process: Process) -> None:
    await process.ensure()
    for _ in range(2):
        await process.driver.apply_group(OPEN, [rule("in:tcp:80")])
        assert world.groups() == {OPEN}
    await process.driver.apply_group(ADMIN, [])
    assert world.groups() == {OPEN, ADMIN}
    for _ in range(2):
        await process.driver.remove_group(OPEN)
        assert world.groups() == {ADMIN}


async def test_a_vm_bears_groups_from_its_start_and_while_it_runs(world: World, process: Process) -> None:
    await process.ensure()
    await process.driver.apply_group(OPEN, [rule("in:tcp:80")])
    await process.driver.apply_group(ADMIN, [rule("in:tcp:22")])
    await open_with(process, WEB, BEARS_OPEN)
    await open_with(process, DB, NO_RULES)
    assert world.grouped().keys() == {TAP}
    for _ in range(2):
        await process.driver.apply_rules(DB, BEARS_OPEN)
    assert world.grouped().keys() == {TAP, OTHER_TAP}
    assert len(set(world.grouped().values())) == 1
    await process.driver.apply_rules(WEB, VmRules((OPEN, ADMIN)))
    assert len(set(world.grouped().values())) == 2
    await process.driver.apply_rules(WEB, NO_RULES)
    assert world.grouped().keys() == {OTHER_TAP}
    await process.driver.close_ports(DB, [port(DB)])
    assert world.grouped() == {}


async def test_rules_of_a_vm_that_does_not_run_are_those_that_it_starts_with(world: World, process: Process) -> None:
    await process.ensure()
    await process.driver.apply_rules(WEB, BEARS_OPEN)
    assert world.grouped() == {}
    await open_with(process, WEB, BEARS_OPEN)
    assert world.grouped().keys() == {TAP}


async def test_groups_that_were_applied_before_there_was_a_network_are_in_the_first(
    world: World, process: Process
) -> None:
    await process.driver.apply_group(OPEN, [rule("in:tcp:80")])
    await process.driver.apply_rules(WEB, BEARS_OPEN)
    await process.ensure()
    await open_with(process, WEB, BEARS_OPEN)
    assert world.groups() == {OPEN}
    assert world.grouped().keys() == {TAP}


async def test_the_next_process_has_the_groups_that_are_restored_and_no_others(world: World, process: Process) -> None:
    await process.ensure()
    await process.ensure(OTHER, OTHER_SPEC)
    await process.driver.apply_group(OPEN, [rule("in:tcp:80")])
    await process.driver.apply_group(ADMIN, [])
    await open_with(process, WEB, BEARS_OPEN)
    await open_with(process, DB, BEARS_OPEN)
    await process.driver.close()
    following = Process(world.driver())
    following.driver.restore_groups({OPEN: [rule("in:tcp:81")]})
    following.driver.restore_rules({WEB: BEARS_OPEN})
    await following.start({LAB: state()}, {WEB: [port(WEB)], DB: [port(DB)]})
    assert world.groups() == {OPEN}
    assert world.grouped().keys() == {TAP}
    await following.driver.close()


async def test_many_changes_at_once_are_all_there(world: World, process: Process) -> None:
    await process.ensure()
    await open_with(process, WEB, NO_RULES)
    await asyncio.gather(
        *(process.driver.apply_group(f"{number:016x}", [rule(f"in:tcp:{number + 1}")]) for number in range(20)),
        process.driver.apply_rules(WEB, VmRules((f"{7:016x}",))),
        open_with(process, DB, VmRules((f"{9:016x}",))),
    )
    assert world.groups() == {f"{number:016x}" for number in range(20)}
    assert world.grouped().keys() == {TAP, OTHER_TAP}
