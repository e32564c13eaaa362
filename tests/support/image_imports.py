"""Fixtures and helpers of the tests of imports."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from tests.support.fetching import MIB
from tests.support.node import RunningNode

DISK = bytes(510) + b"\x55\xaa" + os.urandom(2 * MIB - 512)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    directory = tmp_path / "state"
    directory.mkdir(mode=0o700)
    return directory


@pytest.fixture
async def node(make_node: Any) -> RunningNode:
    running: RunningNode = make_node("--simulated")
    await running.start()
    return running


def tree(directory: Path) -> dict[str, str]:
    """All that there is below a directory, with its mode."""
    return {
        str(path.relative_to(directory)): f"{stat.S_IMODE(path.lstat().st_mode):o}"
        for path in sorted(directory.rglob("*"))
    }
