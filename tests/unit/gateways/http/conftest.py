"""A node in memory whose HTTP is open."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from tests.support.http_node import HttpNode, http_node


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[HttpNode]:
    async with http_node(tmp_path / "s") as running:
        yield running


@pytest.fixture
async def client(node: HttpNode) -> AsyncIterator[httpx.AsyncClient]:
    async with node.unix() as made:
        yield made
