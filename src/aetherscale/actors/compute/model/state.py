"""The state of one VM, what events make of it, and what is pending on the host in it.

    provisioning ──DiskProvisioned──▶ booting ──VmBooted──▶ running ──VmReady──▶ ready ◀──VmPaused/Resumed──▶ paused
         ▲                              ▲                      └───────────┬───────────┘
         │ VmStartRequested, no disk    │ VmStartRequested,               │ VmStopRequested, VmRestartRequested,
         │                              │ VmRestartScheduled              ▼ VmEnded
       stopped, failed ◀──VmExited── stopping (graceful ──VmStopForced──▶ forced)
         │
         ▼ VmDeleteRequested, VmUndone: the host is asked to remove it
       deleted

What is owed depends on the phase: provisioning owes a disk, booting a boot, stopping a shutdown or an end, and stopped
or failed a removal where deletion was asked for. A boot that failed for good may have left a process, which is ended
before the VM is at rest (VmCleared). Nothing else owes anything.

What the host has of a VM that should have nothing there (VmStrayFound) is collected: the process is ended, the
directory kept elsewhere (VmCollected). A stream may begin so: of a VM that the log has never heard of.
"""

from __future__ import annotations

from typing import Final, Literal

from msgspec import Struct
from msgspec.structs import replace

from aetherscale.actors.compute.model.commands import DEFAULT_GRACE_S, VmSpec
from aetherscale.actors.compute.model.effects import (
    BootVm,
    CollectVm,
    ComputeEffect,
    EndVm,
    PauseReason,
    ProcessUser,
    ProvisionDisk,
    RemoveVm,
    ShutDownVm,
)
from aetherscale.actors.compute.model.events import (
    DiskProvisioned,
    ExitReason,
    VmAdopted,
    VmBooted,
    VmCleared,
    VmCollected,
    VmDeleted,
    VmDeleteRequested,
    VmEnded,
    VmEvent,
    VmExited,
    VmGaveUp,
    VmPaused,
    VmReady,
    VmRequested,
    VmRestartRequested,
    VmRestartScheduled,
    VmResumed,
    VmStartRequested,
    VmStepFailed,
    VmStopForced,
    VmStopRequested,
    VmStrayFound,
    VmUndone,
)
from aetherscale.actors.compute.model.views import Observed, Phase, Requested
from aetherscale.kernel.times import from_rfc3339

PROVISION_S: Final = 60.0
"""How long a disk may take to be made."""
SLOWEST_COPY_BYTES_S: Final = 4 * 1024 * 1024
"""And a second more for each of these of its image, where that has to be copied."""
ASKING_S: Final = 30.0
"""How much longer than the guest's time a graceful stop may take: QEMU has to be asked, and may hang."""
FAILED_EXITS: Final[frozenset[ExitReason]] = frozenset({"panic", "crash", "unknown"})


class Failure(Struct, frozen=True):
    """Why the VM failed, for its view."""

    phase: str
    reason: str
    hint: str = ""
    log_tail: str = ""


class ProcessIdentity(Struct, frozen=True):
    """What names the process of the present run for as long as the host is up."""

    pid: int
    start_ticks: int
    boot_id: str
    accelerator: Literal["kvm", "tcg"]
    process_user: ProcessUser | None = None


