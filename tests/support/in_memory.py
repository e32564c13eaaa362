"""A directory in memory, where there is room for one: for tests that sync much and to whom the disk is nothing."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

SHARED_MEMORY = Path("/dev/shm")
ROOM_BYTES = 1024**3


def in_memory() -> tempfile.TemporaryDirectory[str]:
    """A directory that is removed at the end; on the disk where memory has no room."""
    has_room = SHARED_MEMORY.is_dir() and shutil.disk_usage(SHARED_MEMORY).free > ROOM_BYTES
    return tempfile.TemporaryDirectory(prefix="aetherscale-", dir=SHARED_MEMORY if has_room else None)


@pytest.fixture
def memory_path() -> Iterator[Path]:
    with in_memory() as directory:
        yield Path(directory)
