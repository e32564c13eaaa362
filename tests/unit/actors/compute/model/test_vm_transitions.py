"""What an event makes of a VM: the effect that is pending next, to the letter, and what ends with a step or a run."""

from __future__ import annotations

from typing import Any, Final

import pytest
from msgspec.structs import replace

from aetherscale.actors.compute.model import commands, effects, events
from aetherscale.actors.compute.model.commands import VmSpec
from aetherscale.actors.compute.model.decide import COMPUTE
from aetherscale.kernel.times import SECOND_US, to_rfc3339
from tests.support.spec import NOON_US
from tests.support.vm_pasts import (
    BOOTED,
    DELETE,
    DISK,
    ENDED,
    KILL,
    READY,
    REQUESTED,
    SPEC,
    START,
    STOP,
    STOPPING,
    VM,
    exited,
    failed,
    given,
    phase_of,
    running,
    state_of,
)

IN_4_S: Final = NOON_US + 4 * SECOND_US
STARTING: Final = events.VmStartRequested()
DELETING: Final = events.VmDeleteRequested(kill=False, grace_s=30)
KILLING: Final = events.VmStopRequested(kill=True, grace_s=30)
UP: Final = (REQUESTED, DISK, BOOTED, READY)
DOWN: Final = (*UP, STOPPING, exited("user"))
FOUND: Final = events.VmStrayFound(VM, has_process=True, has_directory=True, keep_as="kept")


def again(step: events.Step, attempt: int = 1) -> events.VmStepFailed:
    """The step has failed, and is tried again in four seconds."""
    return events.VmStepFailed(step, 1, attempt, "it broke", "mend it", "the log", to_rfc3339(IN_4_S))


def for_good(step: events.Step) -> events.VmStepFailed:
    return events.VmStepFailed(step, 1, 3, "it broke", "mend it", "the log", None)


EXPECTED: list[tuple[str, tuple[events.VmEvent, ...], effects.ComputeEffect | None]] = [
    ("a disk", (REQUESTED,),
     effects.ProvisionDisk("provision-1", VM, SPEC.image_id, "raw", 1024, 1 << 20, 60.25)),
    ("a disk, later", (REQUESTED, again("provisioning")),
     effects.ProvisionDisk("provision-2", VM, SPEC.image_id, "raw", 1024, 1 << 20, 60.25, IN_4_S)),
    ("a boot", (REQUESTED, DISK), effects.BootVm("boot-1-1", VM, 1, 1, 128, "channel", "raw")),
    ("a boot, later", (REQUESTED, DISK, again("booting", 2)),
     effects.BootVm("boot-1-3", VM, 1, 1, 128, "channel", "raw", not_before_us=IN_4_S)),
    ("a shutdown", (*UP, STOPPING), effects.ShutDownVm("shut-down-1-1-30", VM, 1, 30, 60)),
    ("a shutdown, later", (*UP, STOPPING, again("stopping")),
     effects.ShutDownVm("shut-down-1-2-30", VM, 1, 30, 60, IN_4_S)),
    ("a shutdown with a time that a restart gives", (*UP, events.VmRestartRequested(2.5)),
     effects.ShutDownVm("shut-down-1-1-2.5", VM, 1, 2.5, 32.5)),
    ("a shutdown with a time that a stop gives", (*UP, events.VmStopRequested(kill=False, grace_s=5)),
     effects.ShutDownVm("shut-down-1-1-5", VM, 1, 5, 35)),
    ("an end", (*UP, KILLING), effects.EndVm("end-1-1", VM, 1)),
    ("an end, later", (*UP, KILLING, again("stopping")), effects.EndVm("end-1-2", VM, 1, not_before_us=IN_4_S)),
    ("a clearing", (*DOWN, STARTING, for_good("booting")), effects.EndVm("clear-2-1", VM, 2)),
    ("a clearing, later", (*DOWN, STARTING, for_good("booting"), again("stopping")),
     effects.EndVm("clear-2-2", VM, 2, not_before_us=IN_4_S)),
    ("a removal", (*DOWN, DELETING), effects.RemoveVm("remove-1", VM, 1)),
    ("a removal, later", (*DOWN, DELETING, again("removing")),
     effects.RemoveVm("remove-2", VM, 1, not_before_us=IN_4_S)),
    ("a quarantine", (FOUND,), effects.QuarantineVm("quarantine-kept-1", VM, "kept")),
    ("a quarantine, later", (FOUND, again("removing")),
     effects.QuarantineVm("quarantine-kept-2", VM, "kept", not_before_us=IN_4_S)),
    ("nothing while it runs", UP, None),
    ("nothing while it is stopped", DOWN, None),
    ("nothing while it is failed", (*UP, exited("crash")), None),
    ("nothing once it is deleted", (*DOWN, DELETING, events.VmDeleted()), None),
]  # fmt: skip


