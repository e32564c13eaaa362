"""Fixtures of the contract of event stores: the fake in memory, and a real SQLite file."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aetherscale.eventstore.groupcommit import LogStore
from aetherscale.eventstore.sqlite import pace
from tests.support.event_logs import LogWorld, MemoryWorld, SqliteWorld

WAIT_S = 20.0


@pytest.fixture(params=["memory", "sqlite", "sqlite in the loop"])
def world(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LogWorld:
    # How quick the disk is decides where a commit is done: here the test does.
    monkeypatch.setattr(pace, "QUICK_S", math.inf if request.param == "sqlite in the loop" else -1)
    monkeypatch.setattr(pace, "PROVEN", 0 if request.param == "sqlite in the loop" else 1)
    return MemoryWorld() if request.param == "memory" else SqliteWorld(tmp_path)


@pytest.fixture
async def store(world: LogWorld) -> AsyncIterator[LogStore]:
    opened = await world.open()
    yield opened
    await opened.close()
