"""Fixtures and helpers of the tests of keyframes: logs with what is true of them, and the past as it is told."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from aetherscale.components import kinds
from aetherscale.debugger.history import History
from aetherscale.debugger.keyframes import Spacing
from aetherscale.debugger.past import LOG_NAME
from aetherscale.eventstore.sqlite.connection import connect_read_only
from aetherscale.eventstore.sqlite.past import PAST_NAME, open_keyframes
from aetherscale.eventstore.sqlite.reading import LogReading
from aetherscale.kernel.registry import Kind
from tests.support.pasts import Truth, known, living, written

SPACING = Spacing(keyframe=32, milestone=4)
EVENTS = 400
SEEDS = 4


@contextmanager
def history(state_dir: Path, kinds: tuple[Kind[Any], ...] = kinds(), spacing: Spacing = SPACING) -> Iterator[History]:
    """The past of a log, told as another process would."""
    path = state_dir / LOG_NAME
    with closing(connect_read_only(path)) as connection:
        reading = LogReading(connection, path)
        with closing(
            History(reading, lambda of: open_keyframes(path.with_name(PAST_NAME), of), kinds, spacing=spacing)
        ) as opened:
            yield opened


def kept(state_dir: Path) -> list[int]:
    """Where `past.db` has keyframes."""
    with closing(sqlite3.connect(state_dir / PAST_NAME)) as connection:
        rows = connection.execute("SELECT position FROM parts WHERE name = 'living' ORDER BY position").fetchall()
        return [row[0] for row in rows]


def assert_same(opened: History, truth: Truth, positions: list[int]) -> None:
    """Each moment is what the log says from its first event on, with and without what is deleted."""
    for position in positions:
        assert known(opened.state_at(position)) == truth.at(position), position
        without = opened.state_at(position, deleted=False)
        assert known(without) == living(truth.at(position)), position


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[Path, Truth]]:
    """State directories with what is true of them, by the seed of their stories; each is written once."""
    found = {}
    for seed in range(SEEDS):
        directory = tmp_path_factory.mktemp("past") / "state"
        asyncio.run(written(directory, EVENTS, seed))
        found[seed] = (directory, Truth(directory))
    return found


@pytest.fixture
def state_dir(made: dict[int, tuple[Path, Truth]], tmp_path: Path) -> Path:
    """A state directory of one's own."""
    return shutil.copytree(made[1][0], tmp_path / "state")


@pytest.fixture
def truth(made: dict[int, tuple[Path, Truth]]) -> Truth:
    """What is true of it as it was written."""
    return made[1][1]


def replace_kind(kind: Kind[Any]) -> Kind[Any]:
    """The same kind in a later version of the program."""
    fields = {name: getattr(kind, name) for name in Kind.__slots__}
    return Kind(**{**fields, "version": kind.version + 1})
