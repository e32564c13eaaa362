"""Init scripts that VMs are created with, decided by a whole node on a simulated host."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from aetherscale.actors.compute.model.events import VmInitEnded, VmInitScriptRemoved, VmRequested
from aetherscale.actors.compute.simulated.host import Behaviour
from aetherscale.kernel.wire import encode
from tests.support.eventually import asked_until
from tests.support.imaged_node import IMAGE, node
from tests.support.memory_node import MemoryNode

__all__ = ["node"]

SCRIPT = "#!/bin/sh\necho correct-horse-battery\n"


@pytest.fixture
async def taking(node: MemoryNode) -> MemoryNode:
    """The node with an image whose guests take init scripts."""
    options = {"source": "/x.raw", "name": "taking", "ready": "channel", "first-boot": "aetherscale"}
    made = await node.final("images", "import-image", options)
    assert made["image"].first_boot == "aetherscale"
    return node


async def vm(node: MemoryNode, script: Any = SCRIPT, *, key: str | None = None, **more: Any) -> Mapping[str, Any]:
    options = {"image": "taking", "name": "web", "init-script": script} | more
    return (await node.ask("compute", "create-vm", options, key=key))[-1]


async def events_of(node: MemoryNode, kind: type[Any]) -> list[Any]:
    return [each.event for each in await node.events() if isinstance(each.event, kind)]


async def until_there(node: MemoryNode, kind: type[Any]) -> None:
    async def look() -> bool:
        await asyncio.sleep(0)
        return bool(await events_of(node, kind))

    await asked_until(look)


async def test_a_script_is_run_and_told_and_nothing_has_it(taking: MemoryNode) -> None:
    made = await vm(taking, **{"wait-for": "init"})
    assert made["type"] == "result", made
    assert made["vm"].init_script.state == "succeeded"
    await until_there(taking, VmInitScriptRemoved)
    assert taking.host.kept_scripts == {}
    assert len(await events_of(taking, VmInitEnded)) == 1
    told = b"".join(encode(each.event) for each in await taking.events()) + encode(made)
    assert b"correct-horse" not in told
    assert b"correct-horse" not in repr(await taking.events()).encode()


async def test_it_is_kept_before_the_log_has_its_vm(taking: MemoryNode) -> None:
    order: list[str] = []
    taking.host.behaviour = lambda vm_id: Behaviour(init_s=None)
    assert taking.node is not None
    scripts = taking.node.actors["vm"].driver.scripts  # type: ignore[attr-defined]
    keep = scripts.keep

    async def noted(vm_id: str, script: bytes) -> None:
        order.append(f"kept with {len(await events_of(taking, VmRequested))} VMs in the log")
        await asyncio.sleep(0.01)
        await keep(vm_id, script)

    scripts.keep = noted
    made = await vm(taking)
    assert made["type"] == "result", made
    assert order == ["kept with 0 VMs in the log"]
    assert list(taking.host.kept_scripts.values()) == [SCRIPT.encode()]


async def test_two_that_take_one_name_while_a_script_is_being_kept_are_not_both_made(taking: MemoryNode) -> None:
    """Nothing comes between a decision and its append, however long it takes to keep a script."""
    assert taking.node is not None
    scripts = taking.node.actors["vm"].driver.scripts  # type: ignore[attr-defined]
    keep, go_on = scripts.keep, asyncio.Event()

    async def slow(vm_id: str, script: bytes) -> None:
        await go_on.wait()
        await keep(vm_id, script)

    scripts.keep = slow
    first = asyncio.ensure_future(vm(taking))
    await asyncio.sleep(0.01)
    second = await taking.ask("compute", "create-vm", {"image": "taking", "name": "web"})
    assert second[-1]["type"] == "result"
    go_on.set()
    refused = await first
    assert (refused["code"], refused["details"]["field"]) == (409, "name")
    assert len(await events_of(taking, VmRequested)) == 1


async def test_a_repeat_keeps_nothing_and_has_the_same_answer(taking: MemoryNode) -> None:
    first = await vm(taking, key="once", **{"wait-for": "init"})
    await until_there(taking, VmInitScriptRemoved)
    again = await vm(taking, key="once", **{"wait-for": "init"})
    assert encode(again) == encode(first)
    assert taking.host.kept_scripts == {}
    other = await vm(taking, "#!/bin/sh\n", key="once", **{"wait-for": "init"})
    assert other["code"] == 409


async def test_a_script_that_fails_fails_who_waits_for_it_and_not_the_vm(taking: MemoryNode) -> None:
    taking.host.behaviour = lambda vm_id: Behaviour(init_status=7)
    told = await vm(taking, key="once", **{"wait-for": "init"})
    assert (told["code"], told["details"]["exit-status"]) == (500, 7)
    assert told["message"].startswith(
        "the init script of the VM 'web' failed with exit status 7; the VM itself is ready"
    )
    shown = (await taking.final("compute", "vm-info", {"vm-id": "web"}))["vm"]
    assert (shown.phase, shown.failure) == ("ready", None)
    assert await vm(taking, key="once", **{"wait-for": "init"}) == told


async def test_a_guest_that_tells_its_end_again_and_again_is_heard_once(taking: MemoryNode) -> None:
    taking.host.behaviour = lambda vm_id: Behaviour(init_told=50)
    assert (await vm(taking, **{"wait-for": "init"}))["type"] == "result"
    # Behind all that the guest has said.
    assert (await taking.final("compute", "stop-vm", {"vm-id": "web", "kill": True}))["type"] == "result"
    assert len(await events_of(taking, VmInitEnded)) == 1


async def test_a_script_that_hangs_is_not_waited_for_by_who_waits_for_the_guest(taking: MemoryNode) -> None:
    taking.host.behaviour = lambda vm_id: Behaviour(init_s=None)
    made = await vm(taking)
    assert made["vm"].init_script.state == "awaited"
    waits = await taking.ask(
        "compute",
        "create-vm",
        {"image": "taking", "name": "db", "init-script": SCRIPT, "wait-for": "init"},
        deadline_us=taking.now_us + 50_000,
    )
    assert waits[-1]["code"] == 504
    assert (await taking.final("compute", "vm-info", {"vm-id": "db"}))["vm"].phase == "ready"


async def test_a_script_that_the_host_has_lost_is_told_and_the_vm_goes_on(taking: MemoryNode) -> None:
    taking.host.behaviour = lambda vm_id: Behaviour(init_s=None)
    await vm(taking)
    taking.host.kept_scripts.clear()
    assert (await taking.final("compute", "stop-vm", {"vm-id": "web", "kill": True}))["type"] == "result"
    assert (await taking.final("compute", "start-vm", {"vm-id": "web"}))["type"] == "result"
    await until_there(taking, VmInitEnded)
    assert [each.outcome for each in await events_of(taking, VmInitEnded)] == ["lost"]


@pytest.mark.parametrize("script", ["", "echo\n", "#!/bin/sh\r\n", "#!/bin/sh\n\0", 7, [SCRIPT], {"text": SCRIPT}])
async def test_what_is_no_script_is_refused_with_its_field_and_nothing_is_kept(taking: MemoryNode, script: Any) -> None:
    refused = await vm(taking, script)
    assert (refused["code"], refused["details"]["field"]) == (400, "init-script"), refused
    assert taking.host.kept_scripts == {}
    assert not await events_of(taking, VmRequested)


async def test_a_request_that_is_refused_keeps_nothing(taking: MemoryNode) -> None:
    for name, value, field in (("image", "i", "init-script"), ("image", "none", "image"), ("node", "other", "node")):
        options = {"image": "taking", "init-script": SCRIPT, name: value}
        refused = await taking.final("compute", "create-vm", options)
        assert refused["details"]["field"] == field, refused
    assert (await vm(taking, image="i"))["message"] == "guests of the image 'i' take no init script at their first boot"
    assert taking.host.kept_scripts == {}


async def test_keys_go_to_those_that_take_them_alone(taking: MemoryNode) -> None:
    await taking.final("images", "import-image", {**IMAGE, "name": "small", "first-boot": "tiny"})
    await taking.final("images", "import-image", {**IMAGE, "name": "stock", "first-boot": "credentials"})
    assert (await vm(taking, image="stock"))["details"]["field"] == "init-script"
    assert (await vm(taking, image="small"))["type"] == "result"


async def test_waiting_for_no_script_is_refused(taking: MemoryNode) -> None:
    refused = await taking.final("compute", "create-vm", {"image": "taking", "wait-for": "init"})
    assert (refused["code"], refused["details"]["field"]) == (400, "wait-for")
