"""The QEMU guest agent (qga), spoken to through its port: is it there, and run a program.

Nothing that it says is trusted: each call has a time limit and takes at most so many bytes. A call that went wrong may
be answered later, so the next one starts with `guest-sync-delimited`, before whose answer everything is thrown away.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from aetherscale.actors.compute.driver import ExecResult
from aetherscale.actors.compute.exitstatus import EXIT_STATUS, NOT_EXECUTABLE, NOT_FOUND
from aetherscale.actors.compute.qemu.ports import Port
from aetherscale.kernel.errors import Reason, Refused


class _Limits(NamedTuple):
    """How long one call may take."""

    size_bytes: int
    time_s: float


CALL: Final = _Limits(64 * 1024, 1.0)
START: Final = _Limits(64 * 1024, 10.0)
"""For the call that starts a program: a busy guest takes it, and its input, at its own pace. One that is given up on
may have begun all the same, and would be begun twice. What brings the two into step before a call has its time."""
OUTPUT: Final = _Limits(4 * 1024 * 1024, 10.0)
"""For the answer that carries a program's output in base64: what is beyond the size is cut off."""
_TAIL_BYTES: Final = 4 * 1024
_POLL_MIN_S: Final = 0.01
_POLL_MAX_S: Final = 0.5


class AgentSilent(Exception):
    """The agent did not answer in time, or nonsense."""


class AgentGone(AgentSilent):
    """Its port was closed: the VM has ended, or its node does."""


class AgentRefused(Exception):
    """The agent answered that it cannot."""


class _Answer:
    """One line on its way in: its beginning up to a limit, and its end.

    With a number it is the answer to guest-sync-delimited that has it. What comes before is of calls given up on.
    """

    def __init__(self, limit_bytes: int, number: int | None) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.line = bytearray()
        self.cut = False
        self._tail = bytearray()
        self._limit_bytes = limit_bytes
        self._number = number
        self._waits_for_mark = number is not None

    def feed(self, data: bytes) -> None:
        """Take bytes; what follows the line is not ours."""
        if self._waits_for_mark:
            mark = data.rfind(b"\xff")
            if mark < 0:
                return
            self._waits_for_mark = False
            data = data[mark + 1 :]
        data, newline, _ = data.partition(b"\n")
        room = self._limit_bytes - len(self.line)
        self.line += data[:room]
        if len(data) > room:
            self.cut = True
            self._tail = (self._tail + data[room:])[-_TAIL_BYTES:]
        if not newline or self.done.done():
            return
        if self._number is not None and not _has(bytes(self.line), self._number):
            self.line.clear()
            self._tail = bytearray()
            self.cut, self._waits_for_mark = False, True
            return
        # The NUL keeps what was before the gap from running into what was after it.
        self.line += b"\0" + self._tail if self.cut else b""
        self.done.set_result(None)


