"""A VM's serial line: one connection to QEMU, many readers, and the log that QEMU writes.

QEMU serves one client and writes `console.log` by itself, also while no node is there. The node reads the line as long
as it watches the VM, so that the guest never waits for a reader, keeps the last bytes for those who come later, and
shortens the log when it has grown. A reader that is too slow loses its own oldest bytes and is told how many.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import deque
from collections.abc import AsyncIterator
from typing import Final

from aetherscale.actors.compute.qemu.layout import CONSOLE_LOG, VmDirectory
from aetherscale.kernel.errors import Refused

log = logging.getLogger(__name__)

RECENT_BYTES: Final = 64 * 1024
READER_LIMIT_BYTES: Final = 256 * 1024
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

        QEMU goes on appending meanwhile. What it writes between the last read and the truncation, microseconds apart,
        is missing from the log; whoever reads the line itself sees it.
        """
        try:
            descriptor = self._directory.open_file(CONSOLE_LOG, os.O_RDWR | os.O_APPEND)
        except FileNotFoundError:
            return 0
        try:
            size = os.fstat(descriptor).st_size
            if size <= LOG_LIMIT_BYTES:
                return 0
            kept = os.pread(descriptor, LOG_KEPT_BYTES, size - LOG_KEPT_BYTES)
            kept += os.pread(descriptor, LOG_KEPT_BYTES, size)
            cut = os.fstat(descriptor).st_size - len(kept)
            os.ftruncate(descriptor, 0)
            os.write(descriptor, kept)
            return cut
        finally:
            os.close(descriptor)


class SerialLine(asyncio.Protocol):
    """The node's end of the serial line.

    `fresh` says that it is connected before the guest runs, so that all that the guest ever writes in this run comes
    through it. Otherwise the recent past is taken from the log, once.
    """

    def __init__(self, console_log: ConsoleLog, *, fresh: bool) -> None:
        self._log = console_log
        self._log.shorten()
        self._position = self._log.size()
        """Where in the log the next byte that arrives is, or will be."""
        past = b"" if fresh else self._log.read(self._position - RECENT_BYTES, self._position)
        self._recent = bytearray(past)
        self._unlooked_bytes = 0
        self._readers: list[ConsoleReader] = []
        self._transport: asyncio.Transport | None = None
        self._writable = asyncio.Event()
        self._ended = False

    def attach(self) -> ConsoleReader:
        """A new reader, which gets the recent past first."""
        return self._attach(bytes(self._recent))

    def attach_with_log(self, tail_bytes: int) -> ConsoleReader:
        """A new reader, which gets the last `tail_bytes` first, from the log and what has just arrived."""
        recent = bytes(self._recent)
        if tail_bytes <= len(recent):
            return self._attach(recent[len(recent) - tail_bytes :])
        start = max(0, self._position - tail_bytes)
        return self._attach(self._log.read(start, self._position - len(recent)) + recent)

    def _attach(self, past: bytes) -> ConsoleReader:
        reader = ConsoleReader(self, past)
        if self._ended:
            reader.finish()
        else:
            self._readers.append(reader)
        return reader

    def detach(self, reader: ConsoleReader) -> None:
        """Forget a reader."""
        if reader in self._readers:
            self._readers.remove(reader)

    async def send(self, data: bytes) -> None:
        """Type. Waits while the guest takes nothing. Raises `Refused` where the line has ended."""
        await self._writable.wait()
        if self._ended or self._transport is None:
            raise Refused(409, "the VM has ended")
        self._transport.write(data)

    def close(self) -> None:
        """Let go of the line; readers see its end."""
        if self._transport is not None:
            self._transport.abort()
        self.connection_lost(None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        self._recent += data
        del self._recent[:-RECENT_BYTES]
        self._position += len(data)
        for reader in self._readers:
            reader.feed(data)
        self._unlooked_bytes += len(data)
        if self._unlooked_bytes >= _LOOK_EVERY_BYTES:
            self._unlooked_bytes = 0
            self._shorten()

    def pause_writing(self) -> None:
        """Called by asyncio."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """Called by asyncio."""
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio when QEMU has ended."""
        self._ended = True
        self._writable.set()
        for reader in self._readers:
            reader.finish()
        self._readers.clear()

    def _shorten(self) -> None:
        try:
            self._position -= self._log.shorten()
        except OSError as error:
            # A log that cannot be shortened now is no reason to stop reading the line.
            log.warning("could not shorten %s: %s", CONSOLE_LOG, error)


class ConsoleReader:
    """One reader of a serial line."""

    def __init__(self, line: SerialLine, past: bytes) -> None:
        self._line = line
        self._past = past
        self._chunks: deque[bytes] = deque()
        self._held_bytes = 0
        self._lost_bytes = 0
        self._news = asyncio.Event()
        self._ended = False

    def feed(self, data: bytes) -> None:
        """Take what the guest wrote; the oldest is dropped where too much is waiting."""
        self._chunks.append(data)
        self._held_bytes += len(data)
        while self._held_bytes > READER_LIMIT_BYTES and len(self._chunks) > 1:
            dropped = self._chunks.popleft()
            self._held_bytes -= len(dropped)
            self._lost_bytes += len(dropped)
        self._news.set()

    def finish(self) -> None:
        """There will be no more."""
        self._ended = True
        self._news.set()

    async def output(self) -> AsyncIterator[bytes]:
        """Bytes from the guest, first the recent past; ends when the VM's process does, or at `close`."""
        while True:
            self._news.clear()
            if self._past:
                past, self._past = self._past, b""
                yield past
            elif self._lost_bytes:
                lost, self._lost_bytes = self._lost_bytes, 0
                yield b"\r\n[%d bytes lost: this reader was too slow]\r\n" % lost
            elif self._chunks:
                data = b"".join(self._chunks)
                self._chunks.clear()
                self._held_bytes = 0
                yield data
            elif self._ended:
                return
            else:
                await self._news.wait()

    async def send(self, data: bytes) -> None:
        """Type into the serial line. Raises `Refused` (409) where the VM has ended."""
        await self._line.send(data)

    async def close(self) -> None:
        """Stop to read; the line goes on."""
        self._line.detach(self)
        self.finish()


async def stored_log(directory: VmDirectory, tail_bytes: int) -> AsyncIterator[bytes]:
    """The last `tail_bytes` of the log of a VM, in pieces."""
    console_log = ConsoleLog(directory)
    end = console_log.size()
    position = max(0, end - tail_bytes)
    while position < end and (piece := console_log.read(position, min(end, position + _CHUNK_BYTES))):
        yield piece
        position += len(piece)
