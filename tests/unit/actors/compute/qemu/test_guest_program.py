"""Programs with streams in a guest that may lie, hang or fall silent, and a QEMU that does as it is told."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from aetherscale.actors.compute.driver import ExecResult
from aetherscale.actors.compute.qemu import outputs, portprograms
from aetherscale.actors.compute.qemu.plugs import PORT_LIMIT, Plugs
from aetherscale.actors.compute.qemu.programs import GuestProgram, Programs
from aetherscale.bus.tasks import Tasks
from aetherscale.kernel.errors import Reason, Refused
from tests.unit.actors.compute.qemu.test_guest_terminal import Agent

PATIENCE_S = 30.0
STATUSES = {b"no-program": {"exit-status": 127}, b"not-executable": {"exit-status": 126}}


class Qemu:
    """The guest's ends of the ports, by the last part of their names."""

    def __init__(self) -> None:
        self.given: dict[str, socket.socket] = {}
        self.guest: dict[str, socket.socket] = {}
        self.all: list[socket.socket] = []
        self.removed: list[str] = []

    async def execute(self, command: str, **arguments: Any) -> None:
        if command == "device_add":
            self.guest[arguments["name"].rpartition(".")[2]] = self.given.pop(arguments["chardev"])
        if command == "chardev-remove":
            self.removed.append(arguments["id"])

    async def give(self, descriptor: int, name: str) -> None:
        self.given[name] = socket.socket(fileno=os.dup(descriptor))
        self.all.append(self.given[name])

    def close(self) -> None:
        for each in self.all:
            each.close()


class World:
    def __init__(self) -> None:
        self.agent, self.qemu, self.tasks = Agent(), Qemu(), Tasks("test")
        self.programs = Programs(Plugs("vm", self.qemu.execute, self.qemu.give), self.tasks)

    async def open(self, *, has_input: bool = False) -> GuestProgram:
        return await self.programs.open(self.agent, ["true"], has_input=has_input)  # type: ignore[arg-type]

    async def begun(self, *, has_input: bool = False) -> GuestProgram:
        """A program that has said that it has begun."""
        opening = asyncio.ensure_future(self.open(has_input=has_input))
        while not self.agent.started:  # noqa: ASYNC110
            await asyncio.sleep(0)
        self.say("ctl", b"\x1e%s+77\x1e" % self.token)
        async with asyncio.timeout(PATIENCE_S):
            return await opening

    @property
    def token(self) -> bytes:
        return self.agent.started[5].encode()

    def say(self, end: str, data: bytes) -> None:
        self.qemu.guest[end].sendall(data)

    def mark(self, status: int) -> bytes:
        return b"\x1e%s-%d\x1e" % (self.token, status)


@pytest.fixture
async def guest() -> AsyncIterator[World]:
    made = World()
    yield made
    made.agent.end = ExecResult(0, None, b"", b"", truncated=False)
    made.programs.let_go()
    await made.tasks.close()
    made.qemu.close()


async def said(program: GuestProgram) -> tuple[bytes, bytes]:
    outputs = {False: bytearray(), True: bytearray()}
    async with asyncio.timeout(PATIENCE_S):
        async for piece in program.output():
            outputs[piece.is_error] += piece.data
    return bytes(outputs[False]), bytes(outputs[True])


async def test_the_marks_are_found_in_pieces_and_are_no_output(guest: World) -> None:
    program = await guest.begun()
    assert program.pid == 77

    async def speak() -> None:
        for data in (b"one\x1etwo", b"\x1e" + guest.token, b"-", b"no mark", guest.mark(0)[:-3], guest.mark(3)):
            for byte in data:
                guest.say("out", bytes([byte]))
                await asyncio.sleep(0)
        guest.say("err", b"wrong" + guest.mark(3) + b"after the end")

    speaking = asyncio.ensure_future(speak())
    token = guest.token
    assert await said(program) == (b"one\x1etwo\x1e" + token + b"-no mark" + guest.mark(0)[:-3], b"wrong")
    assert program.exit_code == 3
    await speaking


async def test_a_mark_of_another_token_ends_nothing(guest: World) -> None:
    program = await guest.begun()
    guest.say("out", b"\x1e0123456789abcdef-0\x1e" + guest.mark(5))
    guest.say("err", guest.mark(5))
    assert await said(program) == (b"\x1e0123456789abcdef-0\x1e", b"")
    assert program.exit_code == 5


