"""Some seeds of the simulation, in processes of their own: what is killed in it stays in memory until they end."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.support.node import ROOT

pytestmark = pytest.mark.timeout(600)

REGRESSIONS = {
    5: "a repeat of what changed nothing was not answered once its VM was gone",
    101: "work went on, and answers were lost, after the log had become doubtful",
    207: "a reply whose last chunk was cut off had an end all the same",
}
"""Seeds that found something, with 20 deaths."""


def simulation(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.simulation", *arguments], capture_output=True, text=True, cwd=ROOT
    )


def test_whatever_happens_everything_comes_right() -> None:
    ended = simulation("--seeds", "40")
    assert ended.returncode == 0, ended.stdout[-8000:] + ended.stderr[-2000:]
    assert "0 violations" in ended.stdout
    for drawn in ("fetched", "updated", "unchanged", "made of it", "with keys"):
        assert re.search(rf"\b[1-9][0-9,]* {drawn}", ended.stdout), f"what is never drawn is never checked: {drawn}"


@pytest.mark.parametrize("seed", REGRESSIONS)
def test_what_was_found_once_stays_mended(seed: int) -> None:
    ended = simulation("--seed", str(seed))
    assert ended.returncode == 0, ended.stdout[-8000:] + ended.stderr[-2000:]


def test_stories_that_hypothesis_makes_up_end_well() -> None:
    ended = subprocess.run([sys.executable, "-m", "tests.simulation.stories"], capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-8000:]


def test_of_two_requests_that_race_one_is_refused_wherever_the_node_dies() -> None:
    ended = subprocess.run([sys.executable, "-m", "tests.simulation.races"], capture_output=True, text=True, cwd=ROOT)
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-4000:]
    assert "0 violations" in ended.stdout


def test_a_node_that_works_for_days_grows_neither_in_tasks_nor_in_memory() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tests.simulation.month", "2"], capture_output=True, text=True, cwd=ROOT
    )
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-4000:]
    assert "6 VMs made and deleted" in ended.stdout


def test_a_seed_is_the_same_run_again() -> None:
    first, again = simulation("--seed", "3", "--deaths", "5"), simulation("--seed", "3", "--deaths", "5")
    assert first.stdout.rpartition(" in ")[0] == again.stdout.rpartition(" in ")[0]
    assert "seeds" in first.stdout
