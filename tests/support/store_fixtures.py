"""Fixtures of the contract of event stores: the fake in memory, and a real SQLite file."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from aetherscale.eventstore.groupcommit import LogStore
from tests.support.event_logs import LogWorld, MemoryWorld, SqliteWorld

WAIT_S = 20.0


@pytest.fixture(params=["memory", "sqlite"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> LogWorld:
    return MemoryWorld() if request.param == "memory" else SqliteWorld(tmp_path)


@pytest.fixture
async def store(world: LogWorld) -> AsyncIterator[LogStore]:
    opened = await world.open()
    yield opened
    await opened.close()
