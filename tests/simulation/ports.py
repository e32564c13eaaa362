"""The ports of one process of the node, on a world. Each call passes through the world, which may end the process.

They are `aetherscale.runtime.host.Platform`, so that what runs on them is the whole of `aetherscale.runtime.app`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from contextvars import Context, copy_context
from typing import Any, TypeVar

from msgspec.structs import replace

from aetherscale.actors.compute.driver import (
    Console,
    ExecResult,
    Found,
    HostLimits,
    LogRange,
    OnHost,
    PipedProgram,
    Process,
    Terminal,
    Window,
)
from aetherscale.actors.compute.model.decide import ComputeMessage
from aetherscale.actors.compute.model.effects import ComputeEffect, ComputeOutcome, Forward
from aetherscale.actors.compute.model.figures import Figures
from aetherscale.actors.compute.model.guestfacts import GuestFacts
from aetherscale.actors.compute.model.state import Vm
from aetherscale.actors.compute.readers import RECENT_BYTES
from aetherscale.actors.compute.reconcile import reconcile
from aetherscale.actors.compute.simulated.driver import SimulatedDriver
from aetherscale.actors.images.model import effects as images
from aetherscale.actors.images.simulated.driver import SimulatedImages
from aetherscale.actors.network.ports import FIREWALL, VM_PORTS, Firewall, VmPorts
from aetherscale.bus.bus import Bus, Handler, Subscription
from aetherscale.bus.callers import Callers, Strangers
from aetherscale.bus.endpoint import Endpoint
from aetherscale.eventstore.backend import Outcome
from aetherscale.eventstore.groupcommit import LogStore
from aetherscale.eventstore.memory import MemoryBackend
from aetherscale.eventstore.projections import KEPT_SNAPSHOTS, Snapshot, SnapshotStore
from aetherscale.eventstore.store import Append, Damaged, InDoubt, Reading, StoreError
from aetherscale.kernel.failures import EffectFailed
from aetherscale.runtime.component import Component, Driver, Host, Progress, Report
from aetherscale.runtime.host import Broker, Capacity
from aetherscale.settings import Settings
from tests.simulation.catalogued import check_given
from tests.simulation.inits import SimulatedKeeping
from tests.simulation.wires import SimulatedWires
from tests.simulation.world import World

T = TypeVar("T")


class SimulatedPlatform:
    """Everything outside of process `number` of the node."""

    def __init__(self, world: World, number: int) -> None:
        self._world = world
        self._number = number
        self._context = copy_context()

    def now_us(self) -> int:
        return self._world.now_us()

    def new_id(self) -> str:
        return self._world.new_id()

    def boot_id(self) -> str:
        return self._world.host.boot_id

    def capacity(self) -> Capacity:
        return Capacity(cpus=4, memory_mib=8192, memory_available_mib=4096)

    def prepare(self, settings: Settings) -> Settings:
        return settings

    async def open_store(self, settings: Settings) -> LogStore:
        backend = SimulatedBackend(self._world, self._number)
        return await LogStore.start(backend)

    async def open_snapshots(self, settings: Settings) -> SnapshotStore:
        return SimulatedSnapshots(self._world, self._number)

    async def find_broker(self, settings: Settings, stack: AsyncExitStack) -> Broker:
        endpoint = Endpoint("nats://simulated")
        return Broker(lambda: endpoint)

    async def connect(self, broker: Broker, settings: Settings, stack: AsyncExitStack) -> Bus:
        bus = SimulatedBus(self._world, self._number, self._context)
        stack.push_async_callback(bus.close)
        return bus

    async def callers(self, broker: Broker, bus: Bus, settings: Settings, stack: AsyncExitStack) -> Callers:
        return Strangers()

    def open_driver(self, component: Component[Any, Any], host: Host) -> Driver[Any, Any]:
        if component.name == "compute":
            return SimulatedHand(self._world, self._number, self._context, host.port(VM_PORTS), host.port(FIREWALL))
        if component.name == "network":
            return SimulatedWires(self._world, self._number, self._context)
        if component.name == "images":
            return SimulatedDisk(self._world, self._number)
        return component.open_simulated(host)

    def audit(self, settings: Settings) -> Coroutine[None, None, Damaged | None] | None:
        return None

    async def guard(self, settings: Settings) -> StoreError:
        return await asyncio.Future()


class SimulatedBackend(MemoryBackend):
    """A log that may fail in the middle of a commit."""

    def __init__(self, world: World, number: int) -> None:
        super().__init__(world.log)
        self._world, self._number = world, number

    async def commit(self, appends: Sequence[Append]) -> Sequence[Outcome]:
        async def work() -> Sequence[Outcome]:
            trouble = self._world.faults.log_trouble()
            if trouble is not None:
                self._world.note(f"a commit is {trouble}")
                self._world.is_in_doubt = True
                if trouble == "in doubt, kept":
                    await MemoryBackend.commit(self, appends)
                raise InDoubt("append: the sync failed")
            return await MemoryBackend.commit(self, appends)

        return await self._world.pass_through(self._number, "commit", work)

    async def sync_head(self) -> None:
        await self._world.pass_through(self._number, "sync-head", lambda: MemoryBackend.sync_head(self))

    async def ask(self, question: Callable[[Reading], T]) -> T:
        return await self._world.pass_through(self._number, "read", lambda: MemoryBackend.ask(self, question))


class SimulatedSnapshots:
    """Snapshots on a disk that may forget the newest, or keep half of it."""

    def __init__(self, world: World, number: int) -> None:
        self._world, self._number = world, number

    async def snapshots(self, name: str, fingerprint: str, epoch: str) -> Sequence[Snapshot]:
        async def work() -> Sequence[Snapshot]:
            return [kept for *belongs, kept in self._world.snapshots.get(name, []) if belongs == [fingerprint, epoch]]

        return await self._world.pass_through(self._number, "snapshots", work)

    async def save(self, name: str, fingerprint: str, epoch: str, snapshot: Snapshot) -> None:
        async def work() -> None:
            faults = self._world.faults
            if faults.happens(0.1):
                return
            torn = replace(snapshot, state=snapshot.state[: len(snapshot.state) // 2])
            kept = torn if faults.happens(0.1) else snapshot
            others = [each for each in self._world.snapshots.get(name, []) if each[2].position < snapshot.position]
            self._world.snapshots[name] = [(fingerprint, epoch, kept), *others][:KEPT_SNAPSHOTS]

        await self._world.pass_through(self._number, "save snapshot", work)

    async def close(self) -> None:
        """Nothing is open."""


class SimulatedBus:
    """One process's connection to the broker; handlers run as part of the process, while it lives."""

    def __init__(self, world: World, number: int, context: Context) -> None:
        self._world, self._number, self._context = world, number, context
        self._bus = world.broker.connect(world.now_us)
        world.connections[number] = self._bus

    @property
    def disconnected_since_us(self) -> int | None:
        return self._bus.disconnected_since_us

    @property
    def trouble(self) -> str:
        return self._bus.trouble

    @property
    def max_body_bytes(self) -> int:
        return self._bus.max_body_bytes

    def inbox(self) -> str:
        return self._bus.inbox()

    async def listen(self, subject: str, queue: str, handler: Handler) -> Subscription:
        await self._world.require_alive(self._number)
        return await self._bus.listen(subject, queue, lambda incoming: self._as_process(lambda: handler(incoming)))

    async def publish(
        self, subject: str, body: bytes, headers: Mapping[str, str] | None = None, *, reply: str = ""
    ) -> None:
        await self._world.pass_through(
            self._number, "publish", lambda: self._bus.publish(subject, body, headers, reply=reply)
        )

    async def request(
        self, subject: str, body: bytes, headers: Mapping[str, str] | None = None, *, timeout_s: float
    ) -> AsyncIterator[bytes]:
        await self._world.require_alive(self._number)
        async for chunk in self._bus.request(subject, body, headers, timeout_s=timeout_s):
            await self._world.require_alive(self._number)
            yield chunk

    def on_reconnect(self, call: Callable[[], None]) -> None:
        self._bus.on_reconnect(lambda: self._as_process(call))

    async def close(self) -> None:
        await self._bus.close()

    def _as_process(self, what: Callable[[], None]) -> None:
        if self._number == self._world.process:
            self._context.run(what)


