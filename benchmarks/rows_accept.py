"""Commands as the node takes them, in process: how soon one is on disk and its first reply is there."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from aetherscale.actors.component import Progress
from aetherscale.actors.compute.simulated import SimulatedDriver
from aetherscale.actors.compute.simulated_host import SimulatedHost
from aetherscale.actors.images import effects
from aetherscale.identifiers import boot_id, new_id, now_us
from aetherscale.kernel.calls import Call
from aetherscale.kernel.registry import Registry
from aetherscale.kernel.replies import is_final
from aetherscale.kernel.wire import encode
from aetherscale.node import Node, Ports, Registries
from benchmarks.harness import OURS, Context, Row, Samples, Target, Turn
from benchmarks.logs import TENANT, open_log
from benchmarks.rows_log import sync_turn

CREATES: Final = 200


async def _store_image(effect: effects.ImagesEffect, progress: Progress) -> effects.ImagesOutcome:
    return effects.ImageStored(effect.key, "raw", "a" * 64, 1 << 20, 1 << 20)


@asynccontextmanager
async def accepts(context: Context) -> AsyncIterator[Mapping[str, Turn]]:
    """VMs are created by 1 and by 64 clients, on a real log and a simulated host."""
    log = await open_log(context.directory / "state")
    ports = Ports(log, SimulatedDriver(SimulatedHost()), _store_image, now_us, new_id, boot_id())
    node = Node(ports, Registries(Registry(), Registry()))
    await node.start()
    numbers = itertools.count(1)
    try:
        async for _ in node.serve["images"](_call("images", "import-image", {"source": "/bare.raw", "name": "bare"})):
            pass
        yield {
            OURS: partial(create_turn, node, numbers, 1),
            "64 clients": partial(create_turn, node, numbers, 64),
            "fdatasync": partial(sync_turn, context.directory / "sync"),
        }
    finally:
        await node.close()
        await log.close()


async def create_turn(node: Node, numbers: Iterator[int], clients: int) -> Samples:
    """Milliseconds to the first reply; accepted and, where a client waits for its VM each time, created per second."""
    took: list[float] = []

    async def create(times: int) -> None:
        for _ in range(times):
            call = _call("compute", "create-vm", {"image": "bare", "name": f"vm-{next(numbers)}"})
            begun = time.perf_counter()
            answered = False
            async for chunk in node.serve["compute"](call):
                if not answered:
                    took.append((time.perf_counter() - begun) * 1000)
                    answered = True
                if is_final(chunk):
                    assert chunk["type"] == "result", chunk

    begun = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(create(max(1, CREATES // clients)))
    return {"ms": took, "creates/s": [len(took) / (time.perf_counter() - begun)]}


def _call(component: str, task: str, options: Mapping[str, str]) -> Call:
    identifier = new_id()
    return Call(
        tenant=TENANT,
        component=component,
        task=task,
        body=encode(options),
        actor="user:bench",
        command_id=identifier,
        keyed=True,
        correlation_id=identifier,
    )


ACCEPT_ROWS: Final = (
    Row(
        "accept",
        "a command durably accepted: its events on disk, its first reply there",
        accepts,
        (Target("ms", "<=", 3),),
        note="In process, on a simulated host. creates/s counts whole creations, five events in four commits each.",
    ),
)
