"""The phases of an aggregate as data, for the docs: what each means, and which event leads from which to which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct


class Phase(Struct, frozen=True):
    """One phase of an aggregate."""

    shown: str
    """The word that users have for it."""
    pending: str | None
    """The effect that is pending on the host in it; None for none."""
    about: str
    """What is true of an aggregate in this phase."""


class Transition(Struct, frozen=True):
    """One event in one phase."""

    source: str | None
    """The phase before; None where the event begins a stream."""
    event: str
    target: str


class Lifecycle(Struct, frozen=True):
    """All phases and transitions of an aggregate."""

    phases: Mapping[str, Phase]
    transitions: Sequence[Transition]
    parts: Mapping[str, Sequence[str]]
    """The phases by the part of the life that they belong to; each part is a drawing of its own."""
