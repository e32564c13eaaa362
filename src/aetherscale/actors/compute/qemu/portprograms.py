"""Programs in a guest that have virtio ports of their own: how each begins, and how nothing is left of one.

    reserve ─▶ plug, one for each end ─▶ the agent starts a shell ─▶ the first mark ─▶ it runs ─▶ unplug, which hangs up

What goes through the ports is the matter of `programs.py` and `terminals.py`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

from aetherscale.actors.compute.qemu.agent import AgentPort
from aetherscale.actors.compute.qemu.plugs import LAST_WORDS_S, Plugs, begun_or_refused
from aetherscale.actors.compute.qemu.session import Rejected, Unresponsive
from aetherscale.bus.tasks import Tasks
from aetherscale.kernel.errors import Reason, Refused, Task

log = logging.getLogger(__name__)

START_LIMIT_S: Final = 30.0
_HELP_LIMIT_S: Final = 10.0
"""For the question how a program has ended that was hung up."""


class Kind(NamedTuple):
    """One of the two kinds of programs with ports."""

    ident: str
    """How the ids of their ports begin in QEMU."""
    prefix: str
    """How the names of their ports begin, which a guest sees."""
    no_shell: Callable[[Refused], Refused]
    """Why there is none where the agent could not even start a shell."""
    refusal: Callable[[str, str], Refused]
    """Why there is none, from the last words of the script, and the program; retryable where they are none of its."""


class Ended(Protocol):
    """What a program has that is hung up."""

    def port_closed(self, end: str) -> None:
        """The guest has let go of a port."""
        ...

    def let_go(self) -> None:
        """One of the two ends has gone."""
        ...


P = TypeVar("P", bound=Ended)


class Ports:
    """Those of one program, by their ends; the end of the only one is ""."""

    def __init__(self, kind: Kind, ends: Sequence[str], plugs: Plugs, agent: AgentPort, tasks: Tasks) -> None:
        self.token = secrets.token_hex(8)
        self.ends = ends
        self.name = kind.prefix + self.token
        """How the names of all begin."""
        self._kind = kind
        self._plugs = plugs
        self._agent = agent
        self._tasks = tasks
        self._shell: int | None = None
        """The pid of the shell that waits for the program."""
        self._hanging_up: asyncio.Task[None] | None = None

    def reserve(self) -> None:
        """Take what `hang_up` gives back. Raises `Refused`."""
        self._plugs.reserve([self._ident(end) for end in self.ends])

    async def plug(self, end: str) -> socket.socket:
        """Our end of a port. Raises `Unresponsive`, `Rejected`, `OSError`."""
        return await self._plugs.plug(self._ident(end), f"{self.name}.{end}" if end else self.name)

    def _ident(self, end: str) -> str:
        ident = self._kind.ident + self.token
        return f"{ident}-{end}" if end else ident

    async def started(self, script: Sequence[str], program: str, first_mark: Coroutine[Any, Any, str | None]) -> str:
        """Have the agent run the script for `program`, and wait for its first mark, which is returned.

        `first_mark` is None where the VM has ended. Raises `Refused`.
        """
        try:
            self._shell = await self._agent.start(["/bin/sh", "-c", *script])
        except Refused as not_started:
            first_mark.close()
            raise (
                self._kind.no_shell(not_started) if not_started.reason is Reason.BAD_REQUEST else not_started
            ) from None
        except BaseException:
            first_mark.close()
            raise
        return await begun_or_refused(self._tasks, first_mark, self._why_not(self._shell, program))

    async def _why_not(self, shell: int, program: str) -> Refused:
        """Why the program has not begun, once that is known."""
        try:
            ended = await self._agent.ended(shell)
        except Refused as refused:
            return refused
        why = self._kind.refusal(ended.stderr.decode(errors="replace").strip(), program)
        if why.retryable:
            # What a short program has written comes another way, and may come later.
            await asyncio.sleep(LAST_WORDS_S)
        self._shell = None
        return why

    def hang_up(self, gone: Callable[[], None]) -> asyncio.Task[None]:
        """Take the ports out, or what there is of them, in the background; then call `gone`."""
        if self._hanging_up is None:
            self._hanging_up = self._tasks.spawn(self._unplug(gone), "hang up")
        return self._hanging_up

    async def _unplug(self, gone: Callable[[], None]) -> None:
        try:
            await asyncio.gather(*(self._plugs.unplug(self._ident(end)) for end in self.ends))
        finally:
            gone()
        if self._shell is not None:
            self._tasks.spawn(self._forget(self._shell), "forget a program")

    async def _forget(self, shell: int) -> None:
        """Ask how it has ended, which the agent remembers until it has been asked."""
        with suppress(Refused, TimeoutError):
            async with asyncio.timeout(_HELP_LIMIT_S):
                await self._agent.ended(shell)


class PortPrograms(Generic[P]):
    """The programs of one kind in one guest."""

    def __init__(self, kind: Kind, plugs: Plugs, tasks: Tasks) -> None:
        self._kind = kind
        self._plugs = plugs
        self._tasks = tasks
        self._open: dict[str, P] = {}

    def __len__(self) -> int:
        return len(self._open)

    def ports(self, agent: AgentPort, ends: Sequence[str]) -> Ports:
        """Those of a program that is to begin, reserved. Raises `Refused`."""
        ports = Ports(self._kind, ends, self._plugs, agent, self._tasks)
        ports.reserve()
        return ports

    async def begun(self, ports: Ports, program: P, begin: Callable[[], Coroutine[Any, Any, None]], name: str) -> P:
        """The program `name`, once `begin` has had it begin. Where it does not, nothing is left. Raises `Refused`."""
        self._open[ports.token] = program
        try:
            async with asyncio.timeout(START_LIMIT_S):
                await begin()
        except TimeoutError:
            await self.end(ports)
            raise Refused(
                Reason.DEADLINE,
                f"{name!r} has not begun within {START_LIMIT_S:g} s",
                remedy=("is the guest busy, or does it hang? ", Task("vm", "console", self._plugs.vm_id)),
                retryable=True,
            ) from None
        except (Unresponsive, Rejected, OSError) as silent:
            if isinstance(silent, Unresponsive):
                self.hang_up(ports)  # a QEMU that hangs takes its time for that, too
            else:
                await self.end(ports)
            raise self._unplugged(silent) from silent
        except BaseException:
            await self.end(ports)
            raise
        return program

    def _unplugged(self, cause: Exception) -> Refused:
        log.warning("VM %s: no port could be plugged in: %s", self._plugs.vm_id, cause)
        away = "QEMU does not answer: it is busy, hangs, or has ended"
        what = away if isinstance(cause, Unresponsive) else "it was refused, and the node's log says why"
        return Refused(
            Reason.UNAVAILABLE,
            f"no port for the program could be plugged into the VM: {what}",
            remedy=("does the VM still run? ", Task("vm", "show", self._plugs.vm_id)),
            retryable=True,
        )

    async def end(self, ports: Ports) -> None:
        """Hang up on a program, and wait until its ports are out, which goes on where the caller does not."""
        await asyncio.wait({self.hang_up(ports)})

    def hang_up(self, ports: Ports) -> asyncio.Task[None]:
        """The same in the background."""
        if (program := self._open.get(ports.token)) is not None:
            program.let_go()
        return ports.hang_up(lambda: self._gone(ports.token))

    def _gone(self, token: str) -> None:
        self._open.pop(token, None)

    def port_closed(self, device: str) -> None:
        """The guest has let go of the port of this device."""
        token, _, end = device.removeprefix(self._kind.ident).partition("-")
        if (program := self._open.get(token)) is not None:
            program.port_closed(end)

    def let_go(self) -> None:
        """The process is gone, or no longer ours to watch: what is open ends."""
        for program in tuple(self._open.values()):
            program.let_go()
        self._open.clear()
