"""A console's session: its caller is sent what it has room for, and told why it is over."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from aetherscale.actors.compute import console
from aetherscale.actors.compute.console import PIECE_BYTES, Attached, Consoles, Session
from aetherscale.actors.compute.driver import Piece, Window
from aetherscale.actors.compute.model.sessioncommands import ConsoleInputOptions
from aetherscale.actors.compute.readers import Reader, Readers
from aetherscale.actors.compute.simulated.driver import SimulatedDriver
from aetherscale.actors.compute.simulated.host import SimulatedHost
from aetherscale.actors.compute.simulated.terminal import SimulatedTerminal
from aetherscale.kernel.calls import Call
from aetherscale.kernel.errors import Reason, Refused

WAIT_S = 30.0
WINDOW_BYTES = 2 * PIECE_BYTES


class OneLine(SimulatedDriver):
    """Its only VM has this line."""

    def __init__(self) -> None:
        super().__init__(SimulatedHost())
        self.line = Readers(self.typed)
        self.heard: list[bytes] = []

    async def typed(self, data: bytes) -> None:
        self.heard.append(data)

    async def console(self, vm_id: str, past_bytes: int = 0) -> Reader:
        return self.line.attach()


async def turns() -> None:
    """Let the loop go round."""
    for _ in range(20):
        await asyncio.sleep(0)


def line(driver: OneLine) -> Callable[[], Awaitable[Attached]]:
    """Reaches the serial line."""

    async def reach() -> Attached:
        return Attached(await driver.console("vm"))

    return reach


def typed(data: bytes, seen_bytes: int | None = None) -> ConsoleInputOptions:
    return ConsoleInputOptions(session="s", data=data, seen_bytes=seen_bytes)


class Caller:
    """Takes what a session sends, and counts."""

    def __init__(self, session: Session) -> None:
        self.taken = b""
        self.task = asyncio.ensure_future(self._take(session.output()))

    async def _take(self, output: AsyncIterator[Piece]) -> None:
        async for piece in output:
            self.taken += piece.data


async def test_no_more_is_sent_than_there_is_room_for() -> None:
    driver = OneLine()
    async with Consoles().attached(line(driver), "default", "s", WINDOW_BYTES) as session:
        caller = Caller(session)
        driver.line.feed(b"x" * 10 * PIECE_BYTES)
        await turns()
        assert len(caller.taken) == WINDOW_BYTES
        session.hear(typed(b"", PIECE_BYTES))
        await turns()
        assert len(caller.taken) == WINDOW_BYTES + PIECE_BYTES
        # What is said twice, or late, makes no room.
        session.hear(typed(b"", PIECE_BYTES))
        session.hear(typed(b"", 0))
        await turns()
        assert len(caller.taken) == WINDOW_BYTES + PIECE_BYTES
        session.hear(typed(b"", 8 * PIECE_BYTES))
        await turns()
        assert caller.taken == b"x" * 10 * PIECE_BYTES
        driver.line.end()
        await asyncio.wait_for(caller.task, WAIT_S)
        assert session.reason == "ended"


async def test_who_gives_no_window_is_sent_everything() -> None:
    driver = OneLine()
    async with Consoles().attached(line(driver), "default", "s") as session:
        caller = Caller(session)
        driver.line.feed(b"x" * 10 * PIECE_BYTES)
        driver.line.end()
        await asyncio.wait_for(caller.task, WAIT_S)
        assert len(caller.taken) == 10 * PIECE_BYTES


@pytest.mark.parametrize("reason", ["silence", "detached"])
async def test_a_session_that_is_over_ends_also_while_it_waits_for_room(
    reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = OneLine()
    async with Consoles().attached(line(driver), "default", "s", WINDOW_BYTES) as session:
        caller = Caller(session)
        driver.line.feed(b"x" * 10 * PIECE_BYTES)
        await turns()
        if reason == "detached":
            session.end("detached")
        else:
            monkeypatch.setattr(console, "SILENCE_S", 0.0)
            session.hear(typed(b""))
        await asyncio.wait_for(caller.task, WAIT_S)
        assert len(caller.taken) == WINDOW_BYTES
        assert session.reason == reason


async def test_what_is_typed_arrives_whole_and_in_its_order() -> None:
    driver = OneLine()
    async with Consoles().attached(line(driver), "default", "s") as session:
        for number in range(100):
            session.hear(typed(b"%d " % number))
        await turns()
        for _ in range(100):
            await asyncio.sleep(0)
    assert b"".join(driver.heard) == b"".join(b"%d " % number for number in range(100))


async def test_what_is_typed_into_a_vm_that_has_ended_is_no_mistake_of_the_node(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Ended(OneLine):
        async def typed(self, data: bytes) -> None:
            raise Refused(Reason.CONFLICT, "the VM has ended")

    consoles, driver = Consoles(), Ended()
    with caplog.at_level(logging.DEBUG):
        async with consoles.attached(line(driver), "default", "s") as session:
            for _ in range(3):
                session.hear(typed(b"x"))
            await turns()
            session.hear(typed(b"x"))
            await turns()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


class OneTerminal(OneLine):
    """Its only VM has this terminal, too."""

    def __init__(self) -> None:
        super().__init__()
        self.made = SimulatedTerminal(Window(24, 80), "xterm", lambda terminal: None)


def terminal(driver: OneTerminal) -> Callable[[], Awaitable[Attached]]:
    """Reaches the terminal."""

    async def reach() -> Attached:
        return Attached(driver.made, terminal=driver.made)

    return reach


CALL = Call(
    tenant="default", component="compute", task="console-input", body=b"", actor="user:test", command_id="c",
    keyed=False, correlation_id="corr", deadline_us=None,
)  # fmt: skip


async def say(consoles: Consoles, **options: Any) -> None:
    async for _ in consoles.typed(ConsoleInputOptions(session="s", **options), CALL):
        pass


async def test_a_terminal_has_the_size_that_its_caller_says_last() -> None:
    driver = OneTerminal()
    consoles = Consoles()
    async with consoles.attached(terminal(driver), "default", "s"):
        await say(consoles, rows=30, columns=90)
        await say(consoles, rows=1, columns=65_535)
        assert driver.made.window == Window(1, 65_535)
        await say(consoles)
        assert driver.made.window == Window(1, 65_535)


@pytest.mark.parametrize(("given", "missing"), [("rows", "columns"), ("columns", "rows")])
async def test_half_a_size_is_refused_and_nothing_is_typed(given: str, missing: str) -> None:
    driver = OneTerminal()
    consoles = Consoles()
    async with consoles.attached(terminal(driver), "default", "s"):
        with pytest.raises(Refused, match="expected both") as refused:
            await say(consoles, data=b"exit\r", **{given: 30})
        await turns()
        assert (refused.value.reason, refused.value.field) == (Reason.BAD_REQUEST, missing)
        assert driver.made.window == Window(24, 80)
        assert driver.made.exit_code is None


async def test_a_serial_line_has_no_size() -> None:
    driver = OneLine()
    consoles = Consoles()
    async with consoles.attached(line(driver), "default", "s"):
        with pytest.raises(Refused, match="a serial line has no size") as refused:
            await say(consoles, rows=30, columns=90)
        assert (refused.value.reason, refused.value.field) == (Reason.BAD_REQUEST, "rows")


async def test_a_program_that_reads_nothing_is_typed_to_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "INPUT_LIMIT", 2)
    driver, consoles = OneTerminal(), Consoles()
    async with consoles.attached(terminal(driver), "default", "s"):
        for _ in range(2):
            await say(consoles, data=b"x")
        with pytest.raises(Refused, match="the program does not read its terminal") as refused:
            await say(consoles, data=b"x")
        assert refused.value.reason == Reason.UNAVAILABLE


class OneProgram:
    """A program that takes its input when it is let, and has been sent these signals."""

    pid, exit_code = 7, None

    def __init__(self) -> None:
        self.may_take = asyncio.Event()
        self.taken = bytearray()
        self.signals: list[str] = []
        self.has_input_ended = False
        self.has_ended = False
        self._gone = asyncio.Event()

    async def reach(self) -> Attached:
        return Attached(self, program=self)

    async def output(self) -> AsyncIterator[Piece]:
        yield Piece(b"out")
        yield Piece(b"err", is_error=True)
        await self._gone.wait()

    async def send(self, data: bytes) -> None:
        await self.may_take.wait()
        if self.has_ended:
            raise Refused(Reason.CONFLICT, "the program has ended")
        self.taken += data

    async def end_input(self) -> None:
        self.has_input_ended = True

    async def signal(self, name: str) -> None:
        self.signals.append(name)

    async def close(self) -> None:
        self._gone.set()


async def test_input_is_answered_once_a_program_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "INPUT_BYTES", 10)
    program, consoles = OneProgram(), Consoles()
    async with consoles.attached(program.reach, "default", "s"):
        first = asyncio.ensure_future(say(consoles, data=b"12345"))
        await turns()
        second = asyncio.ensure_future(say(consoles, data=b"1234567890"))
        await turns()
        assert not first.done()
        with pytest.raises(Refused, match="does not read its input, of which 10 bytes wait") as refused:
            await say(consoles, data=b"x")
        assert refused.value.reason == Reason.UNAVAILABLE
        await say(consoles, signal="INT")
        program.may_take.set()
        await asyncio.wait_for(first, WAIT_S)
        await asyncio.wait_for(second, WAIT_S)
        await say(consoles, end=True)
        assert (bytes(program.taken), program.has_input_ended, program.signals) == (b"123451234567890", True, ["INT"])


@pytest.mark.parametrize("how", ["it has ended", "the session is over"])
async def test_input_that_a_program_does_not_take_any_more_is_refused(how: str) -> None:
    program, consoles = OneProgram(), Consoles()
    async with consoles.attached(program.reach, "default", "s"):
        giving = [asyncio.ensure_future(say(consoles, data=b"x")) for _ in range(3)]
        await turns()
        if how == "it has ended":
            program.has_ended = True
            program.may_take.set()
            await asyncio.wait(giving, timeout=WAIT_S)
    for each in giving:
        with pytest.raises(Refused, match="has ended, or takes no input") as refused:
            await asyncio.wait_for(each, WAIT_S)
        assert refused.value.reason == Reason.CONFLICT


async def test_the_two_outputs_of_a_program_are_told_apart() -> None:
    program, consoles = OneProgram(), Consoles()
    async with consoles.attached(program.reach, "default", "s") as session:
        output = session.output()
        assert [await anext(output), await anext(output)] == [Piece(b"out"), Piece(b"err", is_error=True)]
        session.end("detached")
        assert [piece async for piece in output] == []


async def test_a_serial_line_takes_no_signal() -> None:
    driver, consoles = OneLine(), Consoles()
    async with consoles.attached(line(driver), "default", "s"):
        with pytest.raises(Refused, match="only a session of `vm-program` takes a signal") as refused:
            await say(consoles, signal="INT")
        assert (refused.value.reason, refused.value.field) == (Reason.BAD_REQUEST, "signal")
