"""The compute component: virtual machines."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Final

from aetherscale.actors.compute import IDENTITY
from aetherscale.actors.compute.model import commands, effects, events
from aetherscale.actors.compute.model.commands import (
    ConsoleInputOptions,
    ConsoleOptions,
    CreateVmOptions,
    ExecOptions,
    ListVmsOptions,
    LogsOptions,
    StopVmOptions,
    TerminalOptions,
    VmOptions,
)
from aetherscale.actors.compute.model.decide import COMPUTE as DECIDER
from aetherscale.actors.compute.model.decide import ComputeMessage
from aetherscale.actors.compute.model.lifecycle import LIFECYCLE
from aetherscale.actors.compute.model.presentation import VM_KIND, announce, holds, is_deleted, is_stopped, is_up
from aetherscale.actors.compute.model.state import Vm
from aetherscale.actors.compute.service import ComputeService
from aetherscale.actors.images.model import events as images
from aetherscale.actors.images.model.views import ImageView
from aetherscale.actors.images.ports import IMAGE_FILES, ImageFiles
from aetherscale.kernel.calls import Call
from aetherscale.kernel.errors import Reason, Refused, Task
from aetherscale.kernel.findings import Finding
from aetherscale.runtime.component import Command, Component, Driver, Host, Listing, Query, World
from aetherscale.settings import Settings

BOOTS_AT_ONCE: Final = max(4, os.cpu_count() or 1)
"""QEMUs that are being started at the same time; after a reboot of the host, in the order of their creation."""
LIVING: Final = frozenset({"running", "paused"})
"""The observed states of a VM that has a process."""
MIB: Final = 1024 * 1024


def _create(options: CreateVmOptions, call: Call, vm_id: str, world: World) -> commands.CreateVm:
    _only_what_works(options)
    if options.node not in (None, world.node):
        raise Refused(
            Reason.NOT_FOUND,
            f"this is node {world.node!r}, not {options.node!r}",
            field="node",
            remedy=Task("node", "list"),
        )
    image = _usable_image(world, call.tenant, options.image)
    assert image.format is not None
    assert image.size_bytes is not None
    assert image.virtual_size_bytes is not None
    name = options.name or f"vm-{vm_id[:8]}"
    bearer = world.named(events.KIND, call.tenant, name)
    if bearer is not None and bearer.id != vm_id:
        raise Refused(
            Reason.CONFLICT,
            f"a VM named {name!r} exists already (it is {bearer.state.shown})",
            field="name",
            remedy=("take another name, or: ", Task("vm", "delete", name)),
            details={"vm-id": bearer.id},
        )
    spec = commands.VmSpec(
        name=name,
        image_id=image.id,
        image=image.name,
        image_format=image.format,
        image_size_bytes=image.size_bytes,
        ready_channel=image.ready,
        cpus=options.cpus,
        memory_mib=options.memory_mib,
        disk_mib=_disk_mib(options.disk_gib, -(-image.virtual_size_bytes // MIB)),
        restart=options.restart,
        autostart=options.autostart,
        labels=options.labels,
    )
    return commands.CreateVm(vm_id, spec)


def _usable_image(world: World, tenant: str, reference: str) -> ImageView:
    """An image that a VM can be made from. Raises `Refused` (not found, conflict)."""
    missing = Refused(
        Reason.NOT_FOUND,
        f"no such image: {reference!r}",
        field="image",
        remedy=(Task("image", "list"), ", or: ", Task("image", "build", "tiny")),
    )
    try:
        image: ImageView = world.view(images.KIND, tenant, reference)
    except Refused:
        raise missing from None
    if image.phase == "deleted":
        raise missing
    if image.phase != "ready":
        raise Refused(
            Reason.CONFLICT,
            f"the image {reference!r} is not ready but {image.phase}",
            field="image",
            retryable=image.phase in ("importing", "building"),
            remedy=Task("image", "show", reference),
        )
    return image


def _disk_mib(wanted_gib: int | None, image_mib: int) -> int:
    """The size of a disk, never smaller than its image. Raises `Refused` (bad request)."""
    if wanted_gib is None:
        return max(commands.DEFAULT_DISK_GIB * 1024, image_mib)
    if wanted_gib * 1024 < image_mib:
        what = f"a disk of {wanted_gib} GiB is too small for the image: it needs {image_mib} MiB"
        raise Refused(Reason.BAD_REQUEST, what, field="disk-gib")
    return wanted_gib * 1024


def _start(options: VmOptions, call: Call, vm_id: str, world: World) -> commands.StartVm:
    return commands.StartVm(vm_id)


def _stop(options: StopVmOptions, call: Call, vm_id: str, world: World) -> commands.StopVm:
    return commands.StopVm(vm_id, options.kill, options.grace_s)


def _restart(options: VmOptions, call: Call, vm_id: str, world: World) -> commands.RestartVm:
    return commands.RestartVm(vm_id)


def _delete(options: StopVmOptions, call: Call, vm_id: str, world: World) -> commands.DeleteVm:
    return commands.DeleteVm(vm_id, options.kill, options.grace_s)


def _only_what_works(options: CreateVmOptions) -> None:
    """Refuse the options of components that this version does not have: never accept and ignore."""
    later = {
        "virtual-network": options.virtual_network,
        "vpn": options.vpn,
        "public-ip": options.public_ip,
        "init-script": options.init_script,
        "ssh-keys": options.ssh_keys,
        "groups": options.groups,
    }
    for field, value in later.items():
        if value:
            raise Refused(
                Reason.NOT_IMPLEMENTED,
                f"the option {field!r} does not work in this version",
                field=field,
                remedy="leave it out: a VM has user-mode networking",
            )


def _is_listed(options: ListVmsOptions, vm: Vm) -> bool:
    return options.labels.items() <= vm.spec.labels.items()


def _failed(effect: effects.ComputeEffect, reason: str) -> effects.EffectFailed:
    return effects.EffectFailed(effect.key, reason)


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
    )


def _open_simulated(host: Host) -> Driver[Vm, ComputeMessage]:
    from aetherscale.actors.compute.simulated.driver import SimulatedDriver
    from aetherscale.actors.compute.simulated.host import SimulatedHost

    return SimulatedDriver(SimulatedHost())


def _needs(settings: Settings) -> Iterator[Finding]:
    from aetherscale.actors.compute.needs import findings

    return findings(settings)


def _notes(settings: Settings) -> Mapping[str, str]:
    from aetherscale.actors.compute.qemu import users

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
    failed=_failed,
    listing=Listing(ListVmsOptions, VmOptions, _is_listed),
    commands={
        "create-vm": Command(CreateVmOptions, _create, is_up, creates=True),
        "start-vm": Command(VmOptions, _start, is_up),
        "stop-vm": Command(StopVmOptions, _stop, is_stopped, frees=True),
        "restart-vm": Command(VmOptions, _restart, is_up),
        "delete-vm": Command(StopVmOptions, _delete, is_deleted, frees=True),
    },
    open_driver=_open_driver,
    open_simulated=_open_simulated,
    open_service=ComputeService,
    queries={
        "vm-info": Query(VmOptions, ComputeService.info),
        "vm-logs": Query(LogsOptions, ComputeService.logs),
        "exec-vm": Query(ExecOptions, ComputeService.execute),
        "vm-console": Query(ConsoleOptions, ComputeService.console),
        "vm-terminal": Query(TerminalOptions, ComputeService.terminal),
        "console-input": Query(ConsoleInputOptions, ComputeService.typed),
    },
    concurrency={effects.BootVm: BOOTS_AT_ONCE},
    suspicious=(events.VmStepFailed,),
    counts={"vms": lambda vm: True, "vms-running": lambda vm: vm.observed in LIVING},
    needs=_needs,
    notes=_notes,
    lifecycle=LIFECYCLE,
)
