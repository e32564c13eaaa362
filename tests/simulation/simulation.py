"""One run: a node on a world, callers, faults, and many deaths; then peace, in which everything has to come right.

start ─▶ work, die in the middle ─▶ start … ─▶ no more faults ─▶ everything converges ─▶ all invariants
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from aetherscale.bus.bus import BusUnavailable, NoResponders
from aetherscale.eventstore.store import StoreError
from aetherscale.runtime.app import running
from aetherscale.settings import Settings
from tests.simulation import catalogued
from tests.simulation.clients import GROUPS, Asked, Client
from tests.simulation.groups import check_groups
from tests.simulation.hotports import PortClient
from tests.simulation.invariants import STREAM, Folded, check_host, check_list, check_log, check_stream, require
from tests.simulation.invariants_of_networks import check_networks
from tests.simulation.loop import PROCESS, Stuck, VirtualLoop, run
from tests.simulation.ports import SimulatedPlatform
from tests.simulation.world import COMPONENTS, NODE, Violation, World

CLIENTS: Final = 3
REQUESTS: Final = 8
"""Of each client, between two looks whether there were deaths enough."""
CONVERGES_S: Final = 3 * 3600.0
"""How long everything may take to come right once nothing goes wrong any more: images may hang for an hour."""
MOST_TASKS: Final = 400
SETTINGS: Final = Settings(state_dir=Path("/simulated"), node=NODE)


class Failed(Exception):
    """A run in which something did not hold, with its trace."""


class Ran(Struct, frozen=True):
    """What a run was: how often the node died and was started again, and how much it did."""

    seed: int
    deaths: int
    events: int
    steps: int
    virtual_s: float
    catalogued: Mapping[str, int]
    """How much there was of images of the catalogue and of keys."""


def simulate(seed: int, deaths: int = 20) -> Ran:
    """Run a seed until the node has died so often. Raises `Failed`."""
    complaints = Complaints()
    worlds: list[World] = []

    async def main() -> Ran:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        world = World(seed, loop)
        worlds.append(world)
        complaints.world = world
        return await Simulation(world, seed, deaths).play()

    with complaints.heard():
        try:
            return run(main())
        except (Violation, Stuck, AssertionError) as failure:
            trace = "\n".join(worlds[0].trace[-120:]) if worlds else ""
            raise Failed(f"seed {seed}: {type(failure).__name__}: {failure}\n{trace}") from failure


class Complaints(logging.Handler):
    """What a node logs as an error of its own is a violation too: it should not make mistakes, whatever happens."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.world: World | None = None

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Listen, and keep it from being printed."""
        logger = logging.getLogger("aetherscale")
        logger.addHandler(self)
        logger.propagate = False
        try:
            yield
        finally:
            logger.propagate = True
            logger.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Remember the first one that is a mistake; what a human has to know is none."""
        if self.world is not None and (record.exc_info or record.name.endswith(".effects")):
            cause = f": {record.exc_info[1]!r}" if record.exc_info else ""
            self.world.mistake = self.world.mistake or f"{record.getMessage()}{cause}"
            self.world.note(f"MISTAKE {record.getMessage()}{cause}")


