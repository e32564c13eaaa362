"""What happened to a group, and how it stands, in sentences. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from aetherscale.actors.firewall.model import events
from aetherscale.actors.firewall.model.commands import Rule
from aetherscale.actors.firewall.model.events import GroupEvent
from aetherscale.actors.firewall.model.rules import short
from aetherscale.actors.firewall.model.state import Group
from aetherscale.kernel.descriptions import Description, Descriptions, consequence, request
from aetherscale.kernel.failures import told

MOST_TOLD: Final = 8
"""Rules in a sentence."""


def describe(group: Group | None, event: GroupEvent) -> Description:
    """An event in words; `group` is the state before it, None before the first."""
    match event:
        case events.GroupRequested():
            return request(f"asked to create the group {event.spec.name!r}, which allows {_rules(event.spec.rules)}")
        case events.RulesSet():
            kept = "; established flows go on" if event.keep_established else ""
            return request(f"set its rules, revision {event.revision}: it allows {_rules(event.rules)}{kept}")
        case events.GroupApplied():
            return consequence(f"revision {event.revision} of its rules was in force")
        case events.GroupStepFailed():
            return consequence(told(event.step, event.attempt, event.retry_at, event.reason))
        case events.GroupDeleteRequested():
            return request("asked to delete it")
        case events.GroupDeleted():
            return consequence("it was removed from the host, and its name was free again")


def summarize(group: Group) -> str:
    """How the group stands now, and what is awaited."""
    if group.is_failed:
        failure = group.failure
        assert failure is not None
        stands = f"revision {group.applied_revision} of its rules stands" if group.applied_revision else "none stand"
        return f"{failure.phase}: {failure.reason}; {stands}"
    match group.phase:
        case "applying":
            return f"revision {group.revision} of its rules is being applied"
        case "ready":
            return f"it allows {_rules(group.rules)}"
        case "deleting":
            return "it is being removed from the host"
        case "deleted":
            return "nothing of it is left on the host"


def _rules(rules: Sequence[Rule]) -> str:
    more = f" and {len(rules) - MOST_TOLD} more" if len(rules) > MOST_TOLD else ""
    return f"{', '.join(short(rule) for rule in rules[:MOST_TOLD])}{more}" if rules else "nothing"


GROUP_DESCRIPTIONS: Final[Descriptions[Group]] = Descriptions(describe, summarize)
