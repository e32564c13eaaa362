"""From a provisioned disk to a QEMU process that is ours, and from a process of an earlier node back to one that is."""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from aetherscale.actors.compute.cloudinit import seed
from aetherscale.actors.compute.driver import Found, Observe, Process
from aetherscale.actors.compute.initfiles import InitFiles
from aetherscale.actors.compute.model.effects import BootVm, InitEnded
from aetherscale.actors.compute.model.sshkeys import authorized_keys
from aetherscale.actors.compute.ports import missing_user_data
from aetherscale.actors.compute.qemu import argv, ceilings, hostports, identity, layout, usernetwork, vde
from aetherscale.actors.compute.qemu.accel import Accelerators, Choice
from aetherscale.actors.compute.qemu.ceilings import Ceilings
from aetherscale.actors.compute.qemu.console import SerialLine
from aetherscale.actors.compute.qemu.disk import disk_size_mib
from aetherscale.actors.compute.qemu.layout import RunRecord, VmDirectory
from aetherscale.actors.compute.qemu.machine import Machine
from aetherscale.actors.compute.qemu.supervision import Limits, Supervisor
from aetherscale.actors.network.ports import VmPorts
from aetherscale.bus.tasks import Tasks
from aetherscale.kernel.fault import Fault
from aetherscale.processes import identity as processes
from aetherscale.processes import launch
from aetherscale.runtime.component import Progress

log = logging.getLogger(__name__)

_FIND_LIMIT_S: Final = 2.0
_FIND_PAUSE_S: Final = 0.005

_Lent = tuple[tuple[int, ...], tuple[tuple[int, int], ...]]
"""The descriptors of a VM's taps, and of its ports on VDE switches, as in `argv.Descriptors`."""


