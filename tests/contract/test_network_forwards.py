"""One suite for forwards in the driver of networks: on nft in a namespace, and in memory."""

from __future__ import annotations

import asyncio
import os

from aetherscale.actors.compute.model.commands import NO_RULES, Forward, VmRules
from tests.support.network_worlds import (
    DB,
    LAB,
    NAT_SPEC,
    WEB,
    Kernel,
    Process,
    World,
    port,
    process,
    state,
    world,
)

__all__ = ["process", "world"]

FOUR = Forward("a" * 16, "tcp", "", 8080, 80)
AT = Forward("b" * 16, "udp", "192.0.2.1", 53, 5353)
LED_FOUR, LED_AT = {"tcp 8080": 80}, {"udp 192.0.2.1 53": 5353}


async def routed(world: World, process: Process) -> None:
    if isinstance(world, Kernel):
        world.route()
    await process.ensure(LAB, NAT_SPEC)


async def open_with(process: Process, vm_id: str, *forwards: Forward) -> None:
    for descriptor in await process.driver.open(vm_id, [port(vm_id)], VmRules((), forwards)):
        os.close(descriptor)


async def test_a_vm_is_led_to_from_its_start_and_while_it_runs(world: World, process: Process) -> None:
    await routed(world, process)
    await open_with(process, WEB, FOUR)
    assert world.led() == LED_FOUR
    for _ in range(2):
        await process.driver.apply_rules(WEB, VmRules((), (FOUR, AT)))
        assert world.led() == LED_FOUR | LED_AT
    await process.driver.apply_rules(WEB, VmRules((), (AT,)), keep_established=True)
    assert world.led() == LED_AT
    await process.driver.apply_rules(WEB, NO_RULES)
    assert world.led() == {}


async def test_forwards_of_two_vms_come_and_go_by_themselves(world: World, process: Process) -> None:
    await routed(world, process)
    await asyncio.gather(open_with(process, WEB, FOUR), open_with(process, DB, AT))
    assert world.led() == LED_FOUR | LED_AT
    await process.driver.close_ports(DB, [port(DB)])
    assert world.led() == LED_FOUR


async def test_a_port_of_the_host_moves_to_another_vm(world: World, process: Process) -> None:
    await routed(world, process)
    await open_with(process, WEB, FOUR)
    await open_with(process, DB)
    moved = Forward("c" * 16, "tcp", "", 8080, 81)
    await asyncio.gather(
        process.driver.apply_rules(WEB, NO_RULES), process.driver.apply_rules(DB, VmRules((), (moved,)))
    )
    assert world.led() == {"tcp 8080": 81}


async def test_the_next_process_has_the_forwards_that_are_restored_and_no_others(
    world: World, process: Process
) -> None:
    await routed(world, process)
    await open_with(process, WEB, FOUR)
    await open_with(process, DB, AT)
    await process.driver.close()
    following = Process(world.driver())
    following.driver.restore_rules({WEB: VmRules((), (FOUR,))})
    await following.start({LAB: state(LAB, NAT_SPEC)}, {WEB: [port(WEB)], DB: [port(DB)]})
    assert world.led() == LED_FOUR
    await following.driver.close()
