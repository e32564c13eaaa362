"""`python -m benchmarks [ROW…]`: measure, print the table, write the JSON files."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from benchmarks import loops, report, rows
from benchmarks.harness import Context, Outcome, Row, outcome, take

RESULTS = Path(__file__).with_name("results")
QUICK_ROUNDS = 2


async def measure(row: Row, rounds: int, *, quick: bool) -> Outcome:
    """One row, in a directory that is gone afterwards."""
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="aether-bench-") as directory:
        async with row.open(Context(Path(directory), quick)) as turns:
            found = outcome(row, await take(turns, rounds))
    return msgspec.structs.replace(found, took_s=time.perf_counter() - begun, loop=loops.name())


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """What is wanted."""
    parser = argparse.ArgumentParser(prog="just bench", description="Measure aetherscale beside floors and peers.")
    parser.add_argument("rows", nargs="*", metavar="ROW", help="which rows; all where none is given")
    parser.add_argument("--list", action="store_true", help="say which rows there are")
    parser.add_argument("--quick", action="store_true", help="few rounds and smaller logs: for a look, not to quote")
    parser.add_argument("--rounds", type=int, metavar="N", help="so many rounds for each row, not its own number")
    parser.add_argument("--loop", choices=loops.LOOPS, help="the event loop of all; default: uvloop where it is there")
    parser.add_argument("--summary", action="store_true", help="measure nothing; print the targets of what was saved")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the JSON files go")
    chosen = parser.parse_args(arguments)
    known = [row.name for row in rows.ROWS]
    if unknown := [name for name in chosen.rows if name not in known]:
        parser.error(f"no such row: {', '.join(unknown)}; known: {', '.join(known)}")
    if chosen.rounds is not None and chosen.rounds < 1:
        parser.error("--rounds: at least 1")
    if chosen.loop == loops.UVLOOP and not loops.has_uvloop():
        parser.error("uvloop is not installed: pip install uvloop")
    return chosen


def main(arguments: Sequence[str]) -> int:
    """The exit status; a missed target is no failure of the program."""
    chosen = parse(arguments)
    known = {row.name: row for row in rows.ROWS}
    if chosen.list:
        for row in rows.ROWS:
            print(f"{row.name:16} {row.title}")
        return 0
    if chosen.summary:
        print(report.summary(report.load(chosen.rows or list(known), chosen.results)))
        return 0
    loops.choose(chosen.loop)
    for name in chosen.rows or known:
        rounds = chosen.rounds or (QUICK_ROUNDS if chosen.quick else known[name].rounds)
        found = [loops.run(measure(known[name], rounds, quick=chosen.quick))]
        print(report.table(found), flush=True)
        if not chosen.quick:
            report.save(found, chosen.results)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
