"""The world around a node: everything that outlives its process, and everything that may go wrong.

A process of the node reaches the world through ports (`ports.py`), each call of which passes `World.pass_through`. That
is where the world kills the process: before the call has any effect, or after it and before the caller learns of it.
From then on the process is fenced: whatever it still calls has no effect.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Final, TypeVar

from aetherscale.actors.compute.model.decide import COMPUTE
from aetherscale.actors.compute.model.effects import BootVm, ComputeEffect
from aetherscale.actors.compute.model.events import VmExited
from aetherscale.actors.compute.model.state import Vm
from aetherscale.actors.compute.simulated.host import Behaviour, SimulatedHost, SimulatedProcess
from aetherscale.actors.compute.simulated.inits import GuestDisk
from aetherscale.actors.images.simulated.driver import SimulatedStore
from aetherscale.actors.network.model.decide import NETWORKS
from aetherscale.actors.network.model.state import Network
from aetherscale.bus.memory import MemoryBroker, MemoryBus
from aetherscale.components import components
from aetherscale.eventstore.codec import Codec
from aetherscale.eventstore.memory import MemoryLog
from aetherscale.eventstore.projections import Snapshot
from aetherscale.kernel.fault import Fault
from aetherscale.kernel.registry import event_types
from tests.simulation import catalogued, inits
from tests.simulation.faults import CALM, Faults
from tests.simulation.hotports import Draws
from tests.simulation.jetstream import JetStream
from tests.simulation.loop import PROCESS, VirtualLoop
from tests.simulation.networks import WatchedNetworks
from tests.simulation.violation import Violation as Violation
from tests.support.port_component import PORTS

T = TypeVar("T")

NODE: Final = "host1"
EPOCH: Final = "00000000000000e1"
NOON_US: Final = 1_800_000_000_000_000
CLOCK_IS_SET: Final = 0.4
"""How probable it is at each turn of what meddles."""
COMPONENTS: Final = (*components(), PORTS)
"""One more than a node has: its aggregates hold several exclusive keys, some of them the node's."""
CODEC: Final = Codec(event_types(tuple(component.kind for component in COMPONENTS)))


