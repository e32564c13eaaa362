"""User-data for cloud-init that VMs are created with, decided by a whole node on a simulated host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from msgspec.structs import replace

from aetherscale.actors.compute.model import effects
from aetherscale.actors.compute.model.events import VmInitEnded, VmRequested
from aetherscale.actors.compute.model.firstboot import digest_of
from aetherscale.kernel.wire import encode
from tests.support.imaged_node import IMAGE, node
from tests.support.memory_node import MemoryNode
from tests.support.vm_pasts import DISK, REQUESTED, SPEC, given
from tests.unit.actors.compute.model.test_ssh_keys import key

__all__ = ["node"]

DATA = "#cloud-config\npassword: correct-horse-battery\n"
SCRIPT = "#!/bin/sh\nexit 0\n"


@pytest.fixture
async def taking(node: MemoryNode) -> MemoryNode:
    """The node with an image that has cloud-init."""
    made = await node.final("images", "import-image", {**IMAGE, "name": "taking", "first-boot": "cloud-init"})
    assert made["image"].first_boot == "cloud-init"
    return node


async def vm(node: MemoryNode, data: Any = DATA, **more: Any) -> Mapping[str, Any]:
    return await node.final("compute", "create-vm", {"image": "taking", "name": "web", "cloud-init": data} | more)


async def test_a_vm_has_its_user_data_beside_all_else_and_nothing_says_what_it_is(taking: MemoryNode) -> None:
    more = {"init-script": SCRIPT, "ssh-keys": [key()], "user": "joe", "wait-for": "init"}
    made = await vm(taking, **more)
    assert made["type"] == "result", made
    assert (made["vm"].first_boot, made["vm"].user, made["vm"].init_script.state) == ("cloud-init", "joe", "succeeded")
    assert made["vm"].cloud_init_sha256 == digest_of(DATA.encode())
    assert list(taking.host.kept_user_data.values()) == [DATA.encode()]
    told = repr(await taking.events()).encode() + encode(made)
    assert b"correct-horse" not in told
    assert len([each for each in await taking.events() if isinstance(each.event, VmInitEnded)]) == 1


async def test_it_stays_for_each_boot_and_goes_with_the_vm(taking: MemoryNode) -> None:
    await vm(taking)
    for task, options in (("stop-vm", {"kill": True}), ("start-vm", {}), ("restart-vm", {})):
        assert (await taking.final("compute", task, {"vm-id": "web", **options}))["type"] == "result"
        assert list(taking.host.kept_user_data.values()) == [DATA.encode()]
    assert (await taking.final("compute", "delete-vm", {"vm-id": "web", "kill": True}))["type"] == "result"
    assert taking.host.kept_user_data == {}


async def test_a_vm_whose_user_data_is_gone_is_not_booted_as_another(taking: MemoryNode) -> None:
    await vm(taking)
    assert (await taking.final("compute", "stop-vm", {"vm-id": "web", "kill": True}))["type"] == "result"
    taking.host.kept_user_data.clear()
    refused = await taking.final("compute", "start-vm", {"vm-id": "web"})
    assert refused["type"] == "error"
    assert "the user-data of the VM for cloud-init is missing" in refused["message"]


@pytest.mark.parametrize("data", ["", "a: b\n", "#cloud-config\n\0", 7, [DATA], {"text": DATA}])
async def test_what_is_no_user_data_is_refused_with_its_field_and_nothing_is_kept(
    taking: MemoryNode, data: Any
) -> None:
    refused = await vm(taking, data)
    assert (refused["code"], refused["details"]["field"]) == (400, "cloud-init"), refused
    assert taking.host.kept_user_data == {}
    assert not [each for each in await taking.events() if isinstance(each.event, VmRequested)]


@pytest.mark.parametrize("way", ["aetherscale", "credentials", "tiny", "none"])
async def test_guests_without_cloud_init_are_refused_it(taking: MemoryNode, way: str) -> None:
    await taking.final("images", "import-image", {**IMAGE, "name": "other", "first-boot": way})
    refused = await vm(taking, image="other")
    assert (refused["code"], refused["details"]["field"]) == (409, "cloud-init")
    assert refused["message"] == "guests of the image 'other' take no user-data of cloud-init at their first boot"
    assert taking.host.kept_user_data == {}


@pytest.mark.parametrize(
    ("field", "value"), [("init-script", SCRIPT), ("ssh-keys", [key()]), ("user", "joe"), ("cloud-init", DATA)]
)
async def test_who_asks_guests_that_take_nothing_is_told_what_they_would_need(
    taking: MemoryNode, field: str, value: Any
) -> None:
    await taking.final("images", "import-image", {**IMAGE, "name": "bare", "first-boot": "none"})
    refused = await taking.final("compute", "create-vm", {"image": "bare", "name": "web", field: value})
    assert (refused["code"], refused["details"]["field"]) == (409, field)
    remedy = str(refused["details"])
    assert "nothing is written into an image from outside" in remedy
    assert "need cloud-init or systemd's credentials" in remedy


def boot_of(**spec: Any) -> effects.BootVm:
    boot = given(replace(REQUESTED, spec=replace(SPEC, **spec)), DISK).pending
    assert isinstance(boot, effects.BootVm)
    return boot


def test_only_guests_with_cloud_init_get_its_disk() -> None:
    boot = boot_of(first_boot="cloud-init", cloud_init_sha256="5" * 64)
    assert (boot.by_seed, boot.gives_user_data, boot.hostname) == (True, True, "web")
    boot = boot_of(first_boot="cloud-init")
    assert (boot.by_seed, boot.gives_user_data) == (True, False)
    for way in ("credentials", "aetherscale", "tiny", "none", None):
        assert not boot_of(first_boot=way).by_seed
