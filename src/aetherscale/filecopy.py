"""A file of this host, copied once it is at rest: sharing its data where the file system can, and with its holes.

A file that is being written is not copied, since half of it would be taken for the whole: QEMU's own locks show it
(block/file-posix.c: on the bytes from 100 on), the kernel does for any other program, and so do its size and times
before and after. Knows nothing of images.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from aetherscale.kernel.fault import Fault

MOST_HOLES_BYTES: Final = 32 << 30
"""More emptiness than this is not read through for a checksum: it would hold a processor for minutes."""

ROOM_LEFT_BYTES: Final = 16 << 20
"""The room that is left free on a disk that fills: the log is there too."""

_FICLONE: Final = 0x40049409
"""ioctl_ficlone(2): have the same data, of which each keeps its own copy from then on."""

_PIECE_BYTES: Final = 16 << 20
_BUFFER_BYTES: Final = 1 << 20
_CANNOT: Final = {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTTY, errno.EBADF, errno.EPERM}
_OPEN: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_QEMU_WRITES: Final = (101, 103)
"""The bytes that a QEMU has locked which may write to a file, and which may change its size."""
_FLOCK: Final = struct.Struct("hhqqi4x")

Advance = Callable[[int, int], None]
"""Called with how many bytes of how many have been read; may raise to end the copy."""


def open_file(path: str | Path, *, dir_fd: int | None = None, flags: int = 0) -> int:
    """A regular file, open for reading. A FIFO is not waited for. Raises OSError, EINVAL where it is something else."""
    descriptor = os.open(path, _OPEN | flags, dir_fd=dir_fd)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "no regular file", str(path))
    return descriptor


def open_below(directories: Sequence[Path], path: str, never: Sequence[Path] = ()) -> int:
    """A regular file below one of the directories, open for reading, reached through no symbolic link below it.

    Nothing that lies in one of the directories `never` is opened, wherever they are. Raises OSError for a file that is
    not there or may not be read; the caller does not learn which.
    """
    if path != os.path.normpath(path):
        raise OSError(errno.EACCES, "not below a directory that is allowed", path)
    refused = {_identity(each) for each in never if each.exists()}
    for directory in directories:
        if Path(path).is_relative_to(directory) and Path(path) != directory:
            return _walk(directory, Path(path).relative_to(directory).parts, refused)
    raise OSError(errno.EACCES, "not below a directory that is allowed", path)


def _walk(directory: Path, parts: Sequence[str], refused: set[tuple[int, int]]) -> int:
    here = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts[:-1]:
            there = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            os.close(here)
            here = there
            if _identity(here) in refused:
                raise OSError(errno.EACCES, "not below a directory that is allowed", part)
        if _identity(here) in refused:
            raise OSError(errno.EACCES, "not below a directory that is allowed", str(directory))
        return open_file(parts[-1], dir_fd=here, flags=os.O_NOFOLLOW)
    finally:
        os.close(here)


def _identity(place: Path | int) -> tuple[int, int]:
    status = os.stat(place)
    return status.st_dev, status.st_ino


def copy(original: int, target: int, advance: Advance) -> int:
    """Copy an open file to another one, which is empty; returns its size in bytes.

    Raises `Fault` for one that is being written, or that is mostly holes; OSError; and what `advance` raises.
    """
    before = os.fstat(original)
    holes_bytes = before.st_size - before.st_blocks * 512
    if holes_bytes > MOST_HOLES_BYTES:
        raise Fault(
            f"it has {holes_bytes} bytes of holes, and {MOST_HOLES_BYTES} are taken",
            "make it compact: qemu-img convert -O qcow2 OLD NEW.qcow2",
            retryable=False,
        )
    _require_rest(original)
    if not _share(original, target):
        _copy_data(original, target, before.st_size, advance)
    _require_rest(original)
    after = os.fstat(original)
    if _times(before) != _times(after):
        raise _written("it has changed since the copy began")
    return before.st_size


def _times(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _written(how: str) -> Fault:
    return Fault(
        f"another program is writing to the file: {how}",
        "wait until it is whole, then import it again",
        retryable=False,
    )


def _require_rest(file: int) -> None:
    """Raises `Fault` where a program has the file open for writing, as far as that can be known."""
    for byte in _QEMU_WRITES:
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
        if _FLOCK.unpack(fcntl.fcntl(file, fcntl.F_OFD_GETLK, asked))[0] != fcntl.F_UNLCK:
            raise _written("a QEMU or another program has locked it")
    # The kernel gives a read lease for a file that is not open for writing, to its owner or root (fcntl(2)). It is
    # given back at once. Who wants to write in between is told to us by a signal that does nothing, and not by SIGIO.
    fcntl.fcntl(file, fcntl.F_SETSIG, signal.SIGURG)
    try:
        fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        if error.errno == errno.EAGAIN:
            raise _written("a program has it open for writing") from None
        return  # not ours, or on a file system without leases
    fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def _share(original: int, target: int) -> bool:
    """Whether the two files could be made to share their data."""
    try:
        fcntl.ioctl(target, _FICLONE, original)
    except OSError as error:
        if error.errno in _CANNOT:
            return False
        raise
    return True


def _copy_data(original: int, target: int, size_bytes: int, advance: Advance) -> None:
    """Copy what is no hole. A file that becomes shorter meanwhile is a failure."""
    _require_room(original, target)
    os.ftruncate(target, size_bytes)
    for offset, end in data_of(original, size_bytes):
        while offset < end:
            copied = _copy_piece(original, target, offset, min(_PIECE_BYTES, end - offset))
            if copied == 0:
                raise _written("it became shorter while it was copied")
            offset += copied
            advance(offset, size_bytes)


def data_of(file: int, size_bytes: int) -> Iterator[tuple[int, int]]:
    """From where to where an open file has data, up to a size; between them are holes."""
    end = 0
    while end < size_bytes:
        try:
            start = os.lseek(file, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                return
            raise
        if start >= size_bytes:
            return
        end = min(size_bytes, os.lseek(file, start, os.SEEK_HOLE))
        yield start, end


def free_bytes(place: int | Path) -> int:
    """How much may still be written where a file is, so that the log beside it has room."""
    there = os.statvfs(place)
    return max(0, there.f_bavail * there.f_frsize - ROOM_LEFT_BYTES)


def _require_room(original: int, target: int) -> None:
    if os.fstat(original).st_blocks * 512 > free_bytes(target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _copy_piece(original: int, target: int, offset: int, length: int) -> int:
    """Copy one piece inside the kernel where it can, else through here; how many bytes."""
    try:
        return os.copy_file_range(original, target, length, offset, offset)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
    piece = os.pread(original, min(length, _BUFFER_BYTES), offset)
    return os.pwrite(target, piece, offset)
