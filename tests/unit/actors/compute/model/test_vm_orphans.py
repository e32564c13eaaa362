"""Orphaned processes and directories of VMs: they are ended and quarantined, and nothing is thrown away."""

from __future__ import annotations

from typing import Any

import pytest

from aetherscale.actors.compute.model import effects, events
from aetherscale.actors.compute.model.commands import VmOrphan
from aetherscale.actors.compute.model.sentences import VM_DESCRIPTIONS
from aetherscale.kernel.times import to_rfc3339
from tests.support.spec import NOON_US, Given
from tests.support.vm_pasts import (
    BOOTED,
    DELETE,
    DISK,
    READY,
    REQUESTED,
    START,
    STOPPING,
    VM,
    exited,
    failed,
    given,
    phase_of,
)

ORPHAN = VmOrphan(VM, has_process=True, has_directory=True)
KEPT = f"{VM}-{to_rfc3339(NOON_US)}"
FOUND = events.VmStrayFound(VM, has_process=True, has_directory=True, keep_as=KEPT)
DELETED = (REQUESTED, DISK, events.VmDeleteRequested(kill=False, grace_s=30), exited("user"), events.VmDeleted())


@pytest.mark.parametrize("past", [(), DELETED], ids=["unheard of", "deleted"])
class TestNoneOfOurs:
    def test_it_is_quarantined(self, past: tuple[Any, ...]) -> None:
        vm = given(*past).when(ORPHAN).then(FOUND)
        assert vm.pending == effects.QuarantineVm(f"quarantine-{KEPT}-1", VM, KEPT)
        vm = vm.when(effects.Quarantined("", f"/kept/{KEPT}")).then(events.VmCollected(f"/kept/{KEPT}"))
        assert phase_of(vm) == "deleted"
        assert vm.pending is None
        assert vm.state is not None
        assert f"/kept/{KEPT}" in VM_DESCRIPTIONS.summarize(vm.state)

    def test_it_cannot_be_started(self, past: tuple[Any, ...]) -> None:
        given(*past).when(ORPHAN).then(FOUND).when(START).is_refused(409, "is being deleted")

    def test_it_is_found_once(self, past: tuple[Any, ...]) -> None:
        given(*past, FOUND).when(ORPHAN).nothing_happens()

    def test_where_the_host_cannot_it_is_tried_again_and_then_by_request(self, past: tuple[Any, ...]) -> None:
        vm = given(*past, FOUND)
        for _ in range(3):
            assert vm.pending is not None
            vm = vm.when(failed(vm.pending.key)).then_types(events.VmStepFailed)
        assert (phase_of(vm), vm.pending) == ("failed", None)
        vm = vm.when(DELETE).then_types(events.VmDeleteRequested)
        assert isinstance(vm.pending, effects.QuarantineVm)

    def test_it_may_come_again(self, past: tuple[Any, ...]) -> None:
        given(*past, FOUND, events.VmCollected("")).when(ORPHAN).then(FOUND)


def test_the_process_of_a_vm_at_rest_is_ended_and_its_disk_stays() -> None:
    vm = at_rest().when(ORPHAN).then(events.VmStrayFound(VM, has_process=True, has_directory=True, keep_as=""))
    assert isinstance(vm.pending, effects.EndVm)
    vm = vm.when(effects.Ended("")).then(events.VmCleared(1))
    assert (phase_of(vm), vm.pending) == ("stopped", None)
    assert vm.state is not None
    assert vm.state.has_disk


def test_what_the_host_cannot_end_is_left_until_somebody_asks_again() -> None:
    vm = at_rest().when(ORPHAN).then_types(events.VmStrayFound)
    for _ in range(3):
        assert vm.pending is not None
        vm = vm.when(failed(vm.pending.key)).then_types(events.VmStepFailed)
    assert (phase_of(vm), vm.pending) == ("failed", None)
    vm.when(ORPHAN).nothing_happens()


def test_a_vm_with_work_to_be_done_or_without_a_process_is_no_orphan() -> None:
    at_rest().when(VmOrphan(VM, has_process=False, has_directory=True)).nothing_happens()
    whole = (REQUESTED, DISK, BOOTED, STOPPING)
    for length in range(1, len(whole) + 1):
        given(*whole[:length]).when(ORPHAN).nothing_happens()


def at_rest() -> Given[Any, Any, Any, Any]:
    return given(REQUESTED, DISK, BOOTED, READY, STOPPING, exited("user"))