@pytest.mark.parametrize(("past", "pending"), [case[1:] for case in EXPECTED], ids=[case[0] for case in EXPECTED])
def test_this_is_pending_to_the_letter(past: tuple[events.VmEvent, ...], pending: effects.ComputeEffect | None) -> None:
    assert given(*past).pending == pending


TRIED: list[tuple[str, tuple[events.VmEvent, ...], str | None]] = [
    ("the disk is there", (REQUESTED, again("provisioning"), DISK), "boot-1-1"),
    ("the disk of one to be stopped is there", (REQUESTED, STOPPING, again("provisioning"), DISK), None),
    ("the disk is not wanted any more", (REQUESTED, again("provisioning"), DELETING), "remove-1"),
    ("a start is asked for in the wait", (REQUESTED, STOPPING, again("provisioning"), STARTING), "provision-1"),
    ("the disk failed for good, and is asked for again",
     (REQUESTED, STOPPING, again("provisioning"), for_good("provisioning"), STARTING), "provision-1"),
    ("the disk failed for good, and the VM is undone",
     (REQUESTED, again("provisioning"), for_good("provisioning"), events.VmUndone()), "remove-1"),
    ("the first boot failed for good, and the VM is undone",
     (REQUESTED, DISK, again("booting"), for_good("booting"), events.VmUndone()), "remove-1"),
    ("it runs", (REQUESTED, DISK, again("booting"), BOOTED), None),
    ("a boot failed for good", (*DOWN, STARTING, again("booting"), for_good("booting")), "clear-2-1"),
    ("what a boot left is gone", (*DOWN, STARTING, for_good("booting"), again("stopping"), events.VmCleared(2)), None),
    ("it starts before what a boot left is gone",
     (*DOWN, STARTING, for_good("booting"), again("stopping"), STARTING), "boot-3-1"),
    ("it is stopped before what a boot left is gone",
     (*DOWN, STARTING, for_good("booting"), again("stopping"), STOPPING), "clear-2-1"),
    ("the guest did not hear", (*UP, STOPPING, again("stopping"), events.VmStopForced(1, 30)), "end-1-1"),
    ("the guest has ended", (*UP, STOPPING, again("stopping"), ENDED), "end-1-1"),
    ("it is asked to stop once more", (*UP, STOPPING, again("stopping"), KILLING), "end-1-1"),
    ("it is gone", (*UP, STOPPING, again("stopping"), exited("user")), None),
    ("it is gone, to be removed", (*UP, DELETING, again("stopping"), exited("user")), "remove-1"),
    ("it is gone, to start again", (*UP, STOPPING, STARTING, again("stopping"), exited("user")), "boot-2-1"),
    ("the end failed for good, and a start is asked for",
     (*UP, KILLING, again("stopping"), for_good("stopping"), STARTING), "end-1-1"),
    ("the shutdown failed for good, and a start is asked for",
     (*UP, STOPPING, again("stopping"), for_good("stopping"), STARTING), "end-1-1"),
    ("the removal failed for good, and is asked for again",
     (*DOWN, DELETING, again("removing"), for_good("removing"), DELETING), "remove-1"),
    ("it is deleted", (*DOWN, DELETING, again("removing"), events.VmDeleted()), None),
    ("it is quarantined", (FOUND, again("removing"), events.VmCollected("/kept")), None),
    ("it is deleted, and something of it is found",
     (*DOWN, DELETING, again("removing"), events.VmDeleted(), FOUND), "quarantine-kept-1"),
]  # fmt: skip


