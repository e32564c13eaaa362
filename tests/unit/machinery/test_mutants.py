"""The mutation tool sees what it should: each small change is made, and is what then runs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import FunctionType, ModuleType

from tests.mutants.mutations import mutants
from tests.mutants.running import swap

SOURCE = '''"""A module."""
LIMIT = 5

def bounded(number: int, kind: str = "plain") -> str | None:
    """Say what a number is."""
    assert number != 99
    if number < LIMIT and kind == "plain":
        return "small"
    return None

def is_small(number: int) -> bool:
    """Say whether it is small."""
    return False

class Counter:
    """Counts."""

    def __init__(self) -> None:
        self.count = 0

    def add(self) -> None:
        """One more."""
        self.count += 1
        self.told()

    def told(self) -> None:
        """Told."""
'''


def planted(tmp_path: Path) -> tuple[Path, ModuleType]:
    path = tmp_path / "planted_module.py"
    path.write_text(SOURCE)
    spec = importlib.util.spec_from_file_location("planted_module", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return path, module


def test_every_small_change_is_made_once_and_nothing_is_changed_that_does_not_run(tmp_path: Path) -> None:
    path, _ = planted(tmp_path)
    assert sorted((each.line, each.function, each.what) for each in mutants(path)) == [
        (7, "bounded", "'plain' -> another word"),
        (7, "bounded", "And -> Or"),
        (7, "bounded", "Eq -> NotEq"),
        (7, "bounded", "Lt -> LtE"),
        (7, "bounded", "the condition negated"),
        (8, "bounded", "'small' -> another word"),
        (8, "bounded", "returns None"),
        (13, "is_small", "False -> True"),
        (19, "Counter.__init__", "0 -> 1"),
        (23, "Counter.add", "1 -> 2"),
        (23, "Counter.add", "the assignment dropped"),
        (24, "Counter.add", "the call dropped"),
    ]


def test_a_mutant_runs_in_the_place_of_what_is_alive(tmp_path: Path) -> None:
    path, module = planted(tmp_path)
    alive = [module.bounded, module.Counter.add]
    assert all(isinstance(each, FunctionType) for each in alive)
    by_what = {each.what: each for each in mutants(path)}
    counter = module.Counter()
    assert module.bounded(5) is None
    swap(by_what["Lt -> LtE"], alive)
    assert module.bounded(5) == "small"
    swap(by_what["1 -> 2"], alive)
    counter.add()
    assert counter.count == 2
