"""No module has two subjects: none is long, and no function is."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[3]
MODULE_LINES, FUNCTION_LINES = 350, 60


def test_no_module_is_longer_than_a_reader_takes_in_at_once() -> None:
    lengths = {
        str(path.relative_to(ROOT)): path.read_text().count("\n")
        for room in ("src", "tests", "tools", "benchmarks")
        for path in (ROOT / room).rglob("*.py")
    }
    assert {name: lines for name, lines in lengths.items() if lines > MODULE_LINES} == {}
    assert len(lengths) > 500


def test_no_function_is() -> None:
    found = [
        (f"{path.relative_to(ROOT)}: {each.name}", each.end_lineno - each.lineno + 1)
        for path in (ROOT / "src").rglob("*.py")
        for each in ast.walk(ast.parse(path.read_text()))
        if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef) and each.end_lineno is not None
    ]
    assert [each for each in found if each[1] > FUNCTION_LINES] == []
    assert len(found) > 1000