@pytest.mark.parametrize(("past", "key"), [case[1:] for case in TRIED], ids=[case[0] for case in TRIED])
def test_attempts_and_waits_end_with_the_step_that_they_were_for(
    past: tuple[events.VmEvent, ...], key: str | None
) -> None:
    vm = given(*past)
    assert (vm.pending.key if vm.pending else None) == key
    attempt = state_of(*past).attempt
    assert (attempt.number, attempt.not_before_us) == (1, 0)


class TestWhatIsForgotten:
    @pytest.mark.parametrize("early", [True, False])
    def test_the_next_run_is_not_ready_since_the_last_one_was(self, early: bool) -> None:
        last = (BOOTED, READY, exited("crash")) if not early else (READY, again("booting"), for_good("booting"))
        past = (REQUESTED, DISK, *last, STARTING, replace(BOOTED, run=2))
        assert phase_of(given(*past)) == "running"

    def test_the_next_run_is_asked_to_shut_down_though_the_last_one_was_ended(self) -> None:
        """The kill of a boot fails for good: no process was ever seen, so a start boots anew."""
        past = (REQUESTED, DISK, KILLING, for_good("stopping"), STARTING)
        vm = given(*past, replace(BOOTED, run=2)).when(STOP).then(STOPPING)
        assert isinstance(vm.pending, effects.ShutDownVm)

    @pytest.mark.parametrize("past", [(*UP, ENDED), (*UP, KILLING), (*UP, STOPPING, events.VmStopForced(1, 30))])
    def test_the_next_run_ends_for_its_own_reason(self, past: tuple[events.VmEvent, ...]) -> None:
        vm = given(*past, exited("user"), STARTING, replace(BOOTED, run=2))
        assert isinstance(vm.when(STOP).then(STOPPING).pending, effects.ShutDownVm)
        vm = vm.when(effects.GuestEnded(VM, 2, "panic", "oops")).then(events.VmEnded(2, "panic", "oops"))
        decided = COMPUTE.decide(vm.state, effects.Ended("", 0), NOON_US)
        assert decided[0] == exited("panic", run=2, exit_code=0, detail="oops")

    def test_the_words_of_the_last_end_are_not_those_of_the_next(self) -> None:
        vm = given(*UP, events.VmEnded(1, "panic", "oops"), exited("panic"), STARTING, replace(BOOTED, run=2))
        decided = COMPUTE.decide(vm.state, effects.VmGone(VM, 2, exit_code=1), NOON_US)
        assert decided[0] == exited("crash", run=2, exit_code=1)

    def test_a_boot_after_one_that_may_have_left_a_process_fails_as_a_boot(self) -> None:
        vm = given(*DOWN, STARTING, for_good("booting"), STARTING)
        [failure] = COMPUTE.decide(vm.state, failed(""), NOON_US)
        assert isinstance(failure, events.VmStepFailed)
        assert (failure.step, failure.run) == ("booting", 3)

    def test_who_is_deleted_has_neither_a_disk_nor_a_failure(self) -> None:
        vm = state_of(*UP, KILLING, for_good("stopping"), DELETING)
        assert (vm.shown, vm.failure) == ("stopping", None)
        vm = state_of(*DOWN, DELETING, events.VmDeleted())
        assert (vm.observed, vm.has_disk, vm.run.process) == ("absent", False, None)

    def test_one_that_was_blocked_is_not_once_it_is_gone(self) -> None:
        blocked = (*UP, DELETING, for_good("stopping"))
        assert given(*blocked).pending is None
        vm = given(*blocked).when(commands.VmLost(VM, 1, "boot-a")).then(exited("user"))
        assert vm.pending == effects.RemoveVm("remove-1", VM, 1)


