"""What integration tests share: nodes on state directories of their own, and one cache of what guests are made of."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Protocol

import pytest

from tests.support.node import RunningNode


class MakeNode(Protocol):
    """Makes a node that is not started; what it leaves is ended after the test."""

    def __call__(self, *arguments: str, directory: str = "state", name: str = "host1") -> RunningNode: ...


@pytest.fixture
async def make_node(tmp_path: Path, pytestconfig: pytest.Config) -> AsyncIterator[MakeNode]:
    assert pytestconfig.cache is not None
    cache_dir = pytestconfig.cache.mkdir("debian")
    made: list[RunningNode] = []

    def make(*arguments: str, directory: str = "state", name: str = "host1") -> RunningNode:
        made.append(RunningNode(tmp_path / directory, cache_dir, *arguments, name=name))
        return made[-1]

    async with AsyncExitStack() as stack:
        yield make
        for node in made:
            stack.push_async_callback(node.close)


@pytest.fixture
async def node(make_node: MakeNode) -> RunningNode:
    """A node that is ready and has the image `tiny`."""
    running = make_node()
    await running.start()
    answer = await running.task("images", "build-image", recipe="tiny")
    assert answer["type"] == "result", answer
    return running
