"""The real compute driver: effects made true with QEMU, each of them an *ensure*.

It keeps no truth of its own. What is alive is found again in /proc and by who holds a VM's sockets; what is on disk is
in the VM's directory. One piece of work for a VM goes on at a time; only a shutdown, which merely waits, can be
overtaken.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final
from weakref import WeakValueDictionary

from aetherscale import statedir
from aetherscale.actors.compute.driver import Found, OnHost, Process
from aetherscale.actors.compute.initfiles import InitFiles
from aetherscale.actors.compute.model.decide import ComputeMessage
from aetherscale.actors.compute.model.effects import (
    ApplyRules,
    Booted,
    BootVm,
    ComputeEffect,
    ComputeObservation,
    ComputeOutcome,
    DiskProvisioned,
    Ended,
    EndVm,
    Forward,
    GuestPaused,
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
from aetherscale.actors.compute.model.figures import Figures
from aetherscale.actors.compute.model.state import Vm
from aetherscale.actors.compute.qemu import ceilings, disk, hostports, identity, supervision
from aetherscale.actors.compute.qemu.accel import Accelerators
from aetherscale.actors.compute.qemu.console import written_out
from aetherscale.actors.compute.qemu.faults import OPERATIONS, fault_of, not_started
from aetherscale.actors.compute.qemu.figures import figures
from aetherscale.actors.compute.qemu.hotplug import change_port
from aetherscale.actors.compute.qemu.inside import Inside
from aetherscale.actors.compute.qemu.layout import VmDirectory
from aetherscale.actors.compute.qemu.machine import Machine
from aetherscale.actors.compute.qemu.session import START_LIMIT_S, Rejected, Unresponsive
from aetherscale.actors.compute.qemu.starter import Starter
from aetherscale.actors.compute.reconcile import apply_rules, reconcile
from aetherscale.actors.network.ports import Firewall, NoFirewall, NoPorts, VmPorts
from aetherscale.bus.tasks import Tasks
from aetherscale.kernel.failures import EffectFailed
from aetherscale.kernel.fault import Fault
from aetherscale.processes import launch, users
from aetherscale.runtime.component import Progress, Report
from aetherscale.settings import Accelerator, Supervision

log = logging.getLogger(__name__)

QEMU: Final = "qemu-system-x86_64"
_KILL_LIMIT_S: Final = 20.0
_DEATH_THROES_S: Final = 0.5
_ENDING: Final = "stop the VM with the option kill, which ends QEMU"
_InTurn = ProvisionDisk | BootVm | EndVm | RemoveVm | QuarantineVm | ApplyRules | RemoveScript


class QemuDriver(Inside):
    """VMs under `<state_dir>/vms`. `qemu` is a program's name or path; the rest is as in the settings."""

    def __init__(
        self,
        state_dir: Path,
        boot_id: str,
        *,
        image_path: disk.ImagePath,
        write_overlay: disk.WriteOverlay,
        accelerator: Accelerator = "auto",
        supervision: Supervision = "detached",
        allow_unisolated: bool = False,
        qemu: str = QEMU,
        ports: VmPorts | None = None,
        firewall: Firewall | None = None,
    ) -> None:
        self._ports: VmPorts = ports or NoPorts()
        self._firewall: Firewall = firewall or NoFirewall()
        super().__init__(state_dir / "vms")
        self.scripts = InitFiles(state_dir)
        self._boot_id = boot_id
        self._image_path = image_path
        self._write_overlay = write_overlay
        self._qemu = qemu
        self._tasks = Tasks("compute")
        self._accelerators = Accelerators(accelerator, state_dir)
        self._supervision, self._allow_unisolated = supervision, allow_unisolated
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._report: Report[ComputeMessage] | None = None
        self._starter: Starter
        self.limits: ceilings.HostCeilings

    async def start(self, report: Report[ComputeMessage]) -> None:
        """As in `Driver`. Raises `OSError` for a state directory of others."""
        self._report = report
        statedir.make(self._root)
        supervisor = await supervision.choose(self._supervision)
        self.limits = ceilings.HostCeilings(supervisor.memory_groups)
        hands = (self._qemu, self._accelerators, supervisor, self._machines, self._tasks, self._observed)
        self._starter = Starter(self._root, *hands, self._ports, self.scripts, allow_unisolated=self._allow_unisolated)

    async def reconcile(self, expected: Mapping[str, Vm]) -> None:
        """As in `Driver`."""
        assert self._report is not None, "the driver has not been started"
        await reconcile(self, self._ports, self._firewall, expected, self._boot_id, self._report)

    async def close(self) -> None:
        """Stop observing. Guests run on."""
        for machine in self._machines.values():
            machine.detach()
        self._machines.clear()
        await self._tasks.close()

    async def perform(self, effect: ComputeEffect, progress: Progress) -> ComputeOutcome:
        """Make the effect true and answer; what the host refuses comes back as `EffectFailed`, never as an exception.

        `ShutDownVm` answers `ShutdownIgnored` in time, or `Ended` when no process is left. Cancelling leaves what is
        half done where the next effect finds it.
        """
        try:
            if isinstance(effect, ShutDownVm):
                return await self._shut_down(effect)
            async with self._turn(effect.vm_id):
                if isinstance(effect, PlugPort | UnplugPort):
                    return await change_port(effect, await self._alive(self._directory(effect.vm_id)), self._ports)
                return await self._perform(effect, progress)
        except Fault as fault:
            return EffectFailed.by(effect.key, fault)
        except OSError as error:
            return EffectFailed.by(effect.key, fault_of(f"{OPERATIONS[type(effect)]} VM {effect.vm_id}", error))
        except (Unresponsive, Rejected) as silent:
            return EffectFailed(effect.key, f"QEMU is unresponsive: {silent}", _ENDING)

    async def _perform(self, effect: _InTurn, progress: Progress) -> ComputeOutcome:
        match effect:
            case ProvisionDisk():
                return await self._provision(effect)
            case BootVm():
                return await self._boot(effect, progress)
            case EndVm():
                return await self._end(effect)
            case RemoveVm():
                await self._ensure_gone(self._directory(effect.vm_id))
                await self._ports.close_ports(effect.vm_id, effect.ports)
                self.scripts.remove_all(effect.vm_id)
                self._directory(effect.vm_id).remove()
                self._machines.pop(effect.vm_id, None)
                return Removed(effect.key)
            case QuarantineVm():
                await self._ensure_gone(self._directory(effect.vm_id))
                self.scripts.remove_all(effect.vm_id)
                kept = self._directory(effect.vm_id).quarantine(effect.quarantine_as)
                self._machines.pop(effect.vm_id, None)
                return Quarantined(effect.key, str(kept or ""))
            case ApplyRules():
                return await apply_rules(self._firewall, effect)
            case RemoveScript():
                self.scripts.remove(effect.vm_id)
                return ScriptRemoved(effect.key)

    async def _provision(self, effect: ProvisionDisk) -> ComputeOutcome:
        image = self._image_path(effect.image_id, effect.image_format, effect.image_sha256)
        directory = self._directory(effect.vm_id)
        size_mib = await disk.provision(
            directory, image, effect.image_format, effect.disk_mib, self._write_overlay, effect.image_size_bytes
        )
        return DiskProvisioned(effect.key, size_mib)

    async def _boot(self, effect: BootVm, progress: Progress) -> ComputeOutcome:
        directory = self._directory(effect.vm_id)
        machine = await self._alive(directory)
        if machine is not None and machine.run != effect.run:
            await self._ensure_gone(directory)
            machine = None
        adopted = machine is not None
        try:
            if machine is None:
                machine = await self._starter.start(effect, directory, progress)
                await machine.attach(START_LIMIT_S)
                await machine.run_on()
            else:
                machine.reports.hold()
                await machine.catch_up()
        except (Unresponsive, Rejected) as silent:
            raise await self._given_up(directory, machine, silent) from silent
        except (Fault, OSError):
            await self._ensure_gone(directory)
            raise
        machine.reports.release()
        process = (machine.pid, machine.start_ticks, machine.boot_id, machine.accelerator)
        return Booted(effect.key, effect.vm_id, effect.run, *process, adopted, users.owner_of(machine.pid))

    async def _given_up(self, directory: VmDirectory, machine: Machine | None, silent: Exception) -> Fault:
        """Why a start failed, after the process has been ended."""
        ended = machine is not None and await machine.wait_gone(_DEATH_THROES_S)
        tail = machine.log_tail() if machine is not None else ""
        await self._ensure_gone(directory)
        exit_of = machine.exit if machine is not None and ended else None
        return not_started(str(silent), exit_of, machine.accelerator if machine is not None else None, tail)

    async def _shut_down(self, effect: ShutDownVm) -> ComputeOutcome:
        async with self._turn(effect.vm_id):
            machine = await self._alive(self._directory(effect.vm_id))
        if machine is None:
            return Ended(effect.key)
        try:
            async with asyncio.timeout(effect.grace_s):
                if not machine.guest.ended.is_set():
                    await machine.power_down()
                    await machine.guest.ended.wait()
        except TimeoutError:
            return ShutdownIgnored(effect.key, effect.grace_s)
        # The guest has ended, and that was observed; the process is let go once that is recorded.
        await machine.gone.wait()
        return Ended(effect.key, *machine.exit, log_tail=machine.log_tail())

    async def _end(self, effect: EndVm) -> ComputeOutcome:
        machine = await self._ensure_gone(self._directory(effect.vm_id))
        self._machines.pop(effect.vm_id, None)
        if machine is None:
            return Ended(effect.key)
        return Ended(effect.key, *machine.exit, log_tail=machine.log_tail())

    async def _ensure_gone(self, directory: VmDirectory) -> Machine | None:
        """End the VM's process, if there is one; returns the last that there was. Raises `Fault`, `OSError`."""
        machine = await self._alive(directory) or self._machines.get(directory.vm_id)
        if machine is not None and not await machine.end(_KILL_LIMIT_S):
            raise Fault(
                f"QEMU, pid {machine.pid}, does not end {_KILL_LIMIT_S:g} s after SIGKILL",
                remedy="it waits in the kernel, as for a disk that does not answer: dmesg",
            )
        if machine is not None:
            await written_out(machine.line.log)
        directory.forget_run()
        return machine

    async def _alive(self, directory: VmDirectory) -> Machine | None:
        """The VM's process, known or found again. Raises `Fault`, `OSError`."""
        machine = self._machines.get(directory.vm_id)
        if machine is None:
            return await self._starter.find(directory)
        return None if machine.gone.is_set() else machine

    async def adopt(self, process: Process) -> bool:
        """Find the running process again after a restart of the node and observe it from now on.

        False where it is gone; then nothing is observed.
        """
        machine = self._machines.get(process.vm_id)
        if machine is None or machine.gone.is_set():
            machine = self._starter.adopt(process, self._directory(process.vm_id))
        if machine is None or (machine.pid, machine.start_ticks) != (process.pid, process.start_ticks):
            return False
        machine.reports.hold()
        await machine.reattach()
        machine.reports.release()
        return True

    def watches(self, vm_id: str, run: int) -> bool:
        """Whether the process of this run is observed now."""
        machine = self._machines.get(vm_id)
        return machine is not None and machine.run == run and not machine.gone.is_set()

    async def inventory(self) -> Sequence[Found]:
        """All VMs of which this host has anything, by their ids."""
        return self._starter.inventory()

    def require_free(self, forward: Forward) -> None:
        """As in `HostPorts`."""
        hostports.require_free(forward)

    def on_host(self, vm_id: str) -> OnHost:
        """Where the VM's files are, and which process it is."""
        machine, places = self._machines.get(vm_id), self._directory(vm_id).places()
        if machine is None or machine.gone.is_set():
            return OnHost(*places)
        ports, age_s = self._ports, identity.age_s(machine.start_ticks)
        return OnHost(*places, machine.pid, age_s, ports.dropped(vm_id), ports.leased(vm_id), ports.cut(vm_id))

    async def figures(self) -> Mapping[str, Figures]:
        """As in `ComputeDriver`."""
        return await figures(self._machines.values(), self._ports)

    def _turn(self, vm_id: str) -> asyncio.Lock:
        """Held while something is done to a VM; there for as long as it is held or waited for."""
        return self._turns.setdefault(vm_id, asyncio.Lock())

    def _observed(self, observation: ComputeObservation) -> None:
        if isinstance(observation, GuestPaused) and observation.reason == "internal-error":
            machine = self._machines.get(observation.vm_id)
            if machine is not None and machine.accelerator == "kvm":
                self._accelerators.distrust(launch.program(self._qemu), observation.detail)
        assert self._report is not None, "the driver has not been started"
        self._report(observation)
