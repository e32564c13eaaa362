"""`python -m benchmarks [ROW…]`: measure, print the table, write the JSON files."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import report, rows
from benchmarks.harness import Context, Outcome, Row, outcome, take

RESULTS = Path(__file__).with_name("results")
QUICK_ROUNDS = 3


async def measure(row: Row, *, quick: bool) -> Outcome:
    """One row, in a directory that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="aether-bench-") as directory:
        async with row.open(Context(Path(directory), quick)) as turns:
            return outcome(row, await take(turns, min(row.rounds, QUICK_ROUNDS) if quick else row.rounds))


def main(arguments: Sequence[str]) -> int:
    """The exit status; a missed target is no failure of the program."""
    parser = argparse.ArgumentParser(prog="just bench", description="Measure aetherscale beside floors and peers.")
    parser.add_argument("rows", nargs="*", metavar="ROW", help="which rows; all where none is given")
    parser.add_argument("--list", action="store_true", help="say which rows there are")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and smaller logs: for a look, not to quote")
    parser.add_argument("--summary", action="store_true", help="measure nothing; print the targets of what was saved")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the JSON files go")
    chosen = parser.parse_args(arguments)
    known = {row.name: row for row in rows.ROWS}
    if unknown := [name for name in chosen.rows if name not in known]:
        parser.error(f"no such row: {', '.join(unknown)}; known: {', '.join(known)}")
    if chosen.list:
        for row in rows.ROWS:
            print(f"{row.name:16} {row.title}")
        return 0
    if chosen.summary:
        print(report.summary(report.load(chosen.rows or list(known), chosen.results)))
        return 0
    for name in chosen.rows or known:
        found = [asyncio.run(measure(known[name], quick=chosen.quick))]
        print(report.table(found), flush=True)
        report.save(found, chosen.results)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
