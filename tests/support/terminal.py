"""A program on a terminal of its own, as a human has it: what it shows, and keys to type."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import signal
import struct
import termios
from asyncio.subprocess import Process
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

PATIENCE_S = 120.0
ROWS, COLUMNS = 40, 120


class Terminal:
    """Runs one program after the other on the same pseudo-terminal."""

    def __init__(self) -> None:
        self._master, self._slave = pty.openpty()
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        self.shown = ""
        """Everything that the present program has written, as it was written."""
        self._news = asyncio.Event()
        self._process: Process | None = None
        asyncio.get_running_loop().add_reader(self._master, self._read)

    @property
    def said(self) -> str:
        """The same in one line, for sentences that may have been broken between words."""
        return " ".join(self.shown.split())

    @property
    def mode(self) -> list[Any]:
        """How the terminal is set: see termios(3)."""
        return termios.tcgetattr(self._slave)

    async def start(self, *command: str, env: Mapping[str, str]) -> None:
        """Start a program with this as its controlling terminal; it dies with the test."""
        self.shown = ""
        self._process = await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "KILL", "setsid", "--ctty", *command),
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            env={**env, "TERM": "xterm-256color"},
        )

    async def until(self, *texts: str) -> None:
        """Wait until all of these have been shown, in this order."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not _in_order(self.shown, texts):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"waited for {texts}, shown was:\n{self.shown}") from None

    async def until_true(self, ask: Callable[[str], bool]) -> None:
        """Wait until what has been shown is as asked."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not ask(self.shown):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"shown was:\n{self.shown}") from None

    def type(self, keys: str) -> None:
        """Type."""
        os.write(self._master, keys.encode())

    def resize(self, rows: int, columns: int) -> None:
        """Give the window another size, as who drags its corner does."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def hang_up(self) -> None:
        """End the program as a terminal that is closed does."""
        self.send(signal.SIGHUP)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the program."""
        assert self._process is not None
        self._process.send_signal(number)

    def send_child(self, number: signal.Signals) -> None:
        """Send a signal to what the program, a shell, runs."""
        assert self._process is not None
        pid = self._process.pid
        (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        os.kill(int(child), number)

    async def end(self) -> int:
        """Wait for the program to end; answers with its exit status."""
        assert self._process is not None
        status = await asyncio.wait_for(self._process.wait(), PATIENCE_S)
        self._read()
        self._process = None
        return status

    async def close(self) -> None:
        """End what still runs."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)
            await self._process.wait()
        asyncio.get_running_loop().remove_reader(self._master)
        os.close(self._master)
        os.close(self._slave)

    def _read(self) -> None:
        os.set_blocking(self._master, False)
        try:
            while data := os.read(self._master, 65536):
                self.shown += data.decode(errors="replace")
        except BlockingIOError:
            pass
        self._news.set()


def _in_order(shown: str, texts: Sequence[str]) -> bool:
    at = 0
    for text in texts:
        at = shown.find(text, at)
        if at < 0:
            return False
        at += len(text)
    return True
