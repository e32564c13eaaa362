"""A VM's groups and forwards: what follows from a change of them, and when the kernel is to have it."""

from __future__ import annotations

from typing import Any, Final

import pytest
from msgspec.structs import replace

from aetherscale.actors.compute.model import effects, events
from aetherscale.actors.compute.model.commands import MAX_GROUPS, BorneGroup, Forward, VmRules
from aetherscale.actors.compute.model.presentation import VM_KIND, holds, view
from aetherscale.actors.compute.model.rulecommands import (
    MAX_FORWARDS,
    AddForward,
    AttachGroup,
    DetachGroup,
    RemoveForward,
    lets_in,
)
from aetherscale.actors.compute.model.ruledecisions import are_applied
from aetherscale.actors.compute.reconcile import rules_of
from aetherscale.actors.firewall.model.commands import Rule
from aetherscale.kernel.errors import Refused
from aetherscale.kernel.reservations import NameClaimed, NameReleased, UseBegan, UseEnded
from aetherscale.kernel.times import SECOND_US, to_rfc3339
from tests.support.spec import NOON_US, reserved_by
from tests.support.vm_pasts import (
    BOOTED,
    DELETE,
    DISK,
    FORWARD,
    PORT,
    READY,
    REQUESTED,
    SPEC,
    SSH,
    STOPPING,
    VM,
    WEB,
    exited,
    failed,
    given,
    state_of,
)

OTHER: Final = Forward("6" * 16, "udp", "192.0.2.1", 8080, 53)

IN_A_NETWORK: Final = replace(REQUESTED, spec=replace(SPEC, ports=[PORT]))
UP: Final = (IN_A_NETWORK, DISK, BOOTED, READY)
BEARS_WEB: Final = (*UP, events.GroupsSet([WEB]), events.RulesApplied(1))
LEADS: Final = (*UP, events.ForwardAdded(FORWARD), events.RulesApplied(1))
DELETING: Final = events.VmDeleteRequested(kill=False, grace_s=30)


def attach(group: BorneGroup, **more: Any) -> AttachGroup:
    return AttachGroup(VM, group, **more)


def detach(group: BorneGroup, **more: Any) -> DetachGroup:
    return DetachGroup(VM, group.group_id, **more)


def again(attempt: int, after_s: int) -> events.VmStepFailed:
    at = to_rfc3339(NOON_US + after_s * SECOND_US)
    return events.VmStepFailed("applying-rules", 1, attempt, "it broke", "mend it", "the end of the log", at)


class TestGroups:
    def test_one_more_is_borne_after_those_that_are(self) -> None:
        given(*BEARS_WEB).when(attach(SSH)).then(events.GroupsSet([WEB, SSH]))

    def test_one_that_it_bears_is_left_to_it(self) -> None:
        given(*BEARS_WEB).when(attach(WEB)).nothing_happens()

    def test_one_is_taken_from_it(self) -> None:
        given(*BEARS_WEB).when(detach(WEB, keep_established=True)).then(events.GroupsSet([], keep_established=True))

    def test_one_that_it_does_not_bear_is_not_missed(self) -> None:
        given(*BEARS_WEB).when(detach(SSH)).nothing_happens()

    def test_it_bears_no_more_than_there_may_be(self) -> None:
        many = [BorneGroup(f"{number:016x}", f"g{number}") for number in range(MAX_GROUPS)]
        full = given(*UP, events.GroupsSet(many))
        full.when(attach(WEB)).is_refused(409, f"the VM 'web' bears {MAX_GROUPS} groups, and no VM more")
        full.when(attach(many[3])).nothing_happens()
        full.when(detach(many[0])).then(events.GroupsSet(many[1:])).when(attach(WEB)).then_types(events.GroupsSet)

    def test_a_vm_in_no_network_bears_none(self) -> None:
        given(REQUESTED, DISK, BOOTED).when(attach(WEB)).is_refused(409, "the VM 'web' is in no network")

    @pytest.mark.parametrize("command", [attach(SSH), detach(WEB), AddForward(VM, FORWARD)])
    def test_nothing_is_changed_of_one_that_is_being_deleted(self, command: Any) -> None:
        given(*BEARS_WEB, DELETING).when(command).is_refused(409, "the VM 'web' is being deleted")

    def test_there_is_none_of_one_that_is_deleted(self) -> None:
        gone = given(*BEARS_WEB, DELETING, exited("user"), events.VmDeleted())
        gone.when(attach(WEB)).is_refused(404, "no such VM: it has been deleted")

    def test_a_new_vm_bears_those_that_it_was_requested_with(self) -> None:
        vm = given(replace(IN_A_NETWORK, spec=replace(IN_A_NETWORK.spec, groups=[WEB, SSH])), DISK)
        assert isinstance(vm.pending, effects.BootVm)
        assert vm.pending.rules == VmRules((SSH.group_id, WEB.group_id))
        assert vm.state is not None
        assert vm.state.rules.is_applied, "its boot has them with it"


