"""The real ports: this host, its files, its nats-server and its QEMU. `app.py` puts a node together from them.

A simulation gives `app.running` another `Platform`, of the same shape, in which nothing is real but the node.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final, Protocol

from msgspec import Struct
from msgspec.structs import replace

from aetherscale import __version__, statedir
from aetherscale.bus.bus import Bus
from aetherscale.bus.callers import Callers, NatsCallers
from aetherscale.bus.embedded import EmbeddedServer
from aetherscale.bus.endpoint import Endpoint, outside, write_endpoint
from aetherscale.bus.nats import NatsBus
from aetherscale.bus.serverconf import ACCOUNT
from aetherscale.eventstore.groupcommit import LogStore
from aetherscale.eventstore.integrity import is_large, prove
from aetherscale.eventstore.projections import SnapshotStore
from aetherscale.eventstore.sqlite import open_store
from aetherscale.eventstore.sqlite.opening import owner_of
from aetherscale.eventstore.sqlite.snapshots import SqliteSnapshots
from aetherscale.eventstore.store import Damaged, StoreError
from aetherscale.identifiers import boot_id, new_epoch, new_id, now_us
from aetherscale.runtime import memory
from aetherscale.runtime.audit import audit
from aetherscale.runtime.component import Component, Driver
from aetherscale.runtime.component import Host as DriverHost
from aetherscale.runtime.guard import guard
from aetherscale.runtime.publisher import not_ours
from aetherscale.settings import Settings

LOG_NAME: Final = "events.db"
CONNECT_S: Final = 5.0
"""How long the start waits for an outside NATS server before it goes on without."""

Endpoints = Callable[[], Endpoint]
"""Where the broker is now: one of our own may come back elsewhere."""


class Broker(Struct, frozen=True):
    """A broker, and the way into its system account where it is one of our own."""

    endpoint: Endpoints
    system: Endpoints | None = None
    lost: Callable[[], str] = not_ours
    """Why one of our own has no JetStream, and what is done about it; "" where it has it."""


class Capacity(Struct, frozen=True):
    """The resources of a host: CPUs that the node may use, memory, and how much of that is free."""

    cpus: int
    memory_mib: int
    memory_available_mib: int


class Platform(Protocol):
    """Everything outside of the process that a node stands on. What is opened is closed through the stack."""

    def now_us(self) -> int:
        """The time now, in microseconds since 1970 UTC."""
        ...

    def new_id(self) -> str:
        """A new, unique id."""
        ...

    def boot_id(self) -> str:
        """Names the time since the host was started last."""
        ...

    def capacity(self) -> Capacity:
        """The resources of the host."""
        ...

    def prepare(self, settings: Settings) -> Settings:
        """Make the state directory ready; the settings with what is found there. Raises OSError."""
        ...

    async def open_store(self, settings: Settings) -> LogStore:
        """The event log, open for writing, and trusted so far. Raises `StoreError`, OSError."""
        ...

    async def open_snapshots(self, settings: Settings) -> SnapshotStore:
        """Where snapshots are kept."""
        ...

    async def find_broker(self, settings: Settings, stack: AsyncExitStack) -> Broker:
        """The broker that the settings name, or one of our own. Raises `EmbeddedServerError`."""
        ...

    async def connect(self, broker: Broker, settings: Settings, stack: AsyncExitStack) -> Bus:
        """A connection that stands, or will as soon as the broker is there."""
        ...

    async def callers(self, broker: Broker, bus: Bus, settings: Settings, stack: AsyncExitStack) -> Callers:
        """The senders of messages on the bus."""
        ...

    def open_driver(self, component: Component[Any, Any], host: DriverHost) -> Driver[Any, Any]:
        """The driver of a component."""
        ...

    def audit(self, settings: Settings) -> Coroutine[None, None, Damaged | None] | None:
        """A proof of the log that takes too long for the start, with the damage that it finds; None for no need."""
        ...

    def guard(self, settings: Settings) -> Coroutine[None, None, StoreError]:
        """Waits until the state directory can no longer be used, and says why."""
        ...


class Host:
    """This host."""

    def now_us(self) -> int:
        """As in `Platform`."""
        return now_us()

    def new_id(self) -> str:
        """As in `Platform`."""
        return new_id()

    def boot_id(self) -> str:
        """As in `Platform`."""
        return boot_id()

    def capacity(self) -> Capacity:
        """As in `Platform`: what this process may have, where its control groups leave it less than the host has."""
        room = memory.room(memory.groups_of())
        return Capacity(len(os.sched_getaffinity(0)), room.total_mib, room.available_mib)

    def prepare(self, settings: Settings) -> Settings:
        """As in `Platform`. A node without a given name has that of its log: hosts are renamed."""
        statedir.make(settings.state_dir)
        if settings.is_named:
            return settings
        with contextlib.suppress(StoreError):  # what is wrong with the log is said when it is opened
            return replace(settings, node=owner_of(_log(settings)) or settings.node)
        return settings

    async def open_store(self, settings: Settings) -> LogStore:
        """As in `Platform`."""
        path = _log(settings)
        if path.exists() and not is_large(path):
            # Nothing is written to a damaged log. A large one is proved while the node runs: see `audit.py`.
            await asyncio.to_thread(prove, path)
        return await open_store(path, node=settings.node, epoch=new_epoch(), now_us=now_us(), program=__version__)

    async def open_snapshots(self, settings: Settings) -> SnapshotStore:
        """As in `Platform`."""
        return await SqliteSnapshots.open(settings.state_dir / "snapshots.db")

    async def find_broker(self, settings: Settings, stack: AsyncExitStack) -> Broker:
        """As in `Platform`."""
        if settings.nats_url is not None:
            at = outside(settings.nats_url, settings.nats_files)
            write_endpoint(settings.state_dir, at, settings.run_dir)
            return Broker(lambda: at)
        server = EmbeddedServer(settings.state_dir, settings.node, run_dir=settings.run_dir)
        stack.push_async_callback(server.close)
        await server.start()
        return Broker(lambda: server.endpoint, lambda: server.system, lambda: server.trouble)

    async def connect(self, broker: Broker, settings: Settings, stack: AsyncExitStack) -> Bus:
        """As in `Platform`."""
        bus = NatsBus(broker.endpoint, name=f"aetherscale {settings.node}", clock=now_us)
        stack.push_async_callback(bus.close)
        await bus.start(CONNECT_S)
        return bus

    async def callers(self, broker: Broker, bus: Bus, settings: Settings, stack: AsyncExitStack) -> Callers:
        """As in `Platform`."""
        if broker.system is None:
            callers = NatsCallers(bus, broker.endpoint)
        else:
            system = NatsBus(broker.system, name=f"aetherscale {settings.node} callers", clock=now_us)
            stack.push_async_callback(system.close)
            await system.start(CONNECT_S)
            callers = NatsCallers(system, broker.system, account=ACCOUNT)
        stack.push_async_callback(callers.close)
        await callers.start()
        return callers

    def open_driver(self, component: Component[Any, Any], host: DriverHost) -> Driver[Any, Any]:
        """As in `Platform`."""
        return component.open_driver(host)

    def audit(self, settings: Settings) -> Coroutine[None, None, Damaged | None] | None:
        """As in `Platform`."""
        return audit(settings.state_dir) if is_large(_log(settings)) else None

    def guard(self, settings: Settings) -> Coroutine[None, None, StoreError]:
        """As in `Platform`."""
        return guard(settings.state_dir)


def _log(settings: Settings) -> Path:
    return settings.state_dir / LOG_NAME
