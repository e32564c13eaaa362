"""The compute component: virtual machines."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from aetherscale.actors.compute import IDENTITY
from aetherscale.actors.compute.attaching import PORT_COMMANDS
from aetherscale.actors.compute.creation import creation, keep_script
from aetherscale.actors.compute.driver import HOST_LIMITS, ComputeDriver
from aetherscale.actors.compute.model import commands, effects, events
from aetherscale.actors.compute.model.commands import (
    CreateVmOptions,
    DeleteVmOptions,
    ListVmsOptions,
    LogsOptions,
    StopVmOptions,
    VmOptions,
)
from aetherscale.actors.compute.model.decide import COMPUTE as DECIDER
from aetherscale.actors.compute.model.decide import ComputeMessage
from aetherscale.actors.compute.model.ends import ENDS
from aetherscale.actors.compute.model.initdecisions import is_made
from aetherscale.actors.compute.model.lifecycle import LIFECYCLE
from aetherscale.actors.compute.model.presentation import (
    VM_KIND,
    announce,
    holds,
    is_deleted,
    is_stopped,
    is_up,
)
from aetherscale.actors.compute.model.rulecommands import ListForwardsOptions
from aetherscale.actors.compute.model.sessioncommands import (
    ConsoleInputOptions,
    ConsoleOptions,
    ExecOptions,
    ProgramOptions,
    TerminalOptions,
)
from aetherscale.actors.compute.model.state import Vm
from aetherscale.actors.compute.ports import HOST_PORTS, INIT_SCRIPTS
from aetherscale.actors.compute.rules import FIREWALL_COMPONENT, RULE_COMMANDS
from aetherscale.actors.compute.service import ComputeService
from aetherscale.actors.images.ports import IMAGE_FILES, ImageFiles
from aetherscale.actors.network.ports import FIREWALL, VM_PORTS
from aetherscale.kernel.calls import Call
from aetherscale.kernel.findings import Finding
from aetherscale.kernel.measures import Measure
from aetherscale.kernel.registry import Registry
from aetherscale.runtime.component import Command, Component, Driver, Host, Listing, Query, World
from aetherscale.settings import Settings

BOOTS_AT_ONCE: Final = max(4, os.cpu_count() or 1)
"""QEMUs that are being started at the same time; after a reboot of the host, in the order of their creation."""
LIVING: Final = frozenset({"running", "paused"})
"""The observed states of a VM that has a process."""


def _start(options: VmOptions, call: Call, vm_id: str, world: World) -> commands.StartVm:
    return commands.StartVm(vm_id)


def _stop(options: StopVmOptions, call: Call, vm_id: str, world: World) -> commands.StopVm:
    return commands.StopVm(vm_id, options.kill, options.grace_s)


def _restart(options: VmOptions, call: Call, vm_id: str, world: World) -> commands.RestartVm:
    return commands.RestartVm(vm_id)


def _delete(options: DeleteVmOptions, call: Call, vm_id: str, world: World) -> commands.DeleteVm:
    return commands.DeleteVm(vm_id, options.kill, options.grace_s)


def _is_listed(options: ListVmsOptions, vm: Vm) -> bool:
    return options.labels.items() <= vm.spec.labels.items()


def _open_driver(host: Host) -> Driver[Vm, ComputeMessage]:
    settings = host.settings
    if settings.simulated:
        return _open_simulated(host)
    from aetherscale.actors.compute.qemu.driver import QemuDriver

    files: ImageFiles = host.port(IMAGE_FILES)
    return QemuDriver(
        settings.state_dir,
        host.boot_id,
        image_path=files.path,
        write_overlay=files.write_overlay,
        accelerator=settings.accelerator,
        supervision=settings.supervisor,
        allow_unisolated=settings.allow_unisolated,
        ports=host.port(VM_PORTS),
        firewall=host.port(FIREWALL),
    )


def _open_simulated(host: Host) -> Driver[Vm, ComputeMessage]:
    from aetherscale.actors.compute.simulated.driver import SimulatedDriver
    from aetherscale.actors.compute.simulated.host import SimulatedHost

    return SimulatedDriver(SimulatedHost(), host.port(VM_PORTS), host.port(FIREWALL))


async def _measures(registry: Registry[Vm], driver: ComputeDriver) -> Sequence[Measure]:
    from aetherscale.actors.compute.measures import measures

    return await measures(registry, driver)


def _needs(settings: Settings) -> Iterator[Finding]:
    from aetherscale.actors.compute.needs import findings

    return findings(settings)


def _notes(settings: Settings) -> Mapping[str, str]:
    from aetherscale.processes import users

    if settings.simulated:
        return {"isolation": "none is needed: virtual machines are simulated"}
    if users.way() != "none":
        return {"isolation": "each virtual machine's QEMU has a user of its own"}
    whom = users.name_of_this_user()
    if settings.allow_unisolated:
        text = f"none, as --allow-unisolated says: QEMU runs as {whom}, who can read the log and all disks"
    else:
        text = f"QEMU would run as {whom}, so no virtual machine starts without --allow-unisolated"
    return {"isolation": text}


COMPONENT: Final[Component[Vm, ComputeMessage]] = Component(
    identity=IDENTITY,
    kind=VM_KIND,
    decider=DECIDER,
    holds=holds,
    announce=announce,
    listing=Listing(ListVmsOptions, VmOptions, _is_listed),
    commands={
        "create-vm": Command(CreateVmOptions, creation, is_made, creates=True, beforehand=keep_script),
        "start-vm": Command(VmOptions, _start, is_up),
        "stop-vm": Command(StopVmOptions, _stop, is_stopped, frees=True),
        "restart-vm": Command(VmOptions, _restart, is_up),
        "delete-vm": Command(DeleteVmOptions, _delete, is_deleted, frees=True),
        **PORT_COMMANDS,
        **RULE_COMMANDS,
    },
    open_driver=_open_driver,
    open_simulated=_open_simulated,
    open_service=ComputeService,
    offers={
        HOST_LIMITS: lambda driver: driver.limits,
        HOST_PORTS: lambda driver: driver,
        INIT_SCRIPTS: lambda driver: driver.scripts,
    },
    queries={
        "vm-info": Query(VmOptions, ComputeService.info),
        "guest-info": Query(VmOptions, ComputeService.guest),
        "vm-logs": Query(LogsOptions, ComputeService.logs, streams=True),
        "exec-vm": Query(ExecOptions, ComputeService.execute, acts=True),
        "vm-console": Query(ConsoleOptions, ComputeService.console, acts=True, streams=True),
        "vm-terminal": Query(TerminalOptions, ComputeService.terminal, acts=True, streams=True),
        "vm-program": Query(ProgramOptions, ComputeService.program, acts=True, streams=True),
        "console-input": Query(ConsoleInputOptions, ComputeService.typed, acts=True),
        "list-forwards": Query(ListForwardsOptions, ComputeService.forwards, under=FIREWALL_COMPONENT),
    },
    ends=ENDS,
    concurrency={effects.BootVm: BOOTS_AT_ONCE},
    suspicious=(events.VmStepFailed,),
    counts={"vms": lambda vm: True, "vms-running": lambda vm: vm.observed in LIVING},
    measures=_measures,
    needs=_needs,
    notes=_notes,
    lifecycle=LIFECYCLE,
)
