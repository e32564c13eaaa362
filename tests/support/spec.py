"""Specifications of deciders: `given(events).when(message).then(events)`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import pytest

from aetherscale.bus.refusals import CODES
from aetherscale.kernel.decider import Decider
from aetherscale.kernel.errors import Refused
from aetherscale.kernel.registry import Kind
from aetherscale.kernel.reservations import Holding, changes

S = TypeVar("S")
M = TypeVar("M")
E = TypeVar("E")
F = TypeVar("F")

NOON_US = 1_800_000_000_000_000
"""The moment at which everything in a specification happens unless it says otherwise."""


def reserved_by(kind: Kind[Any], holds: Callable[[Any], Sequence[Holding]], past: Sequence[Any]) -> Sequence[Any]:
    """What the last event of a past takes and lets go."""
    state: Any = None
    held: Sequence[Holding] = ()
    reserved: Sequence[Any] = ()
    for event in past:
        state = kind.evolve(state, event, NOON_US)
        before, held = held, tuple(holds(state))
        reserved = tuple(each for _, each in changes(kind.name, state.id, "default", before, held))
    return reserved


class Given(Generic[S, M, E, F]):
    """An aggregate with a past."""

    def __init__(self, decider: Decider[S, M, E, F], past: Sequence[E], at_us: int = NOON_US) -> None:
        self._decider = decider
        self._at_us = at_us
        self.state: S | None = None
        for event in past:
            self.state = decider.evolve(self.state, event, at_us)

    def when(self, message: M, *, after_s: float = 0) -> When[S, M, E, F]:
        """Say something to it, some seconds later."""
        return When(self._decider, self.state, message, self._at_us + int(after_s * 1_000_000))

    @property
    def pending(self) -> F | None:
        """What is pending on the host."""
        assert self.state is not None
        return self._decider.pending(self.state)


class When(Generic[S, M, E, F]):
    """What follows from a message."""

    def __init__(self, decider: Decider[S, M, E, F], state: S | None, message: M, at_us: int) -> None:
        self._decider, self._state, self._message, self._at_us = decider, state, message, at_us

    def then(self, *events: E) -> Given[S, M, E, F]:
        """Exactly these events follow; answers with the aggregate that has them in its past."""
        decided = tuple(self._decider.decide(self._state, self._message, self._at_us))
        assert decided == events
        return self._with(decided)

    def then_types(self, *types: type[Any]) -> Given[S, M, E, F]:
        """Events of exactly these types follow."""
        decided = tuple(self._decider.decide(self._state, self._message, self._at_us))
        assert tuple(type(event) for event in decided) == types
        return self._with(decided)

    def nothing_happens(self) -> None:
        """No event follows, and it is no error either."""
        assert tuple(self._decider.decide(self._state, self._message, self._at_us)) == ()

    def is_refused(self, code: int, words: str) -> None:
        """The caller is told so."""
        with pytest.raises(Refused) as refusal:
            self._decider.decide(self._state, self._message, self._at_us)
        assert CODES[refusal.value.reason] == code
        assert words in refusal.value.message

    def _with(self, decided: Sequence[E]) -> Given[S, M, E, F]:
        after: Given[S, M, E, F] = Given(self._decider, ())
        after.state = self._state
        after._at_us = self._at_us
        for event in decided:
            after.state = self._decider.evolve(after.state, event, self._at_us)
        return after
