"""What follows when two things happen to a VM at one time; and the reasons, times and counts that are put on record."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from msgspec.structs import replace

from aetherscale.actors.compute.model import commands, effects, events
from aetherscale.actors.compute.model.decide import COMPUTE, QUIET_S, RESTART_LIMIT
from aetherscale.actors.compute.model.state import Vm
from aetherscale.kernel.attempts import ATTEMPT_LIMIT
from aetherscale.kernel.times import SECOND_US, to_rfc3339
from tests.support.spec import NOON_US, Given
from tests.support.vm_pasts import (
    BOOTED,
    DELETE,
    DISK,
    KILL,
    READY,
    REQUESTED,
    RESTART,
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
)

ANOTHER_BOOT = commands.VmLost(VM, 1, "boot-b")
Specified = Given[Vm, Any, Any, Any]


def state_of(vm: Specified) -> Vm:
    assert vm.state is not None
    return vm.state


def ended(restart: Any, end: Any) -> Specified:
    """Its guest has ended, and QEMU still holds it."""
    return running(restart).when(effects.GuestEnded(VM, 1, end, "why")).then(events.VmEnded(1, end, "why"))


class TestTheGuestEndsAnd:
    """Who was first is the reason."""

    @pytest.mark.parametrize(("end", "reason"), [("shutdown", "guest"), ("panic", "panic")])
    @pytest.mark.parametrize("asked", [STOP, KILL, DELETE, RESTART])
    def test_somebody_asks_for_what_has_happened_already(self, end: Any, reason: Any, asked: Any) -> None:
        decided = COMPUTE.decide(ended("on-failure", end).state, asked, NOON_US)
        assert len(decided) == 1
        vm = given(REQUESTED, DISK, BOOTED, READY, events.VmEnded(1, end, "why"), *decided)
        assert isinstance(vm.pending, effects.EndVm), "a guest that has ended hears no button"
        assert state_of(vm).observed == "paused", "QEMU holds it, and nothing in it runs"
        vm = vm.when(effects.Ended("end-1-1", exit_code=0)).then(exited(reason, exit_code=0, detail="why"))
        pending: dict[Any, type[Any]] = {DELETE: effects.RemoveVm, RESTART: effects.BootVm}
        assert type(vm.pending) is pending.get(asked, type(None))

    @pytest.mark.parametrize(("end", "reason"), [("shutdown", "guest"), ("panic", "panic")])
    @pytest.mark.parametrize("asked", [STOP, DELETE, RESTART])
    def test_qemu_does_not_let_it_go_until_somebody_asks(self, end: Any, reason: Any, asked: Any) -> None:
        blocked = ended("never", end).when(failed("end-1-1", retryable=False)).then_types(events.VmStepFailed)
        [event] = COMPUTE.decide(blocked.state, asked, NOON_US)
        past = (REQUESTED, DISK, BOOTED, READY, events.VmEnded(1, end, "why"))
        failure = events.VmStepFailed("stopping", 1, 1, "it broke", "", "", None)
        given(*past, failure, event).when(effects.Ended("end-1-1")).then(exited(reason, detail="why"))

    @pytest.mark.parametrize("asked", [STOP, DELETE, RESTART])
    def test_somebody_had_asked_for_it(self, asked: Any) -> None:
        decided = COMPUTE.decide(running().state, asked, NOON_US)
        vm = (
            given(REQUESTED, DISK, BOOTED, READY, *decided)
            .when(effects.GuestEnded(VM, 1, "panic"))
            .then_types(events.VmEnded)
        )
        vm.when(effects.Ended("end-1-1")).then(exited("user"))

    @pytest.mark.parametrize(("end", "reason"), [("shutdown", "guest"), ("panic", "panic")])
    def test_the_host_is_rebooted_before_qemu_is_let_go(self, end: Any, reason: Any) -> None:
        """It had ended by itself: the policy says whether it comes back, and no reboot brings back what was over."""
        vm = ended("never", end).when(ANOTHER_BOOT).then(exited(reason, detail="why"))
        assert (phase_of(vm), vm.pending) == ("stopped" if reason == "guest" else "failed", None)
        again = events.VmRestartScheduled(1, to_rfc3339(NOON_US + SECOND_US))
        ended("always", end).when(ANOTHER_BOOT).then(exited(reason, detail="why"), again)

    @pytest.mark.parametrize(("end", "reason"), [("shutdown", "guest"), ("panic", "panic")])
    def test_qemu_is_killed_while_it_is_let_go(self, end: Any, reason: Any) -> None:
        vm = ended("never", end).when(effects.VmGone(VM, 1, signal=9))
        vm.then(exited(reason, signal=9, detail="why"))

    def test_qemu_holds_it_before_it_is_let_go(self) -> None:
        ended("never", "shutdown").when(effects.GuestPaused(VM, 1, "disk")).nothing_happens()
        ended("never", "shutdown").when(effects.GuestEnded(VM, 1, "panic")).nothing_happens()

    def test_it_ends_while_it_is_paused(self) -> None:
        vm = running("never").when(effects.GuestPaused(VM, 1, "disk")).then_types(events.VmPaused)
        vm = vm.when(effects.GuestEnded(VM, 1, "panic")).then_types(events.VmEnded)
        assert (state_of(vm).run.paused_reason, state_of(vm).observed) == (None, "paused")
        vm.when(effects.Ended("end-1-1")).then(exited("panic"))


class TestTheHostIsRebootedAnd:
    @pytest.mark.parametrize("asked", [STOP, KILL, DELETE])
    def test_somebody_had_asked_to_stop_it(self, asked: Any) -> None:
        decided = COMPUTE.decide(running().state, asked, NOON_US)
        vm = given(REQUESTED, DISK, BOOTED, READY, *decided).when(ANOTHER_BOOT).then(exited("user"))
        assert phase_of(vm) == "stopped", "what was to be down stays down"

    @pytest.mark.parametrize("autostart", [False, True])
    def test_somebody_had_asked_to_restart_it(self, autostart: bool) -> None:
        past = (replace(REQUESTED, spec=replace(SPEC, autostart=autostart)), DISK, BOOTED, READY)
        vm = given(*past).when(RESTART).then_types(events.VmRestartRequested)
        vm = vm.when(ANOTHER_BOOT).then(exited("host-reboot"))
        assert isinstance(vm.pending, effects.BootVm), "once, and since somebody asked for it"
        assert (vm.pending.run, vm.pending.not_before_us) == (2, 0)

    def test_it_was_paused(self) -> None:
        vm = running("never").when(effects.GuestPaused(VM, 1, "disk")).then_types(events.VmPaused)
        vm = vm.when(ANOTHER_BOOT).then_types(events.VmExited, events.VmRestartScheduled)
        assert state_of(vm).run.paused_reason is None

    def test_its_restarts_were_counted(self) -> None:
        """A reboot is nobody's failure: the count begins anew."""
        vm = running().when(effects.VmGone(VM, 1)).then_types(events.VmExited, events.VmRestartScheduled)
        vm = vm.when(effects.Booted("", VM, 2, 1, 1, "boot-a", "tcg")).then_types(events.VmBooted)
        vm = vm.when(commands.VmLost(VM, 2, "boot-b")).then_types(events.VmExited, events.VmRestartScheduled)
        assert state_of(vm).restarts == 0


