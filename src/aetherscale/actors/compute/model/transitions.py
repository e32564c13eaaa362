"""From which phase an event brings a VM to which: all that there is. `docs/states.md` is drawn from this table.

What the table does not have no stream has either; such an event leaves the phase as it is, since a fold must not fail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from msgspec import Struct

from aetherscale.actors.compute.model import events
from aetherscale.actors.compute.model.events import VmEvent
from aetherscale.actors.compute.model.state import FAILED_EXITS, UP, Vm, VmPhase


class Fork(Struct, frozen=True):
    """A transition whose end depends on the VM or on what the event says, and all its ends."""

    choose: Callable[[Vm, Any], VmPhase]
    ends: tuple[VmPhase, ...]


Target = VmPhase | Fork


def next_phase(vm: Vm, event: VmEvent) -> VmPhase:
    """The phase of a VM after an event."""
    target = TRANSITIONS[type(event)].get(vm.phase, vm.phase)
    return target if isinstance(target, str) else target.choose(vm, event)


def edges() -> Iterator[tuple[VmPhase | None, type[VmEvent], VmPhase]]:
    """Each transition: from (None for the beginning of a stream), by, to."""
    for event_type, targets in TRANSITIONS.items():
        for source, target in targets.items():
            for end in (target,) if isinstance(target, str) else target.ends:
                yield source, event_type, end


def _disk_made(vm: Vm, event: events.DiskProvisioned) -> VmPhase:
    return "booting" if vm.requested == "running" else "stopped"


def _up(vm: Vm, event: events.VmBooted | events.VmResumed) -> VmPhase:
    # A guest may be heard before QEMU has answered the boot.
    return "ready" if vm.run.is_ready else "running"


def _started(vm: Vm, event: events.VmStartRequested) -> VmPhase:
    if not vm.is_down:
        # It failed to end: it has to, before it can start again.
        return "ending"
    return "booting" if vm.has_disk else "provisioning"


def _asked_down(vm: Vm, event: events.VmStopRequested | events.VmDeleteRequested) -> VmPhase:
    return "ending" if event.kill else "shutting-down"


def _stopped_after_failure(vm: Vm, event: events.VmStopRequested) -> VmPhase:
    return "stopped" if vm.is_down else "ending"


def _deleted_after_failure(vm: Vm, event: events.VmDeleteRequested) -> VmPhase:
    if not vm.is_down:
        return "ending"
    return "quarantining" if vm.is_orphan else "removing"


def _exited(vm: Vm, event: events.VmExited) -> VmPhase:
    if vm.run.start_next:
        return "booting"
    if vm.requested == "deleted":
        return "removing"
    return "failed" if vm.requested == "running" and event.reason in FAILED_EXITS else "stopped"


def _failed(vm: Vm, event: events.VmStepFailed) -> VmPhase:
    if event.retry_at is not None:
        return vm.phase
    # An attempt of before, or half of one, may have left a process.
    return "failing" if vm.phase == "booting" else "failed"


def _same(*phases: VmPhase) -> dict[VmPhase | None, Target]:
    return {phase: phase for phase in phases}


_EVERYWHERE: Final[tuple[VmPhase, ...]] = (
    "provisioning", "booting", "running", "ready", "paused", "shutting-down", "ending", "stopped", "failed", "clearing",
    "failing",
)  # fmt: skip
"""Where a VM is not being removed."""
_UNOCCUPIED: Final[tuple[VmPhase, ...]] = ("running", "ready", "paused", "stopped", "failed")
"""Where nothing but its rules and ports that come and go can be pending."""


def _each(target: Target, *phases: VmPhase) -> dict[VmPhase | None, Target]:
    return dict.fromkeys(phases, target)


_START: Final = Fork(_started, ("booting", "provisioning"))
_START_AFTER_FAILURE: Final = Fork(_started, ("booting", "provisioning", "ending"))
_ASK_DOWN: Final = Fork(_asked_down, ("shutting-down", "ending"))
_EXIT: Final = Fork(_exited, ("stopped", "failed"))
_EXIT_AFTER_FAILURE: Final = Fork(_exited, ("stopped", "failed", "removing"))
_EXIT_OF_A_STOP: Final = Fork(_exited, ("booting", "removing", "stopped"))
_EXIT_OF_AN_END: Final = Fork(_exited, ("booting", "removing", "stopped", "failed"))

TRANSITIONS: Final[Mapping[type[VmEvent], Mapping[VmPhase | None, Target]]] = {
    events.VmRequested: {None: "provisioning"},
    events.DiskProvisioned: {"provisioning": Fork(_disk_made, ("booting", "stopped"))},
    events.VmBooted: {"booting": Fork(_up, ("running", "ready"))},
    events.VmReady: {**_same("booting", "paused"), "running": "ready"},
    events.VmInitEnded: _same("booting", *UP, "shutting-down", "ending"),
    events.VmInitScriptRemoved: _same(*_UNOCCUPIED),
    events.VmPaused: _each("paused", "running", "ready", "paused"),
    events.VmResumed: {"paused": Fork(_up, ("running", "ready"))},
    events.VmStartRequested: {
        **_same("provisioning", "shutting-down", "ending"),
        **_each(_START, "stopped", "clearing"),
        "failing": "booting",
        "failed": _START_AFTER_FAILURE,
    },
    events.VmStopRequested: {
        **_same("provisioning"),
        **_each(_ASK_DOWN, "running", "ready", "shutting-down"),
        # A guest that is not running yet, or that QEMU has paused, cannot hear the power button.
        **_each("ending", "booting", "paused", "ending"),
        "failed": Fork(_stopped_after_failure, ("stopped", "ending")),
        "failing": "clearing",
    },
    events.VmRestartRequested: {
        **_each("shutting-down", "running", "ready", "shutting-down"),
        **_each("ending", "paused", "ending", "failed"),
    },
    events.VmDeleteRequested: {
        # A disk that is half made is removed with the rest.
        **_each("removing", "provisioning", "stopped", "clearing", "failing"),
        **_each(_ASK_DOWN, "running", "ready", "shutting-down"),
        **_each("ending", "booting", "paused", "ending"),
        "failed": Fork(_deleted_after_failure, ("removing", "quarantining", "ending")),
    },
    events.VmStopForced: {"shutting-down": "ending"},
    events.VmEnded: _each("ending", "running", "ready", "paused", "shutting-down", "ending"),
    events.VmExited: {
        **_each(_EXIT, "running", "ready", "paused"),
        "shutting-down": _EXIT_OF_A_STOP,
        "ending": _EXIT_OF_AN_END,
        # What the host had refused to end has gone by itself.
        "failed": _EXIT_AFTER_FAILURE,
    },
    events.VmRestartScheduled: _each("booting", "stopped", "failed"),
    events.VmGaveUp: _same("failed"),
    events.VmAdopted: _same("running", "ready", "paused", "shutting-down", "ending", "failed"),
    events.VmStepFailed: {
        **{
            phase: Fork(_failed, (phase, "failing" if phase == "booting" else "failed"))
            for phase in (
                "provisioning", "booting", "shutting-down", "ending", "clearing", "failing", "removing", "rolling-back",
                "quarantining",
            )
        },
        **_same(*_UNOCCUPIED),
    },
    events.GroupsSet: _same(*_EVERYWHERE),
    events.ForwardAdded: _same(*_EVERYWHERE),
    events.ForwardRemoved: _same(*_EVERYWHERE),
    events.RulesApplied: _same(*_UNOCCUPIED),
    events.PortAdded: _same(*_EVERYWHERE),
    events.PortPlugged: _same(*UP),
    events.PortRemoved: _same(*_EVERYWHERE),
    events.PortUnplugged: _same(*_UNOCCUPIED),
    events.VmCleared: {"clearing": "stopped", "failing": "failed"},
    events.VmStrayFound: {None: "quarantining", "deleted": "quarantining", "stopped": "clearing", "failed": "failing"},
    events.VmCollected: {"quarantining": "deleted"},
    events.VmUndone: _each("rolling-back", "failed", "failing"),
    events.VmDeleted: _each("deleted", "removing", "rolling-back"),
}  # fmt: skip
"""By event: from which phase it may come, and to which it leads."""
