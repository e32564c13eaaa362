"""The benchmarks compare fairly: turns rotate, the first round counts for nothing, ratios are of one round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import report, svg
from benchmarks.harness import (
    OURS,
    Context,
    Row,
    Samples,
    Taken,
    Target,
    Turn,
    judge,
    outcome,
    percentile,
    take,
)


class Scripted:
    """Contestants who say what they are told to, and remember whose turn it was."""

    def __init__(self, **values: Sequence[float]) -> None:
        self.order: list[str] = []
        self._values = {name: iter(each) for name, each in values.items()}

    def turns(self) -> Mapping[str, Turn]:
        return {name: self._turn(name) for name in self._values}

    def _turn(self, name: str) -> Turn:
        async def turn() -> Samples:
            self.order.append(name)
            return {"ms": [next(self._values[name])]}

        return turn


def a_row(*targets: Target) -> Row:
    def nothing(_: Context) -> AbstractAsyncContextManager[Mapping[str, Turn]]:
        return nullcontext({})

    return Row("some", "something", nothing, targets)


def rounds(ours: Sequence[float], floor: Sequence[float]) -> list[dict[str, Samples]]:
    return [{OURS: {"ms": [a]}, "floor": {"ms": [b]}} for a, b in zip(ours, floor, strict=True)]


async def test_each_round_begins_with_another_contestant() -> None:
    scripted = Scripted(ours=[1] * 4, floor=[1] * 4, peer=[1] * 4)
    await take(scripted.turns(), rounds=3)
    assert scripted.order == [
        *("ours", "floor", "peer"),
        *("floor", "peer", "ours"),
        *("peer", "ours", "floor"),
        *("ours", "floor", "peer"),
    ]


async def test_the_first_round_counts_for_nothing() -> None:
    scripted = Scripted(ours=[1000, 1, 2], floor=[1000, 3, 4])
    taken = await take(scripted.turns(), rounds=2)
    assert [measured[OURS]["ms"] for measured in taken.rounds] == [[1], [2]]
    found = outcome(a_row(), taken)
    assert max(figure.p99 for figure in found.figures) == 4


async def test_the_spin_loop_runs_before_every_turn_that_counts() -> None:
    scripted = Scripted(ours=[1] * 3, floor=[1] * 3)
    taken = await take(scripted.turns(), rounds=2)
    assert len(taken.spins_ms) == 4


def test_a_ratio_is_that_of_two_figures_of_one_round() -> None:
    # The machine was ten times slower in the second round: the ratio of the medians would be 1, or anything.
    verdict = judge(Target("ms", "<=", 2, "floor"), rounds([2, 20, 3], [1, 10, 1.5]))
    assert (verdict.measured.low, verdict.measured.median, verdict.measured.high) == (2, 2, 2)
    assert verdict.met


def test_ratios_of_rounds_differ_from_the_ratio_of_medians() -> None:
    verdict = judge(Target("ms", "<=", 1, "floor"), rounds([1, 10, 100], [100, 1, 10]))
    assert verdict.measured.median == 10
    assert not verdict.met


def test_a_floor_of_another_figure_can_be_the_measure() -> None:
    measured: list[dict[str, Samples]] = [{OURS: {"ms": [6]}, "floor": {"p50 ms": [3]}}]
    verdict = judge(Target("ms", "<=", 2, "floor", "p50 ms"), measured)
    assert verdict.met
    assert verdict.limit == "≤ 2 × floor p50 ms"


@pytest.mark.parametrize(("bound", "met"), [("<=", False), (">=", True)])
def test_an_absolute_target_is_held_against_our_own_figure(bound: str, met: bool) -> None:
    target = Target("ms", "<=" if bound == "<=" else ">=", 4)
    assert judge(target, rounds([5, 5, 5], [1, 1, 1])).met is met


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(value) for value in range(1, 101)]
    assert [percentile(values, percent) for percent in (25, 50, 99, 100)] == [25, 50, 99, 100]
    assert percentile([7.0], 99) == 7


def test_a_missed_target_stands_out_in_the_table() -> None:
    row = a_row(Target("ms", "<=", 1, "floor"), Target("ms", "<=", 3, "floor"))
    text = report.table([outcome(row, Taken(rounds([2, 2], [1, 1]), [1.0, 2.0]))])
    assert "| ms ≤ 1 × floor | 2 (2 to 2) | **missed** |" in text
    assert "| ms ≤ 3 × floor | 2 (2 to 2) | met |" in text


def test_what_was_saved_is_told_again_in_one_table(tmp_path: Path) -> None:
    row = a_row(Target("ms", "<=", 1, "floor"))
    report.save([outcome(row, Taken(rounds([2, 2], [1, 1]), [1.0, 2.0]))], tmp_path)
    text = report.summary(report.load(["never-measured", "some"], tmp_path))
    assert text.splitlines()[2:] == ["| something | ms ≤ 1 × floor | 2 | 2 (2 to 2) | **missed** |"]


def test_a_plot_has_its_points_inside_of_its_axes() -> None:
    text = svg.plot("<a & b>", "x", "y", {"line": [(10, 0.5), (3000, 70)]})
    picture = ElementTree.fromstring(text)  # noqa: S314 - our own
    places = [
        (float(c.get("cx", "")), float(c.get("cy", ""))) for c in picture.iter("{http://www.w3.org/2000/svg}circle")
    ]
    assert len(places) == 2
    assert all(svg.LEFT <= x <= svg.WIDTH - svg.RIGHT and svg.TOP <= y <= svg.HEIGHT - svg.BOTTOM for x, y in places)
    assert places[0][0] < places[1][0]
    assert places[0][1] > places[1][1]
