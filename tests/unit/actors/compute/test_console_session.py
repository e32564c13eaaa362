"""A console's session: its caller is sent what it has room for, and told why it is over."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from aetherscale.actors.compute import console
from aetherscale.actors.compute.console import PIECE_BYTES, Consoles, Program, Session
from aetherscale.actors.compute.driver import Window
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

    async def console(self, vm_id: str) -> Reader:
        return self.line.attach()


async def turns() -> None:
    """Let the loop go round."""
    for _ in range(20):
        await asyncio.sleep(0)


class Caller:
    """Takes what a session sends, and counts."""

    def __init__(self, session: Session) -> None:
        self.taken = b""
        self.task = asyncio.ensure_future(self._take(session.output()))

    async def _take(self, output: AsyncIterator[bytes]) -> None:
        async for piece in output:
            self.taken += piece


async def test_no_more_is_sent_than_there_is_room_for() -> None:
    driver = OneLine()
    async with Consoles(driver).attached("vm", "default", "s", WINDOW_BYTES) as session:
        caller = Caller(session)
        driver.line.feed(b"x" * 10 * PIECE_BYTES)
        await turns()
        assert len(caller.taken) == WINDOW_BYTES
        session.hear(b"", PIECE_BYTES)
        await turns()
        assert len(caller.taken) == WINDOW_BYTES + PIECE_BYTES
        # What is said twice, or late, makes no room.
        session.hear(b"", PIECE_BYTES)
        session.hear(b"", 0)
        await turns()
        assert len(caller.taken) == WINDOW_BYTES + PIECE_BYTES
        session.hear(b"", 8 * PIECE_BYTES)
        await turns()
        assert caller.taken == b"x" * 10 * PIECE_BYTES
        driver.line.end()
        await asyncio.wait_for(caller.task, WAIT_S)
        assert session.reason == "ended"


async def test_who_gives_no_window_is_sent_everything() -> None:
    driver = OneLine()
    async with Consoles(driver).attached("vm", "default", "s") as session:
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
    async with Consoles(driver).attached("vm", "default", "s", WINDOW_BYTES) as session:
        caller = Caller(session)
        driver.line.feed(b"x" * 10 * PIECE_BYTES)
        await turns()
        if reason == "detached":
            session.end("detached")
        else:
            monkeypatch.setattr(console, "SILENCE_S", 0.0)
            session.hear(b"")
        await asyncio.wait_for(caller.task, WAIT_S)
        assert len(caller.taken) == WINDOW_BYTES
        assert session.reason == reason


async def test_what_is_typed_arrives_whole_and_in_its_order() -> None:
    driver = OneLine()
    async with Consoles(driver).attached("vm", "default", "s") as session:
        for number in range(100):
            session.hear(b"%d " % number)
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

    consoles = Consoles(Ended())
    with caplog.at_level(logging.DEBUG):
        async with consoles.attached("vm", "default", "s") as session:
            for _ in range(3):
                session.hear(b"x")
            await turns()
            session.hear(b"x")
            await turns()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


class OneTerminal(OneLine):
    """Its only VM has this terminal, too."""

    def __init__(self) -> None:
        super().__init__()
        self.made = SimulatedTerminal(Window(24, 80), "xterm", lambda terminal: None)

    async def terminal(self, vm_id: str, argv: Sequence[str], window: Window, term: str) -> SimulatedTerminal:
        return self.made


PROGRAM = Program(["sh"], Window(24, 80), "xterm")
CALL = Call(
    tenant="default", component="compute", task="console-input", body=b"", actor="user:test", command_id="c",
    keyed=False, correlation_id="corr", deadline_us=None,
)  # fmt: skip


async def say(consoles: Consoles, **options: Any) -> None:
    async for _ in consoles.typed(ConsoleInputOptions(session="s", **options), CALL):
        pass


async def test_a_terminal_has_the_size_that_its_caller_says_last() -> None:
    driver = OneTerminal()
    consoles = Consoles(driver)
    async with consoles.attached("vm", "default", "s", None, PROGRAM):
        await say(consoles, rows=30, columns=90)
        await say(consoles, rows=1, columns=65_535)
        assert driver.made.window == Window(1, 65_535)
        await say(consoles)
        assert driver.made.window == Window(1, 65_535)


@pytest.mark.parametrize(("given", "missing"), [("rows", "columns"), ("columns", "rows")])
async def test_half_a_size_is_refused_and_nothing_is_typed(given: str, missing: str) -> None:
    driver = OneTerminal()
    consoles = Consoles(driver)
    async with consoles.attached("vm", "default", "s", None, PROGRAM):
        with pytest.raises(Refused, match="expected both") as refused:
            await say(consoles, data=b"exit\r", **{given: 30})
        await turns()
        assert (refused.value.reason, refused.value.field) == (Reason.BAD_REQUEST, missing)
        assert driver.made.window == Window(24, 80)
        assert driver.made.exit_code is None


async def test_a_serial_line_has_no_size() -> None:
    driver = OneLine()
    consoles = Consoles(driver)
    async with consoles.attached("vm", "default", "s"):
        with pytest.raises(Refused, match="a serial line has no size") as refused:
            await say(consoles, rows=30, columns=90)
        assert (refused.value.reason, refused.value.field) == (Reason.BAD_REQUEST, "rows")


async def test_a_program_that_reads_nothing_is_typed_to_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "INPUT_LIMIT", 2)
    consoles = Consoles(OneTerminal())
    async with consoles.attached("vm", "default", "s", None, PROGRAM):
        for _ in range(2):
            await say(consoles, data=b"x")
        with pytest.raises(Refused, match="the program does not read its terminal") as refused:
            await say(consoles, data=b"x")
        assert refused.value.reason == Reason.UNAVAILABLE
