"""A whole node in memory that has an image, `i`, whose guests run and never report that they are ready."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.memory_node import MemoryNode

IMAGE = {"source": "/x.raw", "name": "i", "ready": "none"}


@pytest.fixture
async def node() -> AsyncIterator[MemoryNode]:
    running = MemoryNode()
    await running.start()
    await running.final("images", "import-image", IMAGE)
    yield running
    await running.close()
