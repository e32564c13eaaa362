"""Programs in a guest that have a terminal: for each a virtio port of its own, plugged in by QMP and out at the end.

    here ── socket ── QEMU ── port ── `script` in the guest ── pseudo-terminal ── the program

The agent starts `script`, which makes the pseudo-terminal. Two marks that carry a token
of the session frame what the program writes: the first tells which terminal it has, the second its exit status.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import shlex
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Final

from aetherscale.actors.compute.driver import TERMINAL_LIMIT, Window
from aetherscale.actors.compute.qemu.agent import AgentPort
from aetherscale.actors.compute.qemu.plugs import LAST_WORDS_S, Plugs, begun_or_refused
from aetherscale.actors.compute.qemu.session import Rejected, Unresponsive
from aetherscale.actors.compute.qemu.terminalscripts import ON_TERMINAL, RESIZE, START, WATCHED, no_shell, refusal
from aetherscale.bus.tasks import Tasks
from aetherscale.kernel.errors import Reason, Refused, Task

log = logging.getLogger(__name__)

PREFIX: Final = "org.aetherscale.terminal."
"""How the names of the ports begin, which a guest sees."""
ID: Final = "terminal-"
"""How their ids begin in QEMU."""
START_LIMIT_S: Final = 30.0
_HELP_LIMIT_S: Final = 10.0
"""For what a guest is asked beside: to set a size, and how a program has ended that was hung up."""
_PIECE_BYTES: Final = 16 * 1024


class Terminals:
    """Those of one guest."""

    def __init__(self, plugs: Plugs, tasks: Tasks) -> None:
        self._plugs = plugs
        self._tasks = tasks
        self._open: dict[str, GuestTerminal] = {}

    async def open(self, agent: AgentPort, argv: Sequence[str], window: Window, term: str) -> GuestTerminal:
        """Start a program on a terminal of its own, and wait until it runs. Raises `Refused`."""
        if len(self._open) >= TERMINAL_LIMIT:
            raise Refused(
                Reason.CONFLICT,
                f"the VM has {TERMINAL_LIMIT} terminals in use",
                remedy="close one of them",
                retryable=True,
            )
        token = secrets.token_hex(8)
        self._plugs.reserve([ID + token])
        terminal = self._open[token] = GuestTerminal(token, self, agent, self._tasks)
        try:
            await terminal.connect(await self._plugs.plug(ID + token, PREFIX + token))
            async with asyncio.timeout(START_LIMIT_S):
                await terminal.begin(argv, window, term)
        except TimeoutError:
            await terminal.close()
            raise Refused(
                Reason.DEADLINE,
                f"{argv[0]!r} has not begun within {START_LIMIT_S:g} s",
                remedy=("is the guest busy, or does it hang? ", Task("vm", "console", self._plugs.vm_id)),
                retryable=True,
            ) from None
        except (Unresponsive, Rejected, OSError) as silent:
            await terminal.close()
            raise Refused(
                Reason.UNAVAILABLE, f"no terminal could be plugged into the VM: {silent}", retryable=True
            ) from silent
        except BaseException:
            await terminal.close()
            raise
        return terminal

    async def unplug(self, token: str) -> None:
        """Take a port out again, or what there is of it."""
        try:
            await self._plugs.unplug(ID + token)
        finally:
            self._open.pop(token, None)

    def port_closed(self, device: str) -> None:
        """The guest has let go of the port of this device."""
        terminal = self._open.get(device.removeprefix(ID))
        if terminal is not None:
            terminal.port_closed()

    def let_go(self) -> None:
        """The process is gone, or no longer ours to watch: what is open ends."""
        for terminal in tuple(self._open.values()):
            terminal.let_go()
        self._open.clear()


class GuestTerminal:
    """One program on its terminal; it is a `Terminal`."""

    past_bytes = 0

    def __init__(self, token: str, owner: Terminals, agent: AgentPort, tasks: Tasks) -> None:
        self.exit_code: int | None = None
        self._token = token
        self._owner = owner
        self._agent = agent
        self._tasks = tasks
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter | None = None
        self._pid: int | None = None
        self._device = ""
        self._wanted: Window | None = None
        self._is_over = False
        self._has_port_closed = False
        self._patience: asyncio.Timeout | None = None
        """Of the read that is under way."""
        self._closing: asyncio.Task[None] | None = None

    async def connect(self, ours: socket.socket) -> None:
        """Take over our end of the port."""
        self._reader, self._writer = await asyncio.open_connection(sock=ours)

    async def begin(self, argv: Sequence[str], window: Window, term: str) -> None:
        """Have the agent start the program, and wait until it has its terminal. Raises `Refused`."""
        size = f"rows {window.rows} cols {window.columns}"
        inner = ON_TERMINAL.format(size=size, token=self._token) + shlex.join(argv)
        outer = ["/bin/sh", "-c", START, "sh", PREFIX + self._token, inner, argv[0], self._token, term, WATCHED]
        try:
            self._pid = await self._agent.start(outer)
        except Refused as not_started:
            raise no_shell(not_started) if not_started.reason is Reason.BAD_REQUEST else not_started from None
        self._device = await begun_or_refused(self._tasks, self._first_mark(), self._why_not(self._pid, argv[0]))

    async def _first_mark(self) -> str | None:
        """Which terminal the program has; None where the VM has ended."""
        try:
            await self._reader.readuntil(b"\x1e%s+" % self._token.encode())
            return (await self._reader.readuntil(b"\x1e"))[:-1].decode(errors="replace")
        except (OSError, EOFError, asyncio.LimitOverrunError):
            return None

    async def _why_not(self, pid: int, program: str) -> Refused:
        """Why the program has not begun, once that is known."""
        try:
            ended = await self._agent.ended(pid)
        except Refused as refused:
            return refused
        why = refusal(ended.stderr.decode(errors="replace").strip(), program)
        if why.retryable:
            # What a short program has written comes another way, and may come later.
            await asyncio.sleep(LAST_WORDS_S)
        self._pid = None
        return why

    async def output(self) -> AsyncIterator[bytes]:
        """The output of the program, until it has ended, the VM has, or `close` was called."""
        mark = re.compile(rb"\x1e%s-(\d{1,3})\x1e" % self._token.encode())
        longest = len(self._token) + 6
        held = b""
        while data := await self._more():
            held += data
            if found := mark.search(held):
                self.exit_code = int(found[1])
                held = held[: found.start()]
                break
            # What may be the beginning of the mark is kept until it is known to be none.
            at = held.rfind(b"\x1e", max(0, len(held) - longest))
            ready, held = (held, b"") if at < 0 else (held[:at], held[at:])
            if ready:
                yield ready
        self._is_over = self._is_over or self.exit_code is not None
        if held:
            yield held

    async def _more(self) -> bytes:
        """The next piece; empty where there will be none."""
        try:
            async with asyncio.timeout(LAST_WORDS_S if self._has_port_closed else None) as self._patience:
                return await self._reader.read(_PIECE_BYTES)
        except (OSError, TimeoutError):
            return b""

    async def send(self, data: bytes) -> None:
        """Type; waits while the guest takes nothing. Raises `Refused` (conflict) where the program is gone."""
        if self._is_over or self._writer is None or self._writer.is_closing():
            raise Refused(Reason.CONFLICT, "the program has ended")
        try:
            self._writer.write(data)
            await self._writer.drain()
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
                await self._agent.execute(["/bin/sh", "-c", RESIZE, self._device, *size], _HELP_LIMIT_S)
            except Refused as refused:
                log.info("the size of a terminal could not be set: %s", refused.message)
            done = wanted
        self._wanted = None

    def port_closed(self) -> None:
        """The guest has let go of the port. What it has written before may be on its way."""
        self._has_port_closed = True
        if self._patience is not None and not self._patience.expired():
            with suppress(RuntimeError):  # as where nobody waits
                self._patience.reschedule(asyncio.get_running_loop().time() + LAST_WORDS_S)

    def let_go(self) -> None:
        """One of the two ends has gone."""
        self._is_over = True
        if self._writer is not None:
            self._writer.transport.abort()

    async def close(self) -> None:
        """Take the port out, which hangs up on a program that has not ended. Done also where the caller does not wait
        for it.
        """
        if self._closing is None:
            self._closing = self._tasks.spawn(self._close(), "hang up")
        await asyncio.wait({self._closing})

    async def _close(self) -> None:
        self.let_go()
        await self._owner.unplug(self._token)
        if self._pid is not None:
            self._tasks.spawn(self._forget(self._pid), "forget a terminal")

    async def _forget(self, pid: int) -> None:
        """Ask how it has ended, which the agent remembers until it has been asked."""
        with suppress(Refused, TimeoutError):
            async with asyncio.timeout(_HELP_LIMIT_S):
                await self._agent.ended(pid)