class World:
    """One host with its disk, its guests and its broker, and at most one process of the node at a time."""

    def __init__(self, seed: int, loop: VirtualLoop) -> None:
        self.chance = random.Random(seed)  # noqa: S311 - a run has to be repeatable
        self.faults = Faults(self.chance)
        self.ports = Draws(seed)
        self.inits = inits.Draws(seed)
        self.catalogue = catalogued.Draws(seed)
        self.past_disks: dict[str, GuestDisk] = {}
        """What guests had written down whose VMs are gone."""
        self.clock = HostClock(seed, loop.time)
        self.loop = loop
        self.log = MemoryLog(NODE, EPOCH, "0.1.0")
        self.snapshots: dict[str, list[tuple[str, str, Snapshot]]] = {}
        self.host = WatchedHost(self)
        self.images = SimulatedStore()
        self.networks = WatchedNetworks(self)
        self.deaths: dict[tuple[str, int], tuple[int | None, int | None]] = {}
        """How the process of a VM's run really ended: exit code and signal."""
        self.broker = MemoryBroker(lambda members: self.chance.randrange(members))
        self.jetstream = JetStream(self.broker, loop.time)
        self.connections: dict[int, MemoryBus] = {}
        self.process = 0
        """The number of the node's process; 0 while there is none."""
        self.started = 0
        self.killed = asyncio.Event()
        self.trace: list[str] = []
        self.is_in_doubt = False
        """Whether the process does not know what its log has, so that it ends."""
        self.mistake = ""
        """What the node itself logged as a mistake of its own."""
        self.calls = 0
        self.kill_at = 0
        """Which call of a port is the last one of the process; 0 for none."""
        self._ids = 0

    # --- time and names ------------------------------------------------------------------------------------------

    def now_us(self) -> int:
        """The time on the host's clock."""
        return self.clock.now_us()

    def new_id(self) -> str:
        """An id that nobody else has."""
        self._ids += 1
        return f"id-{self._ids}"

    def note(self, what: str) -> None:
        """Remember it for the trace of a failing run."""
        self.trace.append(f"{self.loop.time():12.6f}  {self.process or '-':>3}  {what}")

    # --- the process ---------------------------------------------------------------------------------------------

    def begin_process(self) -> int:
        """A new process of the node; its number."""
        self.started += 1
        self.process = self.started
        self.is_in_doubt = False
        self.killed = asyncio.Event()
        self.calls = 0
        self.kill_at = self.faults.kill_at()
        self.note(f"the node starts; it dies at call {self.kill_at or 'none'}")
        return self.process

    def kill(self, why: str) -> None:
        """SIGKILL: nothing of the process has any effect from now on."""
        if self.process:
            self.note(f"SIGKILL {why}")
            number, self.process = self.process, 0
            self.loop.kill(number)
            if (bus := self.connections.pop(number, None)) is not None:
                bus.vanish()
            for process in self.host.processes.values():
                process.leave_alone()
            self.log.crash()
            self.killed.set()

    def reboot(self) -> None:
        """The host goes down and comes back, once no process of the node is there."""
        self.note("the host is rebooted")
        self.host.reboot()
        self.networks.reboot(self.host.boot_id)

    async def require_alive(self, process: int) -> None:
        """Whoever is dead gets no further."""
        if process != self.process:
            await asyncio.Event().wait()

    async def pass_through(
        self, process: int, name: str, work: Callable[[], Awaitable[T]], *, at_once: bool = False
    ) -> T:
        """A call of a port, with all that may happen around it; `at_once`, it does not wait before it begins."""
        await self.require_alive(process)
        self.calls += 1
        dies_here = self.calls == self.kill_at
        dies_before = dies_here and self.faults.dies_before()
        if dies_before:
            self.kill(f"before {name}")
        await self.require_alive(process)
        if not at_once and (delay_s := self.faults.delay_s(name)):
            await asyncio.sleep(delay_s)
            await self.require_alive(process)
        result = await work()
        await self.require_alive(process)
        if dies_here:
            self.kill(f"after {name}")
        await self.require_alive(process)
        return result

    # --- what the log says ---------------------------------------------------------------------------------------

    def vm_ids(self) -> list[str]:
        """All VMs that the durable log knows."""
        return [stream.removeprefix("vm-") for stream in self.log.streams if stream.startswith("vm-")]

    def network_ids(self) -> list[str]:
        """All networks that the durable log knows."""
        return [stream.removeprefix("network-") for stream in self.log.streams if stream.startswith("network-")]

    def exits(self, vm_id: str) -> set[int]:
        """The runs of a VM of which the durable log has the end."""
        events = (CODEC.decode(stored).event for stored in self.log.streams.get(f"vm-{vm_id}", ()))
        return {event.run for event in events if isinstance(event, VmExited)}

    def vm(self, vm_id: str) -> Vm | None:
        """A VM as of the durable log."""
        state: Vm | None = None
        for stored in self.log.streams.get(f"vm-{vm_id}", ()):
            state = COMPUTE.evolve(state, CODEC.decode(stored).event, stored.time_us)  # type: ignore[arg-type]
        return state

    def network(self, network_id: str) -> Network | None:
        """A network as of the durable log."""
        state: Network | None = None
        for stored in self.log.streams.get(f"network-{network_id}", ()):
            state = NETWORKS.evolve(state, CODEC.decode(stored).event, stored.time_us)  # type: ignore[arg-type]
        return state


class HostClock:
    """The clock of the host. It is set in one run of three, by draws of its own, so that no other run changes."""

    def __init__(self, seed: int, passed_s: Callable[[], float]) -> None:
        self._chance = random.Random(f"clock {seed}")  # noqa: S311 - a run has to be repeatable
        self._passed_s = passed_s
        self._set_us = 0
        self._is_set = self._chance.random() < 1 / 3

    def now_us(self) -> int:
        """What it shows."""
        return NOON_US + int(self._passed_s() * 1e6) + self._set_us

    def may_be_set(self) -> float:
        """Set it now and then, to an earlier or a later time; by how many seconds it went on or, below zero, back."""
        if not self._is_set or self._chance.random() >= CLOCK_IS_SET:
            return 0.0
        step_s = self._chance.choice([-43_200.0, -3_600.0, -61.0, -0.5, 0.5, 61.0, 3_600.0])
        self._set_us += int(step_s * 1e6)
        return step_s


