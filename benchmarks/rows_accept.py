"""Commands as a node takes them: how soon one is on disk and its first reply is there."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

import msgspec

from aetherscale.actors.compute.simulated.driver import SimulatedDriver
from aetherscale.actors.compute.simulated.host import SimulatedHost
from aetherscale.actors.firewall.driver import Groups
from aetherscale.actors.images.simulated.driver import SimulatedImages
from aetherscale.actors.network.simulated.driver import SimulatedNetworking
from aetherscale.actors.network.simulated.host import SimulatedNetworks
from aetherscale.components import components, kinds
from aetherscale.identifiers import new_id, now_us
from aetherscale.kernel.calls import Call
from aetherscale.kernel.registry import Registry
from aetherscale.kernel.replies import is_final
from aetherscale.kernel.wire import encode
from aetherscale.runtime.component import Driver
from aetherscale.runtime.node import Node, Ports
from benchmarks import libvirt
from benchmarks.harness import OURS, Context, Row, Samples, Target, Turn
from benchmarks.images import bare_image
from benchmarks.logs import TENANT, open_log
from benchmarks.rows_log import sync_turn
from benchmarks.served import node, wire
from benchmarks.wire import Wire

CREATES: Final = 200
ALONE: Final = 50
TOGETHER: Final = 512
IN_FLIGHT: Final = 128


@asynccontextmanager
async def accepts(context: Context) -> AsyncIterator[Mapping[str, Turn]]:
    """VMs are created by 1 and by 64 clients, on a real log and a simulated host."""
    log = await open_log(context.directory / "state")
    networking = SimulatedNetworking(SimulatedNetworks())
    drivers: dict[str, Driver[Any, Any]] = {
        "network": networking,
        "firewall": Groups(networking),
        "compute": SimulatedDriver(SimulatedHost(), networking),
        "images": SimulatedImages(),
    }
    node = Node(components(), Ports(log, drivers, now_us, new_id), {kind.name: Registry() for kind in kinds()})
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


@asynccontextmanager
async def served_accepts(context: Context) -> AsyncIterator[Mapping[str, Turn]]:
    """The same over NATS, from a node in a process of its own."""
    directory = context.directory / "state"
    numbers = itertools.count(1)
    async with node(directory), libvirt.beside("accept", times=160, clients=8) as peers:
        plain = wire(directory)
        source = str(bare_image(context.directory))
        image = msgspec.json.encode({"source": source, "name": "bare", "ready": "none"})
        try:
            await asyncio.to_thread(plain.ask, f"aether.v1.{TENANT}.cmd.images.import-image", image)
            yield {
                OURS: lambda: asyncio.to_thread(served_turn, plain, numbers),
                "fdatasync": partial(sync_turn, context.directory / "sync"),
                **peers,
            }
        finally:
            plain.close()


def served_turn(plain: Wire, numbers: Iterator[int]) -> Samples:
    """Milliseconds to the first reply with one command at a time; first replies per second with many under way."""
    subject = f"aether.v1.{TENANT}.cmd.compute.create-vm"

    def creates(times: int) -> list[bytes]:
        return [msgspec.json.encode({"image": "bare", "name": f"vm-{next(numbers)}"}) for _ in range(times)]

    alone = [plain.ask_many(subject, [each], 1)[0][0] for each in creates(ALONE)]
    _, took_s = plain.ask_many(subject, creates(TOGETHER), IN_FLIGHT)
    return {"ms": alone, "accepts/s": [TOGETHER / took_s]}


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
    Row(
        "accept-nats",
        "a command durably accepted, from its publication to its first reply over NATS",
        served_accepts,
        (Target("ms", "<=", 3), Target("accepts/s", ">=", 1000)),
        note=f"`create-vm` on a simulated host: 1 at a time for ms, {IN_FLIGHT} under way for accepts/s, while the "
        "node makes those VMs. libvirt defines domains, by 1 client and by 8: a file each, not synced.",
        peers=("libvirt",),
    ),
)
