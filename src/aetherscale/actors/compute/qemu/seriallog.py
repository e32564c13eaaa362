"""The output of a guest's serial line, on disk: two files of bounded size, written by a keeper of their own.

    guest ─▶ UART ─▶ QEMU ─▶ console.pipe ─▶ keeper ─▶ console.log, and what was before it console.log.1
                                               └─────▶ console.moments, console.moments.1: when it came

QEMU's own `logfile=` writes a byte again when the line did not take it at once, and has no bound. The keeper
(`keeper.py`) takes the bytes in order, needs no node, and ends by itself when QEMU's end of the pipe is closed, which
is when QEMU is gone. So a byte has one place, and whoever reads does it from here.
"""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from typing import Final

from aetherscale.actors.compute.qemu import keeper
from aetherscale.actors.compute.qemu.layout import (
    CONSOLE_LOG,
    CONSOLE_LOG_BEFORE,
    CONSOLE_PIPE,
    VmDirectory,
)
from aetherscale.actors.compute.qemu.serialtimes import Place, place_of

LOG_LIMIT_BYTES: Final = 8 * 1024 * 1024
"""Both files together."""
PIECE_BYTES: Final = 64 * 1024


class SerialLog:
    """The two files of one VM, and the pipe that leads to them."""

    def __init__(self, directory: VmDirectory) -> None:
        self._directory = directory
        self.keeper: int | None = None
        """The pid of the keeper that was begun here."""

    # --- the keeper ----------------------------------------------------------------------------------------------

    def writing_end(self) -> int:
        """A descriptor for QEMU to write to, with a keeper at the other end; the caller closes it. Raises `OSError`.

        A process that has such a descriptor keeps the keeper alive.
        """
        _reap()
        writing = self._open_writing()
        if writing is not None:
            return writing
        self._shorten()
        path = self._directory.path.resolve() / CONSOLE_LOG
        with self._directory.opened() as directory:
            _make_pipe(directory)
            reading = os.open(
                CONSOLE_PIPE, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory
            )
        try:
            writing = os.open(f"/proc/self/fd/{reading}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.set_blocking(reading, True)
            begun = subprocess.Popen(
                [sys.executable, "-I", "-S", keeper.__file__, str(path), str(LOG_LIMIT_BYTES // 2)],
                stdin=reading,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                # Not in the VM's directory: what works there is a VM's process.
                cwd="/",
                umask=0o077,
                start_new_session=True,
            )
            # It outlives this node, as it should; Popen would complain of a child that was not waited for.
            begun.returncode = 0
            self.keeper = begun.pid
            _begun.add(begun.pid)
        finally:
            os.close(reading)
        return writing

    def is_kept(self) -> bool:
        """Whether a keeper reads the pipe, and so may have something to write yet."""
        _reap()
        writing = self._open_writing()
        if writing is None:
            return False
        os.close(writing)
        return True

    def _open_writing(self) -> int | None:
        try:
            with self._directory.opened() as directory:
                writing = os.open(
                    CONSOLE_PIPE, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory
                )
        except OSError as error:
            # ENXIO is a pipe without a reader.
            if error.errno in (errno.ENXIO, errno.ENOENT, errno.ENOTDIR):
                return None
            raise
        if not stat.S_ISFIFO(os.fstat(writing).st_mode):
            os.close(writing)
            return None
        return writing

    def _shorten(self) -> None:
        """Cut what an older version let grow beyond the limit, while it has no writer, to the size of one file."""
        file = self._open(CONSOLE_LOG)
        if file is None:
            return
        try:
            size = os.fstat(file).st_size
            if size <= LOG_LIMIT_BYTES // 2:
                return
            kept = os.pread(file, LOG_LIMIT_BYTES // 2, size - LOG_LIMIT_BYTES // 2)
        finally:
            os.close(file)
        with self._directory.opened() as directory:
            fresh = f".{CONSOLE_LOG}"
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(fresh, flags, 0o600, dir_fd=directory), "wb") as written:
                written.write(kept)
            os.rename(fresh, CONSOLE_LOG, src_dir_fd=directory, dst_dir_fd=directory)

    # --- reading -------------------------------------------------------------------------------------------------

    def beginning(self) -> Cursor:
        """At the oldest byte that there is; the caller closes it."""
        return Cursor(self)

    def before_end(self, count: int) -> Cursor:
        """So many bytes before the end, or at the beginning; the caller closes it."""
        cursor = Cursor(self)
        cursor.skip(cursor.behind() - count)
        return cursor

    def since(self, moment_us: int) -> tuple[Cursor, Place | None]:
        """At the beginning of the line in which the first byte is that may have come at this moment or later.

        The caller closes the cursor. The place says what is not known; None where there is no file.
        """
        opened = self._opened()
        try:
            if not opened:
                return Cursor(self), None
            place = place_of(self._directory, opened, moment_us)
            return Cursor(self, os.dup(opened[place.file]), place.offset), place
        finally:
            for file in opened:
                os.close(file)

    def files(self) -> Iterator[int]:
        """Descriptors of the files that are there, the older one first; each is closed when the next is asked for."""
        opened = self._opened()
        try:
            yield from opened
        finally:
            for file in opened:
                os.close(file)

    def _opened(self) -> list[int]:
        while True:
            present = self._open(CONSOLE_LOG)
            before = self._open(CONSOLE_LOG_BEFORE)
            opened = [file for file in (before, present) if file is not None]
            if len({os.fstat(file).st_ino for file in opened}) == len(opened):
                return opened
            # One has become the other between the two looks.
            for file in opened:
                os.close(file)

    def _open(self, name: str) -> int | None:
        try:
            return self._directory.open_file(name, os.O_RDONLY)
        except FileNotFoundError:
            return None


class Cursor:
    """A place between two bytes of a log, from which it is read on. Its file stays open, so it is never mistaken."""

    def __init__(self, serial_log: SerialLog, file: int | None = None, offset: int = 0) -> None:
        """At this byte of a file, which is the cursor's from now on; without one, at the oldest byte of all."""
        self._log = serial_log
        self._file = file
        self._offset = offset
        self.has_gap = False
        """Whether what followed was gone before it was read; the reader sets it back."""
        if file is None:
            self._advance()

    def read(self) -> bytes:
        """The next bytes, at most a piece; none where there are none."""
        data = self._read()
        if not data and self._is_followed():
            # What came in between belongs to this file still.
            data = self._read()
            if not data and self._advance():
                data = self._read()
        return data

    def skip(self, count: int) -> None:
        """Leave out so many bytes."""
        while count > 0:
            left = self._size() - self._offset
            if count < left or not self._is_followed():
                self._offset += min(count, left)
                return
            count -= left
            self._offset += left
            self._advance()

    def behind(self) -> int:
        """How many bytes follow, as far as they are still there."""
        own = self._identity()
        sizes = [(_identity(file), os.fstat(file).st_size) for file in self._log.files()]
        at = next((at for at, (inode, _) in enumerate(sizes) if inode == own), None)
        following = sizes if at is None else sizes[at + 1 :]
        return self._size() - self._offset + sum(size for _, size in following)

    def is_gone(self) -> bool:
        """Whether its file is no longer one of the log's."""
        return all(_identity(file) != self._identity() for file in self._log.files())

    def close(self) -> None:
        """Let go of the file; idempotent."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _read(self) -> bytes:
        if self._file is None:
            return b""
        data = os.pread(self._file, PIECE_BYTES, self._offset)
        self._offset += len(data)
        return data

    def _size(self) -> int:
        return os.fstat(self._file).st_size if self._file is not None else 0

    def _identity(self) -> int | None:
        return _identity(self._file) if self._file is not None else None

    def _is_followed(self) -> bool:
        inodes = [_identity(file) for file in self._log.files()]
        return bool(inodes) and inodes[-1] != self._identity()

    def _advance(self) -> bool:
        """Go to the beginning of the file that follows, or of the oldest; whether there is one."""
        own = self._identity()
        files = {_identity(file): os.dup(file) for file in self._log.files()}
        inodes = list(files)
        following = inodes[inodes.index(own) + 1 :] if own in files else inodes
        chosen = files.pop(following[0]) if following else None
        for file in files.values():
            os.close(file)
        if chosen is None:
            return False
        self.has_gap = self.has_gap or (own is not None and own not in inodes)
        self.close()
        self._file, self._offset = chosen, 0
        return True


_begun: Final[set[int]] = set()
"""Keepers that are children of this process and have not been waited for."""


def _reap() -> None:
    """Take note of those that have ended, so that none stays as a zombie for longer than to the next look."""
    for pid in tuple(_begun):
        try:
            ended = os.waitpid(pid, os.WNOHANG)[0] != 0
        except ChildProcessError:
            ended = True
        if ended:
            _begun.remove(pid)


def _identity(file: int) -> int:
    return os.fstat(file).st_ino


def _make_pipe(directory: int) -> None:
    """A pipe where there is none; whatever else has its name goes."""
    try:
        if stat.S_ISFIFO(os.stat(CONSOLE_PIPE, dir_fd=directory, follow_symlinks=False).st_mode):
            return
        os.unlink(CONSOLE_PIPE, dir_fd=directory)
    except FileNotFoundError:
        pass
    os.mkfifo(CONSOLE_PIPE, 0o600, dir_fd=directory)
