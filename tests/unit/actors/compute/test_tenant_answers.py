"""Answers to a tenant beside another one: mistakes that were found once, each told again."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from aetherscale.actors.compute.console import SESSION_LIMIT, Attached, Consoles
from aetherscale.components import components
from aetherscale.kernel.errors import Refused
from aetherscale.kernel.wire import encode
from tests.support.memory_node import MemoryNode
from tests.support.tenants import BLUE, RED


async def started(*tenants: str) -> MemoryNode:
    node = MemoryNode()
    await node.start()
    for tenant in tenants:
        await node.final("images", "build-image", {"recipe": "tiny"}, tenant=tenant)
    return node


async def test_a_repeat_of_what_changed_nothing_is_not_answered_with_the_next_event_of_somebody_else() -> None:
    node = await started(RED, BLUE)
    web = {"image": "tiny", "name": "web"}
    mine = (await node.final("compute", "create-vm", web, tenant=RED))["vm-id"]
    first = await node.final("compute", "start-vm", {"vm-id": "web"}, key="k", tenant=RED)
    theirs = (await node.final("compute", "create-vm", {**web, "name": "secret"}, key="k", tenant=BLUE))["vm-id"]
    again = await node.final("compute", "start-vm", {"vm-id": "web"}, key="k", tenant=RED)
    assert again == first
    assert again["vm-id"] == mine != theirs
    await node.close()


async def test_a_repeat_is_not_answered_with_the_next_event_of_another_component(
    caplog: pytest.LogCaptureFixture,
) -> None:
    node = await started(RED, BLUE)
    await node.final("compute", "create-vm", {"image": "tiny", "name": "web"}, tenant=RED)
    first = await node.final("compute", "start-vm", {"vm-id": "web"}, key="k", tenant=RED)
    await node.final("images", "build-image", {"recipe": "tiny", "name": "secret"}, key="k", tenant=BLUE)
    assert await node.final("compute", "start-vm", {"vm-id": "web"}, key="k", tenant=RED) == first
    assert not caplog.records
    await node.close()


@pytest.mark.parametrize("by_subject", [False, True])
async def test_a_key_that_was_accepted_for_one_object_is_no_answer_for_another(by_subject: bool) -> None:
    """The body is the same where the object is in the subject."""
    node = await started(RED)
    web, db = [
        (await node.final("compute", "create-vm", {"image": "tiny", "name": name}, tenant=RED))["vm-id"]
        for name in ("web", "db")
    ]

    async def start(vm_id: str) -> Any:
        options = {} if by_subject else {"vm-id": vm_id}
        return await node.final(
            "compute", "start-vm", options, key="k", tenant=RED, object_id=vm_id if by_subject else ""
        )

    assert (await start(web))["vm-id"] == web
    refused = await start(db)
    assert (refused["code"], refused["message"]) == (409, "the key 'k' was used for another request")
    await node.close()


async def test_no_tenant_uses_up_the_consoles_of_another() -> None:
    class Line:
        past_bytes = 0

        async def close(self) -> None:
            return

    async def reach() -> Attached:
        return Attached(Line())  # type: ignore[arg-type]

    consoles = Consoles()
    held = [consoles.attached(reach, BLUE, f"s{number}") for number in range(SESSION_LIMIT)]
    for each in held:
        await each.__aenter__()
    with pytest.raises(Refused):
        await consoles.attached(reach, BLUE, "one-more").__aenter__()
    async with consoles.attached(reach, RED, "s0"):
        pass
    for each in held:
        await each.__aexit__(None, None, None)


async def test_what_belongs_to_another_tenant_is_refused_word_for_word_as_what_does_not_exist() -> None:
    node = await started(RED, BLUE)
    vm_id = (await node.final("compute", "create-vm", {"image": "tiny", "name": "web"}, tenant=BLUE))["vm-id"]
    image_id = (await node.final("images", "image-info", {"image": "tiny"}, tenant=BLUE))["image-id"]
    nothing = "1" * 16
    more: dict[str, dict[str, Any]] = {
        "attach-vm": {"network": "lab"},
        "detach-vm": {"network": "lab"},
        "exec-vm": {"command": ["true"]},
        "read-image": {"sha256": "0" * 64, "offset": 0},
        "set-rules": {"rules": []},
        "vm-console": {"session": "s"},
        "vm-terminal": {"session": "s", "command": ["true"]},
        "vm-program": {"session": "s", "command": ["true"]},
    }
    assert node.node is not None
    network_id = (await node.final("network", "create-network", {"name": "lab"}, tenant=BLUE))["network-id"]
    group_id = (await node.final("firewall", "create-group", {"name": "web"}, tenant=BLUE))["group-id"]
    for each in components():
        component, field = each.name, each.identity.reference
        made = {task for task, command in each.commands.items() if command.creates}
        own = {task for task in each.tasks() if each.asked_under(task) == component}
        for task in own - made - {each.identity.list_task, "console-input", "explain", "search-images", "watch-drops"}:
            options = more.get(task, {})
            for key in (None, "k"):
                for theirs in (vm_id, image_id, network_id, group_id):
                    asked = [
                        [
                            await node.ask(component, task, {field: which, **options}, key=key, tenant=RED),
                            await node.ask(component, task, options, key=key, tenant=RED, object_id=which),
                        ]
                        for which in (theirs, nothing)
                    ]
                    assert asked[0] == msgspec.json.decode(encode(asked[1]).replace(nothing.encode(), theirs.encode()))
                    assert asked[0][0][0]["code"] == 404, task
    for task, options in (
        ("explain", {"from": "VM", "to": "host", "port": "icmp"}),
        ("explain", {"from": "host", "to": "VM", "port": "icmp"}),
        ("watch-drops", {"vm-id": "VM"}),
    ):
        refused, unknown = [
            await node.final(
                "firewall",
                task,
                {field: which if value == "VM" else value for field, value in options.items()},
                tenant=RED,
            )
            for which in (vm_id, nothing)
        ]
        assert refused == msgspec.json.decode(encode(unknown).replace(nothing.encode(), vm_id.encode()))
        assert refused["code"] == 404
    create = {"image": image_id, "name": "mine"}
    refused = await node.final("compute", "create-vm", create, tenant=RED)
    assert refused["message"] == f"no such image: '{image_id}'"
    await node.close()
