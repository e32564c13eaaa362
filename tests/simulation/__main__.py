"""`just sim`: many seeds on all cores, or one with its trace.

python -m tests.simulation [--seeds N] [--from S] [--deaths D] [--jobs J] [--trace]
python -m tests.simulation --seed S      one seed, again and exactly as it was
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from multiprocessing import Pool
from typing import Final, NoReturn

from tests.simulation.simulation import Failed, Ran, simulate

SEEDS_OF_A_PROCESS: Final = 10
PATIENCE_S: Final = 300
"""Seconds of real time for one seed, a hundred times what one takes: a turn of the loop that has no end is told so."""


def main(arguments: Sequence[str]) -> int:
    """Run what is asked for; 1 where something did not hold."""
    parser = argparse.ArgumentParser(prog="just sim", description="simulated crash-recover runs")
    parser.add_argument("--seeds", type=int, default=100, help="how many seeds (default 100)")
    parser.add_argument("--from", type=int, default=1, dest="first", help="the first seed (default 1)")
    parser.add_argument("--seed", type=int, help="only this one")
    parser.add_argument("--deaths", type=int, default=20, help="how often the node dies in each (default 20)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at once")
    given = parser.parse_args(arguments)
    seeds = [given.seed] if given.seed is not None else list(range(given.first, given.first + given.seeds))
    begun_s = time.monotonic()
    deaths = events = steps = 0
    catalogued: Counter[str] = Counter()
    failures: list[str] = []
    # What was killed stays in memory until its process ends: see loop.py.
    with Pool(given.jobs, maxtasksperchild=SEEDS_OF_A_PROCESS) as pool:
        for ran in pool.imap(_simulate, [(seed, given.deaths) for seed in seeds]):
            if isinstance(ran, str):
                failures.append(ran)
                print(ran)
            else:
                deaths, events, steps = deaths + ran.deaths, events + ran.events, steps + ran.steps
                catalogued.update(ran.catalogued)
    took_s = time.monotonic() - begun_s
    print(
        f"{len(seeds):,} seeds, {deaths:,} crash-recover runs, {events:,} events, {steps:,} steps in {took_s:.0f} s: "
        f"{len(failures)} violations"
    )
    print("images of the catalogue, and keys: " + ", ".join(f"{n:,} {what}" for what, n in catalogued.items()))
    return 1 if failures else 0


class Overdue(KeyboardInterrupt):
    """A run has no end; of the exceptions that an event loop does not keep to itself."""


def _simulate(which: tuple[int, int]) -> Ran | str:
    signal.signal(signal.SIGALRM, _overdue)
    signal.alarm(PATIENCE_S)
    try:
        return simulate(*which)
    except Failed as failed:
        return str(failed)
    except Overdue:
        return f"seed {which[0]}: no end after {PATIENCE_S} s\n{traceback.format_exc()}"
    finally:
        signal.alarm(0)


def _overdue(number: int, frame: object) -> NoReturn:
    raise Overdue


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
