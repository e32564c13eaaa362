"""The simulated node, driven by hypothesis: what fails is shrunk to the shortest story that still does.

python -m tests.simulation.stories [N]      N new stories; without it 60 that are always the same

The seeds of `just sim` find more; this tells it shorter.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.simulation.clients import NAMES, Asked
from tests.simulation.faults import Faults, LogTrouble, Trouble
from tests.simulation.invariants import check_log, require
from tests.simulation.loop import VirtualLoop, dispose
from tests.simulation.simulation import Complaints, Simulation
from tests.simulation.world import World

ALWAYS: Final = 60
"""Stories that are the same in every run."""
STEPS: Final = 30
CONVERGES_S: Final = 900.0
"""Everything hangs at most once here."""

TOLD: Final = Counter[str]()

MOMENTS = st.sampled_from([0.0, 0.01, 0.5, 3.0, 40.0, 400.0])
PREFIXES = st.sampled_from(["10.9.8.0/29", "10.9.8.0/28", "none"])
TASKS = st.sampled_from(["create-vm", "start-vm", "stop-vm", "kill-vm", "restart-vm", "delete-vm"])


class Script(Faults):
    """Nothing goes wrong but what is asked for, once each."""

    def __init__(self) -> None:
        super().__init__(random.Random(0))  # noqa: S311 - a story has to be repeatable
        self.active = False
        self.troubles: list[Trouble] = []
        self.log_troubles: list[LogTrouble] = []
        self.lost_answers: list[bool] = []
        self.reboot_at_death = False
        self.death_comes_before: bool | None = None
        """Whether the process dies before its last call has its effect; None for a draw."""

    def trouble(self, effect: str) -> Trouble | None:
        return self.troubles.pop() if self.troubles else None

    def trouble_of_network(self, step: str) -> Trouble | None:
        return self.trouble(step)

    def dies_before(self) -> bool:
        return super().dies_before() if self.death_comes_before is None else self.death_comes_before

    def reboots(self) -> bool:
        return self.reboot_at_death

    def loses_answer(self) -> bool:
        return self.lost_answers.pop() if self.lost_answers else False

    def log_trouble(self) -> LogTrouble | None:
        return self.log_troubles.pop() if self.log_troubles else None


class Node(RuleBasedStateMachine):
    """A story of a node: what callers ask for, and what befalls it."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop.installed()
        self.world = World(0, self.loop)
        self.script = self.world.faults = Script()
        self.complaints = Complaints()
        self.complaints.world = self.world
        self.listening = self.complaints.heard()
        self.listening.__enter__()
        self.story = Simulation(self.world, 0, 0)
        self.client = self.story.clients[0]
        self.asking: list[asyncio.Future[Any]] = []
        self.running: asyncio.Future[Any] | None = None

    @initialize()
    def begin(self) -> None:
        async def begin() -> None:
            await self.world.jetstream.start()
            self.running = asyncio.ensure_future(self.story.keep_running())
            await self.story.first_image()
            await self.client.insist(self._wish("create-network", name="lab", **{"ipv4-prefix": "10.9.8.0/29"}))
            await self.client.insist(self._wish("create-vm", name="web", image="tiny", restart="on-failure"))

        self.loop.run_until_complete(begin())

    # --- what callers do ---------------------------------------------------------------------------------------------

    @rule(task=TASKS, name=st.sampled_from(NAMES[:2]), policy=st.sampled_from(["always", "on-failure", "never"]))
    def ask(self, task: str, name: str, policy: str) -> None:
        """Somebody asks for something, and again until there is an answer."""
        match task:
            case "create-vm":
                self._insist(self._wish(task, name=name, image="tiny", restart=policy))
            case "kill-vm":
                self._insist(self._wish("stop-vm", **{"vm-id": name}, kill=True))
            case _:
                self._insist(self._wish(task, **{"vm-id": name}))

    @rule(
        task=st.sampled_from(["create-network", "create-vm", "delete-network"]),
        name=st.sampled_from(["lab", "dmz"]),
        prefix=PREFIXES,
    )
    def ask_of_networks(self, task: str, name: str, prefix: str) -> None:
        """Somebody asks for a network, for a VM in it, or for its deletion."""
        match task:
            case "create-network":
                self._insist(self._wish(task, name=name, **{"ipv4-prefix": prefix}))
            case "create-vm":
                self._insist(self._wish(task, name="db", image="tiny", **{"virtual-network": name}))
            case _:
                self._insist(self._wish(task, network=name))

    @precondition(lambda self: self.client.asked)
    @rule(which=st.integers(0, 30))
    def repeat(self, which: int) -> None:
        """Somebody asks the same again."""
        self._insist(self.client.asked[which % len(self.client.asked)])

    @rule(seconds=MOMENTS)
    def wait(self, seconds: float) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))

    # --- what befalls the node ---------------------------------------------------------------------------------------

    @precondition(lambda self: self.world.process)
    @rule(calls=st.integers(1, 25))
    def die_soon(self, calls: int) -> None:
        """SIGKILL at one of the next calls of a port."""
        self.world.kill_at = self.world.calls + calls

    @precondition(lambda self: self.world.process)
    @rule(calls=st.integers(1, 4))
    def die_at_once(self, calls: int) -> None:
        """SIGKILL at one of the very next calls of a port."""
        self.die_soon(calls)

    @rule()
    def die(self) -> None:
        """SIGKILL now."""
        self._do(lambda: self.world.kill("now"))

    @rule()
    def reboot(self) -> None:
        """The host goes down and comes back."""
        self._do(lambda: self.world.kill("with its host"))
        self._do(self.world.reboot)

    @rule(trouble=st.sampled_from(["hang", "fail", "refuse"]))
    def next_effect(self, trouble: Trouble) -> None:
        self.script.troubles.append(trouble)

    @rule()
    def next_answer(self) -> None:
        """The next effect is done, and told as failed."""
        self.script.lost_answers.append(True)

    @rule(trouble=st.sampled_from(["in doubt, kept", "in doubt, lost"]))
    def next_commit(self, trouble: LogTrouble) -> None:
        self.script.log_troubles.append(trouble)

    @rule()
    def fill_or_clear_the_disk(self) -> None:
        self.world.log.full = not self.world.log.full

    @rule()
    def cut_or_mend_the_broker(self) -> None:
        broker = self.world.broker
        self._do(broker.down if broker.is_up else broker.up)

    @rule(what=st.sampled_from(["kill", "power off", "panic", "pause", "resume"]), which=st.integers(0, 1))
    def guest(self, what: str, which: int) -> None:
        """Something happens in a guest."""
        live = [process for vm_id in self.world.host.processes if (process := self.world.host.live(vm_id))]
        if len(live) <= which:
            return
        process = live[which]

        def happen() -> None:
            match what:
                case "kill":
                    process.die(None, 9)
                case "power off" if process.is_running:
                    process.end_guest("shutdown")
                case "panic" if process.is_running:
                    process.end_guest("panic")
                case "pause" if process.is_running:
                    process.pause("disk")
                case "resume" if process.paused:
                    process.resume()

        self._do(happen)

    @rule()
    def orphan(self) -> None:
        """Somebody leaves something in the node's place."""
        self._do(self.world.host.gets_an_orphan)

    @precondition(lambda self: self.world.networks.bridges)
    @rule()
    def take_a_bridge(self) -> None:
        """Somebody removes a bridge."""
        self._do(lambda: self.world.networks.takes_bridge(min(self.world.networks.bridges)))

    @rule()
    def flush_the_rules(self) -> None:
        """Somebody removes all rules."""
        self._do(self.world.networks.takes_all_rules)

    @precondition(lambda self: self.world.networks.taps)
    @rule()
    def take_a_tap(self) -> None:
        """Somebody removes a tap."""
        self._do(lambda: self.world.networks.takes_tap(min(self.world.networks.taps)))

    # --- what has to hold --------------------------------------------------------------------------------------------

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        check_log(self.world, self.client.asked)
        self.world.networks.check()
        require(not self.world.mistake, f"the node made a mistake: {self.world.mistake}")
        if self.running is not None and self.running.done():
            self.running.result()

    def teardown(self) -> None:
        """Nothing goes wrong any more; everything comes right."""
        TOLD["deaths"] += self.world.started
        TOLD["events"] += len(self.world.log.events)
        try:
            if self.running is not None:
                self.script.troubles.clear()
                self.script.log_troubles.clear()
                self.script.lost_answers.clear()
                self.loop.run_until_complete(self._end(self.running))
        finally:
            self.listening.__exit__(None, None, None)
            dispose(self.loop)

    async def _end(self, running: asyncio.Future[Any]) -> None:
        self.story.make_peace()
        for each in asyncio.as_completed(self.asking):
            await each
        await self.story.converge(CONVERGES_S)
        running.cancel()

    def _wish(self, task: str, **options: Any) -> Asked:
        component = "network" if task.endswith("-network") else "compute"
        asked = Asked(f"key-{len(self.client.asked)}", component, task, msgspec.json.encode(options))
        self.client.asked.append(asked)
        return asked

    def _insist(self, asked: Asked) -> None:
        self._do(lambda: self.asking.append(asyncio.ensure_future(self.client.insist(asked))))

    def _do(self, what: Callable[[], object]) -> None:
        """Do it as part of the world, within its loop."""

        async def work() -> None:
            what()

        self.loop.run_until_complete(work())


