"""The first version's message makes the networks that it names: once, whoever else asks, and however often it comes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from aetherscale.kernel.fault import Fault
from tests.support.imaged_node import node
from tests.support.memory_node import MemoryNode

__all__ = ["node"]


async def first_version(node: MemoryNode, name: str, networks: Any, *, key: str | None = None, **more: Any) -> Any:
    options = {"image": "i", "name": name, "virtual-network": networks, **more}
    return await node.final("compute", "create-vm", options, key=key, legacy=True)


async def requested(node: MemoryNode, what: str) -> list[Any]:
    """The events of a type."""
    return [each for each in await node.events() if type(each.event).__name__ == what]


def networks_of(made: Any) -> list[str]:
    assert made["type"] == "result", made
    return [port.network for port in made["vm"].ports]


async def test_a_missing_network_is_made_and_the_vm_is_in_it(node: MemoryNode) -> None:
    made = await first_version(node, "web", "lab")
    assert networks_of(made) == ["lab"]
    lab = (await node.final("network", "network-info", {"network": "lab"}))["network"]
    assert (lab.phase, lab.kind, lab.ipv4) == ("ready", "isolated", None)
    [asked] = await requested(node, "NetworkRequested")
    [of_vm] = await requested(node, "VmRequested")
    assert (asked.actor, asked.correlation_id) == (of_vm.actor, of_vm.correlation_id)
    assert asked.causation_id == of_vm.command_id


async def test_each_of_several_is_made_once(node: MemoryNode) -> None:
    await first_version(node, "web", "lab")
    assert networks_of(await first_version(node, "db", ["dmz", "lab", "far"])) == ["dmz", "lab", "far"]
    assert [each.event.spec.name for each in await requested(node, "NetworkRequested")] == ["lab", "dmz", "far"]


async def test_one_that_is_named_twice_is_refused_and_not_made(node: MemoryNode) -> None:
    refused = await first_version(node, "db", ["dmz", "lab", "dmz"])
    assert (refused["code"], refused["message"]) == (400, "the network 'dmz' is named twice")
    assert not await requested(node, "NetworkRequested")


async def test_of_many_at_once_one_makes_it_and_all_vms_are_in_it(node: MemoryNode) -> None:
    ends = await asyncio.gather(*(first_version(node, f"vm-{number}", "lab") for number in range(20)))
    assert len({end["vm"].ports[0].network_id for end in ends if end["type"] == "result"}) == 1
    assert [networks_of(end) for end in ends] == [["lab"]] * 20
    assert len(await requested(node, "NetworkRequested")) == 1


async def test_one_that_is_being_made_by_another_request_is_waited_for(node: MemoryNode) -> None:
    go_on, begun = asyncio.Event(), asyncio.Event()

    async def wait(step: str, what: str) -> None:
        begun.set()
        await go_on.wait()

    node.networks.interfere = wait
    making = asyncio.ensure_future(node.final("network", "create-network", {"name": "lab"}))
    await begun.wait()
    vm = asyncio.ensure_future(first_version(node, "web", "lab"))
    refused = await node.final("compute", "create-vm", {"image": "i", "name": "db", "virtual-network": "lab"})
    assert (refused["code"], refused["retryable"]) == (409, True), "only the first version's message waits"
    assert not vm.done()
    go_on.set()
    assert (await making)["type"] == "result"
    assert networks_of(await vm) == ["lab"]
    assert len(await requested(node, "NetworkRequested")) == 1


async def test_a_repeat_makes_nothing_again_even_after_all_of_it_was_deleted(node: MemoryNode) -> None:
    first = await first_version(node, "web", "lab", key="k")
    assert await first_version(node, "web", "lab", key="k") == first
    await node.final("compute", "delete-vm", {"vm-id": "web", "kill": True})
    await node.final("network", "delete-network", {"network": "lab"})
    before = len(await node.events())
    assert (await first_version(node, "web", "lab", key="k"))["vm-id"] == first["vm-id"]
    assert len(await node.events()) == before


@pytest.mark.parametrize("die_before", range(2))
async def test_a_repeat_after_a_death_on_the_way_goes_on_from_there(node: MemoryNode, die_before: int) -> None:
    """The node dies while it makes the network, at each of the two steps on the host."""
    steps = 0
    reached = asyncio.Event()

    async def hang(step: str, what: str) -> None:
        nonlocal steps
        steps += 1
        if steps > die_before:
            reached.set()
            await asyncio.Event().wait()

    node.networks.interfere = hang
    asked = asyncio.ensure_future(first_version(node, "web", "lab", key="k"))
    await reached.wait()
    await node.close()
    await asyncio.gather(asked, return_exceptions=True)

    async def nothing(step: str, what: str) -> None:
        pass

    node.networks.interfere = nothing
    await node.start()
    assert networks_of(await first_version(node, "web", "lab", key="k")) == ["lab"]
    assert len(await requested(node, "NetworkRequested")) == len(await requested(node, "VmRequested")) == 1


@pytest.mark.parametrize("after", ["NetworkRequested", "NetworkUp"])
async def test_a_network_that_is_deleted_meanwhile_never_leaves_a_vm_without_one(node: MemoryNode, after: str) -> None:
    """The deletion comes before the VM has the network, or too late."""

    async def delete() -> Any:
        await node.until(after)
        return await node.final("network", "delete-network", {"network": "lab"})

    made, deleted = await asyncio.gather(first_version(node, "web", "lab"), delete())
    assert "result" in (made["type"], deleted["type"])
    if made["type"] == "error":
        assert (made["code"], made["message"]) == (409, "the network 'lab' is not ready but deleting")
        return
    shown = (await node.final("network", "network-info", {"network": made["vm"].ports[0].network_id}))["network"]
    assert shown.phase == "ready"


@pytest.mark.parametrize(
    ("networks", "options", "code", "field"),
    [
        ("Lab", {}, 400, "virtual-network"),
        ("lab\n", {}, 400, "virtual-network"),
        (["lab", "x" * 64], {}, 400, "virtual-network[1]"),
        ("0123456789abcdef", {}, 404, "virtual-network"),
        ("lab", {"memory-mib": 16 * 1024 * 1024}, 400, "memory-mib"),
        ("lab", {"image": "missing"}, 404, "image"),
        ("lab", {"vpn": "v"}, 501, "vpn"),
        ("lab", {"allow-addresses": ["nonsense"]}, 400, "allow-addresses"),
    ],
)
async def test_what_is_refused_makes_no_network(
    node: MemoryNode, networks: Any, options: dict[str, Any], code: int, field: str
) -> None:
    refused = await first_version(node, "web", networks, **options)
    assert (refused["code"], refused["details"]["field"]) == (code, field), refused
    assert await requested(node, "NetworkRequested") == []


async def test_a_node_without_networks_says_so_and_what_is_lacking(node: MemoryNode) -> None:
    node.networks.lacking = "the node has no CAP_NET_ADMIN"
    refused = await first_version(node, "web", "lab")
    assert (refused["code"], refused["details"]["field"]) == (501, "virtual-network")
    assert "CAP_NET_ADMIN" in refused["message"]


async def test_why_it_could_not_be_made_is_the_answer(node: MemoryNode) -> None:
    async def fail(step: str, what: str) -> None:
        raise Fault("no room for bridges", "make room", retryable=False)

    node.networks.interfere = fail
    refused = await first_version(node, "web", "lab")
    assert refused["type"] == "error"
    assert "the network could not be created: no room for bridges" in refused["message"]
    assert await requested(node, "VmRequested") == []


async def test_elsewhere_a_missing_network_is_refused_with_what_makes_it(node: MemoryNode) -> None:
    refused = await node.final("compute", "create-vm", {"image": "i", "virtual-network": "lab"})
    assert (refused["code"], refused["error"]) == (404, "not-found")
    assert "aetherscale network create lab" in str(refused)
    assert await requested(node, "NetworkRequested") == []
