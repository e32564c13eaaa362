"""The page of promises: what it says of what was run, and that it names nothing that is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.promises import PROMISES, ROOT, Promise, Result, load, main, missing, page, taken

REPORT = """<testsuites><testsuite>
<testcase classname="tests.unit.test_x" name="test_one[a]"/>
<testcase classname="tests.unit.test_x" name="test_one[b]"><skipped/></testcase>
<testcase classname="tests.unit.test_x.TestY" name="test_two"><failure/></testcase>
<testcase classname="tests.unit.test_x.TestY" name="test_three"><skipped/></testcase>
<testcase classname="tests.unit.test_xy" name="test_one"><error/></testcase>
</testsuite></testsuites>"""


@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        ("tests/unit/test_x.py::test_one", "passed"),
        ("tests/unit/test_x.py::TestY::test_two", "failed"),
        ("tests/unit/test_x.py::TestY::test_three", "skipped"),
        ("tests/unit/test_x.py::TestY", "failed"),
        ("tests/unit/test_x.py", "failed"),
        ("tests/unit/test_xy.py", "failed"),
    ],
)
def test_a_result_is_that_of_all_parameters_and_of_all_that_is_in_a_file(name: str, outcome: str) -> None:
    promise = Promise("g", "it holds", [name, "tests/unit/test_z.py", "just sim"])
    assert taken([promise], [REPORT], "2026-01-02") == {name: Result(outcome, "2026-01-02")}


def test_the_page_tells_the_worst_result_and_the_oldest_day() -> None:
    results = {
        "tests/a.py": Result("passed", "2026-01-02"),
        "tests/b.py": Result("failed", "2026-01-03"),
        "just sim": Result("passed", "2026-01-01", "50,000 runs"),
    }
    text = page(
        [
            Promise("Faults", "one", ["tests/a.py", "just sim"]),
            Promise("Faults", "two", ["tests/a.py", "tests/b.py"]),
            Promise("Bounds", "three", ["tests/a.py", "tests/c.py"]),
        ],
        results,
    )
    assert "| one | `a.py`<br>`just sim` | passed 2026-01-01: 50,000 runs |" in text
    assert "| two | `a.py`<br>`b.py` | failed 2026-01-02 |" in text
    assert "| three | `a.py`<br>`c.py` | not run yet |" in text
    assert text.count("| promise | shown by | last |") == 2


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("tests/unit/machinery/test_promises.py", ""),
        ("tests/unit/machinery/test_promises.py::test_the_page_is_what_it_would_be", ""),
        ("tests/unit/machinery/test_promises.py::test_nothing", "there is no test"),
        ("tests/unit/test_nothing.py", "there is no test"),
        ("just test", ""),
        ("just nothing --seeds 3", "there is no recipe"),
    ],
)
def test_what_is_named_has_to_be_there(name: str, said: str) -> None:
    faults = list(missing([Promise("g", "it holds", [name])], ROOT))
    assert [said in fault for fault in faults] == ([True] if said else [])


def test_nothing_is_promised_that_nothing_shows(tmp_path: Path) -> None:
    (tmp_path / "justfile").write_text("")
    assert list(missing([Promise("g", "it holds", [])], tmp_path)) == ["nothing shows: it holds"]


def test_a_group_has_one_heading_however_its_promises_stand() -> None:
    groups = (("Faults", "one"), ("Bounds", "two"), ("Faults", "three"))
    text = page([Promise(group, says, ["tests/a.py"]) for group, says in groups], {})
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## Faults", "## Bounds"]
    assert text.index("| one |") < text.index("| three |") < text.index("| two |")


def test_every_promise_is_said_once() -> None:
    said = [promise.says for promise in load(PROMISES)]
    assert len(said) == len(set(said))


def test_the_page_is_what_it_would_be(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check"]) == 0, capsys.readouterr().err
