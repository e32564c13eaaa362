"""What follows when something is said to a VM: by a caller, by the host, or by the node that has just come back.

Pure: the state, the message and the time on it are all that a decision may use. A `Refused` is for the caller; an empty
answer means that things are as they were asked to be, or that what was said is about the past.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from aetherscale.actors.compute.model import effects, events
from aetherscale.actors.compute.model.commands import (
    ComputeCommand,
    ComputeFinding,
    CreateVm,
    DeleteVm,
    RestartVm,
    StartVm,
    StopVm,
    VmAdopted,
    VmLost,
    VmStray,
)
from aetherscale.actors.compute.model.effects import ComputeObservation, ComputeOutcome
from aetherscale.actors.compute.model.events import Step, VmEvent
from aetherscale.actors.compute.model.state import FAILED_EXITS, Vm, evolve, is_down, pending
from aetherscale.kernel.decider import Decider
from aetherscale.kernel.errors import Refused
from aetherscale.kernel.times import SECOND_US, to_rfc3339

ComputeMessage = ComputeCommand | ComputeOutcome | ComputeObservation | ComputeFinding

ATTEMPT_LIMIT: Final = 3
"""Attempts at one step before the VM is failed."""
RESTART_LIMIT: Final = 5
"""Restarts by policy without a quiet time between them."""
QUIET_S: Final = 60
"""A run of this length makes the restart policy forget the restarts before it."""


def decide(vm: Vm | None, message: ComputeMessage, at_us: int) -> Sequence[VmEvent]:
    """The events that follow. Raises `Refused` for callers only."""
    if isinstance(message, CreateVm):
        return _create(vm, message)
    if isinstance(message, VmStray):
        return _stray(vm, message, at_us)
    if vm is None or vm.phase == "deleted":
        if isinstance(message, ComputeCommand):
            raise Refused(404, "no such VM: it has been deleted" if vm else "no such VM")
        return ()
    match message:
        case StartVm() | StopVm() | RestartVm() | DeleteVm():
            return _asked(vm, message)
        case effects.GuestReady() | effects.GuestEnded() | effects.VmGone() | effects.VmHeld() | effects.VmContinued():
            return _observed(vm, message, at_us) if message.run == vm.run else ()
        case VmAdopted():
            return (events.VmAdopted(vm.run),) if message.run == vm.run and vm.process else ()
        case VmLost():
            return _lost(vm, message, at_us) if message.run == vm.run and vm.process else ()
        case _:
            return _answered(vm, message, at_us)


def _create(vm: Vm | None, create: CreateVm) -> Sequence[VmEvent]:
    if vm is not None:
        raise Refused(409, f"the VM {create.vm_id} exists already")
    return (events.VmRequested(create.vm_id, create.spec),)


def _asked(vm: Vm, command: StartVm | StopVm | RestartVm | DeleteVm) -> Sequence[VmEvent]:
    if isinstance(command, DeleteVm):
        hastened = command.kill and vm.phase == "stopping" and not vm.force
        if vm.requested == "deleted" and not vm.stuck and not hastened:
            return ()
        return (events.VmDeleteRequested(command.kill, command.grace_s),)
    if vm.requested == "deleted":
        raise Refused(409, f"the VM {vm.name!r} is being deleted", hint=f"aetherscale vm show {vm.id}")
    down = is_down(vm)
    match command:
        case StartVm():
            # Nobody wants one running that is stopped: who ended it, or what, has changed that.
            coming_up = vm.requested == "running" and vm.phase not in ("failed", "stopping")
            if coming_up or (vm.phase == "stopping" and vm.start_next):
                return ()
            return (events.VmStartRequested(),)
        case RestartVm():
            if vm.phase in ("provisioning", "booting") and vm.requested == "running":
                return ()
            if down or vm.phase == "provisioning":
                return (events.VmStartRequested(),)
            return (events.VmRestartRequested(vm.grace_s),)
        case StopVm():
            hastened = command.kill and not vm.force
            if vm.requested == "stopped" and not vm.stuck and (down or not hastened):
                return ()
            return (events.VmStopRequested(command.kill, command.grace_s),)


def _observed(
    vm: Vm,
    observation: effects.GuestReady | effects.GuestEnded | effects.VmGone | effects.VmHeld | effects.VmContinued,
    at_us: int,
) -> Sequence[VmEvent]:
    up = vm.phase in ("running", "ready", "paused")
    match observation:
        case effects.GuestReady():
            awaited = vm.phase == "booting" or up
            return (events.VmReady(vm.run, observation.channel),) if awaited and not vm.ready else ()
        case effects.VmHeld():
            return (events.VmPaused(vm.run, observation.reason, observation.detail),) if up else ()
        case effects.VmContinued():
            return (events.VmResumed(vm.run),) if vm.phase == "paused" else ()
        case effects.GuestEnded():
            live = up or (vm.phase == "stopping" and not vm.ended)
            return (events.VmEnded(vm.run, observation.reason, observation.detail),) if live else ()
        case effects.VmGone():
            if not up and vm.phase != "stopping":
                return ()
            return _exit(vm, observation.exit_code, observation.signal, observation.detail, observation.log_tail, at_us)


def _lost(vm: Vm, lost: VmLost, at_us: int) -> Sequence[VmEvent]:
    rebooted = vm.process is not None and vm.process.boot_id != lost.boot_id
    if rebooted and not vm.ended and vm.requested == "running":
        gone = events.VmExited(vm.run, "host-reboot", None, None, "", "")
        back = vm.spec.autostart and not vm.start_next
        return (gone, events.VmRestartScheduled(0, to_rfc3339(at_us))) if back else (gone,)
    return _exit(vm, None, None, "", "", at_us, unseen=True)


def _stray(vm: Vm | None, stray: VmStray, at_us: int) -> Sequence[VmEvent]:
    """What is ours and unwanted: all of a VM that is none of ours, the process of one that is at rest."""
    if vm is None or vm.phase == "deleted":
        keep_as = f"{stray.vm_id}-{to_rfc3339(at_us)}"
    elif stray.has_process and is_down(vm) and pending(vm) is None and not vm.stuck:
        keep_as = ""
    else:
        return ()
    return (events.VmStrayFound(stray.vm_id, stray.has_process, stray.has_directory, keep_as),)


def _answered(vm: Vm, outcome: ComputeOutcome, at_us: int) -> Sequence[VmEvent]:
    match outcome:
        case effects.DiskProvisioned():
            return (events.DiskProvisioned(outcome.disk_mib),)
        case effects.Booted():
            return (_booted(vm, outcome),)
        case effects.ShutdownIgnored():
            return (events.VmStopForced(vm.run, outcome.waited_s),)
        case effects.Ended() if vm.unsure:
            return (events.VmCleared(vm.run),)
        case effects.Ended():
            return _exit(vm, outcome.exit_code, outcome.signal, "", outcome.log_tail, at_us)
        case effects.Removed():
            return (events.VmDeleted(),)
        case effects.Collected():
            return (events.VmCollected(outcome.kept_in),)
        case effects.EffectFailed():
            return _failed(vm, outcome, at_us)


def _exit(
    vm: Vm, code: int | None, signal: int | None, detail: str, log_tail: str, at_us: int, *, unseen: bool = False
) -> Sequence[VmEvent]:
    """The end of a run, and what the restart policy makes of it."""
    exited = events.VmExited(vm.run, _exit_reason(vm, unseen=unseen), code, signal, detail or vm.ended_detail, log_tail)
    if vm.requested != "running" or vm.start_next or not _restarts(vm, exited):
        return (exited,)
    quiet = at_us - vm.running_since_us >= QUIET_S * SECOND_US
    attempt = 1 if quiet else vm.restarts + 1
    if attempt > RESTART_LIMIT:
        return (exited, events.VmGaveUp(vm.restarts)) if exited.reason in FAILED_EXITS else (exited,)
    return (exited, events.VmRestartScheduled(attempt, _later(at_us, attempt)))


def _exit_reason(vm: Vm, *, unseen: bool) -> events.ExitReason:
    if vm.asked_down:
        return "user"
    if vm.ended:
        return "panic" if vm.ended == "panic" else "guest"
    return "unknown" if unseen else "crash"


def _restarts(vm: Vm, exited: events.VmExited) -> bool:
    policy = vm.spec.restart
    return policy == "always" or (policy == "on-failure" and exited.reason in FAILED_EXITS)


def _failed(vm: Vm, failed: effects.EffectFailed, at_us: int) -> Sequence[VmEvent]:
    step = _step(vm)
    again = failed.retryable and vm.attempt < ATTEMPT_LIMIT
    event = events.VmStepFailed(
        step=step,
        run=vm.run,
        attempt=vm.attempt,
        reason=failed.reason,
        hint=failed.hint,
        log_tail=failed.log_tail,
        retry_at=_later(at_us, vm.attempt) if again else None,
    )
    undo = not again and not vm.ever_ran and step in ("provisioning", "booting") and vm.requested == "running"
    return (event, events.VmUndone()) if undo else (event,)


def _booted(vm: Vm, booted: effects.Booted) -> events.VmBooted:
    return events.VmBooted(
        vm.run, booted.pid, booted.start_ticks, booted.boot_id, booted.accelerator, booted.process_user
    )


def _step(vm: Vm) -> Step:
    if vm.unsure:
        return "stopping"
    match vm.phase:
        case "provisioning":
            return "provisioning"
        case "booting":
            return "booting"
        case "stopping":
            return "stopping"
        case _:
            return "removing"


def _later(at_us: int, attempt: int) -> str:
    """1, 2, 4 … seconds from now; attempts have their limits."""
    return to_rfc3339(at_us + 2 ** (attempt - 1) * SECOND_US)


COMPUTE: Final[Decider[Vm, ComputeMessage, VmEvent, effects.ComputeEffect]] = Decider(decide, evolve, pending)
