"""An image of the catalogue is made on the way to a VM: once, whoever asks, and however often a request comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.memory_node import MemoryNode

VM = {"image": "debian-13", "name": "web"}
FIRST_EDITION = f"{1:064x}"
"""The SHA-256 of what the fake has published first, which is that of the file."""


@pytest.fixture
async def node() -> AsyncIterator[MemoryNode]:
    running = MemoryNode()
    await running.start()
    yield running
    await running.close()


async def of_type(node: MemoryNode, what: str) -> list[Any]:
    return [each for each in await node.events() if type(each.event).__name__ == what]


async def test_the_image_is_fetched_for_the_caller_and_the_vm_is_pinned_to_its_file(node: MemoryNode) -> None:
    made = await node.final("compute", "create-vm", VM)
    assert made["type"] == "result", made
    [imported], [vm] = await of_type(node, "ImageImportRequested"), await of_type(node, "VmRequested")
    assert (imported.actor, imported.correlation_id) == (vm.actor, vm.correlation_id)
    assert imported.causation_id == vm.command_id
    assert imported.event.catalogued
    assert imported.event.checksums.endswith("/SHA512SUMS")
    assert (vm.event.spec.image_sha256, imported.event.user) == (FIRST_EDITION, "debian")


async def test_of_many_at_once_one_fetches_it(node: MemoryNode) -> None:
    ends = await asyncio.gather(*(node.final("compute", "create-vm", {**VM, "name": f"vm-{n}"}) for n in range(20)))
    assert [end["type"] for end in ends] == ["result"] * 20
    assert len(await of_type(node, "ImageImportRequested")) == 1


async def test_a_repeat_makes_nothing_again(node: MemoryNode) -> None:
    first = await node.final("compute", "create-vm", VM, key="k")
    assert (await node.final("compute", "create-vm", VM, key="k"))["vm-id"] == first["vm-id"]
    assert len(await of_type(node, "VmRequested")) == len(await of_type(node, "ImageImportRequested")) == 1


async def test_a_failed_fetch_fails_all_who_waited_for_it_and_no_vm_is_there(node: MemoryNode) -> None:
    node.images.failures = [("the server answered 404 Not Found", False)] * 2
    ends = await asyncio.gather(*(node.final("compute", "create-vm", {**VM, "name": f"vm-{n}"}) for n in range(2)))
    assert {end["type"] for end in ends} <= {"error", "result"}
    failed = [end for end in ends if end["type"] == "error"]
    assert failed
    for end in failed:
        assert "the server answered 404 Not Found" in end["message"]
        assert end["details"]["field"] == "image"
    assert len(await of_type(node, "VmRequested")) == len(ends) - len(failed)


@pytest.mark.parametrize("image", ["debian-31", "0123456789abcdef"])
async def test_what_the_catalogue_has_not_is_missing_as_before(node: MemoryNode, image: str) -> None:
    refused = await node.final("compute", "create-vm", {**VM, "image": image})
    assert (refused["code"], refused["message"]) == (404, f"no such image: {image!r}")
    assert "image search" in refused["details"]["hint"]
    assert await node.events() == []


async def test_a_vm_that_is_refused_anyway_fetches_the_image_all_the_same_and_says_why(node: MemoryNode) -> None:
    """Whether its disk is large enough is known only then."""
    node.images.size_bytes = 20 << 30
    refused = await node.final("compute", "create-vm", {**VM, "disk-gib": 10})
    assert (refused["code"], refused["details"]["field"]) == (400, "disk-gib")
    assert await of_type(node, "VmRequested") == []


async def test_an_import_of_that_name_that_is_under_way_is_not_waited_for(node: MemoryNode) -> None:
    """It may be anything: the caller is told, as before there was a catalogue."""
    node.images.failures = [("later", True)]
    importing = asyncio.ensure_future(node.final("images", "import-image", {"source": "/x.raw", "name": "debian-13"}))
    await node.until("ImageStepFailed")
    refused = await node.final("compute", "create-vm", VM)
    assert (refused["code"], refused["retryable"]) == (409, True)
    importing.cancel()


async def test_an_update_finds_a_newer_edition_and_only_that(node: MemoryNode) -> None:
    await node.final("images", "fetch-image", {"name": "alpine", "labels": {"env": "test"}})
    same = await node.final("images", "update-image", {"image": "alpine"})
    assert same["image"].labels == {"env": "test"}
    assert len(await of_type(node, "ImageUnchanged")) == 1
    node.images.edition = 2
    newer = await node.final("images", "update-image", {"image": "alpine"})
    assert newer["image"].published == f"sha256:{2:064x}"
    assert len(await of_type(node, "ImageStored")) == 2


async def test_a_restart_takes_an_update_up_again(node: MemoryNode) -> None:
    await node.final("images", "fetch-image", {"name": "alpine"})
    node.images.edition = 2
    node.images.failures = [("the connection failed", True)]
    updating = asyncio.ensure_future(node.final("images", "update-image", {"image": "alpine"}))
    await node.until("ImageStepFailed")
    assert (await node.final("compute", "create-vm", {**VM, "image": "alpine"}))["type"] == "result"
    updating.cancel()
    await node.close()
    node.now_us += 60_000_000
    await node.start()
    # It joins what is under way, or finds it done.
    assert (await node.final("images", "update-image", {"image": "alpine"}))["type"] == "result"
    assert len(await of_type(node, "ImageStored")) == 2


async def test_a_label_has_to_fit_and_lists_are_filtered_by_it(node: MemoryNode) -> None:
    await node.final("images", "fetch-image", {"name": "alpine", "labels": {"env": "test", "os": "alpine"}})
    await node.final("images", "build-image", {"recipe": "tiny", "labels": {"env": "prod"}})
    listed = await node.ask("images", "list-images", {"labels": {"env": "test"}})
    assert [each["image"].name for each in listed if each["type"] == "item"] == ["alpine"]
    refused = await node.final("images", "fetch-image", {"name": "fedora", "labels": {"a b": "c"}})
    assert refused["code"] == 400
