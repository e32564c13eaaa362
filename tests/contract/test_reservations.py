"""The law over two components: what a VM is made of is there for as long as the VM is, whoever races with whom.

On the log in memory and on the real file.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from aetherscale.actors.compute.model import events as vms
from aetherscale.actors.compute.model.commands import VmSpec
from aetherscale.actors.compute.model.presentation import VM_KIND
from aetherscale.actors.images.model import events as images
from aetherscale.components import kinds
from aetherscale.eventstore.codec import Codec
from aetherscale.eventstore.groupcommit import LogStore
from aetherscale.eventstore.log import EventLog, Write
from aetherscale.eventstore.sqlite import open_store
from aetherscale.kernel.messages import Envelope
from aetherscale.kernel.registry import Registry, apply, event_types
from aetherscale.kernel.reservations import NameClaimed, name_stream, use_stream
from tests.support.event_logs import NOW_US
from tests.support.memory_node import MemoryNode

RACES = 50


class FileNode(MemoryNode):
    """A node whose log is the real one."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    async def open_store(self) -> LogStore:
        store = await open_store(self._path, node="host1", epoch="epoch1", now_us=NOW_US, program="0.1.0")
        assert isinstance(store, LogStore)
        return store


@pytest.fixture(params=["memory", "file"])
async def node(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[MemoryNode]:
    made = MemoryNode() if request.param == "memory" else FileNode(tmp_path / "events.db")
    await made.start()
    yield made
    await made.close()


def create(node: MemoryNode, name: str) -> Any:
    return node.final("compute", "create-vm", {"image": "tiny", "name": name})


def delete_image(node: MemoryNode) -> Any:
    return node.final("images", "delete-image", {"image": "tiny"})


async def in_use(node: MemoryNode) -> tuple[set[str], set[str]]:
    """The images that VMs are made of, and those that are there, as the log has it."""
    registries: dict[str, Registry[Any]] = {kind.name: Registry() for kind in kinds()}
    for recorded in await node.events():
        for kind in kinds():
            apply(kind, registries[kind.name], recorded)
    used = {each.state.spec.image_id for each in registries["vm"].aggregates.values() if each.state.phase != "deleted"}
    return used, {each.id for each in registries["image"].aggregates.values() if each.state.phase == "ready"}


@pytest.mark.parametrize("image_first", [False, True])
async def test_of_a_create_and_a_deletion_of_its_image_at_once_exactly_one_is_refused(
    node: MemoryNode, image_first: bool
) -> None:
    for number in range(RACES):
        await node.final("images", "build-image", {"recipe": "tiny"})
        racing = [create(node, f"vm-{number}"), delete_image(node)]
        answers = await asyncio.gather(*(reversed(racing) if image_first else racing))
        created, deleted = reversed(answers) if image_first else answers
        assert {created["type"], deleted["type"]} == {"result", "error"}, number
        refused = created if created["type"] == "error" else deleted
        assert (refused["code"], refused["retryable"]) == (409, False), refused["message"]
        used, there = await in_use(node)
        assert used <= there
        if refused is deleted:
            assert refused["details"]["used-by"] == [f"vm-{number}"]
            assert (await node.final("compute", "delete-vm", {"vm-id": f"vm-{number}"}))["type"] == "result"
            assert (await delete_image(node))["type"] == "result"
        else:
            assert "is not ready but deleting" in refused["message"]


async def test_any_number_of_vms_take_one_image_at_one_time(node: MemoryNode) -> None:
    """Shared uses do not meet one another: none is decided twice."""
    await node.final("images", "build-image", {"recipe": "tiny"})
    assert node.log is not None
    appends = 0
    append = node.log.append

    async def counted(writes: Any, envelope: Any, **more: Any) -> Any:
        nonlocal appends
        appends += type(envelope.message).__name__ == "CreateVm"
        return await append(writes, envelope, **more)

    node.log.append = counted  # type: ignore[method-assign]
    answers = await asyncio.gather(*(create(node, f"vm-{number}") for number in range(120)), delete_image(node))
    assert [answer["type"] for answer in answers] == ["result"] * 120 + ["error"]
    assert appends == 120
    assert len(answers[-1]["details"]["used-by"]) == 100


async def test_deletions_of_vms_and_of_their_image_at_once_leave_no_vm_without_its_image(node: MemoryNode) -> None:
    await node.final("images", "build-image", {"recipe": "tiny"})
    await asyncio.gather(*(create(node, f"vm-{number}") for number in range(3)))
    deleting = [node.final("compute", "delete-vm", {"vm-id": f"vm-{number}"}) for number in range(3)]
    *_, first = await asyncio.gather(*deleting, delete_image(node))
    used, there = await in_use(node)
    assert not used
    assert first["type"] == "error" or not there
    if first["type"] == "error":
        assert (await delete_image(node))["type"] == "result"


async def test_an_image_that_was_used_is_free_after_a_restart_too(node: MemoryNode) -> None:
    await node.final("images", "build-image", {"recipe": "tiny"})
    await create(node, "web")
    await node.close()
    await node.start()
    assert (await delete_image(node))["details"]["used-by"] == ["web"]
    await node.final("compute", "delete-vm", {"vm-id": "web"})
    await node.close()
    await node.start()
    assert (await delete_image(node))["type"] == "result"


# --- a log of before reservations ------------------------------------------------------------------------------------

VM = "1111111111111111"
IMAGE = "2222222222222222"
SPEC = VmSpec(
    name="web",
    image_id=IMAGE,
    image="tiny",
    image_format="raw",
    image_size_bytes=1 << 20,
    ready_channel="channel",
    cpus=1,
    memory_mib=128,
    disk_mib=10240,
    restart="never",
    autostart=False,
    labels={},
)


async def written_by_an_older_version(node: MemoryNode) -> None:
    """An image and a stopped VM, word for word as they were written before uses were recorded."""
    await node.close()
    log = EventLog(await node.open_store(), Codec(event_types(kinds())))

    async def write(*writes: Write) -> None:
        await log.append(writes, Envelope(None, "default", "user:nats", "c", "c", None, NOW_US))

    await write(
        Write(f"image-{IMAGE}", 0, (images.ImageBuildRequested(IMAGE, "tiny", "tiny"),)),
        Write(name_stream("image", "default", "tiny"), 0, (NameClaimed("image", "tiny", IMAGE),)),
    )
    await write(Write(f"image-{IMAGE}", 1, (images.ImageStored("raw", "a" * 64, 1 << 20, 1 << 20),)))
    await write(
        Write(f"vm-{VM}", 0, (vms.VmRequested(VM, SPEC),)),
        Write(name_stream("vm", "default", "web"), 0, (NameClaimed("vm", "web", VM),)),
    )
    await write(
        Write(f"vm-{VM}", 1, (vms.DiskProvisioned(10240), vms.VmBooted(1, 7, 700, "old-boot", "tcg"))),
    )
    await write(Write(f"vm-{VM}", 3, (vms.VmExited(1, "user", 0, None, "", ""), vms.VmStopRequested(True, 30.0))))
    await log.close()
    node.world.crash()
    await node.start()


async def test_a_log_of_an_older_version_protects_the_images_of_its_vms(node: MemoryNode) -> None:
    await written_by_an_older_version(node)
    refused = await delete_image(node)
    assert (refused["code"], refused["details"]["used-by"]) == (409, ["web"])
    answers = await asyncio.gather(create(node, "db"), delete_image(node))
    assert [answer["type"] for answer in answers] == ["result", "error"]
    await node.final("compute", "delete-vm", {"vm-id": "web"})
    assert (await delete_image(node))["details"]["used-by"] == ["db"]
    await node.final("compute", "delete-vm", {"vm-id": "db"})
    uses = [type(each.event).__name__ for each in await node.events() if each.stream == use_stream(images.KIND, IMAGE)]
    assert sorted(uses) == ["UseBegan", "UseEnded", "UseEnded"]
    assert (await delete_image(node))["type"] == "result"


async def test_a_log_of_an_older_version_shows_the_same_views(node: MemoryNode) -> None:
    await written_by_an_older_version(node)
    shown = (await node.final("compute", "vm-info", {"vm-id": "web"}))["vm"]
    registry: Registry[Any] = Registry()
    for recorded in await node.events():
        apply(VM_KIND, registry, recorded)
    [aggregate] = registry.aggregates.values()
    assert shown == VM_KIND.view(aggregate.state, "host1", 5, aggregate.requested_by)
    assert (shown.phase, shown.revision, shown.exit.reason) == ("stopped", 5, "user")
