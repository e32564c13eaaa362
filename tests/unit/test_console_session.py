"""A console's session: its caller is sent what it has room for, and told why it is over."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest

from aetherscale.actors.compute import console
from aetherscale.actors.compute.console import PIECE_BYTES, Consoles, Session
from aetherscale.actors.compute.readers import Reader, Readers
from aetherscale.actors.compute.simulated import SimulatedDriver
from aetherscale.actors.compute.simulated_host import SimulatedHost
from aetherscale.kernel.errors import Refused

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
            raise Refused(409, "the VM has ended")

    consoles = Consoles(Ended())
    with caplog.at_level(logging.DEBUG):
        async with consoles.attached("vm", "default", "s") as session:
            for _ in range(3):
                session.hear(b"x")
            await turns()
            session.hear(b"x")
            await turns()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
