"""Groups, decided by a whole node on a simulated host: what is reserved, shown and refused, and what the kernel has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from aetherscale.actors.firewall.driver import Groups
from aetherscale.actors.firewall.model.commands import MOST_RULES, Rule
from aetherscale.actors.firewall.model.effects import ApplyGroup, RulesApplied
from aetherscale.actors.firewall.model.rules import short
from aetherscale.actors.network.simulated.driver import SimulatedNetworking
from aetherscale.kernel.fault import Fault
from tests.support.memory_node import MemoryNode


@pytest.fixture
async def node() -> AsyncIterator[MemoryNode]:
    node = MemoryNode()
    await node.start()
    yield node
    await node.close()


async def ask(node: MemoryNode, task: str, **options: Any) -> Any:
    named = {name.replace("_", "-"): value for name, value in options.items()}
    return await node.final("firewall", task, named)


async def group(node: MemoryNode, name: str = "web", *rules: Any) -> Any:
    made = await ask(node, "create-group", name=name, rules=list(rules))
    assert made["type"] == "result", made
    return made["group"]


def in_kernel(node: MemoryNode, group_id: str) -> Sequence[str] | None:
    rules = node.networks.groups.get(group_id)
    return None if rules is None else [short(rule) for rule in rules]


async def test_a_group_is_ready_when_the_kernel_has_its_rules(node: MemoryNode) -> None:
    made = await group(node, "web", "in:tcp:443,80", {"direction": "in", "protocol": "icmp"}, "in:tcp:80,443")
    assert (made.phase, made.rules_revision, made.applied_revision) == ("ready", 1, 1)
    assert [each.text for each in made.rules] == in_kernel(node, made.id) == ["in:tcp:80,443", "in:icmp"]
    done = await ask(node, "set-rules", group="web", rules=[], revision=1)
    assert (done["group"].rules_revision, in_kernel(node, made.id)) == (2, [])
    assert (await ask(node, "delete-group", group="web"))["group"].phase == "deleted"
    assert node.networks.groups == {}


async def test_of_two_editors_that_race_one_sets_and_the_other_is_told(node: MemoryNode) -> None:
    made = await group(node, "web", "in:tcp:80")
    asked = [ask(node, "set-rules", group="web", rules=[f"in:tcp:{port}"], revision=1) for port in (1, 2)]
    won, lost = sorted(await asyncio.gather(*asked), key=lambda end: end["type"], reverse=True)
    assert (won["type"], lost["code"], lost["details"]["field"]) == ("result", 409, "revision")
    assert lost["details"]["rules-revision"] == 2
    assert in_kernel(node, made.id) == [each.text for each in won["group"].rules]


async def test_a_rule_names_a_group_by_its_name_or_id_and_is_about_the_group_that_it_was(node: MemoryNode) -> None:
    web = await group(node, "web")
    db = await group(node, "db", "in:any:from=group/web", f"in:any:from=group/{web.id}", "in:tcp:22:from=group/db")
    assert [(each.text, each.group_id, each.group) for each in db.rules] == [
        ("in:any:from=group/web", web.id, "web"),
        ("in:tcp:22:from=group/db", db.id, "db"),
    ]
    refused = await ask(node, "delete-group", group="web")
    assert (refused["code"], refused["message"]) == (409, "the group 'web' is in use by 1 group(s): db")
    assert (await ask(node, "set-rules", group="db", rules=["in:any:from=group/db"]))["type"] == "result"
    for name in ("web", "db"):
        assert (await ask(node, "delete-group", group=name))["type"] == "result", "it names none but itself"


async def test_groups_may_name_each_other_in_a_circle(node: MemoryNode) -> None:
    await group(node, "a")
    await group(node, "b", "in:any:from=group/a")
    done = await ask(node, "set-rules", group="a", rules=["in:any:from=group/b"])
    assert done["group"].phase == "ready"
    for name, other in (("a", "b"), ("b", "a")):
        refused = await ask(node, "delete-group", group=name)
        assert refused["message"] == f"the group {name!r} is in use by 1 group(s): {other}"


async def test_a_group_that_is_missing_is_refused_with_the_command_that_makes_it(node: MemoryNode) -> None:
    await group(node, "web", "in:tcp:80")
    for task, options in (("create-group", {"name": "db"}), ("set-rules", {"group": "web"})):
        refused = await ask(node, task, rules=["in:any", "in:any:from=group/apps"], **options)
        assert (refused["code"], refused["message"]) == (404, "no such group: 'apps'")
        assert refused["details"] == {
            "field": "rules[1].group", "hint": "aetherscale firewall group create apps",
        }  # fmt: skip
    gone = await group(node, "gone")
    await ask(node, "delete-group", group="gone")
    refused = await ask(node, "create-group", name="db", rules=[f"in:any:from=group/{gone.id}"])
    assert (refused["code"], refused["message"]) == (409, "the group 'gone' is deleted")
    assert [each.name for each in await listed(node)] == ["web"]


async def listed(node: MemoryNode) -> list[Any]:
    return [chunk["group"] for chunk in await node.ask("firewall", "list-groups") if chunk["type"] == "item"]


async def test_of_a_deletion_and_a_rule_that_names_the_group_one_is_refused(node: MemoryNode) -> None:
    for number in range(20):
        await group(node, f"g{number}")
        asked = (
            ask(node, "delete-group", group=f"g{number}"),
            ask(node, "create-group", name=f"h{number}", rules=[f"in:any:from=group/g{number}"]),
        )
        ends = await asyncio.gather(*(asked if number % 2 else reversed(asked)))
        assert sorted(end["type"] for end in ends) == ["error", "result"], ends


async def test_a_name_is_that_of_one_group_of_its_tenant(node: MemoryNode) -> None:
    await group(node, "web")
    refused = await ask(node, "create-group", name="web")
    assert (refused["code"], refused["details"]["field"]) == (409, "name")
    assert refused["message"] == "a group named 'web' exists already (it is ready)"
    elsewhere = await node.final("firewall", "create-group", {"name": "web"}, tenant="other")
    assert elsewhere["type"] == "result"
    refused = await node.final(
        "firewall", "create-group", {"name": "x", "rules": ["in:any:from=group/web"]}, tenant="t"
    )
    assert refused["code"] == 404, "a group of another tenant is missing"


async def test_a_node_that_may_make_no_networks_says_so_before_anything_is_recorded(node: MemoryNode) -> None:
    node.networks.lacking = "the node has no CAP_NET_ADMIN"
    refused = await ask(node, "create-group", name="web")
    assert (refused["code"], refused["error"]) == (501, "not-implemented")
    assert await node.events() == []


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"name": "Web"}, "name"),
        ({"name": 'x"; drop'}, "name"),
        ({"name": "web\n"}, "name"),
        ({"name": "web", "rules": "in:any"}, "rules"),
        ({"name": "web", "rules": ["in:any"] * (MOST_RULES + 1)}, "rules"),
        ({"name": "web", "rules": ["in:tcp:" + "1," * 600]}, "rules[0]"),
        ({"name": "web", "rules": [7]}, "rules[0]"),
        ({"name": "web", "rules": [{"direction": "in"}]}, "rules[0].protocol"),
        ({"name": "web", "rules": [{"direction": "both", "protocol": "tcp"}]}, "rules[0].direction"),
        ({"name": "web", "rules": [{"direction": "in", "protocol": "tcp", "deny": True}]}, "rules[0].deny"),
        ({"name": "web", "rules": [{"direction": "in", "protocol": "tcp", "ports": [1.5]}]}, "rules[0].ports[0]"),
        ({"name": "web", "rules": [{"direction": "in", "protocol": "tcp", "group": "a b"}]}, "rules[0].group"),
        ({"name": "web", "rules": ["in:any", {"direction": "in", "protocol": "tcp", "ports": [0]}]}, "rules[1].ports"),
    ],
)
async def test_what_cannot_be_is_refused_with_its_field(node: MemoryNode, options: dict[str, Any], field: str) -> None:
    refused = await ask(node, "create-group", **options)
    assert (refused["code"], refused["details"]["field"]) == (400, field), refused
    assert await node.events() == []


async def test_as_many_rules_as_a_group_may_have_are_taken(node: MemoryNode) -> None:
    ports = ",".join(str(port) for port in range(10_001, 10_001 + 128, 2))
    rules = [f"in:tcp:{number},{ports}" for number in range(1, MOST_RULES + 1)]
    refused = await ask(node, "create-group", name="web", rules=rules)
    assert refused["details"]["field"] == "rules[0].ports", "65 ports are one too many"
    made = await group(node, "web", *(f"in:tcp:{number},{ports.removeprefix('10001,')}" for number in range(1, 257)))
    assert (len(made.rules), {len(each.ports) for each in made.rules}) == (MOST_RULES, {64})


async def test_what_the_kernel_refuses_changes_nothing_and_setting_rules_tries_again(node: MemoryNode) -> None:
    made = await group(node, "web", "in:tcp:80")
    other = await group(node, "db", "in:tcp:5432")

    calm = node.networks.interfere

    async def refuse(step: str, what: str) -> None:
        if (step, what) == ("group", made.id):
            raise Fault("the kernel refused the rules of networks: out of memory", retryable=False)

    node.networks.interfere = refuse
    failed = await ask(node, "set-rules", group="web", rules=["in:tcp:81"])
    assert (failed["code"], failed["error"]) == (500, "internal")
    assert failed["message"].endswith("revision 1 stands: the kernel refused the rules of networks: out of memory")
    shown = (await ask(node, "group-info", group="web"))["group"]
    assert (shown.phase, shown.rules_revision, shown.applied_revision) == ("failed", 2, 1)
    assert [each.text for each in shown.rules] == ["in:tcp:81"]
    assert in_kernel(node, made.id) == ["in:tcp:80"]
    assert (await ask(node, "set-rules", group="db", rules=["in:tcp:5433"]))["group"].phase == "ready"
    assert in_kernel(node, other.id) == ["in:tcp:5433"]
    await node.close()
    await node.start()
    assert in_kernel(node, made.id) == ["in:tcp:80"], "what is refused is not asked for again by a start"
    node.networks.interfere = calm
    done = await ask(node, "set-rules", group="web", rules=["in:tcp:81"], revision=2)
    assert (done["group"].phase, in_kernel(node, made.id)) == ("ready", ["in:tcp:81"])


async def test_the_next_process_gives_the_kernel_what_the_log_has(node: MemoryNode) -> None:
    web, gone = await group(node, "web", "in:tcp:80"), await group(node, "gone", "in:any")
    await ask(node, "delete-group", group="gone")
    await node.close()
    node.networks.groups = {gone.id: ()}
    await node.start()
    assert node.networks.groups.keys() == {web.id}
    assert in_kernel(node, web.id) == ["in:tcp:80"]
    shown = (await ask(node, "group-info", group="web"))["group"]
    assert shown == web


async def test_a_repeat_of_a_command_has_its_answer_and_no_second_effect(node: MemoryNode) -> None:
    asked = ("firewall", "create-group", {"name": "web", "rules": ["in:tcp:80"]})
    first = await node.final(*asked, key="k")
    assert await node.final(*asked, key="k") == first
    assert len([each for each in await node.events() if type(each.event).__name__ == "GroupRequested"]) == 1


class Recalling(SimulatedNetworking):
    """What was asked of it, too."""

    asked: list[bool]

    async def apply_group(self, group_id: str, rules: Sequence[Rule], *, keep_established: bool = False) -> None:
        self.asked.append(keep_established)
        await super().apply_group(group_id, rules, keep_established=keep_established)


async def test_that_flows_are_to_go_on_reaches_the_kernel_with_the_rules(node: MemoryNode) -> None:
    networks = Recalling(node.networks)
    networks.asked = []
    driver = Groups(networks)
    for keeps in (True, False):
        effect = ApplyGroup("k", "0123456789abcdef", 1, (), keep_established=keeps)
        assert await driver.perform(effect, lambda step, **fields: None) == RulesApplied("k", 1)
    assert networks.asked == [True, False]
