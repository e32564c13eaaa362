"""What has happened to a group. Kept for ever: change a shape only with a new schema version."""

from __future__ import annotations

from aetherscale.actors.firewall.model.commands import GroupSpec, Rule
from aetherscale.kernel.messages import Event

KIND = "group"
"""The kind of a group's stream."""


class GroupRequested(Event, frozen=True):
    """A caller requested a group."""

    group_id: str
    """The id of the new group, 16 hex digits."""
    spec: GroupSpec
    """Its name, and revision 1 of its rules."""


class RulesSet(Event, frozen=True):
    """A caller set the rules of the group, all of them."""

    revision: int
    """The revision of the rules: 2 for the first ones that were set."""
    rules: tuple[Rule, ...]
    """What the group allows from here on."""
    keep_established: bool = False
    """Whether flows go on that the rules of before allowed, and these do not."""


class GroupApplied(Event, frozen=True):
    """The kernel has the rules of the group."""

    revision: int
    """The revision of the rules that it has."""


class GroupStepFailed(Event, frozen=True):
    """The host could not carry out a step; the rules that the kernel had are those that it has."""

    step: str
    """The step that failed: `applying` or `deleting`."""
    attempt: int
    """Which attempt at the step this was: 1, 2, 3 …."""
    reason: str
    """The failure, in one sentence: the attempt, and the error."""
    hint: str
    """The remedy, for the user; "" for none."""
    log_tail: str
    """The end of the log that shows it, at most 2,000 characters; "" for none."""
    retry_at: str | None
    """When the step is tried again at the earliest, RFC 3339 in UTC; null where it is not tried again."""


class GroupDeleteRequested(Event, frozen=True):
    """A caller requested the deletion."""


class GroupDeleted(Event, frozen=True):
    """Nothing of the group is left on the host."""


GroupEvent = GroupRequested | RulesSet | GroupApplied | GroupStepFailed | GroupDeleteRequested | GroupDeleted
