"""What tests ask of a whole node in memory about networks: made, with VMs in them, and in a phase."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.support.memory_node import PATIENCE_S, MemoryNode


async def network(node: MemoryNode, name: str = "lab", **options: Any) -> Any:
    made = await node.final("network", "create-network", {"name": name, **options})
    assert made["type"] == "result", made
    return made["network"]


async def vm(node: MemoryNode, name: str, networks: Any, **options: Any) -> Any:
    return await node.final(
        "compute", "create-vm", {"image": "i", "name": name, "virtual-network": networks, **options}
    )


async def until_phase(node: MemoryNode, kind: str, which: dict[str, str], phase: str) -> None:
    component = {"vm": "compute", "network": "network"}[kind]
    async with asyncio.timeout(PATIENCE_S):
        while (await node.final(component, f"{kind}-info", which))[kind].phase != phase:  # noqa: ASYNC110 - no event of it
            await asyncio.sleep(0.001)


async def nothing(step: str, what: str) -> None:
    """No interference."""
