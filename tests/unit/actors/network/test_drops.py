"""Who watches what is dropped, and reads slowly."""

from __future__ import annotations

from aetherscale.actors.network.drops import WAITING, Watched
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
