"""One suite for what is told of dropped packets by the driver of networks: on nft in a namespace, and in memory."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aetherscale.actors.compute.model.commands import NO_RULES
from aetherscale.actors.network.model.devices import tap_name
from aetherscale.actors.network.model.views import Dropped
from aetherscale.actors.network.ports import DropsWatched
from tests.support.network_worlds import DB, LAB, WEB, Process, World, port, process, world

__all__ = ["process", "world"]

PATIENCE_S = 30


@asynccontextmanager
async def guest(process: Process, vm_id: str) -> AsyncIterator[list[int]]:
    """The descriptors of a VM that runs."""
    descriptors = await process.driver.open(vm_id, [port(vm_id)], NO_RULES)
    yield descriptors
    for descriptor in descriptors:
        os.close(descriptor)


async def next_of(drops: DropsWatched) -> Dropped:
    async with asyncio.timeout(PATIENCE_S):
        async for each in drops:
            return each
    raise AssertionError("the watch has ended")


async def test_what_a_vm_may_not_send_is_told_as_it_is_dropped(world: World, process: Process) -> None:
    await process.ensure()
    async with guest(process, WEB) as web, guest(process, DB) as db:
        drops = await process.driver.watch_drops()
        for vm_id, descriptors in ((WEB, web), (DB, db), (WEB, web)):
            world.spoof(vm_id, descriptors)
            told = await next_of(drops)
            assert (told.vm_id, told.tap, told.network_id) == (vm_id, tap_name(vm_id, 0), LAB)
            assert (told.kind, told.is_inward, told.other_id) == ("mac", False, "")
            assert (told.frame.source, told.frame.packet) == ("02:00:00:00:00:66", "ethertype 0x88cc")
        await drops.close()


async def test_everybody_who_watches_is_told_until_they_leave(world: World, process: Process) -> None:
    await process.ensure()
    async with guest(process, WEB) as web:
        first, second = await process.driver.watch_drops(), await process.driver.watch_drops()
        world.spoof(WEB, web)
        assert (await next_of(first)).vm_id == (await next_of(second)).vm_id == WEB
        for _ in range(2):
            await first.close()
        assert [each async for each in first] == []
        world.spoof(WEB, web)
        assert (await next_of(second)).vm_id == WEB
        await second.close()
        third = await process.driver.watch_drops()
        world.spoof(WEB, web)
        assert (await next_of(third)).vm_id == WEB
        await third.close()


async def test_a_watch_that_began_before_there_was_a_network_is_told_of_it(world: World, process: Process) -> None:
    drops = await process.driver.watch_drops()
    await process.ensure()
    async with guest(process, WEB) as web:
        world.spoof(WEB, web)
        assert (await next_of(drops)).vm_id == WEB
    await drops.close()


async def test_what_a_guest_sends_is_counted_at_its_port_whether_it_is_dropped_or_not(
    world: World, process: Process
) -> None:
    await process.ensure()
    async with guest(process, WEB) as web, guest(process, DB):
        tap = tap_name(WEB, 0)
        before = process.driver.traffic(WEB)[tap]
        assert set(process.driver.traffic(WEB)) == {tap}
        for _ in range(3):
            world.spoof(WEB, web)
        after = process.driver.traffic(WEB)[tap]
        assert (after.sent_packets - before.sent_packets, after.sent_bytes - before.sent_bytes) == (3, 3 * 64)
        assert (after.received_packets, after.received_bytes) == (before.received_packets, before.received_bytes)
        assert process.driver.traffic(DB)[tap_name(DB, 0)].sent_bytes == 0
        await world.lose_tap(tap)
        assert process.driver.traffic(WEB) == {}
    assert process.driver.traffic("3" * 16) == {}
