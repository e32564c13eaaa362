"""Rule sets by the thousand, as strangers send them: each is refused with its field, or taken, and then nft loads it.

Each goes from the message to nft; of ten parts one goes by a whole node, with its decisions and its log. The ordinary
run sends few; `just rulesets` 100,000.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import random
import re
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address
from typing import Any

import pytest
from msgspec.structs import replace

from aetherscale.actors.compute.model.commands import MAX_GROUPS
from aetherscale.actors.firewall.model.commands import MOST_RULES, CreateGroupOptions, Rule, SetRulesOptions
from aetherscale.actors.firewall.model.rules import parse_rules
from aetherscale.actors.network.model.groups import GroupRules, compile_group
from aetherscale.actors.network.model.ruleset import NetworkRules, PortRules, compile, replace_all
from aetherscale.actors.network.nft.nftables import LIBRARY, Nftables, NftError, load
from aetherscale.bus import refusals
from aetherscale.kernel import wire
from aetherscale.kernel.errors import Reason, Refused
from tests.support import firewalled
from tests.support.hostile_rules import MARKS, Hostile
from tests.support.memory_node import MemoryNode

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(firewalled.missing() is not None, reason=str(firewalled.missing())),
]
COUNT = int(os.environ.get("AETHERSCALE_RULESETS", "1000"))
SEED = int(os.environ.get("AETHERSCALE_SEED", "1"))
PART = 500
"""Rule sets of one node, which are loaded together."""
WHOLE_EVERY = 10
"""Which parts go by a whole node."""
OTHERS_EVERY = 10
"""How often something else is asked besides, with hostile words."""
NETWORKS = (NetworkRules("aeb000000000001", "nat", IPv4Network("10.64.0.0/16")), NetworkRules("br0", "bridged"))
_LINE = re.compile(
    r"((iifname @m_|ether daddr @c_)[0-9a-f]{16} |ip6? [sd]addr [0-9a-f.:]+(/[0-9]+)? |ether type ip6? )?"
    r"((tcp|udp) dport (\{ )?[0-9, -]+( \})? |icmp(v6)? type (\{ )?[0-9, ]+( \})? |(ether type ip6? )?"
    r"meta l4proto (tcp|udp|1|58) )?accept"
)
"""All that a rule may be: numbers, prefixes, ids."""


class Sent:
    """What was sent, as it ended."""

    def __init__(self) -> None:
        self.taken = self.refused = 0

    def end(self, answer: Mapping[str, Any], options: Mapping[str, Any]) -> bool:
        """Whether it was taken. What was refused has its reason and a field that was sent, and is told in one line."""
        if answer["type"] == "result":
            self.taken += 1
            return True
        self.refused += 1
        assert answer["code"] in (400, 404, 409), (options, answer)
        field = re.match(r"[\w-]+", answer["details"].get("field", ""))
        assert field, (options, answer)
        assert field[0].replace("-", "_") in options, (options, answer)
        assert answer["message"].isprintable(), (options, answer)
        return False


class Node(MemoryNode):
    """A node that is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = Sent()

    async def send(self, task: str, **options: Any) -> bool:
        """Whether it is taken."""
        answer = await self.final("firewall", task, {name.replace("_", "-"): each for name, each in options.items()})
        return self.sent.end(answer, options)


class Parser:
    """The parsing of a node without the node: groups are known by their names alone."""

    def __init__(self) -> None:
        self.sent = Sent()
        self.groups: dict[str, Sequence[Rule]] = {}

    async def send(self, task: str, **options: Any) -> bool:
        """Whether it is taken."""
        try:
            kind: type[CreateGroupOptions | SetRulesOptions]
            kind = CreateGroupOptions if task == "create-group" else SetRulesOptions
            message = wire.decode(wire.encode(options), kind, task)
            parsed = parse_rules(message.rules)
            for number, rule in enumerate(parsed):
                if rule.group not in (None, *self.groups):
                    raise Refused(Reason.NOT_FOUND, "no such group", field=f"rules[{number}].group")
        except Refused as refused:
            return self.sent.end(refusals.error(refused), options)
        name = message.name if isinstance(message, CreateGroupOptions) else message.group
        self.groups[name] = [replace(each, group_id=self.id(each.group)) if each.group else each for each in parsed]
        return self.sent.end({"type": "result"}, options)

    def id(self, name: str) -> str:
        """The id of a group."""
        return f"{[*self.groups].index(name):016x}"


async def started() -> Node:
    """A node with the VM `web` in a network of the kind nat."""
    node = Node()
    await node.start()
    await node.final("images", "import-image", {"source": "/x.raw", "name": "i", "ready": "none"})
    await node.final("network", "create-network", {"name": "lab", "kind": "nat"})
    await node.final("compute", "create-vm", {"image": "i", "name": "web", "virtual-network": "lab"})
    return node


