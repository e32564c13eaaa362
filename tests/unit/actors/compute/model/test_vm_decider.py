"""What follows when something is said to a VM that comes up, goes down, or is found again."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from aetherscale.actors.compute.model import commands, effects, events
from aetherscale.actors.compute.model.decide import COMPUTE, RESTART_LIMIT
from aetherscale.kernel.attempts import ATTEMPT_LIMIT
from aetherscale.kernel.times import to_rfc3339
from tests.support.spec import NOON_US
from tests.support.vm_pasts import (
    BOOTED,
    CREATE,
    DISK,
    ENDED,
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


class TestComingUp:
    def test_a_request_makes_pending_a_disk(self) -> None:
        vm = given().when(CREATE).then(REQUESTED)
        assert isinstance(vm.pending, effects.ProvisionDisk)

    def test_a_disk_makes_pending_a_boot(self) -> None:
        vm = given(REQUESTED).when(effects.DiskProvisioned("provision-1", 1024)).then(DISK)
        assert isinstance(vm.pending, effects.BootVm)
        assert vm.pending.run == 1

    def test_a_boot_makes_it_running_and_owes_nothing(self) -> None:
        booted = effects.Booted("boot-1-1", VM, 1, 4711, 99, "boot-a", "tcg")
        vm = given(REQUESTED, DISK).when(booted).then(BOOTED)
        assert phase_of(vm) == "running"
        assert vm.pending is None

    def test_the_guest_makes_it_ready(self) -> None:
        vm = given(REQUESTED, DISK, BOOTED).when(effects.GuestReady(VM, 1, "channel")).then(READY)
        assert phase_of(vm) == "ready"

    def test_a_guest_that_is_ready_before_qmp_has_answered_is_ready_with_the_answer(self) -> None:
        vm = given(REQUESTED, DISK).when(effects.GuestReady(VM, 1, "channel")).then(READY)
        assert phase_of(vm) == "booting"
        vm = vm.when(effects.Booted("boot-1-1", VM, 1, 4711, 99, "boot-a", "tcg")).then(BOOTED)
        assert phase_of(vm) == "ready"

    def test_ready_is_said_once(self) -> None:
        running().when(effects.GuestReady(VM, 1, "agent")).nothing_happens()

    def test_what_is_said_of_an_older_run_is_past(self) -> None:
        again = given(REQUESTED, DISK, BOOTED, STOPPING, exited("user"), events.VmStartRequested())
        again.when(effects.GuestReady(VM, 1, "channel")).nothing_happens()
        again.when(effects.VmGone(VM, 1)).nothing_happens()

    def test_a_process_that_ends_before_its_boot_is_answered_is_the_boots_to_tell(self) -> None:
        given(REQUESTED, DISK).when(effects.VmGone(VM, 1, exit_code=1)).nothing_happens()

    def test_an_id_is_made_once(self) -> None:
        running().when(CREATE).is_refused(409, "exists already")


class TestStopping:
    def test_a_stop_asks_the_guest(self) -> None:
        vm = running().when(STOP).then(STOPPING)
        assert isinstance(vm.pending, effects.ShutDownVm)
        assert (vm.pending.grace_s, vm.pending.deadline_s) == (30, 60), (
            "a QEMU that hangs is not waited for for an hour"
        )

    def test_a_guest_that_goes_down_is_let_go_once_that_is_on_record(self) -> None:
        vm = running().when(STOP).then(STOPPING).when(effects.GuestEnded(VM, 1, "shutdown")).then(ENDED)
        assert isinstance(vm.pending, effects.EndVm)
        vm = vm.when(effects.Ended("end-1-1", exit_code=0)).then(exited("user", exit_code=0))
        assert phase_of(vm) == "stopped"
        assert vm.pending is None

    def test_a_guest_that_ignores_the_button_is_ended_after_its_time(self) -> None:
        vm = (
            running()
            .when(STOP)
            .then(STOPPING)
            .when(effects.ShutdownIgnored("shut-down-1-1", 30))
            .then(events.VmStopForced(1, 30))
        )
        assert isinstance(vm.pending, effects.EndVm)

    def test_kill_does_not_ask(self) -> None:
        vm = running().when(KILL).then(events.VmStopRequested(kill=True, grace_s=30))
        assert isinstance(vm.pending, effects.EndVm)

    def test_kill_overtakes_a_graceful_stop(self) -> None:
        vm = running().when(STOP).then(STOPPING).when(KILL).then(events.VmStopRequested(kill=True, grace_s=30))
        assert isinstance(vm.pending, effects.EndVm)

    def test_a_second_stop_changes_nothing(self) -> None:
        running().when(STOP).then(STOPPING).when(STOP).nothing_happens()
        given(REQUESTED, DISK, BOOTED, STOPPING, exited("user")).when(STOP).nothing_happens()

    def test_a_graceful_stop_does_not_slow_down_a_kill(self) -> None:
        vm = running().when(KILL).then_types(events.VmStopRequested)
        vm.when(STOP).nothing_happens()
        assert isinstance(vm.pending, effects.EndVm)

    def test_stop_and_start_at_once_bring_it_down_and_then_up(self) -> None:
        vm = running().when(STOP).then(STOPPING).when(START).then(events.VmStartRequested())
        assert isinstance(vm.pending, effects.ShutDownVm)
        vm = vm.when(effects.GuestEnded(VM, 1, "shutdown")).then(ENDED)
        vm = vm.when(effects.Ended("end-1-1")).then(exited("user"))
        assert isinstance(vm.pending, effects.BootVm)
        assert vm.pending.run == 2

    def test_stop_start_stop_ends_stopped(self) -> None:
        vm = running().when(STOP).then(STOPPING).when(START).then(events.VmStartRequested()).when(STOP).then(STOPPING)
        vm = vm.when(effects.VmGone(VM, 1, exit_code=0)).then(exited("user", exit_code=0))
        assert phase_of(vm) == "stopped"

    def test_a_vm_that_is_booting_is_ended(self) -> None:
        vm = given(REQUESTED, DISK).when(STOP).then(STOPPING)
        assert isinstance(vm.pending, effects.EndVm)

    def test_a_vm_that_is_being_provisioned_stays_down_when_its_disk_is_there(self) -> None:
        vm = given(REQUESTED).when(STOP).then(STOPPING)
        assert isinstance(vm.pending, effects.ProvisionDisk)
        vm = vm.when(effects.DiskProvisioned("provision-1", 1024)).then(DISK)
        assert phase_of(vm) == "stopped"
        assert vm.pending is None

    def test_a_failed_vm_that_is_stopped_is_stopped(self) -> None:
        crashed = given(replace(REQUESTED, spec=replace(SPEC, restart="never")), DISK, BOOTED, exited("crash"))
        assert phase_of(crashed) == "failed"
        stopped = crashed.when(STOP).then(STOPPING)
        assert phase_of(stopped) == "stopped"
        assert stopped.state is not None
        assert stopped.state.failure is None

    def test_a_process_that_will_not_end_is_never_called_stopped(self) -> None:
        vm = running().when(KILL).then_types(events.VmStopRequested)
        for attempt in range(1, ATTEMPT_LIMIT + 1):
            assert vm.pending is not None
            assert vm.pending.key == f"end-1-{attempt}"
            vm = vm.when(failed(vm.pending.key)).then_types(events.VmStepFailed)
        assert vm.state is not None
        assert (vm.state.shown, vm.state.observed) == ("failed", "running")
        assert vm.pending is None
        again = vm.when(STOP).then(STOPPING)
        assert isinstance(again.pending, effects.EndVm)


class TestStarting:
    def test_a_start_of_a_running_vm_changes_nothing(self) -> None:
        running().when(START).nothing_happens()
        given(REQUESTED, DISK).when(START).nothing_happens()

    def test_one_that_is_coming_up_needs_no_restart(self) -> None:
        given(REQUESTED).when(RESTART).nothing_happens()
        given(REQUESTED, DISK).when(RESTART).nothing_happens()
        given(REQUESTED).when(START).nothing_happens()

    @pytest.mark.parametrize("asked", [START, RESTART])
    def test_one_that_was_to_stay_down_once_it_has_a_disk_comes_up(self, asked: Any) -> None:
        vm = given(REQUESTED, STOPPING).when(asked).then(events.VmStartRequested())
        assert phase_of(vm) == "provisioning"
        assert isinstance(vm.when(effects.DiskProvisioned("", 1024)).then(DISK).pending, effects.BootVm)

    def test_a_start_is_noted_once_while_it_stops(self) -> None:
        vm = running().when(STOP).then(STOPPING).when(START).then(events.VmStartRequested())
        vm.when(START).nothing_happens()

    def test_a_start_is_noted_while_a_guest_that_has_ended_is_let_go(self) -> None:
        vm = running("never").when(effects.GuestEnded(VM, 1, "shutdown")).then(ENDED)
        vm = vm.when(START).then(events.VmStartRequested())
        assert isinstance(vm.when(effects.Ended("end-1-1")).then(exited("guest")).pending, effects.BootVm)

    def test_a_restart_while_it_stops_is_a_restart(self) -> None:
        vm = running().when(STOP).then(STOPPING).when(RESTART).then(events.VmRestartRequested(30.0))
        assert isinstance(vm.when(effects.VmGone(VM, 1)).then(exited("user")).pending, effects.BootVm)

    def test_a_stopped_vm_starts_with_its_next_run(self) -> None:
        vm = given(REQUESTED, DISK, BOOTED, STOPPING, exited("user")).when(START).then(events.VmStartRequested())
        assert isinstance(vm.pending, effects.BootVm)
        assert vm.pending.run == 2

    def test_a_restart_asks_the_guest_first(self) -> None:
        vm = running().when(RESTART).then(events.VmRestartRequested(30.0))
        assert isinstance(vm.pending, effects.ShutDownVm)
        vm = vm.when(effects.VmGone(VM, 1)).then(exited("user"))
        assert isinstance(vm.pending, effects.BootVm)

    def test_a_restart_of_a_stopped_vm_starts_it(self) -> None:
        vm = given(REQUESTED, DISK, BOOTED, STOPPING, exited("user")).when(RESTART).then(events.VmStartRequested())
        assert isinstance(vm.pending, effects.BootVm)

    def test_a_start_after_a_boot_that_failed_tries_anew(self) -> None:
        vm = given(REQUESTED, DISK, BOOTED, STOPPING, exited("user"), events.VmStartRequested())
        vm = vm.when(failed("boot-2-1", retryable=False)).then_types(events.VmStepFailed)
        assert phase_of(vm) == "failed"
        assert isinstance(vm.when(START).then(events.VmStartRequested()).pending, effects.BootVm)


class TestTheRestartPolicy:
    @pytest.mark.parametrize(
        ("policy", "end", "phase"),
        [
            ("always", "shutdown", "booting"),
            ("always", "panic", "booting"),
            ("on-failure", "shutdown", "stopped"),
            ("on-failure", "panic", "booting"),
            ("never", "shutdown", "stopped"),
            ("never", "panic", "failed"),
        ],
    )
    def test_says_what_follows_an_end_that_nobody_asked_for(self, policy: Any, end: Any, phase: str) -> None:
        vm = running(policy).when(effects.GuestEnded(VM, 1, end)).then(events.VmEnded(1, end, ""))
        assert isinstance(vm.pending, effects.EndVm)
        decided = COMPUTE.decide(vm.state, effects.Ended("end-1-1"), NOON_US)
        assert decided[0] == exited("guest" if end == "shutdown" else "panic")
        state = vm.state
        for event in decided:
            state = COMPUTE.evolve(state, event, NOON_US)
        assert state is not None
        assert state.phase == phase

    def test_a_crash_names_its_signal(self) -> None:
        vm = running("never").when(effects.VmGone(VM, 1, signal=9)).then(exited("crash", signal=9))
        assert vm.state is not None
        assert vm.state.failure is not None
        assert "signal 9" in vm.state.failure.reason

    def test_backs_off_and_gives_up_at_its_limit(self) -> None:
        vm = running()
        waits = []
        for run in range(1, RESTART_LIMIT + 1):
            vm = vm.when(effects.VmGone(VM, run)).then_types(events.VmExited, events.VmRestartScheduled)
            assert isinstance(vm.pending, effects.BootVm)
            waits.append((vm.pending.not_before_us - NOON_US) // 1_000_000)
            vm = vm.when(effects.Booted("", VM, run + 1, 1, 1, "boot-a", "tcg")).then_types(events.VmBooted)
        assert waits == [1, 2, 4, 8, 16]
        vm = vm.when(effects.VmGone(VM, RESTART_LIMIT + 1)).then_types(events.VmExited, events.VmGaveUp)
        assert phase_of(vm) == "failed"
        assert vm.pending is None

    def test_forgets_what_is_long_past(self) -> None:
        vm = running().when(effects.VmGone(VM, 1)).then_types(events.VmExited, events.VmRestartScheduled)
        vm = vm.when(effects.Booted("", VM, 2, 1, 1, "boot-a", "tcg")).then_types(events.VmBooted)
        vm = vm.when(effects.VmGone(VM, 2), after_s=600).then_types(events.VmExited, events.VmRestartScheduled)
        assert vm.state is not None
        assert vm.state.restarts == 1

    def test_a_stop_during_the_wait_ends_it(self) -> None:
        vm = running().when(effects.VmGone(VM, 1)).then_types(events.VmExited, events.VmRestartScheduled)
        vm = vm.when(STOP).then(STOPPING).when(effects.Ended("end-2-1")).then(exited("user", run=2))
        assert phase_of(vm) == "stopped"


class TestTheHostComesBack:
    def test_a_process_that_is_found_is_adopted(self) -> None:
        running().when(commands.VmAdopted(VM, 1)).then(events.VmAdopted(1))

    @pytest.mark.parametrize("found", [commands.VmAdopted(VM, 1), commands.VmLost(VM, 1, "boot-a")])
    def test_what_is_found_of_an_older_run_or_of_one_without_a_process_is_past(self, found: Any) -> None:
        given(REQUESTED, DISK).when(found).nothing_happens()
        again = (exited("crash"), events.VmStartRequested(), replace(BOOTED, run=2))
        given(REQUESTED, DISK, BOOTED, *again).when(found).nothing_happens()

    def test_one_that_vanished_unseen_is_a_failure_of_unknown_status(self) -> None:
        vm = running("never").when(commands.VmLost(VM, 1, "boot-a")).then(exited("unknown"))
        assert phase_of(vm) == "failed"
        assert vm.state is not None
        assert vm.state.failure is not None
        assert "exit status unknown" in vm.state.failure.reason

    def test_one_that_was_being_stopped_is_stopped(self) -> None:
        vm = running().when(STOP).then(STOPPING).when(commands.VmLost(VM, 1, "boot-a")).then(exited("user"))
        assert phase_of(vm) == "stopped"

    def test_after_a_reboot_of_the_host_it_comes_back_at_once(self) -> None:
        back = (exited("host-reboot"), events.VmRestartScheduled(0, to_rfc3339(NOON_US)))
        vm = running("never").when(commands.VmLost(VM, 1, "boot-b")).then(*back)
        assert isinstance(vm.pending, effects.BootVm)
        assert vm.state is not None
        assert vm.state.requested == "running"

    def test_without_autostart_it_stays_down_after_a_reboot(self) -> None:
        vm = given(replace(REQUESTED, spec=replace(SPEC, autostart=False)), DISK, BOOTED)
        vm = vm.when(commands.VmLost(VM, 1, "boot-b")).then(exited("host-reboot"))
        assert phase_of(vm) == "stopped"


class TestPausing:
    def test_a_full_disk_pauses_and_room_resumes(self) -> None:
        vm = running().when(effects.GuestPaused(VM, 1, "disk", "no room")).then(events.VmPaused(1, "disk", "no room"))
        assert phase_of(vm) == "paused"
        assert phase_of(vm.when(effects.GuestResumed(VM, 1)).then(events.VmResumed(1))) == "ready"

    def test_a_paused_guest_cannot_be_asked_to_stop(self) -> None:
        vm = running().when(effects.GuestPaused(VM, 1, "disk")).then_types(events.VmPaused)
        assert isinstance(vm.when(STOP).then(STOPPING).pending, effects.EndVm)