class Vm(Struct, frozen=True, gc=False):
    """One VM, as its events add up."""

    id: str
    spec: VmSpec
    phase: Phase
    phase_since_us: int
    requested: Requested = "running"
    observed: Observed = "absent"
    has_disk: bool = False
    ever_ran: bool = False
    ready: bool = False
    undone: bool = False
    run: int = 0
    """The present run, or the last one; runs are numbered from 1."""
    running_since_us: int = 0
    process: ProcessIdentity | None = None
    force: bool = False
    """While stopping: whether the guest is no longer asked."""
    asked_down: bool = False
    """While stopping: whether it was somebody's wish, not the guest's."""
    start_next: bool = False
    """While stopping: whether it starts again after that."""
    grace_s: float = DEFAULT_GRACE_S
    ended: Literal["", "shutdown", "panic"] = ""
    """How the guest itself ended the present run, while QEMU still holds it."""
    ended_detail: str = ""
    attempt: int = 1
    """Which attempt at the step that is owed now."""
    not_before_us: int = 0
    stuck: bool = False
    """The host has refused the step for good: nothing is owed until somebody asks again."""
    unsure: bool = False
    """Whether a boot that failed for good may have left a process: an attempt of before may have, or half of one."""
    stray: bool = False
    """Whether it was found where it should not be, and is being collected."""
    kept_as: str = ""
    """What the directory of a stray is called once it is out of the way; then, where that is."""
    restarts: int = 0
    """Restarts by policy since it last ran for a while."""
    paused_reason: PauseReason | None = None
    failure: Failure | None = None
    exit: VmExited | None = None

    @property
    def name(self) -> str:
        """The name that it bears until it is deleted."""
        return self.spec.name


def evolve(state: Vm | None, event: VmEvent, at_us: int) -> Vm:
    """The VM after an event; never fails on a stream that `decide` has written."""
    if isinstance(event, VmRequested):
        return Vm(id=event.vm_id, spec=event.spec, phase="provisioning", phase_since_us=at_us)
    if state is None:
        assert isinstance(event, VmStrayFound), f"a VM's stream does not begin with {type(event).__name__}"
        state = _unheard_of(event.vm_id, at_us)
    after = _evolve(state, event, at_us)
    if after.phase != state.phase:
        after = replace(after, phase_since_us=at_us)
    return after


def _evolve(vm: Vm, event: VmEvent, at_us: int) -> Vm:
    # What happens most comes first: each case above it costs a look, and a replay folds millions of events.
    match event:
        case VmBooted():
            return replace(
                vm,
                phase="ready" if vm.ready else "running",
                observed="running",
                ever_ran=True,
                running_since_us=at_us,
                process=ProcessIdentity(
                    event.pid, event.start_ticks, event.boot_id, event.accelerator, event.process_user
                ),
                attempt=1,
                not_before_us=0,
            )
        case VmReady():
            return replace(vm, ready=True, phase="ready" if vm.phase == "running" else vm.phase)
        case VmExited():
            return _exited(vm, event)
        case VmStopRequested():
            vm = replace(vm, requested="stopped", grace_s=event.grace_s, start_next=False, stuck=False)
            return _stop(vm, force=event.kill)
        case VmStartRequested():
            return _start(replace(vm, requested="running", failure=None, restarts=0, stuck=False))
        case DiskProvisioned():
            spec = replace(vm.spec, disk_mib=event.disk_mib)
            vm = replace(vm, has_disk=True, spec=spec, attempt=1, not_before_us=0)
            return _boot(vm) if vm.requested == "running" else replace(vm, phase="stopped")
        case VmPaused():
            return replace(vm, phase="paused", observed="paused", paused_reason=event.reason)
        case VmResumed():
            return replace(vm, phase="ready" if vm.ready else "running", observed="running", paused_reason=None)
        case VmRestartRequested():
            vm = replace(vm, requested="running", grace_s=event.grace_s, start_next=True, restarts=0, stuck=False)
            return _stop(vm, force=False)
        case VmDeleteRequested():
            vm = replace(
                vm,
                requested="deleted",
                grace_s=event.grace_s,
                start_next=False,
                unsure=False,
                failure=None,
                stuck=False,
            )
            return _stop(vm, force=event.kill)
        case VmStopForced():
            return replace(vm, force=True, attempt=1)
        case VmEnded():
            return replace(
                vm,
                phase="stopping",
                force=True,
                attempt=1,
                observed="paused",
                paused_reason=None,
                ended=event.reason,
                ended_detail=event.detail,
            )
        case VmRestartScheduled():
            restarting = replace(vm, requested="running", restarts=event.attempt, failure=None)
            return replace(_boot(restarting), not_before_us=from_rfc3339(event.not_before))
        case VmGaveUp():
            assert vm.failure is not None
            reason = f"{vm.failure.reason}; given up after {event.restarts} restarts"
            return replace(vm, failure=replace(vm.failure, reason=reason))
        case VmAdopted() | VmRequested():
            return vm
        case VmStepFailed():
            return _step_failed(vm, event)
        case VmCleared():
            return replace(vm, unsure=False, attempt=1, not_before_us=0)
        case VmStrayFound() if vm.phase == "deleted":
            return replace(vm, phase="stopped", stray=True, kept_as=event.keep_as, attempt=1, not_before_us=0)
        case VmStrayFound():
            return replace(vm, unsure=True)
        case VmCollected():
            return replace(vm, phase="deleted", stray=False, kept_as=event.kept_in)
        case VmUndone():
            # It follows on a failure for good, and stays failed until nothing of it is left.
            return replace(vm, requested="deleted", undone=True, unsure=False, attempt=1, stuck=False)
        case VmDeleted():
            return replace(vm, phase="deleted", observed="absent", has_disk=False)


