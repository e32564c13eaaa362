"""A reply that is told as things happen, and is not wanted any more."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from aetherscale.actors.compute.model.commands import VmOptions
from aetherscale.runtime.narration import Narrator
from aetherscale.runtime.watches import Change

COMPONENT: Any = SimpleNamespace(
    kind=SimpleNamespace(name="vm"),
    announce=lambda state, event: None,
    commands={"create-vm": SimpleNamespace(is_done=lambda state, options: False, options=VmOptions)},
)
CALL: Any = SimpleNamespace(task="create-vm", deadline_us=None, body=b'{"vm-id":"a"}')


def vm(seq: int) -> Any:
    return SimpleNamespace(id="a", seq=seq, state=None)


@pytest.mark.parametrize("turns", range(6))
async def test_a_stop_that_comes_together_with_news_is_not_lost(turns: int) -> None:
    """Whichever turn of the loop it comes in, from the news to the moment when the next is waited for."""
    narrator: Narrator[Any] = Narrator(COMPONENT, SimpleNamespace(), lambda: 0)
    handled: Any = SimpleNamespace(own=[(None, vm(1))], after=[])
    change: Change[Any] = Change()

    async def read() -> None:
        async for _ in narrator.narrate(handled, change, CALL):
            pass

    reading = asyncio.ensure_future(read())
    for _ in range(5):
        await asyncio.sleep(0)
    change.continue_with(Change(None, vm(2)))
    for _ in range(turns):
        await asyncio.sleep(0)
    reading.cancel()
    for _ in range(20):
        await asyncio.sleep(0)
    is_over = reading.cancelled()
    reading.cancel()
    assert is_over