@dataclass(frozen=True, slots=True)
class Starter:
    """Makes machines. Each is put into `machines` as soon as there is a process, so that none is ever lost sight of."""

    root: Path
    qemu: str
    accelerators: Accelerators
    supervisor: Supervisor
    machines: dict[str, Machine]
    tasks: Tasks
    observe: Observe
    ports: VmPorts
    scripts: InitFiles
    ceilings: Ceilings = field(default_factory=Ceilings)
    allow_unisolated: bool = False
    """Whether a VM starts where its process would be root's, or the node's own user's."""

    def __post_init__(self) -> None:
        self.ports.borrow_from(self.lend_tap)

    def lend_tap(self, vm_id: str, tap: str) -> int | None:
        """A copy of the descriptor that the VM's process has for a port, as `network.ports.Lend` has it."""
        machine = self.machines.get(vm_id)
        if machine is None or machine.gone.is_set():
            return None
        try:
            descriptor = argv.tap_of(processes.arguments_of(machine.pid), tap)
            if descriptor is None and (record := machine.directory.record()) is not None:
                descriptor = record.taps.get(tap)
            return None if descriptor is None else machine.copied(descriptor)
        except (OSError, ValueError) as refused:
            log.warning("VM %s: its port cannot be connected again: %s", vm_id, refused)
            return None

    async def start(self, effect: BootVm, directory: VmDirectory, progress: Progress) -> Machine:
        """A new process, the guest in it not running yet, with the ports of its VM. Raises `Fault`, `OSError`.

        Nothing of the VM may be alive.
        """
        launch.require_isolation(effect.vm_id, "QEMU", allow_unisolated=self.allow_unisolated)
        qemu = launch.program(self.qemu)
        _require_disk(directory)
        ceilings.require_file_size(disk_size_mib(directory))
        ceilings.require_memory(effect.memory_mib, self.supervisor.memory_groups())
        choice = await self.accelerators.choose(qemu, effect.vm_id)
        jail = launch.jail_of(effect.vm_id, choice.group)
        await self.ceilings.require_cpus(effect.cpus, choice.accelerator, qemu, jail)
        progress(f"starting QEMU ({choice.accelerator})")
        hostports.require(effect.publish)
        with ExitStack() as lent:
            plugs: list[vde.Plug] = []
            for switch in effect.switches:
                plugs.append(await vde.plug_in(switch.path, effect.vm_id))
                lent.callback(plugs[-1].close)
            taps = await self.ports.open(effect.vm_id, effect.ports, effect.rules)
            for tap in taps:
                lent.callback(os.close, tap)
            return self._spawn(qemu, effect, directory, choice, (tuple(taps), tuple(each.filenos() for each in plugs)))

    def _spawn(self, qemu: str, effect: BootVm, directory: VmDirectory, choice: Choice, lent: _Lent) -> Machine:
        spec = _machine_spec(effect, choice)
        jail = launch.jail_of(effect.vm_id, choice.group, ceilings.file_limit_bytes(disk_size_mib(directory)))
        directory.forget_run()
        script = self.scripts.read(effect.vm_id) if effect.gives_script else None
        intent = RunRecord(
            effect.run, identity.boot_id(), choice.accelerator, effect.ready_channel, gives_script=script is not None
        )
        directory.write_record(intent)
        with ExitStack() as opened:
            cable = None if any(lent) or effect.host_loopback else _cable(opened)
            credentials = () if effect.by_seed else _credentials(effect, script, opened)
            its_seed = _seed(effect, script, self.scripts, opened) if effect.by_seed else None
            init = opened.enter_context(directory.listen(layout.INIT)).fileno() if script is not None else None
            descriptors = _descriptors(directory, opened, lent, cable, credentials, init, its_seed)
            errors = _opened(directory, layout.QEMU_LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, opened)
            line = SerialLine(directory, fresh=True)
            command = argv.command_line(qemu, spec, descriptors)
            around = self.supervisor.around(effect.vm_id, effect.run, Limits(effect.memory_mib, effect.cpus))
            environment = self.supervisor.environment
            pid = launch.spawn(
                command, jail, directory.path, errors, descriptors.all(), around=around, environment=environment
            )
            # Not waited for yet, so pid and start are there even if it has ended by now.
            record = replace(intent, pid=pid, start_ticks=identity.start_ticks(pid))
            machine = self._machine(directory, record, os.pidfd_open(pid), line)
        directory.write_record(record)
        if effect.gives_script and script is None:
            machine.reports(InitEnded(effect.vm_id, effect.run, "lost"))
        return machine

    async def find(self, directory: VmDirectory) -> Machine | None:
        """The process of the VM that an earlier node has left, whichever run it is of; None where there is none.

        Its observations are held. While the VM's socket is held there is a process, even if it is not known which: one
        in the middle of an exec has no command line. Raises `OSError`, and `Fault` where that goes on.
        """
        deadline_s = asyncio.get_running_loop().time() + _FIND_LIMIT_S
        while (machine := self._look(directory)) is None and directory.exists() and directory.is_held():
            if asyncio.get_running_loop().time() > deadline_s:
                raise Fault(
                    f"another program holds the sockets in {directory.path}, not this VM's QEMU",
                    remedy=f"fuser -v {directory.path / layout.QMP}",
                )
            await asyncio.sleep(_FIND_PAUSE_S)
        return machine

    def inventory(self) -> list[Found]:
        """All VMs of which the host has anything, by their ids. Raises `OSError`."""
        processes = {vm_id for vm_id, _ in identity.processes_of(self.root)}
        places = set(layout.directories(self.root))
        # A process that may not be looked at is known by what it holds.
        processes |= {vm_id for vm_id in places - processes if VmDirectory(self.root, vm_id).is_held()}
        return [Found(vm_id, vm_id in processes, vm_id in places) for vm_id in sorted(processes | places)]

    def _look(self, directory: VmDirectory) -> Machine | None:
        record = directory.record()
        if record is not None and record.boot_id == identity.boot_id() and record.pid and record.start_ticks:
            pidfd = identity.open_verified(record.pid, record.start_ticks, directory.path, directory.vm_id)
            if pidfd is not None:
                return self._adopted(directory, record, pidfd)
        if directory.exists() and not directory.is_held():
            return None
        # The node ended between exec and writing down the pid, or the record was changed.
        for pid in self._candidates(directory):
            ticks = identity.start_ticks(pid)
            pidfd = None if ticks is None else identity.open_verified(pid, ticks, directory.path, directory.vm_id)
            if pidfd is not None:
                record = record or RunRecord(0, identity.boot_id(), "tcg", "none")
                return self._adopted(directory, replace(record, pid=pid, start_ticks=ticks), pidfd)
        return None

    def _candidates(self, directory: VmDirectory) -> list[int]:
        """The processes that work in the directory; where none can be seen, the one that holds its socket."""
        found = [pid for vm_id, pid in identity.processes_of(self.root) if vm_id == directory.vm_id]
        holder = directory.holder() if directory.exists() and not found else None
        return [*found, holder] if holder is not None else found

    def adopt(self, process: Process, directory: VmDirectory) -> Machine | None:
        """The very process that the log names, where it is alive. Its observations are held. Raises `OSError`."""
        if process.boot_id != identity.boot_id():
            return None
        pidfd = identity.open_verified(process.pid, process.start_ticks, directory.path, process.vm_id)
        if pidfd is None:
            return None
        known = directory.record()
        record = RunRecord(
            process.run,
            process.boot_id,
            known.accelerator if known is not None else "tcg",
            process.ready_channel,
            process.pid,
            process.start_ticks,
            gives_script=known is not None and known.run == process.run and known.gives_script,
        )
        return self._adopted(directory, record, pidfd)

    def _adopted(self, directory: VmDirectory, record: RunRecord, pidfd: int) -> Machine:
        line = SerialLine(directory, fresh=False)
        return self._machine(directory, record, pidfd, line)

    def _machine(self, directory: VmDirectory, record: RunRecord, pidfd: int, line: SerialLine) -> Machine:
        why_killed = self.supervisor.why_killed
        machine = Machine(directory, record, pidfd, line, self.tasks, self.observe, why_killed)
        machine.reports.hold()
        self.machines[directory.vm_id] = machine
        return machine


