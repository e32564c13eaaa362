"""How things are compared: contestants take turns in the same run, and what is quoted is the ratio of each turn.

A machine that others use is slow one moment and quick the next, but for all who are measured in that moment alike. So
a round measures every contestant once, the rounds begin with another one each, the first round warms up and counts for
nothing, and a ratio is that of two figures of one round. It does not know what is measured.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from msgspec import Struct

OURS: Final = "ours"
SPIN_STEPS: Final = 100_000

Samples = Mapping[str, Sequence[float]]
"""What one turn has measured: the values of each figure."""
Turn = Callable[[], Awaitable[Samples]]
Clock = Callable[[], float]
Bound = Literal["<=", ">="]


@dataclass(frozen=True, slots=True)
class Context:
    """What a row may use: a directory of its own, and whether it should hurry."""

    directory: Path
    quick: bool = False


Opening = Callable[[Context], AbstractAsyncContextManager[Mapping[str, Turn]]]
"""Sets the scene; the contestants by name, `OURS` among them."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure of ours should be: absolutely, or beside another contestant's figure of the same round."""

    figure: str
    bound: Bound
    limit: float
    versus: str = ""
    versus_figure: str = ""
    """The other's figure; "" for the same one."""
    more: bool = False
    """Whether it is held by how much more ours is, not by how many times."""


@dataclass(frozen=True, slots=True)
class Row:
    """Something to be measured. `rounds` are those that count; `note` says what a reader has to know.

    `peers` may not be installed: the row is measured without them then, and says so.
    """

    name: str
    title: str
    open: Opening
    targets: tuple[Target, ...] = ()
    rounds: int = 7
    note: str = ""
    peers: tuple[str, ...] = ()


class Spread(Struct, frozen=True):
    """The middle of several values, and the quarters around it."""

    median: float
    low: float
    high: float


class Figure(Struct, frozen=True):
    """A figure of one contestant over all rounds."""

    contestant: str
    figure: str
    median: float
    p99: float
    rounds: list[float]
    """The median of each round, in order."""


class Verdict(Struct, frozen=True):
    """A target, and what became of it."""

    what: str
    limit: str
    measured: Spread
    met: bool


class Outcome(Struct, frozen=True):
    """All that one row has shown.

    `spin_ms` is what a fixed loop took between the turns: how quiet the machine was. `took_s` is all of it, with what
    was set up; `loop` is the event loop that it ran on.
    """

    row: str
    title: str
    note: str
    figures: list[Figure]
    verdicts: list[Verdict]
    spin_ms: Spread
    took_s: float = 0.0
    loop: str = "asyncio"


@dataclass(slots=True)
class Taken:
    """What the rounds that count have given: for each contestant and figure, the values of each round."""

    rounds: list[dict[str, Samples]] = field(default_factory=list)
    spins_ms: list[float] = field(default_factory=list)


async def take(turns: Mapping[str, Turn], rounds: int, clock: Clock = time.perf_counter) -> Taken:
    """Let the contestants take turns, one round more than counts; the first is dropped."""
    taken = Taken()
    names = list(turns)
    for number in range(rounds + 1):
        begin = number % len(names)
        measured: dict[str, Samples] = {}
        for name in names[begin:] + names[:begin]:
            spin_ms = spin(clock)
            measured[name] = await turns[name]()
            if number:
                taken.spins_ms.append(spin_ms)
        if number:
            taken.rounds.append(measured)
    return taken


def spin(clock: Clock = time.perf_counter) -> float:
    """Milliseconds for a loop that does nothing."""
    begun = clock()
    for _ in range(SPIN_STEPS):
        pass
    return (clock() - begun) * 1000


def outcome(row: Row, taken: Taken) -> Outcome:
    """The figures of a row, and whether its targets are met."""
    figures = []
    for name in dict.fromkeys(name for measured in taken.rounds for name in measured):
        for figure in dict.fromkeys(figure for measured in taken.rounds for figure in measured[name]):
            medians = [statistics.median(measured[name][figure]) for measured in taken.rounds]
            pooled = [value for measured in taken.rounds for value in measured[name][figure]]
            figures.append(Figure(name, figure, statistics.median(medians), percentile(pooled, 99), medians))
    here = {figure.contestant for figure in figures}
    absent = [peer for peer in row.peers if peer not in here]
    verdicts = [judge(target, taken.rounds) for target in row.targets if target.versus not in absent]
    notes = [row.note, *(f"{peer} is not installed here: no figures of it." for peer in absent)]
    return Outcome(row.name, row.title, " ".join(filter(None, notes)), figures, verdicts, spread(taken.spins_ms))


def judge(target: Target, rounds: Sequence[Mapping[str, Samples]]) -> Verdict:
    """A target held against the rounds: the median of the values, or of the ratios or differences in each round."""
    other = target.versus_figure or target.figure
    values = []
    for measured in rounds:
        value = statistics.median(measured[OURS][target.figure])
        if target.versus:
            reference = statistics.median(measured[target.versus][other])
            value = value - reference if target.more else value / reference
        values.append(value)
    found = spread(values)
    met = found.median <= target.limit if target.bound == "<=" else found.median >= target.limit
    sign = "≤" if target.bound == "<=" else "≥"
    beside = (f" more than {target.versus}" if target.more else f" × {target.versus}") if target.versus else ""
    of = f" {other}" if target.versus and other != target.figure else ""
    return Verdict(target.figure, f"{sign} {target.limit:g}{beside}{of}", found, met)


def spread(values: Sequence[float]) -> Spread:
    """The median and the quartiles."""
    return Spread(statistics.median(values), percentile(values, 25), percentile(values, 75))


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that so many per cent of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]
