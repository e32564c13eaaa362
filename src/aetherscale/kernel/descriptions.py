"""Events in words for a human: requests, their consequences, and what happened without a request.

Each kind of aggregate brings its own sentences; `why` strings them together. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Literal, TypeVar

from msgspec import Struct

from aetherscale.kernel.messages import Event

S = TypeVar("S")

Role = Literal["request", "observation", "consequence"]
"""A caller's request; an event without a request; a consequence of either."""


class Description(Struct, frozen=True):
    """An event in words, without its time. The text of a request continues after the caller's name."""

    role: Role
    text: str


def request(text: str) -> Description:
    """`text` continues after the caller's name: "asked to stop it"."""
    return Description("request", text)


def observation(text: str) -> Description:
    """A sentence of its own."""
    return Description("observation", text)


def consequence(text: str) -> Description:
    """A sentence of its own."""
    return Description("consequence", text)


class Descriptions(Struct, Generic[S], frozen=True):
    """The sentences of a kind. `describe` is given the state before the event, `summarize` the present one."""

    describe: Callable[[S | None, Any], Description]
    summarize: Callable[[S], str]


def _by_its_docstring(_: Any, event: Event) -> Description:
    first_line = (type(event).__doc__ or type(event).__name__).strip().split("\n", 1)[0]
    return consequence(first_line.rstrip("."))


PLAIN: Descriptions[Any] = Descriptions(_by_its_docstring, lambda state: "")
"""For a kind that brings no sentences: the first line of each event's documentation."""
