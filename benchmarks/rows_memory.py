"""What a node takes of the host's memory, by itself and with VMs that run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks import libvirt
from benchmarks.by_hand import together
from benchmarks.harness import OURS, Context, Row, Samples, Target, Turn
from benchmarks.logs import NODE
from benchmarks.rows_node import STOPPED, VMS, known
from benchmarks.rows_qemu import bare_node, create, delete
from benchmarks.served import memory_mib, node, published, start, stop, wire

RUNNING: Final = 24
CLIENTS: Final = 4


@asynccontextmanager
async def memories(context: Context) -> AsyncIterator[Mapping[str, Turn]]:
    """A node that knows 1,000 VMs and runs 24 more, and an idle one; both without their nats-server."""
    full = await known(context.directory / "full", VMS)
    idle = await known(context.directory / "idle", 0)
    async with bare_node(full):
        await published(full, NODE, VMS * (STOPPED + 1))
    async with libvirt.beside("memory", known=VMS, running=RUNNING) as peers:
        yield {OURS: partial(running_turn, full), "idle node": partial(idle_turn, idle), **peers}


async def running_turn(state: Path) -> Samples:
    """MiB after the start, and with the VMs that have been created since, which are deleted afterwards."""
    async with node(state, simulated=False) as process:
        before = memory_mib(process.pid)
        vm_ids = await asyncio.to_thread(create_together, state)
        found = memory_mib(process.pid)
        plain = wire(state)
        for vm_id in vm_ids:
            await asyncio.to_thread(delete, plain, vm_id)
        plain.close()
    return {"MiB": [found], "none running MiB": [before]}


def create_together(state: Path) -> list[str]:
    """Create the VMs by several clients; their ids."""
    clients = [wire(state) for _ in range(CLIENTS)]
    made: list[str] = []

    def work(number: int) -> None:
        for _ in range(RUNNING // CLIENTS):
            made.append(create(clients[number]))

    together(CLIENTS, RUNNING, work)
    for each in clients:
        each.close()
    return made


async def idle_turn(state: Path) -> Samples:
    """MiB of a node that has nothing to do and nothing to know."""
    process, _ = await start(state, simulated=False)
    try:
        return {"MiB": [memory_mib(process.pid)]}
    finally:
        await stop(process)


MEMORY_ROWS: Final = (
    Row(
        "memory",
        "resident memory of the node alone, 1,000 VMs known and 24 running (TCG)",
        memories,
        (Target("MiB", "<=", 60),),
        rounds=2,
        note="Guests of 64 MiB, which are QEMU's and not counted, nor is nats-server. libvirt has as many. `idle node` "
        "knows and runs none.",
        peers=("libvirt",),
    ),
)
