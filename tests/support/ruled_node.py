"""A whole node in memory with two groups, `web` and `ssh`, a NAT network, `lab`, and an isolated one, `inner`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.imaged_node import IMAGE
from tests.support.memory_node import MemoryNode


@pytest.fixture
async def node() -> AsyncIterator[MemoryNode]:
    node = MemoryNode()
    await node.start()
    await node.final("images", "import-image", IMAGE)
    for name in ("web", "ssh"):
        await group(node, name)
    for name, kind in (("lab", "nat"), ("inner", "isolated")):
        made = await node.final("network", "create-network", {"name": name, "kind": kind})
        assert made["type"] == "result", made
    yield node
    await node.close()


async def group(node: MemoryNode, name: str, *rules: str) -> str:
    made = await node.final("firewall", "create-group", {"name": name, "rules": list(rules)})
    assert made["type"] == "result", made
    return str(made["group-id"])


async def vm(node: MemoryNode, name: str = "vm", network: Any = "lab", **options: Any) -> Any:
    networks = {} if network is None else {"virtual-network": network}
    return await node.final("compute", "create-vm", {"image": "i", "name": name, **networks, **options})


async def firewall(node: MemoryNode, task: str, vm: str = "vm", **options: Any) -> Any:
    given = {name.replace("_", "-"): value for name, value in options.items()}
    return await node.final("firewall", task, {"vm-id": vm, **given})


def names(answer: Any) -> list[str]:
    assert answer["type"] == "result", answer
    return [each.group for each in answer["vm"].groups]