class WatchedHost(SimulatedHost):
    """A host that nobody may do to what was not asked for."""

    def __init__(self, world: World) -> None:
        super().__init__(
            behaviour=self._behaviour, image_mib=lambda image_id: 1 if image_id in world.images.images else None
        )
        self._world = world
        self.interfere = self._interfere

    def exec(self, effect: BootVm) -> SimulatedProcess:
        """Start a process, which has to be the only one of its VM."""
        if self.live(effect.vm_id) is not None:
            raise Violation(f"a second process of VM {effect.vm_id}")
        vm = self._world.vm(effect.vm_id)
        if vm is None or vm.run.number < effect.run:
            raise Violation(f"run {effect.run} of {effect.vm_id} was started before the log says that it is to be")
        self._world.note(f"exec {effect.vm_id} run {effect.run}")
        self._last_pid += 1
        process = WatchedProcess(self, effect, self._last_pid, self.behaviour(effect.vm_id))
        process.world = self._world
        self.processes[effect.vm_id] = process
        if effect.ports != vm.run.ports:
            raise Violation(f"{effect.vm_id} got the ports {effect.ports}, the log has {vm.run.ports}")
        self._world.networks.check()
        return process

    def gets_an_orphan(self) -> None:
        """Somebody copies the directory of a VM that is none of the log's, or starts what the log has at rest."""
        chance = self._world.chance
        vm_id = chance.choice([f"1{chance.getrandbits(60):015x}", *self._world.vm_ids()])
        vm = self._world.vm(vm_id)
        if self.live(vm_id) is not None or (vm is not None and (COMPUTE.pending(vm) is not None or vm.run.process)):
            return
        self._world.note(f"an orphan: {vm_id}")
        self.disks.setdefault(vm_id, 1)
        if chance.random() < 0.5:
            effect = BootVm("", vm_id, 1, 1, 64, "none")
            self._last_pid += 1
            process = self.processes[vm_id] = WatchedProcess(self, effect, self._last_pid, CALM)
            process.world = self._world
            process.is_child = False
            process.is_orphan = True

    def _behaviour(self, vm_id: str) -> Behaviour:
        world = self._world
        of_guest = world.ports.behaviour(world.faults.behaviour(), is_calm=not world.faults.active)
        return world.inits.behaviour(of_guest, is_calm=not world.faults.active)

    def remove(self, vm_id: str) -> None:
        """Nothing is left of the VM but what is to be checked."""
        if vm_id in self.guest_disks:
            self._world.past_disks[vm_id] = self.guest_disks[vm_id]
        super().remove(vm_id)

    async def _interfere(self, effect: ComputeEffect) -> None:
        trouble = self._world.faults.trouble(type(effect).__name__)
        if trouble is not None:
            self._world.note(f"{type(effect).__name__} {effect.vm_id}: {trouble}")
        match trouble:
            case "hang":
                await asyncio.Event().wait()
            case "fail":
                raise Fault("the host said no", retryable=True)
            case "refuse":
                raise Fault("the host said never", retryable=False)
            case None:
                pass


class WatchedProcess(SimulatedProcess):
    """A guest that dies only where somebody asked for it, or by its own fault."""

    world: World
    is_orphan = False
    """Whether it was put there by somebody else than the node."""

    def die(self, code: int | None, signal: int | None) -> None:
        """The process ends."""
        if not self.gone.is_set():
            self.world.note(f"{self.vm_id} run {self.run} ends: code {code}, signal {signal}")
        if not self.gone.is_set() and not self.is_orphan:
            if self.is_asked_to_go and not self._may_go():
                raise Violation(f"VM {self.vm_id} was ended, and nobody had asked for it")
            if self.run in self.world.exits(self.vm_id):
                raise Violation(f"the log had the end of run {self.run} of {self.vm_id} while it lived")
        if not self.gone.is_set() and not self.is_orphan:
            self.world.deaths[self.vm_id, self.run] = (code, signal)
        super().die(code, signal)

    def _may_go(self) -> bool:
        """Whether the log says that this run is over, is being stopped, or never came up."""
        vm = self.world.vm(self.vm_id)
        if vm is None or vm.run.number != self.run or self._ended_as is not None:
            return True
        return vm.requested != "running" or vm.shown in ("stopping", "failed", "booting")

    def after(self, delay_s: float | None, what: Callable[[], None]) -> None:
        # What a guest does is no part of the process that has started it.
        if delay_s is not None:
            context = Context()
            context.run(PROCESS.set, 0)
            loop = asyncio.get_running_loop()
            self._timers.append(loop.call_later(delay_s, what, context=context))
