"""Figures of a node at one moment, for whoever watches many nodes: what they are called, and what they were just now.

Names follow the rules of Prometheus and OpenMetrics: base units, and `_total` at the end of what only grows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from msgspec import Struct

Labels = Mapping[str, str]


class Measure(Struct, frozen=True):
    """One figure, with a value for each set of labels."""

    name: str
    """Without the prefix of this program; ends with its unit, and with `_total` where it is a counter."""
    about: str
    """What it is, in one sentence."""
    kind: Literal["counter", "gauge"]
    samples: tuple[tuple[Labels, float], ...]


def gauge(name: str, about: str, values: float | Iterable[tuple[Labels, float]]) -> Measure:
    """What goes up and down: one value, or one for each set of labels."""
    return Measure(name, about, "gauge", _samples(values))


def counter(name: str, about: str, values: float | Iterable[tuple[Labels, float]]) -> Measure:
    """What only grows until the process, or the guest, begins anew."""
    assert name.endswith("_total"), f"a counter is called …_total, not {name}"
    return Measure(name, about, "counter", _samples(values))


def _samples(values: float | Iterable[tuple[Labels, float]]) -> tuple[tuple[Labels, float], ...]:
    return (({}, float(values)),) if isinstance(values, int | float) else tuple(values)