class TestWhatIsKept:
    def test_the_disk_is_as_large_as_it_was_made(self) -> None:
        assert state_of(REQUESTED, events.DiskProvisioned(4096)).spec == replace(SPEC, disk_mib=4096)

    @pytest.mark.parametrize("past", [(REQUESTED, DISK, BOOTED), UP])
    def test_who_is_resumed_is_as_ready_as_before(self, past: tuple[events.VmEvent, ...]) -> None:
        before = state_of(*past)
        paused = state_of(*past, events.VmPaused(1, "io-error", ""))
        assert (paused.phase, paused.observed, paused.run.paused_reason) == ("paused", "paused", "io-error")
        assert state_of(*past, events.VmPaused(1, "io-error", ""), events.VmResumed(1)) == before

    def test_the_time_that_a_guest_is_given_is_kept_while_its_disk_is_made(self) -> None:
        assert state_of(REQUESTED, events.VmStopRequested(kill=False, grace_s=5)).grace_s == 5

    def test_a_restart_during_a_stop_is_a_wish_to_run(self) -> None:
        vm = state_of(*UP, STOPPING, events.VmRestartRequested(7))
        assert (vm.requested, vm.run.start_next, vm.grace_s) == ("running", True, 7)

    def test_who_gave_up_says_so_behind_the_reason(self) -> None:
        vm = state_of(*UP, exited("crash", signal=9, log_tail="the end"), events.VmGaveUp(5))
        assert vm.failure is not None
        assert vm.failure.reason == "QEMU was ended by signal 9; given up after 5 restarts"
        assert (vm.phase, vm.failure.phase, vm.failure.log_tail) == ("failed", "running", "the end")

    def test_what_the_log_never_heard_of_has_a_name_and_nothing_else(self) -> None:
        vm = state_of(FOUND)
        assert vm.spec == VmSpec(f"stray-{VM}", "", "", "qcow2", 0, "none", 0, 0, 0, "never", False, {})
        assert (vm.shown, vm.requested, vm.is_orphan, vm.quarantined_as) == ("stopped", "deleted", True, "kept")
        vm = state_of(FOUND, events.VmCollected("/kept"))
        assert (vm.shown, vm.is_orphan, vm.quarantined_as) == ("deleted", False, "/kept")

    @pytest.mark.parametrize("paused", [False, True])
    def test_who_would_not_end_is_ended_before_it_starts(self, paused: bool) -> None:
        past = (*UP, ENDED) if paused else (*UP, KILLING)
        vm = given(*past, for_good("stopping")).when(START).then(STARTING)
        assert phase_of(vm) == "stopping"
        assert vm.pending == effects.EndVm("end-1-1", VM, 1)
        reason: events.ExitReason = "guest" if paused else "user"
        vm = vm.when(effects.Ended("end-1-1")).then(exited(reason))
        assert vm.state is not None
        assert vm.state.exit == exited(reason)
        assert vm.pending == effects.BootVm("boot-2-1", VM, 2, 1, 128, "channel", "raw")

    @pytest.mark.parametrize("asked", [STOP, KILL, DELETE])
    def test_nothing_is_asked_of_a_guest_that_qemu_holds(self, asked: Any) -> None:
        vm = running().when(effects.GuestPaused(VM, 1, "disk")).then_types(events.VmPaused)
        decided = COMPUTE.decide(vm.state, asked, NOON_US)
        asked_of = (*UP, events.VmPaused(1, "disk", ""), *decided)
        assert given(*asked_of).pending == effects.EndVm("end-1-1", VM, 1)
        assert state_of(*asked_of).run.paused_reason is None

    def test_a_vm_is_in_its_phase_since_it_came_to_it(self) -> None:
        vm, since = None, []
        past: list[events.VmEvent] = [REQUESTED, again("provisioning"), DISK, BOOTED, READY, events.VmAdopted(1)]
        for second, event in enumerate(past):
            vm = COMPUTE.evolve(vm, event, second)
            since.append(vm.phase_since_us)
        assert since == [0, 0, 2, 3, 4, 4]
