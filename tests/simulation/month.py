"""A month of a node that nobody restarts: its tasks and its memory have to stay as they are.

python -m tests.simulation.month [DAYS]

Callers make, use and delete a VM with a port every few hours, guests crash, the broker is away now and then. What the
node keeps by design is counted apart: of every VM that there ever was it knows the end.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import sys
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct

import aetherscale
from aetherscale.eventstore import tail
from aetherscale.eventstore.store import Accepted, StoredEvent
from tests.simulation.clients import Asked
from tests.simulation.invariants import require
from tests.simulation.jetstream import Message
from tests.simulation.loop import VirtualLoop, run
from tests.simulation.simulation import Complaints, Simulation
from tests.simulation.world import World

T = TypeVar("T")

DAY_S: Final = 86_400.0
DAYS: Final = 30
WARM_UP_DAYS: Final = 1
EVERY_S: Final = 4 * 3600.0
PER_VM_BYTES: Final = 6 * 1024
"""What may stay of a VM that there was: its last state, its view, and its place in tables."""
SLACK_BYTES: Final = 64 * 1024
TAIL_EVENTS: Final = 50
"""How many events the node keeps beside its log here, so that this memory is full when the month begins."""
STEPS_OF_A_DAY: Final = 200_000
"""Turns of the loop, three times what a day takes."""
FAKES: Final = ("memory.py", "simulated/driver.py", "simulated/host.py")
"""The modules that stand for the world outside of the process; the disk of a host may fill."""


class Size(Struct, frozen=True):
    """How large the node is."""

    vms: int
    tasks: int
    memory_bytes: int


def main(arguments: Sequence[str]) -> int:
    """Play a month; 1 where something grew."""
    days = int(arguments[0]) if arguments else DAYS
    tail.MOST_EVENTS = TAIL_EVENTS
    tracemalloc.start()
    try:
        begun, ended = run(month(days))
    except AssertionError as failure:
        print(failure)
        return 1
    made = ended.vms - begun.vms
    grown = ended.memory_bytes - begun.memory_bytes
    print(
        f"{days - WARM_UP_DAYS} days, {made} VMs made and deleted: tasks {begun.tasks} to {ended.tasks}, "
        f"memory {begun.memory_bytes / 1024:.0f} to {ended.memory_bytes / 1024:.0f} KiB ({grown / made:.0f} bytes a VM)"
    )
    return 0


async def month(days: int) -> tuple[Size, Size]:
    """The size of the node after it is warm, and at the end. Raises `AssertionError` where that is too much."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    loop.most_steps = days * STEPS_OF_A_DAY
    world = World(1, loop)
    world.faults.active = False
    complaints = Complaints()
    complaints.world = world
    with complaints.heard():
        await world.jetstream.start()
        story = Simulation(world, 1, 0)
        running = asyncio.ensure_future(story.keep_running())
        await story.first_image()
        await story.first_network()
        await live(world, story, WARM_UP_DAYS)
        begun = size_of(world)
        await live(world, story, days - WARM_UP_DAYS)
        ended = size_of(world)
        await story.converge()
        require(world.started == 1, "the node was not to be restarted")
        running.cancel()
    made = ended.vms - begun.vms
    require(ended.tasks <= begun.tasks, f"{begun.tasks} tasks became {ended.tasks}")
    allowed = SLACK_BYTES + made * PER_VM_BYTES
    grown = ended.memory_bytes - begun.memory_bytes
    require(grown <= allowed, f"{made} VMs later there are {grown} bytes more, {allowed} are allowed\n{largest()}")
    return begun, ended


async def live(world: World, story: Simulation, days: int) -> None:
    """What happens in some days."""
    client = story.clients[0]
    options: dict[str, Any]
    until_s = world.loop.time() + days * DAY_S
    while world.loop.time() < until_s:
        number = world.log.events[-1].seq
        name = f"job-{number}"
        for task, options in (
            ("create-vm", {"name": name, "image": "tiny", "restart": "on-failure", "virtual-network": "lab"}),
            ("vm-info", {"vm-id": name}),
            ("restart-vm", {"vm-id": name}),
            ("create-vm", {"name": name, "image": "nothing"}),
        ):
            key = f"{task}-{number}-{options.get('image')}"
            await client.insist(Asked(key, "compute", task, msgspec.json.encode(options)))
        for vm_id in list(world.host.processes):
            if (process := world.host.live(vm_id)) is not None:
                process.die(None, 9)
        await asyncio.sleep(EVERY_S / 2)
        world.broker.down()
        await asyncio.sleep(60)
        world.broker.up()
        await client.list_all()
        removal = msgspec.json.encode({"vm-id": name})
        await client.insist(Asked(f"delete-{number}", "compute", "delete-vm", removal))
        world.trace.clear()
        await asyncio.sleep(EVERY_S / 2)


def size_of(world: World) -> Size:
    """How large it is now."""
    written_anew(world)
    gc.collect()
    for each in gc.get_objects():
        # What a cache with a limit has is no growth.
        if isinstance(each, functools._lru_cache_wrapper) and each.cache_info().maxsize is not None:
            each.cache_clear()
    memory = sum(each.size for each in snapshot().statistics("filename"))
    return Size(len(world.vm_ids()), len(world.loop.tasks[world.process]), memory)


def written_anew(world: World) -> None:
    """What the world has on its disks, as copies of its own: it is no part of the memory of who wrote it."""
    log = world.log
    log.events[:] = copied(log.events, list[StoredEvent])
    log.commands.update(zip(log.commands, copied(list(log.commands.values()), list[Accepted]), strict=True))
    log.streams = {}
    for event in log.events:
        log.streams.setdefault(event.stream, []).append(event)
    for stream in world.jetstream.streams.values():
        stream.messages[:] = copied(stream.messages, list[Message])
        stream.recent.clear()


def copied(items: list[T], kind: type[list[T]]) -> list[T]:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(items), type=kind)


def snapshot() -> tracemalloc.Snapshot:
    """What was allocated by the node, and not by the world around it."""
    package = Path(aetherscale.__file__).parent
    filters = [tracemalloc.Filter(inclusive=True, filename_pattern=f"{package}/*")]
    filters += [tracemalloc.Filter(inclusive=False, filename_pattern=f"*/{fake}") for fake in FAKES]
    return tracemalloc.take_snapshot().filter_traces(filters)


def largest() -> str:
    """Where the most was allocated."""
    return "\n".join(str(each) for each in snapshot().statistics("lineno")[:12])


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    # What was killed is not unwound: see loop.py.
    os._exit(status)