class SimulatedHand:
    """One process's hand on the host's guests."""

    def __init__(self, world: World, number: int, context: Context, ports: VmPorts, firewall: Firewall) -> None:
        self._world, self._number, self._context = world, number, context
        self._ports, self._firewall = ports, firewall
        self._driver = SimulatedDriver(world.host, ports, firewall)
        self.scripts = SimulatedKeeping(world, number, self._driver)

    @property
    def limits(self) -> HostLimits:
        return self._driver.limits

    async def start(self, report: Report[ComputeMessage]) -> None:
        def told(observation: ComputeMessage) -> Awaitable[Any]:
            if self._number == self._world.process:
                return self._context.run(report, observation)
            return asyncio.Future()

        self._told = told
        await self._driver.start(told)

    async def reconcile(self, expected: Mapping[str, Vm]) -> None:
        await reconcile(self, self._ports, self._firewall, expected, self._world.host.boot_id, self._told)

    async def perform(self, effect: ComputeEffect, progress: Progress) -> ComputeOutcome:
        async def work() -> ComputeOutcome:
            check_given(self._world, effect)
            outcome = await self._driver.perform(effect, progress)
            if self._world.faults.loses_answer():
                self._world.note(f"{type(effect).__name__} {effect.vm_id}: done, and told as failed")
                return EffectFailed(effect.key, "the host did it, and did not say so")
            return outcome

        return await self._world.pass_through(self._number, type(effect).__name__, work)

    async def figures(self) -> Mapping[str, Figures]:
        return await self._driver.figures()

    async def adopt(self, process: Process) -> bool:
        return await self._world.pass_through(self._number, "adopt", lambda: self._driver.adopt(process))

    def watches(self, vm_id: str, run: int) -> bool:
        return self._driver.watches(vm_id, run)

    async def inventory(self) -> Sequence[Found]:
        return await self._world.pass_through(self._number, "inventory", self._driver.inventory)

    async def console(self, vm_id: str, past_bytes: int = RECENT_BYTES) -> Console:
        return await self._driver.console(vm_id, past_bytes)

    async def terminal(self, vm_id: str, argv: Sequence[str], window: Window, term: str) -> Terminal:
        return await self._driver.terminal(vm_id, argv, window, term)

    async def program(self, vm_id: str, argv: Sequence[str], *, has_input: bool) -> PipedProgram:
        return await self._driver.program(vm_id, argv, has_input=has_input)

    async def facts(self, vm_id: str) -> GuestFacts:
        return await self._driver.facts(vm_id)

    def on_host(self, vm_id: str) -> OnHost:
        return self._driver.on_host(vm_id)

    def require_free(self, forward: Forward) -> None:
        self._driver.require_free(forward)

    def logs(self, vm_id: str, wanted: LogRange, *, follow: bool) -> AsyncIterator[bytes]:
        return self._driver.logs(vm_id, wanted, follow=follow)

    async def execute(self, vm_id: str, argv: Sequence[str], timeout_s: float, stdin: bytes = b"") -> ExecResult:
        return await self._driver.execute(vm_id, argv, timeout_s, stdin)

    async def close(self) -> None:
        await self._driver.close()


class SimulatedDisk:
    """One process's hand on the host's image files."""

    def __init__(self, world: World, number: int) -> None:
        self._world, self._number = world, number
        self._driver = SimulatedImages(world.images)
        self.catalogue = self._driver.catalogue

    async def start(self, report: Report[Any]) -> None:
        await self._driver.start(report)

    async def reconcile(self, expected: Mapping[str, Any]) -> None:
        await self._driver.reconcile(expected)

    async def close(self) -> None:
        await self._driver.close()

    async def perform(self, effect: images.ImagesEffect, progress: Progress) -> images.ImagesOutcome:
        return await self._world.pass_through(
            self._number, type(effect).__name__, lambda: self._perform(effect, progress)
        )

    async def _perform(self, effect: images.ImagesEffect, progress: Progress) -> images.ImagesOutcome:
        match self._world.faults.trouble(type(effect).__name__):
            case "hang":
                await asyncio.sleep(600)
            case "fail":
                return EffectFailed(effect.key, "the host said no")
            case "refuse":
                return EffectFailed(effect.key, "the host said never", retryable=False)
            case None:
                pass
        return await self._driver.perform(effect, progress)
