"""How large a disk may be, to the byte: never smaller than the image, and exactly as large is enough."""

from __future__ import annotations

import pytest

from tests.support.memory_node import MemoryNode

GIB = 1024**3


async def node_with_an_image_of(virtual_bytes: int) -> MemoryNode:
    node = MemoryNode()
    node.images.size_bytes = virtual_bytes
    node.host.image_mib = lambda image_id: -(-virtual_bytes // 1024**2)
    await node.start()
    await node.final("images", "import-image", {"source": "/x.raw", "name": "i"})
    return node


@pytest.mark.parametrize(
    ("virtual_bytes", "disk_gib", "disk"),
    [
        (GIB, 1, 1),
        (GIB - 1, 1, 1),
        (2 * GIB, 2, 2),
        (GIB, None, 10),
        (10 * GIB, None, 10),
        (11 * GIB, None, 11),
    ],
)
async def test_a_disk_exactly_as_large_as_the_image_is_large_enough(
    virtual_bytes: int, disk_gib: int | None, disk: int
) -> None:
    node = await node_with_an_image_of(virtual_bytes)
    asked = {} if disk_gib is None else {"disk-gib": disk_gib}
    made = await node.final("compute", "create-vm", {"name": "web", "image": "i", **asked})
    assert (made["type"], made["vm"].disk_gib) == ("result", disk), made
    await node.close()


@pytest.mark.parametrize(("virtual_bytes", "disk_gib", "needs"), [(GIB + 1, 1, 1025), (2 * GIB + 1, 2, 2049)])
async def test_an_image_of_one_byte_more_is_refused_with_what_it_needs(
    virtual_bytes: int, disk_gib: int, needs: int
) -> None:
    node = await node_with_an_image_of(virtual_bytes)
    refused = await node.final("compute", "create-vm", {"name": "web", "image": "i", "disk-gib": disk_gib})
    assert (refused["code"], refused["details"]["field"]) == (400, "disk-gib")
    assert refused["message"] == f"a disk of {disk_gib} GiB is too small for the image: it needs {needs} MiB"
    assert "VmRequested" not in await node.types()
    await node.close()
