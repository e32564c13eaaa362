"""Fixtures of the tests that run real guests; a test module imports those that it uses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import reaper
from tests.support.compute_worlds import QemuWorld
from tests.support.tiny_image import build_tiny


@pytest.fixture(scope="session")
def tiny_image_file(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """The image that `image build tiny` makes."""
    target = tmp_path_factory.mktemp("tiny") / "tiny.img"
    build_tiny(target, pytestconfig)
    return target


@pytest.fixture
def qemu_world(tiny_image_file: Path, tmp_path: Path) -> Iterator[QemuWorld]:
    """This host, with a state directory of the test's own; no guest of it outlives the test."""
    watchman = reaper.start(tmp_path)
    try:
        world = QemuWorld(tmp_path / "state")
        world.store(tiny_image_file)
        yield world
    finally:
        watchman.communicate()
