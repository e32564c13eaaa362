"""What every compute driver finds of what an earlier node has left."""

from __future__ import annotations

from msgspec.structs import replace

from aetherscale.actors.compute.driver import Found
from aetherscale.actors.compute.model.effects import Booted, Ended, GuestEnded, GuestReady, Removed, VmGone
from tests.support.compute_fixtures import qemu_world, tiny_image_file
from tests.support.compute_worlds import OTHER_VM, TINY, VM, World, boot, booted, ensure, identity, node, type_in
from tests.support.driver_fixtures import END, REMOVE, driver, watcher, world

__all__ = ["driver", "qemu_world", "tiny_image_file", "watcher", "world"]


async def test_the_next_node_adopts_the_process_and_hears_that_the_guest_is_ready(world: World) -> None:
    first, second = world.driver(), world.driver()
    async with node(first):
        started = await booted(first, TINY)
    async with node(second) as watcher:
        assert await second.adopt(identity(started))
        assert await watcher.until(GuestReady) == GuestReady(VM, 1, "channel")
        await type_in(second, "poweroff")
        await watcher.until(GuestEnded)
        await ensure(second, END, Ended)
    assert world.processes(VM) == 0


async def test_the_next_node_hears_how_a_guest_ended_while_nobody_watched(world: World) -> None:
    first, second = world.driver(), world.driver()
    async with node(first) as watcher:
        started = await booted(first, TINY)
        await watcher.until(GuestReady)
    await world.power_off(VM)
    async with node(second) as watcher:
        assert await second.adopt(identity(started))
        assert (await watcher.until(GuestEnded)).reason == "shutdown"
        await ensure(second, END, Ended)


async def test_the_next_node_learns_of_a_death_but_not_of_its_cause(world: World) -> None:
    first, second = world.driver(), world.driver()
    async with node(first):
        started = await booted(first)
    async with node(second) as watcher:
        assert await second.adopt(identity(started))
        world.kill(started)
        gone = await watcher.until(VmGone)
        assert gone.run == 1


async def test_a_boot_whose_outcome_was_lost_with_the_node_is_found_by_the_next_one(world: World) -> None:
    first, second = world.driver(), world.driver()
    async with node(first):
        started = await booted(first)
    async with node(second):
        again = await ensure(second, boot(), Booted)
        assert again.adopted
        assert again.pid == started.pid
        assert world.processes(VM) == 1


async def test_the_next_node_ends_and_removes_what_it_did_not_start(world: World) -> None:
    first, second = world.driver(), world.driver()
    async with node(first):
        await booted(first)
    async with node(second) as watcher:
        assert await second.inventory() == [Found(VM, has_process=True, has_directory=True)]
        await ensure(second, REMOVE, Removed)
        assert watcher.seen == []
    assert world.processes(VM) == 0


async def test_no_other_process_is_ever_adopted(world: World) -> None:
    first, second = world.driver(), world.driver()
    async with node(first):
        started = identity(await booted(first))
    async with node(second) as watcher:
        assert not await second.adopt(replace(started, pid=started.pid + 1))
        assert not await second.adopt(replace(started, start_ticks=started.start_ticks + 1))
        assert not await second.adopt(replace(started, boot_id="0" * 36))
        assert not await second.adopt(replace(started, vm_id=OTHER_VM))
        assert watcher.seen == []
    assert world.processes(VM) == 1