class Simulation:
    """The course of a run."""

    def __init__(self, world: World, seed: int, deaths: int) -> None:
        self._world, self._seed, self._wanted = world, seed, deaths
        self.clients = [*(Client(world, number) for number in range(CLIENTS)), PortClient(world, CLIENTS)]
        self._deaths = 0
        self._fault: BaseException | None = None

    async def play(self) -> Ran:
        world = self._world
        await world.jetstream.start()
        node = asyncio.ensure_future(self.keep_running())
        self._gremlin = gremlin = asyncio.ensure_future(self._meddle())
        try:
            await self._beside(node, self.first_image())
            await self._beside(node, self.first_network())
            await self._beside(node, self.first_groups())
            while self._deaths < self._wanted:
                before = self._deaths
                await self._beside(node, asyncio.gather(*(client.work(REQUESTS) for client in self.clients)))
                if before == self._deaths:
                    world.kill("since nothing else has")
            gremlin.cancel()
            self.make_peace()
            await self._beside(node, self.converge())
        finally:
            for task in (node, gremlin):
                task.cancel()
            await asyncio.gather(node, gremlin, return_exceptions=True)
        events = world.log.events
        return Ran(
            self._seed, self._deaths, len(events), world.loop.steps, world.loop.time(), catalogued.counted(events)
        )

    async def _beside(self, node: asyncio.Future[Any], work: Any) -> None:
        """Do it while the node is kept running; whatever breaks either ends both."""
        working = asyncio.ensure_future(work)
        watched = {node, working} | ({self._gremlin} if not self._gremlin.cancelling() else set())
        await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
        for each in watched - {working}:
            if each.done():
                working.cancel()
                each.result()
        await working

    # --- the node ------------------------------------------------------------------------------------------------

    async def keep_running(self) -> None:
        """What a service manager does: start it whenever it has ended."""
        world = self._world
        while True:
            number = world.begin_process()
            process = asyncio.ensure_future(self._process(number))
            killed = asyncio.ensure_future(world.killed.wait())
            await asyncio.wait({process, killed}, return_when=asyncio.FIRST_COMPLETED)
            killed.cancel()
            if process.done():
                # It ended by itself: tidily, or since its log is in doubt. Anything else is a fault of ours.
                process.result()
                world.kill("of what is left of it")
            self._deaths += 1
            check_log(world, [asked for client in self.clients for asked in client.asked])
            world.networks.check()
            require(not world.mistake, f"the node made a mistake: {world.mistake}")
            if world.faults.reboots():
                world.reboot()
            await asyncio.sleep(world.chance.choice([0.0, 0.1, 3.0]))

    async def _process(self, number: int) -> None:
        """One process of the node, until it is killed, told to stop, or cannot trust its log."""
        world = self._world
        PROCESS.set(number)
        task = asyncio.current_task()
        assert task is not None
        world.loop.tasks.setdefault(number, set()).add(task)
        lives_s = world.faults.lives_s()
        try:
            async with running(COMPONENTS, SETTINGS, SimulatedPlatform(world, number)) as (node, _):
                world.note("the node is ready")
                if lives_s is None:
                    await node.broken
                else:
                    await asyncio.wait({node.broken}, timeout=lives_s)
                world.note("the node stops")
        except StoreError as failure:
            world.note(f"the node ends: {failure}")

    # --- the world -----------------------------------------------------------------------------------------------

    async def _meddle(self) -> None:
        """What happens of itself: outages, full disks, killed guests, a stream that somebody deletes."""
        world, chance = self._world, self._world.chance
        while True:
            await asyncio.sleep(chance.choice([0.3, 2.0, 11.0, 45.0]))
            if len(world.loop.tasks.get(world.process, ())) > MOST_TASKS:
                raise Violation(f"{len(world.loop.tasks[world.process])} tasks")
            if world.faults.outage():
                world.note("the broker is down")
                world.broker.down()
                await asyncio.sleep(chance.choice([0.1, 5.0, 100.0]))
                if world.faults.happens(0.3):
                    world.jetstream.lose_newest(STREAM, chance.randint(1, 5))
                world.note("the broker is back")
                world.broker.up()
            if world.faults.happens(0.05):
                world.jetstream.streams.pop(STREAM, None)
            if world.faults.happens(0.1):
                world.log.full = not world.log.full
                world.note(f"the disk is {'full' if world.log.full else 'no longer full'}")
            if world.faults.happens(0.1):
                world.kill("at some moment")
            if world.faults.active and (step_s := world.clock.may_be_set()):
                world.note(f"the clock is set by {step_s:g} s")
            if world.faults.happens(0.12):
                world.networks.meddle()
            self._meddle_with_guests()
            world.networks.check()

    def _meddle_with_guests(self) -> None:
        world, chance = self._world, self._world.chance
        if world.faults.happens(0.05):
            world.host.gets_an_orphan()
        live = [process for vm_id in world.host.processes if (process := world.host.live(vm_id))]
        if live and world.faults.happens(0.1):
            victim = chance.choice(live)
            match chance.choice(["kill", "pause", "resume"]):
                case "kill":
                    victim.die(None, 9)
                case "pause" if victim.is_running:
                    victim.pause("disk")
                case "resume" if victim.paused:
                    victim.resume()

    async def first_image(self) -> None:
        """Something to make VMs of; what is left of an import that failed for good is taken away before the next."""
        client = self.clients[0]
        asked = client.import_of("tiny")
        while (answer := await client.insist(asked)) is None or answer["type"] != "result":
            if answer is not None:  # no answer is no failure: the same is asked again
                await client.insist(client.removal_of("tiny"))
                asked = client.import_of("tiny")

    async def first_network(self) -> None:
        """Something for VMs to be in, where the host can make it."""
        client = self.clients[0]
        wanted = Asked(
            "lab", "network", "create-network", b'{"name": "lab", "kind": "nat", "ipv4-prefix": "10.9.8.0/28"}'
        )
        client.asked.append(wanted)
        await client.insist(wanted)

    async def first_groups(self) -> None:
        """Something for VMs to bear."""
        client = self.clients[0]
        for name in GROUPS:
            wanted = Asked(f"group-{name}", "firewall", "create-group", msgspec.json.encode({"name": name}))
            client.asked.append(wanted)
            await client.insist(wanted)

    def make_peace(self) -> None:
        """Nothing goes wrong any more."""
        world = self._world
        world.note("peace")
        world.faults.active = False
        world.kill_at = 0
        world.log.full = False
        if not world.broker.is_up:
            world.broker.up()
        for vm_id in world.host.processes:
            if (process := world.host.live(vm_id)) and process.paused:
                process.resume()

    async def converge(self, within_s: float = CONVERGES_S) -> None:
        """Everything comes right, in bounded time; then everything is looked at."""
        world, begun_s = self._world, self._world.loop.time()
        asked = [each for client in self.clients for each in client.asked]
        wrong: BaseException | str = ""
        while True:
            await asyncio.sleep(5.0)
            folded = Folded(world)
            if not (wrong := ", ".join(folded.pending())):
                try:
                    check_host(world, folded)
                    check_networks(world, folded)
                    check_groups(world, folded)
                    check_stream(world)
                    client = self.clients[0]
                    lists = (client.list_all, client.list_images, client.list_networks, client.list_groups)
                    check_list(world, *[await each() for each in lists])
                except (Violation, BusUnavailable, NoResponders, TimeoutError) as violation:
                    wrong = violation
                else:
                    break
            if world.loop.time() - begun_s > within_s:
                raise Violation(f"after {within_s:.0f} s of peace: {wrong}")
        check_log(world, asked)
        require(not world.mistake, f"the node made a mistake: {world.mistake}")
        for client in self.clients:
            for each in client.asked:
                if each.answer is not None:
                    await client.insist(each)
        check_log(world, asked)
