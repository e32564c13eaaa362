"""Several reservations in one append: a component whose aggregates hold a name and exclusive keys beside it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Literal

import pytest
from msgspec import Struct
from msgspec.structs import replace

from aetherscale.bus import refusals
from aetherscale.eventstore.codec import Codec
from aetherscale.eventstore.groupcommit import LogStore
from aetherscale.eventstore.log import EventLog
from aetherscale.eventstore.memory import MemoryBackend, MemoryLog
from aetherscale.kernel.calls import Call
from aetherscale.kernel.decider import Decider
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.identity import Identity
from aetherscale.kernel.messages import Event
from aetherscale.kernel.registry import Kind, Registry, apply
from aetherscale.kernel.replies import Chunk
from aetherscale.kernel.reservations import Holding, Name
from aetherscale.kernel.wire import Message, encode
from aetherscale.runtime.component import Command, Component, Listing, Progress, Report, World
from aetherscale.runtime.node import Node, Ports, event_types

RACES = 30


class PortMade(Event, frozen=True):
    """A port with addresses."""

    port_id: str
    name: str
    addresses: list[str]


class PortMoved(Event, frozen=True):
    """It has other addresses."""

    addresses: list[str]


class PortDeleted(Event, frozen=True):
    """It is gone."""


class Port(Struct, frozen=True):
    id: str
    name: str
    addresses: list[str]
    phase: Literal["ready", "deleted"] = "ready"


class MakeOptions(Message, frozen=True):
    name: str
    addresses: list[str]


class PortOptions(Message, frozen=True):
    port: str = ""
    addresses: list[str] = []  # noqa: RUF012 - msgspec copies it


class ListOptions(Message, frozen=True):
    all: bool = False


class View(Struct, frozen=True):
    id: str
    name: str
    phase: str
    addresses: list[str]
    revision: int


def evolve(port: Port | None, event: Any, at_us: int) -> Port:
    if isinstance(event, PortMade):
        return Port(event.port_id, event.name, event.addresses)
    assert port is not None
    return replace(port, addresses=event.addresses) if isinstance(event, PortMoved) else replace(port, phase="deleted")


def holds(port: Port) -> Sequence[Holding]:
    if port.phase == "deleted":
        return ()
    return (Name("port", port.name), *(Name("address", address) for address in port.addresses))


def require_free(world: World, tenant: str, port_id: str, addresses: Sequence[str]) -> None:
    for address in addresses:
        holder = world.named("address", tenant, address)
        if holder is not None and holder.id != port_id:
            raise Refused(Reason.CONFLICT, f"the address {address} is that of {holder.state.name}")


def make(options: MakeOptions, call: Call, port_id: str, world: World) -> Event:
    require_free(world, call.tenant, port_id, options.addresses)
    return PortMade(port_id, options.name, options.addresses)


def move(options: PortOptions, call: Call, port_id: str, world: World) -> Event:
    require_free(world, call.tenant, port_id, options.addresses)
    return PortMoved(options.addresses)


class Nothing:
    """A host on which there is nothing to do."""

    async def start(self, report: Report[Any]) -> None: ...
    async def reconcile(self, expected: Mapping[str, Any]) -> None: ...
    async def close(self) -> None: ...
    async def perform(self, effect: Any, progress: Progress) -> Any: ...


PORTS: Component[Port, Event] = Component(
    identity=Identity("ports", "port", "ports", "port", "port", "ports", "ports"),
    kind=Kind(
        "port",
        Port,
        (PortMade, PortMoved, PortDeleted),
        evolve,
        lambda port, node, revision, requested_by: View(port.id, port.name, port.phase, port.addresses, revision),
        keys=("address",),
    ),
    decider=Decider(lambda port, event, at_us: (event,), evolve, lambda port: None),
    holds=holds,
    announce=lambda port, event: None,
    failed=lambda effect, reason: PortDeleted(),
    listing=Listing(ListOptions, PortOptions),
    commands={
        "make-port": Command(MakeOptions, make, lambda port: True, creates=True),
        "move-port": Command(PortOptions, move, lambda port: True),
        "delete-port": Command(
            PortOptions, lambda options, call, port_id, world: PortDeleted(), lambda port: True, frees=True
        ),
    },
    open_driver=lambda host: Nothing(),
    open_simulated=lambda host: Nothing(),
)


class Running:
    def __init__(self, node: Node, log: EventLog) -> None:
        self.node, self.log = node, log
        self._calls = 0

    async def ask(self, task: str, **options: Any) -> Chunk:
        """The final chunk of an answer."""
        self._calls += 1
        key = f"{task}-{self._calls}-{options}"
        call = Call("default", "ports", task, encode(options), "user:test", key, False, key)
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
