"""The decider: three pure functions that are all that a component's meaning consists of.

`S` is the state of one aggregate, `M` every message to it (commands, outcomes, observations), `E` its events and `F`
its effects.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

S = TypeVar("S")
M = TypeVar("M")
E = TypeVar("E")
F = TypeVar("F")


@dataclass(frozen=True, slots=True)
class Decider(Generic[S, M, E, F]):
    """The events that follow from a message, the state that follows from an event, and the effect that is pending.

    `decide(state, message, at_us)` may raise `Refused`; no events means that nothing changes.
    `evolve(state, event, at_us)` must not fail. `pending(state)` is asked after every append and every restart.
    A state of None is an aggregate that nothing has been said about yet.
    """

    decide: Callable[[S | None, M, int], Sequence[E]]
    evolve: Callable[[S | None, E, int], S]
    pending: Callable[[S], F | None]
