"""A group, as its events add up, and from which phase an event brings it to which. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from msgspec import Struct

from aetherscale.actors.firewall.model import events
from aetherscale.actors.firewall.model.commands import Rule
from aetherscale.actors.firewall.model.events import GroupEvent
from aetherscale.kernel.attempts import FIRST, Attempt
from aetherscale.kernel.failures import Failure

GroupPhase = Literal["applying", "ready", "deleting", "deleted"]


class Group(Struct, frozen=True):
    """One group."""

    id: str
    name: str
    phase: GroupPhase
    phase_since_us: int
    rules: tuple[Rule, ...]
    """The rules that were set last."""
    revision: int = 1
    """Of `rules`."""
    in_force: tuple[Rule, ...] = ()
    """The rules that the kernel has, as far as is recorded."""
    applied_revision: int = 0
    """Of `in_force`; 0 where the kernel never had any."""
    keep_established: bool = False
    """Whether the rules that were set last leave flows alone that they do not allow."""
    attempt: Attempt = FIRST
    """Which attempt at the step that is pending now; one that is blocked is shown as failed."""
    failure: Failure | None = None

    @property
    def is_failed(self) -> bool:
        """Whether the host has refused the step for good: the group waits for a caller."""
        return self.attempt.blocked

    @property
    def standing(self) -> tuple[Rule, ...]:
        """The rules that a kernel is given at a start: those that were set last, but for ones that it refuses, and for
        ones with which flows are to be kept. A start keeps none, and the step that does is to find them.
        """
        keeps = self.phase == "applying" and self.keep_established
        return self.in_force if self.is_failed or keeps else self.rules


TRANSITIONS: Final[Mapping[type[GroupEvent], Mapping[GroupPhase, GroupPhase]]] = {
    events.RulesSet: {"applying": "applying", "ready": "applying"},
    events.GroupApplied: {"applying": "ready"},
    events.GroupStepFailed: {each: each for each in ("applying", "deleting")},
    events.GroupDeleteRequested: dict.fromkeys(("applying", "ready", "deleting"), "deleting"),
    events.GroupDeleted: {"deleting": "deleted"},
}
"""What the table does not have no stream has either; such an event leaves the phase as it is."""
