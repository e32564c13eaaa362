"""What follows when something is said to a VM: by a caller, by the host, or by the node that has just come back.

Pure: the state, the message and the time on it are all that a decision may use. A `Refused` is for the caller; an empty
answer means that things are as they were asked to be, or that what was said is about the past.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from aetherscale.actors.compute.model import effects, events
from aetherscale.actors.compute.model.commands import (
    DEFAULT_GRACE_S,
    UNREADY_GRACE_S,
    ComputeCommand,
    ComputeFinding,
    CreateVm,
    DeleteVm,
    RestartVm,
    StartVm,
    StopVm,
    VmAdopted,
    VmLost,
    VmOrphan,
)
from aetherscale.actors.compute.model.effects import ComputeObservation, ComputeOutcome
from aetherscale.actors.compute.model.events import Step, VmEvent
from aetherscale.actors.compute.model.evolve import evolve
from aetherscale.actors.compute.model.initdecisions import failed_to_remove_script, init_ended
from aetherscale.actors.compute.model.pending import pending
from aetherscale.actors.compute.model.portcommands import AttachPort, DetachPort, PortCommand
from aetherscale.actors.compute.model.portdecisions import change_ports, failed_to_plug, failed_to_unplug
from aetherscale.actors.compute.model.rulecommands import (
    AddForward,
    AttachGroup,
    DetachGroup,
    RemoveForward,
    RuleCommand,
)
from aetherscale.actors.compute.model.ruledecisions import change_rules, failed_to_apply, require_wanted
from aetherscale.actors.compute.model.state import FAILED_EXITS, STOPPING, UP, Vm, VmPhase
from aetherscale.kernel.attempts import backoff
from aetherscale.kernel.decider import Decider
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.failures import EffectFailed
from aetherscale.kernel.times import SECOND_US, to_rfc3339

ComputeMessage = ComputeCommand | RuleCommand | PortCommand | ComputeOutcome | ComputeObservation | ComputeFinding

RESTART_LIMIT: Final = 5
"""Restarts by policy without a quiet time between them."""
QUIET_S: Final = 60
"""A run of this length makes the restart policy forget the restarts before it."""
COMING_UP: Final[frozenset[VmPhase]] = frozenset({"provisioning", "booting"})
STEPS: Final[Mapping[VmPhase, Step]] = {
    "provisioning": "provisioning",
    "booting": "booting",
    "shutting-down": "stopping",
    "ending": "stopping",
    "clearing": "stopping",
    "failing": "stopping",
    "removing": "removing",
    "rolling-back": "removing",
    "quarantining": "removing",
}
"""What a step is called in the event of its failure."""


def decide(vm: Vm | None, message: ComputeMessage, at_us: int) -> Sequence[VmEvent]:
    """The events that follow. Raises `Refused` for callers only."""
    if isinstance(message, CreateVm):
        return _create(vm, message)
    if isinstance(message, VmOrphan):
        return _orphan(vm, message, at_us)
    if vm is None or vm.phase == "deleted":
        if isinstance(message, ComputeCommand | RuleCommand | PortCommand):
            raise Refused(Reason.NOT_FOUND, "no such VM: it has been deleted" if vm else "no such VM")
        return ()
    match message:
        case StartVm() | StopVm() | RestartVm() | DeleteVm():
            return _asked(vm, message)
        case AttachGroup() | DetachGroup() | AddForward() | RemoveForward():
            return change_rules(vm, message)
        case AttachPort() | DetachPort():
            return change_ports(vm, message)
        case (
            effects.GuestReady()
            | effects.GuestEnded()
            | effects.VmGone()
            | effects.GuestPaused()
            | effects.GuestResumed()
        ):
            return _observed(vm, message, at_us) if message.run == vm.run.number else ()
        case effects.InitEnded():
            return init_ended(vm, message) if message.run == vm.run.number else ()
        case VmAdopted():
            return (events.VmAdopted(vm.run.number),) if message.run == vm.run.number and vm.run.process else ()
        case VmLost():
            return _lost(vm, message, at_us) if message.run == vm.run.number and vm.run.process else ()
        case _:
            return _answered(vm, message, at_us)


def _create(vm: Vm | None, create: CreateVm) -> Sequence[VmEvent]:
    if vm is not None:
        raise Refused(Reason.CONFLICT, f"the VM {create.vm_id} exists already")
    return (events.VmRequested(create.vm_id, create.spec),)


def _asked(vm: Vm, command: StartVm | StopVm | RestartVm | DeleteVm) -> Sequence[VmEvent]:
    if isinstance(command, DeleteVm):
        # A deletion is asked for once; again where the host has refused it, or to end a guest that still has its time.
        hastened = command.kill and vm.phase == "shutting-down"
        if vm.requested == "deleted" and not vm.attempt.blocked and not hastened:
            return ()
        return (events.VmDeleteRequested(command.kill, _grace_of_deletion(vm, command.grace_s)),)
    require_wanted(vm)
    match command:
        case StartVm():
            # What is up, or on its way there, is as it was asked to be; so is what starts again after its stop.
            is_up = vm.requested == "running" and (vm.phase in COMING_UP or vm.phase in UP)
            if is_up or (vm.phase in STOPPING and vm.run.start_next):
                return ()
            return (events.VmStartRequested(),)
        case RestartVm():
            # One that boots is as new as a restart would make it.
            if vm.phase in COMING_UP and vm.requested == "running":
                return ()
            # Where no process is, there is nothing to end first.
            if vm.is_down or vm.phase == "provisioning":
                return (events.VmStartRequested(),)
            return (events.VmRestartRequested(vm.grace_s),)
        case StopVm():
            # A second stop changes nothing, unless it ends a guest that still has its time, or the host has refused it.
            hastened = command.kill and vm.phase != "ending"
            if vm.requested == "stopped" and not vm.attempt.blocked and (vm.is_down or not hastened):
                return ()
            return (events.VmStopRequested(command.kill, command.grace_s),)


def _grace_of_deletion(vm: Vm, asked_s: float | None) -> float:
    """What a guest is given that is deleted. One that never said ready, though its image does, hardly hears that it is
    to power off, and its disk is removed in any case.
    """
    if asked_s is not None:
        return asked_s
    has_not_booted = vm.phase == "running" and vm.spec.ready_channel != "none" and not vm.run.is_ready
    return UNREADY_GRACE_S if has_not_booted else DEFAULT_GRACE_S


def _observed(
    vm: Vm,
    observation: effects.GuestReady | effects.GuestEnded | effects.VmGone | effects.GuestPaused | effects.GuestResumed,
    at_us: int,
) -> Sequence[VmEvent]:
    up = vm.phase in UP
    match observation:
        case effects.GuestReady():
            # A guest may be heard before QMP has answered the boot; readiness is said once a run.
            awaited = vm.phase == "booting" or up
            return (events.VmReady(vm.run.number, observation.channel),) if awaited and not vm.run.is_ready else ()
        case effects.GuestPaused():
            # One that is being ended is paused by that, too, which is no news.
            return (events.VmPaused(vm.run.number, observation.reason, observation.detail),) if up else ()
        case effects.GuestResumed():
            # Only of one that is paused is it news.
            return (events.VmResumed(vm.run.number),) if vm.phase == "paused" else ()
        case effects.GuestEnded():
            # Put on record before QEMU is let go, so that who ended it is known even if the node dies now.
            live = up or (vm.phase in STOPPING and vm.run.ended is None)
            return (events.VmEnded(vm.run.number, observation.reason, observation.detail),) if live else ()
        case effects.VmGone():
            # A process that ends before its boot is answered is the boot's to tell.
            if not up and vm.phase not in STOPPING:
                return ()
            return _exit(vm, observation.exit_code, observation.signal, observation.detail, observation.log_tail, at_us)


def _lost(vm: Vm, lost: VmLost, at_us: int) -> Sequence[VmEvent]:
    rebooted = vm.run.process is not None and vm.run.process.boot_id != lost.boot_id
    # A reboot is not a failure of the VM. It does not bring back what was over before, or was to be down.
    if rebooted and vm.run.ended is None and vm.requested == "running":
        gone = events.VmExited(vm.run.number, "host-reboot", None, None, "", "")
        back = vm.spec.autostart and not vm.run.start_next
        return (gone, events.VmRestartScheduled(0, to_rfc3339(at_us))) if back else (gone,)
    return _exit(vm, None, None, "", "", at_us, unseen=True)


def _orphan(vm: Vm | None, orphan: VmOrphan, at_us: int) -> Sequence[VmEvent]:
    """What is ours and unwanted: all of a VM that is none of ours, the process of one that is at rest."""
    if vm is None or vm.phase == "deleted":
        keep_as = f"{orphan.vm_id}-{to_rfc3339(at_us)}"
    elif orphan.has_process and (vm.phase == "stopped" or (vm.phase == "failed" and not vm.attempt.blocked)):
        # What the host has refused to end is left until a caller asks; work that is pending may be the process's own.
        keep_as = ""
    else:
        return ()
    return (events.VmStrayFound(orphan.vm_id, orphan.has_process, orphan.has_directory, keep_as),)


def _answered(vm: Vm, outcome: ComputeOutcome, at_us: int) -> Sequence[VmEvent]:
    match outcome:
        case effects.DiskProvisioned():
            return (events.DiskProvisioned(outcome.disk_mib),)
        case effects.Booted():
            return (_booted(vm, outcome),)
        case effects.ShutdownIgnored():
            return (events.VmStopForced(vm.run.number, outcome.waited_s),)
        case effects.Ended() if vm.may_have_orphan:
            # No run has ended: there was none, or it has had its exit.
            return (events.VmCleared(vm.run.number),)
        case effects.Ended():
            return _exit(vm, outcome.exit_code, outcome.signal, "", outcome.log_tail, at_us)
        case effects.Removed():
            return (events.VmDeleted(),)
        case effects.Quarantined():
            return (events.VmCollected(outcome.kept_in),)
        case effects.RulesApplied():
            return (events.RulesApplied(outcome.revision),)
        case effects.PortPlugged() | effects.PortUnplugged():
            return _changed_port(vm, outcome)
        case effects.ScriptRemoved():
            return (events.VmInitScriptRemoved(),)
        case EffectFailed():
            return _failed(vm, outcome, at_us)


def _exit(
    vm: Vm, code: int | None, signal: int | None, detail: str, log_tail: str, at_us: int, *, unseen: bool = False
) -> Sequence[VmEvent]:
    """The end of a run, and what the restart policy makes of it."""
    run = vm.run
    detail = detail or (run.ended.detail if run.ended else "")
    exited = events.VmExited(run.number, _exit_reason(vm, unseen=unseen), code, signal, detail, log_tail)
    if vm.requested != "running" or run.start_next or not _restarts(vm, exited):
        return (exited,)
    quiet = at_us - run.since_us >= QUIET_S * SECOND_US
    attempt = 1 if quiet else vm.restarts + 1
    if attempt > RESTART_LIMIT:
        return (exited, events.VmGaveUp(vm.restarts)) if exited.reason in FAILED_EXITS else (exited,)
    return (exited, events.VmRestartScheduled(attempt, backoff(at_us, attempt)))


def _exit_reason(vm: Vm, *, unseen: bool) -> events.ExitReason:
    # Who was first is the reason: `asked_down` is not set once the guest has ended by itself.
    if vm.run.asked_down:
        return "user"
    if vm.run.ended is not None:
        return "panic" if vm.run.ended.reason == "panic" else "guest"
    return "unknown" if unseen else "crash"


def _restarts(vm: Vm, exited: events.VmExited) -> bool:
    policy = vm.spec.restart
    return policy == "always" or (policy == "on-failure" and exited.reason in FAILED_EXITS)


def _failed(vm: Vm, failed: EffectFailed, at_us: int) -> Sequence[VmEvent]:
    step = STEPS.get(vm.phase)
    if step is None:
        return _failed_beside(vm, failed, at_us)
    retry_at = vm.attempt.retry_at(at_us, retryable=failed.retryable)
    event = events.VmStepFailed(
        step=step,
        run=vm.run.number,
        attempt=vm.attempt.number,
        reason=failed.reason,
        hint=failed.hint,
        log_tail=failed.log_tail,
        retry_at=retry_at,
    )
    # A VM that never ran is of no use; one that a caller wants stopped is kept all the same.
    undo = retry_at is None and not vm.ever_ran and vm.phase in COMING_UP and vm.requested == "running"
    return (event, events.VmUndone()) if undo else (event,)


def _failed_beside(vm: Vm, failed: EffectFailed, at_us: int) -> Sequence[VmEvent]:
    """What the VM goes on with."""
    match pending(vm):
        case effects.ApplyRules():
            return failed_to_apply(vm, failed, at_us)
        case effects.PlugPort(port=port):
            return failed_to_plug(vm, port, failed, at_us)
        case effects.UnplugPort():
            return failed_to_unplug(vm, failed, at_us)
        case effects.RemoveScript():
            return failed_to_remove_script(vm, failed, at_us)
        case _:
            return ()


def _changed_port(vm: Vm, outcome: effects.PortPlugged | effects.PortUnplugged) -> Sequence[VmEvent]:
    match outcome, pending(vm):
        case effects.PortPlugged(), effects.PlugPort(port=port):
            return (events.PortPlugged(port.tap, vm.run.number),)
        case effects.PortUnplugged(card_left=card_left), effects.UnplugPort(port=port):
            return (events.PortUnplugged(port.tap, card_left),)
        case _:
            return ()


def _booted(vm: Vm, booted: effects.Booted) -> events.VmBooted:
    return events.VmBooted(
        vm.run.number, booted.pid, booted.start_ticks, booted.boot_id, booted.accelerator, booted.process_user
    )


COMPUTE: Final[Decider[Vm, ComputeMessage, VmEvent, effects.ComputeEffect]] = Decider(decide, evolve, pending)