async def test_a_port_that_is_closed_without_a_status_ends_after_its_last_words(
    guest: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outputs, "LAST_WORDS_S", 0.05)
    program = await guest.begun()
    guest.say("out", b"last words")
    for end in ("out", "err"):
        guest.programs.port_closed(f"program-{guest.token.decode()}-{end}")
    assert await said(program) == (b"last words", b"")
    assert program.exit_code is None


@pytest.mark.parametrize(
    "mark", [b"\x1e%s+\x1e", b"\x1e%s+-1\x1e", b"\x1e%s+7x\x1e", b"\x1e%s+9999999999\x1e", b"x" * 200]
)
async def test_a_guest_that_names_no_pid_has_not_begun_and_its_ports_are_taken_out(
    guest: World, monkeypatch: pytest.MonkeyPatch, mark: bytes
) -> None:
    monkeypatch.setattr(portprograms, "START_LIMIT_S", 0.3)
    opening = asyncio.ensure_future(guest.open(has_input=True))
    while not guest.agent.started:  # noqa: ASYNC110
        await asyncio.sleep(0)
    guest.say("ctl", mark.replace(b"%s", guest.token))
    with pytest.raises(Refused, match="has not begun within") as refused:
        await opening
    assert refused.value.reason == Reason.DEADLINE
    async with asyncio.timeout(PATIENCE_S):
        while len(guest.qemu.removed) < 4:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        (b"no-program", Reason.BAD_REQUEST),
        (b"not-executable", Reason.BAD_REQUEST),
        (b"no-setsid", Reason.NOT_IMPLEMENTED),
        (b"no-port", Reason.NOT_IMPLEMENTED),
        (b"out of memory" * 1000, Reason.UNAVAILABLE),
    ],
)
async def test_why_it_has_not_begun_is_told(
    guest: World, monkeypatch: pytest.MonkeyPatch, word: bytes, reason: Reason
) -> None:
    monkeypatch.setattr(portprograms, "LAST_WORDS_S", 0.0)
    guest.agent.end = ExecResult(1, None, b"", word + b"\n", truncated=False)
    with pytest.raises(Refused) as refused:
        await guest.open()
    assert refused.value.reason == reason
    assert refused.value.details == {b"no-program": {"exit-status": 127}, b"not-executable": {"exit-status": 126}}.get(
        word, {}
    )
    assert len(refused.value.message) < 700, "a guest says no more than so much"


async def test_a_guest_without_a_shell_is_refused_as_such(guest: World) -> None:
    guest.agent.refuses = Refused(Reason.BAD_REQUEST, "no such file")
    with pytest.raises(Refused, match="cannot have pipes in this guest: no such file") as refused:
        await guest.open()
    assert refused.value.reason == Reason.NOT_IMPLEMENTED


async def test_no_more_ports_are_plugged_in_than_a_guest_can_have(guest: World) -> None:
    held = []
    for _ in range(PORT_LIMIT // 3):
        guest.agent.started = []
        held.append(await guest.begun())
    with pytest.raises(Refused, match=f"of the {PORT_LIMIT} ports of the VM are in use") as refused:
        await guest.open()
    assert refused.value.reason == Reason.CONFLICT
    guest.agent.end = ExecResult(0, None, b"", b"", truncated=False)
    await held.pop().close()
    async with asyncio.timeout(PATIENCE_S):
        while len(guest.qemu.removed) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    guest.agent.end, guest.agent.started = None, []
    held.append(await guest.begun())
    for each in held:
        await each.close()


async def test_output_that_nobody_reads_holds_up_the_guest(guest: World) -> None:
    program = await guest.begun()
    port = guest.qemu.guest["out"]
    port.setblocking(False)
    sent = 0
    for _ in range(500):
        try:
            sent += port.send(b"x" * 65_536)
        except BlockingIOError:
            await asyncio.sleep(0.001)
    assert sent < 4 * 1024 * 1024, "what a node and the kernel hold is bounded"
    port.close()
    guest.programs.let_go()
    out = b""
    async for piece in program.output():
        out += piece.data
    assert len(out) <= sent


async def test_input_ends_once_and_what_comes_after_is_refused(guest: World) -> None:
    program = await guest.begun(has_input=True)
    await program.send(b"all")
    await program.end_input()
    await program.end_input()
    with pytest.raises(Refused) as refused:
        await program.send(b"more")
    assert refused.value.reason == Reason.CONFLICT
    assert guest.qemu.guest["in"].recv(10) == b"all"
    assert guest.qemu.guest["in"].recv(10) == b""


async def test_signals_go_on_a_port_that_the_program_has_not(guest: World) -> None:
    program = await guest.begun()
    await program.signal("INT")
    assert guest.qemu.guest["ctl"].recv(10) == b"INT\n"
