"""Sessions: callers who are attached to a serial line or to the terminal of a program, and what they type.

A session lasts for as long as its caller is heard: one that sends nothing for `SILENCE_S` has gone away.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final, Literal, NamedTuple

from aetherscale.actors.compute.driver import ComputeDriver, Console, Terminal, Window
from aetherscale.actors.compute.model.sessioncommands import ConsoleInputOptions
from aetherscale.bus.tasks import Tasks
from aetherscale.kernel.calls import Call
from aetherscale.kernel.errors import Reason, Refused
from aetherscale.kernel.replies import Chunk, result

SILENCE_S: Final = 30.0
SESSION_LIMIT: Final = 256
"""Consoles of one tenant at a time, so that none is refused for what another tenant has open."""
INPUT_LIMIT: Final = 1024
"""Pieces of input that may wait for a guest that does not read its serial line."""
PIECE_BYTES: Final = 8 * 1024
"""The size of one message of output."""


class Program(NamedTuple):
    """A program to run on a terminal of its own."""

    argv: Sequence[str]
    window: Window
    term: str


class Session:
    """One caller at one serial line, or at one terminal."""

    def __init__(
        self, console: Console, tasks: Tasks, window_bytes: int | None, terminal: Terminal | None = None
    ) -> None:
        self.console = console
        self.terminal = terminal
        """The same, where it is one."""
        self.reason: Literal["ended", "detached", "silence"] = "ended"
        """Why its output ends: the VM's process did, the caller left, or was not heard of any more."""
        self._window_bytes = window_bytes
        self._sent_bytes = self._seen_bytes = 0
        self._seen = asyncio.Event()
        self._tasks = tasks
        self._typed: asyncio.Queue[bytes] = asyncio.Queue(INPUT_LIMIT)
        self._typist = tasks.spawn(self._type(), "typist")
        self._timer = self._patience()

    async def output(self) -> AsyncIterator[bytes]:
        """The output of the guest. A caller that has said how much it takes is sent no more than it has room for."""
        async for data in self.console.output():
            for at in range(0, len(data), PIECE_BYTES):
                if self._window_bytes is not None:
                    while self._sent_bytes - self._seen_bytes >= self._window_bytes and self.reason == "ended":
                        self._seen.clear()
                        await self._seen.wait()
                if self.reason != "ended":
                    return
                piece = data[at : at + PIECE_BYTES]
                self._sent_bytes += len(piece)
                yield piece

    def hear(self, data: bytes, seen_bytes: int | None = None) -> None:
        """The caller is still there, typed this, and has seen so much.

        Raises `Refused` (unavailable) where the guest does not read it.
        """
        self._timer.cancel()
        self._timer = self._patience()
        if seen_bytes is not None and seen_bytes > self._seen_bytes:
            self._seen_bytes = seen_bytes
            self._seen.set()
        if data:
            try:
                self._typed.put_nowait(data)
            except asyncio.QueueFull:
                raise Refused(Reason.UNAVAILABLE, self._unread(), retryable=True) from None

    def _unread(self) -> str:
        return "the program does not read its terminal" if self.terminal else "the guest does not read its serial line"

    def end(self, reason: Literal["detached", "silence"]) -> None:
        """Leave the line: its output ends, and with it the caller's reply."""
        self.reason = reason
        self._seen.set()
        self._tasks.spawn(self.console.close(), "leave")

    async def close(self) -> None:
        """Leave the line for good."""
        self._timer.cancel()
        self._typist.cancel()
        await self.console.close()

    def _patience(self) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(SILENCE_S, self.end, "silence")

    async def _type(self) -> None:
        # Where the VM has ended, the input has no reader: its output ends, and that is how the caller learns of it.
        with suppress(Refused):
            while True:
                await self.console.send(await self._typed.get())


class Consoles:
    """All sessions of a node, by tenant and the name that the caller has drawn."""

    def __init__(self, driver: ComputeDriver) -> None:
        self._driver = driver
        self._sessions: dict[tuple[str, str], Session] = {}
        self._taken: set[tuple[str, str]] = set()
        """Names of sessions, also of those whose line is still being reached."""
        self._tasks = Tasks("consoles")

    @asynccontextmanager
    async def attached(
        self, vm_id: str, tenant: str, name: str, window_bytes: int | None = None, program: Program | None = None
    ) -> AsyncIterator[Session]:
        """A session for as long as the block lasts, at the serial line or at a program's terminal.

        Raises `Refused` where it cannot be had.
        """
        key = (tenant, name)
        others = sum(1 for taken, _ in self._taken if taken == tenant)
        if key in self._taken or others >= SESSION_LIMIT:
            raise Refused(
                Reason.CONFLICT, f"the session {name!r} is in use, or {SESSION_LIMIT} others are", field="session"
            )
        self._taken.add(key)
        try:
            terminal = await self._driver.terminal(vm_id, *program) if program else None
            console = terminal or await self._driver.console(vm_id)
            session = Session(console, self._tasks, window_bytes, terminal)
            self._sessions[key] = session
            try:
                yield session
            finally:
                del self._sessions[key]
                await session.close()
        finally:
            self._taken.remove(key)

    async def typed(self, options: ConsoleInputOptions, call: Call) -> AsyncIterator[Chunk]:
        """The answer to `console-input`."""
        session = self._sessions.get((call.tenant, options.session))
        if session is None:
            raise Refused(Reason.NOT_FOUND, f"no such session: {options.session!r}", field="session")
        size = (options.rows, options.columns)
        if size != (None, None):
            self._resize(session, *size)
        session.hear(options.data, options.seen_bytes)
        if options.detach:
            session.end("detached")
        yield result({})

    @staticmethod
    def _resize(session: Session, rows: int | None, columns: int | None) -> None:
        if rows is None or columns is None:
            field = "columns" if columns is None else "rows"
            raise Refused(
                Reason.BAD_REQUEST, "compute.console-input: got one of 'rows' and 'columns', expected both", field=field
            )
        if session.terminal is None:
            raise Refused(Reason.BAD_REQUEST, "a serial line has no size: got 'rows' and 'columns'", field="rows")
        session.terminal.resize(Window(rows, columns))
