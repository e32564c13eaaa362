"""Sessions: callers at a serial line, or at the terminal or the streams of a program, and what they type.

A session lasts for as long as its caller is heard: one that sends nothing for `SILENCE_S` has gone away.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, Literal, NamedTuple

from aetherscale.actors.compute.driver import Console, Piece, PipedProgram, Terminal, Window
from aetherscale.actors.compute.model.sessioncommands import ConsoleInputOptions, SignalName
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


INPUT_BYTES: Final = 1024 * 1024
"""Bytes of input that may wait for one program: who gives more at once does not wait for the answers."""
PROGRAM_PIECE_BYTES: Final = 64 * 1024
"""The size of one message of what a program with streams writes."""


class _Input(NamedTuple):
    """A piece of input; empty at its end. `taken` is done once the guest has it."""

    data: bytes
    taken: asyncio.Future[None]


class Attached(NamedTuple):
    """What a session is about: one of the three."""

    line: Console | PipedProgram
    terminal: Terminal | None = None
    program: PipedProgram | None = None
    past_bytes: int = 0
    """How much of its output, from the beginning, was there before."""


class Session:
    """One caller at one serial line, at one terminal, or at the streams of one program."""

    def __init__(self, attached: Attached, tasks: Tasks, window_bytes: int | None) -> None:
        self.line, self.terminal, self.program, self.past_bytes = attached
        self.reason: Literal["ended", "detached", "silence"] = "ended"
        """Why its output ends: the VM's process did, the caller left, or was not heard of any more."""
        self._window_bytes = window_bytes
        self._sent_bytes = self._seen_bytes = 0
        self._seen = asyncio.Event()
        self._tasks = tasks
        self._typed: asyncio.Queue[_Input] = asyncio.Queue(INPUT_LIMIT)
        self._waiting_bytes = 0
        self._typist = tasks.spawn(self._type(), "typist")
        self._timer = self._patience()

    async def output(self) -> AsyncIterator[Piece]:
        """The output of the guest. A caller that has said how much it takes is sent no more than it has room for."""
        most = PIECE_BYTES if self.program is None else PROGRAM_PIECE_BYTES
        async for said in self.line.output():
            data, is_error = (said.data, said.is_error) if isinstance(said, Piece) else (said, False)
            for at in range(0, len(data), most):
                if self._window_bytes is not None:
                    while self._sent_bytes - self._seen_bytes >= self._window_bytes and self.reason == "ended":
                        self._seen.clear()
                        await self._seen.wait()
                if self.reason != "ended":
                    return
                piece = data[at : at + most]
                self._sent_bytes += len(piece)
                yield Piece(piece, is_error)

    def hear(self, options: ConsoleInputOptions) -> Awaitable[None] | None:
        """The caller is still there, typed this, and has seen so much; answers with the moment when a program has taken
        it.

        Raises `Refused` (unavailable) where the guest does not read it.
        """
        self._timer.cancel()
        self._timer = self._patience()
        if options.seen_bytes is not None and options.seen_bytes > self._seen_bytes:
            self._seen_bytes = options.seen_bytes
            self._seen.set()
        taken = self._put(options.data) if options.data else None
        if self.program is not None and options.end:
            taken = self._put(b"")
        return taken if self.program is not None else None

    def _put(self, data: bytes) -> Awaitable[None]:
        if self.program is not None and self._waiting_bytes and self._waiting_bytes + len(data) > INPUT_BYTES:
            raise Refused(Reason.UNAVAILABLE, self._unread(), retryable=True)
        taken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        try:
            self._typed.put_nowait(_Input(data, taken))
        except asyncio.QueueFull:
            raise Refused(Reason.UNAVAILABLE, self._unread(), retryable=True) from None
        self._waiting_bytes += len(data)
        return taken

    def _unread(self) -> str:
        if self.program is not None:
            return f"the program does not read its input, of which {self._waiting_bytes} bytes wait"
        return "the program does not read its terminal" if self.terminal else "the guest does not read its serial line"

    def end(self, reason: Literal["detached", "silence"]) -> None:
        """Leave the line: its output ends, and with it the caller's reply."""
        self.reason = reason
        self._seen.set()
        self._tasks.spawn(self.line.close(), "leave")

    async def close(self) -> None:
        """Leave the line for good."""
        self._timer.cancel()
        self._typist.cancel()
        await self.line.close()
        while not self._typed.empty():
            self._typed.get_nowait().taken.cancel()

    def _patience(self) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(SILENCE_S, self.end, "silence")

    async def _type(self) -> None:
        while True:
            data, taken = await self._typed.get()
            self._waiting_bytes -= len(data)
            try:
                if data or self.program is None:
                    await self.line.send(data)
                else:
                    await self.program.end_input()
                if not taken.done():  # its caller may be gone
                    taken.set_result(None)
            except Refused:
                # What was attached has ended, and the input has no reader: the end of its output says so, too.
                taken.cancel()
            except asyncio.CancelledError:
                taken.cancel()
                raise


class Consoles:
    """All sessions of a node, by tenant and the name that the caller has drawn."""

    def __init__(self) -> None:
        self._sessions: dict[tuple[str, str], Session] = {}
        self._taken: set[tuple[str, str]] = set()
        """Names of sessions, also of those whose line is still being reached."""
        self._tasks = Tasks("consoles")

    @asynccontextmanager
    async def attached(
        self, reach: Callable[[], Awaitable[Attached]], tenant: str, name: str, window_bytes: int | None = None
    ) -> AsyncIterator[Session]:
        """A session for as long as the block lasts, with what `reach` brings.

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
            session = Session(await reach(), self._tasks, window_bytes)
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
        taken = session.hear(options)
        if options.signal is not None:
            await self._signal(session, options.signal)
        if options.detach:
            session.end("detached")
        if taken is not None:
            await self._taken_by_program(taken)
        yield result({})

    @staticmethod
    async def _taken_by_program(taken: Awaitable[None]) -> None:
        try:
            await taken
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise Refused(Reason.CONFLICT, "the program has ended, or takes no input") from None

    @staticmethod
    async def _signal(session: Session, name: SignalName) -> None:
        if session.program is None:
            raise Refused(Reason.BAD_REQUEST, "only a session of `vm-program` takes a signal", field="signal")
        await session.program.signal(name)

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
