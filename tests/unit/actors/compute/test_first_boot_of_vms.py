"""The names of guests, and the users whom they make, decided by a whole node on a simulated host."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from aetherscale.actors.compute.model import effects
from aetherscale.actors.compute.model.events import VmRequested
from aetherscale.actors.compute.model.firstboot import RESERVED_USERS
from tests.support.imaged_node import IMAGE, node
from tests.support.memory_node import MemoryNode
from tests.support.vm_pasts import DISK, REQUESTED, SPEC, given
from tests.unit.actors.compute.model.test_ssh_keys import key

__all__ = ["node"]


@pytest.fixture
async def taking(node: MemoryNode) -> MemoryNode:
    """The node with an image of each way."""
    for way in ("aetherscale", "credentials", "tiny", "cloud-init"):
        await node.final("images", "import-image", {**IMAGE, "name": way, "first-boot": way})
    return node


async def vm(node: MemoryNode, user: Any = "joe", image: str = "aetherscale", keys: Any = ()) -> Any:
    options = {"image": image, "name": "web", "user": user, "ssh-keys": list(keys)}
    return await node.final("compute", "create-vm", options)


def boot_of(requested: VmRequested) -> effects.BootVm:
    boot = given(requested, DISK).pending
    assert isinstance(boot, effects.BootVm)
    return boot


@pytest.mark.parametrize("image", ["aetherscale", "cloud-init"])
async def test_a_vm_has_the_user_that_it_was_asked_for_with_the_keys(taking: MemoryNode, image: str) -> None:
    made = await vm(taking, keys=[key()], image=image)
    assert made["type"] == "result", made
    assert (made["vm"].user, made["vm"].ssh_keys) == ("joe", [key()])
    [requested] = [each.event for each in await taking.events() if isinstance(each.event, VmRequested)]
    assert (boot_of(requested).user, boot_of(requested).ssh_keys) == ("joe", (key(),))


@pytest.mark.parametrize(
    "user",
    [
        *("root", "daemon", "sudo", "www-data", "", "Joe", "1joe", "joe-", "-joe", "joe smith", "joe\n", "j\u00f6"),
        *("joe:x", "../joe", "joe;reboot", "$(reboot)", "{user: root}", "#cloud-config", "%sudo", "j" * 33, 7, ["joe"]),
    ],
)
async def test_what_is_no_name_for_a_user_is_refused_and_nothing_is_recorded(taking: MemoryNode, user: Any) -> None:
    refused = await vm(taking, user)
    assert (refused["code"], refused["details"]["field"]) == (400, "user"), refused
    assert not [each for each in await taking.events() if isinstance(each.event, VmRequested)]


async def test_the_longest_name_is_taken(taking: MemoryNode) -> None:
    assert (await vm(taking, "j" * 32))["vm"].user == "j" * 32
    assert "joe" not in RESERVED_USERS


@pytest.mark.parametrize("image", ["credentials", "tiny", "i"])
async def test_guests_that_make_no_user_are_refused_one(taking: MemoryNode, image: str) -> None:
    refused = await vm(taking, image=image)
    assert (refused["code"], refused["details"]["field"]) == (409, "user")
    assert refused["message"] == f"guests of the image {image!r} take no user at their first boot"


@pytest.mark.parametrize(
    ("first_boot", "hostname"),
    [
        *(("aetherscale", "web"), ("credentials", "web"), ("tiny", "web"), ("cloud-init", "web")),
        *(("none", None), (None, None)),
    ],
)
def test_a_guest_is_called_as_its_vm_where_it_takes_a_name(first_boot: Any, hostname: str | None) -> None:
    assert boot_of(replace(REQUESTED, spec=replace(SPEC, first_boot=first_boot))).hostname == hostname


async def test_one_that_was_given_no_name_is_called_as_it_is_listed(taking: MemoryNode) -> None:
    made = await taking.final("compute", "create-vm", {"image": "tiny"})
    [requested] = [each.event for each in await taking.events() if isinstance(each.event, VmRequested)]
    assert made["vm"].name == f"vm-{made['vm'].id[:8]}"
    assert boot_of(requested).hostname == made["vm"].name
