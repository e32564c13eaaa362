"""What a component is made of: its meaning, its tasks, and how it reaches the host. One actor runs any of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from aetherscale.kernel.calls import Call
from aetherscale.kernel.decider import Decider
from aetherscale.kernel.registry import Aggregate, Kind
from aetherscale.kernel.replies import Chunk
from aetherscale.kernel.reservations import Reservation, Seen
from aetherscale.kernel.wire import Message

S = TypeVar("S")
M = TypeVar("M")


class Effect(Protocol):
    """What the actor reads of an effect; the rest is between the component and its driver."""

    @property
    def key(self) -> str:
        """Which piece of pending effects it is."""
        ...

    @property
    def not_before_us(self) -> int:
        """When it may begin; 0 for at once."""
        ...

    @property
    def deadline_s(self) -> float:
        """How long it may take."""
        ...


@dataclass(frozen=True, slots=True)
class CommandTask(Generic[M]):
    """A task that changes something.

    `target` names the aggregate, at once and in the order of arrival; `prepare` makes the command in the aggregate's
    mailbox, where what it looks up is what the decision is made on. Both may raise `Refused`.
    """

    options: type[Message]
    target: Callable[[Any, Call], str]
    prepare: Callable[[Any, Call, str], M]
    refers: Callable[[Any, Call], str] = lambda options, call: ""
    """The name or id by which an object that is there already is meant; "" for a task that makes one."""
    seen: Callable[[Any, Call, str], Sequence[Seen]] = lambda options, call, target: ()
    """What `prepare` has looked up beyond the aggregate: if it has changed by the append, the decision is made anew."""
    urgent: bool = False
    """Whether it is recorded even when the disk is full, from a reserve: what ends things is."""


@dataclass(frozen=True, slots=True)
class QueryTask:
    """A task that changes nothing: the answer is a stream of chunks, the final one included."""

    options: type[Message]
    answer: Callable[[Any, Call], AsyncIterator[Chunk]]


Progress = Callable[[Chunk], None]
"""Tell the callers who wait for an aggregate how far the work is."""


@dataclass(frozen=True, slots=True)
class Component(Generic[S, M]):
    """One component, complete."""

    name: str
    kind: Kind[S]
    decider: Decider[S, M, Any, Any]
    reservations: Callable[[S, Any], Sequence[Reservation]]
    """What an event takes or lets go, given the state after it: unique names, and uses of other objects."""
    announce: Callable[[S, Any], Chunk | None]
    """What a waiting caller is told of an event."""
    settle: Callable[[str, S], bool]
    """Whether a task has come to its end in a state; raises `Refused` for a bad end."""
    result: Callable[[Aggregate[S]], Mapping[str, Any]]
    """The fields of a result."""
    perform: Callable[[Any, Progress], Awaitable[M]]
    """Make an effect true; the answer is a message for the decider."""
    failed: Callable[[Any, str], M]
    """The message that says that an effect failed for a reason of the actor's: a time limit, a fault in the driver."""
    gate: Callable[[Any], AbstractAsyncContextManager[Any]] = lambda effect: nullcontext()
    """What an effect has to get through before it begins, and holds until it ends; its deadline does not run before."""
    commands: Mapping[str, CommandTask[M]] = field(default_factory=dict)
    queries: Mapping[str, QueryTask] = field(default_factory=dict)

    def tasks(self) -> tuple[str, ...]:
        """The names of all tasks."""
        return (*self.commands, *self.queries)