class TestForwards:
    def test_one_is_added(self) -> None:
        given(*LEADS).when(AddForward(VM, OTHER)).then(events.ForwardAdded(OTHER))

    def test_the_same_one_is_left_as_it_is(self) -> None:
        given(*LEADS).when(AddForward(VM, replace(FORWARD, id="9" * 16))).nothing_happens()

    @pytest.mark.parametrize("change", [{"guest_port": 81}, {"address": "192.0.2.1"}])
    def test_a_port_of_the_host_leads_to_one_place(self, change: Any) -> None:
        other = AddForward(VM, replace(FORWARD, id="9" * 16, **change))
        given(*LEADS).when(other).is_refused(409, "the port 8080/tcp of the host leads to the VM 'web' already")

    def test_there_are_no_more_than_there_may_be(self) -> None:
        many = [replace(FORWARD, id=f"{number:016x}", host_port=1000 + number) for number in range(MAX_FORWARDS)]
        full = given(*UP, *map(events.ForwardAdded, many))
        full.when(AddForward(VM, FORWARD)).is_refused(409, f"the VM 'web' has {MAX_FORWARDS} forwards")

    @pytest.mark.parametrize(("forward_id", "port", "protocol"), [("5" * 16, None, "tcp"), (None, 8080, "tcp")])
    def test_one_is_removed_by_its_id_or_its_port(self, forward_id: Any, port: Any, protocol: Any) -> None:
        both = given(*LEADS, events.ForwardAdded(replace(OTHER, host_port=8080)))
        both.when(RemoveForward(VM, forward_id, port, protocol)).then(events.ForwardRemoved("5" * 16))

    @pytest.mark.parametrize("keeps", [False, True])
    def test_the_flows_that_it_has_led_are_kept_where_that_is_asked_for(self, keeps: bool) -> None:
        removed = given(*LEADS).when(RemoveForward(VM, FORWARD.id, None, "tcp", keeps))
        vm = removed.then(events.ForwardRemoved(FORWARD.id, keeps))
        assert vm.pending == effects.ApplyRules("rules-2-1", VM, 2, VmRules(), keep_established=keeps)

    @pytest.mark.parametrize(
        ("forward_id", "port", "protocol", "words"),
        [("6" * 16, None, "tcp", f"'{'6' * 16}'"), (None, 8080, "udp", "of the port 8080/udp of the host")],
    )
    def test_one_that_is_not_there_cannot_be(self, forward_id: Any, port: Any, protocol: Any, words: str) -> None:
        command = RemoveForward(VM, forward_id, port, protocol)
        given(*LEADS).when(command).is_refused(404, f"the VM 'web' has no forward {words}")

    @pytest.mark.parametrize(
        ("rule", "lets"),
        [
            (Rule("in", "tcp", ("80",)), True),
            (Rule("in", "tcp", ("22", "79-81")), True),
            (Rule("in", "tcp"), True),
            (Rule("in", "any"), True),
            (Rule("in", "tcp", ("81-90",)), False),
            (Rule("in", "tcp", ("8080",)), False),
            (Rule("in", "udp", ("80",)), False),
            (Rule("out", "tcp", ("80",)), False),
            (Rule("in", "icmp"), False),
            (Rule("in", "tcp", group_id="a" * 16, group="others"), False),
        ],
    )
    def test_what_lets_it_in_is_about_the_port_of_the_guest(self, rule: Rule, lets: bool) -> None:
        assert lets_in(rule, FORWARD, (4, 6)) is lets

    @pytest.mark.parametrize(("cidr", "versions"), [(None, {4, 6}), ("192.0.2.0/24", {4}), ("2001:db8::/32", {6})])
    def test_what_lets_it_in_is_of_a_family_that_it_leads_to(self, cidr: str | None, versions: set[int]) -> None:
        rule = Rule("in", "tcp", ("80",), cidr=cidr)
        assert {version for version in (4, 6) if lets_in(rule, FORWARD, {version})} == versions
        assert not lets_in(rule, FORWARD, ())


