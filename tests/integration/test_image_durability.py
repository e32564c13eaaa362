"""An image is on the disk before it has the name under which VMs find it."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
from asyncio.subprocess import PIPE
from collections.abc import Callable
from pathlib import Path

import pytest

from aetherscale.actors.images.building import tiny
from aetherscale.actors.images.building.tinyparts import Parts
from aetherscale.actors.images.driver import HostImages, Imports
from aetherscale.actors.images.model.effects import FetchImage, ImageStored
from tests.support.node import ROOT

pytestmark = pytest.mark.integration

CONTENT = bytes(510) + b"\x55\xaa" + hashlib.shake_128(b"an image").digest(4096 - 512)

ON_A_DISK_THAT_FAILS_TO_SYNC = """
import asyncio, sys
from pathlib import Path
from aetherscale.actors.images.driver import HostImages, Imports
from aetherscale.actors.images.model.effects import FetchImage
from aetherscale.kernel.failures import EffectFailed
from tests.support.failing_sync import fail_to_sync
from tests.support.log_writer import die_with_parent

die_with_parent()
fail_to_sync()
images = HostImages(Path(sys.argv[2]), Path(sys.argv[2]), Imports((Path(sys.argv[1]).parent,)))
outcome = asyncio.run(images.perform(FetchImage("fetch-1", "i", sys.argv[1], None), lambda step, **fields: None))
assert isinstance(outcome, EffectFailed), outcome
print(outcome.reason)
"""


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was synced and moved, in order, by the last part of its path. The calls are made all the same."""
    done: list[str] = []
    fsync = os.fsync

    def synced(descriptor: int) -> None:
        fsync(descriptor)
        done.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")

    def moving(move: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
        def moved(source: Path, target: Path) -> None:
            move(source, target)
            done.append(f"move {source.name} to {target.name}")

        return moved

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", moving(os.rename))
    monkeypatch.setattr(os, "replace", moving(os.replace))
    return done


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "blank.img"
    path.write_bytes(CONTENT)
    return path


async def test_an_image_that_came_in_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, source: Path, order: list[str]
) -> None:
    state = tmp_path / "state"
    stored = await HostImages(state, tmp_path, Imports((tmp_path,))).perform(
        FetchImage("fetch-1", "i", str(source), None), lambda step, **fields: None
    )
    assert isinstance(stored, ImageStored)
    assert order == ["sync i.part", "sync content", "move i.part to i.raw", "sync images"]


def test_an_image_that_was_built_is_on_the_disk_before_it_has_its_name(tmp_path: Path, order: list[str]) -> None:
    parts, images = tmp_path / "parts", tmp_path / "images"
    for directory in (parts, images):
        directory.mkdir()
    for name, content in {"boot_image": CONTENT[:512], "core_image": CONTENT, "kernel": b"k", "programs": b"p"}.items():
        (parts / name).write_bytes(content)
    tiny._write_image(images / "i.part", Parts(parts, ()), {})
    assert order == ["sync i.part.new", "move i.part.new to i.part", "sync images"]


async def test_where_nothing_can_be_synced_no_image_comes_in(tmp_path: Path, source: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", ON_A_DISK_THAT_FAILS_TO_SYNC, str(source), str(tmp_path / "state")),
        stdout=PIPE,
        cwd=ROOT,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0
    assert b"cannot be written: Input/output error" in said
    assert [path.name for path in (tmp_path / "state/images").iterdir()] == ["i.part"]
