"""The contract of the driver of groups, on a simulated host and in a namespace of the kernel: the same tests for both.

A group is there for as long as it is expected, with the rules that were applied last. What rules do to packets is
tested where there are guests.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from aetherscale.actors.firewall.driver import Groups
from aetherscale.actors.firewall.model.commands import Rule
from aetherscale.actors.firewall.model.effects import ApplyGroup, GroupRemoved, RemoveGroup, RulesApplied
from aetherscale.actors.firewall.model.rules import parse_rules, short
from aetherscale.actors.firewall.model.state import Group
from aetherscale.kernel.attempts import Attempt
from tests.support.network_worlds import LAB, Kernel, Memory, Networking, Process, kernel
from tests.support.network_worlds import state as network

WEB, DB = "4123456789abcdef", "5123456789abcdef"
CHAIN = re.compile(r"chain g_([0-9a-f]{16})_in \{(.*?)\n\t\}", re.DOTALL)


def groups_of(host: Memory | Kernel) -> dict[str, str]:
    """The groups that the host has, each with the words of its rules `in`."""
    if isinstance(host, Memory):
        return {group_id: " ".join(map(short, rules)) for group_id, rules in host._host.groups.items()}
    return dict(CHAIN.findall(host._nft.run("list table bridge aetherscale\n")))


class Node:
    """One process: the driver of networks, and that of groups on it."""

    def __init__(self, networking: Networking) -> None:
        self.networks = Process(networking)
        self.groups = Groups(networking)

    async def start(self, groups: Mapping[str, Group]) -> None:
        """As a node does: networks, groups, then the ports of VMs."""
        await self.networks.driver.start(self.networks._report)
        await self.networks.driver.reconcile({})
        await self.groups.start(self.networks._report)
        await self.groups.reconcile(groups)
        await self.networks.ensure()
        await self.networks.driver.reconcile({LAB: network()})
        await self.networks.driver.restore({})

    async def apply(self, group_id: str, *rules: str, revision: int = 1, keep: bool = False) -> Any:
        effect = ApplyGroup("k", group_id, revision, parse_rules(rules), keep)
        return await self.groups.perform(effect, lambda step, **fields: None)

    async def remove(self, group_id: str) -> Any:
        return await self.groups.perform(RemoveGroup("k", group_id), lambda step, **fields: None)

    async def close(self) -> None:
        await self.groups.close()
        await self.networks.driver.close()


@pytest.fixture(params=["memory", "kernel"])
async def host(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Memory | Kernel]:
    if request.param == "memory":
        yield Memory()
        return
    async with kernel(tmp_path / "state") as found:
        yield found


@pytest.fixture
async def node(host: Memory | Kernel) -> AsyncIterator[Node]:
    node = Node(host.driver())
    await node.start({})
    yield node
    await node.close()


def state(group_id: str, *rules: str, phase: Any = "ready", in_force: tuple[str, ...] | None = None) -> Group:
    """A group as of the log; with `in_force`, one whose last rules were refused."""
    if in_force is None:
        return Group(group_id, "web", phase, 0, parse_rules(rules), 1, parse_rules(rules), 1)
    blocked = Attempt(3, blocked=True)
    return Group(group_id, "web", "applying", 0, parse_rules(rules), 2, parse_rules(in_force), 1, attempt=blocked)


async def test_a_group_has_the_rules_that_were_applied_last_and_repeats_change_nothing(
    host: Memory | Kernel, node: Node
) -> None:
    for _ in range(2):
        assert await node.apply(WEB, "in:tcp:8443", "out:udp:53") == RulesApplied("k", 1)
        assert "8443" in groups_of(host)[WEB]
    assert await node.apply(WEB, "in:tcp:8444", revision=2, keep=True) == RulesApplied("k", 2)
    assert "8444" in groups_of(host)[WEB]
    assert "8443" not in groups_of(host)[WEB]


async def test_a_group_that_allows_nothing_is_one(host: Memory | Kernel, node: Node) -> None:
    assert await node.apply(WEB) == RulesApplied("k", 1)
    assert groups_of(host).keys() == {WEB}


async def test_one_that_names_another_and_itself_is_applied_in_whatever_order(
    host: Memory | Kernel, node: Node
) -> None:
    for group_id in (WEB, DB):
        named = tuple(Rule("in", "any", group_id=each, group="g") for each in (WEB, DB))
        effect = ApplyGroup("k", group_id, 1, named)
        assert await node.groups.perform(effect, lambda step, **fields: None) == RulesApplied("k", 1)
    assert groups_of(host).keys() == {WEB, DB}


async def test_of_one_that_is_removed_nothing_is_left_and_others_stay(host: Memory | Kernel, node: Node) -> None:
    await node.apply(WEB, "in:tcp:8443")
    await node.apply(DB, "in:tcp:5432")
    for _ in range(2):
        assert await node.remove(WEB) == GroupRemoved("k")
        assert groups_of(host).keys() == {DB}


async def test_the_next_process_has_the_groups_of_the_log_and_no_other(host: Memory | Kernel, node: Node) -> None:
    await node.apply(WEB, "in:tcp:8443")
    await node.apply(DB, "in:tcp:5432")
    await node.close()
    following = Node(host.driver())
    await following.start({WEB: state(WEB, "in:tcp:8444"), DB: state(DB, "in:tcp:5432", phase="deleted")})
    assert groups_of(host).keys() == {WEB}
    assert "8444" in groups_of(host)[WEB]
    await following.close()


async def test_what_was_refused_is_not_restored_nor_is_what_is_being_deleted(host: Memory | Kernel, node: Node) -> None:
    """One group whose rules nft refuses would keep it from taking those of all the others."""
    refused, going = state(WEB, "in:tcp:8444", in_force=("in:tcp:8443",)), state(DB, "in:tcp:1", phase="deleting")
    await node.groups.reconcile({WEB: refused, DB: going})
    await node.networks.driver.restore({})
    assert groups_of(host).keys() == {WEB}
    assert "8443" in groups_of(host)[WEB]
