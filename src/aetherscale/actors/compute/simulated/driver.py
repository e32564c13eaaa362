"""The fake of the real driver: a node's hand on a host in memory. Virtual but for the contract; nothing is touched."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final

from aetherscale.actors.compute.driver import (
    TERMINAL_LIMIT,
    Console,
    ExecResult,
    Found,
    LogRange,
    OnHost,
    PipedProgram,
    Process,
    Terminal,
    Window,
)
from aetherscale.actors.compute.model.decide import ComputeMessage
from aetherscale.actors.compute.model.effects import (
    ApplyRules,
    Booted,
    BootVm,
    ComputeEffect,
    ComputeOutcome,
    DiskProvisioned,
    Ended,
    EndVm,
    Forward,
    PlugPort,
    ProvisionDisk,
    Quarantined,
    QuarantineVm,
    Removed,
    RemoveScript,
    RemoveVm,
    ScriptRemoved,
    ShutdownIgnored,
    ShutDownVm,
    UnplugPort,
)
from aetherscale.actors.compute.model.figures import DiskUse, Figures
from aetherscale.actors.compute.model.guestfacts import GuestFacts
from aetherscale.actors.compute.model.state import Vm
from aetherscale.actors.compute.ports import taken
from aetherscale.actors.compute.readers import RECENT_BYTES, last_lines
from aetherscale.actors.compute.reconcile import apply_rules, reconcile
from aetherscale.actors.compute.simulated.host import WITHOUT_AGENT, SimulatedHost, SimulatedProcess
from aetherscale.actors.compute.simulated.hotplug import change_port
from aetherscale.actors.compute.simulated.inits import SimulatedScripts
from aetherscale.actors.compute.simulated.programs import SimulatedProgram, ended_program
from aetherscale.actors.compute.simulated.requirements import require_bootable
from aetherscale.actors.compute.simulated.terminal import SimulatedTerminal
from aetherscale.actors.network.ports import Firewall, NoFirewall, NoPorts, VmPorts
from aetherscale.identifiers import now_us
from aetherscale.kernel.errors import Reason, Refused, Task
from aetherscale.kernel.failures import EffectFailed
from aetherscale.kernel.fault import Fault
from aetherscale.runtime.component import Progress, Report

_CALL_LIMIT_S: Final = 5.0
_SIGKILL: Final = 9


class SimulatedDriver:
    """A node's hand on a simulated host."""

    def __init__(self, host: SimulatedHost, ports: VmPorts | None = None, firewall: Firewall | None = None) -> None:
        self._host = host
        self.scripts = SimulatedScripts(host.kept_scripts, host.kept_user_data)
        self._ports: VmPorts = ports or NoPorts()
        self._firewall: Firewall = firewall or NoFirewall()
        self._report: Report[ComputeMessage] | None = None
        self._watched: dict[str, SimulatedProcess] = {}

    @property
    def limits(self) -> SimulatedHost:
        """As in `ComputeDriver`."""
        return self._host

    async def start(self, report: Report[ComputeMessage]) -> None:
        """As in `Driver`."""
        self._report = report
        self._ports.borrow_from(self._lend_tap)

    def _lend_tap(self, vm_id: str, tap: str) -> int | None:
        process = self._watched.get(vm_id)
        has_it = process is not None and not process.gone.is_set() and tap in process.cards
        return os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC) if has_it else None

    async def reconcile(self, expected: Mapping[str, Vm]) -> None:
        """As in `Driver`."""
        assert self._report is not None, "the driver has not been started"
        await reconcile(self, self._ports, self._firewall, expected, self._host.boot_id, self._report)

    async def close(self) -> None:
        """Stop observing. Guests run on, and have no parent from now on."""
        for process in self._watched.values():
            process.leave_alone()
        self._watched.clear()

    async def perform(self, effect: ComputeEffect, progress: Progress) -> ComputeOutcome:
        """Make the effect true and answer, as the real driver does."""
        try:
            await self._host.interfere(effect)
            match effect:
                case ProvisionDisk():
                    return self._provision(effect)
                case BootVm():
                    return await self._boot(effect, progress)
                case ShutDownVm():
                    return await self._shut_down(effect)
                case EndVm():
                    process = await self._end(effect.vm_id)
                    return Ended(effect.key) if process is None else Ended(effect.key, *process.exit)
                case RemoveVm():
                    await self._end(effect.vm_id)
                    await self._ports.close_ports(effect.vm_id, effect.ports)
                    self.scripts.remove_all(effect.vm_id)
                    self._host.remove(effect.vm_id)
                    self._watched.pop(effect.vm_id, None)
                    return Removed(effect.key)
                case QuarantineVm():
                    await self._end(effect.vm_id)
                    self.scripts.remove_all(effect.vm_id)
                    return Quarantined(effect.key, self._host.quarantine(effect.vm_id, effect.quarantine_as))
                case ApplyRules():
                    return await apply_rules(self._firewall, effect)
                case RemoveScript():
                    self.scripts.remove(effect.vm_id)
                    return ScriptRemoved(effect.key)
                case PlugPort() | UnplugPort():
                    return await change_port(effect, self._host.live(effect.vm_id), self._ports)
        except Fault as fault:
            return EffectFailed.by(effect.key, fault)

    def _provision(self, effect: ProvisionDisk) -> ComputeOutcome:
        if effect.vm_id not in self._host.disks:
            image_mib = self._host.image_mib(effect.image_id)
            if image_mib is None:
                raise Fault(f"the image's file {effect.image_id} is missing", "import the image again", retryable=False)
            self._host.disks[effect.vm_id] = max(effect.disk_mib, image_mib)
        return DiskProvisioned(effect.key, self._host.disks[effect.vm_id])

    async def _boot(self, effect: BootVm, progress: Progress) -> ComputeOutcome:
        process = self._host.live(effect.vm_id)
        if process is not None and process.run != effect.run:
            await self._end(effect.vm_id)
            process = None
        adopted = process is not None
        if process is None:
            require_bootable(self._host, effect)
            progress("starting a simulated QEMU")
            await self._ports.open(effect.vm_id, effect.ports, effect.rules)
            process = self._host.exec(effect)
        failure = await self._wait_for(process, effect)
        if failure is not None:
            process.is_asked_to_go = True
            process.die(None, _SIGKILL)
            return failure
        self._watch(process)
        # What the guest does from now on is observed after this outcome.
        process.let_run()
        if adopted:
            asyncio.get_running_loop().call_soon(process.catch_up)
        return Booted(
            effect.key,
            effect.vm_id,
            effect.run,
            process.pid,
            process.start_ticks,
            process.boot_id,
            "tcg",
            adopted,
        )

    async def _wait_for(self, process: SimulatedProcess, effect: BootVm) -> EffectFailed | None:
        behaviour = process.behaviour
        if behaviour.is_unresponsive and not process.is_running:
            await asyncio.sleep(_CALL_LIMIT_S)
            return EffectFailed(effect.key, f"QEMU is unresponsive: no greeting within {_CALL_LIMIT_S:g} s")
        await asyncio.sleep(behaviour.start_s)
        if behaviour.start_failure:
            return EffectFailed(effect.key, "QEMU ended at its start", log_tail=behaviour.start_failure)
        return None

    async def _shut_down(self, effect: ShutDownVm) -> ComputeOutcome:
        process = self._host.live(effect.vm_id)
        if process is None:
            return Ended(effect.key)
        if process.behaviour.is_unresponsive:
            await asyncio.sleep(_CALL_LIMIT_S)
            return EffectFailed(effect.key, f"QEMU is unresponsive: timed out after {_CALL_LIMIT_S:g} s")
        process.press_power_button()
        try:
            async with asyncio.timeout(effect.grace_s):
                await process.guest_ended.wait()
        except TimeoutError:
            return ShutdownIgnored(effect.key, effect.grace_s)
        await process.gone.wait()
        return Ended(effect.key, *process.exit)

    async def _end(self, vm_id: str) -> SimulatedProcess | None:
        process = self._host.live(vm_id)
        if process is not None:
            process.is_asked_to_go = True
            process.die(*((None, _SIGKILL) if process.behaviour.is_unresponsive else (0, None)))
        self._watched.pop(vm_id, None)
        return process

    def _watch(self, process: SimulatedProcess) -> None:
        assert self._report is not None, "the driver has not been started"
        process.observe = self._report
        self._watched[process.vm_id] = process

    async def adopt(self, process: Process) -> bool:
        """Find the running process again and observe it; False where it is gone."""
        live = self._host.live(process.vm_id)
        named = (process.pid, process.start_ticks, process.boot_id)
        if live is None or (live.pid, live.start_ticks, live.boot_id) != named:
            return False
        self._watch(live)
        live.let_run()
        asyncio.get_running_loop().call_soon(live.catch_up)
        return True

    def watches(self, vm_id: str, run: int) -> bool:
        """Whether the process of this run is observed now."""
        process = self._watched.get(vm_id)
        return process is not None and process.run == run and not process.gone.is_set()

    async def inventory(self) -> Sequence[Found]:
        """All VMs of which the host has anything, by their ids."""
        processes = {vm_id for vm_id in self._host.processes if self._host.live(vm_id)}
        found = sorted(processes | self._host.disks.keys())
        return [Found(vm_id, vm_id in processes, vm_id in self._host.disks) for vm_id in found]

    def require_free(self, forward: Forward) -> None:
        """As in `HostPorts`."""
        if self._host.has_taken(forward, ""):
            raise taken(forward)

    async def console(self, vm_id: str, past_bytes: int = RECENT_BYTES) -> Console:
        """Attach to the serial line. Raises `Refused` (conflict) where the VM has no process."""
        return self._live(vm_id).readers.attach_with(past_bytes)

    def on_host(self, vm_id: str) -> OnHost:
        """Where the VM's files would be, and which process it is."""
        process = self._host.live(vm_id)
        root = f"/simulated/{vm_id}" if vm_id in self._host.disks else None
        return OnHost(
            directory=root,
            disk=f"{root}/disk.qcow2" if root else None,
            console_log=f"{root}/console.log" if root else None,
            pid=process.pid if process else None,
            uptime_s=int(asyncio.get_running_loop().time() - process.begun_s) if process else None,
            cut=self._ports.cut(vm_id) if process else (),
        )

    async def figures(self) -> Mapping[str, Figures]:
        """As in `ComputeDriver`: each process has used what it would have, had it done nothing."""
        now_s = asyncio.get_running_loop().time()
        return {
            vm_id: Figures(now_s - process.begun_s, 1 << 20, DiskUse(0, 0, 0, 0), self._ports.traffic(vm_id))
            for vm_id in tuple(self._host.processes)
            if (process := self._host.live(vm_id)) is not None
        }

    async def logs(self, vm_id: str, wanted: LogRange, *, follow: bool) -> AsyncIterator[bytes]:
        """What is wanted of the log, oldest byte first; `follow` goes on until the process ends. Raises `Refused`."""
        if vm_id not in self._host.disks:
            raise Refused(Reason.NOT_FOUND, f"the VM {vm_id} has no log on this host")
        stored = self._host.log(vm_id)
        if (ago_s := wanted.so_long_ago_s(now_us())) is not None:
            past = self._host.log_since(vm_id, ago_s)
        else:
            past = stored[max(0, len(stored) - wanted.tail_bytes) :] if wanted.lines is None else stored
        if wanted.lines is not None:
            past = last_lines(past, wanted.lines)
        process = self._host.live(vm_id)
        if process is None or not follow:
            if past:
                yield past
            return
        reader = process.readers.attach(past)
        try:
            async for piece in reader.output():
                yield piece
        finally:
            await reader.close()

    async def execute(self, vm_id: str, argv: Sequence[str], timeout_s: float, stdin: bytes = b"") -> ExecResult:
        """Run a program, of which the guest knows a few. Raises `Refused` without agent."""
        self._agent(vm_id)
        code, printed = ended_program(argv, stdin)
        return ExecResult(code, None, printed, b"", truncated=False)

    async def terminal(self, vm_id: str, argv: Sequence[str], window: Window, term: str) -> Terminal:
        """Start a program on a terminal: a shell, or one of the few that end at once. Raises `Refused`."""
        process = self._agent(vm_id)
        if not process.behaviour.has_terminals:
            raise Refused(
                Reason.NOT_IMPLEMENTED, "a program cannot have a terminal: the guest has no `script` of util-linux"
            )
        if len(process.sessions.terminals) >= TERMINAL_LIMIT:
            raise Refused(Reason.CONFLICT, f"the VM has {TERMINAL_LIMIT} terminals in use", retryable=True)
        ended = None if argv[-1] == "sh" else ended_program(argv, b"")
        terminal = SimulatedTerminal(window, term, process.sessions.terminals.discard)
        process.sessions.terminals.add(terminal)
        if ended is None:
            terminal.prompt()
        else:
            terminal.run(*ended)
        return terminal

    async def facts(self, vm_id: str) -> GuestFacts:
        """What the guest says of itself. Raises `Refused` where the VM has no process."""
        process = self._live(vm_id)
        if process.agent != "answers":
            return GuestFacts(process.agent)
        return GuestFacts("answers", os="simulated", host_name="sim", addresses=[], load=[0.0, 0.0, 0.0], disks=[])

    async def program(self, vm_id: str, argv: Sequence[str], *, has_input: bool) -> PipedProgram:
        """Start a program with its input and outputs as streams. Raises `Refused`."""
        process = self._agent(vm_id)
        if not process.behaviour.has_terminals:
            raise Refused(Reason.NOT_IMPLEMENTED, "a program cannot have pipes in this guest: it has no `setsid`")
        program = SimulatedProgram(
            process.sessions.next_pid(), argv, process.sessions.programs.discard, has_input=has_input
        )
        if program.exit_code is None:
            process.sessions.programs.add(program)
        return program

    def _agent(self, vm_id: str) -> SimulatedProcess:
        process = self._live(vm_id)
        if process.agent != "answers":
            raise Refused(Reason.UNAVAILABLE, WITHOUT_AGENT[process.agent], retryable=True)
        return process

    def _live(self, vm_id: str) -> SimulatedProcess:
        process = self._host.live(vm_id)
        if process is None:
            raise Refused(Reason.CONFLICT, "the VM is not running", remedy=Task("vm", "start", vm_id))
        return process