class TestWhatIsPending:
    def test_a_change_is_applied_while_it_runs(self) -> None:
        vm = given(*UP, events.GroupsSet([WEB, SSH], keep_established=True))
        rules = VmRules((SSH.group_id, WEB.group_id))
        assert vm.pending == effects.ApplyRules("rules-1-1", VM, 1, rules, keep_established=True)
        after = vm.when(effects.RulesApplied("rules-1-1", 1)).then(events.RulesApplied(1))
        assert after.pending is None

    @pytest.mark.parametrize(
        "past",
        [
            (IN_A_NETWORK, DISK, BOOTED),
            (*UP, events.VmPaused(1, "disk", "")),
            (*UP, STOPPING, exited("user")),
            (*UP, exited("crash")),
        ],
        ids=["running", "paused", "stopped", "failed"],
    )
    def test_and_at_rest(self, past: tuple[events.VmEvent, ...]) -> None:
        pending = given(*past, events.ForwardAdded(FORWARD)).pending
        assert pending == effects.ApplyRules("rules-1-1", VM, 1, VmRules((), (FORWARD,)))

    @pytest.mark.parametrize(
        ("past", "first"),
        [
            ((IN_A_NETWORK,), effects.ProvisionDisk),
            ((IN_A_NETWORK, DISK), effects.BootVm),
            ((*UP, STOPPING), effects.ShutDownVm),
            ((*UP, events.VmStopRequested(kill=True, grace_s=0)), effects.EndVm),
        ],
    )
    def test_but_after_what_is_under_way(self, past: tuple[events.VmEvent, ...], first: type[Any]) -> None:
        vm = given(*past, events.GroupsSet([WEB]))
        assert isinstance(vm.pending, first)
        assert vm.state is not None
        assert not are_applied(vm.state, stands=True)

    def test_a_boot_has_the_rules_of_its_beginning_and_what_came_since_follows(self) -> None:
        vm = given(IN_A_NETWORK, DISK, events.GroupsSet([WEB]))
        assert isinstance(vm.pending, effects.BootVm)
        assert vm.pending.rules == VmRules((WEB.group_id,))
        assert isinstance(given(IN_A_NETWORK, DISK, events.GroupsSet([WEB]), BOOTED).pending, effects.ApplyRules)

    def test_nothing_of_one_that_goes_away(self) -> None:
        assert given(*UP, events.GroupsSet([WEB]), DELETING, exited("user"), events.VmDeleted()).pending is None
        blocked = events.VmStepFailed("removing", 1, 3, "no", "", "", None)
        assert given(*UP, events.GroupsSet([WEB]), DELETING, exited("user"), blocked).pending is None

    def test_flows_are_kept_only_where_every_change_says_so(self) -> None:
        kept, cut = events.GroupsSet([WEB], keep_established=True), events.GroupsSet([])
        for changes, keeps in (((kept, kept), True), ((kept, cut), False), ((cut, kept), False)):
            pending = given(*UP, *changes).pending
            assert isinstance(pending, effects.ApplyRules)
            assert (pending.revision, pending.keep_established) == (2, keeps)
        later = given(*UP, cut, events.RulesApplied(1), kept).pending
        assert isinstance(later, effects.ApplyRules)
        assert later.keep_established, "what was applied before is no matter any more"


class TestFailures:
    def test_the_vm_goes_on_and_it_is_tried_again_for_ever(self) -> None:
        vm = given(*UP, events.GroupsSet([WEB]))
        for attempt, after_s in ((1, 1), (2, 2), (3, 4), (4, 8), (5, 16), (6, 32), (7, 32), (8, 32)):
            assert vm.pending is not None
            answer = failed(vm.pending.key, retryable=attempt % 2 == 0)
            vm = vm.when(answer).then(again(attempt, after_s))
            assert vm.state is not None
            assert (vm.state.phase, vm.state.failure) == ("ready", None)
            shown = view(vm.state, "host1", 9)
            assert shown.failure is not None
            assert (shown.phase, shown.failure.phase, shown.rules_revision, shown.rules_applied) == (
                "ready", "applying-rules", 1, 0
            )  # fmt: skip
        healed = vm.when(effects.RulesApplied("rules-1-9", 1)).then(events.RulesApplied(1))
        assert healed.state is not None
        assert view(healed.state, "host1", 9).failure is None

    def test_a_caller_is_told_after_some_attempts(self) -> None:
        past = (*UP, events.GroupsSet([WEB]), again(1, 1), again(2, 2))
        assert are_applied(state_of(*past), stands=True) is False
        with pytest.raises(Refused, match="could not be applied, so those of before hold; it is tried again: it broke"):
            are_applied(state_of(*past, again(3, 4)), stands=True)

    def test_another_change_begins_anew(self) -> None:
        vm = given(*UP, events.GroupsSet([WEB]), again(1, 1), again(2, 2), again(3, 4), events.GroupsSet([]))
        assert vm.state is not None
        assert are_applied(vm.state, stands=True) is False
        assert vm.pending == effects.ApplyRules("rules-2-1", VM, 2, VmRules())

    def test_attempts_at_it_are_not_those_of_the_vm(self) -> None:
        vm = given(*UP, events.GroupsSet([WEB]), again(1, 1), again(2, 2), STOPPING)
        assert vm.pending == effects.ShutDownVm("shut-down-1-1-30", VM, 1, 30, 60)
        down = vm.when(effects.Ended("shut-down-1-1-30")).then_types(events.VmExited)
        assert down.pending is not None
        assert down.pending.key == "rules-1-3"

    def test_a_failed_stop_is_no_failure_of_its_rules(self) -> None:
        vm = given(*UP, events.GroupsSet([WEB]), STOPPING)
        stopped = vm.when(failed("shut-down-1-1-30")).then_types(events.VmStepFailed)
        assert stopped.state is not None
        assert (stopped.state.attempt.number, stopped.state.rules.attempt.number) == (2, 1)

    def test_the_failure_of_the_vm_itself_is_shown_first(self) -> None:
        vm = state_of(*UP, events.GroupsSet([WEB]), again(1, 1), exited("crash"))
        shown = view(vm, "host1", 1).failure
        assert shown is not None
        assert shown.phase == "running"


