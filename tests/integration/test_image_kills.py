"""A process that ends at any call to the disk leaves of an image what the next one finishes, or begins anew."""

from __future__ import annotations

import gzip
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aetherscale import incoming
from aetherscale.actors.images.driver import HostImages, Imports
from aetherscale.actors.images.model.effects import FetchImage, ImageStored
from tests.support.image_imports import DISK, state, tree

__all__ = ["state"]

pytestmark = pytest.mark.integration

CALLS = ("link", "rename", "unlink", "fsync", "ftruncate", "pwrite")
NEWER = DISK[:512] + hashlib.shake_128(b"newer").digest(len(DISK) - 512)


class Killed(BaseException):
    """The process is no more. Whatever would run after it does not, but for what Python itself runs."""


def dying(monkeypatch: pytest.MonkeyPatch, at: int) -> Callable[[], bool]:
    """Let the call with this number, and every one after it, end the process; answers whether there was one."""
    counted = 0

    def counting(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            nonlocal counted
            counted += 1
            if counted >= at:
                raise Killed
            return call(*arguments, **named)

        return wrapped

    for name in CALLS:
        monkeypatch.setattr(os, name, counting(getattr(os, name)))  # the same calls, until there are no more
    return lambda: counted >= at


async def once(state: Path, source: Path, replaces: str | None, at: int) -> bool:
    """One process that dies at a call; whether it did."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        died = dying(monkeypatch, at)
        images = HostImages(state, state.parent / "cache", Imports((source.parent,)))
        try:
            await images.perform(
                FetchImage("f-1", "i", str(source), None, "t", replaces=replaces), lambda *a, **k: None
            )
        except Killed:
            assert died()
        return died()


@pytest.mark.parametrize("update", [False, True])
@pytest.mark.parametrize("packed", [False, True])
async def test_a_process_that_dies_at_any_call_leaves_what_the_next_one_finishes(
    state: Path, tmp_path: Path, packed: bool, update: bool
) -> None:
    first, newer = tmp_path / "in" / "one", tmp_path / "in" / "two"
    first.parent.mkdir()
    first.write_bytes(DISK)
    newer.write_bytes(gzip.compress(NEWER) if packed else NEWER)
    of = {content: hashlib.sha256(content).hexdigest() for content in (DISK, NEWER)}
    ran = 0
    while True:
        ran += 1
        here = tmp_path / f"state{ran}"
        here.mkdir(mode=0o700)
        incoming.prepare(here, "host1")
        if update:
            images = HostImages(here, tmp_path / "cache", Imports((first.parent,)))
            await images.perform(FetchImage("f-1", "i", str(first), None, "t"), lambda *a, **k: None)
        replaces = of[DISK] if update else None
        died = await once(here, newer, replaces, ran)
        visible = here / "images/i.raw"
        if visible.exists():
            assert visible.read_bytes() in ((DISK, NEWER) if update else (NEWER,)), f"half an image, dead at call {ran}"
        else:
            assert not update, "an image is there all the time"
        images = HostImages(here, tmp_path / "cache", Imports((newer.parent,)))
        stored = await images.perform(
            FetchImage("f-2", "i", str(newer), None, "t", replaces=replaces), lambda *a, **k: None
        )
        assert isinstance(stored, ImageStored), (stored, ran)
        assert stored.sha256 == of[NEWER]
        left = {"i.raw", "content", f"content/{of[NEWER]}.raw"} | ({f"content/{of[DISK]}.raw"} if update else set())
        assert set(tree(here / "images")) == left, f"dead at call {ran}"
        if not died:
            break
    assert ran > 6
