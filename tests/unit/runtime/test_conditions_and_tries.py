"""Requests that are for one revision of an object, and requests that are only tried."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from aetherscale.components import components
from aetherscale.kernel.errors import Refused
from aetherscale.runtime import operations
from tests.support.memory_fixtures import WEB, node
from tests.support.memory_node import MemoryNode

__all__ = ["node"]

BY_KIND = {each.kind.name: each for each in components()}


async def group(node: MemoryNode) -> str:
    """A group, and the tag of its present revision."""
    made = await node.final("firewall", "create-group", {"name": "g"})
    return f"{made['group-id']}-{made['group'].revision}"


async def test_of_those_that_come_for_one_revision_at_one_time_one_is_done(node: MemoryNode) -> None:
    tag = await group(node)
    asked = [
        node.final("firewall", "set-rules", {"group": "g", "rules": [f"in:tcp:{port}"]}, revisions=(tag,))
        for port in (80, 81, 82)
    ]
    answers = await asyncio.gather(*asked)
    assert sorted(str(each.get("code", "done")) for each in answers) == ["412", "412", "done"]


async def test_one_of_several_revisions_is_enough(node: MemoryNode) -> None:
    tag = await group(node)
    rules = {"group": "g", "rules": ["in:tcp:80"]}
    assert (await node.final("firewall", "set-rules", rules, revisions=("x", tag)))["type"] == "result"
    refused = await node.final("firewall", "set-rules", rules, revisions=("x", tag))
    assert (refused["code"], refused["error"], refused["details"]["revision"]) == (412, "precondition-failed", 4)


async def test_what_is_to_be_made_has_no_revision_yet(node: MemoryNode) -> None:
    refused = await node.final("firewall", "create-group", {"name": "g"}, revisions=("x-1",))
    assert refused["code"] == 412
    assert (await node.final("firewall", "create-group", {"name": "g"}))["type"] == "result"


async def test_what_is_tried_waits_behind_what_came_before_and_leaves_nothing(node: MemoryNode) -> None:
    creating = asyncio.ensure_future(node.ask("compute", "create-vm", WEB, key="k"))
    tried = await node.final("compute", "create-vm", WEB, key="k", dry_run=True)
    assert tried["type"] in ("result", "error")
    await creating
    before = len(await node.events())
    stopping = await node.final("compute", "stop-vm", {"vm-id": "web"}, dry_run=True)
    assert [each["type"] for each in stopping["events"]] == ["VmStopRequested"]
    assert len(await node.events()) == before
    assert (await node.final("compute", "vm-info", {"vm-id": "web"}))["vm"].requested == "running"


async def test_the_operation_of_each_command_ends_as_its_caller_was_told(node: MemoryNode) -> None:
    told = {}
    asked: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("network", "create-network", {"name": "lab", "kind": "nat"}),
        ("firewall", "create-group", {"name": "g"}),
        ("compute", "create-vm", {**WEB, "virtual-network": "lab"}),
        ("firewall", "attach-group", {"vm-id": "web", "group": "g"}),
        ("firewall", "add-forward", {"vm-id": "web", "host-port": 8080, "guest-port": 80}),
        ("firewall", "set-rules", {"group": "g", "rules": ["in:tcp:80"]}),
        ("firewall", "remove-forward", {"vm-id": "web", "host-port": 8080}),
        ("firewall", "detach-group", {"vm-id": "web", "group": "g"}),
        ("network", "create-network", {"name": "other"}),
        ("compute", "attach-vm", {"vm-id": "web", "network": "other"}),
        ("compute", "detach-vm", {"vm-id": "web", "network": "other"}),
        ("compute", "restart-vm", {"vm-id": "web"}),
        ("compute", "stop-vm", {"vm-id": "web"}),
        ("compute", "start-vm", {"vm-id": "web"}),
        ("compute", "delete-vm", {"vm-id": "web", "kill": True}),
        ("firewall", "delete-group", {"group": "g"}),
        ("network", "delete-network", {"network": "lab"}),
    )
    for number, (component, task, options) in enumerate(asked):
        told[f"k{number}"] = (task, await node.final(component, task, options, key=f"k{number}"))
    assert node.log is not None
    for key, (task, final) in told.items():
        assert final["type"] == "result", (task, final)
        operation = await operations.find(node.log, BY_KIND, "default", key)
        assert operation.status == "done", task
        assert operation.object_id == final[f"{operation.kind}-id"], task
        assert operation.first_seq <= operation.last_seq
        assert operation.actor == "user:test"


async def test_an_operation_is_its_tenants(node: MemoryNode) -> None:
    await node.final("network", "create-network", {"name": "lab"}, key="k")
    assert node.log is not None
    with pytest.raises(Refused, match="no such operation"):
        await operations.find(node.log, BY_KIND, "other", "k")
