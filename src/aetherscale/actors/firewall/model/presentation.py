"""How a group looks from outside, what it holds, and when a task has come to its end. Pure."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from typing import Final

from aetherscale.actors.firewall.model import events
from aetherscale.actors.firewall.model.commands import Rule
from aetherscale.actors.firewall.model.decide import evolve
from aetherscale.actors.firewall.model.events import GroupEvent
from aetherscale.actors.firewall.model.rules import short
from aetherscale.actors.firewall.model.sentences import GROUP_DESCRIPTIONS
from aetherscale.actors.firewall.model.state import Group
from aetherscale.actors.firewall.model.views import GroupView, RuleView
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.registry import Kind
from aetherscale.kernel.replies import Chunk, status
from aetherscale.kernel.reservations import Holding, Name, Use
from aetherscale.kernel.times import to_rfc3339


def view(group: Group, node: str, revision: int, requested_by: str | None = None) -> GroupView:
    """The view of a group on `node`; `revision` is the version of its stream."""
    return GroupView(
        id=group.id,
        name=group.name,
        node=node,
        phase="failed" if group.is_failed else group.phase,
        since=to_rfc3339(group.phase_since_us),
        rules=[_rule(rule) for rule in group.rules],
        rules_revision=group.revision,
        applied_revision=group.applied_revision,
        failure=group.failure,
        revision=revision,
        requested_by=requested_by,
    )


def _rule(rule: Rule) -> RuleView:
    return RuleView(
        text=short(rule),
        direction=rule.direction,
        protocol=rule.protocol,
        ports=list(rule.ports),
        types=list(rule.types),
        cidr=rule.cidr,
        group_id=rule.group_id,
        group=rule.group,
    )


def holds(group: Group) -> Sequence[Holding]:
    """What a group holds until it is deleted: its name, and the use of the groups that its rules name.

    Those that the kernel has count until it has the new ones.
    """
    if group.phase == "deleted":
        return ()
    named = dict.fromkeys(rule.group_id for rule in (*group.rules, *group.in_force))
    uses = (Use(events.KIND, group_id) for group_id in named if group_id not in (None, group.id))
    return (Name(events.KIND, group.name), *uses)


def announce(group: Group, event: GroupEvent) -> Chunk | None:
    """The status that a waiting caller is told of an event, if any."""
    match event:
        case events.GroupRequested() | events.RulesSet():
            return status("applying", group_id=group.id, name=group.name)
        case events.GroupStepFailed() if event.retry_at is not None:
            return status("retrying", group_id=group.id, reason=event.reason, not_before=event.retry_at)
        case events.GroupDeleteRequested():
            return status("deleting", group_id=group.id)
        case _:
            return None


def is_applied(group: Group, _: object = None) -> bool:
    """Whether the kernel has the rules that were set; raises `Refused` where it never will."""
    if group.phase in ("deleting", "deleted"):
        raise Refused(Reason.CONFLICT, f"the group {group.name!r} was deleted before its rules were in force")
    if group.is_failed:
        stands = f"revision {group.applied_revision} stands" if group.applied_revision else "it allows nothing"
        raise _failed(group, f"the rules of the group {group.name!r} could not be applied, {stands}")
    return group.phase == "ready"


def is_deleted(group: Group, _: object = None) -> bool:
    """Whether a deletion has come to its end; raises `Refused` where it is a bad one."""
    if group.is_failed:
        raise _failed(group, f"the group {group.name!r} could not be deleted")
    return group.phase == "deleted"


def _failed(group: Group, what: str) -> Refused:
    failure = group.failure
    assert failure is not None
    return failure.refused(f"{what}: {failure.reason}", group_id=group.id)


GROUP_KIND: Final[Kind[Group]] = Kind(events.KIND, Group, typing.get_args(GroupEvent), evolve, view, GROUP_DESCRIPTIONS)
