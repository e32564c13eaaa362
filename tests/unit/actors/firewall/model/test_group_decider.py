"""What follows when something is said to a group, and what it holds."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given as assuming
from hypothesis import strategies as st

from aetherscale.actors.firewall.model import commands, effects, events
from aetherscale.actors.firewall.model.commands import GroupSpec
from aetherscale.actors.firewall.model.decide import GROUPS
from aetherscale.actors.firewall.model.presentation import (
    GROUP_KIND,
    announce,
    holds,
    is_applied,
    is_deleted,
    view,
)
from aetherscale.actors.firewall.model.rules import parse_rules
from aetherscale.actors.firewall.model.state import Group
from aetherscale.bus.refusals import hint
from aetherscale.kernel.attempts import ATTEMPT_LIMIT
from aetherscale.kernel.errors import Refused
from aetherscale.kernel.failures import EffectFailed
from aetherscale.kernel.reservations import Name, Use, User
from aetherscale.kernel.times import SECOND_US
from tests.support.spec import NOON_US, Given, reserved_by

ID, OTHER, THIRD = "0123456789abcdef", "1123456789abcdef", "2123456789abcdef"
HTTP, SSH = parse_rules(["in:tcp:80"]), parse_rules(["in:tcp:22", "in:icmp"])
REQUESTED = events.GroupRequested(ID, GroupSpec("web", HTTP))
APPLIED, DELETING, DELETED = events.GroupApplied(1), events.GroupDeleteRequested(), events.GroupDeleted()
SET, APPLIED_2 = events.RulesSet(2, SSH), events.GroupApplied(2)
REFUSED = events.GroupStepFailed("applying", 1, "nft: no", "update nft", "", None)
AGAIN = events.GroupStepFailed("applying", 1, "nft: busy", "", "", "2027-01-15T08:00:01.000000Z")


def given(*past: events.GroupEvent) -> Given[Group, Any, Any, Any]:
    return Given(GROUPS, past)


def state_of(group: Given[Group, Any, Any, Any]) -> Group:
    assert group.state is not None
    return group.state


def failed(key: str, *, retryable: bool = True) -> EffectFailed:
    return EffectFailed(key, "nft: no", "update nft", retryable)


def naming(*group_ids: str) -> tuple[commands.Rule, ...]:
    return tuple(commands.Rule("in", "any", group_id=each, group=f"g{each[0]}") for each in group_ids)


def test_a_request_makes_pending_that_its_rules_are_applied() -> None:
    group = given().when(commands.CreateGroup(ID, GroupSpec("web", HTTP))).then(REQUESTED)
    assert group.pending == effects.ApplyGroup("apply-1-1", ID, 1, HTTP)
    assert not is_applied(state_of(group))
    group = group.when(effects.RulesApplied("apply-1-1", 1)).then(APPLIED)
    assert group.pending is None
    assert is_applied(state_of(group))
    assert (state_of(group).in_force, state_of(group).applied_revision) == (HTTP, 1)


def test_rules_that_are_set_are_the_next_revision_and_are_in_force_once_they_are_applied() -> None:
    group = given(REQUESTED, APPLIED).when(commands.SetRules(ID, SSH, 1, True)).then(events.RulesSet(2, SSH, True))
    assert group.pending == effects.ApplyGroup("apply-2-1", ID, 2, SSH, True)
    shown = view(state_of(group), "host1", 3)
    assert (shown.phase, shown.rules_revision, shown.applied_revision) == ("applying", 2, 1)
    assert [each.text for each in shown.rules] == ["in:tcp:22", "in:icmp"]
    assert (state_of(group).in_force, state_of(group).rules) == (HTTP, SSH)
    group = group.when(effects.RulesApplied("apply-2-1", 2)).then(APPLIED_2)
    assert (state_of(group).in_force, state_of(group).standing) == (SSH, SSH)


@pytest.mark.parametrize("keep", [False, True])
def test_a_start_does_not_cut_the_flows_that_are_to_be_kept(keep: bool) -> None:
    group = given(REQUESTED, APPLIED, events.RulesSet(2, SSH, keep))
    assert state_of(group).standing == (HTTP if keep else SSH)


@pytest.mark.parametrize("seen", [2, 4, 1_000_000])
def test_of_two_editors_the_second_is_told_that_rules_were_set_in_between(seen: int) -> None:
    past = (REQUESTED, APPLIED, SET, APPLIED_2, events.RulesSet(3, HTTP))
    given(*past).when(commands.SetRules(ID, SSH, seen)).is_refused(409, f"are at revision 3, not {seen}")
    with pytest.raises(Refused) as refused:
        GROUPS.decide(given(*past).state, commands.SetRules(ID, SSH, seen), NOON_US)
    assert refused.value.details == {"rules-revision": 3}
    assert hint(refused.value.remedy).endswith("aetherscale firewall group show web")


@pytest.mark.parametrize("revision", [3, None])
def test_one_that_saw_the_present_revision_sets_and_so_does_one_that_does_not_say(revision: int | None) -> None:
    past = (REQUESTED, APPLIED, SET, APPLIED_2, events.RulesSet(3, HTTP))
    given(*past).when(commands.SetRules(ID, SSH, revision)).then(events.RulesSet(4, SSH))


def test_rules_that_it_has_need_not_be_set_but_for_ones_that_were_refused() -> None:
    given(REQUESTED, APPLIED).when(commands.SetRules(ID, HTTP)).nothing_happens()
    given(REQUESTED).when(commands.SetRules(ID, HTTP)).nothing_happens()
    given(REQUESTED, APPLIED).when(commands.SetRules(ID, HTTP, 7)).is_refused(409, "are at revision 1, not 7")
    given(REQUESTED, REFUSED).when(commands.SetRules(ID, HTTP)).then(events.RulesSet(2, HTTP))


def test_the_answer_to_rules_that_were_set_anew_meanwhile_says_nothing_of_the_new_ones() -> None:
    for late in (effects.RulesApplied("apply-1-1", 1), failed("apply-1-1"), failed("apply-1-1", retryable=False)):
        given(REQUESTED, SET).when(late).nothing_happens()
        given(REQUESTED, DELETING).when(late).nothing_happens()
        given(REQUESTED, AGAIN).when(late).nothing_happens()
        given(REQUESTED, APPLIED).when(late).nothing_happens()
        given(REQUESTED, APPLIED, DELETING, DELETED).when(late).nothing_happens()


def test_rules_that_are_refused_for_good_stay_wanted_and_those_of_before_stand() -> None:
    group = given(REQUESTED, APPLIED, SET)
    for number in range(1, ATTEMPT_LIMIT):
        group = group.when(failed(f"apply-2-{number}")).then_types(events.GroupStepFailed)
        assert state_of(group).standing == SSH
        pending = group.pending
        assert isinstance(pending, effects.ApplyGroup)
        assert pending.not_before_us == NOON_US + 2 ** (number - 1) * SECOND_US
    group = group.when(failed(f"apply-2-{ATTEMPT_LIMIT}")).then_types(events.GroupStepFailed)
    assert group.pending is None
    state = state_of(group)
    assert (state.rules, state.standing) == (SSH, HTTP)
    shown = view(state, "host1", 6)
    assert (shown.phase, shown.rules_revision, shown.applied_revision) == ("failed", 2, 1)
    assert shown.failure is not None
    assert shown.failure.reason == "nft: no"
    with pytest.raises(
        Refused, match="the rules of the group 'web' could not be applied, revision 1 stands: nft: no"
    ) as refused:
        is_applied(state)
    assert hint(refused.value.remedy) == "update nft"
    again = group.when(commands.SetRules(ID, HTTP, 2)).then(events.RulesSet(3, HTTP))
    assert again.pending == effects.ApplyGroup("apply-3-1", ID, 3, HTTP)
    assert state_of(again).failure is None


def test_a_group_whose_first_rules_are_refused_is_there_and_allows_nothing() -> None:
    group = given(REQUESTED, REFUSED)
    with pytest.raises(Refused, match="could not be applied, it allows nothing: nft: no"):
        is_applied(state_of(group))
    assert state_of(group).standing == ()
    assert Name("group", "web") in holds(state_of(group))
    group.when(commands.DeleteGroup(ID)).then(DELETING)


def test_one_that_is_deleted_is_gone_and_its_name_is_free() -> None:
    group = given(REQUESTED, APPLIED).when(commands.DeleteGroup(ID)).then(DELETING)
    assert group.pending == effects.RemoveGroup("remove-1", ID)
    group.when(commands.DeleteGroup(ID)).nothing_happens()
    group.when(commands.SetRules(ID, SSH)).is_refused(409, "the group 'web' is being deleted")
    with pytest.raises(Refused, match="was deleted before its rules were in force"):
        is_applied(state_of(group))
    group = group.when(effects.GroupRemoved("remove-1")).then(DELETED)
    assert is_deleted(state_of(group))
    assert holds(state_of(group)) == ()
    for command in (commands.DeleteGroup(ID), commands.SetRules(ID, SSH)):
        group.when(command).is_refused(404, "no such group: it has been deleted")
        given().when(command).is_refused(404, "no such group")


def test_a_removal_that_is_refused_for_good_is_told_and_can_be_asked_for_again() -> None:
    group = (
        given(REQUESTED, APPLIED, DELETING).when(failed("remove-1", retryable=False)).then_types(events.GroupStepFailed)
    )
    with pytest.raises(Refused, match="the group 'web' could not be deleted: nft: no"):
        is_deleted(state_of(group))
    assert Name("group", "web") in holds(state_of(group))
    group.when(commands.DeleteGroup(ID)).then(DELETING)


def test_one_that_is_in_use_is_not_deleted_and_all_who_need_it_are_named() -> None:
    vms = tuple(User("vm", "VM", f"{number:016x}", f"vm{number}") for number in range(7))
    both = (User("group", "group", OTHER, "apps"), *vms)
    words = "the group 'web' is in use by 1 group(s): apps and 7 VM(s): vm0, vm1, vm2, vm3, vm4 …"
    given(REQUESTED, APPLIED).when(commands.DeleteGroup(ID, both)).is_refused(409, words)
    of_vms = "let none bear it; what one bears is shown by: aetherscale vm show vm0"
    of_groups = "set rules without it; those of now are shown by: aetherscale firewall group show apps"
    for users, remedy in ((both, f"{of_vms}; {of_groups}"), (vms, of_vms)):
        with pytest.raises(Refused) as refused:
            GROUPS.decide(given(REQUESTED, APPLIED).state, commands.DeleteGroup(ID, users), NOON_US)
        assert hint(refused.value.remedy) == remedy
        assert refused.value.details == {"used-by": [user.name for user in users]}


def test_it_uses_the_groups_that_its_rules_name_but_for_itself_until_the_kernel_has_none_of_them() -> None:
    requested = events.GroupRequested(ID, GroupSpec("web", naming(OTHER, ID, OTHER)))
    name, other, third = Name("group", "web"), Use("group", OTHER), Use("group", THIRD)
    past: list[events.GroupEvent] = [requested]
    for event, held in (
        (APPLIED, {name, other}),
        (events.RulesSet(2, naming(THIRD)), {name, other, third}),
        (APPLIED_2, {name, third}),
        (DELETING, {name, third}),
        (DELETED, set()),
    ):
        past.append(event)
        found = holds(state_of(given(*past)))
        assert (set(found), len(found)) == (held, len(held)), event


def test_of_what_an_event_changes_the_reservations_are_its_own() -> None:
    requested = events.GroupRequested(ID, GroupSpec("web", naming(OTHER)))
    assert len(reserved_by(GROUP_KIND, holds, [requested])) == 2
    assert reserved_by(GROUP_KIND, holds, [requested, APPLIED]) == ()


def test_a_second_creation_of_one_id_is_refused() -> None:
    given(REQUESTED).when(commands.CreateGroup(ID, GroupSpec("web", HTTP))).is_refused(409, "exists already")


def test_who_waits_is_told_what_is_done() -> None:
    group = state_of(given(REQUESTED))
    told = [announce(group, each) for each in (REQUESTED, SET, AGAIN, REFUSED, APPLIED, DELETING, DELETED)]
    words = [each and each["status"] for each in told]
    assert words == ["applying", "applying", "retrying", None, None, "deleting", None]


MESSAGES = st.one_of(
    st.builds(lambda rules: commands.SetRules(ID, rules), st.sampled_from([HTTP, SSH, naming(OTHER), ()])),
    st.just(commands.DeleteGroup(ID)),
    st.sampled_from(["done", "failed", "refused", "late"]),
)


@assuming(st.lists(MESSAGES, max_size=20))
def test_laws_that_hold_in_every_state(said: list[Any]) -> None:
    """What is in force was set, one thing at most is pending, its answer changes it, and views never fail."""
    group: Group | None = None
    were_set: set[tuple[int, tuple[commands.Rule, ...]]] = {(0, ())}
    for message in (commands.CreateGroup(ID, GroupSpec("web", HTTP)), *said):
        effect = GROUPS.pending(group) if group is not None else None
        if isinstance(message, str):
            if effect is None:
                continue
            match message:
                case "done" if isinstance(effect, effects.ApplyGroup):
                    message = effects.RulesApplied(effect.key, effect.revision)
                case "done":
                    message = effects.GroupRemoved(effect.key)
                case "late":
                    message = effects.RulesApplied("apply-0-1", 0)
                case _:
                    message = failed(effect.key, retryable=message == "failed")
        try:
            decided = GROUPS.decide(group, message, NOON_US)
        except Refused:
            continue
        for event in decided:
            group = GROUPS.evolve(group, event, NOON_US)
        assert group is not None
        were_set.add((group.revision, group.rules))
        assert (group.applied_revision, group.in_force) in were_set
        assert group.applied_revision <= group.revision
        assert group.phase != "ready" or group.applied_revision == group.revision
        waits = group.phase in ("applying", "deleting") and not group.is_failed
        assert (GROUPS.pending(group) is not None) == waits
        if effect is not None and getattr(message, "key", "") == effect.key:
            assert decided, "an answer that changes nothing would be asked for for ever"
        shown = view(group, "host1", 1)
        assert (shown.failure is not None) == (shown.phase == "failed")
        assert GROUP_KIND.descriptions.summarize(group)
        assert (holds(group) == ()) == (group.phase == "deleted")
