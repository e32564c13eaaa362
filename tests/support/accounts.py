"""Accounts: events and projections for tests of folding, with nothing in them of what a node does."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct, field

from aetherscale.eventstore.codec import Codec
from aetherscale.eventstore.log import EventLog, Write
from aetherscale.eventstore.memory import MemoryLog, open_memory
from aetherscale.eventstore.projections import Projection
from aetherscale.kernel.messages import Envelope, Event, Recorded


class Paid(Event, frozen=True):
    amount: int


class Renamed(Event, frozen=True):
    name: str


class Seen(Event, frozen=True):
    pass


class Account(Struct):
    """What is kept of one stream."""

    name: str = ""
    total: int = 0
    last_seq: int = 0


class Accounts(Struct):
    """The state: mutable, so that folding does not copy it."""

    by_stream: dict[str, Account] = field(default_factory=dict)
    folded: int = 0


def apply(state: Accounts, events: Sequence[Recorded]) -> Accounts:
    for recorded in events:
        apply_one(state, recorded)
    return state


def apply_one(state: Accounts, recorded: Recorded) -> None:
    account = state.by_stream.setdefault(recorded.stream, Account())
    match recorded.event:
        case Paid(amount):
            account.total = account.total * 3 + amount
        case Renamed(name):
            account.name = name
        case _:
            raise AssertionError("a projection is given what it wants alone")
    account.last_seq = recorded.seq
    state.folded += 1


ACCOUNTS = Projection("accounts", Accounts, Accounts, apply, events=(Paid, Renamed))
SEEN = Projection("seen", int, int, lambda count, events: count + len(events))
CODEC = Codec([Paid, Renamed, Seen])


async def opened(log: MemoryLog | None = None) -> EventLog:
    return EventLog(await open_memory(log or MemoryLog("host1", "epoch1")), CODEC)


def as_loaded(replayed: tuple[Accounts, int]) -> tuple[list[Accounts], int]:
    return [replayed[0]], replayed[1]


async def write(log: EventLog, events: Sequence[Event], stream: str = "account-1") -> None:
    version = len(await log.read_stream(stream))
    envelope = Envelope(None, "default", "user:test", "command", "correlation", None, 0)
    await log.append([Write(stream, version, tuple(events))], envelope)


def some(count: int) -> list[Event]:
    return [Paid(number) if number % 3 else Seen() for number in range(1, count + 1)]