class TestWhatIsHeld:
    @pytest.mark.parametrize(
        ("given_it", "taken", "begins", "ends"),
        [
            (
                events.GroupsSet([WEB]),
                events.GroupsSet([]),
                UseBegan("group", WEB.group_id, "vm", VM),
                UseEnded("group", WEB.group_id, "vm", VM),
            ),
            (
                events.ForwardAdded(FORWARD),
                events.ForwardRemoved(FORWARD.id),
                NameClaimed("hostport", "tcp-8080", VM),
                NameReleased("hostport", "tcp-8080", VM),
            ),
        ],
        ids=["group", "forward"],
    )
    def test_what_it_is_given_is_its_own_until_it_is_taken(
        self, given_it: events.VmEvent, taken: events.VmEvent, begins: Any, ends: Any
    ) -> None:
        assert reserved_by(VM_KIND, holds, (*UP, given_it)) == (begins,)
        assert reserved_by(VM_KIND, holds, (*UP, given_it, taken)) == (ends,)

    def test_what_a_new_vm_bears_is_used_from_its_request_on(self) -> None:
        request = replace(IN_A_NETWORK, spec=replace(IN_A_NETWORK.spec, groups=[WEB]))
        assert UseBegan("group", WEB.group_id, "vm", VM) in reserved_by(VM_KIND, holds, (request,))

    def test_all_is_let_go_with_the_vm(self) -> None:
        past = (*BEARS_WEB, events.ForwardAdded(FORWARD), DELETING, exited("user"), events.VmDeleted())
        let_go = reserved_by(VM_KIND, holds, past)
        assert {UseEnded("group", WEB.group_id, "vm", VM), NameReleased("hostport", "tcp-8080", VM)} <= set(let_go)


class TestAtAStart:
    def test_the_kernel_is_to_have_what_was_asked_for_last(self) -> None:
        vm = state_of(*BEARS_WEB, events.GroupsSet([SSH]), events.ForwardAdded(FORWARD))
        assert rules_of({VM: vm}) == {VM: VmRules((SSH.group_id,), (FORWARD,))}

    def test_but_of_groups_with_which_flows_are_to_be_kept_only_once_they_are(self) -> None:
        kept = (*BEARS_WEB, events.GroupsSet([SSH], keep_established=True))
        assert rules_of({VM: state_of(*kept)}) == {VM: VmRules((WEB.group_id,))}
        more = (*kept, events.GroupsSet([], keep_established=True))
        assert rules_of({VM: state_of(*more)}) == {VM: VmRules((WEB.group_id,))}
        for past in ((*kept, events.RulesApplied(2)), (*more, events.RulesApplied(2), events.GroupsSet([SSH]))):
            assert rules_of({VM: state_of(*past)}) == {VM: VmRules((SSH.group_id,))}
        assert rules_of({VM: state_of(*more, events.RulesApplied(3))}) == {}
        assert rules_of({VM: state_of(*more, events.ForwardAdded(FORWARD))}) == {VM: VmRules((), (FORWARD,))}

    def test_also_of_one_at_rest_and_of_one_that_still_has_its_time(self) -> None:
        for past in ((*BEARS_WEB, STOPPING, exited("user")), (*BEARS_WEB, DELETING)):
            assert rules_of({VM: state_of(*past)}) == {VM: VmRules((WEB.group_id,))}

    def test_but_of_none_that_is_being_removed(self) -> None:
        for more in ((), (events.VmDeleted(),), (events.VmStepFailed("removing", 1, 3, "no", "", "", None),)):
            assert rules_of({VM: state_of(*BEARS_WEB, DELETING, exited("user"), *more)}) == {}

    def test_and_of_none_that_has_none(self) -> None:
        assert rules_of({VM: state_of(*UP)}) == {}


def test_a_deletion_takes_the_place_of_a_change_that_is_being_applied() -> None:
    vm = given(*UP, events.GroupsSet([WEB])).when(DELETE).then_types(events.VmDeleteRequested)
    assert isinstance(vm.pending, effects.ShutDownVm)
