"""A node on ports that live in memory: the log, the host and the images survive the node, as files and guests do."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

from aetherscale.actors.compute.simulated.driver import SimulatedDriver
from aetherscale.actors.compute.simulated.host import SimulatedHost
from aetherscale.actors.firewall.driver import Groups
from aetherscale.actors.images.simulated.driver import SimulatedImages, SimulatedStore
from aetherscale.actors.network.simulated.driver import SimulatedNetworking
from aetherscale.actors.network.simulated.host import SimulatedNetworks
from aetherscale.bus import refusals
from aetherscale.components import components, kinds
from aetherscale.eventstore.codec import Codec
from aetherscale.eventstore.groupcommit import LogStore
from aetherscale.eventstore.log import EventLog
from aetherscale.eventstore.memory import MemoryBackend, MemoryLog
from aetherscale.kernel.calls import Call
from aetherscale.kernel.errors import Refused
from aetherscale.kernel.messages import Recorded
from aetherscale.kernel.registry import Registry, apply, event_types
from aetherscale.kernel.replies import Chunk
from aetherscale.kernel.wire import encode
from aetherscale.runtime.component import Driver
from aetherscale.runtime.node import Node, Ports

PATIENCE_S = 30.0


class MemoryNode:
    """One node after the other on one world in memory."""

    def __init__(self) -> None:
        self.world = MemoryLog("host1", "epoch1")
        self.host = SimulatedHost()
        self.images = SimulatedStore()
        self.networks = SimulatedNetworks()
        self.networks.boot_id = self.host.boot_id
        self.now_us = 1_800_000_000_000_000
        self._ids = itertools.count(1)
        self.node: Node | None = None
        self.log: EventLog | None = None
        self.store: LogStore | None = None

    async def start(self) -> None:
        """A new process: everything that it knows it has from the log and the host."""
        self.store = await self.open_store()
        self.log = EventLog(self.store, Codec(event_types(kinds())))
        registries: dict[str, Registry[Any]] = {kind.name: Registry() for kind in kinds()}
        for recorded in await self.log.read(0, 1_000_000):
            for kind in kinds():
                apply(kind, registries[kind.name], recorded)
        networking = SimulatedNetworking(self.networks)
        drivers: dict[str, Driver[Any, Any]] = {
            "network": networking,
            "firewall": Groups(networking),
            "compute": SimulatedDriver(self.host, networking, networking),
            "images": SimulatedImages(self.images),
        }
        self.node = Node(components(), Ports(self.log, drivers, self.clock, self.new_id), registries)
        await self.node.start()

    async def open_store(self) -> LogStore:
        """The log as this process writes to it."""
        return await LogStore.start(MemoryBackend(self.world))

    async def close(self) -> None:
        """The process ends, at whatever it was."""
        assert self.node is not None
        assert self.log is not None
        await self.node.close()
        await self.log.close()
        self.world.crash()

    def clock(self) -> int:
        """Every look at the clock is a microsecond later."""
        self.now_us += 1
        return self.now_us

    def new_id(self) -> str:
        return f"id-{next(self._ids)}"

    async def ask(
        self,
        component: str,
        task: str,
        options: dict[str, Any] | None = None,
        *,
        key: str | None = None,
        tenant: str = "default",
        deadline_us: int | None = None,
        object_id: str = "",
        legacy: bool = False,
        revisions: tuple[str, ...] = (),
        dry_run: bool = False,
    ) -> Sequence[Chunk]:
        """All chunks of an answer, in the form that they have on the wire."""
        assert self.node is not None
        call = Call(
            tenant=tenant,
            component=component,
            task=task,
            body=encode(options or {}),
            actor="user:test",
            command_id=key or self.new_id(),
            keyed=key is not None,
            correlation_id="corr",
            deadline_us=deadline_us,
            object_id=object_id,
            legacy=legacy,
            revisions=revisions,
            dry_run=dry_run,
        )
        chunks: list[Chunk] = []
        try:
            async for chunk in self.node.serve[component](call):
                chunks.append(chunk)
        except Refused as refused:
            chunks.append(refusals.error(refused))
        return chunks

    async def final(self, component: str, task: str, options: dict[str, Any] | None = None, **more: Any) -> Chunk:
        """The final chunk of an answer."""
        return (await self.ask(component, task, options, **more))[-1]

    async def events(self) -> Sequence[Recorded]:
        """The whole log."""
        assert self.log is not None
        return await self.log.read(0, 1_000_000)

    async def until(self, event_type: str) -> None:
        """Wait until the log has an event of a type."""
        assert self.log is not None
        async with asyncio.timeout(PATIENCE_S), aclosing(self.log.subscribe(0)) as pages:
            async for page in pages:
                if any(type(each.event).__name__ == event_type for each in page):
                    return

    async def types(self) -> list[str]:
        """The types of all events of VMs."""
        return [type(each.event).__name__ for each in await self.events() if each.stream.startswith("vm-")]
