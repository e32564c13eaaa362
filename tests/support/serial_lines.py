"""Fixtures and helpers of the tests of serial lines.

The keeper is the real one. What QEMU would write into its pipe is written by the tests.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from aetherscale.actors.compute.driver import LogRange
from aetherscale.actors.compute.qemu import console, seriallog
from aetherscale.actors.compute.qemu.console import LineReader, SerialLine, stored_log, written_out
from aetherscale.actors.compute.qemu.layout import VmDirectory
from aetherscale.actors.compute.qemu.seriallog import SerialLog
from tests.support.eventually import asked_until

VM = "0123456789abcdef"
WAIT_S = 60.0


class Qemu:
    """Writes what a guest says into the pipe, as QEMU does, and then ends."""

    def __init__(self, directory: VmDirectory, *, fresh: bool = True) -> None:
        self.directory = directory
        self.line = SerialLine(directory, fresh=fresh)
        self._pipe = self.line.log.writing_end()
        os.set_blocking(self._pipe, True)

    def say(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._pipe, data) :]

    async def end(self) -> None:
        """Hang up, and wait until the keeper has done so."""
        os.close(self._pipe)
        self.line.finish()
        await written_out(self.line.log)

    async def written(self, text: bytes) -> None:
        """Wait until the log ends with this."""

        async def is_there() -> bool:
            return (await stored(self.line.log)).endswith(text)

        await asked_until(is_there)


async def stored(log: SerialLog, tail_bytes: int = 1 << 30) -> bytes:
    return b"".join([piece async for piece in stored_log(log, LogRange(tail_bytes))])


async def rest(reader: LineReader) -> bytes:
    """All that a reader gets, to the end of the line."""
    async with asyncio.timeout(WAIT_S):
        return b"".join([piece async for piece in reader.output()])


@pytest.fixture
def directory(tmp_path: Path) -> VmDirectory:
    directory = VmDirectory(tmp_path, VM)
    directory.make()
    return directory


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "RECENT_BYTES", 100)
    monkeypatch.setattr(console, "READER_LIMIT_BYTES", 1000)
    monkeypatch.setattr(seriallog, "LOG_LIMIT_BYTES", 8000)
    monkeypatch.setattr(seriallog, "PIECE_BYTES", 333)


def numbers(first: int, last: int) -> bytes:
    return b"".join(b"%07d " % number for number in range(first, last))
