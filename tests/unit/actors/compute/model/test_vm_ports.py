"""A VM's ports that come and go: what follows, when the host is to do it, and what a run's slots have room for."""

from __future__ import annotations

from typing import Any, Final

import pytest
from msgspec.structs import replace

from aetherscale.actors.compute.model import effects, events
from aetherscale.actors.compute.model.commands import MAX_PORTS, PortSpec
from aetherscale.actors.compute.model.portcommands import AttachPort, AttachVmOptions, DetachPort, DetachVmOptions
from aetherscale.actors.compute.model.portdecisions import is_attached, is_detached
from aetherscale.actors.compute.model.presentation import VM_KIND, holds, view
from aetherscale.actors.compute.model.state import HOT_SLOTS
from aetherscale.actors.compute.reconcile import ports_of
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.reservations import NameClaimed, UseBegan
from aetherscale.kernel.times import SECOND_US, to_rfc3339
from tests.support.spec import NOON_US, reserved_by
from tests.support.vm_pasts import (
    BOOTED,
    DELETE,
    DISK,
    MORE,
    PORT,
    READY,
    REQUESTED,
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

ATTACH, DETACH, DETACH_FIRST = AttachPort(VM, MORE), DetachPort(VM, MORE.network_id), DetachPort(VM, PORT.network_id)
TO_ATTACH, TO_DETACH = AttachVmOptions(MORE.network), DetachVmOptions(MORE.network_id)
ADDED, PLUGGED = events.PortAdded(MORE), events.PortPlugged(MORE.tap, 1)
REMOVED, UNPLUGGED = events.PortRemoved(MORE.tap), events.PortUnplugged(MORE.tap, card_left=False)
IN_A_NETWORK: Final = replace(REQUESTED, spec=replace(SPEC, ports=[PORT]))
UP: Final = (IN_A_NETWORK, DISK, BOOTED, READY)
STOPPED: Final = (*UP, STOPPING, exited("user"))


def another(number: int) -> PortSpec:
    network = f"{number:016x}"
    return PortSpec(network, f"n{number}", "web", f"aep{number:012x}", f"52:54:00:00:01:{number:02x}", None, None)


def pending_for(*past: Any) -> Any:
    return given(*past).pending


def cards(*past: Any) -> list[str]:
    return [port.card for port in view(state_of(*past), "host1", 1).ports]


class TestAttaching:
    def test_the_guest_is_given_the_card_while_it_runs(self) -> None:
        vm = given(*UP).when(ATTACH).then(ADDED)
        assert vm.pending == effects.PlugPort("plug-aep0123456789ac-1-1", VM, MORE, 0)
        assert vm.when(effects.PortPlugged("plug-aep0123456789ac-1-1")).then(PLUGGED).pending is None
        assert cards(*UP, ADDED) == ["plugged", "plugging"]
        assert cards(*UP, ADDED, PLUGGED) == ["plugged", "plugged"]

    def test_one_that_it_has_is_left_as_it_is(self) -> None:
        given(*UP, ADDED, PLUGGED).when(ATTACH).nothing_happens()
        given(*UP).when(AttachPort(VM, replace(MORE, network_id=PORT.network_id))).nothing_happens()

    def test_one_that_is_leaving_has_to_be_gone_first(self) -> None:
        given(*UP, ADDED, PLUGGED, REMOVED).when(ATTACH).is_refused(409, "is being detached from the network 'dmz'")
        given(*UP, ADDED, PLUGGED, REMOVED, UNPLUGGED).when(ATTACH).then(ADDED)

    @pytest.mark.parametrize(("past", "after"), [
        ((IN_A_NETWORK,), (DISK,)),
        (STOPPED, (events.VmStartRequested(),)),
        ((*UP, STOPPING), (exited("user"), events.VmStartRequested())),
        ((*UP, STOPPING, events.VmStartRequested()), (exited("user"),)),
    ], ids=["new", "stopped", "stopping", "restarting"])  # fmt: skip
    def test_at_rest_it_is_one_of_the_next_boot(self, past: tuple[Any, ...], after: tuple[Any, ...]) -> None:
        vm = given(*past).when(ATTACH).then(ADDED)
        assert not isinstance(vm.pending, effects.PlugPort)
        boot = pending_for(*past, ADDED, *after)
        assert isinstance(boot, effects.BootVm)
        assert boot.ports == (PORT, MORE)

    def test_a_boot_has_the_ports_of_its_beginning_and_what_comes_after_is_plugged_in(self) -> None:
        boot = pending_for(IN_A_NETWORK, DISK, ADDED)
        assert isinstance(boot, effects.BootVm)
        assert boot.ports == (PORT,)
        assert isinstance(pending_for(IN_A_NETWORK, DISK, ADDED, BOOTED), effects.PlugPort)

    def test_a_restart_has_it_in_its_boot_and_all_slots_are_free(self) -> None:
        past = (*UP, ADDED, PLUGGED, STOPPING, exited("user"), events.VmStartRequested())
        boot = pending_for(*past)
        assert boot.ports == (PORT, MORE)
        assert state_of(*past).run.slots == ("",) * HOT_SLOTS

    def test_a_run_takes_as_many_as_it_has_slots_for(self) -> None:
        many = [event for n in range(HOT_SLOTS) for event in (events.PortAdded(another(n)), plugged(another(n)))]
        full = given(*UP, *many)
        full.when(ATTACH).is_refused(409, f"was given {HOT_SLOTS} cards since it was started, and has no slot")
        gone = (events.PortRemoved(another(1).tap), events.PortUnplugged(another(1).tap, card_left=False))
        vm = given(*UP, *many, *gone).when(ATTACH).then(ADDED)
        assert isinstance(vm.pending, effects.PlugPort)
        assert vm.pending.slot == 1

    def test_a_card_that_the_guest_keeps_keeps_its_slot_until_the_run_ends(self) -> None:
        many = [event for n in range(HOT_SLOTS) for event in (events.PortAdded(another(n)), plugged(another(n)))]
        kept = (events.PortRemoved(another(1).tap), events.PortUnplugged(another(1).tap, card_left=True))
        given(*UP, *many, *kept).when(ATTACH).is_refused(409, "has no slot for another")
        again = (STOPPING, exited("user"), events.VmStartRequested(), replace(BOOTED, run=2))
        given(*UP, *many, *kept, *again).when(ATTACH).then(ADDED)

    def test_a_vm_has_no_more_ports_than_there_may_be(self) -> None:
        many = [events.PortAdded(another(number)) for number in range(MAX_PORTS - 1)]
        given(*STOPPED, *many).when(ATTACH).is_refused(409, f"has {MAX_PORTS} ports, and no VM more")
        given(*STOPPED, *many[1:]).when(ATTACH).then(ADDED)

    def test_one_with_user_mode_networking_takes_none(self) -> None:
        given(REQUESTED, DISK, BOOTED).when(ATTACH).is_refused(409, "was created without a network")

    def test_nor_does_one_that_is_going_away(self) -> None:
        given(*UP, events.VmDeleteRequested(kill=False, grace_s=30)).when(ATTACH).is_refused(409, "is being deleted")

    def test_its_name_addresses_and_network_are_reserved_until_nothing_is_left_of_it(self) -> None:
        taken = reserved_by(VM_KIND, holds, [*UP, ADDED])
        assert [type(each) for each in taken] == [UseBegan, NameClaimed, NameClaimed, NameClaimed]
        past = [*UP, ADDED, PLUGGED, REMOVED]
        assert reserved_by(VM_KIND, holds, past[:-1]) == reserved_by(VM_KIND, holds, past) == ()
        freed = reserved_by(VM_KIND, holds, [*past, UNPLUGGED])
        assert sorted(type(each).__name__ for each in freed) == [*["NameReleased"] * 3, "UseEnded"]


class TestDetaching:
    def test_while_it_runs_the_host_is_to_remove_it(self) -> None:
        vm = given(*UP, ADDED, PLUGGED).when(DETACH).then(REMOVED)
        assert vm.pending == effects.UnplugPort("unplug-aep0123456789ac-1-1", VM, MORE)
        assert cards(*UP, ADDED, PLUGGED, REMOVED) == ["plugged", "unplugging"]
        gone = vm.when(effects.PortUnplugged("unplug-aep0123456789ac-1-1", card_left=True))
        assert gone.then(replace(UNPLUGGED, card_left=True)).pending is None
        assert cards(*UP, ADDED, PLUGGED, REMOVED, UNPLUGGED) == ["plugged"]

    def test_at_rest_too(self) -> None:
        vm = given(*STOPPED, ADDED).when(DETACH).then(REMOVED)
        assert isinstance(vm.pending, effects.UnplugPort)
        boot = pending_for(*STOPPED, ADDED, REMOVED, events.VmStartRequested())
        assert boot.ports == (PORT,)
        # What the boot did not wait for is done after it.
        again = (events.VmStartRequested(), replace(BOOTED, run=2))
        assert isinstance(pending_for(*STOPPED, ADDED, REMOVED, *again), effects.UnplugPort)

    def test_one_that_it_has_not_is_left_as_it_is(self) -> None:
        given(*UP).when(DETACH).nothing_happens()
        given(*UP, ADDED, PLUGGED, REMOVED).when(DETACH).nothing_happens()

    def test_before_it_was_plugged_in_it_is_removed_all_the_same(self) -> None:
        assert isinstance(given(*UP, ADDED).when(DETACH).then(REMOVED).pending, effects.UnplugPort)

    def test_a_card_of_its_boot_can_go_once_another_is_there(self) -> None:
        given(*UP).when(DETACH_FIRST).is_refused(409, "has no other port that its guest has the card of")
        given(*UP, ADDED).when(DETACH_FIRST).is_refused(409, "has no other port that its guest has the card of")
        given(*UP, ADDED, PLUGGED).when(DETACH_FIRST).then(events.PortRemoved(PORT.tap))
        given(*STOPPED, ADDED).when(DETACH_FIRST).then(events.PortRemoved(PORT.tap))
        given(*STOPPED, ADDED, REMOVED).when(DETACH_FIRST).is_refused(409, "has no other port")

    def test_a_deleted_vm_leaves_none(self) -> None:
        vm = state_of(*UP, ADDED, PLUGGED, events.VmDeleteRequested(kill=True, grace_s=0), exited("user"))
        removal = given(*UP, ADDED, REMOVED, events.VmDeleteRequested(True, 0), exited("user")).pending
        assert isinstance(removal, effects.RemoveVm)
        assert removal.ports == (PORT, MORE)
        assert ports_of({VM: vm}) == {VM: (PORT, MORE)}


class TestWhatFails:
    def test_a_port_that_cannot_be_plugged_in_is_removed_again(self) -> None:
        vm = given(*UP, ADDED)
        for number in (1, 2):
            key = f"plug-{MORE.tap}-1-{number}"
            vm = vm.when(failed(key)).then(step_failed("plugging", number, 2 ** (number - 1)))
            assert vm.pending is not None
        last = vm.when(failed(f"plug-{MORE.tap}-1-3"))
        vm = last.then(step_failed("plugging", 3, None), events.PortRemoved(MORE.tap, failed=True))
        assert isinstance(vm.pending, effects.UnplugPort)
        assert vm.state is not None
        with pytest.raises(Refused, match="could not be attached to the network 'dmz': it broke"):
            is_attached(vm.state, TO_ATTACH)
        assert view(vm.state, "host1", 1).failure is not None
        vm = vm.when(effects.PortUnplugged(vm.pending.key)).then(UNPLUGGED)
        assert vm.state is not None
        assert view(vm.state, "host1", 1).failure is None

    def test_one_that_the_host_will_never_have_is_tried_once(self) -> None:
        vm = given(*UP, ADDED).when(failed(f"plug-{MORE.tap}-1-1", retryable=False))
        vm.then_types(events.VmStepFailed, events.PortRemoved)

    def test_a_removal_is_never_given_up(self) -> None:
        vm = given(*UP, ADDED, PLUGGED, REMOVED)
        for number in range(1, 9):
            assert isinstance(vm.pending, effects.UnplugPort)
            done = vm.when(failed(vm.pending.key, retryable=False))
            vm = done.then(step_failed("unplugging", number, 2 ** (min(number, 6) - 1)))
            assert vm.state is not None
            if number < 3:
                assert not is_detached(vm.state, TO_DETACH)
            else:
                with pytest.raises(Refused, match="could not be detached from the network 'dmz'; it is tried again"):
                    is_detached(vm.state, TO_DETACH)

    def test_the_end_of_a_run_begins_the_attempts_anew(self) -> None:
        past = (*UP, ADDED, step_failed("plugging", 1, 1), exited("crash"))
        assert state_of(*past).ports.attempt.number == 1
        assert view(state_of(*past), "host1", 1).failure == state_of(*past).failure


class TestWhatComesFirst:
    def test_rules_come_before_ports(self) -> None:
        grouped = events.GroupsSet([WEB])
        assert isinstance(pending_for(*UP, ADDED, grouped), effects.ApplyRules)
        assert isinstance(pending_for(*UP, ADDED, PLUGGED, REMOVED, grouped), effects.ApplyRules)
        assert isinstance(pending_for(*UP, ADDED, grouped, events.RulesApplied(1)), effects.PlugPort)

    def test_but_rules_that_the_kernel_refuses_do_not_keep_ports(self) -> None:
        refused = (events.GroupsSet([WEB]), step_failed("applying-rules", 1, 1))
        assert isinstance(pending_for(*UP, ADDED, *refused), effects.PlugPort)
        assert isinstance(pending_for(*UP, ADDED, *refused, PLUGGED), effects.ApplyRules)

    def test_what_goes_comes_before_what_comes(self) -> None:
        past = (*UP, ADDED, PLUGGED, REMOVED, events.PortAdded(another(1)))
        assert isinstance(pending_for(*past), effects.UnplugPort)

    def test_an_end_comes_before_all(self) -> None:
        for message, event in ((STOP, events.VmStopRequested), (DELETE, events.VmDeleteRequested)):
            assert isinstance(given(*UP, ADDED).when(message).then_types(event).pending, effects.ShutDownVm)


class TestWhenItIsDone:
    def test_when_the_guest_has_the_card(self) -> None:
        assert not is_attached(state_of(*UP, ADDED), TO_ATTACH)
        assert is_attached(state_of(*UP, ADDED, PLUGGED), TO_ATTACH)
        assert is_attached(state_of(*UP), AttachVmOptions(PORT.network_id))

    def test_when_nothing_of_the_port_is_left(self) -> None:
        assert not is_detached(state_of(*UP, ADDED, PLUGGED, REMOVED), TO_DETACH)
        assert is_detached(state_of(*UP, ADDED, PLUGGED, REMOVED, UNPLUGGED), TO_DETACH)
        assert not is_detached(state_of(*STOPPED, ADDED, REMOVED), TO_DETACH)

    def test_at_rest_at_once_and_on_the_way_up_or_down_after_that(self) -> None:
        assert is_attached(state_of(*STOPPED, ADDED), TO_ATTACH)
        assert not is_attached(state_of(IN_A_NETWORK, ADDED), TO_ATTACH)
        assert not is_attached(state_of(*UP, ADDED, STOPPING), TO_ATTACH)
        assert is_attached(state_of(*UP, ADDED, STOPPING, exited("user")), TO_ATTACH)

    def test_whatever_is_the_matter_with_other_ports(self) -> None:
        broken: tuple[events.VmEvent, ...] = (
            events.PortAdded(another(1)),
            REMOVED,
            *(step_failed("unplugging", each, each) for each in (1, 2, 3)),
        )
        assert not is_attached(state_of(*UP, ADDED, PLUGGED, *broken), AttachVmOptions(another(1).network))
        assert is_attached(state_of(*STOPPED, ADDED, *broken), AttachVmOptions(another(1).network))
        other = events.PortRemoved(another(1).tap)
        assert not is_detached(state_of(*UP, ADDED, PLUGGED, *broken, other), DetachVmOptions(another(1).network))

    @pytest.mark.parametrize("past", [(ADDED, REMOVED), (ADDED, PLUGGED, REMOVED), (ADDED, REMOVED, UNPLUGGED)])
    def test_never_where_another_request_took_it_away_before(self, past: tuple[Any, ...]) -> None:
        with pytest.raises(
            Refused, match="was detached from the network 'dmz' before its guest had the card"
        ) as raised:
            is_attached(state_of(*UP, *past), TO_ATTACH)
        assert (raised.value.reason, raised.value.details) == (Reason.CONFLICT, {"vm-id": VM})

    def test_with_a_vm_that_is_deleted_it_never_is(self) -> None:
        vm = state_of(*UP, ADDED, events.VmDeleteRequested(kill=True, grace_s=0))
        with pytest.raises(Refused, match="was deleted before its ports were changed"):
            is_attached(vm, TO_ATTACH)
        with pytest.raises(Refused, match="was deleted before its ports were changed"):
            is_detached(vm, TO_DETACH)


def plugged(port: PortSpec) -> events.PortPlugged:
    return events.PortPlugged(port.tap, 1)


def step_failed(step: Any, attempt: int, after_s: int | None) -> events.VmStepFailed:
    at = None if after_s is None else to_rfc3339(NOON_US + after_s * SECOND_US)
    return events.VmStepFailed(step, 1, attempt, "it broke", "mend it", "the end of the log", at)


def test_a_start_that_waits_for_a_stop_has_the_new_port() -> None:
    vm = given(*UP, STOPPING, ADDED).when(START).then(events.VmStartRequested())
    assert not isinstance(vm.pending, effects.PlugPort)
