"""No hostile file becomes an image, by any way in: nothing of it is left, and nothing else is opened for it."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from aetherscale import incoming
from aetherscale.actors.images.building.debianimage import copy
from aetherscale.actors.images.driver import HostImages, Imports
from aetherscale.actors.images.files import packed
from aetherscale.actors.images.files.contents import look_into
from aetherscale.actors.images.model.effects import BuildImage, FetchImage, ImageRemoved, RemoveImage
from aetherscale.kernel.failures import EffectFailed
from aetherscale.kernel.fault import Fault
from tests.support.fetching import LOOPBACK, no_proxy
from tests.support.hostile_images import CONTENTS, PLACES
from tests.support.http_server import http_server, serves
from tests.support.image_imports import state, tree

__all__ = ["no_proxy", "state"]

pytestmark = pytest.mark.integration

WAYS: Final = ("file", "url", "catalogue", "build-cache")
LEAST: Final = 60

_opened: list[str] = []
_listening = False


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if _listening and event in ("open", "os.listdir", "subprocess.Popen") and arguments:
        _opened.append(repr(arguments[0]) + repr(arguments[1] if event == "subprocess.Popen" else ""))


sys.addaudithook(_hear)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "shadow"
    path.write_text("root:secret\n")
    return path


@pytest.fixture
def listening() -> Iterator[list[str]]:
    """What is opened by name in this process, and what it starts."""
    global _listening
    _opened.clear()
    _listening = True
    yield _opened
    _listening = False


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bomb is told by less than what is taken of it otherwise, so that a hundred of them cost little."""
    monkeypatch.setattr(packed, "RATIO_FREE_BYTES", 1 << 20)
    monkeypatch.setattr(packed, "MOST_RATIO", 500)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def quiet(step: str, **fields: Any) -> None:
    """What nobody wants to hear."""


async def refused(images: HostImages, effect: FetchImage) -> EffectFailed:
    """The answer, after which what had been stored is removed."""
    failed = await images.perform(effect, quiet)
    assert isinstance(failed, EffectFailed), failed
    undone = RemoveImage("remove-1", effect.image_id, effect.source, rolled_back=True, tenant="t")
    assert await images.perform(undone, quiet) == ImageRemoved("remove-1")
    return failed


async def come_in(way: str, images: HostImages, place: Path, content: bytes) -> EffectFailed:
    if way == "file":
        hostile = place / "allowed" / "image"
        hostile.write_bytes(content)
        return await refused(images, FetchImage("fetch-1", "i", str(hostile), None, "t"))
    if way == "build-cache":
        hostile = place / "disk.qcow2"
        hostile.write_bytes(content)
        with pytest.raises(Fault) as fault:
            await copy(hostile, place / "made", BuildImage("build-1", "i", "debian-12", size_gib=1))
        assert not (place / "made").exists()
        assert not (place / "made.new").exists()
        return EffectFailed.by("build-1", fault.value)
    sums = f"{hashlib.sha256(content).hexdigest()}  image\n".encode()
    answers = (serves(sums), serves(content)) if way == "catalogue" else (serves(content),)
    async with http_server(*answers) as server:
        checksums = server.url("/SUMS") if way == "catalogue" else None
        effect = FetchImage("fetch-1", "i", server.url("/image"), None, "t", checksums=checksums)
        return await refused(images, effect)


def test_there_are_many_of_them() -> None:
    assert len(CONTENTS) >= LEAST
    assert len(CONTENTS) + len(PLACES) >= 120


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CONTENTS)
async def test_a_hostile_file_is_refused_and_leaves_and_opens_nothing(
    name: str, way: str, state: Path, tmp_path: Path, secret: Path, listening: list[str]
) -> None:
    content = CONTENTS[name](secret)
    (tmp_path / "allowed").mkdir()
    incoming.prepare(state, "host1")
    images = HostImages(state, tmp_path / "cache", Imports((tmp_path / "allowed",), LOOPBACK))
    await images.start(quiet)  # type: ignore[arg-type]
    before = descriptors()
    failed = await come_in(way, images, tmp_path, content)
    assert not failed.retryable, failed
    assert failed.reason
    assert failed.hint
    assert descriptors() <= before
    assert tree(state / "images") == {} if (state / "images").exists() else True
    assert not (tmp_path / "cache").exists()
    assert not [each for each in listening if "shadow" in each], "nothing that an image names is opened"
    started = [each for each in listening if "qemu" in each]
    assert not started or way == "build-cache", "nothing else parses what a stranger has sent"
    assert secret.read_text() == "root:secret\n"


@pytest.mark.parametrize("name", CONTENTS)
def test_a_look_at_a_hostile_file_opens_nothing_else(
    name: str, tmp_path: Path, secret: Path, listening: list[str]
) -> None:
    hostile = tmp_path / "image"
    hostile.write_bytes(CONTENTS[name](secret))
    before = descriptors()
    found = look_into(hostile)
    assert (found.os, found.agent) == ("unknown", "unknown")
    assert found.refused or found.packing
    assert descriptors() == before
    assert not [each for each in listening if "shadow" in each]
    assert "root:secret" not in repr(found)


@pytest.mark.parametrize("name", PLACES)
async def test_what_is_no_file_is_not_read_nor_waited_for(name: str, state: Path, tmp_path: Path, secret: Path) -> None:
    (tmp_path / "allowed").mkdir()
    place = tmp_path / "allowed" / "image"
    try:
        PLACES[name](place, secret)
    except PermissionError:
        pytest.skip("only root can make it")
    images = HostImages(state, tmp_path / "cache", Imports((tmp_path / "allowed",), LOOPBACK))
    before = descriptors()
    failed = await refused(images, FetchImage("fetch-1", "i", str(place), None, "t"))
    assert "is no file that this node may import" in failed.reason
    assert descriptors() <= before
    assert tree(state / "images") == {}
