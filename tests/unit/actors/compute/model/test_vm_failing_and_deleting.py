"""What follows when a step of a VM fails, when it is deleted, and when a caller is answered."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from aetherscale.actors.compute.model import commands, effects, events
from aetherscale.actors.compute.model.commands import VmLost
from aetherscale.actors.compute.model.presentation import is_stopped, is_up
from aetherscale.bus.refusals import hint
from aetherscale.kernel.errors import Refused
from aetherscale.kernel.times import SECOND_US, to_rfc3339
from tests.support.spec import NOON_US
from tests.support.vm_pasts import (
    BOOTED,
    DELETE,
    DISK,
    ENDED,
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
    state_of,
)


class TestFailing:
    def test_a_step_is_tried_again_a_few_times_with_growing_waits(self) -> None:
        vm = given(REQUESTED, DISK, BOOTED, STOPPING, exited("user"), events.VmStartRequested())
        for wait in (1, 2):
            assert vm.pending is not None
            vm = vm.when(failed(vm.pending.key)).then_types(events.VmStepFailed)
            assert vm.pending is not None
            assert vm.pending.not_before_us == NOON_US + wait * 1_000_000
        assert vm.pending is not None
        vm = vm.when(failed(vm.pending.key)).then_types(events.VmStepFailed)
        assert phase_of(vm) == "failed"
        assert isinstance(vm.pending, effects.EndVm), "it is not tried again, and what it may have left is ended"

    @pytest.mark.parametrize("past", [(REQUESTED,), (REQUESTED, DISK)])
    def test_a_vm_that_never_ran_is_undone(self, past: tuple[Any, ...]) -> None:
        vm = given(*past).when(failed("", retryable=False)).then_types(events.VmStepFailed, events.VmUndone)
        assert isinstance(vm.pending, effects.RemoveVm)
        vm = vm.when(effects.Removed("remove-1")).then(events.VmDeleted())
        assert phase_of(vm) == "deleted"
        assert vm.state is not None
        with pytest.raises(Refused, match="it broke") as refusal:
            is_up(vm.state)
        assert refusal.value.details["log-tail"] == "the end of the log"
        assert hint(refusal.value.remedy) == "mend it"

    def test_one_that_has_run_before_is_kept(self) -> None:
        vm = given(REQUESTED, DISK, BOOTED, STOPPING, exited("user"), events.VmStartRequested())
        vm = vm.when(failed("", retryable=False)).then_types(events.VmStepFailed)
        assert phase_of(vm) == "failed"

    def test_what_a_failed_boot_may_have_left_is_ended_before_the_vm_is_at_rest(self) -> None:
        """The attempt that failed may not have been the first, and one before may have got a process."""
        vm = given(REQUESTED, DISK, BOOTED, STOPPING, exited("user"), events.VmStartRequested())
        vm = vm.when(failed("", retryable=False)).then_types(events.VmStepFailed)
        assert isinstance(vm.pending, effects.EndVm)
        assert phase_of(vm) == "failed"
        cleared = vm.when(effects.Ended(vm.pending.key)).then(events.VmCleared(2))
        assert (phase_of(cleared), cleared.pending) == ("failed", None)
        again = cleared.when(START).then_types(events.VmStartRequested)
        assert isinstance(again.pending, effects.BootVm)

        later = to_rfc3339(NOON_US + SECOND_US)
        step = events.VmStepFailed("stopping", 2, 1, "it broke", "mend it", "the end of the log", later)
        retried = vm.when(failed("clear-2-1")).then(step)
        assert isinstance(retried.pending, effects.EndVm)
        assert retried.pending.key == "clear-2-2"
        given_up = vm.when(failed("clear-2-1", retryable=False)).then_types(events.VmStepFailed)
        assert given_up.pending is None
        stopped = vm.when(STOP).then_types(events.VmStopRequested)
        assert isinstance(stopped.pending, effects.EndVm)
        deleted = vm.when(DELETE).then_types(events.VmDeleteRequested)
        assert isinstance(deleted.pending, effects.RemoveVm)

    def test_one_that_would_not_end_comes_back_once_it_is_gone(self) -> None:
        vm = running().when(STOP).then(STOPPING)
        assert vm.pending is not None
        vm = vm.when(failed(vm.pending.key, retryable=False)).then_types(events.VmStepFailed)
        assert (phase_of(vm), vm.pending) == ("failed", None)
        vm = vm.when(RESTART).then_types(events.VmRestartRequested)
        assert isinstance(vm.pending, effects.EndVm)
        lost = VmLost(VM, 1, "another boot")
        assert isinstance(vm.when(lost).then_types(events.VmExited).pending, effects.BootVm)

    def test_an_undoing_that_fails_for_good_comes_to_an_end(self) -> None:
        vm = given(REQUESTED).when(failed("", retryable=False)).then_types(events.VmStepFailed, events.VmUndone)
        vm = vm.when(failed("remove-1", retryable=False)).then_types(events.VmStepFailed)
        assert vm.pending is None
        assert isinstance(vm.when(DELETE).then_types(events.VmDeleteRequested).pending, effects.RemoveVm)


class TestDeleting:
    @pytest.mark.parametrize(
        ("past", "channel", "asked_s", "grace_s"),
        [
            ((), "channel", None, commands.UNREADY_GRACE_S),
            ((), "agent", None, commands.UNREADY_GRACE_S),
            ((), "agent", 3, 3),
            ((), "agent", 30, 30),
            ((), "none", None, 30),
            ((READY,), "channel", None, 30),
        ],
    )
    def test_a_guest_that_never_said_ready_is_given_less(
        self, past: tuple[Any, ...], channel: Any, asked_s: float | None, grace_s: float
    ) -> None:
        """It hardly hears that it is to power off, and its disk goes in any case. Who says how long is heard."""
        requested = events.VmRequested(VM, replace(SPEC, ready_channel=channel))
        asked = given(requested, DISK, BOOTED, *past).when(commands.DeleteVm(VM, kill=False, grace_s=asked_s))
        vm = asked.then(events.VmDeleteRequested(kill=False, grace_s=grace_s))
        assert isinstance(vm.pending, effects.ShutDownVm)
        assert vm.pending.grace_s == grace_s

    def test_a_stop_of_a_guest_that_never_said_ready_gives_it_its_time(self) -> None:
        """Its disk stays: it may be one that runs, and whose agent is not there."""
        vm = running().when(STOP).then(STOPPING)
        assert isinstance(vm.pending, effects.ShutDownVm)
        assert vm.pending.grace_s == commands.DEFAULT_GRACE_S

    def test_a_running_vm_is_stopped_first(self) -> None:
        vm = running().when(DELETE).then(events.VmDeleteRequested(kill=False, grace_s=30))
        assert isinstance(vm.pending, effects.ShutDownVm)
        vm = vm.when(effects.VmGone(VM, 1)).then(exited("user"))
        assert isinstance(vm.pending, effects.RemoveVm)

    @pytest.mark.parametrize(
        "past",
        [(REQUESTED,), (REQUESTED, DISK, BOOTED, STOPPING, exited("user")), (REQUESTED, DISK, BOOTED, exited("crash"))],
    )
    def test_one_that_is_down_is_removed(self, past: tuple[Any, ...]) -> None:
        vm = given(*past).when(DELETE).then_types(events.VmDeleteRequested)
        assert isinstance(vm.pending, effects.RemoveVm)
        assert phase_of(vm.when(effects.Removed("remove-1")).then(events.VmDeleted())) == "deleted"

    def test_a_removal_that_fails_says_so_and_is_tried_again(self) -> None:
        past = (REQUESTED, DISK, BOOTED, STOPPING, exited("user"), events.VmDeleteRequested(kill=False, grace_s=30))
        later = to_rfc3339(NOON_US + SECOND_US)
        step = events.VmStepFailed("removing", 1, 1, "it broke", "mend it", "the end of the log", later)
        given(*past).when(failed("remove-1")).then(step)

    def test_a_second_delete_changes_nothing(self) -> None:
        running().when(DELETE).then_types(events.VmDeleteRequested).when(DELETE).nothing_happens()

    def test_kill_hastens_a_delete(self) -> None:
        vm = running().when(DELETE).then_types(events.VmDeleteRequested)
        vm = vm.when(commands.DeleteVm(VM, kill=True, grace_s=0)).then_types(events.VmDeleteRequested)
        assert isinstance(vm.pending, effects.EndVm)

    def test_what_is_being_deleted_does_not_start(self) -> None:
        running().when(DELETE).then_types(events.VmDeleteRequested).when(START).is_refused(409, "being deleted")

    def test_what_is_deleted_is_not_there(self) -> None:
        deleting = events.VmDeleteRequested(kill=False, grace_s=0)
        gone = given(REQUESTED, DISK, deleting, exited("user"), events.VmDeleted())
        for command in (START, STOP, RESTART, DELETE):
            gone.when(command).is_refused(404, "deleted")
        gone.when(effects.VmGone(VM, 1)).nothing_happens()


class TestAnswers:
    def test_create_ends_when_the_guest_is_ready(self) -> None:
        assert not is_up(state_of(REQUESTED, DISK, BOOTED))
        assert is_up(state_of(REQUESTED, DISK, BOOTED, READY))

    def test_create_ends_with_running_where_the_image_cannot_say_ready(self) -> None:
        assert is_up(state_of(replace(REQUESTED, spec=replace(SPEC, ready_channel="none")), DISK, BOOTED))

    def test_stop_ends_when_the_process_is_gone_also_if_it_starts_again_at_once(self) -> None:
        stopping = (REQUESTED, DISK, BOOTED, READY, STOPPING)
        assert not is_stopped(state_of(*stopping))
        assert not is_stopped(state_of(*stopping, ENDED))
        assert is_stopped(state_of(*stopping, ENDED, exited("user")))
        assert is_stopped(state_of(*stopping, events.VmStartRequested(), ENDED, exited("user")))

    def test_a_vm_that_is_stopped_before_it_is_ready_was_not_created_ready(self) -> None:
        with pytest.raises(Refused, match="stopped before it was ready"):
            is_up(state_of(REQUESTED, DISK, BOOTED, STOPPING))