class TestAStopIsAskedForAnd:
    def test_its_end_fails_for_good_though_a_start_had_been_asked_for_too(self) -> None:
        """Nothing happens of itself any more: what failed is asked for again by somebody."""
        vm = running().when(STOP).then(STOPPING).when(START).then(events.VmStartRequested())
        vm = vm.when(failed("shut-down-1-1", retryable=False)).then_types(events.VmStepFailed)
        assert (phase_of(vm), vm.pending, state_of(vm).observed) == ("failed", None, "running")
        vm = vm.when(commands.VmLost(VM, 1, "boot-a")).then(exited("user"))
        assert (phase_of(vm), state_of(vm).requested, vm.pending) == ("stopped", "stopped", None)

    def test_qemu_is_killed_by_somebody_else(self) -> None:
        vm = running("always").when(KILL).then_types(events.VmStopRequested)
        vm = vm.when(effects.VmGone(VM, 1, signal=9)).then(exited("user", signal=9))
        assert (phase_of(vm), vm.pending) == ("stopped", None)

    def test_a_stop_calls_a_restart_off(self) -> None:
        vm = running().when(RESTART).then_types(events.VmRestartRequested).when(STOP).then(STOPPING)
        vm = vm.when(effects.ShutdownIgnored("shut-down-1-1", 30)).then(events.VmStopForced(1, 30))
        vm = vm.when(effects.Ended("end-1-1", exit_code=0)).then(exited("user", exit_code=0))
        assert (phase_of(vm), vm.pending) == ("stopped", None)

    def test_a_restart_after_a_kill_does_not_ask_the_guest(self) -> None:
        vm = running().when(KILL).then_types(events.VmStopRequested).when(RESTART).then_types(events.VmRestartRequested)
        assert isinstance(vm.pending, effects.EndVm)
        vm = vm.when(effects.Ended("end-1-1")).then(exited("user"))
        assert isinstance(vm.pending, effects.BootVm)

    def test_it_fails_to_boot_meanwhile(self) -> None:
        """It never ran, and somebody wants it stopped: it is kept, not undone."""
        vm = (
            given(REQUESTED).when(STOP).then(STOPPING).when(failed("", retryable=False)).then_types(events.VmStepFailed)
        )
        assert (phase_of(vm), state_of(vm).requested, vm.pending) == ("failed", "stopped", None)

    def test_the_next_run_is_nobodys_stop(self) -> None:
        vm = running("never").when(RESTART).then_types(events.VmRestartRequested)
        vm = vm.when(effects.Ended("end-1-1")).then(exited("user"))
        vm = vm.when(effects.Booted("", VM, 2, 1, 1, "boot-a", "tcg")).then_types(events.VmBooted)
        vm = vm.when(effects.VmGone(VM, 2, exit_code=1)).then(exited("crash", run=2, exit_code=1))
        assert (phase_of(vm), vm.pending) == ("failed", None), "what was asked for once is done once"

    def test_the_attempts_at_the_end_are_counted_from_its_beginning(self) -> None:
        vm = running().when(STOP).then(STOPPING).when(failed("shut-down-1-1")).then_types(events.VmStepFailed)
        assert state_of(vm).attempt.number == 2
        vm = vm.when(effects.ShutdownIgnored("shut-down-1-2", 30)).then_types(events.VmStopForced)
        assert vm.pending is not None
        assert vm.pending.key == "end-1-1"


