"""Fixtures and helpers of the tests of a whole node in memory; a test module imports those that it uses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.memory_node import MemoryNode

WEB = {"image": "tiny", "name": "web"}


@pytest.fixture
async def node() -> AsyncIterator[MemoryNode]:
    running = MemoryNode()
    await running.start()
    await running.final("images", "build-image", {"recipe": "tiny"})
    yield running
    await running.close()


def words(chunks: Any) -> list[str]:
    return [chunk.get("status", chunk["type"]) for chunk in chunks]
