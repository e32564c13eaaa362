"""A VM's serial line: what the guest writes is read from its log, what is typed goes to QEMU through a pipe.

Both ends are given to QEMU by QMP, anew whenever the node connects: what a node typed into ends with the node, while
what the guest writes goes on into the log. A QEMU that an older version has started gets them in the same way, in place
of the socket that it had.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import suppress
from typing import Final

from aetherscale.actors.compute.driver import LogRange
from aetherscale.actors.compute.qemu.layout import VmDirectory
from aetherscale.actors.compute.qemu.seriallog import LOG_LIMIT_BYTES, PIECE_BYTES, Cursor, SerialLog
from aetherscale.actors.compute.qemu.session import Monitor, Rejected
from aetherscale.actors.compute.readers import READER_LIMIT_BYTES, RECENT_BYTES, last_lines
from aetherscale.identifiers import now_us
from aetherscale.kernel.errors import Reason, Refused

log = logging.getLogger(__name__)

SERIAL_DEVICE: Final = "serial"
"""The id of the line's character device in QEMU."""
_INPUT_SET, _OUTPUT_SET = 8, 9
LAST_WORDS_S: Final = 5.0
"""How long the log of a process that is gone may take to be written to its end."""
# A file does not report when it has grown. A reader who has just got something is soon to get more.
_LOOK_MIN_S: Final = 0.005
_LOOK_MAX_S: Final = 0.1


class SerialLine:
    """The serial line of one process, whatever connections to it come and go.

    `fresh` says that the guest has not run yet, so that nothing of this run is in the log.
    """

    def __init__(self, directory: VmDirectory, *, fresh: bool) -> None:
        self.log = SerialLog(directory)
        self._begin = self.log.before_end(0) if fresh else None
        """Where this run begins; None where all of the log may be of this run."""
        self._readers: set[LineReader] = set()
        self._typing: int | None = None
        self._writable = asyncio.Event()
        self._is_over = False

    @property
    def is_over(self) -> bool:
        """Whether the process is gone, or the line let go of."""
        return self._is_over

    async def connect(self, monitor: Monitor) -> None:
        """Give QEMU its two ends of the line. Raises `Unresponsive`, `Rejected`, `OSError`."""
        ours = reading = writing = None
        try:
            reading, ours = os.pipe2(os.O_CLOEXEC)
            writing = self.log.writing_end()
            await _pass(monitor, reading, _INPUT_SET)
            await _pass(monitor, writing, _OUTPUT_SET)
            data = {"in": f"/dev/fdset/{_INPUT_SET}", "out": f"/dev/fdset/{_OUTPUT_SET}", "append": True}
            await monitor.execute("chardev-change", id=SERIAL_DEVICE, backend={"type": "file", "data": data})
            self._hang_up()
            os.set_blocking(ours, False)
            self._typing, ours = ours, None
            self._writable.set()
            for number in (_INPUT_SET, _OUTPUT_SET):
                # QEMU has its own by now.
                await monitor.execute("remove-fd", **{"fdset-id": number})
        finally:
            for descriptor in (ours, reading, writing):
                if descriptor is not None:
                    os.close(descriptor)

    def attach(self, past_bytes: int = RECENT_BYTES) -> LineReader:
        """A new reader, which gets so much of this run first, and is not left behind by more than a limit."""
        cursor = self.log.before_end(min(past_bytes, self._run_bytes()))
        return self._new_reader(cursor, READER_LIMIT_BYTES)

    def follow(self, wanted: LogRange) -> LineReader:
        """A new reader, which gets what is wanted of the log first, and every byte after that."""
        past, cursor = _beginning(self.log, wanted)
        return self._new_reader(cursor, None, past)

    async def followed(self, wanted: LogRange) -> AsyncGenerator[bytes, None]:
        """The same, in pieces, until the process ends."""
        reader = self.follow(wanted)
        try:
            async for piece in reader.output():
                yield piece
        finally:
            await reader.close()

    def _run_bytes(self) -> int:
        if self._begin is not None and self._begin.is_gone():
            self._begin.close()
            self._begin = None
        return self._begin.behind() if self._begin is not None else LOG_LIMIT_BYTES

    def _new_reader(self, cursor: Cursor, limit_bytes: int | None, past: bytes = b"") -> LineReader:
        reader = LineReader(self, cursor, limit_bytes, past)
        self._readers.add(reader)
        return reader

    def forget(self, reader: LineReader) -> None:
        """There is one reader less."""
        self._readers.discard(reader)

    def finish(self) -> None:
        """The process is gone. What it has written last is still read; then readers see the end."""
        self._is_over = True
        self._hang_up()
        self._writable.set()
        if self._begin is not None:
            self._begin.close()
            self._begin = None
        for reader in self._readers:
            reader.look()

    def close(self) -> None:
        """Let go of the line at once; readers see its end."""
        self.finish()
        for reader in tuple(self._readers):
            reader.stop()

    async def send(self, data: bytes) -> None:
        """Type; waits while the guest takes nothing. Raises `Refused` (conflict) where the process is gone."""
        while data:
            await self._writable.wait()
            if self._is_over or self._typing is None:
                raise Refused(Reason.CONFLICT, "the VM has ended")
            try:
                data = data[os.write(self._typing, data) :]
            except BlockingIOError:
                self._writable.clear()
                asyncio.get_running_loop().add_writer(self._typing, self._may_type)
            except BrokenPipeError:
                # QEMU has let go of its end: it is going, or is about to be given another.
                self._hang_up()

    def _may_type(self) -> None:
        if self._typing is not None:
            asyncio.get_running_loop().remove_writer(self._typing)
        self._writable.set()

    def _hang_up(self) -> None:
        if self._typing is not None:
            asyncio.get_running_loop().remove_writer(self._typing)
            os.close(self._typing)
            self._typing = None
            self._writable.clear()