class AgentPort(Port):
    """A client of the agent in one guest; one call at a time."""

    def __init__(self) -> None:
        super().__init__()
        self._turn = asyncio.Lock()
        self._answer: _Answer | None = None
        self._in_step = False
        self._syncs = 0

    def received(self, data: bytes) -> None:
        """Take bytes for the call that waits; others were not asked for."""
        if self._answer is not None:
            self._answer.feed(data)

    def hurried(self) -> bool:
        """Whether a call waits."""
        return self._answer is not None

    def close(self) -> None:
        """As in `Port`; a call that waits fails at once."""
        super().close()
        self._end_call()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio: the VM has ended, or QEMU has let go of the port."""
        self._end_call()

    def _end_call(self) -> None:
        if self._answer is not None and not self._answer.done.done():
            self._answer.done.set_exception(AgentGone)

    async def ping(self) -> None:
        """Ask whether the agent is there. Raises `AgentSilent`."""
        async with self._turn:
            self._in_step = False
            await self._call("guest-ping")

    async def ask(self, command: str, **arguments: object) -> Any:
        """What the agent returns for a command that is soon done. Raises `AgentSilent`, `AgentRefused`."""
        async with self._turn:
            return await self._call(command, **arguments)

    async def execute(self, argv: Sequence[str], timeout_s: float, stdin: bytes = b"") -> ExecResult:
        """Run a program and wait for its end; `stdin` is all of its input. Raises `Refused`: deadline where it goes on,
        whose output so far cannot be had.
        """
        try:
            async with asyncio.timeout(timeout_s):
                return await self.ended(await self.start(argv, stdin))
        except TimeoutError:
            # guest-exec-status has the output beside `exited: true` alone (qga/commands.c).
            raise Refused(
                Reason.DEADLINE,
                f"{argv[0]!r} has not ended within {timeout_s:g} s; it continues in the guest. What it has printed is "
                "not known: a guest agent tells it when the program has ended",
                remedy="give it more time, or a terminal, which shows the output as it comes",
            ) from None

    async def start(self, argv: Sequence[str], stdin: bytes = b"") -> int:
        """Start a program and return its pid in the guest. Raises `Refused`."""
        arguments: dict[str, object] = {"path": argv[0], "arg": list(argv[1:]), "capture-output": True}
        if stdin:
            arguments["input-data"] = base64.b64encode(stdin).decode()
        try:
            async with self._turn:
                started = await self._call("guest-exec", START, **arguments)
            pid = started.get("pid") if isinstance(started, dict) else None
            if not isinstance(pid, int):
                raise AgentSilent("it started the program and gave no pid")
            return pid
        except AgentSilent as silent:
            raise _no_answer(silent) from silent
        except AgentRefused as refused:
            what = f"the guest agent could not run {argv[0]!r}: {refused}"
            raise Refused(Reason.BAD_REQUEST, what, field="command", details=why_not_run(str(refused))) from refused

    async def ended(self, pid: int) -> ExecResult:
        """Wait for the end of a program that was started. Raises `Refused`.

        The agent does not report it by itself: it is asked, ever more seldom, up to twice a second.
        """
        pause_s = _POLL_MIN_S
        try:
            while True:
                async with self._turn:
                    answer = await self._exchange("guest-exec-status", {"pid": pid}, OUTPUT)
                result = _cut_result(bytes(answer.line)) if answer.cut else _result(_returned(bytes(answer.line)))
                if result is not None:
                    return result
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _POLL_MAX_S)
        except AgentSilent as silent:
            raise _no_answer(silent) from silent
        except AgentRefused as refused:
            what = f"the guest agent does not know the program with pid {pid} any more: {refused}"
            raise Refused(Reason.UNAVAILABLE, what, remedy="has the guest been restarted?", retryable=True) from refused

    async def _call(self, command: str, limits: _Limits | None = None, /, **arguments: object) -> Any:
        answer = await self._exchange(command, arguments, limits or CALL)
        if answer.cut:
            raise AgentSilent(f"its answer to {command} is longer than {CALL.size_bytes} bytes")
        return _returned(bytes(answer.line))

    async def _exchange(self, command: str, arguments: dict[str, object], limits: _Limits) -> _Answer:
        if not self._in_step:
            await self._synchronise(CALL._replace(time_s=limits.time_s))
        self._in_step = False
        answer = await self._ask(b"", command, arguments, limits)
        self._in_step = True
        return answer

    async def _synchronise(self, limits: _Limits) -> None:
        self._syncs += 1
        number = int(asyncio.get_running_loop().time() * 1e6) + self._syncs
        # 0xFF makes the agent's parser forget whatever was half said (qga's guest-sync-delimited).
        await self._ask(b"\xff", "guest-sync-delimited", {"id": number}, limits, number)

    async def _ask(
        self, prefix: bytes, command: str, arguments: dict[str, object], limits: _Limits, number: int | None = None
    ) -> _Answer:
        if not self.is_open:
            raise AgentGone
        self._answer = answer = _Answer(limits.size_bytes, number)
        self.resume()
        self.write(prefix + json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        try:
            async with asyncio.timeout(limits.time_s):
                await answer.done
        except TimeoutError:
            raise AgentSilent(f"{command} timed out after {limits.time_s:g} s") from None
        finally:
            self._answer = None
        return answer


def _no_answer(silent: AgentSilent) -> Refused:
    if isinstance(silent, AgentGone):
        return Refused(Reason.UNAVAILABLE, "the VM has ended, or its node does", retryable=True)
    return Refused(
        Reason.UNAVAILABLE,
        f"no answer from the guest agent: {silent}",
        remedy="does the image have qemu-guest-agent, and is it running?",
        retryable=True,
    )


def why_not_run(said: str) -> Mapping[str, int]:
    """The exit status that a shell has for this error of exec(3); nothing for another."""
    if "No such file or directory" in said:
        return {EXIT_STATUS: NOT_FOUND}
    return {EXIT_STATUS: NOT_EXECUTABLE} if "Permission denied" in said or "Exec format error" in said else {}


def _has(line: bytes, number: int) -> bool:
    try:
        return bool(_returned(line) == number)
    except (AgentSilent, AgentRefused):
        return False


def _returned(line: bytes) -> Any:
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise AgentSilent(f"its answer is not JSON: {error}") from error
    if isinstance(answer, dict) and "return" in answer:
        return answer["return"]
    if isinstance(answer, dict) and isinstance(answer.get("error"), dict):
        raise AgentRefused(str(answer["error"].get("desc", "no reason given"))[:512])
    raise AgentSilent("its answer has neither a result nor an error")


def _result(status: Any) -> ExecResult | None:
    """The end of the program, from the answer to guest-exec-status; None while it runs."""
    if not isinstance(status, dict):
        raise AgentSilent("its answer to guest-exec-status is not an object")
    if status.get("exited") is not True:
        return None
    code, signal = status.get("exitcode"), status.get("signal")
    return ExecResult(
        exit_code=code if isinstance(code, int) else None,
        signal=signal if isinstance(signal, int) else None,
        stdout=_decoded(str(status.get("out-data", ""))),
        stderr=_decoded(str(status.get("err-data", ""))),
        truncated=bool(status.get("out-truncated") or status.get("err-truncated")),
    )


def _cut_result(line: bytes) -> ExecResult:
    """The same from an answer whose middle was thrown away: base64 has no quotes, so the fields can be told apart."""

    def number(name: bytes) -> int | None:
        found = re.search(rb'"%s":\s*(\d{1,9})\b' % name, line)
        return int(found[1]) if found else None

    def data(name: bytes) -> bytes:
        found = re.search(rb'"%s":\s*"([A-Za-z0-9+/]*)' % name, line)
        return _decoded(found[1].decode()) if found else b""

    return ExecResult(
        exit_code=number(b"exitcode"),
        signal=number(b"signal"),
        stdout=data(b"out-data"),
        stderr=data(b"err-data"),
        truncated=True,
    )


def _decoded(text: str) -> bytes:
    """As much of the text as is whole base64."""
    text = text.rstrip("=")
    whole = text[: len(text) - (len(text) % 4 == 1)]
    try:
        return base64.b64decode(whole + "=" * (-len(whole) % 4))
    except (binascii.Error, ValueError) as error:
        raise AgentSilent(f"its output is not base64: {error}") from error