async def part(first: int, count: int) -> tuple[dict[str, GroupRules], Sent]:
    """What the kernel is to have of so many rule sets, and what became of them."""
    chance = random.Random(f"{SEED}-{first}")  # noqa: S311
    asked: Node | Parser = Parser() if first // PART % WHOLE_EVERY else await started()
    names: list[str] = []
    for number in range(count):
        hostile = Hostile(chance, names)
        rules = hostile.rule_set()
        if names and chance.random() < 0.4:
            # Groups that name each other, and themselves, come about by this.
            task, options = "set-rules", {"group": chance.choice(names)}
        else:
            task, options = "create-group", {"name": hostile.word() if chance.random() < 0.1 else f"g{number}"}
        if await asked.send(task, rules=rules, **options):
            assert len(rules) <= MOST_RULES
            if task == "create-group":
                names.append(options["name"])
        if number % OTHERS_EVERY == 0 and isinstance(asked, Node):
            await other(asked, hostile, chance, names)
    if isinstance(asked, Parser):
        return {asked.id(name): compile_group(rules) for name, rules in asked.groups.items()}, asked.sent
    compiled = {group_id: compile_group(rules) for group_id, rules in asked.networks.groups.items()}
    assert len(compiled) == len(names)
    await asked.close()
    return compiled, asked.sent


async def other(node: Node, hostile: Hostile, chance: random.Random, names: list[str]) -> None:
    """Forwards, groups of VMs and questions with hostile words."""
    word, task = hostile.word(), chance.choice(("add-forward", "attach-group", "explain"))
    if task == "add-forward":
        options = {"vm_id": chance.choice(("web", word)), "host_address": chance.choice(("", word))}
        await node.send(task, host_port=hostile.port(), guest_port=hostile.port(), **options)
    elif task == "attach-group":
        await node.send(task, vm_id="web", group=chance.choice((word, *names)))
        vm = (await node.final("compute", "vm-info", {"vm-id": "web"}))["vm"]
        assert len(vm.groups) <= MAX_GROUPS
    else:
        ends = {"from": chance.choice(("web", "192.0.2.7", word)), "to": chance.choice(("host", word))}
        await node.send(task, port=chance.choice(("tcp/80", f"tcp/{hostile.port()}", word)), **ends)


def text_of(groups: dict[str, GroupRules], chance: random.Random) -> str:
    """All rules of a host with these groups, and of ports that bear some of them."""
    ports = [
        PortRules(
            f"aep{number:012x}",
            NETWORKS[number % 2].bridge,
            f"52:54:00:00:00:{number:02x}",
            IPv4Address("10.64.1.0") + number,
            (IPv6Address("fd00::1") + number,),
            groups=tuple(sorted(chance.sample(sorted(groups), min(len(groups), chance.randint(0, MAX_GROUPS))))),
        )
        for number in range(32)
    ]
    return replace_all(compile(NETWORKS, ports, groups))


def checking(nft: Nftables, *, only: bool) -> None:
    """Whether what is run is only checked, as by `nft -c`."""
    library = load(LIBRARY)
    library.nft_ctx_set_dry_run.argtypes = (ctypes.c_void_p, ctypes.c_bool)
    library.nft_ctx_set_dry_run.restype = None
    library.nft_ctx_set_dry_run(nft._context, only)


def require_loaded(nft: Nftables, groups: dict[str, GroupRules], chance: random.Random) -> None:
    """nft takes all of them, in check mode and in earnest; where it does not, the group is found that it refuses."""
    text = text_of(groups, chance)
    for only in (True, False):
        checking(nft, only=only)
        try:
            nft.run(text)
        except NftError as refused:
            for group_id, rules in groups.items():
                try:
                    nft.run(text_of({**dict.fromkeys(groups, GroupRules()), group_id: rules}, chance))
                except NftError as words:
                    pytest.fail(f"nft refuses what was taken, {rules}: {words}")
            pytest.fail(f"nft refuses all of them together: {refused}")


def test_what_is_taken_loads_and_what_is_refused_names_its_field() -> None:
    taken = refused = lines = 0
    with firewalled.firewalled() as host:
        for first in range(0, COUNT, PART):
            groups, sent = asyncio.run(part(first, min(PART, COUNT - first)))
            taken, refused = taken + sent.taken, refused + sent.refused
            for rules in groups.values():
                for line in (*rules.incoming, *rules.outgoing):
                    lines += 1
                    assert _LINE.fullmatch(line), line
            assert not any(mark in text_of(groups, random.Random(0)) for mark in MARKS)  # noqa: S311
            require_loaded(host.nft, groups, random.Random(first))  # noqa: S311
            print(f"seed {SEED}: {first + PART} rule sets: {taken} taken, {refused} refused, {lines} lines", flush=True)
    assert taken > COUNT // 5
    assert refused > COUNT // 5


async def as_many_as_there_may_be() -> dict[str, GroupRules]:
    """Groups with as many rules, and a VM with as many groups, and each time one more."""
    node = await started()
    for number in range(MAX_GROUPS + 1):
        # Each names all that were there before, and the first one the last: a circle.
        rules = [f"in:tcp:{port}:from=group/g{port % (number + 1)}" for port in range(1, MOST_RULES + 1)]
        assert await node.send("create-group", name=f"g{number}", rules=rules)
        assert not await node.send("create-group", name=f"h{number}", rules=[*rules, "in:any"])
        assert await node.send("attach-group", vm_id="web", group=f"g{number}") == (number < MAX_GROUPS)
    assert await node.send("set-rules", group="g0", rules=[f"in:any:from=group/g{MAX_GROUPS}"])
    groups = {group_id: compile_group(rules) for group_id, rules in node.networks.groups.items()}
    await node.close()
    return groups


def test_as_many_rules_and_groups_as_there_may_be_and_one_more() -> None:
    groups = asyncio.run(as_many_as_there_may_be())
    with firewalled.firewalled() as host:
        require_loaded(host.nft, groups, random.Random(SEED))  # noqa: S311