class TestADeletionIsAskedFor:
    PASTS: ClassVar[dict[str, tuple[tuple[events.VmEvent, ...], type[Any]]]] = {
        "while the disk is made": ((REQUESTED,), effects.RemoveVm),
        "while it boots": ((REQUESTED, DISK), effects.EndVm),
        "while it runs": ((REQUESTED, DISK, BOOTED), effects.ShutDownVm),
        "while it is paused": ((REQUESTED, DISK, BOOTED, events.VmPaused(1, "disk", "")), effects.EndVm),
        "while it is stopped": ((REQUESTED, DISK, BOOTED, STOPPING), effects.ShutDownVm),
        "while it is killed": ((REQUESTED, DISK, BOOTED, STOPPING, events.VmStopForced(1, 30)), effects.EndVm),
        "while it is restarted": ((REQUESTED, DISK, BOOTED, events.VmRestartRequested(30)), effects.ShutDownVm),
        "when its guest has ended": ((REQUESTED, DISK, BOOTED, events.VmEnded(1, "panic", "")), effects.EndVm),
        "when it has crashed": ((REQUESTED, DISK, BOOTED, exited("crash")), effects.RemoveVm),
        "while a restart is waited for": (
            (REQUESTED, DISK, BOOTED, exited("crash"), events.VmRestartScheduled(1, to_rfc3339(NOON_US))),
            effects.EndVm,
        ),
    }

    @pytest.mark.parametrize("past", PASTS.values(), ids=PASTS)
    def test_and_nothing_comes_up_again(self, past: tuple[tuple[events.VmEvent, ...], type[Any]]) -> None:
        happened, pending = past
        vm = given(*happened).when(DELETE).then_types(events.VmDeleteRequested)
        assert isinstance(vm.pending, pending)
        assert state_of(vm).failure is None
        if pending is effects.RemoveVm:
            return
        run = state_of(vm).run.number
        vm = vm.when(effects.Ended("", exit_code=0)).then_types(events.VmExited)
        assert state_of(vm).run.number == run
        assert isinstance(vm.pending, effects.RemoveVm)


