"""Programs in a guest that have a terminal: for each a virtio port of its own, plugged in by QMP and out at the end.

    here ── socket ── QEMU ── port ── `script` in the guest ── pseudo-terminal ── the program

The agent starts `script`, which makes the pseudo-terminal. Two marks that carry a token
of the session frame what the program writes: the first tells which terminal it has, the second its exit status.
"""

from __future__ import annotations

import asyncio
import logging
import shlex
from collections.abc import AsyncIterator, Sequence
from typing import Final

from aetherscale.actors.compute.driver import TERMINAL_LIMIT, Window
from aetherscale.actors.compute.qemu.agent import AgentPort
from aetherscale.actors.compute.qemu.outputs import MarkedOutput
from aetherscale.actors.compute.qemu.plugs import Plugs
from aetherscale.actors.compute.qemu.portprograms import Kind, PortPrograms, Ports
from aetherscale.actors.compute.qemu.terminalscripts import ON_TERMINAL, RESIZE, START, WATCHED, no_shell, refusal
from aetherscale.bus.tasks import Tasks
from aetherscale.kernel.errors import Reason, Refused

log = logging.getLogger(__name__)

ID: Final = "terminal-"
"""How the ids of their ports begin in QEMU."""
_KIND: Final = Kind(ID, "org.aetherscale.terminal.", no_shell, refusal)
_RESIZE_LIMIT_S: Final = 10.0
_PIECE_BYTES: Final = 64 * 1024


class Terminals:
    """Those of one guest."""

    def __init__(self, plugs: Plugs, tasks: Tasks) -> None:
        self._tasks = tasks
        self._all: PortPrograms[GuestTerminal] = PortPrograms(_KIND, plugs, tasks)
        self.port_closed = self._all.port_closed
        self.let_go = self._all.let_go

    async def open(self, agent: AgentPort, argv: Sequence[str], window: Window, term: str) -> GuestTerminal:
        """Start a program on a terminal of its own, and wait until it runs. Raises `Refused`."""
        if len(self._all) >= TERMINAL_LIMIT:
            raise Refused(
                Reason.CONFLICT,
                f"the VM has {TERMINAL_LIMIT} terminals in use",
                remedy="close one of them",
                retryable=True,
            )
        ports = self._all.ports(agent, ("",))
        terminal = GuestTerminal(ports, self._all, agent, self._tasks)
        return await self._all.begun(ports, terminal, lambda: terminal.begin(argv, window, term), argv[0])


class GuestTerminal:
    """One program on its terminal; it is a `Terminal`."""

    past_bytes = 0

    def __init__(self, ports: Ports, owner: PortPrograms[GuestTerminal], agent: AgentPort, tasks: Tasks) -> None:
        self._ports = ports
        self._owner = owner
        self._agent = agent
        self._tasks = tasks
        self._output = MarkedOutput(ports.token, _PIECE_BYTES)
        self._device = ""
        self._wanted: Window | None = None
        self._is_over = False

    @property
    def exit_code(self) -> int | None:
        """As in `Terminal`."""
        return self._output.status

    async def begin(self, argv: Sequence[str], window: Window, term: str) -> None:
        """Have it begin, and wait until it has its terminal. Raises `Refused`, and as `Ports.plug`."""
        ports = self._ports
        await self._output.connect(await ports.plug(""))
        size = f"rows {window.rows} cols {window.columns}"
        inner = ON_TERMINAL.format(size=size, token=ports.token) + shlex.join(argv)
        script = [START, "sh", ports.name, inner, argv[0], ports.token, term, WATCHED]
        self._device = await ports.started(script, argv[0], self._first_mark())

    async def _first_mark(self) -> str | None:
        """Which terminal the program has; None where the VM has ended."""
        reader = self._output.reader
        try:
            await reader.readuntil(b"\x1e%s+" % self._ports.token.encode())
            return (await reader.readuntil(b"\x1e"))[:-1].decode(errors="replace")
        except (OSError, EOFError, asyncio.LimitOverrunError):
            return None

    async def output(self) -> AsyncIterator[bytes]:
        """The output of the program, until it has ended, the VM has, or `close` was called."""
        while data := await self._output.next():
            self._is_over = self._is_over or self.exit_code is not None
            yield data
        self._is_over = self._is_over or self.exit_code is not None

    async def send(self, data: bytes) -> None:
        """Type; waits while the guest takes nothing. Raises `Refused` (conflict) where the program is gone."""
        writer = self._output.writer
        if self._is_over or writer is None or writer.is_closing():
            raise Refused(Reason.CONFLICT, "the program has ended")
        try:
            writer.write(data)
            await writer.drain()
        except OSError:
            raise Refused(Reason.CONFLICT, "the program has ended") from None

    def resize(self, window: Window) -> None:
        """The caller's window has this size now. The last one wins."""
        is_idle, self._wanted = self._wanted is None, window
        if is_idle:
            self._tasks.spawn(self._resize(), "resize")

    async def _resize(self) -> None:
        done: Window | None = None
        while not self._is_over and (wanted := self._wanted) != done and wanted is not None:
            size = (str(wanted.rows), str(wanted.columns))
            try:
                await self._agent.execute(["/bin/sh", "-c", RESIZE, self._device, *size], _RESIZE_LIMIT_S)
            except Refused as refused:
                log.info("the size of a terminal could not be set: %s", refused.message)
            done = wanted
        self._wanted = None

    def port_closed(self, end: str) -> None:
        """The guest has let go of the port."""
        self._output.port_closed()

    def let_go(self) -> None:
        """One of the two ends has gone."""
        self._is_over = True
        self._output.let_go()

    async def close(self) -> None:
        """Take the port out, which hangs up on a program that has not ended. Done also where the caller does not wait
        for it.
        """
        self.let_go()
        await self._owner.end(self._ports)
