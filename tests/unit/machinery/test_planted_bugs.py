"""The planted bugs still fit into the tree, and what is to catch them is there: no change disarms one in silence."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.planted.planting import ROOT, Bug, Edit, Ended, faults, load, plant, report
from tools.promises import Promise, missing

BUGS = load()


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_every_bug_still_fits_and_its_checks_are_there(bug: Bug) -> None:
    assert list(faults(bug, ROOT)) == []
    assert list(missing([Promise("", bug.says, list(bug.caught_by))], ROOT)) == []


def test_there_are_enough_of_them_and_each_has_its_own_name() -> None:
    assert len({bug.name for bug in BUGS}) == len(BUGS) >= 20


@pytest.mark.parametrize(
    ("find", "write", "said"),
    [("x = 1", "x = 2", ""), ("y = 1", "", "0 times"), ("= 1", "", "2 times"), ("x = 1", "x =", "no Python")],
)
def test_a_bug_that_does_not_fit_is_told(tmp_path: Path, find: str, write: str, said: str) -> None:
    (tmp_path / "a.py").write_text("x = 1\nz = 1\n")
    bug = Bug("one", "it is wrong", ("tests/a.py",), (Edit("a.py", find, write),))
    assert [said in fault for fault in faults(bug, tmp_path)] == ([True] if said else [])
    if said:
        with pytest.raises(ValueError, match=r"one: a\.py"):
            plant(bug, tmp_path)
    else:
        plant(bug, tmp_path)
        assert (tmp_path / "a.py").read_text() == "x = 2\nz = 1\n"


@pytest.mark.parametrize(
    ("before", "after", "caught"),
    [
        ("green", "red", True),
        ("green", "green", False),
        ("green", "broken", False),
        ("red", "red", False),
        ("broken", "red", False),
    ],
)
def test_only_a_check_that_turns_from_green_to_red_has_caught_a_bug(before: str, after: str, caught: bool) -> None:
    bug = Bug("one", "it is wrong", ("tests/a.py",), ())
    ends = {colour: {"tests/a.py": Ended(colour, 1.0, "")} for colour in ("green", "red", "broken")}
    assert report(bug, ends[before], ends[after])[0] is caught
