"""Images on their way in: an import beside the checksum alone, and what a build takes whose disk is kept."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from aetherscale import incoming
from aetherscale.actors.images.building.debianimage import copy
from aetherscale.actors.images.building.programs import run
from aetherscale.actors.images.driver import HostImages, Imports
from aetherscale.actors.images.model.effects import BuildImage, FetchImage, ImageStored, RemoveImage
from benchmarks.harness import OURS, Context, Row, Samples, Target, Turn
from benchmarks.images import HALT, SIGNATURE

MIB: Final = 1 << 20
IMPORT_MIB: Final = 400
DISK_MIB: Final = 504
"""As large as the disk of `debian-12` is."""


def quiet(step: str, **fields: Any) -> None:
    """Nobody waits for it."""


@asynccontextmanager
async def imports(context: Context) -> AsyncIterator[Mapping[str, Turn]]:
    """A raw image without holes in a directory that the node may read, on the disk of its state."""
    allowed, state = context.directory / "allowed", context.directory / "state"
    for directory in (allowed, state):
        directory.mkdir(mode=0o700)
    source = allowed / "disk.raw"
    written(source, HALT.ljust(510, b"\0") + SIGNATURE, IMPORT_MIB)
    incoming.prepare(state, "bench")
    images = HostImages(state, context.directory / "cache", Imports((allowed,)))
    yield {OURS: partial(import_turn, images, source), "sha256sum": partial(checksum_turn, source)}


def written(path: Path, head: bytes, size_mib: int) -> None:
    """A file of this size that begins so and goes on with noise."""
    with path.open("wb") as file:
        file.write(head + os.urandom(MIB - len(head)))
        for _ in range(size_mib - 1):
            file.write(os.urandom(MIB))


async def import_turn(images: HostImages, source: Path) -> Samples:
    """From the effect to the image that is synced, checked and has its name."""
    began_s = time.perf_counter()
    stored = await images.perform(FetchImage("fetch-1", "i", str(source), None), quiet)
    took_s = time.perf_counter() - began_s
    assert isinstance(stored, ImageStored), stored
    await images.perform(RemoveImage("remove-1", "i", str(source)), quiet)
    return {"s": [took_s]}


async def checksum_turn(source: Path) -> Samples:
    """The checksum of the same file by the program of coreutils."""

    def taken() -> float:
        began_s = time.perf_counter()
        subprocess.run(["sha256sum", str(source)], stdout=subprocess.DEVNULL, check=True)
        return time.perf_counter() - began_s

    return {"s": [await asyncio.to_thread(taken)]}


@asynccontextmanager
async def kept_disks(context: Context) -> AsyncIterator[Mapping[str, Turn]]:
    """A qcow2 disk as a build keeps one."""
    raw, kept = context.directory / "raw", context.directory / "disk.qcow2"
    written(raw, HALT.ljust(510, b"\0") + SIGNATURE, DISK_MIB)
    await run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(kept))
    raw.unlink()
    yield {OURS: partial(kept_turn, kept, context.directory / "image")}


async def kept_turn(kept: Path, target: Path) -> Samples:
    """The copy of the kept disk, resized, synced and with its checksum."""
    began_s = time.perf_counter()
    await copy(kept, target, BuildImage("build-1", "i", "debian-12", size_gib=4))
    took_s = time.perf_counter() - began_s
    target.unlink()
    return {"s": [took_s]}


IMAGE_ROWS: Final = (
    Row(
        "image-import",
        f"an image of {IMPORT_MIB} MiB imported from a file",
        imports,
        (Target("s", "<=", 1.3, versus="sha256sum"),),
        note="Copied, synced, its SHA-256 taken, its header read, named. The page cache has the file for both.",
    ),
    Row(
        "image-kept",
        f"`image build debian-12` of packages built before, but for apt's look at its sources ({DISK_MIB} MiB)",
        kept_disks,
        (Target("s", "<=", 5),),
        note="The disk is noise of that size, not a Debian: what is measured is its copy, the resize and the checksum.",
    ),
)