def pending(vm: Vm) -> ComputeEffect | None:
    """The one piece of work that is pending on the host now; see the drawing above."""
    if vm.unsure and vm.phase in ("stopped", "failed"):
        return EndVm(key=f"clear-{vm.run}-{vm.attempt}", vm_id=vm.id, run=vm.run, not_before_us=vm.not_before_us)
    if vm.stuck:
        return None
    match vm.phase:
        case "provisioning":
            return ProvisionDisk(
                key=f"provision-{vm.attempt}",
                vm_id=vm.id,
                image_id=vm.spec.image_id,
                image_format=vm.spec.image_format,
                disk_mib=vm.spec.disk_mib,
                image_size_bytes=vm.spec.image_size_bytes,
                deadline_s=PROVISION_S + vm.spec.image_size_bytes / SLOWEST_COPY_BYTES_S,
                not_before_us=vm.not_before_us,
            )
        case "booting":
            return BootVm(
                key=f"boot-{vm.run}-{vm.attempt}",
                vm_id=vm.id,
                run=vm.run,
                cpus=vm.spec.cpus,
                memory_mib=vm.spec.memory_mib,
                ready_channel=vm.spec.ready_channel,
                image_format=vm.spec.image_format,
                not_before_us=vm.not_before_us,
            )
        case "stopping" if vm.force:
            key = f"end-{vm.run}-{vm.attempt}"
            return EndVm(key=key, vm_id=vm.id, run=vm.run, not_before_us=vm.not_before_us)
        case "stopping":
            # Whoever gives the guest another time begins anew: the last one who asked counts.
            key = f"shut-down-{vm.run}-{vm.attempt}-{vm.grace_s:g}"
            return ShutDownVm(
                key=key,
                vm_id=vm.id,
                run=vm.run,
                grace_s=vm.grace_s,
                deadline_s=vm.grace_s + ASKING_S,
                not_before_us=vm.not_before_us,
            )
        case "stopped" | "failed" if vm.requested == "deleted":
            if vm.stray:
                key = f"collect-{vm.kept_as}-{vm.attempt}"
                return CollectVm(key=key, vm_id=vm.id, keep_as=vm.kept_as, not_before_us=vm.not_before_us)
            return RemoveVm(key=f"remove-{vm.attempt}", vm_id=vm.id, run=vm.run, not_before_us=vm.not_before_us)
        case _:
            return None


def _unheard_of(vm_id: str, at_us: int) -> Vm:
    """A VM of which the log knows nothing but its id."""
    spec = VmSpec(
        name=f"stray-{vm_id}",
        image_id="",
        image="",
        image_format="qcow2",
        image_size_bytes=0,
        ready_channel="none",
        cpus=0,
        memory_mib=0,
        disk_mib=0,
        restart="never",
        autostart=False,
        labels={},
    )
    return Vm(id=vm_id, spec=spec, phase="deleted", phase_since_us=at_us, requested="deleted")


