"""Room at the end of the write-ahead log, so that a commit writes over zeros and does not make the file grow.

A file that grows costs the disk a second write for each sync, of where the file ends: a third of a small commit. SQLite
writes over old frames by itself once it has checkpointed, which is 64 MiB later. What is beyond the last commit means
nothing to SQLite, which knows its frames by their salts and checksums (https://sqlite.org/walformat.html).
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from aetherscale.eventstore.sqlite import opening

PAGE_BYTES: Final = 4096
HEADER_BYTES: Final = 32
FRAME_BYTES: Final = 24 + PAGE_BYTES
STEP_BYTES: Final = 8 * 1024 * 1024
"""How much room is made at once: some hundred small commits, and some milliseconds of the disk."""
LEAST_BYTES: Final = STEP_BYTES // 2
"""With less room than this more is made."""
FREE_BYTES: Final = 64 * 1024 * 1024
"""Nothing is made on a disk that has less than this to give."""


class WalRoom:
    """The room of one log. To be called by the one that writes to the log, between two commits."""

    def __init__(self, log: Path) -> None:
        self._path = log.with_name(f"{log.name}-wal")

    def make(self) -> None:
        """Make room where there is too little. Raises OSError where what was written cannot be synced."""
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return  # SQLite has not made it yet, and says itself what is wrong
        try:
            size = os.fstat(descriptor).st_size
            disk = os.fstatvfs(descriptor)
            if (
                size < HEADER_BYTES + opening.WAL_AUTOCHECKPOINT_PAGES * FRAME_BYTES
                and size - _end(descriptor, size) < LEAST_BYTES
                and disk.f_bavail * disk.f_frsize >= FREE_BYTES
                and _fill(descriptor, size)
            ):
                os.fdatasync(descriptor)
        finally:
            os.close(descriptor)


def _end(descriptor: int, size: int) -> int:
    """Where the frames end: at the first whose header is zeros, or with the file. A page of a frame is never page 0."""
    first, last = 0, max(size - HEADER_BYTES, 0) // FRAME_BYTES
    while first < last:
        middle = (first + last) // 2
        if any(os.pread(descriptor, 4, HEADER_BYTES + middle * FRAME_BYTES)):
            first = middle + 1
        else:
            last = middle
    return HEADER_BYTES + first * FRAME_BYTES


def _fill(descriptor: int, size: int) -> bool:
    """Write zeros after the end; where the disk does not take them all, the file is as it was. Whether it does."""
    with suppress(OSError):
        if os.pwrite(descriptor, bytes(STEP_BYTES), size) == STEP_BYTES:
            return True
        os.ftruncate(descriptor, size)
    return False
