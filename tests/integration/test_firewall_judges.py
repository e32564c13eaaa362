"""Three judges of random topologies say the same: the kernel, the law as a function, and `firewall explain`.

Each question is about two ends, and stands for all frames that one can send to the other. The verdict has to be the
same of all three, and the answer to what has come has to come. What `explain` names as the cause has to be it: without
it, or with it where it was missing, the verdict is another one, in the kernel too. Where they disagree, the topology is
told in the smallest form in which they still do.

The ordinary run asks of few topologies; `just judges` of 10,000.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest

from aetherscale.actors.compute.model.commands import Forward
from tests.support import firewalled
from tests.support.judged import Judged
from tests.support.questions import Question, random_question
from tests.support.three_judges import Court, Disagreement
from tests.support.topologies import Facts, Seat, Vm, random_facts

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(firewalled.missing() is not None, reason=str(firewalled.missing())),
]
COUNT = int(os.environ.get("AETHERSCALE_JUDGES", "40"))
FIRST = int(os.environ.get("AETHERSCALE_JUDGES_FIRST", "0"))
SEED = int(os.environ.get("AETHERSCALE_SEED", "1"))
MOST_TOLD = 5
SOME = 10
"""Topologies of which some packet has to pass."""
PART = 500
"""Topologies in one namespace."""
QUESTIONS = 10
CAUSES = 2
"""Of how many questions the cause is tried, which changes the rules several times."""
WHOLE_EVERY = 10
"""How often all rules are replaced; otherwise they become others by what changes."""


@pytest.fixture(scope="module")
def court() -> Iterator[Court]:
    with firewalled.firewalled() as host:
        yield Court(Judged(host))


def test_the_kernel_the_law_and_explain_say_the_same() -> None:
    asked = passed = altered = 0
    disagreements: list[str] = []
    for first in range(FIRST, FIRST + COUNT, PART):
        with firewalled.firewalled() as host:
            court = Court(Judged(host))
            for number in range(first, min(first + PART, FIRST + COUNT)):
                found = sit(court, number)
                disagreements += found
                print(*found, flush=True, end="\n" if found else "")
                if len(disagreements) == MOST_TOLD:
                    break
            asked, passed, altered = asked + court.asked, passed + court.passed, altered + court.altered
        print(
            f"seed {SEED}, {FIRST} to {number}: {asked} questions, {passed} passed, {altered} causes tried, "
            f"{len(disagreements)} disagreements",
            flush=True,
        )
        if len(disagreements) == MOST_TOLD:
            break
    assert not disagreements, "\n\n".join(disagreements)
    assert COUNT < SOME or (0 < passed < asked and altered)


def sit(court: Court, number: int) -> list[str]:
    """One topology; the first disagreement about it, with what asks it again."""
    chance = random.Random(f"{SEED}-{number}")  # noqa: S311
    facts = random_facts(chance)
    for turn in range(QUESTIONS):
        question = random_question(chance, facts)
        try:
            said = court.ask(facts, question, whole=turn == 0 and number % WHOLE_EVERY == 0)
            if said is not None and turn >= QUESTIONS - CAUSES:
                court.try_cause(facts, question, said)
        except Disagreement as disagreement:
            least, words = court.smallest(facts, question)
            again = f"AETHERSCALE_SEED={SEED} AETHERSCALE_JUDGES_FIRST={number} AETHERSCALE_JUDGES=1"
            return [f"{again}\n{question}\n{words or disagreement}\n{least.told()}"]
    return []


NAT, NEAR, OTHER, LAN, BESIDE = Seat(2, 0), Seat(2, 1), Seat(3, 0), Seat(5, 0), Seat(6, 0)
LEADS = (Forward("f" * 16, "tcp", "", 8080, 80), Forward("e" * 16, "udp", "", 8080, 53))


def two(one: Vm, other: Vm, *groups: str) -> Facts:
    """Two VMs, and groups of one rule each."""
    return Facts((one, other), tuple((rule,) for rule in groups))


@pytest.mark.parametrize(
    ("facts", "asked", "passes"),
    [
        # An answer to nothing has no translation, and would leave by the guest's own address.
        (two(Vm((NAT,)), Vm((BESIDE,), (0,)), "in:any"), "v0 v1 icmp/echo-reply", False),
        (two(Vm((NAT,)), Vm((LAN,))), "v0 198.51.100.7 icmp/time-exceeded", False),
        (two(Vm((NAT,)), Vm((BESIDE,), (0,)), "in:any"), "v0 v1 icmp/echo-request", True),
        # The host is in no isolated network, not even by its addresses elsewhere.
        (two(Vm((Seat(0, 0),)), Vm((NAT,))), "v0 10.64.2.1 icmp/echo-request", False),
        (two(Vm((OTHER,)), Vm((NAT,))), "v0 10.64.2.1 icmp/echo-request", True),
        # Answers that the host brings from another network.
        (two(Vm((BESIDE,)), Vm((OTHER,), (0,), LEADS), "in:udp:53"), "v0 host udp/8080", True),
        (two(Vm((LAN,)), Vm((BESIDE,), (0,)), "in:udp:53"), "v0 v1 udp/53", True),
        (two(Vm((LAN,)), Vm((BESIDE,))), "v0 v1 udp/53", False),
        # What a neighbor sends to a forward comes from the router.
        (two(Vm((NEAR,)), Vm((NAT,), (0,), LEADS), "in:tcp:80:from=10.64.2.3"), "v0 host tcp/8080", False),
        (two(Vm((NEAR,)), Vm((NAT,), (0,), LEADS), "in:tcp:80:from=10.64.2.1"), "v0 host tcp/8080", True),
        (two(Vm((NEAR,), (0,)), Vm((NAT,), (0,), LEADS), "in:any:from=group/g0"), "v0 host tcp/8080", False),
        (two(Vm((NEAR,), (0,)), Vm((NAT,), (1,), LEADS), "out:tcp:80", "in:any"), "v0 host tcp/8080", False),
        (two(Vm((NEAR,), (0,)), Vm((NAT,), (1,), LEADS), "out:tcp:8080", "in:any"), "v0 host tcp/8080", True),
        # It leads to the port in the first network of the kind nat, whatever another one takes.
        (two(Vm((LAN, NAT), (), LEADS), Vm((OTHER,))), "192.0.2.9 host tcp/8080", False),
        # To the same port of the world it is not led.
        (two(Vm((NEAR,)), Vm((NAT,), (), LEADS)), "v0 198.51.100.7 tcp/8080", True),
        # What one family lets out and the other one in.
        (two(Vm((NEAR,), (0,)), Vm((NAT,), (1,)), "out:any:to=0.0.0.0/0", "in:any:from=::/0"), "v0 v1 tcp/80", False),
        (two(Vm((NEAR,)), Vm((NAT,), (0,)), "in:any:from=::/0"), "v0 v1 tcp/80", True),
        (two(Vm((NEAR,)), Vm((NAT,), (0,)), "in:any:from=::/0"), "10.64.2.3 10.64.2.2 tcp/80", False),
        (two(Vm((LAN,)), Vm((Seat(5, 1),), (0,)), "in:any:from=::/0"), "v0 v1 tcp/80", True),
        (two(Vm((NAT,)), Vm((BESIDE,), (0,)), "in:any:from=::/0"), "10.64.2.2 v1 tcp/80", False),
        # The host by the addresses that it has in networks.
        (two(Vm((NAT,), (0,)), Vm((LAN,)), "in:tcp:80:from=10.64.2.1"), "host v0 tcp/80", True),
        (two(Vm((NAT,), (0,)), Vm((LAN,)), "out:icmp:to=10.64.2.1"), "v0 host icmp/echo-request", True),
        (two(Vm((BESIDE,), (0,)), Vm((NAT,)), "in:any:from=10.64.2.0/24"), "10.64.2.1 v0 tcp/80", False),
        (two(Vm((BESIDE,), (0,)), Vm((NAT,)), "in:any:from=10.64.2.0/24"), "10.64.2.1 v0 icmp/echo-reply", True),
        (two(Vm((LAN,)), Vm((NAT,))), "v0 host tcp/80", False),
        # Nobody from elsewhere has an address of a network that the host routes.
        (two(Vm((NAT,), (0,)), Vm((OTHER,)), "in:any"), "10.64.3.77 v0 tcp/80", False),
        (two(Vm((NAT,), (0,)), Vm((LAN,)), "in:any:from=192.0.2.9"), "192.0.2.9 v0 tcp/80", True),
    ],
)
def test_what_they_have_disagreed_about(court: Court, facts: Facts, asked: str, passes: bool) -> None:
    question = Question(*asked.split())
    said = court.ask(facts, question)
    assert said is not None
    assert said.passes == passes, said
    court.try_cause(facts, question, said)
