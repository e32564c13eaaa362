"""The keeper of a serial log: writes what comes from a pipe into a file of bounded size, and beside it when it came.

    python -I -S keeper.py LOG LIMIT_BYTES  < pipe

A program of its own, which outlives the node: so it imports nothing but what Python has at hand, and the node imports
from here how the moments are written. A file that is full becomes LOG.1, and its moments become MOMENTS.1.

The moments of a file are lines of one length, which is how a torn one is told from a whole one. The first names the
file by its inode. Each other one says `BEGIN END AT`: what is in the file from the byte AT on, up to the AT that
follows, came between these two moments (in microseconds since 1970, END not included).
"""

from __future__ import annotations

import os
import sys
import time

TYPE_CHECKING = False  # as mypy takes it: to import typing takes longer than all the rest
if TYPE_CHECKING:
    from collections.abc import Callable

MOMENTS_NAME = "console.moments"
MOMENTS_LIMIT = 4096
"""Moments of one file. When there are so many, each two of the older half become one that spans both."""
STEP_US = 1_000_000
"""Output within a second has one moment."""
LINE_BYTES = 51
PIECE_BYTES = 64 * 1024

_DIGITS = 16
_LARGEST = 16**_DIGITS - 1
_FLAGS = os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW

Moment = tuple[int, int, int]
"""BEGIN, END, AT."""


def line_of(begin: int, end: int, at: int) -> bytes:
    """A moment as a line."""
    return b"%016x %016x %016x\n" % tuple(min(max(number, 0), _LARGEST) for number in (begin, end, at))


def header_of(inode: int) -> bytes:
    """The first line, which names the file; as long as the others."""
    return (b"inode %016x" % (inode & _LARGEST)).ljust(LINE_BYTES - 1) + b"\n"


def moments_of(data: bytes, log: os.stat_result) -> list[Moment]:
    """The moments in a file of moments that is about the log with this status; none where it is about another one.

    Lines that are torn are left out. What is said of bytes that are gone, since the file was cut, is forgotten. Where
    the last moment was not written whole, what came then belongs to the one before, which so ends when the log was
    changed.
    """
    first, *lines = data.split(b"\n")
    if first + b"\n" != header_of(log.st_ino):
        return []
    found: list[Moment] = []
    for line in lines:
        if (moment := _moment_of(line)) is None:
            continue
        while found and found[-1][2] > moment[2]:
            found.pop()
        found.append(moment)
    found = [moment for moment in found if moment[2] <= log.st_size]
    if found:
        begin, end, at = found[-1]
        found[-1] = begin, max(end, _changed_us(log) + 1), at
    return found


def _moment_of(line: bytes) -> Moment | None:
    words = line.split(b" ")
    if len(line) != LINE_BYTES - 1 or [len(word) for word in words] != [_DIGITS] * 3:
        return None
    try:
        begin, end, at = (int(word, 16) for word in words)
    except ValueError:
        return None
    return begin, end, at


def before_moments(log: os.stat_result) -> list[Moment]:
    """The moment of a file without moments: its content came at some time before its last change."""
    return [(0, _changed_us(log) + 1, 0)] if log.st_size else []


def _changed_us(log: os.stat_result) -> int:
    return log.st_mtime_ns // 1000


def thinned(moments: list[Moment]) -> list[Moment]:
    """Each two of the older half as one that spans both."""
    half = len(moments) // 2 // 2 * 2
    pairs = zip(moments[0:half:2], moments[1:half:2], strict=True)
    return [(min(a[0], b[0]), max(a[1], b[1]), a[2]) for a, b in pairs] + moments[half:]


