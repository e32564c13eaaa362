"""Two requests at one time that cannot both be granted, and the node dies at each step on the way.

python -m tests.simulation.races

A VM is asked for and the deletion of its image, or of its network; two VMs want the last address of a network, two
tenants one prefix; or two tenants ask for ports that have an address in common, beside others of their own. In either
order: the node is killed at its first call of a port from then on, or step on the host's networks, in another run at
its second, and so on, until nothing is left to be killed. Both are repeated under their keys until they have an answer.
Whatever happened, one of them was granted and the other one refused, and the log says the same.

And a host is rebooted while a VM with ports starts, at each step of it.
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


class Rivals(NamedTuple):
    """Two requests of which one is to be granted."""

    one: Asked
    other: Asked
    has_won: Callable[[Folded], bool]
    """Whether the log says that `one` was granted, and `other` refused."""
    refusals: tuple[tuple[str, int], ...]
    before: tuple[Asked, ...] = ()
    """What is asked for, and granted, before."""


def has_image(folded: Folded) -> bool:
    return any(aggregate.state.phase == "ready" for aggregate in folded.images.aggregates.values())


def has_port_of_one(folded: Folded) -> bool:
    """Whose the only port is, and all of its addresses."""
    [port] = folded.ports.aggregates.values()
    owners = {holder.owner for holder in folded.ports.holders.values()}
    require(owners == {port.id}, f"{owners} have what is {port.id}'s")
    return port.tenant == "default"


def has_network(folded: Folded) -> bool:
    return any(aggregate.state.phase == "ready" for aggregate in folded.networks.aggregates.values())


def has_network_of_one(folded: Folded) -> bool:
    """Whose the only network is."""
    [network] = folded.networks.aggregates.values()
    return network.tenant == "default"


def has_vm_of_one(folded: Folded) -> bool:
    """Which of the two VMs there is, beside those that were there before."""
    [name] = {aggregate.state.name for aggregate in folded.aggregates()} - {each.key for each in FIRST}
    return name == "web"


LAB: Final = Asked("lab", "network", "create-network", b'{"name": "lab", "ipv4-prefix": "10.9.8.0/29"}')
DMZ: Final = Asked("dmz", "network", "create-network", b'{"name": "dmz"}')
FIRST: Final = tuple(
    Asked(name, "compute", "create-vm", b'{"name": "%s", "image": "tiny", "virtual-network": "lab"}' % name.encode())
    for name in ("first", "second", "third")
)
"""They have three of the four addresses."""
WEB: Final = Asked("web", "compute", "create-vm", b'{"name": "web", "image": "tiny", "virtual-network": "lab"}')

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
    Rivals(
        WEB,
        Asked("delete", "network", "delete-network", b'{"network": "lab"}'),
        has_network,
        (("error", 409), ("error", 404)),
        before=(LAB,),
    ),
    Rivals(
        WEB,
        Asked("db", "compute", "create-vm", b'{"name": "db", "image": "tiny", "virtual-network": "lab"}'),
        has_vm_of_one,
        (("error", 409),),
        before=(LAB, *FIRST),
    ),
    Rivals(
        LAB,
        Asked("dmz", "network", "create-network", b'{"name": "dmz", "ipv4-prefix": "10.9.8.64/26"}', tenant="other"),
        has_network_of_one,
        (("error", 409),),
    ),
)


class Run:
    """One run; `kill_after` is how many calls of ports the node has left when it is about to be seen, 0 for all.

    It dies before the last one has its effect, or after it.
    """

    def __init__(self, kill_after: int, dies_before: bool) -> None:
        self._kill_after = kill_after
        self.loop = VirtualLoop.installed()
        self.world = World(0, self.loop)
        self.script = self.world.faults = Script()
        self.script.death_comes_before = dies_before
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
        raise NotImplementedError

    async def _begin(self, *before: Asked) -> asyncio.Future[None]:
        """A node that runs, and what is granted before it may die."""
        await self.world.jetstream.start()
        node = asyncio.ensure_future(self.story.keep_running())
        await self.story.first_image()
        for asked in before:
            answer = await self._ask(2, replace(asked))
            require(answer is not None and answer["type"] == "result", f"{asked.key} was answered {answer}")
        return node

    async def _ask(self, number: int, asked: Asked, *, late_s: float | None = None) -> dict[str, object] | None:
        if late_s is not None:
            await asyncio.sleep(late_s)
        client = self.story.clients[number]
        client.asked.append(asked)
        return await client.insist(asked)


class Race(Run):
    """Two requests."""

    def __init__(self, rivals: Rivals, kill_after: int, other_first: bool, delay_s: float, dies_before: bool) -> None:
        super().__init__(kill_after, dies_before)
        self._rivals, self._other_first, self._delay_s = rivals, other_first, delay_s

    async def _play(self) -> bool:
        world, story = self.world, self.story
        node = await self._begin(*self._rivals.before)
        one, other = replace(self._rivals.one), replace(self._rivals.other)
        before = world.started
        if self._kill_after:
            world.kill_at = world.calls + self._kill_after
        answers = await asyncio.gather(
            self._ask(0, one, late_s=self._delay_s if self._other_first else None),
            self._ask(1, other, late_s=None if self._other_first else self._delay_s),
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


class Reboot(Run):
    """A VM with two ports starts, and the node dies with its host."""

    async def _play(self) -> bool:
        world = self.world
        node = await self._begin(LAB, DMZ)
        before = world.started
        self.script.reboot_at_death = True
        world.kill_at = world.calls + self._kill_after
        wanted = Asked(
            "web", "compute", "create-vm", b'{"name": "web", "image": "tiny", "virtual-network": ["lab", "dmz"]}'
        )
        answer = await self._ask(0, wanted)
        require(answer is not None and answer["type"] == "result", f"it was answered {answer}")
        died = world.started > before
        self.script.reboot_at_death = False
        self.story.make_peace()
        await self.story.converge(CONVERGES_S)
        [vm] = Folded(world).aggregates()
        taps = {port.tap for port in vm.state.ports.specs()}
        require(vm.state.shown == "ready" and len(taps) == 2, f"it is {vm.state.shown} with {taps}")
        require(world.host.live(vm.id) is not None, "it does not run")
        require(world.networks.ruled_taps == world.networks.taps.keys() == taps, f"{world.networks.taps} of {taps}")
        node.cancel()
        return died


def races() -> tuple[int, int]:
    """Play all of them: how many there were, and in how many the node died."""
    played = died = 0
    for rivals, other_first in itertools.product(RIVALS, (False, True)):
        # At one time; and so that the second comes in while the first is being written, or has been.
        for delay_s, dies_before in itertools.product((0.0, 1e-6), (False, True)):
            for kill_after in range(200):
                played += 1
                if Race(rivals, kill_after, other_first, delay_s, dies_before).play():
                    died += 1
                elif kill_after:
                    break
    for dies_before in (False, True):
        for kill_after in range(1, 200):
            played += 1
            if not Reboot(kill_after, dies_before).play():
                break
            died += 1
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
