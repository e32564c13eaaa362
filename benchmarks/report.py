"""What was measured, as a table for people and as JSON for programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from benchmarks.harness import OURS, Outcome, Spread


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown: the figures of each row, then its targets."""
    lines: list[str] = []
    for each in outcomes:
        lines += [f"### {each.row}: {each.title}", ""]
        if each.note:
            lines += [each.note, ""]
        lines += ["| who | figure | median | p99 |", "| --- | --- | ---: | ---: |"]
        lines += [
            f"| {one.contestant} | {one.figure} | {number(one.median)} | {number(one.p99)} |" for one in each.figures
        ]
        if each.verdicts:
            lines += ["", "| target | measured (quartiles) | |", "| --- | ---: | --- |"]
        for verdict in each.verdicts:
            measured = f"{number(verdict.measured.median)} ({around(verdict.measured)})"
            lines.append(f"| {verdict.what} {verdict.limit} | {measured} | {'met' if verdict.met else '**missed**'} |")
        spun = f"Spin loop: {number(each.spin_ms.median)} ms ({around(each.spin_ms)})."
        lines += ["", f"{spun} {number(each.took_s)} s in all, on {each.loop}.", ""]
    return "\n".join(lines)


def summary(outcomes: Sequence[Outcome]) -> str:
    """Markdown: a line for each target, with our own median beside the ratio."""
    lines = ["| row | target | ours | measured (quartiles) | |", "| --- | --- | ---: | ---: | --- |"]
    for each in outcomes:
        own = {one.figure: one.median for one in each.figures if one.contestant == OURS}
        for verdict in each.verdicts:
            measured = f"{number(verdict.measured.median)} ({around(verdict.measured)})"
            met = "met" if verdict.met else "**missed**"
            what = f"{verdict.what} {verdict.limit}"
            lines.append(f"| {each.title} | {what} | {number(own[verdict.what])} | {measured} | {met} |")
    return "\n".join(lines)


def load(names: Sequence[str], directory: Path) -> list[Outcome]:
    """What was saved of these rows, as far as there is something."""
    paths = [directory / f"{name}.json" for name in names]
    return [msgspec.json.decode(path.read_bytes(), type=Outcome) for path in paths if path.exists()]


def around(found: Spread) -> str:
    """The quartiles."""
    return f"{number(found.low)} to {number(found.high)}"


def number(value: float) -> str:
    """Three digits that count; thousands with a comma."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def save(outcomes: Sequence[Outcome], directory: Path) -> list[Path]:
    """Write one JSON file for each row, which takes the place of an older one."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for each in outcomes:
        path = directory / f"{each.row}.json"
        path.write_bytes(msgspec.json.format(msgspec.json.encode(each), indent=1) + b"\n")
        paths.append(path)
    return paths
