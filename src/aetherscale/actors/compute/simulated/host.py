"""The world of the simulated driver: a host in memory, with disks, processes and boots that outlive any driver.

Its guests behave as the test says. Time passes on the event loop alone, so that a loop of virtual time makes a whole
run instant and repeatable.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, Literal

from aetherscale.actors.compute.driver import Observe, beyond_host
from aetherscale.actors.compute.model.effects import (
    BootVm,
    ComputeEffect,
    ComputeObservation,
    Forward,
    GuestEnded,
    GuestPaused,
    GuestReady,
    GuestResumed,
    PauseReason,
    PortSpec,
    PublishedPort,
    ReadyChannel,
    VmGone,
)
from aetherscale.actors.compute.model.guestfacts import AgentState
from aetherscale.actors.compute.model.publishing import host_port_key
from aetherscale.actors.compute.model.switches import FIELD
from aetherscale.actors.compute.ports import missing_switch
from aetherscale.actors.compute.readers import Readers
from aetherscale.actors.compute.simulated.behaviour import Behaviour as Behaviour
from aetherscale.actors.compute.simulated.inits import GuestDisk, InitRun
from aetherscale.actors.compute.simulated.programs import GuestSessions
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.fault import Fault

LOG_LIMIT_BYTES: Final = 4 * 1024 * 1024
_SIGSEGV: Final = 11
WITHOUT_AGENT: Final = {
    "absent": "no guest agent answers in this VM",
    "silent": "no answer from the guest agent: it says nothing of any use",
}


async def _no_interference(effect: ComputeEffect) -> None:
    return


class SimulatedProcess:
    """One QEMU of a simulated host."""

    def __init__(self, host: SimulatedHost, effect: BootVm, pid: int, behaviour: Behaviour) -> None:
        self.vm_id = effect.vm_id
        self.run = effect.run
        self.pid = pid
        self.start_ticks = pid * 100
        self.boot_id = host.boot_id
        self.begun_s = asyncio.get_running_loop().time()
        self.ready_channel = effect.ready_channel
        self.host_ports = {host_port_key(port) for port in effect.publish}
        self.cards = {port.tap: port for port in effect.ports}
        """The cards that have a cable, by their taps."""
        self.slots: dict[int, str] = {}
        """The taps of the cards that the guest was given while it runs, with a cable or not."""
        self.behaviour = behaviour
        self.gone = asyncio.Event()
        self.guest_ended = asyncio.Event()
        self.exit: tuple[int | None, int | None] = (None, None)
        self.observe: Observe | None = None
        """The node that watches, where there is one."""
        self.is_child = True
        self.is_asked_to_go = False
        self.is_running = False
        self.is_ready = False
        self.agent_lies = False
        self.paused: PauseReason | None = None
        self.readers = Readers(self._typed)
        self.sessions = GuestSessions()
        self._host = host
        self._line = bytearray()
        self._ended_as: GuestEnded | None = None
        self._timers: list[asyncio.TimerHandle] = []
        self._init = InitRun(self, host, gives_script=effect.gives_script)

    def let_run(self) -> None:
        """QMP `cont` of a guest that has not run yet: it begins to do what it does."""
        if self.is_running:
            return
        self.is_running = True
        self.after(self.behaviour.ready_after_s, self.become_ready)
        self.after(self.behaviour.power_off_after_s, lambda: self.end_guest("shutdown"))
        self.after(self.behaviour.panic_after_s, lambda: self.end_guest("panic"))
        self.after(self.behaviour.crash_after_s, lambda: self.die(None, _SIGSEGV))

    @property
    def agent(self) -> AgentState:
        """What whoever asks its agent makes of it."""
        if not self.behaviour.has_agent or not self.is_ready:
            return "absent"
        return "silent" if self.agent_lies else "answers"

    @property
    def has_told_init(self) -> bool:
        """Whether the guest has said how its init script has ended."""
        return self._init.has_told

    def press_power_button(self) -> None:
        """ACPI power-down."""
        self.after(self.behaviour.shutdown_s, lambda: self.end_guest("shutdown"))

    def plug(self, port: PortSpec, slot: int) -> None:
        """QMP `device_add`. Raises `Fault` where the slot is taken."""
        if slot in self.slots:
            raise Fault(f"QEMU does not take the card: slot {slot} is taken by {self.slots[slot]}")
        self.cards[port.tap] = port
        self.slots[slot] = port.tap

    async def unplug(self, tap: str, patience_s: float) -> bool:
        """QMP `device_del`, then `set_link`. Whether the guest has let go of the card."""
        takes_s = self.behaviour.unplug_s
        is_there = tap in self.cards or tap in self.slots.values()
        answers = not self.behaviour.is_unresponsive and self.paused is None
        has_let_go = not is_there or (answers and takes_s is not None and takes_s <= patience_s)
        if is_there:
            with suppress(TimeoutError):
                async with asyncio.timeout(takes_s if has_let_go else patience_s):
                    await self.gone.wait()
        self.cards.pop(tap, None)
        if has_let_go or self.gone.is_set():
            self.slots = {slot: card for slot, card in self.slots.items() if card != tap}
            return True
        return False

    def become_ready(self) -> None:
        """The inside of the guest says so."""
        self.write(b"simulated guest\r\nsim:~# ")
        self.is_ready = True
        self._init.begin()
        self.report(GuestReady(self.vm_id, self.run, self._channel()))

    def end_guest(self, reason: Literal["shutdown", "panic"]) -> None:
        """The guest ends; QEMU holds it."""
        if self._ended_as is None and not self.gone.is_set():
            self._ended_as = GuestEnded(self.vm_id, self.run, reason)
            self.guest_ended.set()
            self.report(self._ended_as)

    def pause(self, reason: PauseReason) -> None:
        """QEMU stops the virtual CPUs."""
        self.paused = reason
        self.report(GuestPaused(self.vm_id, self.run, reason))

    def resume(self) -> None:
        """They run again."""
        self.paused = None
        self.report(GuestResumed(self.vm_id, self.run))

    def die(self, code: int | None, signal: int | None) -> None:
        """The process ends."""
        if self.gone.is_set():
            return
        for timer in self._timers:
            timer.cancel()
        if self.is_child:
            self.exit = (code, signal)
        self.gone.set()
        self.guest_ended.set()
        self.readers.end()
        self.sessions.hang_up()
        if not self.is_asked_to_go:
            self.report(VmGone(self.vm_id, self.run, *self.exit))

    def catch_up(self) -> None:
        """Report to a node that has just started what happened while none was watching."""
        self._init.tell()
        if self.is_ready:
            self.report(GuestReady(self.vm_id, self.run, self._channel()))
        if self.paused is not None:
            self.report(GuestPaused(self.vm_id, self.run, self.paused))
        if self._ended_as is not None:
            self.report(self._ended_as)

    def leave_alone(self) -> None:
        """The node that has started or found it is gone: no node watches, reads or will learn its exit status."""
        self.observe = None
        self.is_child = False
        self.readers.end()
        self.sessions.hang_up()
        self.readers = Readers(self._typed, self.readers.recent)

    def write(self, data: bytes) -> None:
        """The guest writes to its serial line."""
        self._host.write_log(self.vm_id, data)
        self.readers.feed(data)

    async def _typed(self, data: bytes) -> None:
        if self.gone.is_set():
            raise Refused(Reason.CONFLICT, "the VM has ended")
        self.write(data.replace(b"\n", b"\r\n"))
        *lines, rest = (bytes(self._line) + data).split(b"\n")
        self._line[:] = rest
        for line in lines:
            self._shell(line.decode(errors="replace"))

    def _shell(self, line: str) -> None:
        try:
            words = shlex.split(line)
        except ValueError:
            words = []
        if words == ["echo", "c", ">", "/proc/sysrq-trigger"]:
            self.end_guest("panic")
        elif words[:1] == ["echo"]:
            self.write(" ".join(words[1:]).encode() + b"\r\n")
        elif words == ["poweroff"]:
            self.end_guest("shutdown")
        self.write(b"sim:~# ")

    def _channel(self) -> ReadyChannel:
        return "channel" if self.ready_channel == "channel" or not self.behaviour.has_agent else "agent"

    def after(self, delay_s: float | None, what: Callable[[], None]) -> None:
        """Do it later, unless the process has ended by then; None for never."""
        if delay_s is not None:
            self._timers.append(asyncio.get_running_loop().call_later(delay_s, what))

    def report(self, observation: ComputeObservation) -> None:
        """Tell the node that watches, where there is one."""
        if self.observe is not None:
            self.observe(observation)


class SimulatedHost:
    """A host in memory. `behaviour` says what a VM's guest does in its next run; `image_mib` which images there are."""

    def __init__(
        self,
        *,
        behaviour: Callable[[str], Behaviour] = lambda vm_id: Behaviour(),
        image_mib: Callable[[str], int | None] = lambda image_id: 1,
        memory_mib: int = 1024 * 1024,
    ) -> None:
        self.boot_number = 1
        self.behaviour = behaviour
        self.image_mib = image_mib
        self.memory_mib = memory_mib
        self.disks: dict[str, int] = {}
        self.kept_scripts: dict[str, bytes] = {}
        """The init scripts that nodes have kept, by the ids of VMs."""
        self.kept_user_data: dict[str, bytes] = {}
        """Their user-data for cloud-init."""
        self.guest_disks: dict[str, GuestDisk] = {}
        self.taken_ports: set[str] = set()
        """The ports of the host that its other programs have, by their keys (`host_port_key`)."""
        self.missing_switches: set[str] = set()
        """The paths at which there is no VDE switch: it has one at each other."""
        self.kept: dict[str, int] = {}
        """Disks that were quarantined, by the name under which they are kept."""
        self.processes: dict[str, SimulatedProcess] = {}
        self.interfere: Callable[[ComputeEffect], Awaitable[None]] = _no_interference
        """Awaited before each effect: it may take its time, hang, or raise `Fault`."""
        self._logs: dict[str, bytearray] = {}
        self._written: dict[str, list[tuple[float, int]]] = {}
        """When each piece of a log was written, by the event loop, and how long it is."""
        self._last_pid = 1000

    @property
    def boot_id(self) -> str:
        """The id of the present boot of the host."""
        return f"00000000-0000-4000-8000-{self.boot_number:012x}"

    def reboot(self) -> None:
        """The host goes down and comes back: no process is left, and how they ended is not known."""
        for process in self.processes.values():
            process.observe = None
            process.die(None, None)
        self.processes.clear()
        self.boot_number += 1

    def require(self, memory_mib: int, disk_mib: int) -> None:
        """As in `HostLimits`; its disk holds files of any size."""
        if memory_mib > self.memory_mib:
            raise beyond_host(memory_mib, self.memory_mib, "it is all that this host has")

    def require_switch(self, path: str) -> None:
        """As in `HostLimits`."""
        if path in self.missing_switches:
            fault = missing_switch(path)
            raise Refused(Reason.CONFLICT, fault.reason, field=FIELD, remedy=fault.remedy)

    def live(self, vm_id: str) -> SimulatedProcess | None:
        """The process of a VM, where there is one."""
        process = self.processes.get(vm_id)
        return None if process is None or process.gone.is_set() else process

    def has_taken(self, port: PublishedPort | Forward, vm_id: str) -> bool:
        """Whether a program of the host has the port, be it the process of another VM."""
        others = (self.live(other) for other in self.processes if other != vm_id)
        key = host_port_key(port)
        return key in self.taken_ports or any(key in process.host_ports for process in others if process)

    def leads_to(self, key: str) -> str | None:
        """The id of the VM whose guest a port of the host leads to, where it leads to one."""
        return next((vm_id for vm_id in self.processes if (it := self.live(vm_id)) and key in it.host_ports), None)

    def exec(self, effect: BootVm) -> SimulatedProcess:
        """Start a process; its guest does not run yet."""
        self._last_pid += 1
        process = SimulatedProcess(self, effect, self._last_pid, self.behaviour(effect.vm_id))
        self.processes[effect.vm_id] = process
        return process

    def write_log(self, vm_id: str, data: bytes) -> None:
        """Append to the log of a VM's serial line."""
        log = self._logs.setdefault(vm_id, bytearray())
        log += data
        del log[:-LOG_LIMIT_BYTES]
        self._written.setdefault(vm_id, []).append((asyncio.get_running_loop().time(), len(data)))

    def log(self, vm_id: str) -> bytes:
        """The log of a VM's serial line."""
        return bytes(self._logs.get(vm_id, b""))

    def log_since(self, vm_id: str, ago_s: float) -> bytes:
        """The output of the last seconds."""
        since_s = asyncio.get_running_loop().time() - ago_s
        count = sum(size for time_s, size in self._written.get(vm_id, []) if time_s >= since_s)
        log = self.log(vm_id)
        return log[max(0, len(log) - count) :]

    def quarantine(self, vm_id: str, name: str) -> str:
        """Keep what there is of the VM under this name; where it is now, "" for nowhere."""
        if vm_id in self.disks:
            self.kept[name] = self.disks[vm_id]
            self.remove(vm_id)
        return f"/kept/{name}" if name in self.kept else ""

    def remove(self, vm_id: str) -> None:
        """Nothing is left of the VM."""
        self.disks.pop(vm_id, None)
        self.processes.pop(vm_id, None)
        self.guest_disks.pop(vm_id, None)
        self._logs.pop(vm_id, None)
        self._written.pop(vm_id, None)
