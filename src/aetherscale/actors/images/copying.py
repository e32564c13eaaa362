"""A file of this host, copied: shared with the original where the file system can, and with its holes."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path
from typing import Final

from aetherscale.actors.images.transfer import CHUNK_BYTES, FetchFailed, Transfer, open_part

_FICLONE: Final = 0x40049409
"""ioctl_ficlone(2): have the same data, of which each keeps its own copy from then on."""

_PIECE_BYTES: Final = 16 * CHUNK_BYTES
_CANNOT: Final = {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTTY, errno.EBADF, errno.EPERM}


def copy(source: Path, transfer: Transfer) -> int:
    """Copy `source` into the part file; returns its size in bytes. Raises FetchFailed, OSError and Stopped."""
    original = _open(source)
    try:
        size_bytes = os.fstat(original).st_size
        transfer.require_room(size_bytes, None)
        part = open_part(transfer.part)
        try:
            if not _share(original, part):
                _copy_data(original, part, size_bytes, transfer)
        finally:
            os.close(part)
    finally:
        os.close(original)
    return size_bytes


def _open(source: Path) -> int:
    """The file, open for reading. A FIFO is not waited for, and nothing but a file is read."""
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise FetchFailed(
            f"{source} cannot be read: {error.strerror}", "look at the path, on the host of the node", retryable=False
        ) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FetchFailed(f"{source} is no regular file", "give the path of an image", retryable=False)
    return descriptor


def _share(original: int, part: int) -> bool:
    """Whether the two files could be made to share their data."""
    try:
        fcntl.ioctl(part, _FICLONE, original)
    except OSError as error:
        if error.errno in _CANNOT:
            return False
        raise
    return True


def _copy_data(original: int, part: int, size_bytes: int, transfer: Transfer) -> None:
    """Copy what is no hole. A file that becomes shorter meanwhile is a failure."""
    os.ftruncate(part, size_bytes)
    offset = 0
    while offset < size_bytes:
        try:
            offset = os.lseek(original, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole up to the end
                break
            raise
        end = min(size_bytes, os.lseek(original, offset, os.SEEK_HOLE))
        while offset < end:
            copied = _copy_piece(original, part, offset, min(_PIECE_BYTES, end - offset))
            if copied == 0:
                raise FetchFailed("the file became shorter while it was copied", "try again", retryable=True)
            offset += copied
            transfer.advance(offset, size_bytes)


def _copy_piece(original: int, part: int, offset: int, length: int) -> int:
    """Copy one piece inside the kernel where it can, else through here; how many bytes."""
    try:
        return os.copy_file_range(original, part, length, offset, offset)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
    piece = os.pread(original, min(length, CHUNK_BYTES), offset)
    return os.pwrite(part, piece, offset)
