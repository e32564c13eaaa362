"""Callers of a node that dies: who asks again until there is an answer, and keeps account of what was told."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.support.node import PATIENCE_S, Chunk, NobodyListens, RunningNode


class Account:
    """What callers were told."""

    def __init__(self) -> None:
        self.acknowledged: set[str] = set()
        self.answers: dict[str, Chunk] = {}


async def until_answered(node: RunningNode, account: Account, key: str, task: str, options: dict[str, Any]) -> bool:
    """Ask, and where the node dies on the way start it again and ask the same; whether it died."""
    died = False
    while key not in account.answers:
        asking = asyncio.ensure_future(asked(node, account, key, task, options))
        ended = asyncio.ensure_future(node.ended())
        await asyncio.wait({asking, ended}, return_when=asyncio.FIRST_COMPLETED)
        if nobody := asking.done() and isinstance(asking.exception(), NobodyListens):
            # Its nats-server lives a moment longer than a node that was killed after its last answer.
            await asyncio.wait_for(ended, PATIENCE_S)
        if nobody or not asking.done():
            died = True
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            await node.kill()
            await started_again(node)
        else:
            asking.result()
        ended.cancel()
    return died


async def started_again(node: RunningNode) -> None:
    """From now on it does not die."""
    node.program = ("-m", "aetherscale", "serve")
    await node.start()


async def asked(node: RunningNode, account: Account, key: str, task: str, options: dict[str, Any]) -> None:
    """Ask once. A node that is ready listens, so that no question has to be asked again for want of a listener."""
    async for chunk in node.stream(f"aether.v1.default.cmd.{task}", options, Nats_Msg_Id=key):
        if chunk["type"] == "status":
            account.acknowledged.add(key)
        else:
            account.answers[key] = chunk
