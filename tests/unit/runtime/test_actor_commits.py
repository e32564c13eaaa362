"""What an actor makes of events that have become durable, with a component whose work is simpler than any real one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace

import pytest
from msgspec import Struct

from aetherscale.eventstore.codec import Codec
from aetherscale.eventstore.groupcommit import LogStore
from aetherscale.eventstore.log import EventLog
from aetherscale.eventstore.memory import MemoryBackend, MemoryLog
from aetherscale.kernel.decider import Decider
from aetherscale.kernel.identity import Identity
from aetherscale.kernel.messages import Event, Recorded
from aetherscale.kernel.registry import Kind, Registry
from aetherscale.kernel.wire import Message
from aetherscale.runtime.actor import Actor
from aetherscale.runtime.component import Component, Listing, Progress, Report
from aetherscale.runtime.ontheway import OnTheWay
from aetherscale.runtime.watches import is_whole
from aetherscale.runtime.world import NodeWorld


class Counted(Event, frozen=True):
    """One more."""


class Count(Struct, frozen=True):
    """How many have been counted. Work is pending at an odd number, and it is the same work at each."""

    number: int = 0


class Options(Message, frozen=True):
    """None."""


class Effect(Struct, frozen=True):
    key: str = "work"
    not_before_us: int = 0
    deadline_s: float = 60.0


def evolve(count: Count | None, event: Counted, at_us: int) -> Count:
    return Count((count or Count()).number + 1)


class Host:
    """Where the work is done, which takes until it is let go."""

    def __init__(self) -> None:
        self.did: list[str] = []
        self.begun, self.done, self._go = asyncio.Event(), asyncio.Event(), asyncio.Event()

    def let_go(self) -> None:
        self._go.set()

    async def start(self, report: Report[str]) -> None:
        """Nothing happens by itself."""

    async def reconcile(self, expected: Mapping[str, Count]) -> None:
        """Nothing is found."""

    async def close(self) -> None:
        """Nothing is open."""

    async def perform(self, effect: Effect, progress: Progress) -> str:
        self.did.append("begun")
        self.begun.set()
        try:
            await self._go.wait()
        except asyncio.CancelledError:
            self.did.append("cancelled")
            raise
        self.did.append("done")
        self.done.set()
        return "done"


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
async def actor(host: Host) -> AsyncIterator[Actor[Count, str]]:
    component: Component[Count, str] = Component(
        identity=Identity("counting", "count", "counts", "count", "count-id", "counts", "count"),
        kind=Kind("count", Count, (Counted,), evolve, lambda count, node, revision, requested_by: count),
        decider=Decider(
            lambda count, message, at_us: (), evolve, lambda count: Effect() if count.number % 2 == 1 else None
        ),
        holds=lambda count: (),
        announce=lambda count, event: None,
        listing=Listing(Options, Options),
        commands={},
        open_driver=lambda ours: host,
        open_simulated=lambda ours: host,
    )
    store = await LogStore.start(MemoryBackend(MemoryLog("host1", "epoch1")))
    event_log = EventLog(store, Codec((Counted,)))

    def broken(failure: Exception) -> None:
        raise failure

    registry: Registry[Count] = Registry()
    world = NodeWorld("host1", [component], {"count": registry})
    running: Actor[Count, str] = Actor(
        component, registry, world, host, event_log, lambda: 0, lambda: "id", broken, OnTheWay({}, lambda: "id")
    )
    yield running
    await running.close()
    await event_log.close()


def committed(actor: Actor[Count, str], events: Sequence[Recorded]) -> None:
    """Hand over what one commit has, as a node does."""
    for index, each in enumerate(events):
        actor.committed(each, is_whole=is_whole(events, index))


def recorded(seq: int, command_id: str) -> Recorded:
    """The event that makes it `seq`."""
    return Recorded(
        seq, "count-a", seq, 0, "host1", "epoch1", "default", "user:test", command_id, "corr", None, Counted()
    )  # fmt: skip


async def test_work_that_is_owed_before_and_after_a_decision_is_not_disturbed_by_what_is_in_its_middle(
    actor: Actor[Count, str], host: Host
) -> None:
    committed(actor, [recorded(1, "first")])
    await host.begun.wait()
    committed(actor, [recorded(2, "second"), recorded(3, "second")])
    host.let_go()
    await host.done.wait()
    assert host.did == ["begun", "done"]


async def test_work_that_one_decision_takes_back_and_the_next_one_asks_for_is_begun_anew(
    actor: Actor[Count, str], host: Host
) -> None:
    committed(actor, [recorded(1, "first")])
    await host.begun.wait()
    committed(actor, [recorded(2, "second"), recorded(3, "third")])
    host.let_go()
    await host.done.wait()
    assert host.did == ["begun", "cancelled", "begun", "done"]


async def test_two_components_with_one_kind_of_key_are_refused(actor: Actor[Count, str]) -> None:
    other = replace(actor.component, kind=replace(actor.component.kind, name="other", keys=("count",)))
    registries: dict[str, Registry[Count]] = {"count": actor.registry, "other": Registry()}
    with pytest.raises(AssertionError, match="two components reserve keys of one kind"):
        NodeWorld("host1", [actor.component, other], registries)
