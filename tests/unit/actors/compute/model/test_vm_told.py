"""What a caller is told of a VM: each status on the way, and the answer in which a task ends."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final

import pytest
from msgspec.structs import replace

from aetherscale.actors.compute.component import COMPONENT
from aetherscale.actors.compute.model import commands, events
from aetherscale.actors.compute.model.presentation import VM_KIND, announce, holds, view
from aetherscale.bus.refusals import CODES, hint
from aetherscale.kernel.errors import Refused
from aetherscale.kernel.reservations import NameClaimed, NameReleased, Use, UseBegan, UseEnded
from tests.support.spec import reserved_by
from tests.support.vm_pasts import (
    BOOTED,
    DISK,
    ENDED,
    READY,
    REQUESTED,
    SPEC,
    STOPPING,
    VM,
    exited,
    state_of,
)

LATER: Final = "2027-01-15T08:00:01.000000Z"
STARTING: Final = events.VmStartRequested()
RESTARTING: Final = events.VmRestartRequested(30)
DELETING: Final = events.VmDeleteRequested(kill=False, grace_s=30)
KILLING: Final = events.VmStopRequested(kill=True, grace_s=30)
UNDONE: Final = events.VmUndone()
UP: Final = (REQUESTED, DISK, BOOTED, READY)
DOWN: Final = (*UP, STOPPING, exited("user"))
PAUSED: Final = events.VmPaused(1, "disk", "")
Past = tuple[events.VmEvent, ...]


def blocked(step: events.Step) -> events.VmStepFailed:
    return events.VmStepFailed(step, 1, 3, "it broke", "mend it", "the log", None)


WAITING: Final = events.VmStepFailed("booting", 1, 1, "it broke", "mend it", "the log", LATER)

STATUSES: list[tuple[Past, str, dict[str, Any]]] = [
    ((REQUESTED,), "allocating", {"name": "web"}),
    ((REQUESTED, DISK), "starting", {}),
    ((*DOWN, STARTING), "starting", {}),
    ((*UP, RESTARTING, exited("user")), "starting", {}),
    ((REQUESTED, DISK, BOOTED), "running", {"accelerator": "tcg"}),
    ((*UP, STOPPING), "stopping", {"grace-s": 30}),
    ((*UP, RESTARTING), "stopping", {"grace-s": 30}),
    ((*UP, KILLING), "stopping", {}),
    ((*UP, STOPPING, events.VmStopForced(1, 30)), "forcing", {"waited-s": 30}),
    ((*UP, DELETING), "deleting", {"grace-s": 30}),
    ((*DOWN, DELETING), "deleting", {}),
    ((*UP, exited("crash"), events.VmRestartScheduled(2, LATER)), "restarting", {"attempt": 2, "not-before": LATER}),
    ((REQUESTED, DISK, WAITING), "retrying", {"step": "booting", "reason": "it broke", "not-before": LATER}),
    ((REQUESTED, DISK, blocked("booting"), UNDONE), "undoing", {}),
]


@pytest.mark.parametrize(("past", "phase", "details"), STATUSES, ids=[case[1] for case in STATUSES])
def test_each_step_has_its_status(past: Past, phase: str, details: dict[str, Any]) -> None:
    told = announce(state_of(*past), past[-1])
    assert told == {"type": "status", "status": phase, "vm-id": VM, **details}


@pytest.mark.parametrize(
    "past",
    [
        (REQUESTED, STOPPING, DISK),
        (*UP, STOPPING, STARTING),
        (*UP, exited("crash")),
        (REQUESTED, DISK, blocked("booting")),
        (*UP, PAUSED),
        (*UP, events.VmAdopted(1)),
        UP,
    ],
)
def test_what_is_no_step_towards_what_was_asked_is_not_told(past: Past) -> None:
    assert announce(state_of(*past), past[-1]) is None


NOT_YET: list[tuple[str, Past]] = [
    ("create-vm", (REQUESTED,)),
    ("create-vm", (REQUESTED, DISK)),
    ("create-vm", (REQUESTED, DISK, BOOTED)),
    ("create-vm", (REQUESTED, DISK, blocked("booting"), UNDONE)),
    ("start-vm", (*DOWN, STARTING)),
    ("restart-vm", (*UP, RESTARTING)),
    ("stop-vm", (*UP, STOPPING)),
    ("stop-vm", (REQUESTED, DISK, STOPPING)),
    ("stop-vm", (REQUESTED, STOPPING)),
    ("stop-vm", (REQUESTED, DISK)),
    ("delete-vm", (*DOWN, DELETING)),
    ("delete-vm", (REQUESTED, DISK, blocked("booting"), UNDONE)),
]
AT_ITS_END: list[tuple[str, Past]] = [
    ("create-vm", UP),
    ("start-vm", (*DOWN, STARTING, replace(BOOTED, run=2), replace(READY, run=2))),
    ("restart-vm", UP),
    ("stop-vm", DOWN),
    ("stop-vm", (*UP, STOPPING, STARTING, exited("user"))),
    ("stop-vm", (*UP, exited("crash"))),
    ("stop-vm", (*DOWN, DELETING, events.VmDeleted())),
    ("delete-vm", (*DOWN, DELETING, events.VmDeleted())),
]


OPTIONS: dict[str, Any] = defaultdict(lambda: None, {"create-vm": commands.CreateVmOptions(image="tiny")})


@pytest.mark.parametrize(("task", "past"), NOT_YET)
def test_a_task_goes_on(task: str, past: Past) -> None:
    assert COMPONENT.commands[task].is_done(state_of(*past), OPTIONS[task]) is False


@pytest.mark.parametrize(("task", "past"), AT_ITS_END)
def test_a_task_is_done(task: str, past: Past) -> None:
    assert COMPONENT.commands[task].is_done(state_of(*past), OPTIONS[task]) is True


BAD_ENDS: list[tuple[str, Past, int, str, dict[str, Any]]] = [
    ("create-vm", (REQUESTED, DISK, blocked("booting"), UNDONE, events.VmDeleted()), 500,
     "the VM could not be created, and what had been created of it has been removed: booting: it broke",
     {"vm-id": VM, "phase": "booting", "reason": "it broke", "log-tail": "the log"}),
    ("create-vm", (REQUESTED, blocked("provisioning"), UNDONE, blocked("removing")), 500,
     "the VM could not be created, and what had been created of it could not be removed: removing: it broke",
     {"vm-id": VM, "phase": "removing", "reason": "it broke", "log-tail": "the log"}),
    ("create-vm", (*UP, DELETING), 409, "the VM 'web' was deleted before it was ready", {}),
    ("start-vm", (*UP, exited("crash", signal=9, log_tail="the end")), 500,
     "the VM 'web' failed: running: QEMU was ended by signal 9",
     {"vm-id": VM, "phase": "running", "reason": "QEMU was ended by signal 9", "log-tail": "the end"}),
    ("start-vm", (*UP, PAUSED), 500, "the VM 'web' is paused: there was no room left on the host's disk",
     {"vm-id": VM, "phase": "paused"}),
    ("restart-vm", DOWN, 409, "the VM 'web' was stopped before it was ready", {"vm-id": VM}),
    ("stop-vm", (*UP, KILLING, blocked("stopping")), 500, "the VM 'web' could not be stopped: stopping: it broke",
     {"vm-id": VM, "phase": "stopping", "reason": "it broke", "log-tail": "the log"}),
    ("stop-vm", (*UP, ENDED, blocked("stopping")), 500, "the VM 'web' could not be stopped: stopping: it broke",
     {"vm-id": VM, "phase": "stopping", "reason": "it broke", "log-tail": "the log"}),
    ("delete-vm", (*DOWN, DELETING, blocked("removing")), 500, "the VM 'web' could not be deleted: removing: it broke",
     {"vm-id": VM, "phase": "removing", "reason": "it broke", "log-tail": "the log"}),
]  # fmt: skip


@pytest.mark.parametrize(("task", "past", "code", "message", "details"), BAD_ENDS)
def test_a_bad_end_is_told_with_its_reason(
    task: str, past: Past, code: int, message: str, details: dict[str, Any]
) -> None:
    with pytest.raises(Refused) as refusal:
        COMPONENT.commands[task].is_done(state_of(*past), OPTIONS[task])
    assert (CODES[refusal.value.reason], refusal.value.message) == (code, message)
    assert refusal.value.details == details


def test_a_failure_without_a_hint_of_its_own_points_to_why() -> None:
    with pytest.raises(Refused) as refusal:
        COMPONENT.commands["start-vm"].is_done(state_of(*UP, exited("crash")), None)
    assert hint(refusal.value.remedy) == "aetherscale why vm web"


class TestTheView:
    @pytest.mark.parametrize(("mib", "gib"), [(1, 1), (1023, 1), (1024, 1), (1025, 2), (10 * 1024, 10)])
    def test_a_disk_is_shown_in_gib_rounded_up(self, mib: int, gib: int) -> None:
        assert view(state_of(REQUESTED, events.DiskProvisioned(mib)), "host1", 1).disk_gib == gib

    @pytest.mark.parametrize(
        ("past", "accelerator"),
        [
            (UP, "tcg"),
            ((*UP, PAUSED), "tcg"),
            ((*UP, ENDED), "tcg"),
            ((*UP, exited("crash")), None),
            ((REQUESTED,), None),
        ],
    )
    def test_the_accelerator_is_that_of_a_process_that_is_there(self, past: Past, accelerator: str | None) -> None:
        seen = view(state_of(*past), "host1", 1)
        assert (seen.accelerator, seen.isolation) == (accelerator, "none" if accelerator else None)

    def test_the_end_of_the_last_run_is_shown(self) -> None:
        assert view(state_of(*UP), "host1", 1).exit is None
        seen = view(state_of(*UP, exited("crash", exit_code=1, detail="killed")), "host1", 1).exit
        assert seen is not None
        assert (seen.reason, seen.exit_code, seen.signal, seen.detail) == ("crash", 1, None, "killed")

    def test_a_failure_is_shown_whole(self) -> None:
        seen = view(state_of(*DOWN, DELETING, blocked("removing")), "host1", 7, "user:web").failure
        assert seen is not None
        assert (seen.phase, seen.reason, seen.hint, seen.log_tail) == ("removing", "it broke", "mend it", "the log")


class TestTheImage:
    @pytest.mark.parametrize(
        ("past", "needed"),
        [
            ((REQUESTED,), True),
            (UP, True),
            ((*DOWN, DELETING), True),
            ((*DOWN, DELETING, events.VmDeleted()), False),
            ((replace(REQUESTED, spec=replace(SPEC, image_id="")),), False),
            ((*DOWN, DELETING, events.VmDeleted(), events.VmStrayFound(VM, True, True, "kept")), False),
        ],
    )
    def test_is_needed_from_the_request_to_the_deletion(self, past: Past, needed: bool) -> None:
        assert any(isinstance(each, Use) for each in holds(state_of(*past))) is needed

    @pytest.mark.parametrize(
        ("past", "kinds"),
        [
            ((REQUESTED,), (NameClaimed("vm", "web", VM), UseBegan("image", SPEC.image_id, "vm", VM))),
            (
                (*DOWN, DELETING, events.VmDeleted()),
                (NameReleased("vm", "web", VM), UseEnded("image", SPEC.image_id, "vm", VM)),
            ),
            (UP, ()),
            ((*DOWN, DELETING), ()),
        ],
    )
    def test_and_the_name_are_held_for_as_long(self, past: Past, kinds: Sequence[Any]) -> None:
        assert reserved_by(VM_KIND, holds, past) == tuple(kinds)