class Moments:
    """The file of moments that belongs to a file of the log, which is open."""

    def __init__(self, path: str, log: os.stat_result) -> None:
        """Go on with what is there, where it is about the log whose status this is. Raises `OSError`."""
        self._path, self._inode = path, log.st_ino
        self._begin = self._end = 0
        """The moment that what comes now belongs to; none yet."""
        self._owed: Moment | None = None
        """One that could not be written: what came since belongs to it too."""
        self._file = os.open(path, os.O_RDWR | _FLAGS, 0o600)
        known = moments_of(self._whole(), log) or before_moments(log)
        try:
            self._write_anew(known)
        except OSError:
            os.close(self._file)
            raise

    def note(self, now_us: int, log: os.stat_result) -> None:
        """Output after the end of the log comes now. A moment that cannot be written now is written later."""
        if self._owed is None and self._begin <= now_us < self._end:
            return
        begin, _, first = self._owed or (now_us, 0, log.st_size)
        self._owed = (begin, now_us + STEP_US, first)
        try:
            if self._count >= MOMENTS_LIMIT:
                self._write_anew(thinned(moments_of(self._whole(), log)))
            self._append(line_of(*self._owed))
        except OSError:
            return
        self._begin, self._end, self._owed = begin, now_us + STEP_US, None
        self._count += 1

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)

    def _append(self, line: bytes) -> None:
        size = os.fstat(self._file).st_size
        try:
            if os.write(self._file, line) < len(line):
                raise OSError
        except OSError:
            os.ftruncate(self._file, size)
            raise

    def _whole(self) -> bytes:
        return os.pread(self._file, (MOMENTS_LIMIT + 2) * LINE_BYTES, 0)

    def _write_anew(self, moments: list[Moment]) -> None:
        """Put a file in place that says this and no more, whole or not at all. Raises `OSError`."""
        folder, _, name = self._path.rpartition("/")
        fresh_path = f"{folder}/.{name}"
        fresh = os.open(fresh_path, os.O_RDWR | os.O_TRUNC | _FLAGS, 0o600)
        data = header_of(self._inode) + b"".join(line_of(*moment) for moment in moments)
        try:
            if os.write(fresh, data) < len(data):
                raise OSError
            os.rename(fresh_path, self._path)
        except OSError:
            os.close(fresh)
            raise
        os.close(self._file)
        self._file, self._count = fresh, len(moments)


class LogFile:
    """The file that is written to at present."""

    def __init__(self, path: str, limit_bytes: int) -> None:
        """Open it, or make it. Raises `OSError`."""
        self._path, self._limit_bytes = path, limit_bytes
        self._moments_path = f"{path.rpartition('/')[0]}/{MOMENTS_NAME}"
        self._file = os.open(path, os.O_WRONLY | _FLAGS, 0o600)
        self._moments: Moments | None = None

    def write(self, data: bytes, now_us: int) -> int:
        """Write as much as there is room for; how much that was, 0 for a file that is full. Raises `OSError`."""
        status = os.fstat(self._file)
        room = self._limit_bytes - status.st_size
        if room <= 0:
            return 0
        if self._moments is None:
            try:
                self._moments = Moments(self._moments_path, status)
            except OSError:
                self._moments = None  # a log without moments is better than none
        if self._moments is not None:
            self._moments.note(now_us, status)
        return os.write(self._file, data[:room])

    def retire(self) -> None:
        """Make it the one before. Raises `OSError`."""
        if os.path.exists(self._moments_path):
            os.rename(self._moments_path, f"{self._moments_path}.1")
        os.rename(self._path, f"{self._path}.1")

    def close(self) -> None:
        """Let go of it."""
        os.close(self._file)
        if self._moments is not None:
            self._moments.close()


class Keeper:
    """Writes pieces of a log as they come."""

    def __init__(self, path: str, limit_bytes: int) -> None:
        self._path, self._limit_bytes = path, limit_bytes
        self._file: LogFile | None = None

    def take(self, data: bytes, now_us: int) -> None:
        """Write a piece that comes now.

        Where the disk is full, what comes is thrown away until there is room, since the guest would wait.
        """
        try:
            while data:
                self._file = self._file or LogFile(self._path, self._limit_bytes)
                if written := self._file.write(data, now_us):
                    data = data[written:]
                else:
                    self._file.retire()
                    self.close()
        except OSError:
            self.close()

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
        self._file = None


def keep(pipe: int, keeper: Keeper, now_ns: Callable[[], int]) -> None:
    """Write all that comes, until the pipe has no writer any more. `now_ns` is the clock."""
    while data := os.read(pipe, PIECE_BYTES):
        keeper.take(data, now_ns() // 1000)


if __name__ == "__main__":
    keep(0, Keeper(sys.argv[1], int(sys.argv[2])), time.time_ns)
