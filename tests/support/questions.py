"""What is asked of a topology by chance, and topologies that are smaller, in which the same is asked again."""

from __future__ import annotations

import random
from collections.abc import Iterator

from msgspec import Struct
from msgspec.structs import replace

from aetherscale.actors.compute.model import commands as vms
from aetherscale.actors.firewall.model.commands import ICMP_TYPES
from aetherscale.actors.firewall.model.rules import parse_rules
from aetherscale.actors.network.model.addresses import router_of
from tests.support.topologies import LANS, UPLINK, VERSIONS, WORLD, Facts, Version, Vm, with_rules, without


class Question(Struct, frozen=True):
    """What `firewall explain` is asked."""

    source: str
    target: str
    what: str


def _what(chance: random.Random, facts: Facts) -> str:
    """Something to send, more often than not at the edge of some rule."""
    if chance.random() < 0.2:
        return f"icmp/{chance.choice(list(ICMP_TYPES))}"
    written = [rule for group in facts.groups for rule in parse_rules(group) if rule.ports]
    if written and chance.random() < 0.7:
        rule = chance.choice(written)
        first, _, last = chance.choice(rule.ports).partition("-")
        near = chance.choice((int(first) - 1, int(first), int(last or first), int(last or first) + 1))
        return f"{rule.protocol}/{min(max(near, 1), 65535)}"
    return f"{chance.choice(('tcp', 'udp'))}/{chance.choice((1, 22, 53, 80, 443, 8080, 8081, 65535))}"


def _known(vm: Vm) -> list[str]:
    """The addresses of a VM that the log has."""
    inside = [seat for seat in vm.seats if LANS[seat.lan].spec.kind != "bridged"]
    return [address for seat in inside for version in VERSIONS if (address := seat.address(version))]


def random_question(chance: random.Random, facts: Facts) -> Question:
    """A question about two ends of which one at least is a VM; of a forward, that may be the one that it leads to."""
    number = chance.randrange(len(facts.vms))
    one, what = facts.vms[number], _what(chance, facts)
    mine = chance.choice([f"v{number}", f"v{number}", *_known(one)])
    version = 6 if ":" in mine else 4 if "." in mine else chance.choice(VERSIONS)
    kind = chance.choice(("vm", "vm", "vm", "world", "host", "forward"))
    forwards = [forward for vm in facts.vms for forward in vm.forwards]
    if kind == "forward" and forwards:
        return _of_forward(chance, mine, version, chance.choice(forwards), what)
    others = [each for each in range(len(facts.vms)) if each != number]
    if kind == "vm" and others:
        other = chance.choice(others)
        theirs = [f"v{other}", *_known(facts.vms[other])]
        alike = [end for end in theirs if end.startswith("v") or mine.startswith("v") or (":" in end) == (version == 6)]
        other_end = chance.choice(alike)
    elif kind == "host":
        routers = [router_of(prefix) for lan in LANS[2:5] if (prefix := lan.prefix(version))]
        other_end = chance.choice(["host", "host", *map(str, routers)])
    else:
        inside = [str(lan.prefix(version)[77]) for lan in LANS[2:5] if lan.prefix(version)]  # type: ignore[index]
        other_end = chance.choice((*WORLD[version], *WORLD[version], chance.choice(inside)))
    ends = [mine, other_end]
    if chance.random() < 0.5:
        ends.reverse()
    return Question(ends[0], ends[1], what)


def _of_forward(chance: random.Random, mine: str, version: Version, forward: vms.Forward, what: str) -> Question:
    if forward.address:
        version = 6 if ":" in forward.address else 4
    if not mine.startswith("v") and (":" in mine) != (version == 6):
        mine = "host"
    source = chance.choice((mine, mine, *WORLD[version], "host"))
    # What a VM sends to an address that no forward names may as well be the world's, as far as the log knows.
    known = forward.address or ("host" if source == mine else UPLINK[version][0])
    target = chance.choice((known, "host" if source != "host" else known))
    sent = chance.choice((f"{forward.protocol}/{forward.host_port}",) * 3 + (what,))
    return Question(source, target, sent)


def smaller(facts: Facts, question: Question) -> Iterator[Facts]:
    """Topologies with a little less in them: the numbers of VMs and groups stay."""
    for number, vm in enumerate(facts.vms):
        name = f"v{number}"
        for less in (
            replace(vm, seats=(), groups=(), forwards=()),
            *(replace(vm, groups=without(vm.groups, at)) for at in range(len(vm.groups))),
            *(replace(vm, forwards=without(vm.forwards, at)) for at in range(len(vm.forwards))),
            *(replace(vm, seats=without(vm.seats, at)) for at in range(len(vm.seats)) if len(vm.seats) > 1),
        ):
            if less != vm and (less.seats or name not in (question.source, question.target)):
                yield replace(facts, vms=(*facts.vms[:number], less, *facts.vms[number + 1 :]))
    for number, rules in enumerate(facts.groups):
        for at in range(len(rules)):
            yield with_rules(facts, number, without(rules, at))
