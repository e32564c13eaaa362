"""Public keys that a VM is created with, decided by a whole node on a simulated host."""

from __future__ import annotations

from typing import Any

import pytest

from aetherscale.actors.compute.model import effects
from aetherscale.actors.compute.model.events import VmRequested
from aetherscale.actors.compute.model.sshkeys import MAX_KEY_CHARACTERS, MAX_KEYS
from tests.support.imaged_node import IMAGE, node
from tests.support.memory_node import MemoryNode
from tests.support.vm_pasts import DISK, REQUESTED, given
from tests.unit.actors.compute.model.test_ssh_keys import OTHER, key

__all__ = ["node"]


async def vm(node: MemoryNode, *keys: Any, image: str = "taking") -> Any:
    return await node.final("compute", "create-vm", {"image": image, "name": "web", "ssh-keys": list(keys)})


@pytest.fixture
async def taking(node: MemoryNode) -> MemoryNode:
    """The node with an image whose guests take keys."""
    made = await node.final("images", "import-image", {**IMAGE, "name": "taking", "first-boot": "credentials"})
    assert made["image"].first_boot == "credentials"
    return node


async def test_a_vm_has_the_keys_that_it_was_given(taking: MemoryNode) -> None:
    made = await vm(taking, f" {key()}  joe", OTHER)
    assert made["type"] == "result", made
    assert made["vm"].ssh_keys == [f"{key()} joe", OTHER]
    [requested] = [each.event for each in await taking.events() if isinstance(each.event, VmRequested)]
    boot = given(requested, DISK).pending
    assert isinstance(boot, effects.BootVm)
    assert boot.ssh_keys == (f"{key()} joe", OTHER)


def test_one_that_was_given_none_boots_with_none() -> None:
    boot = given(REQUESTED, DISK).pending
    assert isinstance(boot, effects.BootVm)
    assert boot.ssh_keys == ()


async def test_an_image_whose_guests_take_none_is_refused_beside_them(taking: MemoryNode) -> None:
    refused = await vm(taking, key(), image="i")
    assert (refused["code"], refused["details"]["field"]) == (409, "ssh-keys")
    assert refused["message"] == "guests of the image 'i' take no keys at their first boot"
    assert (await vm(taking, image="i"))["type"] == "result"


async def test_no_network_is_made_on_the_way_to_such_a_refusal(taking: MemoryNode) -> None:
    options = {"image": "i", "virtual-network": "lab", "ssh-keys": [key()]}
    refused = await taking.final("compute", "create-vm", options, legacy=True)
    assert refused["details"]["field"] == "ssh-keys"
    assert not [each for each in await taking.events() if each.stream.startswith("network-")]


async def test_what_is_no_key_is_refused_with_its_field_and_nothing_is_recorded(taking: MemoryNode) -> None:
    for bad in ("nothing", 7, None, {"key": key()}):
        refused = await vm(taking, key(), bad)
        assert (refused["code"], refused["details"]["field"].partition("[")[0]) == (400, "ssh-keys"), refused
    assert not [each for each in await taking.events() if each.stream.startswith("vm-")]


async def test_no_more_than_there_may_be(taking: MemoryNode) -> None:
    many = [key(body=bytes([number])) for number in range(MAX_KEYS + 1)]
    assert (await vm(taking, *many))["code"] == 400
    longest = f"{key()} ".ljust(MAX_KEY_CHARACTERS, "x")
    assert (await vm(taking, f"{longest}x"))["code"] == 400
    assert (await vm(taking, longest, *many[2:]))["type"] == "result"
