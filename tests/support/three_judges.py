"""Asks the kernel and `firewall explain` the same, and holds `explain` to what it names as the cause."""

from __future__ import annotations

import re
from typing import Final

from msgspec.structs import replace

from aetherscale.actors.firewall.model.explain import Explanation, explain
from aetherscale.actors.firewall.model.judge import LAW
from aetherscale.actors.firewall.model.rules import parse_rules, short
from tests.support.fake_guest import PATIENCE_S
from tests.support.judged import Judged
from tests.support.questions import Question, smaller
from tests.support.topologies import Facts, logged, with_rules

INERT = {"in": "in:tcp:9:from=203.0.113.99", "out": "out:tcp:9:to=203.0.113.99"}
"""Rules that are about nothing that is ever asked."""
MOST_STEPS = 40
BRIEFLY_S = 1.0

_TAKEN_FOR: Final = re.compile(r" \S+ is taken for an address of .*\Z")


class Disagreement(Exception):
    """Two of the judges say different things, or `explain` names a cause that is none."""


class Court:
    """The kernel beside `explain`."""

    def __init__(self, kernel: Judged) -> None:
        self._kernel = kernel
        self.asked = self.passed = self.altered = 0

    def ask(self, facts: Facts, question: Question, *, whole: bool = False) -> Explanation | None:
        """What both say; None where there is nothing that could be sent. Raises `Disagreement`."""
        world, ruleset = logged(facts)
        if ruleset != self._kernel.applied or whole:
            self._kernel.apply(ruleset, whole=whole)
        said = explain(world, question.source, question.target, question.what)
        try:
            seen = self._kernel.passes(facts, question, expected=said.passes)
        except AssertionError as unanswered:
            raise Disagreement(str(unanswered)) from None
        if seen is None:
            return None
        self.asked, self.passed = self.asked + 1, self.passed + seen
        if seen != said.passes:
            raise Disagreement(f"the kernel says {seen}, explain says {said}")
        return said

    def try_cause(self, facts: Facts, question: Question, said: Explanation) -> None:
        """Change what `explain` names as the cause until the verdict is another one. Raises `Disagreement`."""
        wanted, first = not said.passes, said
        for _ in range(MOST_STEPS):
            altered = _without_cause(facts, question, said) if said.passes else _with_cause(facts, question, said)
            if altered is None:
                break
            facts = altered
            self.altered += 1
            again = self.ask(facts, question)
            assert again is not None, "it could be sent before"
            if again.passes == wanted:
                return
            if (again.because, again.group, again.rule) == (said.because, said.group, said.rule):
                raise Disagreement(f"what explain names is no cause: {said}")
            said = again
        else:
            raise Disagreement(f"no cause that explain names is one: {first}")
        # What stands in the way, or is beyond the firewall, is no matter of rules.
        if not said.passes:
            every = facts
            for number in range(len(facts.vms)):
                every = _bearing(every, number, "in:any", "out:any")
            opened = self.ask(every, question)
            if opened is not None and opened.passes:
                raise Disagreement(f"a rule opens what explain says is no matter of rules: {said}")

    def smallest(self, facts: Facts, question: Question) -> tuple[Facts, str]:
        """The smallest topology in which they still disagree, and how."""
        words, found = "", True
        # What does not come is seen many times.
        self._kernel.patience_s = BRIEFLY_S
        while found:
            found = False
            for less in smaller(facts, question):
                try:
                    said = self.ask(less, question)
                    if said is not None:
                        self.try_cause(less, question, said)
                except Disagreement as still:
                    facts, words, found = less, str(still), True
                    break
        self._kernel.patience_s = PATIENCE_S
        return facts, words


def _bearing(facts: Facts, number: int, *rules: str) -> Facts:
    """The topology in which a VM bears one more group."""
    vm = facts.vms[number]
    bears = replace(vm, groups=(*vm.groups, len(facts.groups)))
    vms = (*facts.vms[:number], bears, *facts.vms[number + 1 :])
    return Facts(vms, (*facts.groups, rules))


def _without_cause(facts: Facts, question: Question, said: Explanation) -> Facts | None:
    """Where it passes: without the rule that lets it, or with what ends the default that does."""
    if said.rule is not None:
        assert said.group is not None
        number = int(said.group[1:])
        left = [INERT[text.partition(":")[0]] if _is(text, said.rule) else text for text in facts.groups[number]]
        if tuple(left) == facts.groups[number]:
            raise Disagreement(f"explain names a rule that lets nothing pass: {said}")
        return with_rules(facts, number, left)
    if _decides(said) == LAW[2]:
        return _bearing(facts, int(said.source[1:]), INERT["out"])
    if said.because.startswith(LAW[0]):
        return _bearing(facts, int(said.target[1:]))
    return None


def _with_cause(facts: Facts, question: Question, said: Explanation) -> Facts | None:
    """Where it does not pass for want of a rule: with it."""
    if LAW[2] in said.because:
        return _bearing(facts, int(said.source[1:]), f"out:{question.what.replace('/', ':')}")
    if LAW[1] in said.because or _decides(said) == LAW[0]:
        return _bearing(facts, int(said.target[1:]), f"in:{said.packet.replace('/', ':')}")
    return None


def _decides(said: Explanation) -> str:
    """What decides, without what an address is taken for."""
    return _TAKEN_FOR.sub("", said.because)


def _is(text: str, rule: str) -> bool:
    return short(parse_rules([text])[0]) == rule
