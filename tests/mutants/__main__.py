"""Changes the code one small step at a time, and says which changes no test has seen.

    python -m tests.mutants [MODULE…] [--tests PATH…] [--jobs N] [--sample N --seed N] [--list]

A module is a file or a folder below src/aetherscale; without one, all that is pure. The tests are collected once. A
child is forked for each mutant. The functions in it get the mutated code, and it runs the tests that have ever run the
changed line, quick ones first, until one fails. Mutants that mean the same as the code are listed in `equivalent.toml`,
each with the reason. The status is 1 where fewer than --at-least percent are killed.
"""

from __future__ import annotations

import argparse
import random
import sys
import tomllib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.mutants.mutations import Mutant, mutants
from tests.mutants.running import Mutants

ROOT: Final = Path(__file__).parents[2]
SOURCE: Final = ROOT / "src" / "aetherscale"
EQUIVALENT: Final = Path(__file__).with_name("equivalent.toml")
TESTS: Final = ("tests/unit", "tests/mutants/lives.py")


def main(arguments: Sequence[str]) -> int:
    """Run what is asked for; the exit status."""
    chosen = _parse(arguments)
    equivalent = _equivalent()
    every = [mutant for path in _modules(chosen.modules) for mutant in mutants(path)]
    asked = [mutant for mutant in every if mutant.name not in equivalent]
    if chosen.sample:
        asked = random.Random(chosen.seed).sample(asked, min(chosen.sample, len(asked)))  # noqa: S311
    if chosen.list:
        print(*(f"{_place(mutant)}: {mutant.name}" for mutant in asked), sep="\n")
        return 0
    plugin = Mutants(asked, chosen.jobs)
    options = ["-qq", "--no-header", "-p", "no:cacheprovider", "--capture=no", "--show-capture=no"]
    status = pytest.main([*options, *chosen.tests], plugins=[plugin])
    if status != 0:
        return int(status)
    return _report(plugin, sum(mutant.name in equivalent for mutant in every), chosen.at_least)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument("modules", nargs="*", metavar="MODULE")
    parser.add_argument("--tests", nargs="+", default=TESTS, metavar="PATH")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--sample", type=int, default=0, help="so many of them, drawn by --seed")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--at-least", type=float, default=90.0, metavar="PERCENT")
    parser.add_argument("--list", action="store_true", help="only say which mutants there are")
    return parser.parse_args(arguments)


def _modules(names: Sequence[str]) -> list[Path]:
    if not names:
        return sorted([*(SOURCE / "kernel").glob("*.py"), *(SOURCE / "actors").glob("*/model/*.py")])
    paths = [SOURCE / name for name in names]
    return sorted(path for each in paths for path in (each.rglob("*.py") if each.is_dir() else [each]))


def _equivalent() -> frozenset[str]:
    found = tomllib.loads(EQUIVALENT.read_text())["mutant"]
    return frozenset(each["name"] for each in found)


def _report(plugin: Mutants, equivalent: int, at_least: float) -> int:
    """One line for each survivor, one for each module, one for all."""
    killed: Counter[Path] = Counter()
    total: Counter[Path] = Counter()
    for mutant, ended in plugin.ended:
        if ended == "impossible":
            continue
        total[mutant.path] += 1
        killed[mutant.path] += ended == "killed"
        if ended != "killed":
            print(f"{ended:9} {_place(mutant)}: {mutant.name}")
    for path in sorted(total):
        print(f"{killed[path]:5} of {total[path]:5} killed  {path.relative_to(SOURCE)}")
    score = 100 * killed.total() / max(1, total.total())
    print(f"{killed.total()} of {total.total()} mutants killed: {score:.1f} % ({equivalent} equivalent ones left out)")
    return 0 if score >= at_least else 1


def _place(mutant: Mutant) -> str:
    return f"{mutant.path.relative_to(ROOT)}:{mutant.line}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
