"""The files beside the database: the lock, the head of the hash chain, and the reserve for a full disk.

`events.db` has `events.lock`, `events.head` and `events.reserve` next to it. Nothing here knows SQL.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from aetherscale import statedir
from aetherscale.eventstore.chain import HEAD_BYTES, Head, head_from_bytes, head_to_bytes
from aetherscale.eventstore.store import Locked

RESERVE_BYTES: Final = 16 * 1024 * 1024
"""Room for some hundred small commits in the write-ahead log."""

HEAD_READS: Final = 10


class Lock:
    """The right to write to a log, held until `release` or the death of the process.

    An advisory lock (flock(2)) on a descriptor that is closed on exec, so that no child process can inherit it. The
    file says who holds it and stays: removing it would let two processes lock two files of the same name.
    """

    def __init__(self, path: Path) -> None:
        """Raises `Locked`, which names the holder, `NotOurs` for the directory of another user, and OSError."""
        self._descriptor = statedir.open_file(path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._descriptor, 512, 0).decode(errors="replace").strip()
            os.close(self._descriptor)
            raise Locked(
                f"{path.with_suffix('.db')}: another process writes to this log: {holder or 'it has not said which'}; "
                f"stop it first, or give another --state-dir"
            ) from None
        os.ftruncate(self._descriptor, 0)
        with suppress(OSError):  # on a full disk the lock holds without saying whose it is
            os.pwrite(self._descriptor, f"pid {os.getpid()}: {_command_line()}\n".encode(), 0)

    def release(self) -> None:
        """Let others write; idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class HeadFile:
    """The end of the log, written after each commit in place: `events.head`."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self._descriptor = statedir.open_file(path, os.O_WRONLY | os.O_CREAT)

    def write(self, head: Head) -> None:
        """Not durable before `sync`. Raises OSError."""
        os.pwrite(self._descriptor, head_to_bytes(head), 0)

    def sync(self) -> None:
        """Raises OSError."""
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def read_head(path: Path) -> Head | None:
    """The head of a log; None where there is no such file. Raises `Damaged`, OSError.

    A node may be writing it at this moment: it is read until it reads the same twice.
    """
    raw = b""
    for _ in range(HEAD_READS):
        before = raw
        try:
            raw = statedir.read_file(path, HEAD_BYTES + 1)
        except FileNotFoundError:
            return None
        if raw == before:
            break
    return head_from_bytes(raw, str(path))


class Reserve:
    """Room that is held back on the disk, and given to urgent appends when there is no other: `events.reserve`."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        """Raises OSError."""
        self._size_bytes = size_bytes
        self._descriptor = statedir.open_file(path, os.O_RDWR | os.O_CREAT)
        self.spent = True
        self.refill()

    def refill(self) -> bool:
        """Take the room again, if it is there; whether it is."""
        if self.spent:
            try:
                os.posix_fallocate(self._descriptor, 0, max(self._size_bytes, 1))
                self.spent = False
            except OSError:
                os.ftruncate(self._descriptor, 0)
        return not self.spent

    def spend(self) -> bool:
        """Give the room to the log; False where that has been done already."""
        if self.spent:
            return False
        os.ftruncate(self._descriptor, 0)
        self.spent = True
        return True

    def close(self) -> None:
        """The room stays taken, for the next start. Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def sync_directory(path: Path) -> None:
    """Make the names of the files in a directory durable. Raises OSError."""
    _sync(path, os.O_DIRECTORY)


def sync_file(path: Path) -> None:
    """Make the content of a file durable, whichever process wrote it. Raises OSError."""
    _sync(path, 0)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _command_line() -> str:
    """The command line of this process, as `ps` shows it; proc(5)."""
    return Path("/proc/self/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()[:400]