def a_stop_comes_with_the_news(node: Node) -> None:
    """Who waited for the news waited on for ever, and so did the node's end."""
    for _ in range(3):
        node.cut_or_mend_the_broker()
    node.ask(name="web", policy="always", task="create-vm")
    node.ask(name="web", policy="always", task="kill-vm")
    for _ in range(3):
        node.cut_or_mend_the_broker()
    node.repeat(which=3)
    for _ in range(2):
        node.cut_or_mend_the_broker()
    node.next_commit(trouble="in doubt, kept")
    node.cut_or_mend_the_broker()


KNOWN: Final = (a_stop_comes_with_the_news,)
"""Stories that ended badly once: told again each time."""


def tell_again() -> None:
    """The known stories, to their ends."""
    for story in KNOWN:
        node = Node()
        node.begin()
        story(node)
        node.teardown()


def main(arguments: Sequence[str]) -> int:
    """Play stories; 1 where one has a bad end."""
    wanted = int(arguments[0]) if arguments else 0
    plan = settings(
        max_examples=wanted or ALWAYS,
        stateful_step_count=STEPS,
        derandomize=not wanted,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    try:
        tell_again()
        run_state_machine_as_test(Node, settings=plan)
    except Exception:  # noqa: BLE001 - whatever it is, it is told, and the process has to end as below
        traceback.print_exc()
        return 1
    print(f"{plan.max_examples:,} stories, {TOLD['deaths']:,} deaths, {TOLD['events']:,} events: 0 violations")
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # What was killed in the stories is not unwound either: see loop.py.
    os._exit(status)
