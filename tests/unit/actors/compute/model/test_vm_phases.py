"""Every state that a VM can come to, tried: the table of transitions is what happens, no more and no less."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any, Final, get_args

import pytest
from msgspec.structs import replace

from aetherscale.actors.compute.model import commands, effects, events
from aetherscale.actors.compute.model.decide import COMPUTE, RESTART_LIMIT, STEPS
from aetherscale.actors.compute.model.evolve import FACTS
from aetherscale.actors.compute.model.lifecycle import LIFECYCLE, MEANINGS
from aetherscale.actors.compute.model.pending import PENDING
from aetherscale.actors.compute.model.portcommands import AttachPort, DetachPort
from aetherscale.actors.compute.model.portdecisions import to_plug, to_unplug
from aetherscale.actors.compute.model.rulecommands import AddForward, AttachGroup, DetachGroup, RemoveForward
from aetherscale.actors.compute.model.state import FREE, SHOWN, Run, Vm, VmPhase
from aetherscale.actors.compute.model.transitions import TRANSITIONS, edges
from aetherscale.kernel.errors import Refused
from tests.support.spec import NOON_US
from tests.support.vm_pasts import (
    BOOTED,
    CREATE,
    DELETE,
    DISK,
    FORWARD,
    KILL,
    MORE,
    PORT,
    READY,
    REQUESTED,
    RESTART,
    SPEC,
    START,
    STOP,
    STOPPING,
    VM,
    WEB,
    exited,
    failed,
    given,
    state_of,
)

PHASES: Final[tuple[VmPhase, ...]] = get_args(VmPhase)
AT_REST: Final = (effects.ApplyRules, effects.UnplugPort, effects.RemoveScript)
WHILE_UP: Final = (effects.ApplyRules, effects.UnplugPort, effects.PlugPort, effects.RemoveScript)
EFFECTS: Final[dict[VmPhase, type[Any] | tuple[type[Any], ...] | None]] = {
    "provisioning": effects.ProvisionDisk,
    "booting": effects.BootVm,
    "running": WHILE_UP,
    "ready": WHILE_UP,
    "paused": WHILE_UP,
    "shutting-down": effects.ShutDownVm,
    "ending": effects.EndVm,
    "stopped": AT_REST,
    "failed": AT_REST,
    "clearing": effects.EndVm,
    "failing": effects.EndVm,
    "removing": effects.RemoveVm,
    "rolling-back": effects.RemoveVm,
    "quarantining": effects.QuarantineVm,
    "deleted": None,
}
APPLYING: Final = {phase for phase, effect in EFFECTS.items() if isinstance(effect, tuple)}
"""Where nothing is pending but what has attempts of its own: rules, ports that come and go, its init script."""
Edge = tuple[VmPhase | None, type[Any], VmPhase]
Explored = tuple[dict[Hashable, Vm], set[Edge]]


def said(vm: Vm) -> Iterator[Any]:
    """All that may be said to a VM in a state, in words that decide differently."""
    run = vm.run.number
    yield from (START, STOP, KILL, RESTART, DELETE, replace(DELETE, kill=True))
    yield effects.GuestReady(VM, run, "channel")
    yield from (effects.GuestEnded(VM, run, "shutdown"), effects.GuestEnded(VM, run, "panic"))
    yield from (effects.GuestPaused(VM, run, "disk"), effects.GuestResumed(VM, run), effects.VmGone(VM, run))
    yield from (commands.VmAdopted(VM, run), commands.VmLost(VM, run, "boot-a"), commands.VmLost(VM, run, "boot-b"))
    yield from (commands.VmOrphan(VM, True, True), commands.VmOrphan(VM, False, True))
    if vm.spec.restart == "on-failure" and vm.spec.autostart:  # how it comes up again is no matter to its rules
        yield from (AttachGroup(VM, WEB), DetachGroup(VM, WEB.group_id))
        yield from (AddForward(VM, FORWARD), RemoveForward(VM, FORWARD.id, None, "tcp"))
    if vm.spec.restart == "never" and vm.spec.autostart:  # nor to its ports
        yield from (AttachPort(VM, MORE), DetachPort(VM, MORE.network_id))
    if vm.spec.restart == "always" and vm.spec.autostart:  # nor to its init script
        yield effects.InitEnded(VM, run, "ended", 7, "no")
    yield from answered(COMPUTE.pending(vm), run)


def answered(effect: effects.ComputeEffect | None, run: int) -> Iterator[Any]:
    """All that the host may answer to an effect."""
    if effect is not None:
        yield from (failed(effect.key), failed(effect.key, retryable=False))
    match effect:
        case effects.ProvisionDisk():
            yield effects.DiskProvisioned(effect.key, 1024)
        case effects.BootVm():
            yield effects.Booted(effect.key, VM, run, 4711, 99, "boot-a", "tcg")
        case effects.ShutDownVm():
            yield effects.ShutdownIgnored(effect.key, effect.grace_s)
        case effects.EndVm():
            yield effects.Ended(effect.key)
        case effects.RemoveVm():
            yield effects.Removed(effect.key)
        case effects.QuarantineVm():
            yield effects.Quarantined(effect.key, "/kept")
        case effects.ApplyRules():
            yield effects.RulesApplied(effect.key, effect.revision)
        case effects.PlugPort():
            yield effects.PortPlugged(effect.key)
        case effects.UnplugPort():
            yield from (effects.PortUnplugged(effect.key), effects.PortUnplugged(effect.key, card_left=True))
        case effects.RemoveScript() | None:
            yield from (effects.ScriptRemoved(effect.key),) if effect else ()


def alike(vm: Vm) -> Hashable:
    """What two states have in common of which one tells all that the other would."""
    run, ended = vm.run, vm.run.ended and vm.run.ended.reason
    told = (run.process is None, run.is_ready, ended, run.asked_down, run.start_next, run.paused_reason)
    past = (vm.has_disk, vm.ever_ran, vm.rolled_back, vm.is_orphan, vm.failure is None, vm.restarts == RESTART_LIMIT)
    spec = (vm.spec.restart, vm.spec.autostart, vm.spec.image_id)
    rules = (vm.rules.is_applied, bool(vm.rules.forwards))
    ports = (len(vm.ports.every), to_plug(vm) is None, to_unplug(vm) is None, FREE in run.slots)
    init = (vm.init.is_awaited, vm.init.is_kept)
    attempt = (vm.attempt.number, vm.attempt.blocked)
    return (vm.phase, vm.requested, vm.observed, attempt, told, past, spec, rules, ports, init)


@pytest.fixture(scope="module")
def explored() -> Explored:
    """Every state that is unlike the others, and each transition on the way."""
    found: dict[Hashable, Vm] = {}
    reached: set[Edge] = set()
    todo: list[Vm] = []

    def follow(vm: Vm | None, message: Any) -> None:
        try:
            decided = COMPUTE.decide(vm, message, NOON_US)
        except Refused:
            return
        for event in decided:
            before, vm = vm, COMPUTE.evolve(vm, event, NOON_US)
            reached.add((before.phase if before else None, type(event), vm.phase))
        if vm is not None and alike(vm) not in found:
            found[alike(vm)] = vm
            todo.append(vm)

    follow(None, commands.VmOrphan(VM, True, True))
    for restart in ("always", "on-failure", "never"):
        for autostart in (True, False):
            script = "5" * 64 if restart == "always" and autostart else None
            spec = replace(SPEC, restart=restart, autostart=autostart, ports=[PORT], init_sha256=script)
            follow(None, replace(CREATE, spec=spec))
            # One that has been restarted as often as it may be.
            often = events.VmRestartScheduled(RESTART_LIMIT, "2027-01-15T08:00:00.000000Z")
            todo.append(state_of(replace(REQUESTED, spec=spec), DISK, BOOTED, exited("crash"), often))
    while todo:
        vm = todo.pop()
        for message in said(vm):
            follow(vm, message)
    return found, reached


def test_the_table_is_what_happens(explored: Explored) -> None:
    _, reached = explored
    table = set(edges())
    assert reached - table == set(), "these transitions are not in the table"
    assert table - reached == set(), "these transitions of the table never happen"


def test_the_effect_that_is_pending_follows_from_the_phase_alone(explored: Explored) -> None:
    states, _ = explored
    found = {(vm.phase, type(effect) if (effect := COMPUTE.pending(vm)) else None) for vm in states.values()}
    every = {phase: effect if isinstance(effect, tuple) else (effect,) for phase, effect in EFFECTS.items()}
    expected = {(phase, effect) for phase, of_phase in every.items() for effect in of_phase}
    assert found == expected | {(phase, None) for phase in APPLYING}


def test_the_tables_are_total() -> None:
    for table in (SHOWN, MEANINGS, PENDING):
        assert tuple(table) == PHASES
    for by_event in (TRANSITIONS, FACTS):
        assert set(by_event) == set(get_args(events.VmEvent))
    assert sorted(phase for part in LIFECYCLE.parts.values() for phase in part) == sorted(PHASES)
    for phase, effect in EFFECTS.items():
        named = [each.__name__ for each in (effect if isinstance(effect, tuple) else (effect,)) if each is not None]
        assert LIFECYCLE.phases[phase].pending == (" or ".join(named) or None)
    assert set(STEPS) == {phase for phase, effect in EFFECTS.items() if effect is not None} - APPLYING


def test_what_is_blocked_has_failed_and_nothing_of_a_run_is_left_to_the_next(explored: Explored) -> None:
    states, _ = explored
    for vm in states.values():
        assert not vm.attempt.blocked or vm.shown == "failed"
        assert vm.attempt.number == 1 or COMPUTE.pending(vm) is not None
        assert vm.phase != "booting" or replace(vm.run, is_ready=False, ports=(), slots=Run().slots) == Run(
            vm.run.number
        )


@pytest.mark.parametrize(("past", "event"), [
    ((REQUESTED,), events.VmPaused(1, "disk", "")),
    ((REQUESTED, DISK), events.VmExited(1, "crash", None, None, "", "")),
    ((REQUESTED, DISK, BOOTED), events.VmStopForced(1, 30)),
    ((REQUESTED, DISK, BOOTED), events.VmDeleted()),
    ((REQUESTED, DISK, BOOTED), REQUESTED),
])  # fmt: skip
def test_an_event_that_the_table_does_not_have_leaves_the_phase_as_it_is(past: tuple[Any, ...], event: Any) -> None:
    assert state_of(*past, event).phase == state_of(*past).phase


def test_an_answer_that_nothing_is_pending_for_is_past() -> None:
    given(REQUESTED, DISK, BOOTED, READY).when(failed("end-1-1")).nothing_happens()


def test_a_vm_without_a_disk_that_may_have_an_orphan_is_made_its_disk() -> None:
    """The step that fails then is the disk's, whatever came before it."""
    never = failed("", retryable=False)
    vm = given(REQUESTED, STOPPING).when(never).then_types(events.VmStepFailed).when(STOP).then(STOPPING)
    vm = vm.when(commands.VmOrphan(VM, True, False)).then_types(events.VmStrayFound)
    vm = vm.when(START).then(events.VmStartRequested())
    assert isinstance(vm.pending, effects.ProvisionDisk)
    [failure, _] = COMPUTE.decide(vm.state, never, NOON_US)
    assert isinstance(failure, events.VmStepFailed)
    assert failure.step == "provisioning"
