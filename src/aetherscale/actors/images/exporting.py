"""Images on their way out: as qcow2, in pieces that fit into messages.

One that is stored as qcow2 is read where it is. A raw one is converted once, into the cache, for as long as it is read.

    <cache>/exports/<sha256>.qcow2    a raw image with that SHA-256, converted; removed when it was not read for an hour
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Final, Literal

from msgspec import Struct

from aetherscale import statedir
from aetherscale.actors.images.building.programs import run
from aetherscale.actors.images.fetching.fetch import read
from aetherscale.actors.images.store import Store
from aetherscale.filecopy import free_bytes, open_file
from aetherscale.kernel.fault import Fault
from aetherscale.runtime.component import Progress

KEPT_S: Final = 3600.0
PIECE_BYTES: Final = 512 * 1024
"""In base64 it fits into a message of NATS."""
CONVERT_TIMEOUT_S: Final = 1800.0

_DIRECTORY: Final = "exports"


class Exported(Struct, frozen=True):
    """What is read in pieces: its SHA-256 in hex, and its size in bytes."""

    sha256: str
    size_bytes: int


class Exports:
    """The images of a store, as others may have them."""

    def __init__(self, store: Store, cache_dir: Path) -> None:
        self._store = store
        self._directory = cache_dir / _DIRECTORY
        self._converting = asyncio.Lock()

    async def prepare(
        self, image_id: str, image_format: Literal["qcow2", "raw"], sha256: str, now_s: float, progress: Progress
    ) -> Exported:
        """Have the image as qcow2. Raises Fault, OSError."""
        path = self._store.path(image_id, image_format, sha256)
        if image_format == "qcow2":
            return Exported(sha256, path.stat().st_size)
        async with self._converting:
            self._sweep(now_s)
            place = self._directory / f"{sha256}.qcow2"
            if not place.exists():
                progress("converting")
                await self._convert(path, place)
            os.utime(place, (now_s, now_s))
        progress("reading")
        found = await read(place)
        return Exported(found.sha256, found.size_bytes)

    def piece(self, image_id: str, image_format: Literal["qcow2", "raw"], sha256: str, offset: int) -> bytes:
        """The bytes of the qcow2 file from an offset on, at most `PIECE_BYTES`. Raises OSError."""
        if image_format == "qcow2":
            path = self._store.path(image_id, image_format, sha256)
        else:
            path = self._directory / f"{sha256}.qcow2"
            os.utime(path)
        file = open_file(path, flags=os.O_NOFOLLOW)
        try:
            return os.pread(file, PIECE_BYTES, offset)
        finally:
            os.close(file)

    async def _convert(self, image: Path, place: Path) -> None:
        fresh = self._fresh(image, place)
        try:
            # The format is given, never probed: a guest's first sector could be that of any other one.
            await run(
                *("qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(image), str(fresh)),
                timeout_s=CONVERT_TIMEOUT_S,
            )
            fresh.rename(place)
        finally:
            fresh.unlink(missing_ok=True)

    def _fresh(self, image: Path, place: Path) -> Path:
        """Where the file is made; there is room for it. Raises Fault, OSError."""
        statedir.make(self._directory)
        fresh = place.with_name(f"{place.name}.part")
        fresh.unlink(missing_ok=True)
        if image.stat().st_blocks * 512 > free_bytes(self._directory):
            raise Fault(
                f"no room on the disk of {self._directory}", f"make room: df -h {self._directory}", retryable=False
            )
        return fresh

    def _sweep(self, now_s: float) -> None:
        if self._directory.is_dir():
            for path in self._directory.iterdir():
                if path.lstat().st_mtime < now_s - KEPT_S:
                    path.unlink()