class TestCounts:
    def lived(self, seconds: float, *, ready_after: float = 0, restarts: int = 3) -> tuple[Vm, int]:
        """A VM of three restarts that has run for so long; and the time."""
        vm: Vm | None = None
        start = (REQUESTED, DISK, BOOTED, exited("crash"))
        for event in (*start, events.VmRestartScheduled(restarts, to_rfc3339(NOON_US)), replace(BOOTED, run=2)):
            vm = COMPUTE.evolve(vm, event, NOON_US)
        vm = COMPUTE.evolve(vm, events.VmReady(2, "channel"), NOON_US + int(ready_after * SECOND_US))
        return vm, NOON_US + int(seconds * SECOND_US)

    @pytest.mark.parametrize(
        ("seconds", "ready_after", "attempt"), [(QUIET_S, 0, 1), (QUIET_S - 0.000001, 0, 4), (QUIET_S, 30, 1)]
    )
    def test_a_quiet_time_is_counted_from_the_boot(self, seconds: float, ready_after: float, attempt: int) -> None:
        vm, at_us = self.lived(seconds, ready_after=ready_after)
        again = events.VmRestartScheduled(attempt, to_rfc3339(at_us + 2 ** (attempt - 1) * SECOND_US))
        assert tuple(COMPUTE.decide(vm, effects.VmGone(VM, 2), at_us)) == (exited("crash", run=2), again)

    def test_a_node_that_comes_back_does_not_begin_the_quiet_time_anew(self) -> None:
        vm, at_us = self.lived(QUIET_S)
        vm = COMPUTE.evolve(vm, events.VmAdopted(2), at_us - 1)
        [_, again] = COMPUTE.decide(vm, commands.VmLost(VM, 2, "boot-a"), at_us)
        assert isinstance(again, events.VmRestartScheduled)
        assert again.attempt == 1

    @pytest.mark.parametrize("restarts", [RESTART_LIMIT - 1, RESTART_LIMIT])
    def test_the_restart_that_is_one_too_many_is_given_up_with_how_many_there_were(self, restarts: int) -> None:
        vm, at_us = self.lived(1, restarts=restarts)
        decided = COMPUTE.decide(vm, effects.VmGone(VM, 2), at_us)
        last = events.VmRestartScheduled(RESTART_LIMIT, to_rfc3339(at_us + 16 * SECOND_US))
        assert decided[1] == (last if restarts < RESTART_LIMIT else events.VmGaveUp(RESTART_LIMIT))

    def test_who_shuts_down_too_often_is_stopped_and_no_failure(self) -> None:
        vm, at_us = self.lived(1, restarts=RESTART_LIMIT)
        vm = COMPUTE.evolve(
            replace(vm, spec=replace(vm.spec, restart="always")), events.VmEnded(2, "shutdown", ""), at_us
        )
        [only] = COMPUTE.decide(vm, effects.Ended("", exit_code=0), at_us)
        assert only == exited("guest", run=2, exit_code=0)
        vm = COMPUTE.evolve(vm, only, at_us)
        assert (vm.phase, vm.requested, vm.failure) == ("stopped", "stopped", None)

    @pytest.mark.parametrize("asked", [START, RESTART])
    def test_whoever_starts_it_begins_the_count_anew(self, asked: Any) -> None:
        vm, at_us = self.lived(1)
        if asked is START:
            [crash] = COMPUTE.decide(replace(vm, spec=replace(vm.spec, restart="never")), effects.VmGone(VM, 2), at_us)
            vm = COMPUTE.evolve(vm, crash, at_us)
        for event in COMPUTE.decide(vm, asked, at_us):
            vm = COMPUTE.evolve(vm, event, at_us)
        assert vm.restarts == 0

    def test_every_attempt_has_its_number_and_its_wait(self) -> None:
        vm = running().when(STOP).then(STOPPING)
        for attempt in range(1, ATTEMPT_LIMIT + 1):
            again = to_rfc3339(NOON_US + 2 ** (attempt - 1) * SECOND_US) if attempt < ATTEMPT_LIMIT else None
            vm = vm.when(failed(f"shut-down-1-{attempt}")).then(
                events.VmStepFailed("stopping", 1, attempt, "it broke", "mend it", "the end of the log", again)
            )

    def test_the_guest_has_the_time_that_the_last_one_gave_it(self) -> None:
        vm = running().when(STOP).then(STOPPING)
        vm = vm.when(commands.DeleteVm(VM, kill=False, grace_s=5)).then(events.VmDeleteRequested(kill=False, grace_s=5))
        assert isinstance(vm.pending, effects.ShutDownVm)
        assert vm.pending.grace_s == 5


class TestReasons:
    def test_one_that_nobody_saw_die(self) -> None:
        running("never").when(commands.VmLost(VM, 1, "boot-a")).then(exited("unknown"))

    def test_the_words_of_the_end_are_kept(self) -> None:
        gone = effects.VmGone(VM, 1, exit_code=1, detail="killed for want of memory", log_tail="the end")
        vm = (
            running("never")
            .when(gone)
            .then(exited("crash", exit_code=1, detail="killed for want of memory", log_tail="the end"))
        )
        failure = state_of(vm).failure
        assert failure is not None
        assert failure.reason == "QEMU exited with status 1 (killed for want of memory)"
        assert (failure.phase, failure.log_tail) == ("running", "the end")
