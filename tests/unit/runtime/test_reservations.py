"""Several reservations in one append: a component whose aggregates hold a name and exclusive keys beside it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from aetherscale.bus import refusals
from aetherscale.eventstore.codec import Codec
from aetherscale.eventstore.groupcommit import LogStore
from aetherscale.eventstore.log import EventLog
from aetherscale.eventstore.memory import MemoryBackend, MemoryLog
from aetherscale.kernel.calls import Call
from aetherscale.kernel.errors import Refused
from aetherscale.kernel.registry import Registry, apply
from aetherscale.kernel.replies import Chunk
from aetherscale.kernel.wire import encode
from aetherscale.runtime.node import Node, Ports, event_types
from tests.support.port_component import PORTS, Nothing, Port

RACES = 30


class Running:
    def __init__(self, node: Node, log: EventLog) -> None:
        self.node, self.log = node, log
        self._calls = 0

    async def ask(self, task: str, *, tenant: str = "default", **options: Any) -> Chunk:
        """The final chunk of an answer."""
        self._calls += 1
        key = f"{task}-{self._calls}-{options}"
        call = Call(tenant, "ports", task, encode(options), "user:test", key, False, key)
        try:
            return [chunk async for chunk in self.node.serve["ports"](call)][-1]
        except Refused as refused:
            return refusals.error(refused)


async def start(world: MemoryLog) -> Running:
    log = EventLog(await LogStore.start(MemoryBackend(world)), Codec(event_types([PORTS])))
    registry: Registry[Port] = Registry()
    for recorded in await log.read(0, 1_000_000):
        apply(PORTS.kind, registry, recorded)
    node = Node([PORTS], Ports(log, {"ports": Nothing()}, lambda: 1, lambda: "id"), {"port": registry})
    await node.start()
    return Running(node, log)


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    made = await start(MemoryLog("host1", "epoch1"))
    yield made
    await made.node.close()
    await made.log.close()


async def test_all_that_an_event_takes_is_in_its_own_commit(running: Running) -> None:
    await running.ask("make-port", name="a", addresses=["10.0.0.1", "10.0.0.2"])
    recorded = await running.log.read(0, 100)
    assert [type(each.event).__name__ for each in recorded] == ["PortMade", *["NameClaimed"] * 3]
    assert len({each.command_id for each in recorded}) == 1


@pytest.mark.parametrize("shared", ["10.0.0.1", "10.0.0.9"])
async def test_of_two_that_want_one_address_at_once_exactly_one_gets_it(running: Running, shared: str) -> None:
    for number in range(RACES):
        answers = await asyncio.gather(
            running.ask("make-port", name=f"a{number}", addresses=[f"10.1.0.{number}", shared]),
            running.ask("make-port", name=f"b{number}", addresses=[shared, f"10.2.0.{number}"]),
        )
        kinds = sorted(answer["type"] for answer in answers)
        assert kinds == ["error", "result"]
        [refused] = [answer for answer in answers if answer["type"] == "error"]
        assert (refused["code"], refused["message"].split(" is ")[0]) == (409, f"the address {shared}")
        [made] = [answer for answer in answers if answer["type"] == "result"]
        await running.ask("delete-port", port=made["port-id"])


async def test_a_name_is_its_tenants_and_an_address_the_nodes(running: Running) -> None:
    for number in range(RACES):
        answers = await asyncio.gather(
            *(running.ask("make-port", tenant=tenant, name="a", addresses=["10.0.0.1"]) for tenant in ("alice", "bob"))
        )
        [refused] = [answer for answer in answers if answer["type"] == "error"]
        assert (refused["code"], refused["message"]) == (409, "the address 10.0.0.1 is that of a")
        [tenant] = [tenant for tenant, answer in zip(("alice", "bob"), answers, strict=True) if answer is not refused]
        other = {"alice": "bob", "bob": "alice"}[tenant]
        same_name = await running.ask("make-port", tenant=other, name="a", addresses=[f"10.0.1.{number}"])
        assert same_name["type"] == "result"
        for each in (tenant, other):
            assert (await running.ask("delete-port", tenant=each, port="a"))["type"] == "result"


async def test_an_address_that_is_let_go_is_free_and_the_others_stay(running: Running) -> None:
    await running.ask("make-port", name="a", addresses=["10.0.0.1", "10.0.0.2"])
    assert (await running.ask("move-port", port="a", addresses=["10.0.0.2", "10.0.0.3"]))["type"] == "result"
    events = [type(each.event).__name__ for each in (await running.log.read(0, 100))[4:]]
    assert events == ["PortMoved", "NameReleased", "NameClaimed"]
    assert (await running.ask("make-port", name="b", addresses=["10.0.0.1"]))["type"] == "result"
    refused = await running.ask("make-port", name="c", addresses=["10.0.0.3"])
    assert refused["message"] == "the address 10.0.0.3 is that of a"
    await running.ask("delete-port", port="a")
    assert (await running.ask("make-port", name="c", addresses=["10.0.0.2", "10.0.0.3"]))["type"] == "result"


async def test_what_is_held_is_held_after_a_restart() -> None:
    world = MemoryLog("host1", "epoch1")
    first = await start(world)
    await first.ask("make-port", name="a", addresses=["10.0.0.1"])
    await first.node.close()
    await first.log.close()
    world.crash()
    second = await start(world)
    refused = await second.ask("make-port", name="b", addresses=["10.0.0.1"])
    assert refused["message"] == "the address 10.0.0.1 is that of a"
    await second.node.close()
    await second.log.close()
