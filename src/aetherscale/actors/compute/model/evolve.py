"""What events make of a VM: the phase by the table of transitions, and by a table of its own the facts that they bring.

Never fails on a stream that `decide` has written, this version's or one's of before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from msgspec.structs import replace

from aetherscale.actors.compute.model import events
from aetherscale.actors.compute.model.events import VmEvent
from aetherscale.actors.compute.model.firstboot import NO_INIT, Init
from aetherscale.actors.compute.model.state import (
    FREE,
    NO_PORTS,
    SHOWN,
    STOPPING,
    Port,
    Ports,
    ProcessIdentity,
    Rules,
    Run,
    Vm,
    VmPhase,
    exit_sentence,
    unheard_of,
)
from aetherscale.actors.compute.model.transitions import next_phase
from aetherscale.actors.compute.model.views import Requested
from aetherscale.kernel.attempts import FIRST, Attempt
from aetherscale.kernel.failures import Failure
from aetherscale.kernel.times import from_rfc3339


def evolve(state: Vm | None, event: VmEvent, at_us: int) -> Vm:
    """The VM after an event."""
    # By tables: a replay folds millions of events, and a `match` would ask up to twenty times whether the event is of a
    # class, each of which takes as long as to make a Struct.
    if state is None:
        if isinstance(event, events.VmRequested):
            rules, made = Rules(tuple(event.spec.groups)), event.spec.ports
            ports = Ports(tuple(map(Port, made)), len(made)) if made else NO_PORTS
            sha256 = event.spec.init_sha256
            init = Init(sha256, is_kept=True) if sha256 else NO_INIT
            return Vm(event.vm_id, event.spec, "provisioning", at_us, rules=rules, ports=ports, init=init)
        assert isinstance(event, events.VmStrayFound), f"a VM's stream does not begin with {type(event).__name__}"
        state = unheard_of(event.vm_id, at_us)
    before, phase = state.phase, next_phase(state, event)
    if phase != before:
        since_us = state.phase_since_us if SHOWN[phase] == SHOWN[before] else at_us
        state = replace(state, phase=phase, phase_since_us=since_us)
    return FACTS[type(event)](state, event, before, at_us)


def _nothing_more(vm: Vm, event: VmEvent, before: VmPhase, at_us: int) -> Vm:
    return vm


def _provisioned(vm: Vm, event: events.DiskProvisioned, before: VmPhase, at_us: int) -> Vm:
    return replace(
        vm,
        spec=replace(vm.spec, disk_mib=event.disk_mib),
        run=_next_run(vm) if vm.phase == "booting" else vm.run,
        attempt=FIRST,
        has_disk=True,
    )


def _next_run(vm: Vm) -> Run:
    return vm.run.next(vm.ports.staying())


def _booted(vm: Vm, event: events.VmBooted, before: VmPhase, at_us: int) -> Vm:
    process = ProcessIdentity(event.pid, event.start_ticks, event.boot_id, event.accelerator, event.process_user)
    cards = tuple(port.tap for port in vm.run.ports)
    run = replace(vm.run, process=process, since_us=at_us, cards=cards)
    return replace(vm, observed="running", run=run, attempt=FIRST, ever_ran=True)


def _ready(vm: Vm, event: events.VmReady, before: VmPhase, at_us: int) -> Vm:
    return replace(vm, run=replace(vm.run, is_ready=True))


def _init_ended(vm: Vm, event: events.VmInitEnded, before: VmPhase, at_us: int) -> Vm:
    told = replace(vm.init, outcome=event.outcome, exit_status=event.exit_status, output=event.output)
    return replace(vm, init=told)


def _script_removed(vm: Vm, event: events.VmInitScriptRemoved, before: VmPhase, at_us: int) -> Vm:
    return replace(vm, init=replace(vm.init, is_kept=False, attempt=FIRST))


def _paused(vm: Vm, event: events.VmPaused, before: VmPhase, at_us: int) -> Vm:
    return replace(vm, observed="paused", run=replace(vm.run, paused_reason=event.reason))


def _resumed(vm: Vm, event: events.VmResumed, before: VmPhase, at_us: int) -> Vm:
    return replace(vm, observed="running", run=replace(vm.run, paused_reason=None))


def _start_requested(vm: Vm, event: events.VmStartRequested, before: VmPhase, at_us: int) -> Vm:
    run = vm.run
    if vm.phase == "booting":
        run = _next_run(vm)
    elif vm.phase in STOPPING:
        run = replace(run, start_next=True)
    # A stop that is under way goes on with the attempts that it has had.
    attempt = vm.attempt if before in STOPPING else FIRST
    return replace(vm, requested="running", run=run, attempt=attempt, restarts=0, failure=None)


def _stop_requested(vm: Vm, event: events.VmStopRequested, before: VmPhase, at_us: int) -> Vm:
    vm = _go_down(vm, "stopped", event.grace_s)
    # Who asks for one to be stopped that has failed knows of the failure.
    return replace(vm, failure=None) if vm.phase in ("stopped", "clearing") else vm


def _restart_requested(vm: Vm, event: events.VmRestartRequested, before: VmPhase, at_us: int) -> Vm:
    return replace(_go_down(vm, "running", event.grace_s), restarts=0)


def _delete_requested(vm: Vm, event: events.VmDeleteRequested, before: VmPhase, at_us: int) -> Vm:
    return replace(_go_down(vm, "deleted", event.grace_s), failure=None)


def _go_down(vm: Vm, requested: Requested, grace_s: float) -> Vm:
    if vm.phase == "provisioning":
        # A disk that is half made is finished, with the attempts that it has had.
        return replace(vm, requested=requested, grace_s=grace_s)
    run = vm.run
    if vm.phase in STOPPING:
        # Of two reasons the first counts: a guest that had ended by itself was not asked down.
        asked_down = run.asked_down or run.ended is None
        run = replace(run, paused_reason=None, asked_down=asked_down, start_next=requested == "running")
    return replace(vm, requested=requested, run=run, attempt=FIRST, grace_s=grace_s)


def _stop_forced(vm: Vm, event: events.VmStopForced, before: VmPhase, at_us: int) -> Vm:
    return replace(vm, attempt=FIRST)


def _ended(vm: Vm, event: events.VmEnded, before: VmPhase, at_us: int) -> Vm:
    # QEMU has it paused until it is let go, without a reason to pause it.
    return replace(vm, observed="paused", run=replace(vm.run, ended=event, paused_reason=None), attempt=FIRST)


def _exited(vm: Vm, event: events.VmExited, before: VmPhase, at_us: int) -> Vm:
    failed = vm.phase == "failed"
    return replace(
        vm,
        # A VM that has ended by itself and is not restarted is no longer requested to run.
        requested="stopped" if vm.phase == "stopped" else vm.requested,
        observed="exited",
        run=_next_run(vm) if vm.phase == "booting" else Run(vm.run.number),
        attempt=FIRST,
        ports=_done(vm.ports),
        failure=Failure("running", exit_sentence(event), "", event.log_tail) if failed else vm.failure,
        exit=event,
    )


def _restart_scheduled(vm: Vm, event: events.VmRestartScheduled, before: VmPhase, at_us: int) -> Vm:
    later = Attempt(not_before_us=from_rfc3339(event.not_before))
    return replace(vm, requested="running", run=_next_run(vm), attempt=later, restarts=event.attempt, failure=None)


def _gave_up(vm: Vm, event: events.VmGaveUp, before: VmPhase, at_us: int) -> Vm:
    assert vm.failure is not None
    reason = f"{vm.failure.reason}; given up after {event.restarts} restarts"
    return replace(vm, failure=replace(vm.failure, reason=reason))


def _groups_set(vm: Vm, event: events.GroupsSet, before: VmPhase, at_us: int) -> Vm:
    return _changed(vm, replace(vm.rules, groups=tuple(event.groups)), keep_established=event.keep_established)


def _forward_added(vm: Vm, event: events.ForwardAdded, before: VmPhase, at_us: int) -> Vm:
    return _changed(vm, replace(vm.rules, forwards=(*vm.rules.forwards, event.forward)))


def _forward_removed(vm: Vm, event: events.ForwardRemoved, before: VmPhase, at_us: int) -> Vm:
    left = tuple(forward for forward in vm.rules.forwards if forward.id != event.forward_id)
    return _changed(vm, replace(vm.rules, forwards=left), keep_established=event.keep_established)


def _changed(vm: Vm, rules: Rules, *, keep_established: bool = False) -> Vm:
    # One change that cuts flows cuts those of all that are applied together.
    keeps = keep_established and (rules.is_applied or rules.keep_established)
    in_force = vm.rules.standing.groups if keeps else None
    changed = replace(rules, revision=rules.revision + 1, keep_established=keeps, in_force=in_force, attempt=FIRST)
    return replace(vm, rules=changed)


def _rules_applied(vm: Vm, event: events.RulesApplied, before: VmPhase, at_us: int) -> Vm:
    in_force = None if event.revision == vm.rules.revision else vm.rules.in_force
    rules = replace(vm.rules, applied=event.revision, in_force=in_force, attempt=FIRST, failure=None)
    return replace(vm, rules=rules)


def _rules_failed(vm: Vm, event: events.VmStepFailed) -> Vm:
    attempt = vm.rules.attempt.after_failure(event.attempt, event.retry_at)
    failure = Failure(event.step, event.reason, event.hint, event.log_tail)
    return replace(vm, rules=replace(vm.rules, attempt=attempt, failure=failure))


def _port_added(vm: Vm, event: events.PortAdded, before: VmPhase, at_us: int) -> Vm:
    every = (*vm.ports.every, Port(event.port))
    run = _in_slot(vm.run, FREE, event.port.tap) if vm.has_begun else vm.run
    return replace(vm, run=run, ports=Ports(every, vm.ports.made + 1))


def _port_plugged(vm: Vm, event: events.PortPlugged, before: VmPhase, at_us: int) -> Vm:
    return replace(vm, run=replace(vm.run, cards=(*vm.run.cards, event.port_id)), ports=_done(vm.ports))


def _port_removed(vm: Vm, event: events.PortRemoved, before: VmPhase, at_us: int) -> Vm:
    every = tuple(replace(port, is_leaving=True) if port.id == event.port_id else port for port in vm.ports.every)
    failure = vm.ports.failure if event.failed else None
    return replace(vm, ports=Ports(every, vm.ports.made, failure=failure))


def _port_unplugged(vm: Vm, event: events.PortUnplugged, before: VmPhase, at_us: int) -> Vm:
    every = tuple(port for port in vm.ports.every if port.id != event.port_id)
    run = replace(vm.run, cards=tuple(card for card in vm.run.cards if card != event.port_id))
    run = run if event.card_left else _in_slot(run, event.port_id, FREE)
    return replace(vm, run=run, ports=_done(replace(vm.ports, every=every)))


def _done(ports: Ports) -> Ports:
    return replace(ports, attempt=FIRST, failure=None)


def _in_slot(run: Run, before: str, after: str) -> Run:
    """The run, with the first slot that is taken by one port, or by none, taken by another."""
    if before not in run.slots:
        return run
    at = run.slots.index(before)
    return replace(run, slots=(*run.slots[:at], after, *run.slots[at + 1 :]))


def _port_failed(vm: Vm, event: events.VmStepFailed) -> Vm:
    failure = Failure(event.step, event.reason, event.hint, event.log_tail)
    attempt = FIRST if event.retry_at is None else vm.ports.attempt.after_failure(event.attempt, event.retry_at)
    return replace(vm, ports=replace(vm.ports, attempt=attempt, failure=failure))


def _step_failed(vm: Vm, event: events.VmStepFailed, before: VmPhase, at_us: int) -> Vm:
    if event.step == "applying-rules":
        return _rules_failed(vm, event)
    if event.step in ("plugging", "unplugging"):
        return _port_failed(vm, event)
    if event.step == "removing-script":
        return replace(vm, init=replace(vm.init, attempt=vm.init.attempt.after_failure(event.attempt, event.retry_at)))
    if event.retry_at is not None:
        return replace(vm, attempt=vm.attempt.after_failure(event.attempt, event.retry_at))
    return replace(
        vm,
        # Nothing happens by itself any more: a caller who wants it started asks again.
        run=replace(vm.run, start_next=False),
        # What a boot may have left is ended from the first attempt.
        attempt=Attempt(blocked=True),
        failure=Failure(event.step, event.reason, event.hint, event.log_tail),
    )


def _cleared(vm: Vm, event: events.VmCleared, before: VmPhase, at_us: int) -> Vm:
    # A boot that may have left a process stays refused until a caller asks for the next one.
    return replace(vm, attempt=Attempt(blocked=vm.attempt.blocked))


def _orphan_found(vm: Vm, event: events.VmStrayFound, before: VmPhase, at_us: int) -> Vm:
    return replace(vm, quarantined_as=event.keep_as) if vm.phase == "quarantining" else vm


def _quarantined(vm: Vm, event: events.VmCollected, before: VmPhase, at_us: int) -> Vm:
    return replace(vm, quarantined_as=event.kept_in, attempt=FIRST)


def _rolled_back(vm: Vm, event: events.VmUndone, before: VmPhase, at_us: int) -> Vm:
    return replace(vm, requested="deleted", rolled_back=True, attempt=FIRST)


def _deleted(vm: Vm, event: events.VmDeleted, before: VmPhase, at_us: int) -> Vm:
    return replace(vm, observed="absent", has_disk=False, attempt=FIRST)


FACTS: Final[Mapping[type[VmEvent], Callable[[Vm, Any, VmPhase, int], Vm]]] = {
    events.VmRequested: _nothing_more,
    events.DiskProvisioned: _provisioned,
    events.VmBooted: _booted,
    events.VmReady: _ready,
    events.VmInitEnded: _init_ended,
    events.VmInitScriptRemoved: _script_removed,
    events.VmPaused: _paused,
    events.VmResumed: _resumed,
    events.VmStartRequested: _start_requested,
    events.VmStopRequested: _stop_requested,
    events.VmRestartRequested: _restart_requested,
    events.VmDeleteRequested: _delete_requested,
    events.VmStopForced: _stop_forced,
    events.VmEnded: _ended,
    events.VmExited: _exited,
    events.VmRestartScheduled: _restart_scheduled,
    events.VmGaveUp: _gave_up,
    events.VmAdopted: _nothing_more,
    events.VmStepFailed: _step_failed,
    events.GroupsSet: _groups_set,
    events.ForwardAdded: _forward_added,
    events.ForwardRemoved: _forward_removed,
    events.RulesApplied: _rules_applied,
    events.PortAdded: _port_added,
    events.PortPlugged: _port_plugged,
    events.PortRemoved: _port_removed,
    events.PortUnplugged: _port_unplugged,
    events.VmCleared: _cleared,
    events.VmStrayFound: _orphan_found,
    events.VmCollected: _quarantined,
    events.VmUndone: _rolled_back,
    events.VmDeleted: _deleted,
}
"""What each event brings: of the VM in its new phase, the event, its phase before, and the time."""
