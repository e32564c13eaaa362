"""Two requests at one time that cannot both be granted, and the node dies at each step on the way.

python -m tests.simulation.races

A VM is asked for and the deletion of its image; or two tenants ask for ports that have an address in common, beside
others of their own. In either order: the node is killed at its first call of a port from then on, in another run at its
second, and so on, until nothing is left to be killed. Both are repeated under their keys until they have an answer.
Whatever happened, one of them was granted and the other one refused, and the log says the same.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import traceback
from collections.abc import Callable
from typing import Final, NamedTuple

from msgspec.structs import replace

from tests.simulation.clients import Asked
from tests.simulation.invariants import Folded, check_log, require
from tests.simulation.loop import VirtualLoop, dispose
from tests.simulation.simulation import Complaints, Simulation
from tests.simulation.stories import Script
from tests.simulation.world import World

CONVERGES_S = 900.0
SEEDS = 3


class Rivals(NamedTuple):
    """Two requests of which one is to be granted."""

    one: Asked
    other: Asked
    has_won: Callable[[Folded], bool]
    """Whether the log says that `one` was granted, and `other` refused."""
    refusals: tuple[tuple[str, int], ...]


def has_image(folded: Folded) -> bool:
    return any(aggregate.state.phase == "ready" for aggregate in folded.images.aggregates.values())


def has_port_of_one(folded: Folded) -> bool:
    """Whose the only port is, and all of its addresses."""
    [port] = folded.ports.aggregates.values()
    owners = {holder.owner for holder in folded.ports.holders.values()}
    require(owners == {port.id}, f"{owners} have what is {port.id}'s")
    return port.tenant == "default"


RIVALS: Final = (
    Rivals(
        Asked("create", "compute", "create-vm", b'{"name": "web", "image": "tiny"}'),
        Asked("delete", "images", "delete-image", b'{"image": "tiny"}'),
        has_image,
        (("error", 409), ("error", 404)),
    ),
    Rivals(
        Asked("make", "ports", "make-port", b'{"name": "a", "addresses": ["10.0.0.1", "10.0.0.2", "10.0.0.3"]}'),
        Asked("make", "ports", "make-port", b'{"name": "b", "addresses": ["10.0.0.4", "10.0.0.3"]}', tenant="other"),
        has_port_of_one,
        (("error", 409),),
    ),
)


class Race:
    """One run; `kill_after` is how many calls of ports the node has left when both are asked, 0 for all.

    The seed draws whether it dies before the last one has its effect, or after it.
    """

    def __init__(self, rivals: Rivals, kill_after: int, other_first: bool, delay_s: float, seed: int) -> None:
        self._rivals, self._kill_after, self._other_first, self._delay_s = rivals, kill_after, other_first, delay_s
        self.loop = VirtualLoop.installed()
        self.world = World(seed, self.loop)
        self.world.faults = Script()
        self.story = Simulation(self.world, 0, 0)

    def play(self) -> bool:
        """Whether the node died on the way."""
        complaints = Complaints()
        complaints.world = self.world
        try:
            with complaints.heard():
                return self.loop.run_until_complete(self._play())
        finally:
            dispose(self.loop)

    async def _play(self) -> bool:
        world, story = self.world, self.story
        await world.jetstream.start()
        node = asyncio.ensure_future(story.keep_running())
        await story.first_image()
        one, other = replace(self._rivals.one), replace(self._rivals.other)
        before = world.started
        if self._kill_after:
            world.kill_at = world.calls + self._kill_after
        answers = await asyncio.gather(
            self._ask(0, one, late=self._other_first), self._ask(1, other, late=not self._other_first)
        )
        died = world.started > before
        told = [answer and (answer["type"], answer.get("code")) for answer in answers]
        granted = [answer is not None and answer["type"] == "result" for answer in answers]
        require(granted in ([True, False], [False, True]), f"both were answered {told}")
        require(self._rivals.has_won(Folded(world)) == granted[0], f"the log says otherwise: {told}")
        require(told[granted[0]] in self._rivals.refusals, f"refused as {told}")
        check_log(world, [one, other])
        story.make_peace()
        await story.converge(CONVERGES_S)
        node.cancel()
        return died

    async def _ask(self, number: int, asked: Asked, *, late: bool) -> dict[str, object] | None:
        if late:
            await asyncio.sleep(self._delay_s)
        client = self.story.clients[number]
        client.asked.append(asked)
        return await client.insist(asked)


def races() -> tuple[int, int]:
    """Play all of them: how many there were, and in how many the node died."""
    played = died = 0
    for rivals, other_first in itertools.product(RIVALS, (False, True)):
        # At one time; and so that the second comes in while the first is being written, or has been.
        for delay_s, seed in itertools.product((0.0, 1e-6), range(SEEDS)):
            for kill_after in range(200):
                played += 1
                if Race(rivals, kill_after, other_first, delay_s, seed).play():
                    died += 1
                elif kill_after:
                    break
    return played, died


def main() -> int:
    """Play them, and say so; 1 where something does not hold."""
    try:
        played, died = races()
    except Exception:  # noqa: BLE001 - whatever it is, it is told, and the process has to end as below
        traceback.print_exc()
        return 1
    print(f"{played} races, the node died in {died}: 0 violations")
    return 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # What was killed in the races is not unwound either: see loop.py.
    os._exit(status)
