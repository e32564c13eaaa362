"""A VM's serial line: one connection to QEMU, many readers, and the log that QEMU writes.

QEMU serves one client and writes `console.log` by itself, also while no node is there. The node reads the line as long
as it watches the VM, so that the guest never waits for a reader, and shortens the log when it has grown.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator
from typing import Final, cast

from aetherscale.actors.compute.qemu.layout import CONSOLE_LOG, VmDirectory
from aetherscale.actors.compute.readers import RECENT_BYTES, Reader, Readers
from aetherscale.kernel.errors import Refused

log = logging.getLogger(__name__)

LOG_KEPT_BYTES: Final = 4 * 1024 * 1024
LOG_LIMIT_BYTES: Final = 2 * LOG_KEPT_BYTES
_LOOK_EVERY_BYTES: Final = 256 * 1024
_CHUNK_BYTES: Final = 64 * 1024


class ConsoleLog:
    """The file that QEMU appends to."""

    def __init__(self, directory: VmDirectory) -> None:
        self._directory = directory

    def size(self) -> int:
        """Its length; 0 where there is none."""
        try:
            descriptor = self._directory.open_file(CONSOLE_LOG, os.O_RDONLY)
        except FileNotFoundError:
            return 0
        try:
            return os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)

    def read(self, start: int, end: int) -> bytes:
        """The bytes from `start` to `end`, fewer where it is shorter."""
        try:
            descriptor = self._directory.open_file(CONSOLE_LOG, os.O_RDONLY)
        except FileNotFoundError:
            return b""
        try:
            start = max(0, start)
            return os.pread(descriptor, max(0, end - start), start)
        finally:
            os.close(descriptor)

    def shorten(self) -> int:
        """Cut off the oldest bytes if it has outgrown the limit; returns how many.

        QEMU goes on appending meanwhile, so the end is copied to the beginning until no more has come, and then the
        file is cut. What is written between those two, a microsecond apart, is missing from the log, and from nothing
        else: whoever reads the line itself sees it.
        """
        try:
            descriptor = self._directory.open_file(CONSOLE_LOG, os.O_RDWR)
        except FileNotFoundError:
            return 0
        try:
            size = os.fstat(descriptor).st_size
            if size <= LOG_LIMIT_BYTES:
                return 0
            cut = size - LOG_KEPT_BYTES
            kept_bytes = 0
            while piece := os.pread(descriptor, _CHUNK_BYTES, cut + kept_bytes):
                kept_bytes += os.pwrite(descriptor, piece, kept_bytes)
            os.ftruncate(descriptor, kept_bytes)
            return cut
        finally:
            os.close(descriptor)


class SerialLine:
    """The serial line of one process, whatever connections to it come and go.

    `fresh` says that it is connected before the guest runs, so that all that the guest ever writes in this run comes
    through it. Otherwise the recent past is taken from the log, once.
    """

    def __init__(self, console_log: ConsoleLog, *, fresh: bool) -> None:
        self._log = console_log
        self._log.shorten()
        self._position = self._log.size()
        """Where in the log the next byte that arrives is, or will be."""
        past = b"" if fresh else self._log.read(self._position - RECENT_BYTES, self._position)
        self._readers = Readers(self._send, past)
        self._unlooked_bytes = 0
        self._connection: _Connection | None = None
        self._writable = asyncio.Event()
        self._is_over = False

    async def connect(self, to: socket.socket) -> None:
        """Use a connection to QEMU's end of the line from now on; takes it over."""
        loop = asyncio.get_running_loop()
        _, self._connection = await loop.create_unix_connection(lambda: _Connection(self), sock=to)
        self._writable.set()

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection to QEMU."""
        return self._connection is not None

    def attach(self) -> Reader:
        """A new reader, which gets the recent past first."""
        return self._readers.attach()

    def attach_with_log(self, tail_bytes: int) -> Reader:
        """A new reader, which gets the last `tail_bytes` first, from the log and what has just arrived."""
        recent = self._readers.recent
        if tail_bytes <= len(recent):
            return self._readers.attach(recent[len(recent) - tail_bytes :])
        older = self._log.read(self._position - tail_bytes, self._position - len(recent))
        return self._readers.attach(older + recent)

    def feed(self, data: bytes) -> None:
        """Take what the guest wrote."""
        self._position += len(data)
        self._readers.feed(data)
        self._unlooked_bytes += len(data)
        if self._unlooked_bytes >= _LOOK_EVERY_BYTES:
            self._unlooked_bytes = 0
            self._shorten()

    def finish(self) -> None:
        """The process is gone. What it has written last is still read; then readers see the end."""
        self._is_over = True
        self._writable.set()
        if self._connection is None:
            self._readers.end()

    def close(self) -> None:
        """Let go of the line at once; readers see its end."""
        self.finish()
        if self._connection is not None:
            self._connection.transport.abort()

    def lost(self, connection: _Connection) -> None:
        """A connection has ended; the line goes on for as long as the process does."""
        if connection is self._connection:
            self._connection = None
            self.pace(writable=self._is_over)
            if self._is_over:
                self._readers.end()

    def pace(self, *, writable: bool) -> None:
        """Whether QEMU takes more input now."""
        if writable:
            self._writable.set()
        else:
            self._writable.clear()

    async def _send(self, data: bytes) -> None:
        await self._writable.wait()
        if self._is_over or self._connection is None:
            raise Refused(409, "the VM has ended")
        self._connection.transport.write(data)

    def _shorten(self) -> None:
        try:
            self._position -= self._log.shorten()
        except OSError as error:
            # A log that cannot be shortened now is no reason to stop reading the line.
            log.warning("could not shorten %s: %s", CONSOLE_LOG, error)


class _Connection(asyncio.Protocol):
    """One connection to QEMU's end of a serial line."""

    transport: asyncio.Transport

    def __init__(self, line: SerialLine) -> None:
        self._line = line

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Another loop's transport, as uvloop's, has the methods and not the class.
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._line.feed(data)

    def pause_writing(self) -> None:
        self._line.pace(writable=False)

    def resume_writing(self) -> None:
        self._line.pace(writable=True)

    def connection_lost(self, exc: Exception | None) -> None:
        self._line.lost(self)


async def stored_log(directory: VmDirectory, tail_bytes: int) -> AsyncIterator[bytes]:
    """The last `tail_bytes` of the log of a VM, in pieces."""
    console_log = ConsoleLog(directory)
    end = console_log.size()
    position = max(0, end - tail_bytes)
    while position < end and (piece := console_log.read(position, min(end, position + _CHUNK_BYTES))):
        yield piece
        position += len(piece)
