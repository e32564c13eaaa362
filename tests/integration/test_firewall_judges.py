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

import pytest

from tests.support import firewalled
from tests.support.judged import Judged
from tests.support.three_judges import Court, Disagreement
from tests.support.topologies import random_facts, random_question

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


def test_the_kernel_the_law_and_explain_say_the_same() -> None:
    asked = passed = altered = 0
    disagreements: list[str] = []
    for first in range(FIRST, FIRST + COUNT, PART):
        with firewalled.firewalled() as host:
            court = Court(Judged(host))
            for number in range(first, min(first + PART, FIRST + COUNT)):
                disagreements += sit(court, number)
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
