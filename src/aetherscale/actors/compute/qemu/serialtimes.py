"""Where in a serial log a moment is, by what its keeper wrote down (`keeper.py`)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final, NamedTuple

from aetherscale.actors.compute.qemu import keeper
from aetherscale.actors.compute.qemu.layout import MOMENTS, MOMENTS_BEFORE, VmDirectory

LINE_BYTES: Final = 64 * 1024
"""How far back the beginning of a line is looked for."""


class Place(NamedTuple):
    """A place in the files of a log, and what is not known of what follows it."""

    file: int
    """Which of the files, counted from 0."""
    offset: int
    went_back: bool
    """Whether some of what follows is older than was asked for: the clock was set back while it was written."""
    has_no_times: bool
    """Whether some of what follows came at an unknown time: an older version wrote it."""


def place_of(directory: VmDirectory, files: Sequence[int], moment_us: int) -> Place:
    """The beginning of the line in which the first byte is that may have come at this moment or later.

    `files` are descriptors, the oldest first, at least one. Raises `OSError`.
    """
    sizes = [os.fstat(file).st_size for file in files]
    moments = _moments(directory, files, sizes)
    later = next((at for at, (_, end, _) in enumerate(moments) if end > moment_us), len(moments))
    shown = moments[later:]
    # Where nothing has come since, there is no line to show.
    count = _line_begin(files, sizes, shown[0][2]) if shown else sum(sizes)
    file = 0
    while file < len(files) - 1 and count >= sizes[file]:
        count -= sizes[file]
        file += 1
    went_back = any(end <= moment_us for _, end, _ in shown)
    return Place(file, count, went_back, has_no_times=moment_us > 0 and any(begin == 0 for begin, _, _ in shown))


def _moments(directory: VmDirectory, files: Sequence[int], sizes: Sequence[int]) -> list[keeper.Moment]:
    """When what is in the files came, counted from the beginning of the first."""
    # The older file is looked at last: a file that becomes it meanwhile is found all the same.
    known = [directory.head(name, (keeper.MOMENTS_LIMIT + 2) * keeper.LINE_BYTES) for name in (MOMENTS, MOMENTS_BEFORE)]
    found: list[keeper.Moment] = []
    total = 0
    for file, size in zip(files, sizes, strict=True):
        status = os.fstat(file)
        told = (keeper.moments_of(data, status) for data in known)
        moments = next((each for each in told if each), keeper.before_moments(status))
        found += [(begin, end, total + at) for begin, end, at in moments]
        total += size
    return found


def _line_begin(files: Sequence[int], sizes: Sequence[int], count: int) -> int:
    """Where the line begins in which the byte at `count` is; the byte itself where the line is too long."""
    start = max(0, count - LINE_BYTES)
    before, total = b"", 0
    for file, size in zip(files, sizes, strict=True):
        if start < total + size and total < count:
            first = max(start - total, 0)
            before += os.pread(file, min(count - total, size) - first, first)
        total += size
    newline = before.rfind(b"\n")
    if newline >= 0:
        return start + newline + 1
    return 0 if start == 0 else count
