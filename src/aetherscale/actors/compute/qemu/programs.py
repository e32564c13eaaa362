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
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Final

from aetherscale.actors.compute.driver import Piece, Signal
from aetherscale.actors.compute.qemu.agent import AgentPort
from aetherscale.actors.compute.qemu.outputs import MarkedOutput
from aetherscale.actors.compute.qemu.plugs import Plugs
from aetherscale.actors.compute.qemu.portprograms import Kind, PortPrograms, Ports
from aetherscale.actors.compute.qemu.programscripts import INNER, START, no_shell, refusal
from aetherscale.bus.tasks import Tasks
from aetherscale.kernel.errors import Reason, Refused

ID: Final = "program-"
"""How the ids of their ports begin in QEMU."""
_KIND: Final = Kind(ID, "org.aetherscale.program.", no_shell, refusal)
_PIECE_BYTES: Final = 64 * 1024


class Programs:
    """Those of one guest."""

    def __init__(self, plugs: Plugs, tasks: Tasks) -> None:
        self._tasks = tasks
        self._all: PortPrograms[GuestProgram] = PortPrograms(_KIND, plugs, tasks)
        self.port_closed = self._all.port_closed
        self.let_go = self._all.let_go

    async def open(self, agent: AgentPort, argv: Sequence[str], *, has_input: bool) -> GuestProgram:
        """Start a program and wait until it runs. Raises `Refused`."""
        ports = self._all.ports(agent, ("ctl", "out", "err", "in") if has_input else ("ctl", "out", "err"))
        program = GuestProgram(ports, self._all, self._tasks)
        return await self._all.begun(ports, program, lambda: program.begin(argv), argv[0])


class GuestProgram:
    """One program; it is a `PipedProgram`."""

    def __init__(self, ports: Ports, owner: PortPrograms[GuestProgram], tasks: Tasks) -> None:
        self.pid = 0
        self._ports = ports
        self._owner = owner
        self._tasks = tasks
        self._outputs = {end: MarkedOutput(ports.token, _PIECE_BYTES) for end in ("out", "err")}
        self._input: asyncio.StreamWriter | None = None
        self._control: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._is_over = False

    @property
    def exit_code(self) -> int | None:
        """As in `PipedProgram`."""
        return self._outputs["out"].status

    async def _connect(self, end: str) -> None:
        ours = await self._ports.plug(end)
        if end == "in":
            _, self._input = await asyncio.open_connection(sock=ours)
        elif end == "ctl":
            self._control = await asyncio.open_connection(sock=ours)
        else:
            await self._outputs[end].connect(ours)

    async def begin(self, argv: Sequence[str]) -> None:
        """Have it begin, and wait until it has told its pid. Raises `Refused`, and as `Ports.plug`."""
        ports = self._ports
        await asyncio.gather(*(self._connect(end) for end in ports.ends))
        has_input = "yes" if "in" in ports.ends else "no"
        script = [START, "sh", ports.name, ports.token, has_input, INNER, *argv]
        self.pid = int(await ports.started(script, argv[0], self._first_mark()))

    async def _first_mark(self) -> str | None:
        """The program's pid; None where the VM has ended, or says none."""
        assert self._control is not None, "its ports are plugged in"
        reader, _ = self._control
        try:
            await reader.readuntil(b"\x1e%s+" % self._ports.token.encode())
            said = (await reader.readuntil(b"\x1e"))[:-1]
        except (OSError, EOFError, asyncio.LimitOverrunError):
            return None
        return said.decode() if re.fullmatch(rb"[0-9]{1,9}", said) else None

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
        self._owner.hang_up(self._ports)
        self.let_go()
