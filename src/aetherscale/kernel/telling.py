"""How events are told to a human: who asked, what came of it, what happened of itself.

Each kind of entity brings its own sentences; whoever explains a state strings them together. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Literal, TypeVar

from msgspec import Struct

from aetherscale.kernel.messages import Event

S = TypeVar("S")

Role = Literal["request", "turn", "answer"]
"""Somebody asked for something; something happened that nobody had asked for; what came of either."""


class Told(Struct, frozen=True):
    """An event in words, without its time. The text of a request goes on after the name of whoever asked."""

    role: Role
    text: str


def request(text: str) -> Told:
    """`text` goes on after the asker's name: "asked to stop it"."""
    return Told("request", text)


def turn(text: str) -> Told:
    """A sentence of its own."""
    return Told("turn", text)


def answer(text: str) -> Told:
    """A sentence of its own."""
    return Told("answer", text)


class Telling(Struct, Generic[S], frozen=True):
    """The sentences of a kind. `tell` is given the state before the event, `sum_up` the present one."""

    tell: Callable[[S | None, Any], Told]
    sum_up: Callable[[S], str]


def _by_its_docstring(_: Any, event: Event) -> Told:
    first_line = (type(event).__doc__ or type(event).__name__).strip().split("\n", 1)[0]
    return answer(first_line.rstrip("."))


PLAIN: Telling[Any] = Telling(_by_its_docstring, lambda state: "")
"""For a kind that brings no sentences: the first line of each event's documentation."""
