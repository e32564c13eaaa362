"""How a VM looks from outside, and when a task has come to its end. Pure."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from typing import Final, Literal

from aetherscale.actors.compute.model import events
from aetherscale.actors.compute.model.events import VmEvent
from aetherscale.actors.compute.model.evolve import evolve
from aetherscale.actors.compute.model.sentences import VM_DESCRIPTIONS, describe_pause
from aetherscale.actors.compute.model.state import Failure, ProcessIdentity, Vm
from aetherscale.actors.compute.model.views import ExitView, FailureView, VmView
from aetherscale.actors.images.model import events as images
from aetherscale.kernel.errors import Reason, Refused, Task
from aetherscale.kernel.registry import Kind
from aetherscale.kernel.replies import Chunk, status
from aetherscale.kernel.reservations import Holding, Name, Use
from aetherscale.kernel.times import to_rfc3339


def view(vm: Vm, node: str, revision: int, requested_by: str | None = None) -> VmView:
    """The view of a VM that lives on `node`; `revision` is the version of its stream."""
    spec, process = vm.spec, vm.run.process
    return VmView(
        id=vm.id,
        name=vm.name,
        node=node,
        phase=vm.shown,
        requested=vm.requested,
        observed=vm.observed,
        since=to_rfc3339(vm.phase_since_us),
        image=spec.image,
        cpus=spec.cpus,
        memory_mib=spec.memory_mib,
        disk_gib=-(-spec.disk_mib // 1024),
        restart=spec.restart,
        autostart=spec.autostart,
        ports=[],
        failure=_failure(vm.failure),
        revision=revision,
        labels=spec.labels,
        accelerator=process.accelerator if process else None,
        isolation=isolation(process) if process else None,
        process_user=process.process_user if process else None,
        paused_reason=vm.run.paused_reason,
        restarts=vm.restarts,
        exit=_exit(vm.exit),
        ready_by=spec.ready_channel,
        requested_by=requested_by,
    )


def isolation(process: ProcessIdentity) -> Literal["kvm", "none"]:
    """What stands between this QEMU's guest and the host."""
    # Older events do not say whose process it was: their VMs are shown as they always were.
    return "kvm" if process.accelerator == "kvm" and process.process_user in ("own", None) else "none"


def holds(vm: Vm) -> Sequence[Holding]:
    """What a VM holds: its name, and the image that its disk is an overlay on, until it is deleted."""
    if vm.phase == "deleted" or vm.is_orphan:
        return ()
    name = Name(events.KIND, vm.name)
    return (name, Use(images.KIND, vm.spec.image_id)) if vm.spec.image_id else (name,)


def announce(vm: Vm, event: VmEvent) -> Chunk | None:
    """The status that a waiting caller is told of an event, if any."""
    match event:
        case events.VmRequested():
            return status("allocating", vm_id=vm.id, name=vm.name)
        case events.DiskProvisioned() if vm.requested == "running":
            return status("starting", vm_id=vm.id)
        case events.VmStartRequested() | events.VmExited() if vm.phase == "booting":
            return status("starting", vm_id=vm.id)
        case events.VmBooted():
            return status("running", vm_id=vm.id, accelerator=event.accelerator)
        case events.VmStopRequested() | events.VmRestartRequested():
            return status("stopping", vm_id=vm.id, **_grace(vm))
        case events.VmStopForced():
            return status("forcing", vm_id=vm.id, waited_s=event.waited_s)
        case events.VmDeleteRequested():
            return status("deleting", vm_id=vm.id, **_grace(vm))
        case events.VmRestartScheduled():
            return status("restarting", vm_id=vm.id, attempt=event.attempt, not_before=event.not_before)
        case events.VmStepFailed() if event.retry_at is not None:
            return status("retrying", vm_id=vm.id, step=event.step, reason=event.reason, not_before=event.retry_at)
        case events.VmUndone():
            return status("undoing", vm_id=vm.id)
        case _:
            return None


def _grace(vm: Vm) -> dict[str, float]:
    """How long the guest has until it is ended, where it is asked first."""
    return {"grace_s": vm.grace_s} if vm.phase == "shutting-down" else {}


def is_up(vm: Vm) -> bool:
    """Whether a VM that was to come up has; raises `Refused` where it will not."""
    if vm.rolled_back:
        if vm.phase == "deleted" or vm.attempt.blocked:
            cleanup = "has been removed" if vm.phase == "deleted" else "could not be removed"
            raise _failed(vm, f"the VM could not be created, and what had been created of it {cleanup}")
        return False
    if vm.requested == "deleted":
        raise Refused(Reason.CONFLICT, f"the VM {vm.name!r} was deleted before it was ready")
    if vm.shown == "failed":
        raise _failed(vm, f"the VM {vm.name!r} failed")
    if vm.phase == "paused":
        what, way_on = describe_pause(vm)
        raise Refused(Reason.INTERNAL, what, remedy=way_on, details={"vm-id": vm.id, "phase": "paused"})
    if vm.requested == "stopped":
        raise Refused(Reason.CONFLICT, f"the VM {vm.name!r} was stopped before it was ready", details={"vm-id": vm.id})
    return vm.phase == "ready" or (vm.phase == "running" and vm.spec.ready_channel == "none")


def is_stopped(vm: Vm) -> bool:
    """Whether a VM that was to stop has; raises `Refused` where it cannot be stopped."""
    if vm.attempt.blocked and vm.observed in ("running", "paused"):
        raise _failed(vm, f"the VM {vm.name!r} could not be stopped")
    # The one that starts again at once has been down all the same.
    return vm.is_down or vm.phase == "deleted" or (vm.phase == "booting" and vm.observed == "exited")


def is_deleted(vm: Vm) -> bool:
    """Whether a VM that was to be deleted is; raises `Refused` where that failed."""
    if vm.shown == "failed" and vm.attempt.blocked:
        raise _failed(vm, f"the VM {vm.name!r} could not be deleted")
    return vm.phase == "deleted"


def _failed(vm: Vm, what: str) -> Refused:
    failure = vm.failure or Failure("", "no reason is on record")
    return Refused(
        Reason.INTERNAL,
        f"{what}: {failure.phase}: {failure.reason}",
        remedy=failure.hint or Task("why", "vm", vm.name),
        details={"vm-id": vm.id, "phase": failure.phase, "reason": failure.reason, "log-tail": failure.log_tail},
    )


def _failure(failure: Failure | None) -> FailureView | None:
    return FailureView(failure.phase, failure.reason, failure.hint, failure.log_tail) if failure else None


def _exit(event: events.VmExited | None) -> ExitView | None:
    return ExitView(event.reason, event.exit_code, event.signal, event.detail) if event else None


VM_KIND: Final[Kind[Vm]] = Kind(events.KIND, Vm, typing.get_args(VmEvent), evolve, view, VM_DESCRIPTIONS, version=3)
