"""The life of a group.

    applying ──GroupApplied──▶ ready ──RulesSet──▶ applying …
        └──────────────────────┴──GroupDeleteRequested──▶ deleting ──GroupDeleted──▶ deleted

Rules that the host refuses for good stay those that were set last, and the kernel has the ones before; setting rules
tries again. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Final

from msgspec.structs import replace

from aetherscale.actors.firewall.model import effects, events
from aetherscale.actors.firewall.model.commands import CreateGroup, DeleteGroup, GroupCommand, SetRules
from aetherscale.actors.firewall.model.effects import GroupEffect, GroupOutcome
from aetherscale.actors.firewall.model.events import GroupEvent
from aetherscale.actors.firewall.model.state import TRANSITIONS, Group
from aetherscale.kernel.attempts import FIRST
from aetherscale.kernel.decider import Decider
from aetherscale.kernel.errors import Reason, Refused, Remedy, Task
from aetherscale.kernel.failures import EffectFailed, Failure
from aetherscale.kernel.reservations import User, in_use

GroupMessage = GroupCommand | GroupOutcome


def decide(group: Group | None, message: GroupMessage, at_us: int) -> Sequence[GroupEvent]:
    """The events that follow. Raises `Refused` for callers only."""
    match message:
        case CreateGroup():
            if group is not None:
                raise Refused(Reason.CONFLICT, f"the group {message.group_id} exists already")
            return (events.GroupRequested(message.group_id, message.spec),)
        case SetRules():
            return _set(_there(group), message)
        case DeleteGroup():
            return _delete(_there(group), message)
        case _:
            # An effect that is no longer pending may have ended all the same.
            effect = pending(group) if group is not None else None
            if group is None or effect is None or effect.key != message.key:
                return ()
            return _answered(group, message, at_us)


def _there(group: Group | None) -> Group:
    if group is None or group.phase == "deleted":
        raise Refused(Reason.NOT_FOUND, "no such group: it has been deleted" if group else "no such group")
    return group


def _set(group: Group, command: SetRules) -> Sequence[GroupEvent]:
    if group.phase == "deleting":
        raise Refused(Reason.CONFLICT, f"the group {group.name!r} is being deleted")
    if command.revision not in (None, group.revision):
        raise Refused(
            Reason.CONFLICT,
            f"the rules of the group {group.name!r} are at revision {group.revision}, not {command.revision}: they "
            "were set in between",
            field="revision",
            remedy=("look at them, and set them anew: ", Task("group", "show", group.name)),
            details={"rules-revision": group.revision},
        )
    if command.rules == group.rules and not group.is_failed:
        return ()
    return (events.RulesSet(group.revision + 1, command.rules, command.keep_established),)


def _delete(group: Group, command: DeleteGroup) -> Sequence[GroupEvent]:
    if group.phase == "deleting" and not group.is_failed:
        return ()
    if command.used_by:
        firsts = {user.kind: user for user in reversed(command.used_by)}
        ways = [_freed(user) for user in firsts.values()]
        raise in_use(f"the group {group.name!r}", command.used_by, tuple(chain.from_iterable(_apart(ways))))
    return (events.GroupDeleteRequested(),)


def _apart(ways: Sequence[Remedy]) -> Iterator[Remedy]:
    for number, way in enumerate(ways):
        yield ("; ", *way) if number else way


def _freed(user: User) -> Remedy:
    """What has to be done for a user no longer to need the group."""
    if user.kind == events.KIND:
        return ("set rules without it; those of now are shown by: ", Task(user.kind, "show", user.name))
    return ("let none bear it; what one bears is shown by: ", Task(user.kind, "show", user.name))


def _answered(group: Group, outcome: GroupOutcome, at_us: int) -> Sequence[GroupEvent]:
    """The events of the answer to what is pending."""
    match outcome:
        case effects.RulesApplied():
            return (events.GroupApplied(outcome.revision),)
        case effects.GroupRemoved():
            return (events.GroupDeleted(),)
        case EffectFailed():
            return (
                events.GroupStepFailed(
                    step=group.phase,
                    attempt=group.attempt.number,
                    reason=outcome.reason,
                    hint=outcome.hint,
                    log_tail=outcome.log_tail,
                    retry_at=group.attempt.retry_at(at_us, retryable=outcome.retryable),
                ),
            )


def evolve(group: Group | None, event: GroupEvent, at_us: int) -> Group:
    """The group after an event; never fails on a stream that `decide` has written."""
    if isinstance(event, events.GroupRequested):
        return Group(event.group_id, event.spec.name, "applying", at_us, event.spec.rules)
    assert group is not None, f"a group's stream begins with its request, not with {type(event).__name__}"
    phase = TRANSITIONS[type(event)].get(group.phase, group.phase)
    after = _facts(replace(group, phase=phase), event)
    moved = (after.phase, after.is_failed) != (group.phase, group.is_failed)
    return replace(after, phase_since_us=at_us) if moved else after


def _facts(
    group: Group,
    event: events.RulesSet
    | events.GroupApplied
    | events.GroupStepFailed
    | events.GroupDeleteRequested
    | events.GroupDeleted,
) -> Group:
    match event:
        case events.RulesSet():
            return replace(
                group,
                rules=event.rules,
                revision=event.revision,
                keep_established=event.keep_established,
                attempt=FIRST,
                failure=None,
            )
        case events.GroupApplied():
            return replace(group, in_force=group.rules, applied_revision=event.revision, attempt=FIRST)
        case events.GroupStepFailed():
            attempt = group.attempt.after_failure(event.attempt, event.retry_at)
            if event.retry_at is not None:
                return replace(group, attempt=attempt)
            failure = Failure(event.step, event.reason, event.hint, event.log_tail)
            return replace(group, attempt=attempt, failure=failure)
        case events.GroupDeleteRequested():
            return replace(group, attempt=FIRST, failure=None)
        case events.GroupDeleted():
            return group


def pending(group: Group) -> GroupEffect | None:
    """The one piece of work that is pending on the host now."""
    attempt = group.attempt
    if attempt.blocked:
        return None
    match group.phase:
        case "applying":
            return effects.ApplyGroup(
                f"apply-{group.revision}-{attempt.number}",
                group.id,
                group.revision,
                group.rules,
                group.keep_established,
                not_before_us=attempt.not_before_us,
            )
        case "deleting":
            return effects.RemoveGroup(f"remove-{attempt.number}", group.id, not_before_us=attempt.not_before_us)
        case "ready" | "deleted":
            return None


GROUPS: Final[Decider[Group, GroupMessage, GroupEvent, GroupEffect]] = Decider(decide, evolve, pending)