async def _pass(monitor: Monitor, descriptor: int, number: int) -> None:
    """Make a descriptor QEMU's, as its set of this number; one that was left over from a broken attempt goes."""
    with suppress(Rejected):  # as a rule there is none
        await monitor.execute("remove-fd", **{"fdset-id": number})
    monitor.send_descriptor(descriptor)
    await monitor.execute("add-fd", **{"fdset-id": number})


class LineReader:
    """One reader of a line's log; it is a `Console`."""

    def __init__(self, line: SerialLine, cursor: Cursor, limit_bytes: int | None, past: bytes) -> None:
        self._line = line
        self._cursor = cursor
        self._past = past
        """The output before the cursor."""
        self.past_bytes = len(past) + cursor.behind()
        """How much of the output, from its beginning, was there when the reader came."""
        self._past_left = self.past_bytes
        self._limit_bytes = limit_bytes
        self._news = asyncio.Event()
        self._is_closed = False

    async def output(self) -> AsyncIterator[bytes]:
        """Bytes from the guest, first the recent past; ends when the VM's process does, or at `close`."""
        pause_s = _LOOK_MIN_S
        over_until_s = None
        for at in range(0, len(self._past), PIECE_BYTES):
            yield self._past[at : at + PIECE_BYTES]
        loop = asyncio.get_running_loop()
        while not self._is_closed:
            self._news.clear()
            is_whole = self._line.is_over and not self._line.log.is_kept()
            if lost := self._skipped():
                yield b"\r\n[%d bytes lost: this reader was too slow]\r\n" % lost
            if (data := self._cursor.read()) and self._cursor.has_gap:
                self._cursor.has_gap = False
                yield b"\r\n[bytes lost: this reader was too slow]\r\n"
            if data:
                self._past_left = max(0, self._past_left - len(data))
                pause_s = _LOOK_MIN_S
                yield data
                continue
            if is_whole:
                return
            if self._line.is_over:
                over_until_s = over_until_s or loop.time() + LAST_WORDS_S
                if loop.time() >= over_until_s:
                    return
            try:
                async with asyncio.timeout(pause_s):
                    await self._news.wait()
            except TimeoutError:
                pause_s = min(2 * pause_s, _LOOK_MAX_S)

    def _skipped(self) -> int:
        """How many bytes were left out, so that a slow reader sees what is, and not what was."""
        if self._limit_bytes is None or self._past_left:
            return 0
        lost = self._cursor.behind() - self._limit_bytes
        if lost > 0:
            self._cursor.skip(lost)
        return max(0, lost)

    def look(self) -> None:
        """There may be something new."""
        self._news.set()

    def stop(self) -> None:
        """There will be no more."""
        self._is_closed = True
        self._news.set()

    async def send(self, data: bytes) -> None:
        """Type into the serial line; waits while the guest takes nothing.

        Raises `Refused` (conflict) where it has ended.
        """
        await self._line.send(data)
        self._news.set()

    async def close(self) -> None:
        """Stop to read; the line goes on."""
        self._line.forget(self)
        self.stop()
        self._cursor.close()


def _beginning(serial_log: SerialLog, wanted: LogRange) -> tuple[bytes, Cursor]:
    """The wanted range of the log, as far as it is no longer there to be read, and the place where reading goes on."""
    if (moment_us := wanted.moment_us(now_us())) is not None:
        cursor, place = serial_log.since(moment_us)
        if place is not None:
            wanted.doubt(went_back=place.went_back, has_no_times=place.has_no_times)
    else:
        cursor = serial_log.before_end(wanted.tail_bytes if wanted.lines is None else LOG_LIMIT_BYTES)
    if wanted.lines is None:
        return b"", cursor
    data = bytearray()
    while piece := cursor.read():
        data += piece
        del data[:-LOG_LIMIT_BYTES]
    return last_lines(bytes(data), wanted.lines), cursor


async def stored_log(serial_log: SerialLog, wanted: LogRange) -> AsyncGenerator[bytes, None]:
    """The wanted range of the log of a VM, in pieces."""
    past, cursor = _beginning(serial_log, wanted)
    left = cursor.behind() if wanted.lines is None else 0
    try:
        for at in range(0, len(past), PIECE_BYTES):
            yield past[at : at + PIECE_BYTES]
        while left and (data := cursor.read()[:left]):
            left -= len(data)
            yield data
    finally:
        cursor.close()


async def written_out(serial_log: SerialLog) -> None:
    """Wait until the log of a process that is gone has been written to its end, for as long as that may take."""
    for _ in range(round(LAST_WORDS_S / _LOOK_MIN_S)):
        if not serial_log.is_kept():
            return
        await asyncio.sleep(_LOOK_MIN_S)
