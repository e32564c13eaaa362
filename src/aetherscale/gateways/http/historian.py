"""The historian as the node sees it: a process that the first question about the past starts, and that is ended when
none has come for a while. The node's loop sends a question and passes the answer on; it never folds the past.

    no process ──question──▶ running ──5 idle minutes──▶ no process
                                │ dies: the question is asked of a new one, once
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from aetherscale.bus.tasks import Tasks
from aetherscale.gateways.http import questions
from aetherscale.gateways.http.questions import Answer, Question, unless_refused
from aetherscale.kernel.errors import Reason, Refused

log = logging.getLogger(__name__)

IDLE_S: Final = 300.0
"""How long a historian without a question is kept."""
ANSWER_S: Final = 120.0
"""How long one question may take, the making of missing keyframes among it; then the historian is ended."""
MAX_WAITING: Final = 64
"""Questions that wait for their turn; one more is refused (503)."""
ATTEMPTS: Final = 2
"""How many historians are asked one question: the second where the first one died of it, or beside it."""


class _Process(Struct):
    """A historian that runs."""

    process: asyncio.subprocess.Process
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


class Historian:
    """Asks the historian of one state directory, and has it run only while it is asked."""

    def __init__(self, state_dir: Path, tenant: str) -> None:
        self._command = (
            *(sys.executable, "-P", "-m", "aetherscale.gateways.http.historianmain", str(state_dir), tenant),
        )
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._running: _Process | None = None
        self._tasks = Tasks("historian")
        self._idle: asyncio.TimerHandle | None = None

    @property
    def pid(self) -> int | None:
        """Of the process; None where there is none."""
        return None if self._running is None else self._running.process.pid

    async def ask(self, name: str, **options: Any) -> Answer:
        """As in `Asked`. A caller that leaves does not disturb the question of another one."""
        if self._waiting >= MAX_WAITING:
            raise Refused(
                Reason.UNAVAILABLE,
                f"{self._waiting} questions about the past wait already, as many as may",
                retryable=True,
                remedy="ask again in a moment",
            )
        self._waiting += 1
        asking = self._tasks.spawn(self._in_turn(Question(name, options)), "ask")
        return unless_refused(await asyncio.shield(asking))

    async def close(self) -> None:
        """End it, and whatever is being asked; idempotent."""
        await self._tasks.close()
        await self._end()

    async def _in_turn(self, question: Question) -> Answer:
        try:
            async with self._turn:
                self._stay()
                try:
                    return await self._asked(question)
                finally:
                    self._idle = asyncio.get_running_loop().call_later(IDLE_S, self._is_idle)
        finally:
            self._waiting -= 1

    async def _asked(self, question: Question) -> Answer:
        for _ in range(ATTEMPTS):
            try:
                async with asyncio.timeout(ANSWER_S):
                    running = await self._started()
                    await questions.write(running.writer, question)
                    return await questions.read(running.reader, Answer)
            except TimeoutError:
                await self._end()
                return questions.refusal_of(_late())
            except (asyncio.IncompleteReadError, msgspec.MsgspecError, OSError) as died:
                log.warning("the historian died of %s, or beside it: %r", question.name, died)
                await self._end()
            except BaseException:
                await self._end()  # what it would answer is for nobody
                raise
        return questions.refusal_of(_dead())

    async def _started(self) -> _Process:
        """The process that runs; a new one where none does. Raises OSError."""
        if self._running is None:
            ours, theirs = socket.socketpair()
            try:
                process = await asyncio.create_subprocess_exec(
                    *self._command, stdin=theirs.fileno(), stdout=asyncio.subprocess.DEVNULL, start_new_session=True
                )
                reader, writer = await asyncio.open_connection(sock=ours)
            except BaseException:
                ours.close()
                raise
            finally:
                theirs.close()
            self._running = _Process(process, reader, writer)
        return self._running

    def _stay(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _is_idle(self) -> None:
        if not self._turn.locked():
            self._tasks.spawn(self._end_idle(), "end")

    async def _end_idle(self) -> None:
        async with self._turn:
            await self._end()

    async def _end(self) -> None:
        """End the process, if there is one, and wait for that."""
        self._stay()
        running, self._running = self._running, None
        if running is not None:
            running.writer.close()
            with suppress(ProcessLookupError):
                running.process.kill()
            await running.process.wait()


def _dead() -> Refused:
    return Refused(
        Reason.UNAVAILABLE,
        f"the process that tells the past died {ATTEMPTS} times of this question; the node's log says why",
        retryable=True,
        remedy="ask for less, or read the log beside the node: aetherscale replay",
    )


def _late() -> Refused:
    return Refused(
        Reason.DEADLINE,
        f"the past was not told within {ANSWER_S:.0f} s; what was made on the way is kept",
        retryable=True,
        remedy="ask again",
    )
