"""Programs in a guest whose stdin, stdout and stderr are streams: a virtio port for each, plugged in for the program.

    here ── socket ── QEMU ── port .in  ──▶ stdin       an end of input is the end of that socket
                              port .out ◀── stdout
                              port .err ◀── stderr
                              port .ctl             the program's pid; the other way: names of signals

The agent starts a shell that opens the ports and runs the program between them. A first mark that carries a token of
the session tells the program's pid in the guest; a last one on each output, behind all of it, tells its exit status.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Final

from aetherscale.actors.compute.driver import Piece, Signal
from aetherscale.actors.compute.qemu.agent import AgentPort
from aetherscale.actors.compute.qemu.plugs import LAST_WORDS_S, Plugs, begun_or_refused
from aetherscale.actors.compute.qemu.programscripts import INNER, START, no_shell, refusal
from aetherscale.actors.compute.qemu.session import Rejected, Unresponsive
from aetherscale.bus.tasks import Tasks
from aetherscale.kernel.errors import Reason, Refused, Task

PREFIX: Final = "org.aetherscale.program."
"""How the names of the ports begin, which a guest sees."""
ID: Final = "program-"
"""How their ids begin in QEMU."""
START_LIMIT_S: Final = 30.0
_HELP_LIMIT_S: Final = 10.0
"""For the question how a program has ended that was hung up."""
_PIECE_BYTES: Final = 64 * 1024


class Programs:
    """Those of one guest."""

    def __init__(self, plugs: Plugs, tasks: Tasks) -> None:
        self._plugs = plugs
        self._tasks = tasks
        self._open: dict[str, GuestProgram] = {}

    async def open(self, agent: AgentPort, argv: Sequence[str], *, has_input: bool) -> GuestProgram:
        """Start a program and wait until it runs. Raises `Refused`."""
        token = secrets.token_hex(8)
        ends = ("ctl", "out", "err", "in") if has_input else ("ctl", "out", "err")
        self._plugs.reserve([f"{ID}{token}-{end}" for end in ends])
        program = self._open[token] = GuestProgram(token, ends, self, agent, self._tasks)
        try:
            await asyncio.gather(*(self._plug(program, token, end) for end in ends))
            async with asyncio.timeout(START_LIMIT_S):
                await program.begin(argv)
        except TimeoutError:
            await program.close()
            raise Refused(
                Reason.DEADLINE,
                f"{argv[0]!r} has not begun within {START_LIMIT_S:g} s",
                remedy=("is the guest busy, or does it hang? ", Task("vm", "console", self._plugs.vm_id)),
                retryable=True,
            ) from None
        except (Unresponsive, Rejected, OSError) as silent:
            await program.close()
            raise Refused(
                Reason.UNAVAILABLE, f"no ports could be plugged into the VM: {silent}", retryable=True
            ) from silent
        except BaseException:
            await program.close()
            raise
        return program

    async def _plug(self, program: GuestProgram, token: str, end: str) -> None:
        await program.connect(end, await self._plugs.plug(f"{ID}{token}-{end}", f"{PREFIX}{token}.{end}"))

    async def unplug(self, token: str, ends: Sequence[str]) -> None:
        """Take its ports out again, or what there is of them."""
        try:
            await asyncio.gather(*(self._plugs.unplug(f"{ID}{token}-{end}") for end in ends))
        finally:
            self._open.pop(token, None)

    def port_closed(self, device: str) -> None:
        """The guest has let go of the port of this device."""
        token, _, end = device.removeprefix(ID).partition("-")
        program = self._open.get(token)
        if program is not None:
            program.port_closed(end)

    def let_go(self) -> None:
        """The process is gone, or no longer ours to watch: what is open ends."""
        for program in tuple(self._open.values()):
            program.let_go()
        self._open.clear()


class _Output:
    """One of the two outputs of a program, up to the mark that ends it."""

    def __init__(self, token: str) -> None:
        self.status: int | None = None
        """What the mark says, once it has come."""
        self._mark = re.compile(rb"\x1e%s-(\d{1,3})\x1e" % token.encode())
        self._longest = len(token) + 6
        self._held = b""
        self._is_over = False
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None
        self._has_port_closed = False
        self._patience: asyncio.Timeout | None = None
        """Of the read that is under way."""

    async def connect(self, ours: socket.socket) -> None:
        """Take over our end of its port."""
        self.reader, self.writer = await asyncio.open_connection(sock=ours, limit=_PIECE_BYTES)

    async def next(self) -> bytes:
        """Some more of it; empty at its end."""
        while not self._is_over:
            data = await self._more()
            self._held += data
            if found := self._mark.search(self._held):
                self.status = int(found[1])
                self._held = self._held[: found.start()]
            self._is_over = not data or self.status is not None
            # What may be the beginning of the mark is kept until it is known to be none.
            at = -1 if self._is_over else self._held.rfind(b"\x1e", max(0, len(self._held) - self._longest))
            ready, self._held = (self._held, b"") if at < 0 else (self._held[:at], self._held[at:])
            if ready:
                return ready
        return b""

    async def _more(self) -> bytes:
        if self.reader is None:
            return b""
        try:
            async with asyncio.timeout(LAST_WORDS_S if self._has_port_closed else None) as self._patience:
                return await self.reader.read(_PIECE_BYTES)
        except (OSError, TimeoutError):
            return b""

    def port_closed(self) -> None:
        """The guest has let go of the port. What it has written before may be on its way."""
        self._has_port_closed = True
        if self._patience is not None and not self._patience.expired():
            with suppress(RuntimeError):  # as where nobody waits
                self._patience.reschedule(asyncio.get_running_loop().time() + LAST_WORDS_S)

    def let_go(self) -> None:
        """One of the two ends has gone."""
        if self.writer is not None:
            self.writer.transport.abort()


class GuestProgram:
    """One program; it is a `PipedProgram`."""

    def __init__(self, token: str, ends: Sequence[str], owner: Programs, agent: AgentPort, tasks: Tasks) -> None:
        self.pid = 0
        self._token = token
        self._ends = ends
        self._owner = owner
        self._agent = agent
        self._tasks = tasks
        self._outputs = {"out": _Output(token), "err": _Output(token)}
        self._input: asyncio.StreamWriter | None = None
        self._control: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._shell: int | None = None
        """The pid of the shell that waits for the program."""
        self._is_over = False
        self._closing: asyncio.Task[None] | None = None

    @property
    def exit_code(self) -> int | None:
        """As in `PipedProgram`."""
        return self._outputs["out"].status

    async def connect(self, end: str, ours: socket.socket) -> None:
        """Take over our end of a port."""
        if end == "in":
            _, self._input = await asyncio.open_connection(sock=ours)
        elif end == "ctl":
            self._control = await asyncio.open_connection(sock=ours)
        else:
            await self._outputs[end].connect(ours)

    async def begin(self, argv: Sequence[str]) -> None:
        """Have the agent start the program, and wait until it has told its pid. Raises `Refused`."""
        has_input = "yes" if "in" in self._ends else "no"
        outer = ["/bin/sh", "-c", START, "sh", PREFIX + self._token, self._token, has_input, INNER, *argv]
        try:
            self._shell = await self._agent.start(outer)
        except Refused as not_started:
            raise no_shell(not_started) if not_started.reason is Reason.BAD_REQUEST else not_started from None
        why_not = self._why_not(self._shell, argv[0])
        self.pid = int(await begun_or_refused(self._tasks, self._first_mark(), why_not))

    async def _first_mark(self) -> str | None:
        """The program's pid; None where the VM has ended, or says none."""
        assert self._control is not None, "its ports are plugged in"
        reader, _ = self._control
        try:
            await reader.readuntil(b"\x1e%s+" % self._token.encode())
            said = (await reader.readuntil(b"\x1e"))[:-1]
        except (OSError, EOFError, asyncio.LimitOverrunError):
            return None
        return said.decode() if re.fullmatch(rb"[0-9]{1,9}", said) else None

    async def _why_not(self, shell: int, program: str) -> Refused:
        """Why the program has not begun, once that is known."""
        try:
            ended = await self._agent.ended(shell)
        except Refused as refused:
            return refused
        why = refusal(ended.stderr.decode(errors="replace").strip(), program)
        if why.retryable:
            # What a short program has written comes another way, and may come later.
            await asyncio.sleep(LAST_WORDS_S)
        self._shell = None
        return why

    async def output(self) -> AsyncIterator[Piece]:
        """As in `PipedProgram`."""
        reading = {self._read(end): end for end in self._outputs}
        try:
            while reading:
                done, _ = await asyncio.wait(reading, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    end = reading.pop(task)
                    if data := task.result():
                        yield Piece(data, is_error=end == "err")
                        reading[self._read(end)] = end
        finally:
            self._is_over = True
            for task in reading:
                task.cancel()

    def _read(self, end: str) -> asyncio.Task[bytes]:
        return self._tasks.spawn(self._outputs[end].next(), f"std{end}")

    async def send(self, data: bytes) -> None:
        """As in `PipedProgram`."""
        await self._write(self._input, data)

    async def end_input(self) -> None:
        """As in `PipedProgram`."""
        if self._input is not None and not self._input.is_closing():
            with suppress(OSError):
                self._input.write_eof()

    async def signal(self, name: Signal) -> None:
        """As in `PipedProgram`."""
        await self._write(self._control[1] if self._control else None, name.encode() + b"\n")

    async def _write(self, writer: asyncio.StreamWriter | None, data: bytes) -> None:
        if self._is_over or writer is None or writer.is_closing():
            raise Refused(Reason.CONFLICT, "the program has ended, or takes no input")
        try:
            writer.write(data)
            await writer.drain()
        except (OSError, RuntimeError):  # the latter after an end of input
            raise Refused(Reason.CONFLICT, "the program has ended, or takes no input") from None

    def port_closed(self, end: str) -> None:
        """The guest has let go of a port."""
        if end in self._outputs:
            self._outputs[end].port_closed()

    def let_go(self) -> None:
        """One of the two ends has gone."""
        self._is_over = True
        for output in self._outputs.values():
            output.let_go()
        for writer in (self._input, self._control[1] if self._control else None):
            if writer is not None:
                writer.transport.abort()

    async def close(self) -> None:
        """As in `PipedProgram`. The ports are taken out in the background."""
        if self._closing is None:
            self.let_go()
            self._closing = self._tasks.spawn(self._close(), "hang up")

    async def _close(self) -> None:
        await self._owner.unplug(self._token, self._ends)
        if self._shell is not None:
            # Ask how it has ended, which the agent remembers until it has been asked.
            with suppress(Refused, TimeoutError):
                async with asyncio.timeout(_HELP_LIMIT_S):
                    await self._agent.ended(self._shell)
