"""What follows when something is said to a VM."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given as forall
from hypothesis import settings
from hypothesis import strategies as st
from msgspec.structs import replace

from aetherscale.actors.compute import commands, effects, events
from aetherscale.actors.compute.decider import ATTEMPT_LIMIT, COMPUTE, RESTART_LIMIT
from aetherscale.actors.compute.projection import settle, view
from aetherscale.actors.compute.sentences import VM_TELLING
from aetherscale.actors.compute.state import Vm
from aetherscale.kernel.errors import Refused
from aetherscale.kernel.times import to_rfc3339
from tests.support.spec import NOON_US, Given

VM = "0123456789abcdef"
SPEC = commands.VmSpec(
    name="web",
    image_id="1123456789abcdef",
    image="tiny",
    image_format="raw",
    image_size_bytes=1 << 20,
    ready_channel="channel",
    cpus=1,
    memory_mib=128,
    disk_mib=1024,
    restart="on-failure",
    autostart=True,
    labels={},
)
CREATE = commands.CreateVm(VM, SPEC)
REQUESTED = events.VmRequested(VM, SPEC)
DISK = events.DiskProvisioned(1024)
BOOTED = events.VmBooted(1, 4711, 99, "boot-a", "tcg")
READY = events.VmReady(1, "channel")
STOP = commands.StopVm(VM, kill=False, grace_s=30)
KILL = commands.StopVm(VM, kill=True, grace_s=30)
START = commands.StartVm(VM)
RESTART = commands.RestartVm(VM)
DELETE = commands.DeleteVm(VM, kill=False, grace_s=30)
STOPPING = events.VmStopRequested(kill=False, grace_s=30)
ENDED = events.VmEnded(1, "shutdown", "")


def given(*past: events.VmEvent) -> Given[Vm, Any, Any, Any]:
    return Given(COMPUTE, past)


def running(restart: Any = "on-failure") -> Given[Vm, Any, Any, Any]:
    return given(replace(REQUESTED, spec=replace(SPEC, restart=restart)), DISK, BOOTED, READY)


def exited(reason: events.ExitReason, run: int = 1, **more: Any) -> events.VmExited:
    fields: dict[str, Any] = {"exit_code": None, "signal": None, "detail": "", "log_tail": ""} | more
    return events.VmExited(run=run, reason=reason, **fields)


def failed(key: str, *, retryable: bool = True) -> effects.EffectFailed:
    return effects.EffectFailed(key, "it broke", "mend it", retryable, "the end of the log")


def phase_of(vm: Given[Vm, Any, Any, Any]) -> str:
    assert vm.state is not None
    return vm.state.phase


class TestComingUp:
    def test_a_request_owes_a_disk(self) -> None:
        vm = given().when(CREATE).then(REQUESTED)
        assert isinstance(vm.owed, effects.ProvisionDisk)

    def test_a_disk_owes_a_boot(self) -> None:
        vm = given(REQUESTED).when(effects.DiskProvisioned("provision-1", 1024)).then(DISK)
        assert isinstance(vm.owed, effects.BootVm)
        assert vm.owed.run == 1

    def test_a_boot_makes_it_running_and_owes_nothing(self) -> None:
        booted = effects.Booted("boot-1-1", VM, 1, 4711, 99, "boot-a", "tcg")
        vm = given(REQUESTED, DISK).when(booted).then(BOOTED)
        assert phase_of(vm) == "running"
        assert vm.owed is None

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

    def test_an_id_is_made_once(self) -> None:
        running().when(CREATE).is_refused(409, "exists already")


class TestStopping:
    def test_a_stop_asks_the_guest(self) -> None:
        vm = running().when(STOP).then(STOPPING)
        assert isinstance(vm.owed, effects.ShutDownVm)
        assert vm.owed.grace_s == 30

    def test_a_guest_that_goes_down_is_let_go_once_that_is_on_record(self) -> None:
        vm = running().when(STOP).then(STOPPING).when(effects.GuestEnded(VM, 1, "shutdown")).then(ENDED)
        assert isinstance(vm.owed, effects.EndVm)
        vm = vm.when(effects.Ended("end-1-1", exit_code=0)).then(exited("user", exit_code=0))
        assert phase_of(vm) == "stopped"
        assert vm.owed is None

    def test_a_guest_that_ignores_the_button_is_ended_after_its_time(self) -> None:
        vm = (
            running()
            .when(STOP)
            .then(STOPPING)
            .when(effects.ShutdownIgnored("shut-down-1-1", 30))
            .then(events.VmStopForced(1, 30))
        )
        assert isinstance(vm.owed, effects.EndVm)

    def test_kill_does_not_ask(self) -> None:
        vm = running().when(KILL).then(events.VmStopRequested(kill=True, grace_s=30))
        assert isinstance(vm.owed, effects.EndVm)

    def test_kill_overtakes_a_graceful_stop(self) -> None:
        vm = running().when(STOP).then(STOPPING).when(KILL).then(events.VmStopRequested(kill=True, grace_s=30))
        assert isinstance(vm.owed, effects.EndVm)

    def test_a_second_stop_changes_nothing(self) -> None:
        running().when(STOP).then(STOPPING).when(STOP).nothing_happens()
        given(REQUESTED, DISK, BOOTED, STOPPING, exited("user")).when(STOP).nothing_happens()

    def test_a_graceful_stop_does_not_slow_down_a_kill(self) -> None:
        vm = running().when(KILL).then_types(events.VmStopRequested)
        vm.when(STOP).nothing_happens()
        assert isinstance(vm.owed, effects.EndVm)

    def test_stop_and_start_at_once_bring_it_down_and_then_up(self) -> None:
        vm = running().when(STOP).then(STOPPING).when(START).then(events.VmStartRequested())
        assert isinstance(vm.owed, effects.ShutDownVm)
        vm = vm.when(effects.GuestEnded(VM, 1, "shutdown")).then(ENDED)
        vm = vm.when(effects.Ended("end-1-1")).then(exited("user"))
        assert isinstance(vm.owed, effects.BootVm)
        assert vm.owed.run == 2

    def test_stop_start_stop_ends_stopped(self) -> None:
        vm = running().when(STOP).then(STOPPING).when(START).then(events.VmStartRequested()).when(STOP).then(STOPPING)
        vm = vm.when(effects.VmGone(VM, 1, exit_code=0)).then(exited("user", exit_code=0))
        assert phase_of(vm) == "stopped"

    def test_a_vm_that_is_booting_is_ended(self) -> None:
        vm = given(REQUESTED, DISK).when(STOP).then(STOPPING)
        assert isinstance(vm.owed, effects.EndVm)

    def test_a_vm_that_is_being_provisioned_stays_down_when_its_disk_is_there(self) -> None:
        vm = given(REQUESTED).when(STOP).then(STOPPING)
        assert isinstance(vm.owed, effects.ProvisionDisk)
        vm = vm.when(effects.DiskProvisioned("provision-1", 1024)).then(DISK)
        assert phase_of(vm) == "stopped"
        assert vm.owed is None

    def test_a_failed_vm_that_is_stopped_is_stopped(self) -> None:
        crashed = given(replace(REQUESTED, spec=replace(SPEC, restart="never")), DISK, BOOTED, exited("crash"))
        assert phase_of(crashed) == "failed"
        assert phase_of(crashed.when(STOP).then(STOPPING)) == "stopped"

    def test_a_process_that_will_not_end_is_never_called_stopped(self) -> None:
        vm = running().when(KILL).then_types(events.VmStopRequested)
        for attempt in range(1, ATTEMPT_LIMIT + 1):
            assert vm.owed is not None
            assert vm.owed.key == f"end-1-{attempt}"
            vm = vm.when(failed(vm.owed.key)).then_types(events.VmStepFailed)
        assert vm.state is not None
        assert (vm.state.phase, vm.state.observed) == ("failed", "running")
        assert vm.owed is None
        again = vm.when(STOP).then(STOPPING)
        assert isinstance(again.owed, effects.EndVm)


class TestStarting:
    def test_a_start_of_a_running_vm_changes_nothing(self) -> None:
        running().when(START).nothing_happens()
        given(REQUESTED, DISK).when(START).nothing_happens()

    def test_a_stopped_vm_starts_with_its_next_run(self) -> None:
        vm = given(REQUESTED, DISK, BOOTED, STOPPING, exited("user")).when(START).then(events.VmStartRequested())
        assert isinstance(vm.owed, effects.BootVm)
        assert vm.owed.run == 2

    def test_a_restart_asks_the_guest_first(self) -> None:
        vm = running().when(RESTART).then(events.VmRestartRequested(30.0))
        assert isinstance(vm.owed, effects.ShutDownVm)
        vm = vm.when(effects.VmGone(VM, 1)).then(exited("user"))
        assert isinstance(vm.owed, effects.BootVm)

    def test_a_restart_of_a_stopped_vm_starts_it(self) -> None:
        vm = given(REQUESTED, DISK, BOOTED, STOPPING, exited("user")).when(RESTART).then(events.VmStartRequested())
        assert isinstance(vm.owed, effects.BootVm)

    def test_a_start_after_a_boot_that_failed_tries_anew(self) -> None:
        vm = given(REQUESTED, DISK, BOOTED, STOPPING, exited("user"), events.VmStartRequested())
        vm = vm.when(failed("boot-2-1", retryable=False)).then_types(events.VmStepFailed)
        assert phase_of(vm) == "failed"
        assert isinstance(vm.when(START).then(events.VmStartRequested()).owed, effects.BootVm)


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
        assert isinstance(vm.owed, effects.EndVm)
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
            assert isinstance(vm.owed, effects.BootVm)
            waits.append((vm.owed.not_before_us - NOON_US) // 1_000_000)
            vm = vm.when(effects.Booted("", VM, run + 1, 1, 1, "boot-a", "tcg")).then_types(events.VmBooted)
        assert waits == [1, 2, 4, 8, 16]
        vm = vm.when(effects.VmGone(VM, RESTART_LIMIT + 1)).then_types(events.VmExited, events.VmGaveUp)
        assert phase_of(vm) == "failed"
        assert vm.owed is None

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
        assert isinstance(vm.owed, effects.BootVm)

    def test_without_autostart_it_stays_down_after_a_reboot(self) -> None:
        vm = given(replace(REQUESTED, spec=replace(SPEC, autostart=False)), DISK, BOOTED)
        vm = vm.when(commands.VmLost(VM, 1, "boot-b")).then(exited("host-reboot"))
        assert phase_of(vm) == "stopped"


class TestPausing:
    def test_a_full_disk_pauses_and_room_resumes(self) -> None:
        vm = running().when(effects.VmHeld(VM, 1, "disk", "no room")).then(events.VmPaused(1, "disk", "no room"))
        assert phase_of(vm) == "paused"
        assert phase_of(vm.when(effects.VmContinued(VM, 1)).then(events.VmResumed(1))) == "ready"

    def test_a_paused_guest_cannot_be_asked_to_stop(self) -> None:
        vm = running().when(effects.VmHeld(VM, 1, "disk")).then_types(events.VmPaused)
        assert isinstance(vm.when(STOP).then(STOPPING).owed, effects.EndVm)


class TestFailing:
    def test_a_step_is_tried_again_a_few_times_with_growing_waits(self) -> None:
        vm = given(REQUESTED, DISK, BOOTED, STOPPING, exited("user"), events.VmStartRequested())
        for wait in (1, 2):
            assert vm.owed is not None
            vm = vm.when(failed(vm.owed.key)).then_types(events.VmStepFailed)
            assert vm.owed is not None
            assert vm.owed.not_before_us == NOON_US + wait * 1_000_000
        assert vm.owed is not None
        vm = vm.when(failed(vm.owed.key)).then_types(events.VmStepFailed)
        assert phase_of(vm) == "failed"
        assert vm.owed is None

    @pytest.mark.parametrize("past", [(REQUESTED,), (REQUESTED, DISK)])
    def test_a_vm_that_never_ran_is_undone(self, past: tuple[Any, ...]) -> None:
        vm = given(*past).when(failed("", retryable=False)).then_types(events.VmStepFailed, events.VmUndone)
        assert isinstance(vm.owed, effects.RemoveVm)
        vm = vm.when(effects.Removed("remove-1")).then(events.VmDeleted())
        assert phase_of(vm) == "deleted"
        assert vm.state is not None
        with pytest.raises(Refused, match="it broke") as refusal:
            settle("create-vm", vm.state)
        assert refusal.value.details["log-tail"] == "the end of the log"
        assert refusal.value.hint == "mend it"

    def test_one_that_has_run_before_is_kept(self) -> None:
        vm = given(REQUESTED, DISK, BOOTED, STOPPING, exited("user"), events.VmStartRequested())
        vm = vm.when(failed("", retryable=False)).then_types(events.VmStepFailed)
        assert phase_of(vm) == "failed"

    def test_an_undoing_that_fails_for_good_comes_to_an_end(self) -> None:
        vm = given(REQUESTED).when(failed("", retryable=False)).then_types(events.VmStepFailed, events.VmUndone)
        vm = vm.when(failed("remove-1", retryable=False)).then_types(events.VmStepFailed)
        assert vm.owed is None
        assert isinstance(vm.when(DELETE).then_types(events.VmDeleteRequested).owed, effects.RemoveVm)


class TestDeleting:
    def test_a_running_vm_is_stopped_first(self) -> None:
        vm = running().when(DELETE).then(events.VmDeleteRequested(kill=False, grace_s=30))
        assert isinstance(vm.owed, effects.ShutDownVm)
        vm = vm.when(effects.VmGone(VM, 1)).then(exited("user"))
        assert isinstance(vm.owed, effects.RemoveVm)

    @pytest.mark.parametrize(
        "past",
        [(REQUESTED,), (REQUESTED, DISK, BOOTED, STOPPING, exited("user")), (REQUESTED, DISK, BOOTED, exited("crash"))],
    )
    def test_one_that_is_down_is_removed(self, past: tuple[Any, ...]) -> None:
        vm = given(*past).when(DELETE).then_types(events.VmDeleteRequested)
        assert isinstance(vm.owed, effects.RemoveVm)
        assert phase_of(vm.when(effects.Removed("remove-1")).then(events.VmDeleted())) == "deleted"

    def test_a_second_delete_changes_nothing(self) -> None:
        running().when(DELETE).then_types(events.VmDeleteRequested).when(DELETE).nothing_happens()

    def test_kill_hastens_a_delete(self) -> None:
        vm = running().when(DELETE).then_types(events.VmDeleteRequested)
        vm = vm.when(commands.DeleteVm(VM, kill=True, grace_s=0)).then_types(events.VmDeleteRequested)
        assert isinstance(vm.owed, effects.EndVm)

    def test_what_is_being_deleted_does_not_start(self) -> None:
        running().when(DELETE).then_types(events.VmDeleteRequested).when(START).is_refused(409, "being deleted")

    def test_what_is_deleted_is_not_there(self) -> None:
        gone = given(REQUESTED, DISK, events.VmDeleteRequested(kill=False, grace_s=0), events.VmDeleted())
        for command in (START, STOP, RESTART, DELETE):
            gone.when(command).is_refused(404, "deleted")
        gone.when(effects.VmGone(VM, 1)).nothing_happens()


class TestAnswers:
    def test_create_ends_when_the_guest_is_ready(self) -> None:
        assert not settle("create-vm", _state(REQUESTED, DISK, BOOTED))
        assert settle("create-vm", _state(REQUESTED, DISK, BOOTED, READY))

    def test_create_ends_with_running_where_the_image_cannot_say_ready(self) -> None:
        assert settle("create-vm", _state(replace(REQUESTED, spec=replace(SPEC, ready_channel="none")), DISK, BOOTED))

    def test_stop_ends_when_the_process_is_gone_also_if_it_starts_again_at_once(self) -> None:
        stopping = (REQUESTED, DISK, BOOTED, READY, STOPPING)
        assert not settle("stop-vm", _state(*stopping))
        assert not settle("stop-vm", _state(*stopping, ENDED))
        assert settle("stop-vm", _state(*stopping, ENDED, exited("user")))
        assert settle("stop-vm", _state(*stopping, events.VmStartRequested(), ENDED, exited("user")))

    def test_a_vm_that_is_stopped_before_it_is_ready_was_not_created_ready(self) -> None:
        with pytest.raises(Refused, match="stopped before it was ready"):
            settle("create-vm", _state(REQUESTED, DISK, BOOTED, STOPPING))


def _state(*past: events.VmEvent) -> Vm:
    state = given(*past).state
    assert state is not None
    return state


MESSAGES = st.one_of(
    st.sampled_from([CREATE, START, STOP, KILL, RESTART, DELETE, replace(DELETE, kill=True)]),
    st.builds(effects.GuestReady, st.just(VM), st.integers(1, 4), st.just("channel")),
    st.builds(effects.GuestEnded, st.just(VM), st.integers(1, 4), st.sampled_from(["shutdown", "panic"])),
    st.builds(effects.VmGone, st.just(VM), st.integers(1, 4), st.none(), st.one_of(st.none(), st.just(9))),
    st.builds(effects.VmHeld, st.just(VM), st.integers(1, 4), st.just("disk")),
    st.builds(effects.VmContinued, st.just(VM), st.integers(1, 4)),
    st.builds(commands.VmAdopted, st.just(VM), st.integers(1, 4)),
    st.builds(commands.VmLost, st.just(VM), st.integers(1, 4), st.sampled_from(["boot-a", "boot-b"])),
    st.sampled_from(["answer", "fail", "fail for good"]),
)


def _host_says(owed: Any, how: str) -> Any:
    """An answer of the host to what is owed."""
    if how != "answer":
        return failed(owed.key, retryable=how == "fail")
    match owed:
        case effects.ProvisionDisk():
            return effects.DiskProvisioned(owed.key, owed.disk_mib)
        case effects.BootVm():
            return effects.Booted(owed.key, VM, owed.run, 4711, 99, "boot-a", "tcg")
        case effects.ShutDownVm():
            return effects.ShutdownIgnored(owed.key, owed.grace_s)
        case effects.EndVm():
            return effects.Ended(owed.key)
        case _:
            return effects.Removed(owed.key)


class TestWhateverIsSaid:
    @settings(max_examples=400)
    @forall(st.lists(MESSAGES, max_size=40), st.sampled_from(["always", "on-failure", "never"]))
    def test_the_state_stays_whole(self, messages: list[Any], restart: Any) -> None:
        create = replace(CREATE, spec=replace(SPEC, restart=restart))
        past = list(COMPUTE.decide(None, create, NOON_US))
        state = COMPUTE.evolve(None, past[0], NOON_US)
        for number, message in enumerate(messages):
            at_us = NOON_US + number * 7_000_000
            owed = COMPUTE.pending(state)
            if isinstance(message, str):
                if owed is None:
                    continue
                message = _host_says(owed, message)
                assert COMPUTE.decide(state, message, at_us), "an answer to what is owed is never without effect"
            try:
                decided = COMPUTE.decide(state, message, at_us)
            except Refused:
                continue
            for event in decided:
                assert VM_TELLING.tell(state, event).text
                state = COMPUTE.evolve(state, event, at_us)
                past.append(event)
            _is_whole(state)
            if isinstance(message, effects.EffectFailed):
                after = COMPUTE.pending(state)
                assert after is None or owed is None or after.key != owed.key, "a failure is never retried unnoticed"
        again: Vm | None = None
        for event in past:
            again = COMPUTE.evolve(again, event, NOON_US)
        assert again is not None
        assert replace(again, phase_since_us=0, running_since_us=0) == replace(
            state, phase_since_us=0, running_since_us=0
        )


def _is_whole(vm: Vm) -> None:
    assert view(vm, "host1", 1).phase == vm.phase
    assert VM_TELLING.sum_up(vm)
    up = vm.phase in ("running", "ready", "paused")
    assert not up or (vm.process is not None and vm.observed in ("running", "paused"))
    assert vm.phase not in ("stopped", "deleted") or vm.process is None, "a stopped that is not stopped"
    assert vm.phase != "deleted" or COMPUTE.pending(vm) is None
    if COMPUTE.pending(vm) is None and not vm.stuck:
        assert up or vm.phase in ("stopped", "failed", "deleted"), "nothing is owed, so it must be at rest"
    for task in ("create-vm", "stop-vm", "delete-vm"):
        with contextlib.suppress(Refused):
            settle(task, vm)
