"""What has to hold of groups: who reserves what, what is in the kernel at last, and whether each event may follow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec

from aetherscale.actors.firewall.model.state import Group
from aetherscale.eventstore.store import StoredEvent
from aetherscale.kernel.reservations import Holding, Name
from tests.simulation.invariants_of_networks import has_ports
from tests.simulation.violation import Violation, Wrong

if TYPE_CHECKING:
    from tests.simulation.invariants import Folded
    from tests.simulation.world import World

ATTEMPTS: Final = 3

Data = dict[str, Any]


def keys_of_group(group: Group) -> Iterator[Holding]:
    """What no other group may have: its name."""
    if group.phase != "deleted":
        yield Name("group", group.name)


def check_uses_of_groups(folded: Folded) -> None:
    """A group that a rule names is there for as long as the rule, in the log or in the kernel; one that a VM bears, for
    as long as it does.
    """
    groups = {each.id: each.state for each in folded.groups.aggregates.values()}
    used: dict[str, set[str]] = {}
    for group in groups.values():
        if group.phase == "deleted":
            continue
        for rule in (*group.rules, *group.in_force):
            if rule.group_id is not None and rule.group_id != group.id:
                used.setdefault(rule.group_id, set()).add(group.id)
    for vm in (each.state for each in folded.aggregates() if has_ports(each.state)):
        for borne in vm.rules.groups:
            used.setdefault(borne.group_id, set()).add(vm.id)
    for group_id, users in used.items():
        if groups[group_id].phase in ("deleting", "deleted"):
            raise Violation(f"the group {group_id} is {groups[group_id].phase}, and {users} name or bear it")
    for group_id in groups:
        held = set(folded.groups.uses_of("group", group_id).users)
        if held != used.get(group_id, set()):
            raise Violation(f"group {group_id}: reserved by {held}, used by {used.get(group_id)}")


def check_groups(world: World, folded: Folded) -> None:
    """C, once nothing is pending: the kernel has the groups of the log and no other, with the rules that it took."""
    groups = {each.id: each.state for each in folded.groups.aggregates.values()}
    wanted = {each.id: each.standing for each in groups.values() if each.phase in ("applying", "ready")}
    # What the host has refused to remove for good is told as failed, and goes with the next restoration.
    left = {each.id for each in groups.values() if each.phase == "deleting"}
    found = {group_id: rules for group_id, rules in world.networks.groups.items() if group_id not in left}
    if found != wanted:
        raise Violation(f"the log has the groups {wanted}, the kernel {found}")


class Course:
    """What is known of one group so far."""

    def __init__(self, group_id: str) -> None:
        self.group_id = group_id
        self.phase = ""
        self.revision = 0
        self.tries = 1
        self.has_given_up = False

    def take(self, event: StoredEvent) -> None:
        """One more event. Raises `Wrong`."""
        data = msgspec.msgpack.decode(event.data)
        self.where = f"event {event.seq} {event.type} {data}"
        getattr(self, f"on_{event.type}")(data, event.time_us)

    def require(self, holds: bool, otherwise: str) -> None:
        if not holds:
            raise Wrong(f"group {self.group_id}, {self.where}: it is {self.phase}; {otherwise}")

    def begin(self, phase: str, *before: str) -> None:
        """Another step, with attempts of its own."""
        self.require(self.phase in before, f"expected {before}")
        self.phase, self.tries, self.has_given_up = phase, 1, False

    def on_GroupRequested(self, data: Data, at_us: int) -> None:  # noqa: N802 - named after the event
        self.begin("applying", "")
        self.revision = 1

    def on_RulesSet(self, data: Data, at_us: int) -> None:  # noqa: N802
        self.begin("applying", "applying", "ready")
        self.require(data["revision"] == self.revision + 1, f"the revision was {self.revision}")
        self.revision += 1

    def on_GroupApplied(self, data: Data, at_us: int) -> None:  # noqa: N802
        self.require(not self.has_given_up, "it was not to be tried again")
        self.require(data["revision"] == self.revision, f"the revision is {self.revision}")
        self.begin("ready", "applying")

    def on_GroupStepFailed(self, data: Data, at_us: int) -> None:  # noqa: N802
        self.require(self.phase in ("applying", "deleting"), "nothing was to be done")
        self.require(not self.has_given_up, "it was not to be tried again")
        self.require((data["step"], data["attempt"]) == (self.phase, self.tries), f"it is attempt {self.tries}")
        if data["retry-at"] is None:
            self.has_given_up = True
            return
        self.require(self.tries < ATTEMPTS, "it was the last attempt")
        at = datetime.fromisoformat(data["retry-at"]).astimezone(UTC)
        wait_us = int(at.timestamp()) * 1_000_000 + at.microsecond - at_us
        self.require(wait_us == 2 ** (self.tries - 1) * 1_000_000, f"the pause is {wait_us} us")
        self.tries += 1

    def on_GroupDeleteRequested(self, data: Data, at_us: int) -> None:  # noqa: N802
        self.require(self.phase != "deleting" or self.has_given_up, "it is being deleted")
        self.begin("deleting", "applying", "ready", "deleting")

    def on_GroupDeleted(self, data: Data, at_us: int) -> None:  # noqa: N802
        self.require(not self.has_given_up, "it could not be removed")
        self.begin("deleted", "deleting")


def check_reasons_of_groups(events: Iterable[StoredEvent]) -> None:
    """Every event of every group. Raises `Wrong`."""
    courses: dict[str, Course] = {}
    for event in events:
        if event.stream.startswith("group-"):
            group_id = event.stream.removeprefix("group-")
            courses.setdefault(group_id, Course(group_id)).take(event)
