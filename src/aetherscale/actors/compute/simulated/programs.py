"""Programs in a simulated guest: one that ends at once, or one with streams that knows a few words of a shell."""

from __future__ import annotations

import asyncio
import itertools
import re
import shlex
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

from aetherscale.actors.compute.driver import Piece, Signal
from aetherscale.actors.compute.exitstatus import EXIT_STATUS, NOT_FOUND
from aetherscale.actors.compute.simulated.terminal import SimulatedTerminal
from aetherscale.kernel.errors import Reason, Refused

_NUMBERS: Final = {"HUP": 1, "INT": 2, "QUIT": 3, "KILL": 9, "USR1": 10, "USR2": 12, "TERM": 15}
_SIGNAL_BASE: Final = 128


def ended_program(argv: Sequence[str], stdin: bytes) -> tuple[int, bytes]:
    """The status and the output of one of the programs that a guest knows. Raises `Refused`."""
    name = _name(argv)
    known: dict[str, tuple[int, bytes]] = {
        "echo": (0, " ".join(argv[1:]).encode() + b"\n"),
        "cat": (0, stdin),
        "true": (0, b""),
        "false": (1, b""),
        "uname": (0, b"Linux sim\n"),
        "tar": (0, b""),
    }
    if name == "sh" and (asked := re.fullmatch(r"exit ([0-9]{1,3})", argv[-1])):
        known["sh"] = int(asked[1]) % 256, b""
    if name not in known:
        what = f"the guest agent could not run {argv[0]!r}: no such program"
        raise Refused(Reason.BAD_REQUEST, what, field="command", details={EXIT_STATUS: NOT_FOUND})
    return known[name]


class SimulatedProgram:
    """It is a `PipedProgram`. `leave` is called once, when it is closed or has ended."""

    def __init__(
        self, pid: int, argv: Sequence[str], leave: Callable[[SimulatedProgram], None], *, has_input: bool
    ) -> None:
        self.pid = pid
        self.exit_code: int | None = None
        self._leave = leave
        self._pieces: asyncio.Queue[Piece | None] = asyncio.Queue()
        self._has_input_left = has_input
        self._is_over = False
        self._left = deque(_commands(argv))
        self._status = 0
        self._run()

    def _run(self) -> None:
        """Go on until there is a word that takes its time."""
        while self._left and not self._is_over:
            words = self._left[0]
            if words[0] == "sleep" or (words[0] == "cat" and self._has_input_left):
                return
            self._left.popleft()
            if words[0] == "exit":
                self._end(int(words[1]))
            else:
                self._status, printed = ended_program([word for word in words if word != ">&2"], b"")
                if printed:
                    self._pieces.put_nowait(Piece(printed, is_error=">&2" in words))
        if not self._left:
            self._end(self._status)

    async def output(self) -> AsyncIterator[Piece]:
        """As in `PipedProgram`."""
        while (piece := await self._pieces.get()) is not None:
            yield piece
        self._pieces.put_nowait(None)

    async def send(self, data: bytes) -> None:
        """As in `PipedProgram`."""
        if self._is_over or not self._has_input_left:
            raise Refused(Reason.CONFLICT, "the program has ended, or takes no input")
        if self._left and self._left[0][0] == "cat":
            self._pieces.put_nowait(Piece(data))

    async def end_input(self) -> None:
        """As in `PipedProgram`."""
        self._has_input_left = False
        self._run()

    async def signal(self, name: Signal) -> None:
        """As in `PipedProgram`."""
        if self._is_over:
            raise Refused(Reason.CONFLICT, "the program has ended, or takes no input")
        self._end(_SIGNAL_BASE + _NUMBERS[name])

    def _end(self, code: int | None) -> None:
        if not self._is_over:
            self._is_over = True
            self.exit_code = code
            self._pieces.put_nowait(None)
            self._leave(self)

    def hang_up(self) -> None:
        """One of the two ends has gone."""
        self._end(None)

    async def close(self) -> None:
        """As in `PipedProgram`."""
        self.hang_up()


class GuestSessions:
    """The programs of one guest that somebody is attached to."""

    def __init__(self) -> None:
        self.terminals: set[SimulatedTerminal] = set()
        self.programs: set[SimulatedProgram] = set()
        self._pids = itertools.count(100)

    def next_pid(self) -> int:
        """The pid of the next process in the guest."""
        return next(self._pids)

    def hang_up(self) -> None:
        """The guest, or the node, is gone."""
        for terminal in tuple(self.terminals):
            terminal.hang_up()
        for program in tuple(self.programs):
            program.hang_up()


def _commands(argv: Sequence[str]) -> list[list[str]]:
    """The commands of a script, or the one that was given. Raises `Refused` for what the guest does not know."""
    is_script = _name(argv) == "sh" and len(argv) > 1
    commands = [shlex.split(part) for part in argv[2].split(";")] if is_script else [[_name(argv), *argv[1:]]]
    for words in commands:
        if words[0] not in ("sleep", "exit"):
            ended_program(words, b"")
    return commands


def _name(argv: Sequence[str]) -> str:
    return re.sub(r"\A/(usr/)?bin/", "", argv[0])
