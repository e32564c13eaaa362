"""Several callers at work, and kills at random: of the node, of its nats-server, of guests. Then an account of it all.

The ordinary run has a few kills; `just kills` has hundreds, drawn anew each time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from nats.errors import Error

from aetherscale.actors.compute.model.events import VmBooted, VmExited
from aetherscale.components import kinds
from aetherscale.eventstore.codec import Codec
from aetherscale.eventstore.integrity import verify
from aetherscale.eventstore.reader import LogReader
from aetherscale.eventstore.sqlite import open_access
from aetherscale.kernel.messages import Recorded
from aetherscale.kernel.registry import event_types
from tests.integration.conftest import MakeNode
from tests.support.eventually import asked_until
from tests.support.nats_client import TidyClient
from tests.support.node import PATIENCE_S, Chunk, RunningNode, guests
from tests.support.processes import nats_server_of
from tests.support.raw_images import bare_image

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]

KILLS: Final = int(os.environ.get("AETHERSCALE_RANDOM_KILLS", "12"))
SEED: Final = int(os.environ.get("AETHERSCALE_SEED", "1"))
CALLERS: Final = 4
RESTING: Final = frozenset({"running", "stopped", "failed", "deleted"})
"""Phases in which nothing is pending for a guest that never says that it is ready."""


class Caller:
    """Asks for things, each under one key until there is an answer, and keeps account."""

    def __init__(self, node: RunningNode, number: int) -> None:
        self._node, self._number = node, number
        self._chance = random.Random(SEED * 1000 + number)  # noqa: S311 - not for secrets
        self.acknowledged: set[str] = set()
        self.answers: dict[str, Chunk] = {}
        self.is_done = False

    async def work(self) -> None:
        """Make VMs and do things to them, until it is enough."""
        number = 0
        while not self.is_done:
            number += 1
            name = f"vm-{self._number}-{number}"
            policy = self._chance.choice(["never", "on-failure", "always"])
            await self.insist("create-vm", name=name, image="bare", memory_mib=64, restart=policy)
            for _ in range(self._chance.randint(0, 4)):
                task = self._chance.choice(["stop-vm", "start-vm", "list-vms"])
                options: dict[str, Any] = {} if task == "list-vms" else {"vm_id": name}
                if task == "stop-vm":
                    options["kill"] = True
                await self.insist(task, **options)
            # A guest of nothing but a boot sector keeps a processor busy: few are left.
            if self._chance.random() < 0.97:
                await self.insist("delete-vm", vm_id=name, kill=True)

    async def insist(self, task: str, component: str = "compute", **options: Any) -> Chunk:
        """Ask, and ask the same again for as long as there is no answer that lasts."""
        key = f"{self._number}-{len(self.answers)}-{task}"
        body = {name.replace("_", "-"): value for name, value in options.items()}

        async def is_answered() -> bool:
            with contextlib.suppress(Error, OSError, TimeoutError):
                async for chunk in self._asked(f"aether.v1.default.cmd.{component}.{task}", body, key):
                    if chunk["type"] == "status" and chunk["status"] != "working":
                        self.acknowledged.add(key)
                    elif chunk["type"] == "result" or (chunk["type"] == "error" and not chunk["retryable"]):
                        self.answers[key] = chunk
            return key in self.answers

        await asked_until(is_answered, PATIENCE_S)
        return self.answers[key]

    async def _asked(self, subject: str, body: Any, key: str) -> AsyncIterator[Chunk]:
        """The chunks of one reply, over a connection of its own; raises where it ends before its end."""
        context = json.loads((self._node.state_dir / "nats.json").read_text())
        client = await TidyClient.connected(
            context["url"], user=context["user"], password=context["password"], allow_reconnect=False
        )
        try:
            inbox = client.new_inbox()
            subscription = await client.subscribe(inbox)
            await client.publish(subject, json.dumps(body).encode(), reply=inbox, headers={"Nats-Msg-Id": key})
            while (message := await subscription.next_msg(10)).data:
                yield msgspec.json.decode(message.data)
        finally:
            await client.end()


class Gremlin:
    """Kills things at random moments, and remembers which guests."""

    def __init__(self, node: RunningNode) -> None:
        self._node = node
        self._chance = random.Random(SEED)  # noqa: S311 - not for secrets
        self.killed: Counter[str] = Counter()
        self.guests: set[int] = set()

    async def work(self) -> None:
        """So many kills; of the node again and again, which is started again at once."""
        while self.killed.total() < KILLS:
            await asyncio.sleep(self._chance.choice([0.0, 0.05, 0.2, 0.6]))
            match self._chance.choice(["node", "node", "broker", "guest"]):
                case "node":
                    await self._node.kill()
                    self.killed["node"] += 1
                    await self._node.start()
                case "broker":
                    if (server := nats_server_of(self._node)) is not None:
                        os.kill(server, signal.SIGKILL)
                        self.killed["broker"] += 1
                case _:
                    if live := sorted(guests(self._node.state_dir)):
                        victim = self._chance.choice(live)
                        self.guests.add(victim)
                        with contextlib.suppress(ProcessLookupError):  # it may just have gone
                            os.kill(victim, signal.SIGKILL)
                        self.killed["guest"] += 1


async def test_whatever_is_killed_under_load_nothing_is_lost_left_over_or_harmed(
    make_node: MakeNode, tmp_path: Path
) -> None:
    node = make_node()
    await node.start()
    callers = [Caller(node, number) for number in range(CALLERS)]
    image = await callers[0].insist(
        "import-image", "images", source=str(bare_image(tmp_path)), name="bare", ready="none"
    )
    assert image["type"] == "result", image

    working = [asyncio.ensure_future(caller.work()) for caller in callers]
    gremlin = Gremlin(node)
    await gremlin.work()
    for caller in callers:
        caller.is_done = True
    await asyncio.gather(*working)

    views: list[Chunk] = []

    async def at_rest() -> bool:
        chunks = await node.request("aether.v1.default.cmd.compute.list-vms", {"all": True})
        views[:] = [chunk["vm"] for chunk in chunks if chunk["type"] == "item"]
        return all(view["phase"] in RESTING for view in views)

    await asked_until(at_rest, PATIENCE_S)
    running = {view["id"] for view in views if view["observed"] == "running"}
    there = {view["id"] for view in views if view["phase"] != "deleted"}
    assert sorted(guests(node.state_dir).values()) == sorted(running)
    assert {place.name for place in (node.state_dir / "vms").iterdir()} == there
    assert await node.stop() == 0
    assert verify(node.state_dir / "events.db").problems == ()
    events = await audited(node, callers, gremlin)
    print(
        f"seed {SEED}: {gremlin.killed['node']} kills of the node, {gremlin.killed['broker']} of its broker, "
        f"{gremlin.killed['guest']} of guests; {sum(len(caller.answers) for caller in callers)} requests answered, "
        f"{events} events, {len(views)} VMs: nothing lost, nothing left over, no guest harmed"
    )


async def audited(node: RunningNode, callers: list[Caller], gremlin: Gremlin) -> int:
    """Hold what callers were told and what was killed against the log; how many events there are."""
    reader = LogReader(await open_access(node.state_dir / "events.db"), Codec(event_types(kinds())).decoding)
    try:
        events = await reader.read(0, 1_000_000)
        assert [each.seq for each in events] == list(range(1, len(events) + 1))
        for caller in callers:
            for key in {*caller.acknowledged, *caller.answers}:
                own = [each.seq for each in events if each.command_id == key]
                accepted = await reader.accepted("default", key)
                if accepted is None:
                    assert key not in caller.acknowledged, f"{key} was acknowledged and is lost"
                    assert own == [], key
                else:
                    assert own == list(range(accepted.first_seq, accepted.last_seq + 1)), f"{key} had a second effect"
        assert unwanted_ends(events) <= gremlin.guests
        return len(events)
    finally:
        await reader.close()


def unwanted_ends(events: list[Recorded] | Any) -> set[int]:
    """The processes of guests that, as the log has it, ended without anybody's wish."""
    processes: dict[tuple[str, int], int] = {}
    found = set()
    for each in events:
        if isinstance(each.event, VmBooted):
            processes[each.stream, each.event.run] = each.event.pid
        elif isinstance(each.event, VmExited) and each.event.reason in ("crash", "unknown"):
            found.add(processes[each.stream, each.event.run])
    return found
