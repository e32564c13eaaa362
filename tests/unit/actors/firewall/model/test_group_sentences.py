"""What is said of a group: each event and each state, once."""

from __future__ import annotations

import pytest

from aetherscale.actors.firewall.model import events
from aetherscale.actors.firewall.model.commands import GroupSpec
from aetherscale.actors.firewall.model.decide import GROUPS
from aetherscale.actors.firewall.model.presentation import GROUP_KIND
from aetherscale.actors.firewall.model.rules import parse_rules
from aetherscale.actors.firewall.model.state import Group
from tests.support.spec import NOON_US

ID = "0123456789abcdef"
HTTP = parse_rules(["in:tcp:80,443", "in:icmp"])
REQUESTED = events.GroupRequested(ID, GroupSpec("web", HTTP))
REFUSED = events.GroupStepFailed("applying", 3, "nft: no", "", "", None)
RETRIED = events.GroupStepFailed("applying", 1, "nft: no", "", "", "2027-01-15T08:00:01.000000Z")


def after(*past: events.GroupEvent) -> Group:
    state: Group | None = None
    for event in past:
        state = GROUPS.evolve(state, event, NOON_US)
    assert state is not None
    return state


@pytest.mark.parametrize(
    ("event", "role", "text"),
    [
        (REQUESTED, "request", "asked to create the group 'web', which allows in:tcp:80,443, in:icmp"),
        (events.GroupRequested(ID, GroupSpec("web", ())), "request",
         "asked to create the group 'web', which allows nothing"),
        (events.RulesSet(2, ()), "request", "set its rules, revision 2: it allows nothing"),
        (events.RulesSet(2, HTTP, keep_established=True), "request",
         "set its rules, revision 2: it allows in:tcp:80,443, in:icmp; established flows go on"),
        (events.RulesSet(3, parse_rules([f"in:tcp:{n}" for n in range(1, 11)])), "request",
         f"set its rules, revision 3: it allows {', '.join(f'in:tcp:{n}' for n in range(1, 9))} and 2 more"),
        (events.GroupApplied(2), "consequence", "revision 2 of its rules was in force"),
        (RETRIED, "consequence",
         "applying failed, attempt 1, to be tried again at 2027-01-15T08:00:01.000000Z: nft: no"),
        (REFUSED, "consequence", "applying failed, attempt 3, not to be tried again: nft: no"),
        (events.GroupDeleteRequested(), "request", "asked to delete it"),
        (events.GroupDeleted(), "consequence", "it was removed from the host, and its name was free again"),
    ],
)  # fmt: skip
def test_an_event_in_words(event: events.GroupEvent, role: str, text: str) -> None:
    said = GROUP_KIND.descriptions.describe(after(REQUESTED), event)
    assert (said.role, said.text) == (role, text)


@pytest.mark.parametrize(
    ("past", "text"),
    [
        ((), "revision 1 of its rules is being applied"),
        ((events.GroupApplied(1),), "it allows in:tcp:80,443, in:icmp"),
        ((events.RulesSet(2, ()),), "revision 2 of its rules is being applied"),
        ((events.RulesSet(2, ()), events.GroupApplied(2)), "it allows nothing"),
        ((REFUSED,), "applying: nft: no; none stand"),
        (
            (events.GroupApplied(1), events.RulesSet(2, ()), REFUSED),
            "applying: nft: no; revision 1 of its rules stands",
        ),
        ((events.GroupDeleteRequested(),), "it is being removed from the host"),
        ((events.GroupDeleteRequested(), events.GroupDeleted()), "nothing of it is left on the host"),
    ],
)
def test_how_it_stands_in_words(past: tuple[events.GroupEvent, ...], text: str) -> None:
    assert GROUP_KIND.descriptions.summarize(after(REQUESTED, *past)) == text