def is_down(vm: Vm) -> bool:
    """Whether the VM is at rest with no process of its own."""
    return vm.phase in ("stopped", "failed") and vm.observed in ("absent", "exited")


def _start(vm: Vm) -> Vm:
    if vm.phase == "stopping":
        return replace(vm, start_next=True)
    if vm.observed in ("running", "paused"):
        # It failed to end: it has to, before it can start again.
        return replace(vm, phase="stopping", force=True, start_next=True, attempt=1)
    if not vm.has_disk:
        return replace(vm, phase="provisioning", attempt=1, not_before_us=0)
    return _boot(vm)


def _boot(vm: Vm) -> Vm:
    """The next run, from its first attempt."""
    return replace(
        vm,
        phase="booting",
        run=vm.run + 1,
        ready=False,
        force=False,
        asked_down=False,
        start_next=False,
        unsure=False,
        attempt=1,
        not_before_us=0,
    )


def _stop(vm: Vm, *, force: bool) -> Vm:
    """On the way down. Where no process can be, there is nothing to end."""
    if vm.phase == "provisioning":
        # A disk that is half made is finished, unless it is to be removed anyway.
        return replace(vm, phase="stopped", attempt=1, not_before_us=0) if vm.requested == "deleted" else vm
    if is_down(vm):
        return replace(vm, phase="stopped", failure=None, attempt=1, not_before_us=0)
    # A guest that is not running yet, or is held by QEMU, cannot hear the power button.
    deaf = vm.phase in ("booting", "paused", "failed") or vm.ended != ""
    return replace(
        vm,
        phase="stopping",
        force=vm.force or force or deaf,
        asked_down=vm.asked_down or not vm.ended,
        attempt=1,
        not_before_us=0,
        paused_reason=None,
    )


def _exited(vm: Vm, event: VmExited) -> Vm:
    vm = replace(
        vm,
        observed="exited",
        exit=event,
        stuck=False,
        process=None,
        paused_reason=None,
        ended="",
        ended_detail="",
        attempt=1,
        not_before_us=0,
    )
    if vm.start_next:
        return _boot(vm)
    if event.reason in FAILED_EXITS and vm.requested == "running":
        return replace(vm, phase="failed", failure=Failure("running", exit_sentence(event), "", event.log_tail))
    if vm.requested == "running":
        vm = replace(vm, requested="stopped")
    return replace(vm, phase="stopped")


def exit_sentence(event: VmExited) -> str:
    """How a run ended, in words."""
    match event.reason:
        case "user":
            what = "stopped by request"
        case "guest":
            what = "the guest shut itself down"
        case "panic":
            what = "the guest's kernel panicked"
        case "host-reboot":
            what = "the host was rebooted"
        case "unknown":
            what = "the process vanished while the node was away; exit status unknown"
        case _:
            if event.signal is not None:
                what = f"QEMU was ended by signal {event.signal}"
            elif event.exit_code is not None:
                what = f"QEMU exited with status {event.exit_code}"
            else:
                what = "QEMU vanished; exit status unknown"
    return f"{what} ({event.detail})" if event.detail else what


def _step_failed(vm: Vm, event: VmStepFailed) -> Vm:
    if event.retry_at is not None:
        return replace(vm, attempt=event.attempt + 1, not_before_us=from_rfc3339(event.retry_at))
    failure = Failure(event.step, event.reason, event.hint, event.log_tail)
    unsure = event.step == "booting"
    attempt = 1 if unsure else vm.attempt
    return replace(
        vm,
        phase="failed",
        failure=failure,
        start_next=False,
        unsure=unsure,
        attempt=attempt,
        not_before_us=0,
        stuck=True,
    )
