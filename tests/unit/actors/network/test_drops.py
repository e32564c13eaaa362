"""Who watches what is dropped: one who reads slowly, and one who leaves while it begins."""

from __future__ import annotations

import asyncio

import pytest

from aetherscale.actors.network import drops
from aetherscale.actors.network.drops import WAITING, Watched
from aetherscale.actors.network.known import Known
from aetherscale.actors.network.model.views import Dropped, Frame


def dropped(number: int) -> Dropped:
    return Dropped(number, "v", "", "n", "aep0", "mac", is_inward=False, is_to_host=False, frame=Frame("", "", "arp"))


async def test_who_reads_too_slowly_loses_the_oldest() -> None:
    left: list[Watched] = []

    async def leave(watched: Watched) -> None:
        left.append(watched)

    watched = Watched(leave)
    for number in range(WAITING + 10):
        watched.put(dropped(number))
    await watched.close()
    assert [each.at_us async for each in watched] == list(range(10, WAITING + 10))
    assert left == [watched]


class NoLog:
    """In the place of the kernel's log, which a test without privileges cannot open."""

    def close(self) -> None:
        pass


async def test_who_leaves_while_it_begins_leaves_no_logging_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drops, "DropLog", NoLog)
    asked, begun = list[bool](), asyncio.Event()

    async def switch(logs: bool) -> None:
        asked.append(logs)
        if logs:
            begun.set()
            await asyncio.Event().wait()

    watching = drops.Drops(Known(), switch)
    beginning = asyncio.ensure_future(watching.watch())
    await begun.wait()
    beginning.cancel()
    await asyncio.wait({beginning})
    assert beginning.cancelled()
    assert asked == [True, False]
    assert not watching.is_watched