def _machine_spec(effect: BootVm, choice: Choice) -> argv.MachineSpec:
    return argv.MachineSpec(
        effect.vm_id,
        effect.cpus,
        effect.memory_mib,
        choice.accelerator,
        effect.image_format,
        cards=tuple((port.tap, port.mac) for port in effect.ports),
        switch_cards=tuple(switch.mac for switch in effect.switches),
        publish=effect.publish,
    )


def _cable(opened: ExitStack) -> tuple[int, int]:
    """What is between the card and user-mode networking, where the guest is not to reach the host's loopback."""
    card, stack = usernetwork.cable()
    return opened.enter_context(card).fileno(), opened.enter_context(stack).fileno()


def _credentials(effect: BootVm, script: bytes | None, opened: ExitStack) -> tuple[tuple[str, int], ...]:
    """What the guest takes as credentials of systemd, each in a file in memory."""
    given = {
        argv.ROOT_KEYS if effect.user is None else argv.USER_KEYS: authorized_keys(effect.ssh_keys),
        argv.USER: (effect.user or "").encode(),
        argv.HOST_NAME: (effect.hostname or "").encode(),
        argv.INIT_SCRIPT: script or b"",
    }
    return tuple((name, _in_memory(name, content, opened)) for name, content in given.items() if content)


def _seed(effect: BootVm, script: bytes | None, kept: InitFiles, opened: ExitStack) -> int:
    """The disk that cloud-init reads, in memory and open for reading alone. Raises `Fault`, `OSError`."""
    user_data = kept.read_user_data(effect.vm_id) if effect.gives_user_data else None
    if effect.gives_user_data and user_data is None:
        raise missing_user_data(str(kept.place_of_user_data(effect.vm_id)))
    macs = (*(port.mac for port in effect.ports), *(switch.mac for switch in effect.switches))
    name = effect.hostname or effect.vm_id
    given = seed.Given(effect.vm_id, name, effect.ssh_keys, effect.user, script, user_data, macs)
    written = _in_memory("seed", seed.disk(given), opened)
    descriptor = os.open(f"/proc/self/fd/{written}", os.O_RDONLY | os.O_CLOEXEC)
    opened.callback(os.close, descriptor)
    return descriptor


def _in_memory(name: str, content: bytes, opened: ExitStack) -> int:
    """A file in memory: QEMU, under its own uid, can open no other again."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
    opened.callback(os.close, descriptor)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(content)
    return descriptor


def _descriptors(
    directory: VmDirectory,
    opened: ExitStack,
    lent: _Lent,
    cable: tuple[int, int] | None,
    credentials: tuple[tuple[str, int], ...],
    init: int | None,
    seed_disk: int | None,
) -> argv.Descriptors:
    base = _opened(directory, layout.BASE, os.O_RDONLY, opened)
    disk = _opened(directory, layout.DISK, os.O_RDWR, opened)
    qmp, agent, ready = (
        opened.enter_context(directory.listen(name)).fileno() for name in (layout.QMP, layout.AGENT, layout.READY)
    )
    return argv.Descriptors(base, disk, qmp, agent, ready, *lent, cable, credentials, init, seed_disk)


def _opened(directory: VmDirectory, name: str, flags: int, opened: ExitStack) -> int:
    descriptor = directory.open_file(name, flags)
    opened.callback(os.close, descriptor)
    return descriptor


def _require_disk(directory: VmDirectory) -> None:
    for name in (layout.BASE, layout.DISK):
        if not (directory.path / name).is_file():
            raise Fault(
                f"the VM has no disk: {directory.path / name} is missing",
                remedy="delete the VM and create it again",
                retryable=False,
            )
